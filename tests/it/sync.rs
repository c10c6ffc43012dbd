//! Config sets: what is published is on every member's disk, exactly, or the command says why not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use leaseward_tests::{Lab, Plan};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

const SET: &str = "app";

/// What is at a path: everything that a version promises to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(u32, Vec<u8>),
    Link(PathBuf),
}

/// Returns everything below a directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap_or_default())
            } else if meta.is_dir() {
                left.push(path.clone());
                Node::Directory(mode)
            } else {
                Node::File(mode, fs::read(&path).unwrap_or_default())
            };
            found.insert(path.strip_prefix(root).expect("it is below").to_owned(), node);
        }
    }
    found
}

fn write(root: &Path, path: &str, mode: u32, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it has a parent")).expect("a directory");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permitted");
}

/// Makes a small directory of everything that a set may hold.
fn example(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let root = lab.dir().join(name);
    fs::create_dir_all(root.join("empty")).expect("a directory");
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o750)).expect("permitted");
    write(&root, "app.toml", 0o644, text);
    write(&root, "secret", 0o600, "hidden");
    write(&root, "bin/start.sh", 0o755, "#!/bin/sh\n");
    write(&root, "a b/ü/deep", 0o444, "");
    symlink("../app.toml", root.join("bin/link")).expect("a link");
    root
}

/// Makes a directory that takes a while to publish.
fn large(lab: &Lab, name: &str, version: u32) -> PathBuf {
    let root = lab.dir().join(name);
    for i in 0..150 {
        write(&root, &format!("part/{i}"), 0o644, &format!("{version} {i} ").repeat(500));
    }
    root
}

