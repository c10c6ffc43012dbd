//! etcd: three nodes on hosts, and its locks through its JSON gateway.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use crate::history::number;
use crate::hosts::{CLIENT, Hosts};
use crate::{PATIENCE, end_child};

use super::super::lockset::{self, Held};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// How long one question may take that does not wait for a lock.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Its nodes.
pub(super) struct Etcd {
    servers: Vec<Child>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.servers.iter_mut().for_each(end_child);
    }
}

/// Returns its version, if it is installed.
pub(super) fn version() -> Option<String> {
    let output = Command::new("etcd").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.replace(" Version:", ""))
}

fn url(address: IpAddr, port: u16) -> String {
    format!("http://{address}:{port}")
}

/// Returns where clients ask each node.
pub(super) fn endpoints(hosts: &Hosts) -> Vec<String> {
    (0..hosts.names().len()).map(|host| url(hosts.address(host), CLIENTS)).collect()
}

impl Etcd {
    /// Starts a node on each host, with its usual settings, and waits until one leads.
    pub(super) async fn start(hosts: &Hosts) -> Self {
        let names = hosts.names();
        let all = names.iter().enumerate().map(|(i, name)| format!("{name}={}", url(hosts.address(i), PEERS)));
        let all = all.collect::<Vec<_>>().join(",");
        let start = |(i, name): (usize, &&str)| {
            let (clients, peers) = (url(hosts.address(i), CLIENTS), url(hosts.address(i), PEERS));
            let mut command = hosts.network().command(name, Path::new("etcd"));
            command.args(["--name", name, "--initial-cluster", &all, "--initial-cluster-state", "new"]);
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.arg("--data-dir").arg(hosts.own_dir().join("etcd"));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts")
        };
        let etcd = Self { servers: names.iter().enumerate().map(start).collect() };
        let deadline = Instant::now() + PATIENCE;
        while leader(hosts).is_none() {
            assert!(Instant::now() < deadline, "never: etcd has a leader");
            sleep(Duration::from_millis(100)).await;
        }
        etcd
    }
}

/// Returns the node that leads, as most of them say.
pub(super) fn leader(hosts: &Hosts) -> Option<usize> {
    let endpoints = endpoints(hosts);
    hosts.network().within(CLIENT, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let http = client();
            let mut says = Vec::new();
            for endpoint in &endpoints {
                let status = call(&http, endpoint, "maintenance/status", &json!({}), ANSWER_WITHIN).await;
                says.push(status.map(|status| (text(&status["header"]["member_id"]), text(&status["leader"]))));
            }
            let is_leader = |member: &String| {
                says.iter().flatten().filter(|(_, leader)| leader == member).count() > endpoints.len() / 2
            };
            says.iter().position(|said| said.as_ref().is_some_and(|(member, _)| is_leader(member)))
        })
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn client() -> Client {
    Client::builder().no_proxy().connect_timeout(Duration::from_secs(1)).build().expect("a plain client")
}

async fn call(http: &Client, endpoint: &str, what: &str, body: &Value, within: Duration) -> Option<Value> {
    let response = http.post(format!("{endpoint}/v3/{what}")).json(body).timeout(within).send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    response.json().await.ok()
}

/// Its locks, for one client.
pub(super) struct Locks {
    http: Client,
    endpoints: Vec<String>,
    first: usize,
    ttl: Duration,
}

impl Locks {
    /// Returns the locks as a client sees them that asks this node first.
    pub(super) fn new(endpoints: Vec<String>, first: usize, ttl: Duration) -> Self {
        Self { http: client(), endpoints, first, ttl }
    }

    /// Asks one node after the other.
    async fn ask(&self, what: &str, body: &Value) -> Option<(usize, Value)> {
        for i in 0..self.endpoints.len() {
            let node = (self.first + i) % self.endpoints.len();
            if let Some(answer) = call(&self.http, &self.endpoints[node], what, body, ANSWER_WITHIN).await {
                return Some((node, answer));
            }
        }
        None
    }
}

/// A lock that is held under a lease which is kept alive.
pub(super) struct Lock {
    http: Client,
    endpoint: String,
    lease: String,
    key: String,
    token: u64,
    kept: Kept,
}

/// Keeps a lease alive while it lives itself.
struct Kept {
    until: Arc<Mutex<Option<Instant>>>,
    task: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kept {
    fn start(http: Client, endpoints: Vec<String>, first: usize, lease: String, ttl: Duration, sent: Instant) -> Self {
        let until = Arc::new(Mutex::new(Some(sent + ttl)));
        let shared = Arc::clone(&until);
        let keep = async move {
            let mut node = first;
            loop {
                // Counted from the sending: etcd's own client counts from the answer.
                let sent = Instant::now();
                let endpoint = &endpoints[node % endpoints.len()];
                let answer = call(&http, endpoint, "lease/keepalive", &json!({ "ID": lease }), ttl / 2).await;
                match answer.map(|answer| number(&answer["result"]["TTL"]).unwrap_or(0)) {
                    Some(0) => {
                        *shared.lock().expect("no holder of this lock panics") = None;
                        return;
                    }
                    Some(_) => {
                        *shared.lock().expect("no holder of this lock panics") = Some(sent + ttl);
                        sleep_until(sent + ttl / 4).await;
                    }
                    None => {
                        node += 1;
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        };
        Self { until, task: spawn_local(keep).abort_handle() }
    }
}

impl lockset::Locks for Locks {
    type Held = Lock;

    async fn acquire(&self, lease: &str, _: &str, within: Duration) -> Option<Lock> {
        let sent = Instant::now();
        let ask = json!({ "TTL": self.ttl.as_secs() });
        let (node, granted) = self.ask("lease/grant", &ask).await?;
        let id = text(&granted["ID"]);
        let (http, endpoint) = (self.http.clone(), self.endpoints[node].clone());
        let kept = Kept::start(http.clone(), self.endpoints.clone(), node, id.clone(), self.ttl, sent);
        let ask = json!({ "name": STANDARD.encode(lease), "lease": id });
        let mut lock = Lock { http, endpoint, lease: id, key: String::new(), token: 0, kept };
        if let Some(locked) = call(&self.http, &lock.endpoint, "lock/lock", &ask, within).await {
            lock.key = text(&locked["key"]);
            let found = self.ask("kv/range", &json!({ "key": lock.key })).await;
            let created = found.and_then(|(_, found)| number(&found["kvs"][0]["create_revision"]));
            if let Some(token) = created {
                lock.token = token;
                return Some(lock);
            }
        }
        lock.release().await;
        None
    }
}

impl Held for Lock {
    fn token(&self) -> u64 {
        self.token
    }

    fn remaining(&self) -> Duration {
        let until = *self.kept.until.lock().expect("no holder of this lock panics");
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    async fn release(self) {
        // The end of the lease ends the lock, too.
        call(&self.http, &self.endpoint, "lease/revoke", &json!({ "ID": self.lease }), ANSWER_WITHIN).await;
    }
}
