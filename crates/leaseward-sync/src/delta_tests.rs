//! Round trips over random trees and edits, hostile bytes, and sizes on a generated workload.

use std::collections::BTreeMap;

use leaseward_state::config::ManifestNode;

use super::*;
use crate::limits::CHUNK_BYTES_MAX;

/// A tree in memory: its files by path.
type Files = BTreeMap<String, Vec<u8>>;
type Blobs = BTreeMap<Digest, Vec<u8>>;

fn cut(bytes: &[u8], blobs: &mut Blobs) -> Vec<Chunk> {
    let keep = |piece: &[u8], blobs: &mut Blobs| {
        let digest = digest_of(piece);
        blobs.insert(digest, piece.to_vec());
        Chunk { digest, size: piece.len() as u32 }
    };
    match bytes.len() {
        0 => vec![],
        small if small <= CHUNK_BYTES_MAX => vec![keep(bytes, blobs)],
        _ => fastcdc::v2020::FastCDC::new(bytes, 16 << 10, 64 << 10, 256 << 10)
            .map(|cut| keep(&bytes[cut.offset..cut.offset + cut.length], blobs))
            .collect(),
    }
}

fn tree(files: &Files, blobs: &mut Blobs) -> Manifest {
    let mut entries = Vec::new();
    let mut made = std::collections::BTreeSet::new();
    for (path, bytes) in files {
        if let Some((dir, _)) = path.rsplit_once('/')
            && made.insert(dir.to_owned())
        {
            entries.push(leaseward_state::config::ManifestEntry {
                path: dir.to_owned(),
                node: ManifestNode::Directory { mode: 0o755 },
            });
        }
        let chunks = cut(bytes, blobs);
        let node = ManifestNode::File { mode: 0o644, size: bytes.len() as u64, digest: digest_of(bytes), chunks };
        entries.push(leaseward_state::config::ManifestEntry { path: path.clone(), node });
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Manifest { entries, ..Manifest::default() }
}

/// A generator of numbers, the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn text(&mut self, size: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(size + 32);
        while text.len() < size {
            let (key, value) = (self.roll(5_000), self.roll(1 << 31));
            text.extend_from_slice(format!("setting.{key} = {value:x}\n").as_bytes());
        }
        text.truncate(size);
        text
    }
}

/// Encodes, decodes and compares. Returns the size.
fn round(one: &Files, other: &Files) -> usize {
    let mut blobs = Blobs::new();
    let (base, next) = (tree(one, &mut blobs), tree(other, &mut blobs));
    let mut read = |chunk: Chunk| Ok(blobs[&chunk.digest].clone());
    let bytes = encode(&base, &next, &mut read, usize::MAX).unwrap().expect("it fits");
    let delta = Delta::open(&bytes).unwrap();
    assert_eq!(delta.base(), digest_of(&manifest::encode(&base)));
    assert_eq!(delta.next(), digest_of(&manifest::encode(&next)));
    // The reader has the base and nothing else.
    let mut old = Blobs::new();
    tree(one, &mut old);
    let decoded = delta.decode(&base, &mut |chunk| Ok(old[&chunk.digest].clone())).unwrap();
    assert_eq!((&decoded.manifest, &decoded.encoded), (&next, &manifest::encode(&next)));
    let got: Vec<_> = decoded.chunks().map(|(digest, bytes)| (digest, bytes.to_vec())).collect();
    let wanted: Vec<_> =
        only_in(&next, &base).iter().map(|chunk| (chunk.digest, blobs[&chunk.digest].clone())).collect();
    assert_eq!(got, wanted);
    bytes.len()
}

