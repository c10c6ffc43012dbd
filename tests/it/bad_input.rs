//! What is wrong is refused with a stable code, and whoever refuses it goes on serving.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use leaseward_raft::net::frame::{self, HELLO};
use leaseward_raft::net::wire::{Answer, Ask, Hello, PROTOCOL, Purpose, Welcome};
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, PATIENCE, Plan, binary, eventually, is_root, signal};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::story::{Story, TTL};

/// Where the length lies in the head of a frame, and the format before it.
const LENGTH_AT: usize = 4;
const FORMAT_AT: usize = 2;

fn hello() -> Hello {
    Hello { protocol: PROTOCOL, cluster: None, node: None, instance: 7, purpose: Purpose::Client }
}

fn hello_bytes(hello: &Hello) -> Vec<u8> {
    frame::bytes(HELLO, hello).expect("a hello is short")
}

fn changed(mut bytes: Vec<u8>, at: usize, to: &[u8]) -> Vec<u8> {
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

async fn connect(lab: &Lab) -> TcpStream {
    TcpStream::connect(lab.peer(0)).await.expect("the voter listens")
}

/// Returns what the other side says until it closes the connection.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    // A reset is a way to close it, too.
    let _either_way = closed.expect("the voter keeps a connection that makes no sense");
    said
}

/// Greets and is welcome.
async fn welcomed(lab: &Lab, purpose: Purpose) -> TcpStream {
    let mut stream = connect(lab).await;
    stream.write_all(&hello_bytes(&Hello { purpose, ..hello() })).await.expect("sent");
    let welcome: Welcome = frame::read(&mut stream, HELLO).await.expect("an answer");
    assert!(matches!(welcome, Welcome::Welcome { .. }), "{welcome:?}");
    stream
}

async fn refused(lab: &Lab, hello: Hello, code: &str) {
    let mut stream = connect(lab).await;
    stream.write_all(&hello_bytes(&hello)).await.expect("sent");
    let welcome: Welcome = frame::read(&mut stream, HELLO).await.expect("an answer");
    assert!(matches!(&welcome, Welcome::Refused { code: said, .. } if said == code), "{code}: {welcome:?}");
    assert!(until_closed(&mut stream).await.is_empty(), "it goes on talking");
}

/// The voter that got all that lives, as the same process, and answers reads that need a quorum.
async fn serves(lab: &mut Lab, pid: u32) {
    assert!(lab.voter_lives(0));
    assert_eq!(lab.voter_pid(0), pid);
    let read = async |lab: &Lab| lab.get_at(0, "/v1/leases?consistency=linearizable").await;
    lab.until_some("the voter serves", read).await;
}

