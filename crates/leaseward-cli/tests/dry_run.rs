//! `--dry-run` on every command: nothing is done, or it is refused.

#[path = "../src/args.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "only the shape of the commands is looked at")]
mod args;
#[path = "../src/duration.rs"]
#[allow(dead_code, reason = "as above")]
mod duration;
mod fake;
#[path = "../src/moment.rs"]
mod moment;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use serde_json::json;

use crate::fake::{Fake, ok, refusal, set, stderr, version};

/// Commands that refuse it, by how they begin.
const REFUSED: &[&str] = &[
    "dev",
    "agent",
    "doctor",
    "run",
    "remote run",
    "remote agent",
    "man --dir",
    "backup restore",
    "context add",
    "context use",
    "context rm",
    "config pull",
    "config key new.key --create",
];

/// What no example shows.
const MORE: &[&str] = &[
    "remote run --join 127.0.0.1:1 --plain --machine m1 --to nobody@127.0.0.1",
    "remote agent",
    "token create ops --role admin --to ops.token",
    "backup create app.lwb",
    "api PUT /v1/servers/x {}",
    "lease renew 7",
    "lease release x --token 7",
];

/// Returns the words of an example, without the program.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words.retain(|word| word != "leaseward" && word != "--dry-run");
    words
}

/// Returns every example that is no little script.
fn examples(command: &Command, lines: &mut Vec<String>) {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let own = text.lines().skip_while(|line| *line != "Examples:").skip(1).map(|line| line.trim().to_owned());
    lines.extend(own.filter(|line| !line.is_empty() && !line.contains(['$', '>', '\''])));
    for inner in command.get_subcommands() {
        examples(inner, lines);
    }
}

/// Returns what is in a directory, and what it says.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).expect("a directory") {
            let place = entry.expect("an entry").path();
            let what = if place.is_dir() { Vec::new() } else { fs::read(&place).expect("a file") };
            if place.is_dir() {
                left.push(place.clone());
            }
            found.insert(place.display().to_string(), what);
        }
    }
    found
}

fn only_asks(asked: &str) -> bool {
    asked.starts_with("GET ") || asked == "POST /v1/blobs/missing" || asked.contains("dry_run=true")
}

#[test]
fn what_cannot_say_what_it_would_do_refuses_and_nothing_does_anything() {
    let fake = Fake::start(|method, path| match path.split('?').next().unwrap_or_default() {
        "/v1/configs/app" => ok(&set("app", 1)),
        "/v1/configs/app/versions/1" => ok(&json!({ "version": version("app", 1), "entries": [] })),
        _ if method != "GET" => ok(&json!({})),
        _ => refusal(404, "LW0404", "it does not exist"),
    });
    let home = fake.home.path();
    fs::create_dir_all(home.join("etc/app")).expect("a directory");
    fs::write(home.join("etc/app/limits.toml"), "max = 1\n").expect("written");
    fs::write(home.join("pay-1.toml"), "candidates = [\"m1\"]\ncommand = [\"true\"]\n").expect("written");
    fs::write(home.join("leaseward.toml"), "[node]\nname = \"n1\"\n").expect("written");
    let before = tree(home);
    let mut lines: Vec<String> = MORE.iter().map(|line| (*line).to_owned()).collect();
    examples(&args::Arguments::command(), &mut lines);
    assert!(lines.len() > 100, "{} lines", lines.len());
    for line in lines.iter().map(|line| words(line)) {
        let text = line.join(" ");
        let only_looks = line.iter().any(|word| word == "--check");
        let is_refused =
            !only_looks && REFUSED.iter().any(|begins| format!("{text} ").starts_with(&format!("{begins} ")));
        let words = ["--dry-run", "--timeout=5s"].into_iter().chain(line.iter().map(String::as_str));
        let output = fake.ended(&words.collect::<Vec<_>>());
        let said = stderr(&output);
        assert_eq!(said.contains("cannot say what it would do"), is_refused, "{text}: {said}");
        if is_refused {
            let code = if text.starts_with("run ") { 125 } else { 2 };
            assert_eq!(output.status.code(), Some(code), "{text}: {said}");
        }
        assert_eq!(tree(home), before, "{text}: {said}");
        let acted = fake.asked().into_iter().find(|asked| !only_asks(asked));
        assert_eq!(acted, None, "{text}");
    }
}
