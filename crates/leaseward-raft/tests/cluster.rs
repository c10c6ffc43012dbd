//! Three nodes in one process, with real disks and real sockets.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::net::wire::{Ask, MemberChange, Renewal, Renewed};
use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::command::Acquire;
use leaseward_state::propose::Propose;
use leaseward_state::{Command, LeaseName, Reply, Request, RequestKey, Revision, SessionId};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address")
}

struct Cluster {
    dir: TempDir,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Option<Replica>>,
}

impl Cluster {
    async fn of(count: usize) -> Self {
        let dir = TempDir::new().expect("a directory");
        let addresses: Vec<_> = (0..count).map(|_| free_address()).collect();
        let mut cluster = Self { dir, addresses, nodes: vec![None; count] };
        for i in 0..count {
            cluster.start(i).await;
        }
        eventually("all vote", || cluster.nodes[0].as_ref().is_some_and(|node| voters(node) == count)).await;
        cluster
    }

    fn settings(&self, i: usize) -> Settings {
        let data: PathBuf = self.dir.path().join(format!("n{i}"));
        Settings {
            timing: Timing::fast(),
            segment_bytes: 256 << 10,
            snapshot_after_bytes: 16 << 10,
            free_bytes_min: 0,
            fatal: Arc::new(|why| panic!("{why}")),
            ..Settings::new(format!("n{i}"), data, self.addresses[i])
        }
    }

    async fn start(&mut self, i: usize) {
        let start = if i == 0 {
            Start::Bootstrap
        } else {
            let addresses = vec![self.addresses[0].to_string()];
            Start::Join { addresses, voter: true, replace: false }
        };
        let replica = Replica::start(self.settings(i), start).await.expect("it starts");
        self.nodes[i] = Some(replica);
    }

