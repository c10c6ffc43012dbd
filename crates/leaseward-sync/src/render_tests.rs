//! What members make of what was published.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_state::config::spec::SetSpec;

use super::*;
use crate::secret::Key;
use crate::{Scanned, scan};

fn published(files: &[(&str, &str)]) -> (tempfile::TempDir, Scanned) {
    let temp = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = temp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let scanned = scan(temp.path()).unwrap();
    (temp, scanned)
}

fn facts(machine: &str, labels: &[(&str, &str)]) -> Facts {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Facts { machine: machine.to_owned(), labels }
}

/// Returns path and content of every file that the member has.
fn has(scanned: &Scanned, spec: &SetSpec, facts: &Facts, keys: &Keys) -> Result<BTreeMap<String, String>> {
    let laid = if spec.overlays { lay(scanned.manifest(), facts) } else { scanned.manifest().clone() };
    let done = render(laid, spec, facts, keys, &mut |digest| scanned.read(digest))?;
    let mut found = BTreeMap::new();
    for entry in &done.manifest.entries {
        if let ManifestNode::File { chunks, .. } = &entry.node {
            let mut bytes = Vec::new();
            for chunk in chunks {
                let made = done.made.get(&chunk.digest).cloned();
                bytes.extend_from_slice(&made.map_or_else(|| scanned.read(chunk.digest).map(Arc::from), Ok)?);
            }
            found.insert(entry.path.clone(), String::from_utf8(bytes).unwrap());
        }
    }
    Ok(found)
}

#[test]
fn layers_are_for_labels_first_and_for_the_machine_last() {
    let (_temp, scanned) = published(&[
        ("app.conf", "base"),
        ("conf.d/a", "base a"),
        ("dir/x", "x"),
        ("@zone=a/app.conf", "zone a"),
        ("@zone=a/new/deep", "deep"),
        ("@zone=b/app.conf", "zone b"),
        ("@role=web/app.conf", "role"),
        ("@machine=m1/conf.d/a", "m1's"),
        ("@machine=m1/dir", "a file now"),
    ]);
    let spec = SetSpec { overlays: true, ..SetSpec::default() };
    let m1 = has(&scanned, &spec, &facts("m1", &[("zone", "a"), ("role", "web")]), &Keys::default()).unwrap();
    let expected = [("app.conf", "zone a"), ("conf.d/a", "m1's"), ("dir", "a file now"), ("new/deep", "deep")];
    assert_eq!(m1, expected.map(|(path, text)| (path.to_owned(), text.to_owned())).into());
    let m2 = has(&scanned, &spec, &facts("m2", &[]), &Keys::default()).unwrap();
    let expected = [("app.conf", "base"), ("conf.d/a", "base a"), ("dir/x", "x")];
    assert_eq!(m2, expected.map(|(path, text)| (path.to_owned(), text.to_owned())).into());
    // A set that does not ask for it has them as they are.
    assert!(
        has(&scanned, &SetSpec::default(), &facts("m1", &[]), &Keys::default())
            .unwrap()
            .contains_key("@zone=a/app.conf")
    );
}

#[test]
fn attributes_go_along_with_the_file_that_they_were_published_with() {
    let (_temp, scanned) =
        published(&[("a.tmpl", "base"), ("b", "b"), ("@zone=a/a.tmpl", "of the zone"), ("@zone=b/b", "x")]);
    let xattr = |value: &[u8]| BTreeMap::from([("user.origin".to_owned(), value.to_vec())]);
    let all = [("a.tmpl", "base"), ("b", "b"), ("@zone=a/a.tmpl", "zone"), ("@zone=b/b", "other")];
    let all = all.map(|(path, value)| (path.to_owned(), xattr(value.as_bytes())));
    let tree = Manifest { xattrs: Some(all.into()), ..scanned.manifest().clone() };
    let spec = SetSpec { overlays: true, templates: true, ..SetSpec::default() };
    let m1 = facts("m1", &[("zone", "a")]);
    let done = render(lay(&tree, &m1), &spec, &m1, &Keys::default(), &mut |digest| scanned.read(digest)).unwrap();
    let expected = [("a", "zone"), ("b", "b")].map(|(path, value)| (path.to_owned(), xattr(value.as_bytes())));
    assert_eq!(done.manifest.xattrs, Some(expected.into()));
}

