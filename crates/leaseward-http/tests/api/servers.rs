//! Servers, machines, fences and transactions.

use leaseward_state::command::{Assign, ServerReport};
use leaseward_state::propose::Propose;
use leaseward_state::server::{Cause, ServerStatus};
use leaseward_state::{Command, FencingToken, MachineName, Reply, ServerName};
use serde_json::{Value, json};

use crate::harness::{Cluster, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_defined_changed_and_forgotten_by_version() {
    let cluster = Cluster::of(1).await;
    let file = json!({ "command": ["/usr/bin/pay"], "requires_fence": "F2", "check": { "type": "tcp", "address": "127.0.0.1:80" } });
    let made = cluster.put("/v1/servers/pay-1", file.clone()).await;
    assert_eq!(made.header("etag"), "\"v1\"");
    let made = made.ok(201);
    assert_eq!((&made["phase"], &made["wanted"], &made["version"]), (&"unplaced".into(), &"running".into(), &1.into()));
    assert_eq!((&made["spec"]["start_timeout"], &made["spec"]["stop_grace"]), (&"1m".into(), &"30s".into()));
    assert_eq!(cluster.put("/v1/servers/pay-1", file.clone()).await.ok(200)["version"], 1, "the same is not a version");

    let changed = json!({ "name": "pay-1", "command": ["/usr/bin/pay", "-v"] });
    let stale = cluster.request("PUT", "/v1/servers/pay-1").header("if-match", "\"v7\"").json(&changed);
    let stale = ask(stale).await;
    assert_eq!(stale.header("etag"), "\"v1\"");
    assert_eq!(stale.problem(412, "LW0412")["current_version"], 1);
    let exists = cluster.request("PUT", "/v1/servers/pay-1").header("if-none-match", "*").json(&changed);
    assert_eq!(ask(exists).await.problem(412, "LW0409")["current_version"], 1);
    let right = cluster.request("PUT", "/v1/servers/pay-1").header("if-match", "\"v1\"").json(&changed);
    assert_eq!(ask(right).await.ok(200)["version"], 2);

    let other = json!({ "name": "pay-2", "command": ["/usr/bin/pay"] });
    cluster.put("/v1/servers/pay-1", other).await.problem(422, "LW0101");
    let unknown = json!({ "command": ["a"], "chekc": {} });
    let unknown = cluster.put("/v1/servers/pay-1", unknown).await.problem(422, "LW0103");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `check`?"), "{unknown}");

    let stop = cluster.request("POST", "/v1/servers/pay-1/stop").header("if-match", "\"v1\"");
    ask(stop).await.problem(412, "LW0412");
    ask(cluster.request("POST", "/v1/servers/pay-1/stop")).await.ok(202);
    assert_eq!(cluster.get("/v1/servers/pay-1").await.ok(200)["phase"], "stopped");
    ask(cluster.request("POST", "/v1/servers/pay-1/start")).await.ok(202);
    assert_eq!(cluster.get("/v1/servers/pay-1").await.ok(200)["wanted"], "running");
    assert_eq!(cluster.get("/v1/servers?prefix=pay").await.ok(200)["items"][0]["name"], "pay-1");
    ask(cluster.request("DELETE", "/v1/servers/pay-1").header("if-match", "\"v1\"")).await.problem(412, "LW0412");
    cluster.delete("/v1/servers/pay-1").await.ok(204);
    cluster.get("/v1/servers/pay-1").await.problem(404, "LW0404");
    cluster.delete("/v1/servers/pay-1").await.problem(404, "LW0404");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_is_shown_checked_counted_and_moved() {
    let cluster = Cluster::of(1).await;
    let session = cluster.machine("m1").await;
    cluster.put("/v1/servers/pay-1", json!({ "command": ["/usr/bin/pay"] })).await.ok(201);
    cluster.get("/v1/health/server/pay-1").await.ok(503);
    cluster.get("/v1/health/server/pay-9").await.problem(404, "LW0404");

    let (server, machine) = (ServerName::new("pay-1").unwrap(), MachineName::new("m1").unwrap());
    let node = &cluster.nodes[0];
    let term = node.leading().expect("it leads");
    let assign =
        Assign { server: server.clone(), machine, session, after: None, fence: None, cause: Cause::Started, term };
    let reply = node.propose_internal(Command::Assign(assign).into()).await.unwrap().reply;
    let Reply::Granted { grant, .. } = reply else { panic!("{reply:?}") };
    let status = ServerReport::Status { status: ServerStatus::Running { pid: 42 }, restarts: 1 };
    let report = Command::ReportServer { server, token: grant.token, report: status };
    node.propose(report.into()).await.unwrap();

    let shown = cluster.get("/v1/servers/pay-1").await.ok(200);
    assert_eq!((&shown["phase"], &shown["machine"], &shown["pid"]), (&"running".into(), &"m1".into(), &42.into()));
    assert_eq!((&shown["restarts"], &shown["token"]), (&1.into(), &grant.token.to_string().into()));
    assert_eq!(shown["worst_case"], "3607300ms", "an hour, the clocks' drift, and the grace of F2");
    let health = cluster.get("/v1/health/server/pay-1").await.ok(200);
    assert_eq!((&health["machine"], &health["phase"]), (&"m1".into(), &"running".into()));
    cluster.get("/v1/health/server/pay-1?machine=m1").await.ok(200);
    cluster.get("/v1/health/server/pay-1?machine=m2").await.ok(503);

    let machine = cluster.get("/v1/machines/m1").await.ok(200);
    assert_eq!((&machine["connected"], &machine["fence"]), (&true.into(), &"F2".into()));
    assert_eq!(machine["servers"], json!(["pay-1"]));
    assert_eq!(cluster.get("/v1/machines").await.ok(200)["items"][0]["labels"]["rack"], "a");
    ask(cluster.request("POST", "/v1/servers/pay-1/move?to=m9")).await.problem(404, "LW0404");
    ask(cluster.request("POST", "/v1/servers/pay-1/move")).await.problem(422, "LW0101");
    cluster.machine("m2").await;
    ask(cluster.request("POST", "/v1/servers/pay-1/move?to=m2")).await.ok(202);
    let moving = cluster.get("/v1/servers/pay-1").await.ok(200);
    assert_eq!((&moving["phase"], &moving["moving_to"]), (&"moving".into(), &"m2".into()));
    cluster.delete("/v1/servers/pay-1").await.problem(409, "LW0413");
    cluster.delete("/v1/machines/m1").await.problem(409, "LW0413");

    let metrics = cluster.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    for line in [
        "leaseward_raft_is_leader 1",
        "leaseward_servers{phase=\"moving\"} 1",
        "leaseward_sessions 2",
        "leaseward_leases{state=\"held\"} 1",
        "# TYPE leaseward_raft_term gauge",
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line} is not in\n{}", metrics.text);
    }
    let status = cluster.get("/v1/cluster").await.ok(200);
    assert_eq!(status["servers"], json!({ "moving": 1 }));
    assert_eq!(status["machines"], json!({ "connected": 2 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_cordoned_and_let_go() {
    let cluster = Cluster::of(1).await;
    let session = cluster.machine("m1").await;
    let cordon = json!({ "reason": "firmware" });
    cluster.post("/v1/machines/m9/cordon", cordon.clone()).await.problem(404, "LW0404");
    let stale = cluster.request("POST", "/v1/machines/m1/cordon").header("if-match", "\"v999\"").json(&cordon);
    ask(stale).await.problem(412, "LW0412");
    let tag = cluster.get("/v1/machines/m1").await.header("etag").to_owned();
    let right = cluster.request("POST", "/v1/machines/m1/cordon").header("if-match", tag).json(&cordon);
    assert_eq!(ask(right).await.ok(200)["cordoned"], "firmware");
    assert!(ask(cluster.request("POST", "/v1/machines/m1/resume")).await.ok(200)["cordoned"].is_null());
    cluster.delete(&format!("/v1/sessions/{session}")).await.ok(204);
    let status = cluster.get("/v1/cluster").await.ok(200);
    assert_eq!(status["health"], "degraded", "{status}");
    assert!(status["sentence"].as_str().unwrap().starts_with("machine m1 is lost"), "{status}");
    cluster.delete("/v1/machines/m1").await.ok(204);
    assert_eq!(cluster.get("/v1/machines").await.ok(200)["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_write_counts_only_under_its_grant() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("deploy").await;
    let lease = cluster.put("/v1/leases/deploy", json!({ "session": session, "holder": "d" })).await.ok(200);
    let token = lease["token"].as_str().unwrap();
    let put = |fence: String| {
        let request = cluster.request("PUT", "/v1/servers/pay-1").header("leaseward-fence", fence);
        ask(request.json(&json!({ "command": ["a"] })))
    };
    assert_eq!(put("deploy;1".into()).await.problem(409, "LW0203")["current_token"], token);
    cluster.get("/v1/servers/pay-1").await.problem(404, "LW0404");
    put("deploy".into()).await.problem(422, "LW0101");
    assert_eq!(put(format!("deploy;{token}")).await.ok(201)["version"], 1);
    let guarded = cluster.request("PUT", "/v1/servers/pay-1").header("leaseward-fence", format!("deploy;{token}"));
    let guarded = guarded.header("if-match", "\"v9\"").json(&json!({ "command": ["b"] }));
    ask(guarded).await.problem(412, "LW0412");
    cluster.delete(&format!("/v1/leases/deploy?token={token}")).await.ok(204);
    put(format!("deploy;{token}")).await.problem(409, "LW0203");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_does_all_or_nothing() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("deploy").await;
    let body = |version: u64| {
        json!({
            "conditions": [{ "if": "lease_free", "lease": "deploy" }, { "if": "server_version", "server": "b", "version": version }],
            "operations": [
                { "do": "acquire", "lease": "deploy", "session": session, "holder": "d" },
                { "do": "put_server", "server": "b", "spec": { "command": ["b"] }, "if_version": 0 },
                { "do": "set_wanted", "server": "b", "wanted": "stopped" },
            ],
        })
    };
    cluster.post("/v1/transaction", body(3)).await.problem(412, "LW0412");
    cluster.get("/v1/leases/deploy").await.problem(404, "LW0404");
    let done = cluster.post("/v1/transaction", body(0)).await.ok(200);
    assert_eq!(done["outcomes"][0]["token"], done["revision"], "{done}");
    assert_eq!(done["outcomes"][1]["version"], 1);
    assert_eq!(cluster.get("/v1/servers/b").await.ok(200)["wanted"], "stopped");
    cluster.post("/v1/transaction", body(1)).await.problem(409, "LW0202");

    let token: u64 = done["revision"].as_str().unwrap().parse().unwrap();
    let second = json!({
        "conditions": [{ "if": "fence", "lease": "deploy", "token": FencingToken(token).to_string() }],
        "operations": [
            { "do": "remove_server", "server": "b" },
            { "do": "release", "lease": "deploy", "token": "1" },
        ],
    });
    let refused = cluster.post("/v1/transaction", second).await.problem(409, "LW0203");
    assert_eq!(refused["part"], 1);
    cluster.get("/v1/servers/b").await.ok(200);
    let unknown = json!({ "operations": [{ "do": "remove_server", "servr": "b" }] });
    let unknown = cluster.post("/v1/transaction", unknown).await.problem(422, "LW0103");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `server`?"), "{unknown}");
    let unknown = json!({ "operations": [{ "do": "remove_sever", "server": "b" }] });
    let unknown = cluster.post("/v1/transaction", unknown).await.problem(422, "LW0101");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `remove_server`?"), "{unknown}");
    cluster.post("/v1/transaction", json!({ "operations": [] })).await.problem(422, "LW0101");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_when_it_is_applied_with_the_key_and_the_fix() {
    let cluster = Cluster::of(1).await;
    let put = async |name: &str, body: Value| cluster.put(&format!("/v1/servers/{name}"), body).await;
    let vip = |name: &str| json!({ "command": [name], "vips": [{ "ip": "10.9.9.9" }] });
    put("one", vip("a")).await.ok(201);
    let twice = put("two", vip("b")).await.problem(409, "LW0413");
    assert!(twice["detail"].as_str().unwrap().contains("it follows server/one"), "{twice}");
    put("one", vip("c")).await.ok(200);
    let both = json!({ "command": ["a"], "vips": [{ "ip": "10.9.9.8" }, { "ip": "10.9.9.8" }] });
    put("two", both).await.problem(422, "LW0101");
    let hook = |timeout: &str| json!({ "command": ["/bin/true"], "timeout": timeout });
    for (step, key, within) in [("pre_stop", "stop_grace", "10s"), ("pre_start", "start_timeout", "20s")] {
        let with = |timeout| json!({ "command": ["a"], key: within, "hooks": { step: hook(timeout) } });
        put("two", with(within)).await;
        let late = put("three", with("21s")).await.problem(422, "LW0101");
        let detail = late["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("hooks.{step}.timeout")) && detail.contains(key), "{late}");
    }
    // Without a time of its own, it has what there is.
    put("four", json!({ "command": ["a"], "stop_grace": "1s", "hooks": { "pre_stop": { "command": ["/bin/true"] } } }))
        .await
        .ok(201);

    cluster.machine("m1").await;
    let far = json!({ "command": ["a"], "candidates": ["m9"] });
    let nowhere = put("five", far.clone()).await.problem(422, "LW0344");
    assert!(nowhere["detail"].as_str().unwrap().contains("m9: the cluster does not know it"), "{nowhere}");
    ask(cluster.request("PUT", "/v1/servers/five?force=true").json(&far)).await.ok(201);
}
