//! What every command prints, in every form: golden files in `tests/golden`, with what differs from run to run taken
//! out. `UPDATE_EXPECT=1` writes them anew.

mod redact;
mod stage;

use std::fmt::Write;

use expect_test::expect_file;

use crate::redact::{document, prose, table};
use crate::stage::Stage;

/// Commands that show something, by the name of their golden file.
const SHOWN: &[(&str, &str)] = &[
    ("server_ls", "leaseward server ls"),
    ("server_get", "leaseward server get pay-1"),
    ("machine_ls", "leaseward machine ls"),
    ("machine_get", "leaseward machine get m1"),
    ("node_ls", "leaseward node ls"),
    ("lease_ls", "leaseward lease ls batch/"),
    ("lease_get", "leaseward lease get batch/nightly"),
    ("lease_acquire", "leaseward lease acquire short --holder ops --ttl 1h"),
    ("lease_renew", "leaseward lease renew $(leaseward lease get batch/nightly -o field=.session)"),
    ("config_ls", "leaseward config ls"),
    ("config_get", "leaseward config get app"),
    ("config_history", "leaseward config history app"),
    ("config_monitor", "leaseward config monitor app"),
    ("context_ls", "leaseward context ls"),
    ("status", "leaseward status"),
    ("events", "leaseward events --for lease/batch/nightly"),
    ("events_since", "leaseward events --for lease/batch/nightly --since 1h"),
    ("explain_server", "leaseward explain server/pay-1"),
    ("explain_lease", "leaseward explain lease/batch/nightly"),
    ("explain_node", "leaseward explain node/n2"),
    ("explain_config", "leaseward explain config/app"),
    ("version_check", "leaseward version --check-cluster"),
];

/// Commands that do something, and those that need no cluster: one after the other.
const DONE: &[&str] = &[
    "leaseward server stop pay-1",
    "leaseward explain server/pay-1",
    "leaseward wait server/pay-1=stopped",
    "leaseward server start pay-1",
    "leaseward server apply -f pay-1.toml",
    "leaseward server logs pay-1 --lines 1",
    "leaseward server logs pay-1 --lines 1 --here",
    "leaseward server logs pay-1 --machine m2",
    "leaseward server logs nobody",
    "leaseward server stop pay-1 --dry-run",
    "leaseward server restart pay-1",
    "leaseward server move pay-1 --to m2",
    "leaseward server failback pay-1",
    "leaseward server pause pay-1 -m surgery",
    "leaseward explain server/pay-1",
    "leaseward server resume pay-1",
    "leaseward server diff -f pay-1.toml",
    "leaseward whatif machine m2,m3 down",
    "leaseward maintenance on -m \"new switches\"",
    "leaseward maintenance off",
    "leaseward policy set brake=5s config_bytes_max=20000000000",
    "leaseward policy set version=7",
    "leaseward policy get",
    "leaseward machine drain m1 -m firmware",
    "leaseward machine resume m1",
    "leaseward machine confirm-dead m1",
    "leaseward machine confirm-dead m1 --confirm m2",
    "leaseward machine confirm-dead m1 --confirm m1",
    "leaseward server rm pay-1 --dry-run",
    "leaseward server rm pay-1",
    "leaseward server get nowhere",
    "leaseward machine cordon m2 -m \"new disk\"",
    "leaseward machine resume m2",
    "leaseward machine rm m1",
    "leaseward node demote n3",
    "leaseward node promote n3",
    "leaseward node promote n9",
    "leaseward node rm n3 --dry-run",
    "leaseward lease release batch/nightly --token 1",
    "leaseward lease acquire batch/nightly --holder other",
    "leaseward lease release batch/nightly --token $(leaseward lease get batch/nightly -o field=.token)",
    "leaseward explain lease/batch/nightly",
    "leaseward lease revoke batch/nightly",
    // What it says on the way depends on whether a renewal meets the end of so short a command.
    "leaseward run --lease batch/nightly -- ./nightly.sh 2>/dev/null",
    "leaseward config publish app --from ./etc/app -m third --if-version 1",
    "leaseward config publish app --from ./etc/app -m third --if-version 2",
    "leaseward config get app limits.toml --version 3",
    "leaseward config rollback app --to 1 -m back",
    "leaseward config rm app",
    "leaseward context add prod 10.0.0.11:7420 10.0.0.12:7420",
    "leaseward context use prod",
    "leaseward context rm prod",
    "leaseward context use prod",
    "leaseward api GET /v1/leases/none",
    "leaseward agent --check",
    "leaseward version",
    "leaseward explain LW0203",
    "leaseward explain LW9998",
    "leaseward wait nonsense",
    "leaseward events -o xml",
    "leaseward events --until 1h",
    "leaseward events --since yesterday",
    "leaseward man no such",
];

