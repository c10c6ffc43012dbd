//! How new an answer is, and what is refused because it is too old.

use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use crate::harness::{Answer, Cluster, PATIENCE, ask};

fn staleness(answer: &Answer) -> u64 {
    answer.header("leaseward-staleness-ms").parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_says_how_old_it_is() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for node in 0..3 {
        let at = |path: &str| ask(cluster.request_at(node, "GET", path));
        let answer = at("/v1/leases").await;
        assert_eq!(staleness(&answer), 0, "linearizable");
        assert_eq!(answer.header("leaseward-served-by"), format!("n{}", node + 1));
        assert_eq!(answer.header("leaseward-leader"), format!("n{}", leader + 1));
        assert_eq!(staleness(&at("/v1/leases?consistency=leader&max_staleness=0s").await), 0);
        for path in ["/v1/leases?consistency=stale", "/v1/leases?max_staleness=20s", "/livez", "/metrics", "/v1/nodes"]
        {
            let answer = at(path).await;
            assert!(answer.status.is_success() && staleness(&answer) < 20_000, "{path}: {answer:?}");
        }
        let opened = ask(cluster.request_at(node, "POST", "/v1/sessions").json(&json!({ "name": "x" }))).await;
        assert_eq!(staleness(&opened), 0, "it shows what it has committed");
        for bad in ["2", "soon", ""] {
            at(&format!("/v1/leases?max_staleness={bad}")).await.problem(422, "LW0101");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_fresh_a_read_must_be_is_said_once_and_with_a_value() {
    let cluster = Cluster::of(1).await;
    for unclear in
        ["consistency", "max_staleness", "max_staleness=1s&max_staleness=9s", "consistency=stale&consistency"]
    {
        for path in ["/v1/leases", "/v1/events"] {
            cluster.get(&format!("{path}?{unclear}")).await.problem(422, "LW0101");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_answers_with_503_rather_than_with_something_older() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let (cut_off, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let at = |path: String| ask(cluster.request_at(cut_off, "GET", &path));
    let read = |most: &str| at(format!("/v1/leases?consistency=stale&max_staleness={most}"));
    read("20s").await.ok(200);
    let stopped = Instant::now();
    cluster.nodes[leader].stop().await;
    cluster.nodes[other].stop().await;
    while stopped.elapsed() < PATIENCE {
        let answer = read("300ms").await;
        if answer.status == 503 {
            break;
        }
        assert!(staleness(&answer) <= 1_000, "it was allowed: {answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
    let refused = read("300ms").await;
    assert!(staleness(&refused) > 300, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1");
    let refused = refused.problem(503, "LW0505");
    assert_eq!(refused["retryable"], true);
    assert!(refused["detail"].as_str().unwrap().ends_with("`max_staleness` is 300ms"), "{refused}");
    at("/v1/cluster?max_staleness=300ms".into()).await.problem(503, "LW0505");
    at("/v1/events?max_staleness=300ms".into()).await.problem(503, "LW0505");

    let old = at("/v1/leases?consistency=stale".into()).await;
    assert!(old.status.is_success() && staleness(&old) > 300, "without a bound it answers what it knows: {old:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_follows_grows_stale() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for node in (0..3).filter(|node| *node != leader) {
        cluster.nodes[node].stop().await;
    }
    let stopped = Instant::now();
    while stopped.elapsed() < PATIENCE {
        let answer = ask(cluster.request_at(leader, "GET", "/v1/leases?max_staleness=400ms")).await;
        if answer.status == 503 {
            answer.problem(503, "LW0505");
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("it goes on as if it led");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_page_is_as_old_as_its_list() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    for i in 0..3 {
        cluster.put(&format!("/v1/leases/l{i}"), json!({ "session": session, "holder": "h" })).await.ok(200);
    }
    let first = cluster.get("/v1/leases?limit=1").await.ok(200);
    sleep(Duration::from_millis(120)).await;
    let page = first["next_page"].as_str().unwrap();
    let second = cluster.get(&format!("/v1/leases?limit=1&page={page}")).await;
    assert!(staleness(&second) >= 100, "{second:?}");
    cluster.get(&format!("/v1/leases?limit=1&page={page}&max_staleness=50ms")).await.problem(503, "LW0505");
}
