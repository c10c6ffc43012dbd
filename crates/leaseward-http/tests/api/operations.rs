//! Operations: accepted, followed step by step, done, failed, superseded, and forgotten.

use leaseward_state::command::{Assign, ServerReport};
use leaseward_state::propose::Propose;
use leaseward_state::server::{Cause, Certificate, Exit, FenceProof, ServerStatus};
use leaseward_state::{Command, FencingToken, MachineName, Reply, ServerName, SessionId};
use serde_json::{Value, json};

use crate::harness::{Cluster, ask};

/// Plays the master and the machines.
struct Play {
    cluster: Cluster,
    server: ServerName,
}

impl Play {
    async fn new() -> Self {
        let cluster = Cluster::of(1).await;
        cluster.put("/v1/servers/pay", json!({ "command": ["/usr/bin/pay"] })).await.ok(201);
        Self { cluster, server: ServerName::new("pay").unwrap() }
    }

    async fn asks(&self, verb: &str) -> Value {
        let answer = ask(self.cluster.request("POST", &format!("/v1/servers/pay/{verb}"))).await;
        let place = answer.header("location").to_owned();
        let operation = answer.ok(202);
        assert_eq!(place, format!("/v1/operations/{}", operation["id"].as_str().unwrap()));
        operation
    }

    async fn follow(&self, operation: &Value) -> Value {
        self.cluster.get(&format!("/v1/operations/{}", operation["id"].as_str().unwrap())).await.ok(200)
    }

    async fn phase(&self, operation: &Value) -> String {
        self.follow(operation).await["phase"].as_str().unwrap().to_owned()
    }

    async fn assign(&self, machine: &str, session: SessionId, after: Option<FencingToken>) -> FencingToken {
        let node = &self.cluster.nodes[0];
        let assign = Assign {
            server: self.server.clone(),
            machine: MachineName::new(machine).unwrap(),
            session,
            after,
            fence: None::<FenceProof>,
            cause: Cause::Started,
            term: node.leading().expect("it leads"),
        };
        match node.propose_internal(Command::Assign(assign).into()).await.unwrap().reply {
            Reply::Granted { grant, .. } => grant.token,
            other => panic!("{other:?}"),
        }
    }

    async fn report(&self, token: FencingToken, report: ServerReport) {
        let command = Command::ReportServer { server: self.server.clone(), token, report };
        let reply = self.cluster.nodes[0].propose(command.into()).await.unwrap().reply;
        assert_eq!(reply, Reply::Done);
    }

    async fn runs(&self, token: FencingToken) {
        self.report(token, ServerReport::Status { status: ServerStatus::Running { pid: 7 }, restarts: 0 }).await;
    }

    async fn dies(&self, token: FencingToken) {
        let certificate = Certificate { token, boot_id: "b".into(), proven_at_boottime_ns: 1, exit: Exit::Signal(15) };
        self.report(token, ServerReport::Dead { certificate, failure: None }).await;
    }
}

fn texts(operation: &Value) -> Vec<&str> {
    operation["steps"].as_array().unwrap().iter().map(|step| step["text"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_followed_from_the_request_to_the_first_good_check() {
    let play = Play::new().await;
    let (first, second) = (play.cluster.machine("m1").await, play.cluster.machine("m2").await);
    let start = play.asks("start").await;
    assert_eq!((&start["phase"], &start["sentence"]), (&"running".into(), &"not yet: pay runs".into()));
    let token = play.assign("m1", first, None).await;
    assert_eq!(play.phase(&start).await, "running");
    play.runs(token).await;
    let started = play.follow(&start).await;
    assert_eq!((&started["phase"], &started["sentence"]), (&"done".into(), &"pay runs".into()));
    assert!(started["out_of_service"].is_null(), "nothing was interrupted: {started}");
    let again = play.asks("start").await;
    assert_eq!(again["phase"], "done", "what is so already is done at once");
    assert_ne!(again["id"], start["id"]);

    let moving = play.asks("move?to=m2").await;
    assert_eq!((&moving["verb"], &moving["to"], &moving["phase"]), (&"move".into(), &"m2".into(), &"running".into()));
    play.report(token, ServerReport::Status { status: ServerStatus::Stopping, restarts: 0 }).await;
    play.dies(token).await;
    let next = play.assign("m2", second, Some(token)).await;
    assert_eq!(play.phase(&moving).await, "running");
    play.runs(next).await;
    let moved = play.follow(&moving).await;
    assert_eq!((&moved["phase"], &moved["sentence"]), (&"done".into(), &"pay runs on m2".into()));
    let steps = texts(&moved);
    let told = ["pay moves to m2", "pay on m1: stopping", "pay ended on m1: signal 15", "pay given to m2", "pay on m2"];
    assert!(
        steps.len() == told.len() && steps.iter().zip(told).all(|(step, told)| step.starts_with(told)),
        "{steps:?}"
    );
    assert!(moved["out_of_service"].is_string() && moved["ended"].is_string(), "{moved}");

    let stop = play.asks("stop").await;
    let running = async || play.cluster.get("/v1/operations?running=true").await.ok(200)["items"].clone();
    assert_eq!(running().await[0]["id"], stop["id"], "and nothing else goes on");
    play.dies(next).await;
    assert_eq!(running().await, json!([]));
    let stopped = play.follow(&stop).await;
    assert_eq!((&stopped["phase"], &stopped["sentence"]), (&"done".into(), &"pay is stopped".into()));
    let all = play.cluster.get("/v1/operations").await.ok(200);
    let verbs: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| item["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["start", "start", "move", "stop"]);
    let page = play.cluster.get("/v1/operations?limit=3").await.ok(200);
    let next = format!("/v1/operations?page={}", page["next_page"].as_str().unwrap());
    assert_eq!(play.cluster.get(&next).await.ok(200)["items"][0]["id"], stop["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_comes_to_nothing_says_so() {
    let play = Play::new().await;
    let (first, _) = (play.cluster.machine("m1").await, play.cluster.machine("m2").await);
    let start = play.asks("start").await;
    let stop = play.asks("stop").await;
    assert_eq!(play.phase(&stop).await, "done", "it runs nowhere");
    let start = play.follow(&start).await;
    assert_eq!(start["phase"], "superseded");
    let by = format!("superseded by op/{}", stop["id"].as_str().unwrap());
    assert!(start["sentence"].as_str().unwrap().ends_with(&by), "{start}");

    let start = play.asks("start").await;
    let token = play.assign("m1", first, None).await;
    play.runs(token).await;
    let moving = play.asks("move?to=m2").await;
    play.dies(token).await;
    // It cannot be started on the other one.
    let back = play.assign("m1", first, Some(token)).await;
    play.runs(back).await;
    let moved = play.follow(&moving).await;
    assert_eq!(
        (&moved["phase"], &moved["sentence"]),
        (&"failed".into(), &"not so: pay runs on m2: it runs on m1".into())
    );
    assert_eq!(play.phase(&start).await, "done", "what came after it is another story");

    for unknown in ["1", "0", "99999", "x", "18446744073709551615"] {
        play.cluster.get(&format!("/v1/operations/{unknown}")).await.problem(404, "LW0404");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_the_same_operation() {
    let play = Play::new().await;
    let once = || ask(play.cluster.request("POST", "/v1/servers/pay/stop").header("idempotency-key", "k"));
    let (first, second) = (once().await.ok(202), once().await.ok(202));
    assert_eq!(first["id"], second["id"]);
    assert_eq!(play.cluster.get("/v1/operations").await.ok(200)["items"].as_array().unwrap().len(), 1);
}