    async fn stop(&mut self, i: usize) {
        if let Some(node) = self.nodes[i].take() {
            node.stop().await;
        }
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Replica)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.as_ref()?)))
    }

    async fn leader(&self) -> usize {
        let start = Instant::now();
        loop {
            if let Some((i, _)) = self.live().find(|(_, node)| node.leading().is_some()) {
                return i;
            }
            assert!(start.elapsed() < PATIENCE, "nobody leads");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn node(&self, i: usize) -> &Replica {
        self.nodes[i].as_ref().expect("it runs")
    }
}

fn voters(node: &Replica) -> usize {
    node.status().membership.voters.first().map_or(0, std::collections::BTreeSet::len)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn open(ttl_ms: u64) -> Request {
    Command::OpenSession { name: "test".into(), ttl_ms }.into()
}

async fn open_session(node: &Replica, ttl_ms: u64) -> SessionId {
    match node.propose(open(ttl_ms)).await.expect("committed").reply {
        Reply::Session(id) => id,
        other => panic!("{other:?}"),
    }
}

async fn acquire(node: &Replica, session: SessionId, lease: &str) -> Reply {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_and_a_follower_forwards() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let session = open_session(cluster.node(follower), 60_000).await;
    assert!(matches!(acquire(cluster.node(follower), session, "a").await, Reply::Granted { .. }));
    let read = cluster.node((leader + 2) % 3).read().await.expect("readable");
    assert!(read.state.token(&LeaseName::new("a").expect("a name")).is_some(), "a read anywhere sees the grant");
    read.state.check_invariants().expect("whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_while_the_leader_dies_is_applied_exactly_once() {
    let mut cluster = Cluster::of(3).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let node = cluster.node(follower).clone();
        let key = RequestKey { client: 7, sequence: round };
        let request = Request { key: Some(key), named: false, command: open(60_000).command };
        let before = node.read().await.expect("readable").state.sessions().count();
        let in_flight = {
            let (node, request) = (node.clone(), request.clone());
            tokio::spawn(async move { node.propose(request).await })
        };
        let began = Instant::now();
        cluster.stop(leader).await;
        let committed = timeout(PATIENCE, in_flight).await.expect("in time").expect("no panic").expect("committed");
        println!("answered {:?} after the leader's death", began.elapsed());
        let again = node.propose(request).await.expect("committed");
        assert_eq!(again.reply, committed.reply, "the same request is the same answer");
        let after = node.read().await.expect("readable").state.sessions().count();
        assert_eq!(after, before + 1, "applied once");
        cluster.start(leader).await;
        let back = cluster.node(leader).clone();
        timeout(PATIENCE, back.ready()).await.expect("it comes back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lives_while_it_is_renewed_and_ends_exactly_when_it_is_not() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader).clone();
    let session = open_session(&node, 400).await;
    let renewal = Renewal { session, known: Revision(0) };
    for _ in 0..6 {
        let renewed = node.renew(vec![renewal.clone()]).await.expect("it leads");
        assert!(matches!(renewed[0], Renewed::Alive { .. }));
        sleep(Duration::from_millis(200)).await;
    }
    let sent = Instant::now();
    node.renew(vec![renewal.clone()]).await.expect("it leads");
    let mut published = node.published();
    timeout(PATIENCE, published.wait_for(|p| p.state.session(session).is_none())).await.expect("it ends").expect("on");
    let lived = sent.elapsed();
    assert!(lived >= Duration::from_millis(400), "it ended {lived:?} after its last renewal, before its time");
    println!("overshoot {:?}", lived - Duration::from_millis(400));
    assert!(matches!(node.renew(vec![renewal]).await.expect("it leads")[0], Renewed::Over));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_gives_everybody_their_whole_time() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let session = open_session(cluster.node(leader), 1_000).await;
    sleep(Duration::from_millis(700)).await;
    cluster.stop(leader).await;
    let next = cluster.leader().await;
    let elected = Instant::now();
    let node = cluster.node(next).clone();
    let mut published = node.published();
    timeout(PATIENCE, published.wait_for(|p| p.state.session(session).is_none())).await.expect("it ends").expect("on");
    let lived = elected.elapsed();
    assert!(lived >= Duration::from_millis(950), "rule R4: it ended {lived:?} after the election");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_restart_of_all_nodes_and_logs_are_purged() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let session = open_session(cluster.node(leader), 3_600_000).await;
    for i in 0..400 {
        let reply = acquire(cluster.node(leader), session, &format!("lease/{i}")).await;
        assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    }
    eventually("a snapshot", || cluster.live().all(|(_, node)| node.status().snapshot_index > 0)).await;
    let before = cluster.node(leader).read().await.expect("readable").state.revision();
    for i in 0..3 {
        cluster.stop(i).await;
    }
    for i in 0..3 {
        cluster.start(i).await;
    }
    let leader = cluster.leader().await;
    let state = cluster.node(leader).read().await.expect("readable").state;
    assert!(state.revision() >= before);
    assert_eq!(state.leases().count(), 400);
    state.check_invariants().expect("whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_a_voter_whose_disk_is_gone_is_replaced() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let began = Instant::now();
    let answer = cluster.node(leader).ask_self(Ask::Members(MemberChange::Transfer(None))).await;
    println!("handed over in {:?}: {answer:?}", began.elapsed());
    eventually("another one leads", || cluster.live().any(|(i, node)| i != leader && node.leading().is_some())).await;

    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let old_id = cluster.node(lost).node();
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.settings(lost).data).expect("removed");
    let addresses = vec![cluster.addresses[leader].to_string()];
    let refused = Replica::start(
        cluster.settings(lost),
        Start::Join { addresses: addresses.clone(), voter: true, replace: false },
    )
    .await;
    assert_eq!(refused.err().map(|error| error.code().to_owned()).as_deref(), Some("LW0608"));
    let start = Start::Join { addresses, voter: true, replace: true };
    cluster.nodes[lost] = Some(Replica::start(cluster.settings(lost), start).await.expect("it starts"));
    let new_id = cluster.node(lost).node();
    assert_ne!(old_id, new_id, "a fresh id for a fresh disk");
    eventually("the new one votes and the old one is gone", || {
        let membership = cluster.node(leader).status().membership;
        membership.voters.len() == 1
            && membership.voters[0].contains(&new_id)
            && !membership.nodes.contains_key(&old_id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_data_directory_is_recognised_and_takes_no_part() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let data = cluster.settings(victim).data;
    cluster.stop(victim).await;
    let backup = cluster.dir.path().join("backup");
    copy_tree(&data, &backup);
    cluster.start(victim).await;
    timeout(PATIENCE, cluster.node(victim).ready()).await.expect("it comes back");
    let session = open_session(cluster.node(leader), 3_600_000).await;
    for i in 0..20 {
        acquire(cluster.node(leader), session, &format!("after/{i}")).await;
    }
    let last = cluster.node(leader).status().last_index;
    eventually("the victim acknowledged them", || cluster.node(victim).status().last_index >= last).await;
    // A confirmation round carries to everybody what the leader knows of everybody.
    sleep(Duration::from_millis(100)).await;
    cluster.node(leader).read().await.expect("readable");
    cluster.stop(victim).await;
    std::fs::remove_dir_all(&data).expect("removed");
    copy_tree(&backup, &data);
    cluster.start(victim).await;
    eventually("it is quarantined", || cluster.node(victim).status().quarantined.is_some()).await;
    assert!(timeout(Duration::from_millis(500), cluster.node(victim).ready()).await.is_err(), "it takes no part");
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("typed").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