#[test]
fn random_trees_and_edits_come_back_as_they_were() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut files = Files::new();
        for _ in 0..dice.roll(30) {
            let size = [0, 5, 300, 9_000, 400_000][dice.roll(5) as usize];
            let text = dice.text(size);
            files.insert(format!("d{}/f{}", dice.roll(4), dice.roll(20)), text);
        }
        let mut after = files.clone();
        for _ in 0..dice.roll(12) {
            let Some(path) = after.keys().nth(dice.roll(after.len().max(1) as u64) as usize).cloned() else { break };
            match dice.roll(5) {
                0 => drop(after.remove(&path)),
                1 => {
                    let bytes = after.remove(&path).unwrap();
                    after.insert(format!("{path}-moved"), bytes);
                }
                2 => after.get_mut(&path).unwrap().splice(0..0, *b"head").for_each(drop),
                3 => after.get_mut(&path).unwrap().extend_from_slice(b"tail"),
                _ => drop(after.insert(path + "-new", dice.text(500))),
            }
        }
        round(&files, &after);
        round(&after, &files);
        round(&files, &files);
        round(&Files::new(), &after);
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let mut blobs = Blobs::new();
    let one = tree(&Files::from([("a".into(), b"one two three".repeat(9))]), &mut blobs);
    let two = tree(&Files::from([("a".into(), b"one two four".repeat(9))]), &mut blobs);
    let mut read = |chunk: Chunk| Ok(blobs[&chunk.digest].clone());
    let good = encode(&one, &two, &mut read, usize::MAX).unwrap().unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let opened = Delta::open(&bytes).and_then(|delta| delta.decode(&one, &mut read).map(drop));
        assert!(opened.is_err(), "bit {bit}");
        // And with a checksum that a liar makes.
        let crc = checksum(&bytes);
        bytes[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
        if let Ok(delta) = Delta::open(&bytes)
            && let Ok(decoded) = delta.decode(&one, &mut read)
        {
            assert_eq!(decoded.manifest, two, "bit {bit}: whatever passes is what was named");
        }
    }
    for length in 0..good.len() {
        assert!(Delta::open(&good[..length]).is_err());
    }
    // Another base, and a chunk of the base that is not what it was.
    assert!(Delta::open(&good).unwrap().decode(&two, &mut read).is_err());
    let mut wrong = |chunk: Chunk| Ok(vec![b'x'; chunk.size as usize]);
    assert_eq!(Delta::open(&good).unwrap().decode(&one, &mut wrong).unwrap_err().code(), "LW0810");
}

#[test]
fn what_is_too_much_is_given_up() {
    let mut blobs = Blobs::new();
    let mut dice = Dice(1);
    let noise: Vec<u8> = (0..100_000).map(|_| dice.roll(256) as u8).collect();
    let one = tree(&Files::from([("a".into(), b"x".to_vec())]), &mut blobs);
    let two = tree(&Files::from([("a".into(), noise)]), &mut blobs);
    let mut read = |chunk: Chunk| Ok(blobs[&chunk.digest].clone());
    assert_eq!(encode(&one, &two, &mut read, 50_000).unwrap(), None);
    assert!(encode(&one, &two, &mut read, 110_000).unwrap().is_some());
    // Not even read: a manifest may name more than memory holds.
    let chunk = |i: u32| Chunk { digest: digest_of(&i.to_le_bytes()), size: CHUNK_BYTES_MAX as u32 };
    let chunks: Vec<_> = (0..300).map(chunk).collect();
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    let node = ManifestNode::File { mode: 0o644, size, digest: digest_of(b"large"), chunks };
    let large = Manifest {
        entries: vec![leaseward_state::config::ManifestEntry { path: "l".into(), node }],
        ..Manifest::default()
    };
    let mut never = |_: Chunk| -> Result<Vec<u8>> { panic!("nothing is read") };
    assert_eq!(encode(&Manifest::default(), &large, &mut never, usize::MAX).unwrap(), None);
}

/// Two thousand files with twenty-odd megabytes, of which one is large.
fn site() -> Files {
    let mut dice = Dice(7);
    let mut files = Files::new();
    for i in 0..2_000_u64 {
        let size = [400, 1_500, 4_000, 9_000, 40_000][dice.roll(5) as usize];
        files.insert(format!("dir{:02}/file{i:04}.conf", i % 40), dice.text(size));
    }
    files.insert("data/records.db".into(), dice.text(3 << 20));
    files
}

#[test]
fn an_edit_costs_what_it_changes() {
    let files = site();
    let paths: Vec<String> = files.keys().cloned().collect();
    let edited = |edit: &dyn Fn(usize, &mut Vec<u8>)| {
        let mut after = files.clone();
        for (i, path) in paths.iter().enumerate() {
            edit(i, after.get_mut(path).unwrap());
        }
        round(&files, &after)
    };
    let edit1 = edited(&|i, bytes| {
        if i % 100 == 1 {
            let at = bytes.len() / 2;
            bytes.splice(at..at + 8, *b"changed!").for_each(drop);
        }
    });
    let insert = edited(&|i, bytes| {
        if i % 100 == 1 {
            bytes.splice(0..0, *b"# a new head\n").for_each(drop);
        }
    });
    let scattered = edited(&|i, bytes| {
        if paths[i] == "data/records.db" {
            for page in (0..bytes.len() / 4096).step_by(20) {
                bytes[page * 4096..page * 4096 + 16].copy_from_slice(b"sixteen new byte");
            }
        }
    });
    let mut renamed = files.clone();
    for path in paths.iter().filter(|path| path.starts_with("dir01/")) {
        let bytes = renamed.remove(path).unwrap();
        renamed.insert(path.replacen("dir01", "moved", 1), bytes);
    }
    let rename = round(&files, &renamed);
    println!("edit1 {edit1}, insert {insert}, scattered {scattered}, rename {rename}");
    assert!(edit1 < 4_000 && insert < 4_000 && scattered < 16_000 && rename < 2_000);
}
