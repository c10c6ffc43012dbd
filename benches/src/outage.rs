//! How long nobody can write when the leader is killed.

use std::time::Duration;

use leaseward_state::Command;
use leaseward_tests::{Lab, Plan};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::figures::micros;

/// From SIGKILL of the leader to the answer of a write that is sent at that moment through another node, which is not
/// sent again by its caller; and how many of them failed.
pub(crate) async fn leader_kill() -> Value {
    let plan = Plan { machines: 0, profile: "default", ttl: "3s", log: "warn", ..Plan::default() };
    let mut lab = Lab::start(plan).await;
    let mut took = Vec::new();
    let mut failed = 0;
    for _ in 0..10 {
        let leader = lab.leader().await;
        let other = (leader + 1) % 3;
        let client = leaseward::client::Client::new(
            vec![lab.peer(other).to_string()],
            leaseward_raft::net::transport::Transport::PlainLoopback,
        );
        client.status().await.expect("connected");
        let began = Instant::now();
        lab.kill_voter(leader);
        let open = Command::OpenSession { name: "bench".into(), ttl_ms: 60_000 };
        match client.write_within(open, Duration::from_secs(20)).await {
            Ok(_) => took.push(began.elapsed()),
            Err(_) => failed += 1,
        }
        lab.start_voter(leader);
        lab.until(
            "all voters are up again",
            async |lab| {
                let status = lab.status().await?;
                Some(status["health"] == "ok")
            },
            true,
        )
        .await;
    }
    json!({ "trials": 10, "failed": failed, "outage": micros(took) })
}
