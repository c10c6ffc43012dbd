//! What operators do around servers, as the API has it: drain, pause, restart, vouch, policies, looks ahead, history.

use leaseward_state::command::{Assign, ServerReport};
use leaseward_state::propose::Propose;
use leaseward_state::server::{Cause, Certificate, Exit, FenceProof, ServerStatus};
use leaseward_state::{Command, FencingToken, MachineName, Reply, ServerName, SessionId};
use serde_json::{Value, json};

use crate::harness::{Cluster, ask};

async fn assign(
    cluster: &Cluster,
    server: &str,
    at: (&str, SessionId),
    after: Option<u64>,
    fence: Option<FenceProof>,
) -> FencingToken {
    let node = &cluster.nodes[0];
    let assign = Assign {
        server: ServerName::new(server).unwrap(),
        machine: MachineName::new(at.0).unwrap(),
        session: at.1,
        after: after.map(FencingToken),
        cause: if fence.is_some() { Cause::MachineLost } else { Cause::Started },
        fence,
        term: node.leading().expect("it leads"),
    };
    match node.propose_internal(Command::Assign(assign).into()).await.unwrap().reply {
        Reply::Granted { grant, .. } => grant.token,
        other => panic!("{other:?}"),
    }
}

async fn report(cluster: &Cluster, server: &str, token: FencingToken, report: ServerReport) {
    let server = ServerName::new(server).unwrap();
    let reply = cluster.nodes[0].propose(Command::ReportServer { server, token, report }.into()).await.unwrap().reply;
    assert_eq!(reply, Reply::Done);
}

async fn says(cluster: &Cluster, token: FencingToken, status: ServerStatus) {
    report(cluster, "pay", token, ServerReport::Status { status, restarts: 0 }).await;
}

/// `pay` runs on m1; m2 is there.
async fn running() -> (Cluster, SessionId, SessionId, FencingToken) {
    let cluster = Cluster::of(1).await;
    let (first, second) = (cluster.machine("m1").await, cluster.machine("m2").await);
    let spec = json!({ "command": ["/usr/bin/pay"], "candidates": ["m1", "m2"] });
    cluster.put("/v1/servers/pay", spec).await.ok(201);
    let token = assign(&cluster, "pay", ("m1", first), None, None).await;
    says(&cluster, token, ServerStatus::Running { pid: 7 }).await;
    (cluster, first, second, token)
}