#[tokio::test]
async fn a_voter_hangs_up_on_nonsense_and_lives() {
    let mut lab = Lab::start(Plan::default()).await;
    let pid = lab.voter_pid(0);
    let good = hello_bytes(&hello());
    let last = good.len() - 1;
    let broken = [
        ("garbage", b"GET / HTTP/1.1\r\nHost: somebody\r\nAccept: everything, please\r\n\r\n".to_vec()),
        ("the wrong magic", changed(good.clone(), 0, &[good[0] ^ 0xff])),
        ("a newer format", changed(good.clone(), FORMAT_AT, &u16::MAX.to_be_bytes())),
        ("four gigabytes", changed(good.clone(), LENGTH_AT, &u32::MAX.to_be_bytes())),
        ("a changed byte", changed(good.clone(), last, &[good[last] ^ 1])),
        ("half a hello, and silence", good[..last / 2].to_vec()),
        ("silence", Vec::new()),
    ];
    for (what, bytes) in broken {
        let mut stream = connect(&lab).await;
        stream.write_all(&bytes).await.expect("sent");
        assert_eq!(until_closed(&mut stream).await, b"", "{what} is no hello");
    }
    serves(&mut lab, pid).await;

    refused(&lab, Hello { cluster: Some(0xbad), ..hello() }, "LW0602").await;
    refused(&lab, Hello { protocol: PROTOCOL + 1, ..hello() }, "LW0703").await;
    refused(&lab, Hello { purpose: Purpose::Control, ..hello() }, "LW0701").await;
    serves(&mut lab, pid).await;

    // Whoever was welcome is not trusted either.
    let kind = frame::message(Purpose::Client);
    let ask = frame::bytes(kind, &(1_u64, Ask::Status)).expect("a question is short");
    for bytes in [
        changed(ask.clone(), 0, &[ask[0] ^ 0xff]),
        changed(ask.clone(), LENGTH_AT, &u32::MAX.to_be_bytes()),
        changed(ask.clone(), ask.len() - 1, &[0xff]),
        frame::bytes(kind, &"no question at all").expect("a text is short"),
    ] {
        let mut stream = welcomed(&lab, Purpose::Client).await;
        stream.write_all(&bytes).await.expect("sent");
        until_closed(&mut stream).await;
    }
    // A client may not speak as a voter does.
    let mut stream = welcomed(&lab, Purpose::Client).await;
    let ask = frame::bytes(kind, &(9_u64, Ask::TakeOver { term: 1 })).expect("a question is short");
    stream.write_all(&ask).await.expect("sent");
    let (id, answer): (u64, Answer) = frame::read(&mut stream, kind).await.expect("an answer");
    assert!(id == 9 && matches!(answer, Answer::Failed { .. }), "{answer:?}");
    serves(&mut lab, pid).await;
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn fails(output: &Output, exit: i32, code: &str) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(code), "{said}");
    said
}

#[test]
fn an_unknown_key_is_an_error_with_a_suggestion() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("leaseward.toml");
    let data = dir.path().join("data");
    let text =
        format!("[node]\nname = \"n1\"\ndata = {:?}\n[timing]\nlease_tll = \"3s\"\n", data.display().to_string());
    fs::write(&file, text).expect("written");
    for flags in [&["--check"][..], &[]] {
        let output = Command::new(binary()).args(["agent", "--config"]).arg(&file).args(flags).output();
        let said = fails(&output.expect("it starts"), 2, "LW0103");
        assert!(said.contains("lease_tll") && said.contains("lease_ttl"), "{said}");
    }
    assert!(!data.exists(), "nothing is begun with settings that nobody meant");
}

#[tokio::test]
async fn a_data_directory_of_the_future_is_left_alone() {
    let mut lab = Lab::start(Plan::default()).await;
    lab.kill_voter(2);
    let version = lab.voter_data(2).join("VERSION");
    let before = fs::read(&version).expect("readable");
    fs::write(&version, "99\n").expect("written");
    let output = lab.command(&["agent", "--config"]).arg(lab.voter_settings(2)).output().expect("it starts");
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("LW0601") && said.contains("99"), "{said}");
    assert_eq!(fs::read(&version).expect("readable"), b"99\n", "it was written to");

    fs::write(&version, before).expect("written");
    lab.start_voter(2);
    lab.until_some("it takes part again", async |lab| lab.get_at(2, "/v1/leases?consistency=linearizable").await).await;
}

