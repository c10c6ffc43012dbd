//! What commands make of a cluster that refuses, takes its time, or lies.

mod fake;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, lease, ok, refusal, set, stderr, version};

/// Returns what of the path comes before its query.
fn plain(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// Makes a token into a file, of a cluster that answers like this. Returns what was said if the file is still there.
fn kept(answer: Answer) -> Option<String> {
    let fake = Fake::start(move |_, _| answer.clone());
    let output = fake.run(&["token", "create", "ops", "--role", "admin", "--to", "ops.token"]);
    assert!(!output.status.success());
    let file = std::fs::read_to_string(fake.home.path().join("ops.token"));
    file.ok().map(|secret| {
        assert!(secret.starts_with("lw"), "{secret}");
        stderr(&output)
    })
}

#[test]
fn the_only_copy_of_a_token_that_may_be_valid_is_kept() {
    let answers = [
        (200, b"it is done".to_vec()),
        (502, b"a proxy speaks".to_vec()),
        refusal(500, "LW0600", "its disk is full"),
        refusal(504, "LW0502", "the leader changed"),
    ];
    for answer in answers {
        let said = kept(answer).expect("the file is there");
        assert!(said.contains("ops.token") && said.contains("may be valid"), "{said}");
    }
    for refused in
        [refusal(403, "LW0403", "no"), refusal(409, "LW0409", "it is there"), refusal(503, "LW0503", "too much")]
    {
        assert_eq!(kept(refused), None);
    }
}

#[test]
fn a_lease_that_nobody_holds_yet_is_neither_held_nor_free() {
    let answering = |state: &'static str| {
        Fake::start(move |_, path| match plain(path) {
            "/v1/cluster" => ok(&json!({ "revision": "7" })),
            "/v1/events" => ok(&json!({ "revision": "7", "compacted": "0", "items": [] })),
            "/v1/leases/x" if !state.is_empty() => ok(&lease("x", state)),
            _ => refusal(404, "LW0404", "it does not exist"),
        })
    };
    for (state, condition, code) in [
        ("delayed", "lease/x=held", 7),
        ("delayed", "lease/x=free", 7),
        ("held", "lease/x=held", 0),
        ("held", "lease/x=free", 7),
        ("", "lease/x=free", 0),
        ("", "lease/x=held", 7),
    ] {
        let patience = if code == 0 { "60s" } else { "500ms" };
        let output = answering(state).run(&["wait", condition, "--timeout", patience]);
        assert_eq!(output.status.code(), Some(code), "{state}, {condition}: {}", stderr(&output));
    }
}

#[test]
fn who_waits_for_a_lease_waits_longer_than_an_answer_may_take() {
    let fake = Fake::start(|_, _| {
        // Until its holder gives it back.
        std::thread::sleep(Duration::from_millis(1_500));
        ok(&lease("x", "held"))
    });
    let output = fake.run(&["lease", "acquire", "x", "--wait", "1m", "--timeout", "500ms"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let asked = fake.run(&["lease", "acquire", "x", "--timeout", "500ms"]);
    assert_eq!(asked.status.code(), Some(7), "{}", stderr(&asked));
}

/// Pulls a version of which a node says that it has these paths.
fn pulled(entries: Value) -> (Fake, std::process::Output) {
    let fake = Fake::start(move |_, path| match plain(path) {
        "/v1/configs/app" => ok(&set("app", 1)),
        "/v1/configs/app/versions/1" => ok(&json!({ "version": version("app", 1), "entries": entries })),
        _ => (200, b"evil".to_vec()),
    });
    std::fs::create_dir(fake.home.path().join("elsewhere")).expect("a directory");
    let output = fake.run(&["config", "pull", "app", "--to", "here/pulled"]);
    (fake, output)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut there| there.next().is_none())
}

#[test]
fn a_node_that_lies_has_nothing_written_where_nobody_said() {
    let file = |path: &str, mode: &str| {
        let digest = leaseward_sync::digest_of(b"evil").to_string();
        json!({ "path": path, "kind": "file", "mode": mode, "size": 4, "digest": digest })
    };
    let link = |path: &str, target: &str| json!({ "path": path, "kind": "symlink", "target": target });
    let dir = |path: &str| json!({ "path": path, "kind": "directory", "mode": "755" });
    for lie in [
        json!([link("d", "../../elsewhere"), file("d/x", "644")]),
        json!([dir("a"), link("a/d", "../../../elsewhere"), file("a/d/x", "644")]),
        json!([dir("../../elsewhere/x")]),
        json!([link("../../elsewhere/x", "y")]),
        json!([file("d/../../../elsewhere/x", "644")]),
        json!([link("d", "/etc")]),
        json!([file("x", "4755")]),
    ] {
        let (fake, output) = pulled(lie.clone());
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("error LW0804"), "{lie}: {said}");
        assert!(is_empty(&fake.home.path().join("elsewhere")), "{lie}");
        assert!(is_empty(&fake.home.path().join("here")), "{lie}");
    }
    let (fake, output) = pulled(json!([dir("a"), link("a/l", "x"), file("a/x", "640")]));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read(fake.home.path().join("here/pulled/a/l")).expect("it is there"), b"evil");
}
