//! What is typed means itself: names and paths with anything in them, and content that is what was named.

mod fake;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use leaseward_sync::digest_of;
use serde_json::{Value, json};

use crate::fake::{Answer, Fake, ok, refusal, set, stderr, version};

/// Version 3 of `app`: two files whose names begin alike, and one in a directory that nobody may write to.
fn entries() -> Value {
    let file = |path: &str, text: &str| {
        json!({ "path": path, "kind": "file", "mode": "600", "size": text.len(),
                "digest": digest_of(text.as_bytes()).to_string() })
    };
    json!([
        file("conf", "of conf"),
        file("conf#1", "of conf#1"),
        { "path": "ro", "kind": "directory", "mode": "555" },
        file("ro/x%41", "of x"),
    ])
}

fn listed(path: &str) -> Option<Answer> {
    match path.split('?').next().unwrap_or_default() {
        "/v1/configs/app" => Some(ok(&set("app", 3))),
        "/v1/configs/app/versions/3" => Some(ok(&json!({ "version": version("app", 3), "entries": entries() }))),
        "/v1/configs/app/versions/3/files/conf" => Some((200, b"of conf".to_vec())),
        "/v1/configs/app/versions/3/files/conf%231" => Some((200, b"of conf#1".to_vec())),
        _ => None,
    }
}

/// An API that has all of it.
fn whole() -> Fake {
    Fake::start(|_, path| match path {
        "/v1/configs/app/versions/3/files/ro/x%2541" => (200, b"of x".to_vec()),
        path => listed(path).unwrap_or_else(|| refusal(404, "LW0109", "there is no route")),
    })
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_name_that_no_object_can_have_is_refused_before_anything_is_asked() {
    let fake = Fake::start(|_, _| (204, Vec::new()));
    for line in [
        ["config", "rm", "A#x", "--yes"],
        ["machine", "rm", "../configs/gone", "--yes"],
        ["server", "rm", "a/../b", "--yes"],
        ["token", "revoke", "a?b", "--yes"],
        ["lease", "get", "x#y", "--yes"],
        ["wait", "server/a%2e=running", "--timeout", "1s"],
        ["config", "get", "app#", "conf"],
        ["config", "pin", "a/b", "--as-is"],
    ] {
        let output = fake.run(&line);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("error LW0101"), "{line:?}: {}", stderr(&output));
    }
    assert_eq!(fake.asked(), [""; 0]);
}

#[test]
fn a_file_is_the_one_that_was_named() {
    let fake = whole();
    let output = fake.run(&["config", "get", "app", "conf#1", "--version", "3"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "of conf#1", "{}", stderr(&output));
    assert_eq!(fake.asked(), ["GET /v1/configs/app/versions/3/files/conf%231"]);
}

#[test]
fn a_copy_has_what_its_version_holds() {
    let fake = whole();
    fs::create_dir(fake.home.path().join("there")).expect("made");
    for to in ["new/pulled", "there"] {
        let output = fake.run(&["config", "pull", "app", "--to", to]);
        assert!(output.status.success(), "{}", stderr(&output));
        let dir = fake.home.path().join(to);
        assert_eq!(names(&dir), ["conf", "conf#1", "ro"]);
        assert_eq!(fs::read(dir.join("conf#1")).expect("written"), b"of conf#1");
        assert_eq!(fs::read(dir.join("ro/x%41")).expect("written"), b"of x");
        let mode = |path: &str| fs::metadata(dir.join(path)).expect("written").permissions().mode() & 0o777;
        assert_eq!((mode("ro"), mode("conf")), (0o555, 0o600));
        // So that whoever is not root can remove it.
        fs::set_permissions(dir.join("ro"), fs::Permissions::from_mode(0o755)).expect("set");
    }
    assert_eq!(names(&fake.home.path().join("new")), ["pulled"]);
    let output = fake.run(&["config", "pull", "app", "--tar", "app.tar"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut archive = tar::Archive::new(fs::File::open(fake.home.path().join("app.tar")).expect("written"));
    assert_eq!(archive.entries().expect("a tar file").count(), 4);
}

#[test]
fn a_copy_that_would_not_be_its_version_is_not_there() {
    // As if the last one were another file.
    let fake = Fake::start(|_, path| {
        listed(path).unwrap_or_else(|| match path.contains("/files/") {
            true => (200, b"of conf".to_vec()),
            false => refusal(404, "LW0109", "there is no route"),
        })
    });
    fs::create_dir(fake.home.path().join("there")).expect("made");
    fs::write(fake.home.path().join("old.tar"), "what was there").expect("written");
    for to in [["--to", "new"], ["--to", "there"], ["--tar", "new.tar"], ["--tar", "old.tar"]] {
        let output = fake.run(&["config", "pull", "app", to[0], to[1]]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("error LW0802: ro/x%41"), "{}", stderr(&output));
    }
    assert_eq!(names(fake.home.path()), ["old.tar", "there"]);
    assert_eq!(names(&fake.home.path().join("there")), [""; 0]);
    assert_eq!(fs::read(fake.home.path().join("old.tar")).expect("kept"), b"what was there");
}

/// Edits a file of `app`, with an editor that notes what it was given.
fn edited(fake: &Fake, path: &str) -> (std::process::Output, Option<String>) {
    let given = fake.home.path().join("given");
    fs::remove_file(&given).ok();
    let editor = format!("f() {{ cp \"$1\" {}; echo more >> \"$1\"; }}; f", given.display());
    let output = fake.command(&["config", "edit", "app", path]).env("EDITOR", editor).output().expect("it starts");
    (output, fs::read_to_string(given).ok())
}

/// Lets somebody hold the lease of an edit, and publish.
fn edits(method: &str, path: &str) -> Option<Answer> {
    match (method, path) {
        ("POST", "/v1/sessions") => Some(ok(&json!({ "id": "7" }))),
        ("PUT", "/v1/leases/config-edit/app") => Some(ok(&json!({ "token": "9" }))),
        ("POST", "/v1/configs/app/changes") => Some(ok(&version("app", 4))),
        ("DELETE", "/v1/sessions/7") => Some((204, Vec::new())),
        _ => None,
    }
}

#[test]
fn an_edit_begins_with_what_the_file_says_and_empty_only_if_there_is_none() {
    let fake = Fake::start(|method, path| {
        let answer = edits(method, path).or_else(|| listed(path));
        answer.unwrap_or_else(|| refusal(404, "LW0404", "config/app v3: does not exist"))
    });
    for (path, said) in [("conf#1", "of conf#1"), ("conf", "of conf"), ("conf#2", "")] {
        let (output, given) = edited(&fake, path);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(given.as_deref(), Some(said), "{path}");
    }
    // It is listed, and yet it does not come: that is no new file.
    for (path, code) in [("ro/x%41", 3), ("ro", 2), ("../conf", 1)] {
        let (output, given) = edited(&fake, path);
        assert_eq!((output.status.code(), given), (Some(code), None), "{path}: {}", stderr(&output));
    }
    let published = fake.asked().iter().filter(|asked| asked.ends_with("/changes")).count();
    assert_eq!(published, 3);
}
