//! Trees that are looked at by several threads, compared with one that walks.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;

fn everything(_: &str) -> bool {
    true
}

fn make(root: &Path, path: &str) -> PathBuf {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    path
}

fn spoil(root: &Path, dir: &str) {
    fs::create_dir_all(root.join(dir)).unwrap();
    fs::write(root.join(dir).join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
}

fn paths(found: Vec<(String, Stat)>) -> Vec<String> {
    found.into_iter().map(|(path, _)| path).collect()
}

/// Returns what one thread finds that walks.
fn walked(root: &Dir) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    root.walk(&mut |path, _, _, stat| {
        found.push((path.to_owned(), stat.st_ino));
        Ok(())
    })?;
    found.sort_unstable();
    Ok(found)
}

#[test]
fn the_list_is_what_a_walk_finds_by_ascending_whole_paths_and_no_link_is_followed() {
    let (temp, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(outside.path(), "secret/file");
    for path in ["a/b", "a-b", "a.b/c", "a/b-c/d", "a/b.c", "z", "ä/ö"] {
        make(temp.path(), path);
    }
    for i in 0..40 {
        make(temp.path(), &format!("many/{}/{}/f{i}", i % 3, i % 5));
    }
    fs::create_dir(temp.path().join("empty")).unwrap();
    symlink(outside.path(), temp.path().join("out")).unwrap();
    symlink("a", temp.path().join("in")).unwrap();
    let root = Dir::open(temp.path()).unwrap();
    let found = list(&root, &everything).unwrap();
    let inodes: Vec<_> = found.iter().map(|(path, stat)| (path.clone(), stat.st_ino)).collect();
    assert_eq!(inodes, walked(&root).unwrap());
    let first: Vec<_> = paths(found).into_iter().filter(|path| !path.starts_with("many")).collect();
    let expected =
        ["a", "a-b", "a.b", "a.b/c", "a/b", "a/b-c", "a/b-c/d", "a/b.c", "empty", "in", "out", "z", "ä", "ä/ö"];
    assert_eq!(first, expected);
}

#[test]
fn a_failure_in_the_smallest_directory_is_the_one_that_is_told() {
    let temp = tempfile::tempdir().unwrap();
    for dir in ["m/deep/below", "b/c", "z", "y/x", "b-c"] {
        spoil(temp.path(), dir);
        make(temp.path(), &format!("{dir}/fine"));
    }
    let root = Dir::open(temp.path()).unwrap();
    for _ in 0..50 {
        let error = list(&root, &everything).unwrap_err();
        assert_eq!(error.code(), "LW0804");
        assert!(error.to_string().contains("/b-c/"), "{error}");
    }
}

#[test]
fn a_tree_is_as_deep_as_for_a_walk() {
    for (deep, is_legal) in [(DEPTH_MAX - 1, true), (DEPTH_MAX, false)] {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join(vec!["d"; deep].join("/"))).unwrap();
        let root = Dir::open(temp.path()).unwrap();
        let found = list(&root, &everything).map(|found| found.len());
        assert_eq!(found.as_ref().ok(), walked(&root).ok().map(|found| found.len()).as_ref(), "{deep}");
        assert_eq!(found.is_ok(), is_legal, "{deep}");
        if let Err(error) = found {
            assert!(error.to_string().contains("directories deep"), "{error}");
        }
    }
}

#[test]
fn only_what_counts_counts_and_too_much_is_told_before_anything_else() {
    let temp = tempfile::tempdir().unwrap();
    for i in 0..10 {
        make(temp.path(), &format!("cache/{i}"));
        make(temp.path(), &format!("conf/{i}"));
    }
    let root = Dir::open(temp.path()).unwrap();
    let counts = |path: &str| path.starts_with("conf");
    assert_eq!(list_at_most(11, &root, &counts).unwrap().len(), 11);
    assert_eq!(list_at_most(10, &root, &counts).unwrap_err().code(), "LW0808");
    assert_eq!(list_at_most(21, &root, &everything).unwrap_err().code(), "LW0808");
    // In whatever order they are found.
    for dir in ["a", "cache", "z"] {
        spoil(temp.path(), dir);
    }
    for _ in 0..50 {
        assert_eq!(list_at_most(10, &root, &counts).unwrap_err().code(), "LW0808");
        assert_eq!(list_at_most(11, &root, &counts).unwrap_err().code(), "LW0804");
    }
}

#[test]
fn there_may_be_more_directories_than_a_process_can_have_open() {
    let name = "listing::tests::there_may_be_more_directories_than_a_process_can_have_open";
    if crate::few_files::are_allowed(40, name) {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..300 {
            fs::create_dir_all(temp.path().join(format!("{}/{i}", i % 60))).unwrap();
        }
        let root = Dir::open(temp.path()).unwrap();
        assert_eq!(list(&root, &everything).unwrap().len(), 360);
    }
}
