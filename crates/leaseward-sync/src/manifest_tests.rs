//! The text form of a manifest: golden bytes, hostile bytes.

use std::collections::BTreeMap;

use expect_test::expect;
use leaseward_state::config::{Chunk, Manifest, ManifestEntry, ManifestNode};

use super::{check, check_links, decode, encode, encode_entry, octal};
use crate::{Error, digest_of};

fn entry(path: &str, node: ManifestNode) -> ManifestEntry {
    ManifestEntry { path: path.to_owned(), node }
}

fn file(content: &[u8]) -> ManifestNode {
    let digest = digest_of(content);
    let chunks = if content.is_empty() { vec![] } else { vec![Chunk { digest, size: content.len() as u32 }] };
    ManifestNode::File { mode: 0o644, size: content.len() as u64, digest, chunks }
}

fn sample() -> Manifest {
    let piece = |text: &[u8]| Chunk { digest: digest_of(text), size: 262_144 };
    let large = ManifestNode::File {
        mode: 0o600,
        size: 524_288,
        digest: digest_of(b"large"),
        chunks: vec![piece(b"1"), piece(b"2")],
    };
    Manifest {
        entries: vec![
            entry("conf.d", ManifestNode::Directory { mode: 0o755 }),
            entry("conf.d/back\\slash\nand line", file(b"hello")),
            entry("current", ManifestNode::Symlink { target: "conf.d/with\ttab".to_owned() }),
            entry("empty", file(b"")),
            entry("large ä", large),
        ],
        xattrs: None,
    }
}

/// Returns the manifest text with a right last line, whatever stands in `body`.
fn sealed(lines: &[&str]) -> Vec<u8> {
    let mut text = String::from("leaseward manifest 1\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}end {} {crc:08x}\n", lines.len()).into_bytes()
}

#[test]
fn the_text_form_stays() {
    let bytes = encode(&sample());
    expect![[r#"
        leaseward manifest 1
        d 755 conf.d
        f 644 5 ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f = conf.d/back\5cslash\0aand line
        l current	conf.d/with\09tab
        f 644 0 af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 - empty
        f 600 524288 6d7c674e5919ac828992537064a1efe41e7cbcb0505ec07fea06c64c9935a8d4 d63bd9a826af91c1fea371965a64e11ee20f13e46b5f52c59901136605b3a487:262144,813e9b729141e7f385afa0a2d0df3e6c3789e427ffe4aeef566a565bc8f2fe3d:262144 large ä
        end 5 bb7c0d0f
    "#]].assert_eq(std::str::from_utf8(&bytes).unwrap());
    assert_eq!(decode(&bytes).unwrap(), sample());
    assert_eq!(decode(&encode(&Manifest::default())).unwrap(), Manifest::default());
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let bytes = encode(&sample());
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "cut at {length}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad).is_err(), "bit {bit}");
    }
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"d 755 more\n");
    assert!(decode(&longer).is_err());
}

#[test]
fn hostile_lines_are_refused_although_the_checksum_is_right() {
    let digest = digest_of(b"hello");
    let nothing = digest_of(b"");
    let good = format!("f 644 5 {digest} = a");
    assert!(decode(&sealed(&[&good])).is_ok());
    let bad = [
        format!("f 644 5 {digest} = ../a"),
        format!("f 644 5 {digest} = /etc/passwd"),
        format!("f 644 5 {digest} = a/b"),
        format!("f 4755 5 {digest} = a"),
        format!("f 0644 5 {digest} = a"),
        format!("f 644 05 {digest} = a"),
        format!("f 644 +5 {digest} = a"),
        format!("f 644 5 {} = a", digest.to_string().to_uppercase()),
        format!("f 644 5 {digest} - a"),
        format!("f 644 0 {digest} - a"),
        format!("f 644 0 {nothing} = a"),
        format!("f 644 5 {digest} {digest}:5 a"),
        format!("f 644 18446744073709551615 {digest} = a"),
        format!("f 644 600000 {digest} {digest}:300000,{digest}:300000 a"),
        format!("f 644 5 {digest} {digest}:5,{digest}:0 a"),
        format!("f 644 5 {digest} = a\\61"),
        format!("f 644 5 {digest} = a\\0"),
        format!("f 644 5 {digest} = a\\00"),
        format!("f 644 5 {digest} = a\\é"),
        "l a\t../out".to_owned(),
        "l a\t/etc".to_owned(),
        "l a".to_owned(),
        "d 755 ..".to_owned(),
        "d 999 a".to_owned(),
        "x 755 a".to_owned(),
        String::new(),
    ];
    for line in &bad {
        assert!(decode(&sealed(&[line])).is_err(), "{line} was accepted");
    }
    assert!(decode(&sealed(&[&good, &good])).is_err(), "a duplicate was accepted");
    assert!(decode(&sealed(&["d 755 b", "d 755 a"])).is_err(), "descending paths were accepted");
}

