//! What commands make of a cluster that refuses, takes its time, or lies.

mod fake;

use std::time::Duration;

use serde_json::json;

use crate::fake::{Answer, Fake, lease, ok, refusal, stderr};

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
