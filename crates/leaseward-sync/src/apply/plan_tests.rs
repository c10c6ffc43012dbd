//! Plans for trees that need no disk: who lends what, and to whom.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use leaseward_state::config::ManifestEntry;

use super::*;
use crate::digest_of;

/// Returns a tree of files, `path=content`, and directories, `path/`. Each word of a content is one chunk; `#` begins a mode.
fn tree(words: &str) -> Manifest {
    let mut manifest = Manifest::default();
    for word in words.split(", ").filter(|word| !word.is_empty()) {
        let (path, node) = match word.split_once('=') {
            None => (word, ManifestNode::Directory { mode: 0o755 }),
            Some((path, content)) => {
                let (content, mode) = content.split_once('#').unwrap_or((content, "644"));
                let chunk =
                    |word: &str| Chunk { digest: digest_of(word.as_bytes()), size: u32::try_from(word.len()).unwrap() };
                let chunks: Vec<Chunk> = content.split('+').map(chunk).collect();
                let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
                let mode = u32::from_str_radix(mode, 8).unwrap();
                (
                    path,
                    ManifestNode::File { mode, size, digest: digest_of(content.replace('+', "").as_bytes()), chunks },
                )
            }
        };
        manifest.entries.push(ManifestEntry { path: path.to_owned(), node });
    }
    manifest.check().unwrap();
    manifest
}

/// Returns a tree on the disk, each of whose files has the inode that is given; 0 if its content is not proven.
fn lender(words: &str, inodes: &[u64]) -> Lender {
    let record = Record::unproven(Arc::new(tree(words)));
    let mut lender = Lender::new(Dir::open(std::path::Path::new("/")).unwrap(), Arc::new(record));
    for (proven, inode) in lender.proven.iter_mut().zip(inodes) {
        *proven = (*inode != 0).then(|| Stamp { inode: *inode, ..Stamp::default() });
    }
    lender
}

/// Says for each path what is done, and what comes from where.
fn check(new: &str, lenders: &[Lender], expected: Expect) {
    let manifest = tree(new);
    let planned = plan(&manifest, lenders);
    assert_eq!(planned, plan(&manifest, lenders), "equal inputs, equal plans");
    let path_of = |origin: &Origin| {
        format!("{}:{}", origin.tree, lenders[origin.tree].record.manifest.entries[origin.entry].path)
    };
    let mut said = String::new();
    for (entry, action) in manifest.entries.iter().zip(&planned.actions) {
        let _ = match action {
            Action::Link(origin) => writeln!(said, "{} <- {}", entry.path, path_of(origin)),
            Action::Write => writeln!(said, "{} written", entry.path),
            other => writeln!(said, "{} {other:?}", entry.path),
        };
    }
    let named: BTreeMap<String, String> = new
        .split(", ")
        .filter_map(|word| word.split_once('='))
        .flat_map(|(_, content)| content.split('#').next().unwrap().split('+'))
        .filter_map(|word| {
            let (origin, offset) = planned.chunks.get(&digest_of(word.as_bytes()))?;
            Some((word.to_owned(), format!("{}@{offset}", path_of(origin))))
        })
        .collect();
    assert_eq!(named.len(), planned.chunks.len(), "nothing is looked for that nobody wants");
    for (word, place) in named {
        let _ = writeln!(said, "chunk {word} from {place}");
    }
    let _ = writeln!(said, "{} to fetch, {} inodes", planned.fetch.len(), planned.need.inodes);
    expected.assert_eq(&said);
}

