//! A cluster that begins with the state of another one.

use leaseward_raft::life::{Life, Meeting};
use leaseward_raft::{Replica, restore};
use leaseward_state::propose::Propose;
use leaseward_state::{Generation, LeaseName, UnixMillis};
use tokio::time::timeout;

use crate::nodes::{Cluster, PATIENCE, acquire, eventually, open, open_session, voters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_directory_begins_a_cluster_that_others_join() {
    let old = Cluster::of(1).await;
    let session = open_session(old.node(0), 60_000).await;
    acquire(old.node(0), session, "a").await;
    let state = old.node(0).read().await.expect("readable").state;
    let token = state.token(&LeaseName::new("a").expect("a name")).expect("granted");
    let life = Life::of(old.node(0).cluster());

    let mut new = Cluster::of(1).await;
    new.stop(0).await;
    let data = new.settings(0).data;
    assert!(restore::claimable(&data).is_err(), "there is something in it");
    std::fs::remove_dir_all(&data).expect("removed");
    restore::claimable(&data).expect("now it is empty");
    let later = life.restored(Generation(1), 77);
    let anew = state.anew(UnixMillis(0)).expect("it was never restored");
    restore::lay_down(&data, later, &anew).expect("written");
    for _ in 0..2 {
        // Once from the snapshot, once from what the first run left.
        new.start(0).await;
        timeout(PATIENCE, new.node(0).ready()).await.expect("it takes part");
        let node = new.node(0).clone();
        let committed = node.propose(open(60_000)).await.expect("committed");
        assert!(committed.revision > anew.revision());
        assert_eq!(node.cluster(), later.id());
        assert_eq!(life.meets(Life::of(node.cluster())), Meeting::Later);
        new.stop(0).await;
    }
    new.start(0).await;
    let node = new.node(0).clone();
    let session = open_session(&node, 60_000).await;
    acquire(&node, session, "b").await;
    let own = node.read().await.expect("readable").state.token(&LeaseName::new("b").expect("a name"));
    assert!(own.expect("granted") > token);

    // Others join it with empty directories, and have everything.
    for _ in 0..2 {
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        new.addresses.push(address.expect("a free port"));
        new.nodes.push(None);
        new.start(new.nodes.len() - 1).await;
    }
    eventually("all three vote", || voters(new.node(0)) == 3).await;
    let joined: &Replica = new.node(2);
    let read = joined.read().await.expect("readable");
    read.state.check_invariants().expect("whole");
    assert_eq!(read.state.generation(), Generation(1));
    assert_eq!(joined.status().membership.nodes[&1].peer_address, new.addresses[0].to_string());
}
