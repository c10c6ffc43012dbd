//! Why something is as it is: what is said is what the state shows.

use leaseward_state::command::{Assign, Command, ServerReport};
use leaseward_state::config::SyncState;
use leaseward_state::propose::Propose;
use leaseward_state::server::{Cause, ServerStatus};
use leaseward_state::{MachineName, ServerName, SetName};
use serde_json::{Value, json};

use crate::harness::{Cluster, ask};

fn texts(explained: &Value, key: &str) -> Vec<String> {
    let say = |one: &Value| match one.as_str() {
        Some(text) => text.to_owned(),
        None => format!("{}: {}", one["subject"].as_str().unwrap(), one["text"].as_str().unwrap()),
    };
    explained[key].as_array().unwrap().iter().map(say).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_why_it_does_not_run_and_where_it_runs() {
    let cluster = Cluster::of(1).await;
    let explain = || async { cluster.get("/v1/explain/server/pay").await.ok(200) };
    cluster.get("/v1/explain/server/pay").await.problem(404, "LW0404");
    cluster.put("/v1/servers/pay", json!({ "command": ["/bin/true"], "candidates": ["m1", "m9"] })).await.ok(201);
    let session = cluster.machine("m1").await;
    cluster.machine("m2").await;
    cluster.post("/v1/machines/m1/cordon", json!({ "reason": "new disk" })).await.ok(200);

    let nowhere = explain().await;
    assert_eq!(nowhere["name"], "server/pay");
    assert_eq!(nowhere["sentence"], "pay should run and runs NOWHERE: no machine may take it.");
    assert_eq!(
        texts(&nowhere, "facts"),
        [
            "m1: may not take it: cordoned: new disk",
            "m2: may not take it: it is not one of the server's candidates",
            "m9: may not take it: the cluster does not know it",
        ]
    );
    assert_eq!(nowhere["do"][0]["command"], "leaseward machine resume m1");
    assert_eq!(nowhere["events"][0]["text"], "pay v1 defined");

    cluster.post("/v1/machines/m1/resume", json!(null)).await.ok(200);
    assert_eq!(texts(&explain().await, "because"), ["n1 leads and places it; m1 is first"]);

    let (server, machine) = (ServerName::new("pay").unwrap(), MachineName::new("m1").unwrap());
    let node = &cluster.nodes[0];
    let term = node.leading().unwrap();
    let assign =
        Assign { server: server.clone(), machine, session, after: None, fence: None, cause: Cause::Started, term };
    node.propose_internal(Command::Assign(assign).into()).await.unwrap();
    let given = explain().await;
    assert!(given["sentence"].as_str().unwrap().ends_with("m1 has not reported yet."), "{given}");
    let token = node.published().borrow().state.server(&server).unwrap().last_token.unwrap();
    let status = ServerStatus::Unhealthy { pid: 7, why: "503 from /health".into() };
    let report = ServerReport::Status { status, restarts: 2 };
    node.propose(Command::ReportServer { server: server.clone(), token, report }.into()).await.unwrap();
    let unhealthy = explain().await;
    assert!(unhealthy["sentence"].as_str().unwrap().starts_with("pay is UNHEALTHY on m1"), "{unhealthy}");
    assert_eq!(
        texts(&unhealthy, "because"),
        [
            "it was started, by an operator or for the first time",
            "its check says: 503 from /health",
            "it was restarted in place 2 times under this token",
        ]
    );

    node.propose(Command::EndSession { session }.into()).await.unwrap();
    let waits = explain().await;
    assert_eq!(
        waits["sentence"],
        "pay WAITS: the session of m1 is over, and the death of the copy there is not proven yet."
    );
    let because = texts(&waits, "because");
    assert!(because[0].starts_with("the session of m1 ended at revision "), "{because:?}");
    assert!(because[1].starts_with("without a proof the leader waits "), "{because:?}");
    assert!(texts(&waits, "facts").contains(&"m1: may not take it: its agent is not connected".to_owned()), "{waits}");

    cluster.post("/v1/servers/pay/stop", json!(null)).await.ok(202);
    cluster.put("/v1/servers/off", json!({ "command": ["/bin/true"] })).await.ok(201);
    cluster.post("/v1/servers/off/stop", json!(null)).await.ok(202);
    let stopped = cluster.get("/v1/explain/server/off").await.ok(200);
    assert_eq!(stopped["sentence"], "off is stopped.");
    assert_eq!(stopped["do"][0]["command"], "leaseward server start off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_says_who_has_it_and_who_waits() {
    let cluster = Cluster::of(1).await;
    let explain = || async { cluster.get("/v1/explain/lease/batch/nightly").await.ok(200) };
    assert_eq!(explain().await["sentence"], "batch/nightly is free.");
    let (first, second) = (cluster.session("first").await, cluster.session("second").await);
    let body = json!({ "session": first, "holder": "one" });
    let held = cluster.put("/v1/leases/batch/nightly", body).await.ok(200);
    let wait = json!({ "session": second, "holder": "two", "wait": "20s" });
    let waiting = tokio::spawn(ask(cluster.request("PUT", "/v1/leases/batch/nightly").json(&wait)));
    let name = leaseward_state::LeaseName::new("batch/nightly").unwrap();
    crate::harness::eventually("it waits", || {
        cluster.nodes[0].published().borrow().state.lease(&name).is_some_and(|lease| !lease.waiters.is_empty())
    })
    .await;
    let explained = explain().await;
    let sentence = explained["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("batch/nightly is held by one since "), "{sentence}");
    assert!(sentence.ends_with(&format!("token {}.", held["token"].as_str().unwrap())), "{sentence}");
    let session = texts(&explained, "because");
    assert_eq!(session[0], format!("session {first} of client first is open; its time to live is 1h"));
    assert!(texts(&explained, "facts")[0].starts_with("two: waits since revision "), "{explained}");
    assert!(texts(&explained, "facts")[0].ends_with("place 1 in the queue"), "{explained}");

    cluster.post("/v1/leases:revoke", json!({ "name": "batch/nightly" })).await.ok(204);
    let revoked = explain().await;
    assert_eq!(revoked["sentence"], "batch/nightly is held by nobody, and nobody may have it yet.");
    assert!(texts(&revoked, "because")[1].contains("1h"), "the holder's whole time: {revoked}");
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_and_a_set_say_who_lacks_what() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let (gone, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let at = |path: &str| ask(cluster.request_at(asked, "GET", path));
    let name = format!("n{}", gone + 1);
    let up = at(&format!("/v1/explain/node/{name}")).await.ok(200);
    assert_eq!(up["sentence"], format!("{name} is up and votes."));
    assert!(texts(&up, "because").contains(&"3 of 3 voters answer; 2 are needed to commit anything".into()), "{up}");
    cluster.nodes[gone].stop().await;
    let down = at(&format!("/v1/explain/node/{name}")).await.ok(200);
    assert_eq!(down["sentence"], format!("{name} does NOT ANSWER."), "{down}");
    assert!(texts(&down, "because").contains(&"2 of 3 voters answer; 2 are needed to commit anything".into()));
    assert_eq!(down["do"][0]["command"], format!("leaseward node rm {name}"));
    at("/v1/explain/node/n9").await.problem(404, "LW0404");
    let unknown = at("/v1/explain/sever/x").await.problem(422, "LW0101");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `server`?"), "{unknown}");

    at("/v1/explain/config/app").await.problem(404, "LW0404");
    let cluster = Cluster::of(1).await;
    crate::configs::publish(&cluster, b"max = 1\n", "first").await;
    cluster.machine("m1").await;
    let behind = cluster.get("/v1/explain/config/app").await.ok(200);
    assert_eq!(behind["sentence"], "app v1 is live on 0 of 1 members.");
    assert!(texts(&behind, "because")[0].starts_with("ops published v1 at "), "{behind}");
    assert_eq!(texts(&behind, "facts"), ["m1: never reported; none is live"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_advised_to_go_back_to_was_accepted() {
    let cluster = Cluster::of(1).await;
    cluster.machine("m1").await;
    for version in 1..=5 {
        assert_eq!(crate::configs::publish(&cluster, format!("max = {version}\n").as_bytes(), "").await, version);
    }
    let says = async |applied, version| {
        let state = SyncState::Rejected { version, why: "exit 1".into() };
        let (machine, set) = (MachineName::new("m1").unwrap(), SetName::new("app").unwrap());
        let report = Command::ReportSync { machine, sets: vec![(set, applied, state)] };
        cluster.nodes[0].propose(report.into()).await.unwrap();
        let explained = cluster.get("/v1/explain/config/app").await.ok(200);
        explained["do"].as_array().unwrap().iter().map(|hint| hint["command"].to_string()).collect::<Vec<_>>()
    };
    // The versions between were refused, too.
    assert!(says(1, 5).await.contains(&"\"leaseward config rollback app --to 1\"".to_owned()));
    // Nothing was ever live, so there is nothing to go back to.
    assert!(!says(0, 5).await.iter().any(|command| command.contains("rollback")));
}
