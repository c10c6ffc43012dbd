//! What commands make of a cluster that refuses, takes its time, or lies.

mod fake;

use crate::fake::{Answer, Fake, refusal, stderr};

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
