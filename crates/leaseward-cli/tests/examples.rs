//! Every command's help ends with two examples, and every example does what its help says.

#[path = "../src/args.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "only the shape of the commands is looked at")]
mod args;
#[path = "../src/duration.rs"]
#[allow(dead_code, reason = "as above")]
mod duration;
#[path = "../src/moment.rs"]
mod moment;
mod stage;

use clap::{Command, CommandFactory};

use crate::stage::Stage;

/// What an example needs besides what is always there, by how it begins.
const BEFORE: &[(&str, &str)] = &[
    ("leaseward lease acquire x", FREE),
    ("leaseward lease acquire y", FREE),
    ("leaseward lease renew $(leaseward lease acquire x", FREE),
    ("leaseward lease release y", FREE),
    ("leaseward run --lease x", FREE),
    ("leaseward lease release x", HELD),
    ("leaseward lease revoke x", REVOCABLE),
    (
        "leaseward run --lease batch/nightly",
        "leaseward lease release batch/nightly --token $(leaseward lease get batch/nightly -o field=.token)",
    ),
    ("leaseward server start", "leaseward server stop pay-1"),
    ("leaseward server rm", "leaseward server stop pay-1"),
    ("leaseward machine resume", "leaseward machine cordon m2 -m x"),
    ("leaseward server resume", "leaseward server pause pay-1 -m x"),
    ("leaseward node promote", "leaseward node demote n3"),
    ("leaseward backup verify", "leaseward backup create app.lwb --force"),
    ("leaseward backup restore", "leaseward backup create app.lwb --force"),
    ("leaseward context use", "leaseward context add prod 127.0.0.1:1"),
    ("leaseward context rm", "leaseward context add prod 127.0.0.1:1"),
];

const FREE: &str = "
for lease in x y; do
    leaseward lease release $lease --token $(leaseward lease get $lease -o field=.token) || true
    leaseward wait lease/$lease=free
done";

const HELD: &str = "
leaseward lease release x --token $(leaseward lease get x -o field=.token) || true
leaseward wait lease/x=free && leaseward lease acquire x";

const REVOCABLE: &str = "
leaseward lease release x --token $(leaseward lease get x -o field=.token) || true
leaseward wait lease/x=free && leaseward lease acquire x --ttl 3s";

/// Examples that go on until they are interrupted, and what each says soon.
const ENDLESS: &[(&str, &str)] = &[
    ("leaseward dev", "leaseward dev: 3 voters and 3 machines"),
    ("leaseward dev --exit-after-demo", "leaseward dev: 3 voters and 3 machines"),
    ("leaseward agent", "voter is open"),
    ("leaseward events -f --for server/pay-1", "pay-1"),
    ("leaseward lease ls batch/ -w", "LEASE"),
    ("leaseward config monitor app -w", "app v2"),
];

/// Examples after which the cluster is no longer whole: last, in this order.
const LAST: &[&str] = &[
    "leaseward machine confirm-dead m3 --confirm m3 --dry-run",
    "leaseward machine confirm-dead m3 --confirm m3",
    "leaseward machine rm m3 --dry-run",
    "leaseward machine rm m3",
    "leaseward node rm n3",
];

fn examples(command: &Command) -> Vec<String> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = text.lines().skip_while(|line| *line != "Examples:").skip(1);
    lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn walk(command: &Command, path: &str, visit: &mut impl FnMut(&str, &Command)) {
    visit(path, command);
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        walk(inner, &format!("{path} {}", inner.get_name()), visit);
    }
}

#[test]
fn every_help_ends_with_two_examples_of_its_command() {
    let mut seen = 0;
    walk(&args::Arguments::command(), "leaseward", &mut |path, command| {
        let examples = examples(command);
        assert_eq!(examples.len(), 2, "{path}: {examples:?}");
        assert!(examples.iter().all(|line| line.starts_with(path)), "{path}: {examples:?}");
        assert_ne!(examples[0], examples[1], "{path}");
        seen += 1;
    });
    assert!(seen > 40, "{seen} commands");
}

#[test]
fn every_example_does_what_its_help_says() {
    let mut all: Vec<String> = Vec::new();
    walk(&args::Arguments::command(), "leaseward", &mut |_, command| {
        for line in examples(command) {
            if !all.contains(&line) && !LAST.contains(&line.as_str()) {
                all.push(line);
            }
        }
    });
    let stage = Stage::start();
    let mut wrong = Vec::new();
    for line in &all {
        stage.furnish();
        if let Some((_, beginning)) = ENDLESS.iter().find(|(endless, _)| endless == line) {
            if let Err(said) = stage.begin(line, beginning) {
                wrong.push(format!("{line}\n  ended, or never said {beginning:?}: {said:?}"));
            }
            continue;
        }
        let before: Vec<_> = BEFORE.iter().filter(|(begins, _)| line.starts_with(begins)).collect();
        for (_, before) in before {
            let done = stage.run(before);
            assert!(done.status.success(), "before {line}: {}", String::from_utf8_lossy(&done.stderr));
        }
        wrong.extend(failure(&stage, line));
    }
    stage.lose_machine("m3");
    for line in LAST {
        wrong.extend(failure(&stage, line));
    }
    assert!(wrong.is_empty(), "{} of {} examples:\n{}", wrong.len(), all.len() + LAST.len(), wrong.join("\n"));
}

fn failure(stage: &Stage, line: &str) -> Option<String> {
    let output = stage.run(line);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (!output.status.success())
        .then(|| format!("{line}\n  {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}