fn texts<'a>(of: &'a Value, list: &str, key: &str) -> Vec<&'a str> {
    of[list].as_array().unwrap().iter().map(|item| item[key].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_ahead_says_what_would_move_and_how_long_it_would_take() {
    let (cluster, _, second, _) = running().await;
    // What would come by itself, such as this one's return to m1, does not come of anything that is asked here.
    let back = json!({ "command": ["/usr/bin/back"], "candidates": ["m1", "m2"], "failback": "auto-after 1h" });
    cluster.put("/v1/servers/back", back).await.ok(201);
    let token = assign(&cluster, "back", ("m2", second), None, None).await;
    let running = ServerReport::Status { status: ServerStatus::Running { pid: 9 }, restarts: 0 };
    report(&cluster, "back", token, running).await;
    let down = cluster.get("/v1/whatif?down=m1").await.ok(200);
    assert_eq!(down["event"], "m1 down");
    assert_eq!(texts(&down, "servers", "to"), ["m2"]);
    let moved = &down["servers"][0];
    // The session of an hour with the drift of the clocks on both sides, and the grace of F2.
    assert_eq!((&moved["from"], &moved["wait"]), (&"m1".into(), &"3607300ms".into()));
    assert!(moved["start"].is_string(), "as long as it took the last time: {moved}");
    let both = cluster.get("/v1/whatif?down=m1,m2").await.ok(200);
    assert_eq!(both["servers"][1]["to"], Value::Null);
    assert!(both["servers"][1]["why_not"].as_str().unwrap().contains("m2: its agent is not connected"), "{both}");
    let other = cluster.get("/v1/whatif?down=m2").await.ok(200);
    assert_eq!(texts(&other, "servers", "server"), ["back"]);
    cluster.get("/v1/whatif?down=m9").await.problem(404, "LW0404");
    cluster.get("/v1/whatif").await.problem(422, "LW0101");

    let stop = ask(cluster.request("POST", "/v1/servers/pay/stop?dry_run=true")).await.ok(200);
    assert_eq!(stop["servers"][0]["sentence"], "pay stops on m1");
    let restart = ask(cluster.request("POST", "/v1/servers/pay/restart?dry_run=true")).await.ok(200);
    assert_eq!((&restart["servers"][0]["from"], &restart["servers"][0]["to"]), (&"m1".into(), &"m1".into()));
    // It never stopped before: as long as it may take.
    assert_eq!(restart["servers"][0]["wait"], "30s");
    let drain = cluster.post("/v1/machines/m1/drain?dry_run=true", json!({ "reason": "r" })).await.ok(200);
    assert_eq!(texts(&drain, "servers", "to"), ["m2"]);
    ask(cluster.request("POST", "/v1/servers/pay/stop?dry_run=perhaps")).await.problem(422, "LW0101");
    assert_eq!(cluster.get("/v1/servers/pay").await.ok(200)["phase"], "running", "nothing was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_told_phase_by_phase_against_its_bound() {
    let (cluster, first, second, token) = running().await;
    assert_eq!(cluster.get("/v1/servers/pay/history").await.ok(200)["items"], json!([]));
    let node = &cluster.nodes[0];
    let term = node.leading().expect("it leads");
    let (server, machine) = (ServerName::new("pay").unwrap(), |name: &str| MachineName::new(name).unwrap());
    let suspect = |suspected| Command::Suspect { machine: machine("m1"), session: first, suspected, term };
    let prepare = Command::Prepare { server: server.clone(), token, machine: machine("m2"), term };
    let ready = Command::ReportPrepared { machine: machine("m2"), server, token, lacking: None };
    let close = Command::CloseSessions { sessions: vec![first], term };
    // A fright that passes is no part of what follows.
    for command in [suspect(true), suspect(false), suspect(true), prepare, ready, close] {
        let reply = node.propose_internal(command.into()).await.unwrap().reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    let open = cluster.get("/v1/servers/pay/history").await.ok(200);
    assert_eq!(open["items"][0]["ended"], Value::Null);
    let next = assign(&cluster, "pay", ("m2", second), Some(token.0), Some(FenceProof::Grace(100))).await;
    says(&cluster, next, ServerStatus::Preparing { step: "mount".into() }).await;
    says(&cluster, next, ServerStatus::Starting { pid: 8 }).await;
    says(&cluster, next, ServerStatus::Running { pid: 8 }).await;
    let history = cluster.get("/v1/servers/pay/history").await.ok(200);
    let incident = &history["items"][0];
    assert_eq!(
        (&incident["cause"], &incident["from"], &incident["to"]),
        (&"machine_lost".into(), &"m1".into(), &"m2".into())
    );
    let phases = texts(incident, "phases", "name");
    assert_eq!(
        phases,
        ["last_renewal", "suspect", "prepared", "prepared", "expired", "fenced", "decided", "mount", "exec", "ready"]
    );
    assert_eq!(incident["bound"], "3607300ms");
    assert!(incident["took"].is_string() && incident["out_of_service"].is_string(), "{incident}");

    // A crash and its restart in place.
    report(&cluster, "pay", next, ServerReport::Crashed { restarts: 1, why: "exit 1".into() }).await;
    says(&cluster, next, ServerStatus::Running { pid: 9 }).await;
    let history = cluster.get("/v1/servers/pay/history").await.ok(200);
    assert_eq!(texts(&history, "items", "cause"), ["machine_lost", "crashed"]);
    // Stopped by an operator, it is not interrupted.
    ask(cluster.request("POST", "/v1/servers/pay/stop")).await.ok(202);
    let certificate = Certificate { token: next, boot_id: "b".into(), proven_at_boottime_ns: 1, exit: Exit::Code(0) };
    report(&cluster, "pay", next, ServerReport::Dead { certificate, failure: None }).await;
    let history = cluster.get("/v1/servers/pay/history").await.ok(200);
    assert_eq!(history["items"].as_array().unwrap().len(), 2);
    cluster.get("/v1/servers/nobody/history").await.problem(404, "LW0404");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_an_operation_that_ends_when_nothing_runs_there() {
    let (cluster, _, second, token) = running().await;
    let drain = cluster.post("/v1/machines/m1/drain", json!({ "reason": "firmware", "for": "2h" })).await.ok(202);
    assert_eq!(
        (&drain["verb"], &drain["subject"], &drain["phase"]),
        (&"drain".into(), &"machine/m1".into(), &"running".into())
    );
    let machine = cluster.get("/v1/machines/m1").await.ok(200);
    assert_eq!((&machine["cordoned"], &machine["cordon"]["drains"]), (&"firmware".into(), &true.into()));
    assert!(machine["cordon"]["until"].is_string(), "{machine}");
    let id = drain["id"].as_str().unwrap();
    let follow = async || cluster.get(&format!("/v1/operations/{id}")).await.ok(200);

    let node = &cluster.nodes[0];
    let to = leaseward_state::server::Destination {
        machine: MachineName::new("m2").unwrap(),
        cause: Cause::Drained,
        back_to: None,
    };
    let relocate =
        Command::Relocate { server: ServerName::new("pay").unwrap(), token, to, term: node.leading().unwrap() };
    assert_eq!(node.propose_internal(relocate.into()).await.unwrap().reply, Reply::Done);
    let certificate = Certificate { token, boot_id: "b".into(), proven_at_boottime_ns: 1, exit: Exit::Code(0) };
    report(&cluster, "pay", token, ServerReport::Dead { certificate, failure: None }).await;
    assert_eq!(follow().await["phase"], "running", "it is not up elsewhere yet");
    let next = assign(&cluster, "pay", ("m2", second), Some(token.0), None).await;
    says(&cluster, next, ServerStatus::Running { pid: 8 }).await;
    let done = follow().await;
    assert_eq!((&done["phase"], &done["sentence"]), (&"done".into(), &"m1 runs no server".into()));
    assert!(texts(&done, "steps", "text").iter().any(|text| text.contains("leaves its machine")), "{done}");
    ask(cluster.request("POST", "/v1/machines/m1/resume")).await.ok(200);
    assert_eq!(follow().await["phase"], "superseded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_maintenance_and_policies_are_set_and_shown() {
    let (cluster, ..) = running().await;
    let paused = cluster.post("/v1/servers/pay/pause", json!({ "reason": "surgery", "for": "1h" })).await.ok(200);
    assert_eq!(paused["paused"]["reason"], "surgery");
    assert!(paused["paused"]["until"].is_string(), "{paused}");
    assert!(ask(cluster.request("POST", "/v1/servers/pay/resume")).await.ok(200)["paused"].is_null());

    let usual = cluster.get("/v1/policy").await;
    assert_eq!(usual.header("etag"), "\"v0\"");
    let mut policy = usual.ok(200);
    assert_eq!((&policy["concurrent_starts"], &policy["brake"]), (&8.into(), &"3s".into()));
    policy["concurrent_starts"] = json!(2);
    let first = cluster.request("PUT", "/v1/policy").header("if-none-match", "*").json(&policy);
    assert_eq!(ask(first).await.ok(200)["version"], 1);
    let stale = cluster.request("PUT", "/v1/policy").header("if-match", "\"v7\"").json(&policy);
    ask(stale).await.problem(412, "LW0412");
    policy["brake_percent"] = json!(101);
    cluster.put("/v1/policy", policy).await.problem(422, "LW0101");

    let on = cluster.post("/v1/maintenance", json!({ "reason": "switches" })).await.ok(200);
    assert_eq!((&on["maintenance"]["reason"], &on["concurrent_starts"]), (&"switches".into(), &2.into()));
    assert_eq!(cluster.get("/v1/servers/pay").await.ok(200)["paused"]["reason"], "switches", "so is every server");
    assert!(cluster.delete("/v1/maintenance").await.ok(200)["maintenance"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_is_vouched_for_by_name_and_only_of_a_machine_that_is_gone() {
    let (cluster, first, ..) = running().await;
    let word = json!({ "confirm": "m1", "by": "ann@host" });
    cluster.post("/v1/machines/m1/confirm-dead", json!({ "confirm": "m2", "by": "ann" })).await.problem(422, "LW0101");
    cluster.post("/v1/machines/m1/confirm-dead", word.clone()).await.problem(409, "LW0413");
    let node = &cluster.nodes[0];
    let term = node.leading().expect("it leads");
    node.propose_internal(Command::CloseSessions { sessions: vec![first], term }.into()).await.unwrap();
    assert_eq!(cluster.get("/v1/servers/pay").await.ok(200)["phase"], "fencing");
    cluster.post("/v1/machines/m1/confirm-dead", word).await.ok(200);
    assert_eq!(cluster.get("/v1/servers/pay").await.ok(200)["phase"], "fenced");
    let events = cluster.get("/v1/events?kinds=machine,server").await.ok(200);
    let texts = texts(&events, "items", "text");
    assert!(texts.contains(&"ann@host has seen that m1 is off"), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_back_to_the_first_of_its_candidates() {
    let (cluster, ..) = running().await;
    let there = ask(cluster.request("POST", "/v1/servers/pay/failback")).await.ok(202);
    assert_eq!((&there["phase"], &there["to"]), (&"done".into(), &"m1".into()), "it is there");
    let spec = json!({ "command": ["/usr/bin/pay"], "candidates": ["m2", "m1"] });
    cluster.put("/v1/servers/pay", spec).await.ok(200);
    let back = ask(cluster.request("POST", "/v1/servers/pay/failback")).await.ok(202);
    assert_eq!((&back["phase"], &back["to"]), (&"running".into(), &"m2".into()));
    cluster.put("/v1/servers/any", json!({ "command": ["/bin/true"] })).await.ok(201);
    ask(cluster.request("POST", "/v1/servers/any/failback")).await.problem(409, "LW0413");
    ask(cluster.request("POST", "/v1/servers/any/restart")).await.problem(409, "LW0413");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_usual_is_a_warning() {
    let (cluster, _, _, token) = running().await;
    let warnings = async || cluster.get("/v1/cluster").await.ok(200)["warnings"].to_string();
    assert_eq!(warnings().await, "[]");
    cluster.post("/v1/maintenance", json!({ "reason": "switches" })).await.ok(200);
    assert!(warnings().await.contains("maintenance: nothing is moved or restarted: switches"));
    cluster.delete("/v1/maintenance").await.ok(200);
    let cordon = json!({ "reason": "flapping", "quarantine": true });
    cluster.post("/v1/machines/m2/cordon", cordon).await.ok(200);
    assert!(warnings().await.contains("machine m2 gets no server: flapping"));
    says(&cluster, token, ServerStatus::Stuck { step: "unmount".into(), why: "/srv is busy".into() }).await;
    assert!(warnings().await.contains("server pay: dead, and stuck at unmount: /srv is busy"));
    assert_eq!(cluster.get("/v1/servers/pay").await.ok(200)["phase"], "stuck");
}
