//! Nodes and the cluster as a whole, seen through a follower.

use leaseward_state::apply::feature::FEATURE_LEVEL;
use serde_json::json;

use crate::harness::{Cluster, ask, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_answers_and_members_change() {
    let cluster = Cluster::of(4).await;
    let leader = cluster.leader().await;
    let votes = |i: usize| cluster.nodes[leader].status().membership.voters[0].contains(&cluster.nodes[i].node());
    let standby = (0..4).find(|i| !votes(*i)).expect("one stands by");
    let mut followers = (0..4).filter(|i| ![leader, standby].contains(i));
    let (follower, third) = (followers.next().unwrap(), followers.next().unwrap());
    let at = |method: &str, path: &str| cluster.request_at(follower, method, path);
    let answer = ask(at("GET", "/v1/cluster")).await;
    assert_eq!(answer.header("leaseward-served-by"), format!("n{}", follower + 1));
    assert_eq!(answer.header("leaseward-leader"), format!("n{}", leader + 1));
    let status = answer.ok(200);
    assert_eq!((&status["health"], &status["leader"]), (&"ok".into(), &format!("n{}", leader + 1).into()), "{status}");
    assert_eq!(status["sentence"], format!("all 3 voters up, n{} leads, 1 may fail", leader + 1));
    assert!(status["voters"].as_array().unwrap().iter().all(|node| node["up"] == true && node["lag"].is_u64()));

    let session = ask(at("POST", "/v1/sessions").json(&json!({ "name": "x", "ttl": "1h" }))).await.ok(201);
    let seen = ask(cluster.request_at(leader, "GET", "/v1/sessions")).await.ok(200);
    assert_eq!(seen["items"][0]["id"], session["id"], "a follower forwards");
    let renewed = ask(at("POST", "/v1/leases:renew").json(&json!({ "sessions": [{ "session": session["id"] }] })));
    assert_eq!(renewed.await.ok(200)["sessions"][0]["alive"], true);
    assert_eq!(ask(at("GET", "/v1/sessions?consistency=stale")).await.ok(200)["items"][0]["id"], session["id"]);
    assert_eq!(ask(at("GET", "/livez")).await.text, "ok\n");
    assert_eq!(ask(at("GET", "/readyz")).await.text, format!("ok, n{} leads\n", leader + 1));

    ask(at("POST", "/v1/nodes/99/promote")).await.problem(404, "LW0404");
    ask(at("POST", "/v1/nodes/x/promote")).await.problem(422, "LW0101");
    let other = cluster.nodes[follower].node();
    ask(at("POST", &format!("/v1/nodes/{other}/demote"))).await.ok(204);
    let nodes = ask(cluster.request_at(leader, "GET", "/v1/nodes")).await.ok(200);
    let role = |id: u64| {
        let all = nodes["items"].as_array().unwrap();
        all.iter().find(|node| node["id"] == id).unwrap()["role"].clone()
    };
    assert_eq!((role(other), role(cluster.nodes[leader].node())), ("learner".into(), "leader".into()));
    // Somebody else votes instead, and it stands by when it may vote again.
    let odd_without = |id: u64| {
        let voters = &cluster.nodes[leader].status().membership.voters;
        voters.len() == 1 && voters[0].len() == 3 && !voters[0].contains(&id)
    };
    eventually("three others vote", || odd_without(other)).await;
    ask(at("POST", &format!("/v1/nodes/{other}/promote"))).await.ok(204);
    let nodes = ask(cluster.request_at(leader, "GET", "/v1/nodes")).await.ok(200);
    let role = |id: u64| {
        let all = nodes["items"].as_array().unwrap();
        all.iter().find(|node| node["id"] == id).unwrap()["role"].clone()
    };
    assert_eq!(role(other), "standby");
    cluster.nodes[standby].stop().await;
    let gone = cluster.nodes[standby].node();
    ask(at("DELETE", &format!("/v1/nodes/{gone}"))).await.ok(204);
    eventually("it votes again", || {
        let voters = &cluster.nodes[leader].status().membership.voters;
        voters.len() == 1 && voters[0].len() == 3 && voters[0].contains(&other)
    })
    .await;
    let nodes = ask(at("GET", "/v1/nodes")).await.ok(200);
    assert_eq!(nodes["items"].as_array().unwrap().len(), 3);

    assert_eq!(nodes["items"][0]["feature_level"], FEATURE_LEVEL);
    ask(at("POST", "/v1/cluster/finish-upgrade")).await.ok(204);
    ask(at("POST", "/v1/cluster/transfer-leader").json(&json!({ "too": 1 }))).await.problem(422, "LW0103");
    ask(at("POST", "/v1/cluster/transfer-leader").json(&json!({ "to": other }))).await.ok(204);
    eventually("the other one leads", || {
        [leader, follower, third].iter().all(|i| cluster.nodes[*i].leader().is_some_and(|(id, _)| id == other))
    })
    .await;

    cluster.nodes[third].stop().await;
    let status = ask(at("GET", "/v1/cluster")).await.ok(200);
    assert_eq!(status["sentence"], "1 of 3 voters down, no further loss allowed", "{status}");
    let needed = cluster.nodes[leader].node();
    ask(at("DELETE", &format!("/v1/nodes/{needed}"))).await.problem(409, "LW0610");
    ask(at("POST", &format!("/v1/nodes/{needed}/demote"))).await.problem(409, "LW0610");
    cluster.nodes[leader].stop().await;
    let status = ask(at("GET", "/v1/cluster")).await.ok(200);
    assert_eq!(status["health"], "down", "{status}");
    let late = ask(at("GET", "/v1/leases").header("leaseward-timeout-ms", "300")).await;
    assert_eq!(late.header("retry-after"), "1");
    late.problem(503, "LW0501");
    ask(at("GET", "/v1/leases?consistency=stale")).await.ok(200);
}
