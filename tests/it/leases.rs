//! Leases as a host program holds them, through the library.

use std::time::Duration;

use leaseward::{Cluster, Lease, LeaseRequest, LostReason};
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, PATIENCE, Plan};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, timeout};

const TTL: Duration = Duration::from_secs(2);

const NAME: &str = "job";

/// Returns a request of another program: it has a connection of its own.
fn request(lab: &Lab, owner: &str) -> LeaseRequest {
    Cluster::with_client(lab.client()).lease(NAME).expect("a name").ttl(TTL).owner(owner)
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn acquired(lab: &Lab, owner: &str) -> Lease {
    within("the lease is granted", request(lab, owner).acquire()).await.expect("it is granted")
}

async fn waited_for(lab: &Lab, by: usize) {
    let waiting = async |lab: &Lab| {
        let lease: Value = lab.get(&format!("/v1/leases/{NAME}")).await?;
        lease["waiting"].as_array().map(Vec::len)
    };
    lab.until(&format!("{by} wait for the lease"), waiting, by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_held_by_one_until_it_is_given_back() {
    let lab = Lab::start(Plan::default()).await;
    let first = acquired(&lab, "first").await;
    first.check().expect("it is held");
    assert!(first.remaining() <= TTL);
    assert!(!first.cancelled().is_cancelled());
    assert!(request(&lab, "second").try_acquire().await.expect("an answer").is_none(), "two hold it");
    let soon = request(&lab, "second").acquire_timeout(Duration::from_millis(300)).await;
    assert!(matches!(soon, Err(leaseward::Error::NotGranted)), "{soon:?}");

    assert_eq!(first.hold(async { 5 }).await.expect("it is held meanwhile"), 5);
    let (token, cancelled) = (first.token(), first.cancelled());
    first.release().await.expect("it is given back");
    assert!(cancelled.is_cancelled());
    let second = request(&lab, "second").try_acquire().await.expect("an answer").expect("it is free at once");
    assert!(second.token() > token, "a token is never given twice");

    // Somebody takes it away: whoever works under it hears of it.
    let revoked = lab.cli(&["lease", "revoke", NAME, "--yes"]);
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let lost = within("it is told", second.hold(std::future::pending::<()>())).await.expect_err("it is lost");
    assert_eq!((lost.reason, lost.token), (LostReason::Revoked, second.token()));
    assert!(second.check().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_lost_here_before_anybody_else_can_have_it() {
    let lab = Lab::start(Plan::default()).await;
    let first = acquired(&lab, "first").await;
    let waiting = request(&lab, "second");
    let second = tokio::spawn(async move { (waiting.acquire().await, boot_ns()) });
    waited_for(&lab, 1).await;
    for voter in 0..3 {
        lab.signal_voter(voter, Signal::STOP);
    }
    let stopped = Instant::now();
    let lost = within("the lease is lost", first.lost()).await;
    let (after, lost_at) = (stopped.elapsed(), boot_ns());
    println!("voters stopped: lost() after {after:?}");
    assert_eq!(lost.reason, LostReason::Expired);
    assert!(after < TTL, "lost() came after {after:?}, when another could have had it");
    within("those who only have the token hear of it", first.cancelled().cancelled()).await;
    // check() is exact: the stop budget is still the holder's.
    while first.check().is_ok() {
        assert!(stopped.elapsed() < TTL, "it believes in a lease that could be another's");
        tokio::time::sleep(first.remaining()).await;
    }
    assert!(!second.is_finished());
    drop(first);
    for voter in 0..3 {
        lab.signal_voter(voter, Signal::CONT);
    }
    let (second, granted_at) = within("the next one gets it", second).await.expect("no panic");
    let second = second.expect("it is granted");
    assert!(granted_at > lost_at);
    assert!(second.token() > lost.token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_its_leader() {
    let mut lab = Lab::start(Plan::default()).await;
    let lease = acquired(&lab, "steady").await;
    let cancelled = lease.cancelled();
    for _ in 0..2 {
        let leader = lab.leader().await;
        lab.kill_voter(leader);
        let killed = Instant::now();
        let standing = lease.standing();
        let before = standing.borrow().renewals;
        // Answered renewals after the old leader's death: at least its first was sent to a new one.
        let look = async |_: &Lab| {
            lease.check().expect("a change of leaders loses no lease");
            let renewed = standing.borrow().renewals >= before + 3;
            (renewed && killed.elapsed() > TTL).then_some(())
        };
        lab.until_some("it is renewed under a new leader", look).await;
        lab.start_voter(leader);
    }
    assert!(!cancelled.is_cancelled());
    let shown: Value = lab.get(&format!("/v1/leases/{NAME}")).await.expect("it is held");
    assert_eq!(shown["token"], lease.token().to_string(), "under the token it was granted with");
    lease.release().await.expect("it is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_longest_is_next() {
    let lab = Lab::start(Plan::default()).await;
    let mut holder = acquired(&lab, "w0").await;
    let mut waiters = Vec::new();
    for i in 1..=4 {
        let request = request(&lab, &format!("w{i}"));
        waiters.push(tokio::spawn(request.acquire()));
        waited_for(&lab, i).await;
    }
    for (i, waiter) in waiters.into_iter().enumerate() {
        let before = holder.token();
        let released = Instant::now();
        holder.release().await.expect("it is given back");
        holder = within("the next one gets it", waiter).await.expect("no panic").expect("it is granted");
        println!("handed over in {:?}", released.elapsed());
        assert!(holder.token() > before);
        waited_for(&lab, 3 - i).await;
    }
}