async fn lab(machines: usize) -> Lab {
    Lab::start(Plan { machines, ..Plan::default() }).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn publish(lab: &Lab, from: &Path, flags: &[&str]) -> Output {
    lab.cli(&[&["config", "publish", SET, "--from", text(from), "-o", "json"], flags].concat())
}

fn published(lab: &Lab, from: &Path) -> u64 {
    let output = publish(lab, from, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let version: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    version["version"].as_u64().expect("a number")
}

/// Runs a command that must succeed. Returns what it prints.
fn works(lab: &Lab, words: &[&str]) -> Value {
    let output = lab.cli(&[words, &["-o", "json", "--yes"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn synced(lab: &Lab) {
    works(lab, &["wait", "config/app=synced", "--timeout", "60s"]);
}

fn refused(output: &Output, exit: i32, code: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(code), "{said}");
}

/// Returns the versions of the set with their manifests, as one voter knows them.
async fn history(lab: &Lab, voter: usize, consistency: &str) -> Option<Vec<(u64, String)>> {
    let versions = lab.list_at(voter, &format!("/v1/configs/{SET}/versions?consistency={consistency}")).await?;
    let mut versions: Vec<_> = versions
        .iter()
        .map(|version| Some((version["version"].as_u64()?, version["manifest"].as_str()?.to_owned())))
        .collect::<Option<_>>()?;
    versions.sort();
    Some(versions)
}

/// Waits until all voters agree on the history. Returns it.
async fn agreed(lab: &Lab) -> Vec<(u64, String)> {
    let all = async |lab: &Lab| {
        let truth = history(lab, 0, "linearizable").await?;
        for voter in 1..3 {
            (history(lab, voter, "stale").await? == truth).then_some(())?;
        }
        Some(truth)
    };
    lab.until_some("all voters have the same versions", all).await
}

async fn everywhere(lab: &Lab, machines: usize, source: &Path) {
    let wanted = tree(source);
    for machine in 0..machines {
        let here = async |lab: &Lab| Some(tree(&lab.set_dir(machine, SET)) == wanted);
        lab.until(&format!("m{} has exactly the tree", machine + 1), here, true).await;
    }
}

#[tokio::test]
async fn what_is_published_is_everywhere_and_can_be_taken_back() {
    let lab = lab(2).await;
    let first = example(&lab, "one", "limit = 1\n");
    assert_eq!(published(&lab, &first), 1);
    synced(&lab);
    for machine in 0..2 {
        assert_eq!(tree(&lab.set_dir(machine, SET)), tree(&first), "exactly this, once `wait` says so");
    }

    let second = example(&lab, "two", "limit = 2\n");
    fs::remove_file(second.join("secret")).expect("removed");
    fs::remove_file(second.join("bin/link")).expect("removed");
    write(&second, "bin/link", 0o640, "a file where a link was");
    assert_eq!(published(&lab, &second), 2);
    synced(&lab);
    for machine in 0..2 {
        assert_eq!(tree(&lab.set_dir(machine, SET)), tree(&second));
    }

    // Somebody else was quicker; nothing changes.
    let third = example(&lab, "three", "limit = 3\n");
    refused(&publish(&lab, &third, &["--if-version", "1"]), 5, "LW0412");
    refused(&publish(&lab, &third, &["--if-version", "0"]), 5, "LW0412");

    assert_eq!(works(&lab, &["config", "rollback", SET, "--to", "1"])["version"], 3);
    synced(&lab);
    for machine in 0..2 {
        assert_eq!(tree(&lab.set_dir(machine, SET)), tree(&first), "back to what it was");
    }
    let versions = agreed(&lab).await;
    assert_eq!(
        versions.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [1, 2, 3],
        "nobody goes back in numbers"
    );
    assert_eq!(versions[0].1, versions[2].1);
    assert_eq!(works(&lab, &["config", "history", SET])["items"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_whole() {
    let mut lab = lab(1).await;
    let good = example(&lab, "good", "limit = 1\n");
    assert_eq!(published(&lab, &good), 1);
    let before = agreed(&lab).await;

    let bad = example(&lab, "bad", "limit = 2\n");
    mknodat(CWD, bad.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("a pipe");
    let output = publish(&lab, &bad, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("pipe") && said.contains("LW08"), "{said}");
    assert_eq!(agreed(&lab).await, before);

    let leader = lab.leader().await;
    for voter in (0..3).filter(|voter| *voter != leader) {
        lab.kill_voter(voter);
    }
    let next = example(&lab, "next", "limit = 3\n");
    refused(&publish(&lab, &next, &["--timeout", "5s"]), 6, "LW0501");
    for voter in (0..3).filter(|voter| *voter != leader) {
        lab.start_voter(voter);
    }
    assert_eq!(agreed(&lab).await, before, "a refused version came to be");
    assert_eq!(published(&lab, &next), 2, "and now it works");
    everywhere(&lab, 1, &next).await;
}

/// A publishing command that has just said how much it is about to send.
fn publishing(lab: &Lab, from: &Path) -> Child {
    let mut command = lab.command(&["config", "publish", SET, "--from", text(from)]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut said = String::new();
    BufReader::new(child.stderr.as_mut().expect("piped")).read_line(&mut said).expect("readable");
    assert!(said.contains("pieces are new"), "{said}");
    child
}

#[tokio::test]
async fn a_member_that_was_down_catches_up() {
    let mut lab = lab(2).await;
    let source = large(&lab, "large", 1);
    let publishing = publishing(&lab, &source);
    lab.kill_agent(0);
    let output = publishing.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let second = large(&lab, "large", 2);
    assert_eq!(published(&lab, &second), 2);
    lab.start_machine(0);
    everywhere(&lab, 2, &second).await;
    synced(&lab);
}

#[tokio::test]
async fn a_leader_that_dies_while_somebody_publishes_leaves_all_or_nothing() {
    let mut lab = lab(1).await;
    let source = large(&lab, "large", 1);
    let leader = lab.leader().await;
    let mut publishing = publishing(&lab, &source);
    lab.kill_voter(leader);
    assert_eq!(publishing.try_wait().expect("it can be waited for"), None, "that was not in the middle");
    let output = publishing.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    println!("leader killed while publishing: {} {}", output.status, said.trim());
    lab.start_voter(leader);

    let version = published(&lab, &source);
    let versions = agreed(&lab).await;
    if output.status.success() {
        assert_eq!(version, 2, "what was acknowledged is there");
    }
    assert_eq!(versions.len() as u64, version, "{versions:?}");
    assert!(version <= 2, "once for each time that it was asked for: {versions:?}");
    assert!(versions.iter().all(|(_, manifest)| *manifest == versions[0].1), "{versions:?}");
    everywhere(&lab, 1, &source).await;
    // Every voter's copy is whole: each serves every file.
    for voter in 0..3 {
        let whole = async |lab: &Lab| {
            let output = lab.cli(&["config", "get", SET, "part/149", "--addr", &lab.api(voter).to_string()]);
            Some(output.stdout == fs::read(source.join("part/149")).ok()?)
        };
        lab.until("every voter can serve it", whole, true).await;
    }
}
