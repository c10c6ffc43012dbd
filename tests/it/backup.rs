//! A cluster is lost with all its voters' disks, and goes on from a backup.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use leaseward::{Cluster, Lease};
use leaseward_tests::{Lab, PATIENCE, Plan};
use serde_json::{Value, json};
use tokio::time::timeout;

const TTL: Duration = Duration::from_secs(1);

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn ran(lab: &Lab, words: &[&str]) -> Output {
    lab.cli(&[words, &["-o", "json", "--yes", "--timeout", "60s"]].concat())
}

fn works(lab: &Lab, words: &[&str]) -> Value {
    let output = ran(lab, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn fails(lab: &Lab, words: &[&str], exit: i32, code: &str) {
    let output = ran(lab, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{words:?}: {said}");
    assert!(said.contains(code), "{words:?}: {said}");
}

/// Publishes a set of a file that says so, and one that is too large for an entry of the log.
fn publish(lab: &Lab, set: &str, what: &str) -> u64 {
    let dir = lab.dir().join("source").join(set);
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("app.toml"), what).expect("written");
    let noise: Vec<u8> = (0..12_000_u64)
        .flat_map(|i| leaseward_sync::digest_of(&[what.as_bytes(), &i.to_le_bytes()].concat()).0)
        .collect();
    fs::write(dir.join("noise"), noise).expect("written");
    works(lab, &["config", "publish", set, "--from", text(&dir)])["version"].as_u64().expect("a number")
}

async fn on_disk(lab: &Lab, machine: usize, what: &str) {
    let read = async |lab: &Lab| fs::read_to_string(lab.set_dir(machine, "app").join("app.toml")).ok();
    lab.until(&format!("m{} has `{what}`", machine + 1), read, what.to_owned()).await;
}

async fn held(lab: &Lab, owner: &str) -> Lease {
    let request = Cluster::with_client(lab.client()).lease("job").expect("a name").ttl(TTL).owner(owner);
    timeout(PATIENCE, request.acquire()).await.expect("in time").expect("it is granted")
}

async fn running(lab: &Lab) -> u64 {
    let token = async |lab: &Lab| {
        let server: Value = lab.get("/v1/servers/web").await?;
        (server["phase"] == "running").then(|| server["token"].as_str()?.parse().ok()).flatten()
    };
    lab.until_some("the server runs", token).await
}

/// Takes all voters and their disks away, and restores the first one.
fn lose_and_restore(lab: &mut Lab, backup: &Path) -> Value {
    for voter in 0..3 {
        lab.kill_voter(voter);
    }
    for voter in 0..3 {
        fs::remove_dir_all(lab.voter_data(voter)).expect("removed");
    }
    let data = lab.voter_data(0);
    let restored = works(lab, &["backup", "restore", text(backup), "--to", text(&data)]);
    fails(lab, &["backup", "restore", text(backup), "--to", text(&data)], 1, "LW0616");
    for voter in 0..3 {
        lab.start_voter(voter);
    }
    restored
}

async fn three_vote(lab: &Lab) {
    let voters = async |lab: &Lab| lab.status().await?["voters"].as_array().map(Vec::len);
    lab.until("the others have joined", voters, 3).await;
}

fn backup(lab: &Lab, name: &str) -> (PathBuf, Value) {
    let file = lab.dir().join(name);
    let made = works(lab, &["backup", "create", text(&file)]);
    (file, made)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_every_disk_goes_on_from_its_backup() {
    let mut lab = Lab::start(Plan { machines: 2, ttl: "1s", ..Plan::default() }).await;
    assert_eq!(publish(&lab, "app", "one"), 1);
    assert_eq!(publish(&lab, "app", "two"), 2);
    publish(&lab, "gone", "gone");
    works(&lab, &["config", "rm", "gone"]);
    let spec = json!({ "command": ["sleep", "100000"] });
    let put = lab.call(reqwest::Method::PUT, "/v1/servers/web", Some(&spec)).await.expect("an answer");
    assert!(put.0 < 300, "{put:?}");
    let web = running(&lab).await;
    let first = held(&lab, "first").await;
    let early = first.token();

    let (file, made) = backup(&lab, "monday.lwb");
    println!("backup: {made}");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!((&made["sets"], &made["versions"], &made["servers"]), (&json!(1), &json!(2), &json!(1)), "{made}");
    fails(&lab, &["backup", "create", text(&file)], 1, "LW0616");
    assert_eq!(works(&lab, &["backup", "verify", text(&file)])["blobs"], made["blobs"]);

    // What comes after it is lost, and must not count again.
    assert_eq!(publish(&lab, "app", "three"), 3);
    assert_eq!(publish(&lab, "app", "four"), 4);
    on_disk(&lab, 0, "four").await;
    on_disk(&lab, 1, "four").await;
    first.release().await.expect("it is given back");
    let second = held(&lab, "second").await;
    assert!(second.token() > early);

    // One agent lives through it, the other one is started again afterwards.
    lab.kill_agent(1);
    let restored = lose_and_restore(&mut lab, &file);
    println!("restored: {restored}");
    lab.start_machine(1);
    three_vote(&lab).await;

    // Members have what was in the backup, under a number above everything that they had.
    on_disk(&lab, 0, "two").await;
    on_disk(&lab, 1, "two").await;
    works(&lab, &["wait", "config/app=synced"]);
    let versions = works(&lab, &["config", "history", "app"]);
    let numbers = versions["items"].as_array().into_iter().flatten().filter_map(|version| version["version"].as_u64());
    let newest = numbers.max().expect("it has versions");
    assert!(newest > 4, "{versions}");
    assert_eq!(works(&lab, &["config", "ls"])["items"].as_array().map(Vec::len), Some(1), "the deleted one stays so");
    assert_eq!(publish(&lab, "app", "five"), newest + 1);
    on_disk(&lab, 0, "five").await;
    on_disk(&lab, 1, "five").await;
    fails(
        &lab,
        &["config", "publish", "app", "--from", text(&lab.dir().join("source/app")), "--if-version", "4"],
        5,
        "LW0412",
    );

    // Nobody of the old life believes, and its tokens open nothing.
    let lost = timeout(PATIENCE, second.lost()).await.expect("it is told");
    println!("the old holder: {lost}");
    let third = held(&lab, "third").await;
    assert!(third.token() > second.token(), "{} after {}", third.token(), second.token());
    for token in [early, second.token()] {
        let release = ran(&lab, &["lease", "release", "job", "--token", &token.to_string()]);
        assert!(!release.status.success(), "{}", String::from_utf8_lossy(&release.stdout));
    }
    third.check().expect("it is still held");

    // The server runs again, once, under a token above the old ones.
    let web_now = async |lab: &Lab| Some(running(lab).await > web);
    lab.until("the server runs in the new life", web_now, true).await;
    assert_eq!(lab.shims(0).len() + lab.shims(1).len(), 1, "there is one copy");

    // A backup of the restored cluster is one like any other.
    let (again, made) = backup(&lab, "tuesday.lwb");
    assert_eq!(made["generation"], 1);
    assert_eq!(works(&lab, &["backup", "verify", text(&again)])["sets"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_does_not_go_back_to_the_old_cluster_when_that_answers_again() {
    let mut lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    publish(&lab, "app", "one");
    let (file, _) = backup(&lab, "monday.lwb");
    publish(&lab, "app", "two");
    on_disk(&lab, 0, "two").await;

    // The first voter is to be the new life. The two others, a majority of the old one, are back before it is there.
    for voter in 0..3 {
        lab.kill_voter(voter);
    }
    lab.kill_agent(0);
    fs::remove_dir_all(lab.voter_data(0)).expect("removed");
    works(&lab, &["backup", "restore", text(&file), "--to", text(&lab.voter_data(0))]);
    lab.start_voter(1);
    lab.start_voter(2);
    let leads = async |lab: &Lab| {
        let status = lab.get_at(1, "/v1/cluster?consistency=stale").await?;
        status["leader"].as_str().map(|_| true)
    };
    lab.until("the old life has a leader", leads, true).await;
    lab.start_voter(0);
    let leads = async |lab: &Lab| {
        let status = lab.get_at(0, "/v1/cluster?consistency=stale").await?;
        status["leader"].as_str().map(|_| true)
    };
    lab.until("the new life has a leader", &leads, true).await;

    // The agent knows all three addresses. It goes over, and stays there, also while only the old life answers.
    let said = |lab: &Lab, what: &str| {
        fs::read_to_string(lab.dir().join("log/m1.log")).unwrap_or_default().matches(what).count()
    };
    lab.start_machine(0);
    on_disk(&lab, 0, "one").await;
    lab.kill_voter(0);
    lab.until("it is told who answers", async |lab| Some(said(lab, "LW0614") > 0), true).await;
    lab.kill_agent(0);
    let before = said(&lab, "LW0614");
    lab.start_machine(0);
    lab.until("it remembers who it was", async |lab| Some(said(lab, "LW0614") > before), true).await;
    lab.start_voter(0);
    lab.until("the new life has a leader again", &leads, true).await;
    publish_at(&lab, "three").await;
    on_disk(&lab, 0, "three").await;
    assert_eq!(said(&lab, "the cluster was restored from a backup"), 1, "it came and went");
}

/// Publishes to the first voter, whoever else answers.
async fn publish_at(lab: &Lab, what: &str) {
    let dir = lab.dir().join("source").join("app");
    fs::write(dir.join("app.toml"), what).expect("written");
    let address = lab.api(0).to_string();
    works(lab, &["config", "publish", "app", "--from", text(&dir), "--addr", &address]);
}
