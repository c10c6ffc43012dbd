//! etcd with a watcher on each member that writes what it hears to files: what etcd and confd do together.
//!
//! Must stay true: it is served better than confd serves it. The watcher writes exactly the files that changed, at once and
//! without syncing them; whoever puts is told which files those are and need not look, and starts no process. Files that
//! etcd does not take (1.5 MB in a request) are left out, and said to be.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leaseward_state::config::Digest;
use leaseward_sync::digest_of;
use leaseward_tests::PATIENCE;
use leaseward_tests::hosts::{HOSTS, Hosts};
use serde_json::{Value, json};
use tokio::time::Instant;

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// Bytes of files in one transaction: etcd takes 1.5 MB with everything around them.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Files in one transaction: etcd takes 128 operations.
const FILES_AT_ONCE: usize = 100;

/// The file that says which version this is. Put last.
pub(crate) const MARK: &str = "VERSION";

/// Three etcd nodes beside the agents.
pub(crate) struct Etcd {
    servers: Vec<Child>,
    dir: PathBuf,
    /// What was put, by path.
    known: HashMap<String, Digest>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
    }
}

fn url(hosts: &Hosts, host: usize, port: u16) -> String {
    format!("http://{}:{port}", hosts.network().v4(1 + host as u8))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

impl Etcd {
    /// Starts the nodes and a watcher on each host; `None` if there is no etcd on this machine.
    pub(crate) fn start(hosts: &Hosts) -> Option<Self> {
        Command::new("etcd").arg("--version").stdout(Stdio::null()).status().ok()?;
        let dir = hosts.dir().join("etcd");
        let all: Vec<String> =
            HOSTS.iter().enumerate().map(|(i, host)| format!("{host}={}", url(hosts, i, PEERS))).collect();
        let mut etcd = Self { servers: Vec::new(), dir, known: HashMap::new() };
        for (i, host) in HOSTS.iter().enumerate() {
            fs::create_dir_all(etcd.dir.join(host)).expect("a directory");
            let (clients, peers) = (url(hosts, i, CLIENTS), url(hosts, i, PEERS));
            let mut command = hosts.network().command(host, Path::new("etcd"));
            command.args(["--name", host, "--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.arg("--data-dir").arg(etcd.dir.join(format!("{host}.etcd")));
            etcd.servers.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts"));
        }
        for (i, host) in HOSTS.iter().enumerate() {
            let (own, to) = (url(hosts, i, CLIENTS), etcd.dir.join(host));
            hosts.network().within(host, || {
                runtime().block_on(until_healthy(&own));
                // A thread is born into the network of the one that makes it.
                std::thread::spawn(move || runtime().block_on(watch(&own, &to)));
            });
        }
        Some(etcd)
    }

    /// Puts the files that are not as they were put last, and waits until every member has written them. Returns how long it
    /// took, and how many files etcd does not take.
    pub(crate) fn publish(&mut self, hosts: &Hosts, from: &str, source: &Path, mark: &str) -> (Instant, usize) {
        let mut changed = Vec::new();
        let mut refused = 0;
        for path in files_below(source) {
            let bytes = fs::read(source.join(&path)).expect("readable");
            let digest = digest_of(&bytes);
            if bytes.len() > BYTES_AT_ONCE {
                refused += 1;
            } else if path != MARK && self.known.insert(path.clone(), digest) != Some(digest) {
                changed.push((path, bytes));
            }
        }
        changed.push((MARK.to_owned(), mark.as_bytes().to_vec()));
        let requests = requests(&changed);
        let began = Instant::now();
        let to = url(hosts, 0, CLIENTS);
        hosts.network().within(from, || runtime().block_on(put(&to, &requests)));
        let marks: Vec<PathBuf> = HOSTS.iter().map(|host| self.dir.join(host).join(MARK)).collect();
        while !marks.iter().all(|path| fs::read_to_string(path).is_ok_and(|found| found == mark)) {
            assert!(began.elapsed() < PATIENCE, "etcd does not bring it");
            std::thread::sleep(Duration::from_micros(200));
        }
        (began, refused)
    }
}

fn files_below(root: &Path) -> Vec<String> {
    let scanned = leaseward_sync::scan(root).expect("it can be read");
    let entries = scanned.manifest().entries.iter();
    let files = entries.filter(|entry| matches!(entry.node, leaseward_state::config::ManifestNode::File { .. }));
    files.map(|entry| entry.path.clone()).collect()
}

/// Returns the bodies of the transactions.
fn requests(files: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut requests = Vec::new();
    let (mut operations, mut bytes) = (Vec::new(), 0);
    let body = |operations: &[Value]| json!({ "success": operations }).to_string();
    for (path, content) in files {
        if !operations.is_empty() && (bytes + content.len() > BYTES_AT_ONCE || operations.len() >= FILES_AT_ONCE) {
            requests.push(body(&operations));
            (operations, bytes) = (Vec::new(), 0);
        }
        bytes += content.len();
        operations.push(json!({ "requestPut": { "key": STANDARD.encode(path), "value": STANDARD.encode(content) } }));
    }
    requests.push(body(&operations));
    requests
}

async fn until_healthy(url: &str) {
    let begun = Instant::now();
    loop {
        if let Ok(answer) = reqwest::get(format!("{url}/health")).await
            && answer.text().await.is_ok_and(|text| text.contains("\"true\""))
        {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "etcd does not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn put(url: &str, requests: &[String]) {
    let client = reqwest::Client::new();
    for body in requests {
        let answer = client.post(format!("{url}/v3/kv/txn")).body(body.clone()).send().await.expect("etcd answers");
        let status = answer.status();
        let said = answer.text().await.unwrap_or_default();
        assert!(status.is_success() && said.contains("\"succeeded\":true"), "etcd refuses: {said}");
    }
}

/// Writes what is put, until etcd is gone.
async fn watch(url: &str, to: &Path) {
    // Every key: from the least one, without an end.
    let ask = json!({ "create_request": { "key": STANDARD.encode([0]), "range_end": STANDARD.encode([0]) } });
    let answer = reqwest::Client::new().post(format!("{url}/v3/watch")).body(ask.to_string()).send().await;
    let Ok(mut answer) = answer else { return };
    let mut pending = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        pending.extend_from_slice(&piece);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let said: Value = serde_json::from_slice(&line).expect("etcd speaks JSON");
            for event in said["result"]["events"].as_array().into_iter().flatten() {
                write(to, &event["kv"]);
            }
        }
    }
}

fn write(to: &Path, kv: &Value) {
    let text = |name: &str| STANDARD.decode(kv[name].as_str().unwrap_or_default()).expect("base64");
    let path = to.join(String::from_utf8(text("key")).expect("a path"));
    fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
    let new = path.with_added_extension("new");
    fs::write(&new, text("value")).expect("written");
    fs::rename(&new, &path).expect("renamed");
}
