//! Agreeing: proposals, renewals, elections, members.

use std::time::Duration;

use leaseward_raft::net::wire::{Ask, MemberChange, Renewal, Renewed};
use leaseward_raft::{Replica, Start};
use leaseward_state::propose::Propose;
use leaseward_state::{LeaseName, Reply, Request, RequestKey, Revision};
use tokio::time::{Instant, sleep, timeout};

use crate::nodes::{Cluster, PATIENCE, acquire, eventually, open, open_session};

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
        assert_eq!(again, committed, "the same request is the same answer, under the same revision");
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

/// Rule R4: counted from the last word of its voters to the old leader, not from the election, and never too early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_ends_nobody_before_its_time() {
    const TTL: Duration = Duration::from_millis(1_000);
    let mut cluster = Cluster::of(3).await;
    for round in 0..5 {
        let leader = cluster.leader().await;
        // Its voters have all heard the leader, a while ago: what comes now must be noted, too.
        cluster.node(leader).read().await.expect("readable");
        sleep(TTL * 4 / 10).await;
        let asked = Instant::now();
        let session = open_session(cluster.node(leader), TTL.as_millis() as u64).await;
        // Only opened by the old leader, or renewed later; its time has just begun, or is nearly over.
        let mut sent = asked;
        if round % 2 == 1 {
            sleep(TTL * 4 / 10).await;
            let renewal = Renewal { session, known: Revision(0) };
            sent = Instant::now();
            let renewed = cluster.node(leader).renew(vec![renewal]).await.expect("it leads");
            assert!(matches!(renewed[0], Renewed::Alive { .. }));
        }
        if round > 2 {
            sleep(TTL * 7 / 10).await;
        }
        let (led, died) = (cluster.node(leader).leading().is_some(), Instant::now());
        cluster.stop(leader).await;
        let next = cluster.leader().await;
        let mut published = cluster.node(next).published();
        let over = published.wait_for(|p| p.state.session(session).is_none());
        timeout(PATIENCE, over).await.expect("it ends").expect("on");
        let (lived, listened) = (sent.elapsed(), died.elapsed());
        println!("round {round}: it ended {lived:?} after its renewal, {listened:?} after the leader's end");
        // What its holder believes, by rule R1.
        assert!(lived >= TTL.mul_f64(0.999 / 1.001), "rule R4: it ended {lived:?} after its last renewal");
        // On a busy machine another one may have led by then.
        assert!(
            !led || listened >= TTL / 2,
            "rule R4: it ended {listened:?} after the leader, before anybody could be heard"
        );
        cluster.start(leader).await;
        // At first it leads again in its own term, for all it knows.
        let new = cluster.node(next).node();
        eventually("it follows", || cluster.node(leader).status().leader == Some(new)).await;
    }
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
    let refused =
        Replica::start(cluster.settings(lost), Start::Join { addresses: addresses.clone(), replace: false }).await;
    assert_eq!(refused.err().map(|error| error.code().to_owned()).as_deref(), Some("LW0608"));
    let start = Start::Join { addresses, replace: true };
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
