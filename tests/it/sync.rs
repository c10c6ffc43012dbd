//! Config sets: what is published is on every member's disk, exactly, or the command says why not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use leaseward_state::command::PublishSet;
use leaseward_state::config::{Chunk, Manifest, ManifestEntry, ManifestNode};
use leaseward_state::{Command, SetName};
use leaseward_tests::{Lab, PATIENCE, Plan};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

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

/// A voter whose content store takes nothing new: where its next packs would be, there are files.
pub(crate) struct Blocked {
    packs: Vec<PathBuf>,
}

impl Blocked {
    pub(crate) fn voter(lab: &Lab, voter: usize) -> Self {
        let blobs = lab.voter_data(voter).join("blobs");
        let name = |path: PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
        let there = fs::read_dir(&blobs).expect("a store").filter_map(|entry| name(entry.ok()?.path()));
        let last = there.max().unwrap_or(0);
        // Some that are being written now, and one for each time that it is tried.
        let packs: Vec<_> = (last + 1..last + 4_000).map(|pack| blobs.join(format!("{pack:010}.loose"))).collect();
        let packs: Vec<_> = packs.into_iter().filter(|path| fs::File::create_new(path).is_ok()).collect();
        Self { packs }
    }

    pub(crate) fn free(self) {
        for pack in self.packs {
            fs::remove_file(pack).expect("removed");
        }
    }
}

/// Returns the name of a tree's manifest, and its bytes.
fn manifest_of(source: &Path) -> (String, Vec<u8>) {
    let scanned = leaseward_sync::scan(source).expect("a legal tree");
    let encoded = leaseward_sync::manifest::encode(scanned.manifest());
    (leaseward_sync::digest_of(&encoded).to_string(), encoded)
}

/// Returns how many voters have every blob of a version on their disks, whether they live or not.
fn holders(lab: &Lab, source: &Path) -> usize {
    let scanned = leaseward_sync::scan(source).expect("a legal tree");
    let digests: Vec<_> = scanned.digests().map(|digest| digest.to_string()).chain([manifest_of(source).0]).collect();
    let holds = |voter: &usize| {
        let stored = leaseward_sync::stored(&lab.voter_data(*voter).join("blobs")).unwrap_or_default();
        let stored: BTreeSet<_> = stored.into_keys().map(|digest| digest.to_string()).collect();
        digests.iter().all(|digest| stored.contains(digest))
    };
    (0..3).filter(holds).count()
}