#[test]
fn a_layer_leads_nowhere_out_of_the_tree() {
    let (temp, _) = published(&[("@zone=a/sub/f", "x")]);
    std::os::unix::fs::symlink("../../up", temp.path().join("@zone=a/sub/link")).unwrap();
    // Legal two levels deep, and not when the layer is laid.
    let scanned = scan(temp.path()).unwrap();
    let spec = SetSpec { overlays: true, ..SetSpec::default() };
    let why = has(&scanned, &spec, &facts("m1", &[("zone", "a")]), &Keys::default()).unwrap_err().to_string();
    assert!(why.contains("leads out"), "{why}");
}

#[test]
fn a_template_knows_the_machine_and_nothing_else() {
    let (_temp, scanned) =
        published(&[("app.conf.tmpl", "on {{ machine }} in {{ labels.zone }}\n"), ("plain", "{{ machine }}")]);
    let spec = SetSpec { templates: true, ..SetSpec::default() };
    let found = has(&scanned, &spec, &facts("m1", &[("zone", "a")]), &Keys::default()).unwrap();
    assert_eq!(found["app.conf"], "on m1 in a\n");
    assert_eq!(found["plain"], "{{ machine }}");
    let why = has(&scanned, &spec, &facts("m1", &[]), &Keys::default()).unwrap_err().to_string();
    assert_eq!(why, "app.conf.tmpl: it cannot be filled in: line 1: labels.zone has no value on m1; its labels: none");
    let (_temp, twice) = published(&[("a.tmpl", "x"), ("a", "y")]);
    assert!(has(&twice, &spec, &facts("m1", &[]), &Keys::default()).is_err());
    let (_temp, endless) =
        published(&[("a.tmpl", "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}")]);
    assert!(has(&endless, &spec, &facts("m1", &[]), &Keys::default()).is_err(), "a template ran for ever");
}

#[test]
fn a_secret_is_plain_on_the_member_and_for_its_owner_alone() {
    let temp = tempfile::tempdir().unwrap();
    let key = Key::create(&temp.path().join("key")).unwrap();
    let sealed = key.seal("db.conf.tmpl", b"password of {{ machine }}".to_vec()).unwrap();
    let dir = temp.path().join("set");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("db.conf.tmpl"), &sealed).unwrap();
    let scanned = scan(&dir).unwrap();
    let spec = SetSpec { templates: true, key: Some(key.fingerprint()), ..SetSpec::default() };
    let found = has(&scanned, &spec, &facts("m1", &[]), &Keys::new([key.clone()])).unwrap();
    assert_eq!(found["db.conf"], "password of m1");
    let done = render(scanned.manifest().clone(), &spec, &facts("m1", &[]), &Keys::new([key]), &mut |digest| {
        scanned.read(digest)
    });
    let ManifestNode::File { mode, .. } = done.unwrap().manifest.entries[0].node.clone() else { panic!() };
    assert_eq!(mode & 0o077, 0, "others may read it: {mode:o}");
    assert!(has(&scanned, &spec, &facts("m1", &[]), &Keys::default()).is_err());
}

#[test]
fn more_secrets_than_are_held_in_memory_are_refused_before_one_is_read() {
    let file = |path: &str, size: u64| {
        let node =
            ManifestNode::File { mode: 0o600, size: size + MORE_BYTES, digest: digest_of(b""), chunks: Vec::new() };
        ManifestEntry { path: path.into(), node }
    };
    let published =
        |sizes: [u64; 2]| Manifest { entries: vec![file("a", sizes[0]), file("b", sizes[1])], xattrs: None };
    let half = RENDERED_BYTES_MAX / 2;
    let (fits, not) = (published([half, half]), published([half, half + 1]));
    let spec = SetSpec { key: Some("k".into()), ..SetSpec::default() };
    let layered = SetSpec { overlays: true, ..spec.clone() };
    assert!(secrets_fit(&fits, &spec).is_ok() && secrets_fit(&not, &spec).is_err());
    assert!(secrets_fit(&not, &layered).is_ok(), "a member may have one of them alone");
    assert!(secrets_fit(&published([0, RENDERED_BYTES_MAX + 1]), &layered).is_err());
    assert!(secrets_fit(&not, &SetSpec::default()).is_ok(), "it has no secrets");

    let temp = tempfile::tempdir().unwrap();
    let key = Key::create(&temp.path().join("key")).unwrap();
    let spec = SetSpec { key: Some(key.fingerprint()), ..SetSpec::default() };
    let first = Manifest { entries: vec![file("a", RENDERED_BYTES_MAX + 1)], xattrs: None };
    let refused = render(first, &spec, &facts("m1", &[]), &Keys::new([key]), &mut |_| panic!("it was read"));
    assert_eq!(refused.unwrap_err().code(), "LW0808");
}