#[test]
fn deep_trees_are_refused() {
    let mut manifest = Manifest::default();
    let mut path = String::from("d");
    for _ in 0..crate::limits::DEPTH_MAX + 1 {
        manifest.entries.push(entry(&path, ManifestNode::Directory { mode: 0o755 }));
        path.push_str("/d");
    }
    assert!(matches!(check(&manifest), Err(Error::IllegalTree { .. })));
    manifest.entries.pop();
    assert!(check(&manifest).is_ok());
}

#[test]
fn modes_and_sizes_are_spelled_as_formatting_spells_them() {
    let around = |bit: u32| [1u32 << bit, (1 << bit) - 1, (1 << bit) | 1];
    for mode in (0..=0o7777).chain((0..32).flat_map(around)).chain([u32::MAX]) {
        let mut text = String::new();
        octal(&mut text, mode);
        assert_eq!(text, format!("{mode:o}"));
    }
    let digest = crate::digest_of(b"x");
    for (size, piece) in [(0, 0), (1, 9), (10, 10), (u64::from(u32::MAX), u32::MAX), (u64::MAX, 1_000_000)] {
        let node = |chunks| ManifestNode::File { mode: 0o644, size, digest, chunks };
        let mut text = String::new();
        let chunk = Chunk { digest, size: piece };
        encode_entry(&mut text, &entry("a", node(vec![chunk, chunk])));
        assert_eq!(text, format!("f 644 {size} {digest} {digest}:{piece},{digest}:{piece} a\n"));
    }
}

#[test]
fn links_that_lead_out_only_by_way_of_others_are_refused_when_they_are_published() {
    let tree = |links: &[(&str, &str)]| {
        let mut entries: BTreeMap<String, ManifestNode> =
            BTreeMap::from(["sub", "sub/in"].map(|path| (path.to_owned(), ManifestNode::Directory { mode: 0o755 })));
        let link = |target: &str| ManifestNode::Symlink { target: target.to_owned() };
        entries.extend(links.iter().map(|(path, target)| ((*path).to_owned(), link(target))));
        let entries = entries.into_iter().map(|(path, node)| ManifestEntry { path, node }).collect();
        Manifest { entries, xattrs: None }
    };
    for out in [
        &[("sub/d", "."), ("sub/l", "d/../../outside")][..],
        &[("sub/in/a", "../.."), ("sub/b", "in/a/../x")],
        &[("a", "sub/in/up"), ("sub/in/up", "../.."), ("z", "a/../x")],
    ] {
        let tree = tree(out);
        assert!(check(&tree).is_ok(), "each of them stays inside: {out:?}");
        assert!(check_links(&tree).unwrap_err().to_string().contains("leads out"), "{out:?}");
    }
    // Where it leads need not be there, a circle leads nowhere, and a link to the top of the tree is one that stays.
    check_links(&tree(&[("a", "b"), ("b", "a")])).unwrap();
    let fine =
        [("current", "sub/in"), ("sub/d", "."), ("sub/in/a", "../.."), ("sub/l", "d/in/../none"), ("x", "none/y")];
    check_links(&tree(&fine)).unwrap();
}