#[tokio::test]
async fn a_version_is_published_once_a_quorum_can_keep_it() {
    let mut lab = lab(1).await;
    // n1 is asked. One of the others is down, the other one's store takes nothing.
    lab.kill_voter(2);
    let blocked = Blocked::voter(&lab, 1);
    let source = example(&lab, "one", "limit = 1\n");
    heavy(&source, 1);
    let asked = lab.api(0).to_string();
    let output = publish(&lab, &source, &["--timeout", "5s", "--addr", &asked]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("no quorum keeps it: {} {}", output.status, said.trim());
    refused(&output, 6, "LW0501");
    assert!(holders(&lab, &source) <= 1, "n1 alone may have it");

    // Whoever goes on all the same, and names what one voter has alone, is refused.
    let (manifest, encoded) = manifest_of(&source);
    assert_eq!(put_blob(&lab, 0, &manifest, encoded).await, 204, "n1 keeps it, and promises nothing");
    let body = json!({ "manifest": manifest, "parent": 0 });
    let (status, problem) = post_at(&lab, 0, &format!("/v1/configs/{SET}/publish"), &body).await;
    assert_eq!((status, problem["code"].as_str()), (503, Some("LW0501")), "{problem}");
    assert_eq!(history(&lab, 0, "linearizable").await, None, "no version came to be");

    // The store takes things again: the same command succeeds, with one voter still down.
    blocked.free();
    assert_eq!(published(&lab, &source), 1);
    assert_eq!(holders(&lab, &source), 2, "exactly the two that live");
    everywhere(&lab, 1, &source).await;

    // And it fails on one voter only: two of three are enough, and the third one fetches it later.
    let blocked = Blocked::voter(&lab, 1);
    lab.start_voter(2);
    lab.until_some("n3 takes part", async |lab| lab.get_at(2, "/v1/configs?consistency=linearizable").await).await;
    let second = example(&lab, "two", "limit = 2\n");
    heavy(&second, 2);
    let third_keeps = async |lab: &Lab| Some(publish(lab, &second, &["--timeout", "10s"]).status.success());
    lab.until("two of three keep it", third_keeps, true).await;
    assert_eq!(holders(&lab, &second), 2);
    blocked.free();
    lab.until("every voter has everything", async |lab| Some((holders(lab, &source), holders(lab, &second))), (3, 3))
        .await;
    everywhere(&lab, 1, &second).await;
}

#[tokio::test]
async fn a_small_change_goes_with_its_entry_and_a_voter_that_lost_what_it_builds_on_fetches() {
    let mut lab = lab(2).await;
    let source = example(&lab, "one", "limit = 1\n");
    heavy(&source, 3);
    assert_eq!(published(&lab, &source), 1);
    lab.until("every voter has it", async |lab| Some(holders(lab, &source)), 3).await;
    // n3 loses the file that changes next, and n2 all it has.
    lab.kill_voter(1);
    lab.kill_voter(2);
    let stored = leaseward_sync::stored(&lab.voter_data(2).join("blobs")).expect("a store");
    fs::remove_file(&stored[&leaseward_sync::digest_of(b"limit = 1\n")]).expect("it was there");
    fs::remove_dir_all(lab.voter_data(1).join("blobs")).expect("it was there");
    lab.start_voter(2);
    lab.until_some("n3 takes part", async |lab| lab.get_at(2, "/v1/configs?consistency=linearizable").await).await;
    let second = example(&lab, "two", "limit = 2\n");
    heavy(&second, 3);
    assert_eq!(published(&lab, &second), 2);
    lab.start_voter(1);
    let everybody = async |lab: &Lab| Some((holders(lab, &source), holders(lab, &second)));
    lab.until("every voter has everything", everybody, (3, 3)).await;
    everywhere(&lab, 2, &second).await;
}

/// Adds what does not fit an entry of the log, however it is compressed.
fn heavy(root: &Path, seed: u64) {
    let mut noise = Vec::new();
    for i in 0..12_000_u64 {
        noise.extend_from_slice(&leaseward_sync::digest_of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).0);
    }
    fs::write(root.join("heavy"), noise).expect("written");
}

async fn put_blob(lab: &Lab, voter: usize, digest: &str, bytes: Vec<u8>) -> u16 {
    let url = format!("http://{}/v1/blobs/{digest}", lab.api(voter));
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    let sent = client.put(url).body(bytes).timeout(PATIENCE).send().await.expect("an answer");
    sent.status().as_u16()
}

