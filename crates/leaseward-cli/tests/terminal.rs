//! What is printed: nobody may read it, and nobody who wrote a part of it may steer who does.

mod fake;

use std::fs::{self, File};
use std::process::Stdio;

use leaseward_sync::digest_of;
use serde_json::json;

use crate::fake::{Answer, Fake, ok, refusal, set, stderr, version};

/// Returns where somebody writes whom nobody reads any more.
fn nobody() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

const STEERING: &str = "of\x1b[2J\x07conf\n";

/// An API with version 3 of `app`: a file that would clear the screen. It refuses what is published if it is told to.
fn steering(refuses: bool) -> Fake {
    let entry = json!({ "path": "conf\u{1b}c", "kind": "file", "mode": "644", "size": STEERING.len(),
                        "digest": digest_of(STEERING.as_bytes()).to_string() });
    Fake::start(move |method, path| -> Answer {
        match (method, path.split('?').next().unwrap_or_default()) {
            ("GET", "/v1/configs/app") => ok(&set("app", 3)),
            ("GET", "/v1/configs/app/versions/3") => ok(&json!({ "version": version("app", 3), "entries": [entry] })),
            ("GET", "/v1/configs/app/versions/3/files/conf%1Bc") => (200, STEERING.as_bytes().to_vec()),
            ("GET", "/v1/configs/app/diff") => ok(&json!({
                "set": "app", "from": 0, "to": 3, "files": [{ "kind": "added", "path": "conf\u{1b}c", "new": entry }],
            })),
            ("GET", "/v1/events") => ok(&json!({ "revision": "7", "compacted": "0", "items": [{
                "revision": "7", "part": 0, "at": "2026-01-01T00:00:00Z", "kind": "config", "subject": "app",
                "text": "refused: \u{1b}]0;root\u{7}", "data": {},
            }] })),
            ("POST", "/v1/sessions") => ok(&json!({ "id": "7" })),
            ("PUT", "/v1/leases/config-edit/app") => ok(&json!({ "token": "9" })),
            ("POST", "/v1/configs/app/changes") if refuses => refusal(412, "LW0412", "app has \u{1b}[1mversion 4"),
            ("POST", "/v1/configs/app/changes") => ok(&version("app", 4)),
            ("DELETE", "/v1/sessions/7") => (204, Vec::new()),
            _ => refusal(404, "LW0404", "\u{1b}[31m does not exist"),
        }
    })
}

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn whoever_is_not_read_any_more_ends_quietly_and_not_well() {
    let fake = steering(false);
    for line in [
        ["config", "diff", "app", "0", "3"].as_slice(),
        &["config", "get", "app"],
        &["config", "get", "app", "conf\x1bc"],
        &["events", "-o", "json"],
        &["completion", "bash"],
    ] {
        let output = fake.command(line).stdout(nobody()).output().expect("it starts");
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(141), ""), "{line:?}");
    }
    // What is told beside the work is no part of it.
    let output = fake.command(&["config", "put", "app", "a", "--text", "a"]).stderr(nobody()).output();
    assert_eq!(output.expect("it starts").status.code(), Some(0));
}

#[test]
fn whoever_cannot_write_what_was_asked_for_says_so() {
    let full = File::options().write(true).open("/dev/full").expect("a disk without room");
    let output = steering(false).command(&["config", "get", "app"]).stdout(full).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error LW0605: standard output"), "{}", stderr(&output));
}

#[test]
fn what_was_written_in_an_editor_is_not_lost() {
    for (refuses, is_read, code) in [(true, true, 5), (false, false, 1), (false, true, 0)] {
        let fake = steering(refuses);
        let mut command = fake.command(&["config", "edit", "app", "conf\x1bc"]);
        command.env("EDITOR", "echo more >>").stdout(if is_read { Stdio::piped() } else { nobody() });
        let output = command.stderr(Stdio::piped()).spawn().and_then(std::process::Child::wait_with_output);
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let asked = fake.asked();
        assert_eq!(asked.contains(&"POST /v1/configs/app/changes".to_owned()), is_read);
        assert_eq!(asked.last().map(String::as_str), Some("DELETE /v1/sessions/7"));
        let said = stderr(&output);
        let kept = said.split("what you wrote is kept in ").nth(1).and_then(|rest| rest.lines().next());
        assert_eq!(kept.is_some(), code != 0, "{said}");
        if let Some(kept) = kept {
            let draft = kept.replace("\\u{1b}", "\x1b");
            assert_eq!(fs::read_to_string(draft).expect("it is there"), format!("{STEERING}more\n"));
        }
    }
}

#[test]
fn what_somebody_wrote_does_not_steer_the_terminal_and_is_itself_to_programs() {
    let fake = steering(false);
    assert!(stdout(&fake.run(&["events"])).ends_with("refused: \\u{1b}]0;root\\u{7}\n"));
    assert!(stdout(&fake.run(&["events", "-o", "json"])).contains(r"refused: \u001b]0;root\u0007"));
    let listed = stdout(&fake.run(&["config", "get", "app"]));
    assert!(listed.contains("conf\\u{1b}c") && !listed.contains('\x1b'), "{listed}");
    let differs = stdout(&fake.run(&["config", "diff", "app", "0", "3"]));
    assert!(differs.starts_with("A conf\\u{1b}c\n"), "{differs}");
    let refused = stderr(&fake.run(&["lease", "get", "x"]));
    assert!(refused.starts_with("error LW0404: \\u{1b}[31m does not exist\n"), "{refused}");
    let file = fake.run(&["config", "get", "app", "conf\x1bc"]);
    assert_eq!(file.stdout, STEERING.as_bytes());
}