const RELEASE: &str = "leaseward lease release short --token $(leaseward lease get short -o field=.token)";

/// Nodes are listed by their ids, in the order in which they came: of two that start at once either may be first.
fn in_order(said: String) -> String {
    match (said.find("n2"), said.find("n3")) {
        (Some(second), Some(third)) if third < second => {
            said.replace("n2", "n?").replace("n3", "n2").replace("n?", "n3")
        }
        _ => said,
    }
}

/// `  12:34:56.789  what happened`, or `  m1  how far it is`: members come in any order.
fn is_step(line: &str) -> bool {
    let first = line.strip_prefix("  ").and_then(|rest| rest.split("  ").next());
    first.is_some_and(|word| {
        let is_time = word.len() == 12 && word.as_bytes()[2] == b':' && word.as_bytes()[8] == b'.';
        is_time || ["m1", "m2", "m3"].contains(&word)
    })
}

#[test]
fn every_command_prints_what_it_printed() {
    let stage = Stage::start();
    stage.furnish();
    for (name, line) in SHOWN {
        let mut golden = format!("$ {line}\n");
        // The order of events is no promise: with them an explanation differs from run to run.
        let explains = name.starts_with("explain");
        let counted = name.starts_with("machine") || name.starts_with("lease");
        let forms: &[&str] = if explains { &["table", "json"] } else { &["table", "wide", "json", "yaml", "name"] };
        for form in forms {
            let mut output = stage.run(&format!("{line} -o {form}"));
            let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
            // How long is left is told once the leader's timers have heard of the session, a moment after the grant.
            for _ in 0..20 {
                let left = said.lines().last().and_then(|line| line.split_whitespace().nth(4));
                let is_told = said.contains("remaining") || left.is_some_and(|left| left != "-");
                if *name != "lease_acquire" || *form == "name" || is_told {
                    break;
                }
                stage.run(RELEASE);
                output = stage.run(&format!("{line} -o {form}"));
                said = String::from_utf8_lossy(&output.stdout).into_owned();
            }
            assert!(output.status.success(), "{line} -o {form}: {}", String::from_utf8_lossy(&output.stderr));
            let said = match *form {
                "table" | "wide" => table(&said),
                "name" => prose(&said),
                form => document(form, &said, counted),
            };
            let said = if matches!(*name, "node_ls" | "status" | "version_check") { in_order(said) } else { said };
            writeln!(golden, "\n-o {form}\n{}", said.trim_end()).expect("a text grows");
            stage.run(RELEASE);
        }
        expect_file![format!("./golden/{name}.txt")].assert_eq(&golden);
    }
    let mut golden = String::new();
    for line in DONE {
        let output = stage.run(line);
        write!(golden, "$ {line}\n{}", table(&String::from_utf8_lossy(&output.stdout))).expect("a text grows");
        // The steps of an operation come as they happen: two may be told in one.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let told: Vec<_> = said.lines().filter(|line| !is_step(line)).collect();
        for line in prose(&told.join("\n")).lines() {
            writeln!(golden, "2> {line}").expect("a text grows");
        }
        writeln!(golden, "exit {}\n", output.status.code().unwrap_or(-1)).expect("a text grows");
    }
    expect_file!["./golden/done.txt"].assert_eq(&golden);
}