#[test]
fn a_file_stays_only_with_its_path_content_mode_and_attributes() {
    let old = tree("a=1, b=2, b-c=3, d, d/e=4, f=5, h=7");
    let mut new = tree("a=1, b=other, b-c=3#600, d, d/e=4, e=1, f, h=7");
    let stays = |new: &Manifest, old: &Manifest| {
        let found = staying(new, old);
        let paths = new.entries.iter().zip(found).filter_map(|(entry, old)| Some((entry.path.clone(), old?)));
        paths.collect::<Vec<_>>()
    };
    let all = [("a".to_owned(), 0), ("d/e".to_owned(), 4), ("h".to_owned(), 6)];
    assert_eq!(stays(&new, &old), all);
    assert_eq!(stays(&new, &Manifest::default()), []);
    assert_eq!(staying(&Manifest::default(), &old), []);
    // Nobody knows which attributes the old ones have.
    new.xattrs = Some(BTreeMap::new());
    assert_eq!(stays(&new, &old), []);
    let mut kept = old.clone();
    kept.xattrs = Some([("h".to_owned(), [("user.a".to_owned(), b"1".to_vec())].into())].into());
    assert_eq!(stays(&new, &kept), all[..2]);
}

#[test]
fn what_stays_is_linked_where_it_is_and_what_moved_from_where_it_was() {
    check(
        "a=1, b=2, d, d/e=3",
        &[lender("a=1, c=2, d, d/e=3", &[10, 11, 0, 12])],
        expect![[r#"
        a <- 0:a
        b <- 0:c
        d Directory
        d/e <- 0:d/e
        0 to fetch, 2 inodes
    "#]],
    );
    // Swapped.
    check(
        "a=2, b=1",
        &[lender("a=1, b=2", &[10, 11])],
        expect![[r#"
        a <- 0:b
        b <- 0:a
        0 to fetch, 1 inodes
    "#]],
    );
    // A new path takes nothing from one that stays, though it comes first.
    check(
        "a=1, b=1, c=1",
        &[lender("b=1", &[10])],
        expect![[r#"
        a written
        b <- 0:b
        c written
        chunk 1 from 0:b@0
        0 to fetch, 3 inodes
    "#]],
    );
}

#[test]
fn no_inode_is_linked_twice_whoever_has_it() {
    // Somebody linked two paths by hand.
    check(
        "a=1, b=1",
        &[lender("a=1, b=1", &[10, 10])],
        expect![[r#"
        a <- 0:a
        b written
        chunk 1 from 0:a@0
        0 to fetch, 2 inodes
    "#]],
    );
    check(
        "c=1, d=1",
        &[lender("a=1, b=1", &[10, 10])],
        expect![[r#"
        c <- 0:a
        d written
        chunk 1 from 0:a@0
        0 to fetch, 2 inodes
    "#]],
    );
    // The previous tree has the same inode under another name, and one of its own.
    check(
        "a=1, b=1, c=1",
        &[lender("b=1", &[10]), lender("a=1, c=1", &[10, 11])],
        expect![[r#"
        a written
        b <- 0:b
        c <- 1:c
        chunk 1 from 0:b@0
        0 to fetch, 2 inodes
    "#]],
    );
}

#[test]
fn only_proven_files_lend_and_the_live_tree_does_first() {
    check(
        "a=1, b=2",
        &[lender("a=1, b=2", &[0, 11])],
        expect![[r#"
        a written
        b <- 0:b
        1 to fetch, 2 inodes
    "#]],
    );
    check(
        "a=1",
        &[lender("a=1", &[0]), lender("a=1", &[20])],
        expect![[r#"
        a <- 1:a
        0 to fetch, 1 inodes
    "#]],
    );
    check(
        "a=1",
        &[lender("b=1", &[10]), lender("b=1", &[20])],
        expect![[r#"
        a <- 0:b
        0 to fetch, 1 inodes
    "#]],
    );
    // Another mode makes another inode, of the same bytes.
    check(
        "a=1#600",
        &[lender("a=1", &[10])],
        expect![[r#"
        a written
        chunk 1 from 0:a@0
        0 to fetch, 2 inodes
    "#]],
    );
}

#[test]
fn chunks_of_what_is_written_come_from_proven_files_and_those_of_the_rest_are_not_looked_for() {
    check(
        "a=one+four+three, b=same+text",
        &[lender("a=one+two+three, b=same+text, c=four+five", &[10, 11, 0]), lender("z=zzz+four", &[20])],
        expect![[r#"
            a written
            b <- 0:b
            chunk four from 1:z@3
            chunk one from 0:a@0
            chunk three from 0:a@6
            0 to fetch, 2 inodes
        "#]],
    );
}
