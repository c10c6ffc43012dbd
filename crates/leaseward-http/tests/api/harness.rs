//! Starts nodes with their APIs, and asks them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use leaseward_http::{Api, Base, Content, ContentError, Ready};
use leaseward_raft::{Later, Replica, Settings, Start, Timing};
use leaseward_state::command::OpenMachine;
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::{Digest, Manifest};
use leaseward_state::machine::MachineProfile;
use leaseward_state::propose::Propose;
use leaseward_state::server::FenceLevel;
use leaseward_state::session::Incarnation;
use leaseward_state::{Command, MachineName, Reply, SessionId, SetName};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A content store in memory that counts as a quorum.
#[derive(Default)]
pub(crate) struct Memory {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// What is said to be the newest version when a set is to keep fewer; the last one again and again.
    pub(crate) newest: Mutex<Vec<u64>>,
    /// How often it was asked to have a version ready on a quorum.
    pub(crate) readied: AtomicU64,
    /// How few versions it was asked about.
    pub(crate) keeps: Mutex<Vec<u32>>,
}

impl Memory {
    pub(crate) fn forget(&self, digest: Digest) {
        self.blobs.lock().unwrap().remove(&digest);
    }
}

fn failed(code: &str, why: String) -> ContentError {
    ContentError { code: code.to_owned(), why }
}

