//! What a publisher may and may not publish.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

#[test]
fn equal_trees_have_equal_manifests_and_large_files_are_cut() {
    let text: String = (0..200_000).map(|i| format!("line {i}\n")).collect();
    let make = || {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("a")).unwrap();
        for (path, content) in [("a/b", "1"), ("a-b", "2"), ("big", text.as_str()), ("edge", &text[..CHUNK_BYTES_MAX])]
        {
            fs::write(temp.path().join(path), content).unwrap();
        }
        temp
    };
    let (one, two) = (make(), make());
    let scanned = scan(one.path()).unwrap();
    assert_eq!(manifest::encode(scanned.manifest()), manifest::encode(scan(two.path()).unwrap().manifest()));
    let paths: Vec<_> = scanned.manifest().entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths, ["a", "a-b", "a/b", "big", "edge"]);
    let ManifestNode::File { size, digest, chunks, .. } = &scanned.manifest().entries[3].node else { panic!() };
    assert_eq!((*size, *digest), (text.len() as u64, digest_of(text.as_bytes())));
    let inner = &chunks[..chunks.len() - 1];
    assert!(inner.iter().all(|chunk| (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&(chunk.size as usize))));
    let again: Vec<u8> = chunks.iter().flat_map(|chunk| scanned.read(chunk.digest).unwrap()).collect();
    assert!(again == text.as_bytes());
    let ManifestNode::File { chunks, .. } = &scanned.manifest().entries[4].node else { panic!() };
    assert_eq!(chunks.len(), 1);
    assert_eq!(manifest::decode(&manifest::encode(scanned.manifest())).unwrap(), *scanned.manifest());
}

#[test]
fn what_cannot_be_rebuilt_elsewhere_is_refused_with_its_path() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 7] = [
        ("pipe", |path| rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap()),
        ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("setuid", |path| {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).unwrap();
        }),
        ("sticky", |path| {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).unwrap();
        }),
        ("absolute", |path| symlink("/etc/passwd", path).unwrap()),
        ("climbing", |path| symlink("../../etc/passwd", path).unwrap()),
        ("dangling-out", |path| symlink("x/../../y", path).unwrap()),
    ];
    for (name, make) in cases {
        let temp = tempfile::tempdir().unwrap();
        make(&temp.path().join(name));
        let error = scan(temp.path()).unwrap_err();
        assert_eq!(error.code(), "LW0804", "{name}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(std::os::unix::ffi::OsStrExt::from_bytes(b"\xff") as &OsStr), "").unwrap();
    assert_eq!(scan(temp.path()).unwrap_err().code(), "LW0804");
}

#[test]
fn a_file_that_changes_between_scan_and_read_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("d")).unwrap();
    fs::write(temp.path().join("d/a"), "before").unwrap();
    let scanned = scan(temp.path()).unwrap();
    let digest = digest_of(b"before");
    assert_eq!(scanned.read(digest).unwrap(), b"before");
    fs::write(temp.path().join("d/a"), "behind").unwrap();
    assert_eq!(scanned.read(digest).unwrap_err().code(), "LW0807");
    // Also not through a link, even if the content would fit.
    fs::remove_dir_all(temp.path().join("d")).unwrap();
    fs::write(outside.path().join("a"), "before").unwrap();
    symlink(outside.path(), temp.path().join("d")).unwrap();
    assert_eq!(scanned.read(digest).unwrap_err().code(), "LW0807");
    assert_eq!(scanned.read(digest_of(b"other")).unwrap_err().code(), "LW0801");
}

#[test]
fn what_was_read_is_read_again_only_if_it_changed_however_well_that_is_hidden() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seen = cache.path().join("seen/one");
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/a"), "good").unwrap();
    fs::write(dir.path().join("b"), "b").unwrap();
    // A young file proves nothing: it might change within the same tick.
    let young = scan_again(dir.path(), false, &seen).unwrap();
    young.remember(&seen).unwrap();
    assert!(!seen.exists());
    for _ in 0..600 {
        scan_again(dir.path(), false, &seen).unwrap().remember(&seen).unwrap();
        if seen.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let whole = scan(dir.path()).unwrap();
    let again = scan_again(dir.path(), false, &seen).unwrap();
    assert_eq!(again.manifest(), whole.manifest());

    // It is not read: what is remembered is believed.
    let (mut record, _) = crate::apply::Record::decode(&fs::read(&seen).unwrap()).unwrap();
    let entries = &mut Arc::make_mut(&mut record.manifest).entries;
    let ManifestNode::File { digest, chunks, .. } = &mut entries.last_mut().unwrap().node else { panic!() };
    *digest = digest_of(b"evil");
    chunks[0].digest = *digest;
    fs::write(&seen, record.encode()).unwrap();
    let believed = scan_again(dir.path(), false, &seen).unwrap();
    assert!(believed.digests().any(|digest| digest == digest_of(b"evil")));
    assert_eq!(believed.read(digest_of(b"evil")).unwrap_err().code(), "LW0807", "and never sent unread");

    // Edits are seen, also with the old times and the old size, and a damaged memory is none.
    let times = fs::metadata(dir.path().join("d/a")).unwrap();
    fs::write(dir.path().join("d/a"), "evil").unwrap();
    let file = File::options().write(true).open(dir.path().join("d/a")).unwrap();
    file.set_modified(times.modified().unwrap()).unwrap();
    fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(scan_again(dir.path(), false, &seen).unwrap().manifest(), scan(dir.path()).unwrap().manifest());
    let mut torn = fs::read(&seen).unwrap();
    torn[30] ^= 1;
    fs::write(&seen, torn).unwrap();
    assert_eq!(scan_again(dir.path(), false, &seen).unwrap().manifest(), scan(dir.path()).unwrap().manifest());
}
