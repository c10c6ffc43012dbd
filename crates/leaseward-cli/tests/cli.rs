//! The command line without a cluster: help, settings, errors, exit codes.

use std::process::{Command, Output};

fn leaseward(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a directory");
    Command::new(env!("CARGO_BIN_EXE_leaseward"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .output()
        .expect("it starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_has_help() {
    let help = leaseward(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    for command in [
        "dev", "agent", "doctor", "status", "events", "explain", "wait", "run", "lease", "server", "machine", "node",
        "config",
    ] {
        assert!(text.contains(command), "{command} is not in the help");
        assert!(leaseward(&[command, "--help"]).status.success(), "{command} --help");
    }
    assert!(!text.contains("shim"), "the shim is not for people");
}

#[test]
fn a_cluster_that_does_not_answer_is_exit_code_6_with_a_hint() {
    let output = leaseward(&["--addr", "127.0.0.1:1", "status"]);
    assert_eq!(output.status.code(), Some(6));
    let text = stderr(&output);
    assert!(
        text.contains("error LW0501") && text.contains("do ") && text.contains("leaseward explain LW0501"),
        "{text}"
    );
}

#[test]
fn an_unknown_flag_or_condition_is_exit_code_2() {
    assert_eq!(leaseward(&["status", "--nonsense"]).status.code(), Some(2));
    assert_eq!(leaseward(&["wait", "nonsense"]).status.code(), Some(2));
    assert_eq!(leaseward(&["-o", "xml", "status"]).status.code(), Some(2));
}

#[test]
fn settings_with_an_unknown_key_are_refused_with_the_key_that_was_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.toml");
    std::fs::write(&path, "[node]\nlsten = \"127.0.0.1:1\"\n").expect("written");
    let output = leaseward(&["agent", "--check", "--config", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean `listen`?"), "{}", stderr(&output));
    std::fs::write(&path, "[node]\nname = \"n1\"\n").expect("written");
    assert!(leaseward(&["agent", "--check", "--config", &path.display().to_string()]).status.success());
}

#[test]
fn contexts_are_kept() {
    let home = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_leaseward"))
            .args(arguments)
            .env_clear()
            .env("HOME", home.path())
            .output()
            .expect("it starts")
    };
    assert!(run(&["context", "add", "prod", "10.0.0.1:7420", "10.0.0.2:7420"]).status.success());
    assert!(run(&["context", "use", "prod"]).status.success());
    let listed = run(&["context", "ls", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(listed["items"][0]["name"], "prod");
    assert_eq!(listed["items"][0]["current"], true);
    assert_eq!(run(&["context", "use", "nowhere"]).status.code(), Some(3));
}

#[test]
fn completions_and_manual_pages_are_made_of_the_commands() {
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    for shell in ["bash", "zsh", "fish"] {
        let script = leaseward(&["completion", shell]);
        assert!(script.status.success(), "{}", stderr(&script));
        assert!(text(&script).contains("transfer-leader"), "{shell}: {}", text(&script));
    }
    assert_eq!(leaseward(&["completion", "csh"]).status.code(), Some(2));
    let page = text(&leaseward(&["man", "server", "move"]));
    assert!(page.contains(".TH leaseward-server-move 1") && page.contains("leaseward server move pay"), "{page}");
    let dir = tempfile::tempdir().expect("a directory");
    assert!(leaseward(&["man", "--dir", &dir.path().display().to_string()]).status.success());
    for page in ["leaseward.1", "leaseward-lease-acquire.1", "leaseward-version.1"] {
        assert!(dir.path().join(page).is_file(), "{page}");
    }
    assert!(!dir.path().join("leaseward-shim.1").exists(), "the shim is not for people");
    assert_eq!(leaseward(&["man", "nonsense"]).status.code(), Some(3));
    assert!(text(&leaseward(&["version"])).starts_with("leaseward "));
}
