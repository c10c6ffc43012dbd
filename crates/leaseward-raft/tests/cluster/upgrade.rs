//! Nodes of two releases side by side.

use leaseward_raft::net::wire::{Answer, Ask, MemberChange};
use leaseward_raft::{Replica, Settings, Start};
use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::command::Acquire;
use leaseward_state::propose::{NotCommitted, Propose};
use leaseward_state::{Command, LeaseName, Reply, Request, SessionId};
use tokio::time::Instant;

use crate::nodes::{Cluster, PATIENCE, eventually, open_session};

fn newer(lease: &str) -> Request {
    let acquire = Acquire {
        lease: LeaseName::new(lease).expect("a name"),
        session: SessionId(0),
        holder: "h".into(),
        wait: false,
        priority: 0,
        lock_delay_ms: 0,
        meta: Default::default(),
    };
    Command::AcquireOpening { name: "new".into(), ttl_ms: 60_000, acquire }.into()
}

fn older(settings: &mut Settings) {
    settings.feature_level = 0;
}

fn refused(answer: &Answer) -> &str {
    match answer {
        Answer::Failed { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

async fn refusal(node: &Replica, request: Request) -> String {
    match node.propose(request).await {
        Err(NotCommitted::Overloaded(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_begins_at_its_first_nodes_level() {
    let cluster = Cluster::of(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let reply = cluster.node(follower).propose(newer("a")).await.expect("committed").reply;
    assert!(matches!(reply, Reply::Atomic(_)), "{reply:?}");
    let read = cluster.node(follower).read().await.expect("readable");
    assert_eq!(read.state.feature_level(), FEATURE_LEVEL);
}

/// Finishes an upgrade. A leader that was just elected may not answer in time: then it is asked again.
async fn finish(node: &Replica) {
    let began = Instant::now();
    loop {
        match node.ask_self(Ask::Members(MemberChange::FinishUpgrade)).await {
            Answer::Done => return,
            Answer::Failed { code, .. } if code == "LW0501" || code == "LW0502" || code == "LW0612" => {}
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < PATIENCE, "never finished");
    }
}

/// The story of a rolling upgrade: an old cluster, one node after the other is replaced by the new release, and only
/// then may anybody propose what the old release could not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_node_cannot_read_is_proposed_only_after_the_upgrade_is_finished() {
    let mut cluster = Cluster::with(3, older).await;
    let leader = cluster.leader().await;
    open_session(cluster.node(leader), 60_000).await;
    for i in (0..3).filter(|i| *i != leader).chain([leader]) {
        for node in cluster.live().map(|(_, node)| node.clone()).collect::<Vec<_>>() {
            assert!(refusal(&node, newer("a")).await.starts_with("LW0612"), "refused everywhere");
        }
        let answer = cluster.node(i).ask_self(Ask::Members(MemberChange::FinishUpgrade)).await;
        let upgraded = cluster.live().filter(|(_, node)| node.status().feature_level > 0).count();
        if upgraded > 0 {
            assert_eq!(refused(&answer), "LW0612", "a node still runs the old release");
        }
        cluster.stop(i).await;
        let mut settings = cluster.settings(i);
        settings.feature_level = FEATURE_LEVEL;
        cluster.nodes[i] = Some(Replica::start(settings, Start::Bootstrap).await.expect("it starts"));
        tokio::time::timeout(PATIENCE, cluster.node(i).ready()).await.expect("in time");
        cluster.leader().await;
    }
    let node = cluster.node(cluster.leader().await).clone();
    assert!(refusal(&node, newer("a")).await.starts_with("LW0612"), "nobody has said that the upgrade is finished");
    finish(&node).await;
    assert!(matches!(node.propose(newer("a")).await.expect("committed").reply, Reply::Atomic(_)));

    // Now the old release cannot come back, neither with its data nor as a new node.
    let follower = (cluster.leader().await + 1) % 3;
    let copy = cluster.node(follower).clone();
    eventually("it knows", || copy.published().borrow().state.feature_level() == FEATURE_LEVEL).await;
    cluster.stop(follower).await;
    let refused = Replica::start(cluster.settings(follower), Start::Bootstrap).await.err().expect("refused");
    assert_eq!(refused.code(), "LW0601", "{refused}");
    let mut stranger = cluster.settings(follower);
    stranger.data = cluster.dir.path().join("stranger");
    stranger.name = "stranger".into();
    let leader = cluster.leader().await;
    let addresses = vec![cluster.addresses[leader].to_string()];
    let refused = Replica::start(stranger, Start::Join { addresses, replace: false }).await.err().expect("refused");
    assert_eq!(refused.code(), "LW0612", "{refused}");
}