async fn post_at(lab: &Lab, voter: usize, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("http://{}{path}", lab.api(voter));
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    let answer = client.post(url).json(body).timeout(PATIENCE).send().await.expect("an answer");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

/// A tree with one file of a hostile name, as no honest publisher would write it.
fn hostile(path: &str, node: ManifestNode, directory: Option<&str>) -> Vec<u8> {
    let directory = directory.map(|path| (path, ManifestNode::Directory { mode: 0o755 }));
    let mut entries: Vec<_> = directory.into_iter().chain([(path, node)]).collect();
    entries.sort_by_key(|(path, _)| *path);
    let entries = entries.into_iter().map(|(path, node)| ManifestEntry { path: path.to_owned(), node }).collect();
    leaseward_sync::manifest::encode(&Manifest { entries, ..Manifest::default() })
}

#[tokio::test]
async fn hostile_names_are_refused_and_nothing_is_written_outside() {
    let lab = lab(1).await;
    let content = b"escaped".to_vec();
    let digest = leaseward_sync::digest_of(&content);
    let good = example(&lab, "good", "limit = 1\n");
    assert_eq!(published(&lab, &good), 1);
    everywhere(&lab, 1, &good).await;
    assert_eq!(put_blob(&lab, 0, &digest.to_string(), content).await, 204);

    let file = || {
        let chunks = vec![Chunk { digest, size: 7 }];
        ManifestNode::File { mode: 0o644, size: 7, digest, chunks }
    };
    let link = |target: &str| ManifestNode::Symlink { target: target.to_owned() };
    let absolute = lab.dir().join("escaped");
    let absolute = text(&absolute);
    let long = format!("escaped{}", "x".repeat(300));
    let mut trees: Vec<(&str, Vec<u8>)> = vec![
        ("up", hostile("../escaped", file(), None)),
        ("up twice", hostile("../../../escaped", file(), None)),
        ("up from below", hostile("d/../../escaped", file(), Some("d"))),
        ("through a directory above", hostile("../escaped", file(), Some(".."))),
        ("absolute", hostile(absolute, file(), None)),
        ("a dot", hostile("./escaped", file(), None)),
        ("a NUL byte", hostile("escaped\0.txt", file(), None)),
        ("twice a slash", hostile("d//escaped", file(), Some("d"))),
        ("empty", hostile("", file(), None)),
        ("long", hostile(&long, file(), None)),
        ("a link out", hostile("escaped", link("../../outside"), None)),
        ("a link to the root", hostile("escaped", link("/etc/passwd"), None)),
    ];
    // Through a link: `d` is one, and a file stands below it.
    let entries = vec![
        ManifestEntry { path: "d".into(), node: link(text(lab.dir())) },
        ManifestEntry { path: "d/escaped".into(), node: file() },
    ];
    trees.push(("through a link", leaseward_sync::manifest::encode(&Manifest { entries, ..Manifest::default() })));

    let client = lab.client();
    for (i, (what, encoded)) in trees.into_iter().enumerate() {
        let manifest = leaseward_sync::digest_of(&encoded);
        assert_eq!(put_blob(&lab, 0, &manifest.to_string(), encoded).await, 204, "{what}: a blob is only bytes");
        let body = json!({ "manifest": manifest.to_string() });
        let (status, problem) = post_at(&lab, 0, &format!("/v1/configs/{SET}/publish"), &body).await;
        let code = problem["code"].as_str().unwrap_or_default();
        println!("{what}: {status} {code}");
        assert_eq!((status, code), (422, "LW0804"), "{what}: {problem}");

        // Whoever commits it behind the API's back is refused by every member.
        let set = format!("behind-{i}");
        let behind = PublishSet { set: name(&set), parent: None, manifest, files: 1, bytes: 7, delta: None };
        let command = Command::Publish { sets: vec![behind], author: "x".into(), message: what.into() };
        client.write(command).await.expect("committed: the log knows only digests");
        let members = async |lab: &Lab| {
            let list = lab.list_at(0, &format!("/v1/configs/{set}/members?consistency=linearizable")).await?;
            Some(list.first()?["phase"] == "rejected")
        };
        lab.until(&format!("{what}: the member rejects it"), members, true).await;
    }
    // Names of sets and blobs are no way out either.
    let body = json!({ "manifest": manifest_of(&good).0 });
    for set in ["..%2Fescaped", "%2Fescaped", "escaped%00", "%2E%2E%2Fescaped", "escaped%2F..%2F..%2Fx"] {
        let (status, problem) = post_at(&lab, 0, &format!("/v1/configs/{set}/publish"), &body).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("LW0101")), "{set}: {problem}");
    }
    assert_eq!(put_blob(&lab, 0, "..%2F..%2Fescaped", b"escaped".to_vec()).await, 422);

    let versions = agreed(&lab).await;
    assert_eq!(versions.len(), 1, "nothing of it was published");
    everywhere(&lab, 1, &good).await;
    let escaped: Vec<_> = tree(lab.dir())
        .into_keys()
        .filter(|path| text(path).contains("escaped") || path.ends_with("outside"))
        .collect();
    assert!(escaped.is_empty(), "something was written: {escaped:?}");
}

fn name(set: &str) -> SetName {
    SetName::new(set).expect("a name")
}

/// A publisher reads only what changed. What it read, it published before; but perhaps to another cluster.
#[tokio::test]
async fn what_a_publisher_remembers_is_sent_to_a_cluster_that_lacks_it() {
    let (one, other) = (Lab::start(Plan::default()).await, Lab::start(Plan { machines: 1, ..Plan::default() }).await);
    let dir = example(&one, "remembered", "1");
    let cache = one.dir().join("cache");
    let publish = |lab: &Lab| {
        let mut command = lab.command(&["config", "publish", SET, "--from", dir.to_str().expect("text")]);
        let output = command.env("XDG_CACHE_HOME", &cache).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let remembers = async |lab: &Lab| {
        publish(lab);
        Some(fs::read_dir(cache.join("leaseward/published")).is_ok_and(|files| files.count() == 1))
    };
    // Files that were written a moment ago are not remembered yet.
    one.until("it remembers", remembers, true).await;
    let said = publish(&other);
    assert!(said.contains(" 0 of ") || said.contains(" 1 of "), "nothing is asked for by name: {said}");
    let there = async |lab: &Lab| Some(tree(&lab.set_dir(0, SET)));
    other.until("it is there", there, tree(&dir)).await;
}
