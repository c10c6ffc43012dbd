//! What operators write, and what they are told.

use expect_test::{Expect, expect};

use super::*;

fn refused(text: &str, expected: Expect) {
    let problem = ServerFile::from_toml(text).expect_err("refused");
    expected.assert_eq(&format!("{} {}", problem.code, problem.detail));
}

#[test]
fn a_whole_file_means_what_it_says_and_comes_back_the_same() {
    let file = ServerFile::from_toml(
        r#"
        name = "pay-1"
        command = ["/usr/bin/pay", "--port", "80"]
        stop = ["/usr/bin/pay", "stop"]
        cwd = "/srv/pay"
        user = "pay"
        candidates = ["m3", "m1"]
        requires_fence = "F2"
        grace = "250ms"
        stop_grace = "10s"
        priority = 5
        config = ["app"]
        env = { LANG = "C" }

        [check]
        type = "http"
        url = "http://127.0.0.1:80/health"
        interval = "5s"

        [restart]
        in_place = 1
        backoff = ["0s", "1s"]
        "#,
    )
    .unwrap();
    let spec = file.to_spec().unwrap();
    assert_eq!((spec.start_timeout_ms, spec.stop_grace_ms, spec.grace_ms), (60_000, 10_000, Some(250)));
    assert_eq!((spec.restart.in_place, spec.restart.cluster), (1, 6));
    assert_eq!(spec.check.as_ref().map(|check| (check.interval_ms, check.misses)), Some((5_000, 3)));
    let again = ServerFile::from_spec("pay-1", &spec);
    assert_eq!(again.to_spec().unwrap(), spec);
    assert_eq!(ServerFile::from_toml(&again.to_toml().unwrap()).unwrap(), again);
    assert_eq!(serde_json::from_str::<ServerFile>(&serde_json::to_string(&again).unwrap()).unwrap(), again);
}

#[test]
fn mistakes_are_named_with_their_line_and_a_suggestion() {
    refused(
        "command = [\"a\"]\ncandidats = [\"m1\"]\n",
        expect!["LW0103 line 2: unknown key `candidats`: did you mean `candidates`?"],
    );
    refused(
        "command = [\"a\"]\n[check]\ntype = \"tpc\"\n",
        expect!["LW0101 line 3: `tpc` is not one of `process`, `tcp`, `http`, `command`: did you mean `tcp`?"],
    );
    refused("command = []", expect![[r#"LW0101 `command` needs a program, such as ["/usr/bin/pay", "--port", "80"]"#]]);
    refused("name = \"x\"", expect!["LW0101 line 1: missing field `command`"]);
    refused(
        "command = [\"a\"]\nstop_grace = \"soon\"",
        expect![
            "LW0101 line 2: `soon` is not a duration: write a whole number and ms, s, m, h or d, such as 250ms or 3s"
        ],
    );
    refused(
        "command = [\"a\"]\nrequires_fence = \"F0\"",
        expect![[
            r#"LW0101 `grace` is needed with `requires_fence = "F0"`: only you know how long a copy may outlive its lease there"#
        ]],
    );
    refused(
        "command = [\"a\"]\n[check]\ntype = \"tcp\"\nurl = \"http://x\"",
        expect!["LW0101 `check.address` is missing for this type of check"],
    );
}

#[test]
fn what_is_not_supported_yet_is_refused_and_not_ignored() {
    for text in ["manager = \"ssh\""] {
        let problem = ServerFile::from_toml(&format!("command = [\"a\"]\n{text}")).expect_err("refused");
        assert_eq!(problem.code, "LW0107", "{text}");
        assert!(problem.detail.contains("not supported by this version yet"), "{text}");
    }
    assert!(ServerFile::from_toml("command = [\"a\"]\nmanager = \"agent\"").is_ok());
}