impl Content for Memory {
    fn adopt(&self, set: SetName, machine: MachineName) -> Later<'_, Result<Digest, ContentError>> {
        // No machine of these tests has a disk: whatever was published stands there.
        let known = self.blobs.lock().unwrap();
        let found = known.iter().find(|(_, bytes)| leaseward_sync::manifest::decode(bytes).is_ok());
        let found = found.map(|(digest, _)| *digest).ok_or_else(|| failed("LW0404", format!("{set} on {machine}")));
        Box::pin(async move { found })
    }

    fn may_keep(&self, _: SetName, keep: u32) -> Later<'_, Result<u64, ContentError>> {
        self.keeps.lock().unwrap().push(keep);
        let mut newest = self.newest.lock().unwrap();
        let said = if newest.len() > 1 { newest.remove(0) } else { newest.first().copied().unwrap_or_default() };
        Box::pin(async move { Ok(said) })
    }

    fn lacking(&self, digests: Vec<Digest>) -> Later<'_, Result<Vec<Digest>, ContentError>> {
        let known = self.blobs.lock().unwrap();
        let missing = digests.into_iter().filter(|digest| !known.contains_key(digest)).collect();
        Box::pin(async move { Ok(missing) })
    }

    fn get(&self, digest: Digest) -> Later<'_, Result<Option<Vec<u8>>, ContentError>> {
        let found = self.blobs.lock().unwrap().get(&digest).cloned();
        Box::pin(async move { Ok(found) })
    }

    fn keep(&self, frames: Vec<(Digest, Bytes)>) -> Later<'_, Result<(), ContentError>> {
        Box::pin(async move {
            for (digest, frame) in frames {
                let plain = leaseward_sync::frame::unpack(digest, &frame, Path::new("given frame"))
                    .map_err(|error| failed(error.code(), error.to_string()))?;
                self.blobs.lock().unwrap().insert(digest, plain);
            }
            Ok(())
        })
    }

    fn ready(&self, base: Base, manifest: Digest) -> Later<'_, Result<Ready, ContentError>> {
        self.readied.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let known = self.blobs.lock().unwrap();
            let bytes = known.get(&manifest).ok_or_else(|| failed("LW0801", format!("{manifest} is not here")))?;
            let tree = leaseward_sync::manifest::decode(bytes).map_err(|e| failed(e.code(), e.to_string()))?;
            let fresh = leaseward_sync::delta::only_in(&tree, &Manifest::default());
            let missing = fresh.iter().filter(|chunk| !known.contains_key(&chunk.digest)).count();
            if missing > 0 {
                return Err(failed("LW0801", format!("{missing} of {} blobs are nowhere", fresh.len())));
            }
            let (files, bytes) = tree.totals();
            let delta = match base {
                Base::Version(base, _) => Some(InlineDelta { base, bytes: vec![1].into() }),
                Base::Whole | Base::Empty => None,
            };
            Ok(Ready { files, bytes, delta })
        })
    }
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Replica>,
    pub(crate) content: Arc<Memory>,
    addresses: Vec<SocketAddr>,
    client: reqwest::Client,
    _dir: TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Returns the object, if the answer is this one.
    #[track_caller]
    pub(crate) fn ok(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// Returns the problem, if it is this one.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("https://leaseward.dev/errors/{code}"));
        assert!(problem["instance"].as_str().is_some_and(|id| id.starts_with("urn:leaseward:request:")), "{problem}");
        assert!(problem["do"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
        problem
    }
}

/// Returns an address that nobody listens on: from below the ports that the kernel hands out, so that nobody gets it.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 20_000) as u16;
    loop {
        let port = 10_000 + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 22_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl Cluster {
    pub(crate) async fn of(count: usize) -> Self {
        Self::of_level(count, leaseward_state::apply::feature::FEATURE_LEVEL).await
    }

    /// Returns a cluster of a release that knows this feature level.
    pub(crate) async fn of_level(count: usize, feature_level: u32) -> Self {
        let dir = TempDir::new().unwrap();
        let peers: Vec<_> = (0..count).map(|_| free_address()).collect();
        let content = Arc::new(Memory::default());
        let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
        for (i, peer) in peers.iter().enumerate() {
            let settings = Settings {
                timing: Timing::fast(),
                feature_level,
                segment_bytes: 256 << 10,
                free_bytes_min: 0,
                fatal: Arc::new(|why| panic!("{why}")),
                ..Settings::new(format!("n{}", i + 1), dir.path().join(format!("n{i}")), *peer)
            };
            let start = match i {
                0 => Start::Bootstrap,
                _ => Start::Join { addresses: vec![peers[0].to_string()], replace: false },
            };
            let replica = Replica::start(settings, start).await.unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(leaseward_http::serve(listener, Api::new(replica.clone(), Arc::clone(&content) as _)));
            nodes.push(replica);
        }
        let cluster = Self { nodes, content, addresses, client: reqwest::Client::new(), _dir: dir };
        let odd = if count.is_multiple_of(2) { count - 1 } else { count };
        let all_in = |node: &Replica| voters(node) == odd && node.status().membership.nodes.len() == count;
        eventually("an odd number votes", || cluster.nodes.iter().all(all_in)).await;
        for node in &cluster.nodes {
            timeout(PATIENCE, node.ready()).await.expect("it takes part");
        }
        cluster.leader().await;
        cluster
    }

    /// Returns the leader, once there is one.
    pub(crate) async fn leader(&self) -> usize {
        eventually("somebody leads", || self.nodes.iter().any(|node| node.leading().is_some())).await;
        self.nodes.iter().position(|node| node.leading().is_some()).expect("it led just now")
    }

    pub(crate) fn url(&self, node: usize, path: &str) -> String {
        format!("http://{}{path}", self.addresses[node])
    }

    pub(crate) fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node]
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.request_at(0, method, path)
    }

    pub(crate) fn request_at(&self, node: usize, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), self.url(node, path))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(self.request("GET", path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        ask(self.request("DELETE", path)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        ask(self.request("PUT", path).json(&body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        ask(self.request("POST", path).json(&body)).await
    }

    /// Opens a session that outlives any test.
    pub(crate) async fn session(&self, name: &str) -> String {
        let session = self.post("/v1/sessions", json!({ "name": name, "ttl": "1h" })).await.ok(201);
        session["id"].as_str().expect("sessions are text").to_owned()
    }

    /// Lets a machine's agent appear.
    pub(crate) async fn machine(&self, name: &str) -> SessionId {
        let open = OpenMachine {
            machine: MachineName::new(name).unwrap(),
            incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
            profile: MachineProfile {
                labels: BTreeMap::from([("rack".into(), "a".into())]),
                fence: FenceLevel::F2,
                address: "10.0.0.1".into(),
                version: "1".into(),
                capacity: None,
                start_slots: 0,
                watchdog_ms: None,
            },
            swept: true,
            ttl_ms: 3_600_000,
        };
        match self.nodes[0].propose(Command::OpenMachine(open).into()).await.unwrap().reply {
            Reply::Session(session) => session,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn ask(request: RequestBuilder) -> Answer {
    let answer = timeout(PATIENCE, request.send()).await.expect("in time").expect("an answer");
    let (status, headers) = (answer.status(), answer.headers().clone());
    assert!(headers.contains_key("leaseward-revision"), "{headers:?}");
    assert!(headers.contains_key("leaseward-leader"), "{headers:?}");
    assert!(headers.contains_key("leaseward-staleness-ms"), "{headers:?}");
    assert!(headers.contains_key("leaseward-served-by"), "{headers:?}");
    let text = timeout(PATIENCE, answer.text()).await.expect("in time").expect("a body");
    Answer { status, headers, text }
}

fn voters(node: &Replica) -> usize {
    node.status().membership.voters.first().map_or(0, std::collections::BTreeSet::len)
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