fn parsed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn token(output: &Output) -> String {
    parsed(output)["token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn leases_refuse_short_times_stale_tokens_and_bad_names() {
    let lab = Lab::start(Plan::default()).await;
    let acquire = |flags: &[&str]| lab.cli(&[&["lease", "acquire", "x", "-o", "json"], flags].concat());
    fails(&acquire(&["--ttl", "100ms"]), 2, "LW0102");
    let first = token(&acquire(&["--holder", "one"]));
    fails(&acquire(&["--holder", "two"]), 5, "LW0202");
    parsed(&lab.cli(&["lease", "get", "x", "-o", "json"]));
    assert!(lab.cli(&["lease", "release", "x", "--token", &first]).status.success());
    let second = token(&acquire(&["--holder", "two"]));
    let stale = fails(&lab.cli(&["lease", "release", "x", "--token", &first]), 5, "LW0203");
    assert!(stale.contains(&second) || stale.contains("token"), "{stale}");
    assert_eq!(parsed(&lab.cli(&["lease", "get", "x", "-o", "json"]))["token"], second.as_str(), "it was taken away");
    fails(&lab.cli(&["lease", "get", "nobody"]), 3, "LW0404");
    fails(&lab.cli(&["run", "--lease", "a b\n", "--", "true"]), 125, "LW0101");
}

/// A file system of its own, small.
struct Small {
    dir: TempDir,
}

impl Small {
    /// Mounts one; says so if that is not permitted.
    fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("lwfull").tempdir().expect("a directory");
        let options = format!("size={megabytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "leaseward"]).arg(dir.path()).output();
        match mount {
            Ok(output) if is_root() && output.status.success() => Some(Self { dir }),
            _ => {
                println!("left out: only root may mount a small file system to fill");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    /// Fills it so that no byte is free.
    fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).expect("a file");
        let zeros = [0; 4096];
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.dir.path()).status().ok();
    }
}

/// Asks for another leader. Returns whether the request was carried out.
fn transfer(lab: &Lab, to: &str) -> bool {
    lab.cli(&["node", "transfer-leader", "--to", to, "--yes", "--timeout", "5s"]).status.success()
}

/// So much is written that every voter's log needs another file.
async fn grow_log(lab: &Lab) {
    for i in 0..320 {
        let body = json!({ "command": ["/bin/false"], "env": { "NUMBER": i.to_string(), "LONG": "x".repeat(60_000) } });
        let put = async |lab: &Lab| {
            lab.call(Method::PUT, "/v1/servers/large", Some(&body)).await.map(|(status, _)| status < 300)
        };
        lab.until("the large entry is written", put, true).await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing() {
    let Some(small) = Small::mount(192) else { return };
    let data = small.path().join("n3");
    let mut lab = Lab::start(Plan { last_voter_data: Some(data.clone()), ..Plan::default() }).await;
    let pids = [lab.voter_pid(0), lab.voter_pid(1)];
    let mut held = Vec::new();
    let acquire = |lab: &Lab, held: &mut Vec<(String, String)>| {
        let name = format!("kept/{}", held.len());
        let output = lab.cli(&["lease", "acquire", &name, "--ttl", "1h", "-o", "json", "--timeout", "5s"]);
        if output.status.success() {
            held.push((name, token(&output)));
        }
        output
    };
    assert!(acquire(&lab, &mut held).status.success());

    // The leader's disk fills up: it says so, before it could lose anything.
    eventually("n3 leads", async || transfer(&lab, "n3") && lab.leader().await == 2).await;
    small.fill();
    let mut refusal = None;
    eventually("proposals are refused, or another voter leads", async || {
        let output = acquire(&lab, &mut held);
        refusal = (!output.status.success()).then(|| said(&output));
        refusal.is_some() || lab.leader().await != 2
    })
    .await;
    if let Some(refusal) = refusal {
        println!("disk full: {}", refusal.trim());
        assert!(refusal.contains("LW0605"), "{refusal}");
    }
    assert!(lab.voter_lives(0) && lab.voter_lives(1));

    // The others lead: everything works, with the full one as a follower.
    eventually("another voter leads", async || {
        if lab.leader().await != 2 {
            return true;
        }
        transfer(&lab, "n1");
        false
    })
    .await;
    for _ in 0..10 {
        eventually("writes are taken again", async || acquire(&lab, &mut held).status.success()).await;
    }
    let large = lab.dir().join("large");
    fs::create_dir_all(&large).expect("a directory");
    for i in 0..24_u8 {
        fs::write(large.join(i.to_string()), vec![i; 1 << 20]).expect("written");
    }
    let publish = lab.cli(&["config", "publish", "large", "--from", large.to_str().expect("text"), "--timeout", "20s"]);
    assert!(publish.status.success(), "two of three can keep it: {}", said(&publish));
    grow_log(&lab).await;
    for (voter, pid) in pids.into_iter().enumerate() {
        assert!(lab.voter_lives(voter) && lab.voter_pid(voter) == pid, "a voter with room died");
    }

    // It cannot keep its log: it says so, and ends rather than acknowledge what it does not have.
    eventually("the full voter ends", async || !lab.voter_lives(2)).await;
    let log = fs::read_to_string(lab.dir().join("log/n3.log")).expect("readable");
    println!("the full voter's last words: {}", log.lines().next_back().unwrap_or_default());
    assert!(log.contains("LW0605: the log cannot be written"), "it never said why");
    let again = lab.command(&["agent", "--config"]).arg(lab.voter_settings(2)).output().expect("it starts");
    let said = said(&again);
    println!("started on the full disk: {} {said}", again.status);
    assert!(!again.status.success() && said.contains("LW0605"), "{said}");
    assert!(!data.join("state.bad-0").exists(), "a full disk is no damage: what is moved aside fills it further");
    small.free();
    lab.kill_voter(2);
    lab.start_voter(2);
    eventually("writes are taken", async || acquire(&lab, &mut held).status.success()).await;
    let wanted = held.len();
    println!("disk full: {wanted} leases were granted");
    for voter in 0..3 {
        let all = async |lab: &Lab| {
            let leases = lab.list_at(voter, "/v1/leases?consistency=stale").await?;
            let has = |(name, token): &(String, String)| {
                leases.iter().any(|lease| lease["name"] == name.as_str() && lease["token"] == token.as_str())
            };
            Some(held.iter().all(has))
        };
        lab.until("every voter has every lease that was granted", all, true).await;
    }
    // It may lead again.
    eventually("n3 leads again", async || transfer(&lab, "n3") && lab.leader().await == 2).await;
    eventually("and takes writes", async || acquire(&lab, &mut held).status.success()).await;
}

/// Puts a directory elsewhere, under its old name.
fn relocate(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
    fs::remove_dir_all(from).expect("removed");
    std::os::unix::fs::symlink(to, from).expect("linked");
}

#[tokio::test]
async fn a_machine_with_a_full_disk_keeps_what_runs_and_what_it_cannot_start_goes_elsewhere() {
    let Some(small) = Small::mount(16) else { return };
    let Some(mut story) = Story::planned(Plan::default()).await else { return };
    story.lab.kill_machine(0);
    for part in ["m1", "run/m1"] {
        relocate(&story.path(part), &small.path().join(part.replace('/', "-")));
    }
    story.lab.start_machine(0);
    let connected = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
    story.lab.until("all machines are connected", connected, 3).await;
    story.apply(&[], "candidates = [\"m1\", \"m2\", \"m3\"]\n[restart]\nbackoff = [\"0s\"]");
    let old = story.next_life(0).await;
    assert_eq!(story.machine().await, 0);

    small.fill();
    let full = boot_ns();
    story.lives_beyond(&old, full + 3 * TTL.as_nanos() as u64).await;
    // What its end frees is enough for its restart in place; or it goes elsewhere.
    let pid = story.server().await["pid"].as_u64().expect("a process") as u32;
    signal(pid, Signal::KILL);
    story.other_life(&old).await;
    // What was never here finds no room for its log.
    let other = story.path("other.toml");
    fs::write(&other, "command = [\"sleep\", \"100000\"]\ncandidates = [\"m1\", \"m2\"]\n").expect("written");
    assert_eq!(story.operate(&["server", "apply", "-f", other.to_str().expect("text")]), 0);
    let server: Value = story.lab.get("/v1/servers/other").await.expect("it is shown");
    assert_eq!(server["machine"], "m2", "{server}");
    let events = story.lab.cli(&["events", "--for", "server/other"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("No space left on device"), "{events}");

    // With room again it is a machine like any other.
    small.free();
    let third = story.path("third.toml");
    fs::write(&third, "command = [\"sleep\", \"100000\"]\ncandidates = [\"m1\"]\n").expect("written");
    assert_eq!(story.operate(&["server", "apply", "-f", third.to_str().expect("text")]), 0);
    assert!(story.stamps.exclusive().len() >= 2);
}
