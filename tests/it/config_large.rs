//! Large files and the command line: what a person's machine needs for them does not grow with them.
//!
//! Must stay true: what is counted is anonymous resident memory, its peak over the whole life of a command.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use leaseward_sync::limits::RENDERED_BYTES_MAX;
use leaseward_tests::{Lab, Plan};
use rand::RngCore as _;

/// Bytes of the large file, which nothing makes smaller.
const LARGE: usize = 64 << 20;

/// What a command may have in memory that lets files pass by, in mebibytes. 5 is usual, and 50 for whoever sends: batches
/// wait for one another.
const PASSING_MAX: u64 = 32;
const SENDING_MAX: u64 = 60;

/// What it may have that encrypts or opens the large file: that file once.
const WHOLE_MAX: u64 = (LARGE as u64 >> 20) + PASSING_MAX;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Returns what a process has in memory of its own, in mebibytes; nothing of one that is gone.
fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// Runs a command that must succeed, its output into a file. Returns the most memory that it had, in mebibytes.
async fn peak(lab: &Lab, words: &[&str], output: &Path) -> u64 {
    let out = File::create(output).expect("a file");
    let mut child = lab.command(words).stdout(out).stderr(Stdio::inherit()).spawn().expect("the binary starts");
    let mut peak = 0;
    let status = loop {
        peak = peak.max(anonymous(child.id()));
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert!(status.success(), "{words:?}: {status}");
    println!("{}: {peak} MiB", words[..2].join(" "));
    assert!(peak > 0, "nobody looked while it ran");
    peak
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_needs_no_memory_of_its_size_where_it_is_published_and_pulled() {
    let lab = Lab::start(Plan { voters: 1, ..Plan::default() }).await;
    let [from, sealed_from, pulled, tar, shown, said] =
        ["from", "sealed", "pulled", "set.tar", "shown", "said"].map(|name| lab.dir().join(name));
    let mut large = vec![0; LARGE];
    rand::thread_rng().fill_bytes(&mut large);
    for dir in [&from, &sealed_from] {
        fs::create_dir(dir).expect("a directory");
        fs::write(dir.join("large"), &large).expect("written");
        fs::write(dir.join("small"), "small").expect("written");
    }

    assert!(peak(&lab, &["config", "publish", "app", "--from", text(&from)], &said).await <= SENDING_MAX);
    assert!(peak(&lab, &["config", "pull", "app", "--to", text(&pulled)], &said).await <= PASSING_MAX);
    assert!(peak(&lab, &["config", "pull", "app", "--tar", text(&tar)], &said).await <= PASSING_MAX);
    assert!(peak(&lab, &["config", "get", "app", "large"], &shown).await <= PASSING_MAX);
    assert!(fs::read(pulled.join("large")).expect("pulled") == large, "other bytes were pulled");
    assert!(fs::read(&shown).expect("shown") == large, "other bytes were shown");
    lab.works(&["config", "publish", "again", "--tar", text(&tar)]);
    let listed = |set: &str| lab.works(&["config", "get", set, "-o", "wide"]);
    assert_eq!(listed("again"), listed("app"), "the tar file holds something else");

    let key = lab.dir().join("key");
    lab.works(&["config", "key", text(&key), "--create"]);
    let fingerprint = lab.works(&["config", "key", text(&key)]);
    lab.works(&["config", "policy", "vault", &format!("key=\"{}\"", fingerprint.trim())]);
    let publish = ["config", "publish", "vault", "--from", text(&sealed_from), "--key", text(&key)];
    assert!(peak(&lab, &publish, &said).await <= WHOLE_MAX);
    let opened = lab.dir().join("opened");
    let pull = ["config", "pull", "vault", "--to", text(&opened), "--key", text(&key)];
    assert!(peak(&lab, &pull, &said).await <= WHOLE_MAX);
    assert!(fs::read(opened.join("large")).expect("opened") == large, "other bytes were opened");
    let opened = lab.dir().join("opened.tar");
    let pull = ["config", "pull", "vault", "--tar", text(&opened), "--key", text(&key)];
    assert!(peak(&lab, &pull, &said).await <= WHOLE_MAX);
    lab.works(&["config", "publish", "third", "--tar", text(&opened)]);
    let modes = |listed: String| listed.replace("600", "644");
    assert_eq!(modes(listed("third")), modes(listed("app")), "what was opened is something else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_secrets_than_a_member_opens_are_refused_before_they_are_read() {
    let lab = Lab::start(Plan { voters: 1, ..Plan::default() }).await;
    let (key, from) = (lab.dir().join("key"), lab.dir().join("from"));
    lab.works(&["config", "key", text(&key), "--create"]);
    let fingerprint = lab.works(&["config", "key", text(&key)]);
    lab.works(&["config", "policy", "vault", &format!("key=\"{}\"", fingerprint.trim())]);
    fs::create_dir(&from).expect("a directory");
    // Nothing is on the disk, and it would take its time to encrypt it.
    for name in ["a", "b"] {
        let file = File::options().write(true).create_new(true).mode(0o600).open(from.join(name)).expect("a file");
        file.set_len(RENDERED_BYTES_MAX / 2 + 1).expect("it has a length");
    }
    let (code, _, why) = lab.run(&["config", "publish", "vault", "--from", text(&from), "--key", text(&key)]);
    assert!(code != Some(0) && why.contains("LW0808") && why.contains(&RENDERED_BYTES_MAX.to_string()), "{why}");
    let sets = lab.works(&["config", "ls", "-o", "json"]);
    assert!(!sets.contains("\"newest\""), "something was published: {sets}");
}
