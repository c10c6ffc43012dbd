//! The nodes of these stories, and what is asked of them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::command::Acquire;
use leaseward_state::propose::Propose;
use leaseward_state::server::ServerSpec;
use leaseward_state::{Command, LeaseName, Reply, Request, ServerName, SessionId};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address")
}

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) nodes: Vec<Option<Replica>>,
    change: fn(&mut Settings),
}

impl Cluster {
    pub(crate) async fn of(count: usize) -> Self {
        Self::with(count, |_| {}).await
    }

    /// As [`Cluster::of`], each node with changed settings.
    pub(crate) async fn with(count: usize, change: fn(&mut Settings)) -> Self {
        let dir = TempDir::new().expect("a directory");
        let addresses: Vec<_> = (0..count).map(|_| free_address()).collect();
        let mut cluster = Self { dir, addresses, nodes: vec![None; count], change };
        for i in 0..count {
            cluster.start(i).await;
        }
        eventually("all vote", || cluster.nodes[0].as_ref().is_some_and(|node| voters(node) == count)).await;
        cluster
    }

    pub(crate) fn settings(&self, i: usize) -> Settings {
        let data: PathBuf = self.dir.path().join(format!("n{i}"));
        let mut settings = Settings {
            timing: Timing::fast(),
            segment_bytes: 256 << 10,
            snapshot_after_bytes: 16 << 10,
            free_bytes_min: 0,
            fatal: Arc::new(|why| panic!("{why}")),
            ..Settings::new(format!("n{i}"), data, self.addresses[i])
        };
        (self.change)(&mut settings);
        settings
    }

    pub(crate) async fn start(&mut self, i: usize) {
        let start = if i == 0 {
            Start::Bootstrap
        } else {
            let addresses = vec![self.addresses[0].to_string()];
            Start::Join { addresses, replace: false }
        };
        let replica = Replica::start(self.settings(i), start).await.expect("it starts");
        self.nodes[i] = Some(replica);
    }

    pub(crate) async fn stop(&mut self, i: usize) {
        if let Some(node) = self.nodes[i].take() {
            node.stop().await;
        }
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Replica)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.as_ref()?)))
    }

    pub(crate) async fn leader(&self) -> usize {
        let start = Instant::now();
        loop {
            if let Some((i, _)) = self.live().find(|(_, node)| node.leading().is_some()) {
                return i;
            }
            assert!(start.elapsed() < PATIENCE, "nobody leads");
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn node(&self, i: usize) -> &Replica {
        self.nodes[i].as_ref().expect("it runs")
    }
}

pub(crate) fn voters(node: &Replica) -> usize {
    node.status().membership.voters.first().map_or(0, std::collections::BTreeSet::len)
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn open(ttl_ms: u64) -> Request {
    Command::OpenSession { name: "test".into(), ttl_ms }.into()
}

pub(crate) async fn open_session(node: &Replica, ttl_ms: u64) -> SessionId {
    match node.propose(open(ttl_ms)).await.expect("committed").reply {
        Reply::Session(id) => id,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn acquire(node: &Replica, session: SessionId, lease: &str) -> Reply {
    let acquire = Acquire {
        lease: LeaseName::new(lease).expect("a name"),
        session,
        holder: "h".into(),
        wait: false,
        priority: 0,
        lock_delay_ms: 0,
        meta: Default::default(),
    };
    node.propose(Command::Acquire(acquire).into()).await.expect("committed").reply
}

/// Defines a server with an environment of so many bytes.
pub(crate) async fn put_server(node: &Replica, name: &str, bytes: usize) {
    let spec = ServerSpec {
        environment: BTreeMap::from([("LONG".to_owned(), "x".repeat(bytes))]),
        ..ServerSpec::new(["true"])
    };
    let server = ServerName::new(name).expect("a name");
    let put = Command::PutServer { server, spec: Box::new(spec), if_version: None };
    let reply = node.propose(put.into()).await.expect("committed").reply;
    assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
}
