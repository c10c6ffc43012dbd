//! Manifests, sources and neighbours that mean harm.

use leaseward_state::config::{ManifestEntry, ManifestNode};

use super::*;

#[test]
fn hostile_manifests_are_refused_before_anything_is_written() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let bad = [
        ("../out", ManifestNode::Directory { mode: 0o755 }),
        ("/tmp/out", ManifestNode::Directory { mode: 0o755 }),
        ("a", ManifestNode::Directory { mode: 0o4755 }),
        ("a", ManifestNode::Symlink { target: "../out".to_owned() }),
        ("a", ManifestNode::Symlink { target: "/etc/passwd".to_owned() }),
        ("a/b", ManifestNode::Directory { mode: 0o755 }),
    ];
    for (path, node) in bad {
        let manifest = Manifest { entries: vec![ManifestEntry { path: path.to_owned(), node }], ..Manifest::default() };
        let error = applier.apply(1, &manifest, &mut |digest| Err(Error::BlobMissing { digest })).unwrap_err();
        assert_eq!(error.code(), "LW0804", "{path}");
        assert!(!error.is_retryable());
    }
    assert!(machine.siblings().is_empty());
}

#[test]
fn a_directory_that_is_swapped_for_a_link_while_we_build_is_not_followed() {
    let victim = tempfile::tempdir().unwrap();
    fs::create_dir(victim.path().join("deep")).unwrap();
    let machine = Machine::new();
    let next = machine.temp.path().join("etc/.app.leaseward-next");
    let version = Published::new(&[("sub/a", "1"), ("sub/deep/x", "1"), ("sub/z", "1")]);
    for at in 0..3 {
        let (outside, next) = (victim.path().to_owned(), next.clone());
        let mut files = 0;
        let mut applier = machine
            .open_with(move |step| {
                if step == Step::CreateFile {
                    if files == at {
                        fs::rename(next.join("sub"), next.join("moved")).unwrap();
                        symlink(&outside, next.join("sub")).unwrap();
                    }
                    files += 1;
                }
                true
            })
            .unwrap();
        let error = put(&mut applier, 1, &version).unwrap_err();
        assert!(matches!(error.code(), "LW0804" | "LW0604" | "LW0807"), "{error}");
        let outside = scan(victim.path()).unwrap();
        assert_eq!(outside.manifest().entries.len(), 1, "something was written outside");
        assert!(!machine.dirs.target.exists());
    }
    assert!(machine.siblings().is_empty());
}

#[test]
fn a_live_directory_that_was_replaced_by_a_link_lends_nothing() {
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), &[("deep/a", "same"), ("secret", "s")]);
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &Published::new(&[("sub/deep/a", "same"), ("b", "1")])).unwrap();
    fs::remove_dir_all(machine.path("sub")).unwrap();
    symlink(outside.path(), machine.path("sub")).unwrap();
    let two = Published::new(&[("sub/deep/a", "same"), ("b", "2")]);
    put(&mut applier, 2, &two).unwrap();
    assert_eq!(machine.tree(), two.manifest);
    assert_ne!(inode(&machine.path("sub/deep/a")), inode(&outside.path().join("deep/a")));
    put(&mut applier, 3, &Published::new(&[("b", "3")])).unwrap();
    assert!(outside.path().join("secret").exists(), "removing the old tree went through the link");
}

#[test]
fn a_target_that_is_not_ours_is_refused_unless_it_is_empty_or_equal() {
    let one = Published::new(&[("a", "1")]);
    let machine = Machine::new();
    write(&machine.dirs.target, &[("a", "somebody's")]);
    let error = put(&mut machine.open(), 1, &one).unwrap_err();
    assert_eq!(error.code(), "LW0805");
    assert_eq!(fs::read_to_string(machine.path("a")).unwrap(), "somebody's");
    write(&machine.dirs.target, &[("a", "1")]);
    put(&mut machine.open(), 1, &one).unwrap();
    drop(machine.open());
    assert_eq!(machine.siblings(), ["app"]);

    let machine = Machine::new();
    fs::create_dir(&machine.dirs.target).unwrap();
    fs::set_permissions(&machine.dirs.target, fs::Permissions::from_mode(0o750)).unwrap();
    put(&mut machine.open(), 1, &one).unwrap();
    assert_eq!(machine.tree(), one.manifest);
    assert_eq!(fs::metadata(&machine.dirs.target).unwrap().mode() & 0o777, 0o750, "the operator's mode stays");

    let machine = Machine::new();
    symlink("/etc", &machine.dirs.target).unwrap();
    assert_eq!(Applier::open(&machine.dirs).unwrap_err().code(), "LW0805");
    let ours = SetDirs { target: machine.temp.path().join("etc/.x.leaseward-prev"), ..machine.dirs.clone() };
    assert_eq!(Applier::open(&ours).unwrap_err().code(), "LW0804");
}

#[test]
fn wrong_bytes_from_the_source_never_reach_the_live_tree() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let (one, two) = (Published::new(&[("a", "1")]), Published::new(&[("a", "2")]));
    put(&mut applier, 1, &one).unwrap();
    let error = applier.apply(2, &two.manifest, &mut |_| Ok(b"3".to_vec())).unwrap_err();
    assert_eq!(error.code(), "LW0802");
    assert_eq!(machine.tree(), one.manifest);
    assert_eq!(machine.siblings(), ["app"]);
    put(&mut applier, 2, &two).unwrap();
}

#[test]
fn chunks_that_are_not_the_file_are_refused() {
    let text: String = (0..100_000).map(|i| format!("{i} ")).collect();
    let mut version = Published::new(&[("big", &text)]);
    if let ManifestNode::File { digest, .. } = &mut version.manifest.entries[0].node {
        digest.0[0] ^= 1;
    }
    let machine = Machine::new();
    assert_eq!(put(&mut machine.open(), 1, &version).unwrap_err().code(), "LW0804");
    assert!(machine.siblings().is_empty());
}
