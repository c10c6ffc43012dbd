//! Commits, leases, renewals, expiry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leaseward::client::Client;
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::Renewal;
use leaseward_state::command::Acquire;
use leaseward_state::{Command, LeaseName, Reply, Revision, SessionId};
use leaseward_tests::{Lab, Plan};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::figures::micros;
use crate::floor;

fn quiet() -> Plan {
    Plan { profile: "default", ttl: "3s", log: "warn", ..Plan::default() }
}

/// Clients that ask at the same time.
const CLIENTS: usize = 64;

/// How long a rate is measured.
const SPAN: Duration = Duration::from_secs(5);

async fn open(client: &Client, ttl_ms: u64) -> SessionId {
    match client.write(Command::OpenSession { name: "bench".into(), ttl_ms }).await {
        Ok(Reply::Session(session)) => session,
        other => panic!("{other:?}"),
    }
}

fn acquire(session: SessionId, lease: String) -> Command {
    Command::Acquire(Acquire {
        lease: LeaseName::new(lease).expect("a name"),
        session,
        holder: "bench".into(),
        wait: false,
        priority: 0,
        lock_delay_ms: 0,
        meta: std::collections::BTreeMap::new(),
    })
}

/// Returns a client that talks with the leader, so that no hop is measured.
async fn at_leader(lab: &Lab) -> Client {
    let leader = lab.leader().await;
    Client::new(vec![lab.peer(leader).to_string()], Transport::PlainLoopback)
}

/// One client, one commit after the other.
pub(crate) async fn commit_latency() -> Value {
    let lab = Lab::start(quiet()).await;
    let client = at_leader(&lab).await;
    let session = open(&client, 3_600_000).await;
    let mut took = Vec::new();
    for i in 0..1_000 {
        let began = Instant::now();
        client.write(acquire(session, format!("latency/{i}"))).await.expect("granted");
        took.push(began.elapsed());
    }
    let floor = floor::fdatasync();
    let commit = micros(took);
    let ratio =
        commit["p50_us"].as_f64().unwrap_or(0.0) / floor["fdatasync_us"]["p50_us"].as_f64().unwrap_or(1.0).max(1.0);
    json!({ "commit": commit, "floor": floor, "commit_p50_to_fdatasync_p50": ratio })
}

/// Many clients, each acquires one lease after the other: one commit each.
pub(crate) async fn acquire_rate() -> Value {
    let lab = Lab::start(quiet()).await;
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    let until = Instant::now() + SPAN;
    for c in 0..CLIENTS {
        let (client, done) = (at_leader(&lab).await, Arc::clone(&done));
        clients.spawn(async move {
            let session = open(&client, 3_600_000).await;
            let mut took = Vec::new();
            let mut i = 0;
            while Instant::now() < until {
                let began = Instant::now();
                client.write(acquire(session, format!("rate/{c}/{i}"))).await.expect("granted");
                took.push(began.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
                i += 1;
            }
            took
        });
    }
    let mut took = Vec::new();
    while let Some(one) = clients.join_next().await {
        took.extend(one.expect("no panic"));
    }
    let rate = done.load(Ordering::Relaxed) as f64 / SPAN.as_secs_f64();
    json!({ "clients": CLIENTS, "acquires_per_second": rate.round(), "acquire": micros(took) })
}

/// Many connections renew many sessions, several in a question.
pub(crate) async fn renewal_rate() -> Value {
    let lab = Lab::start(quiet()).await;
    let (sessions_each, batch) = (16, 16);
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    let mut all = Vec::new();
    for _ in 0..CLIENTS {
        let client = at_leader(&lab).await;
        let mut sessions = Vec::new();
        for _ in 0..sessions_each {
            sessions.push(open(&client, 3_600_000).await);
        }
        all.push((client, sessions));
    }
    let until = Instant::now() + SPAN;
    for (client, sessions) in all {
        let done = Arc::clone(&done);
        clients.spawn(async move {
            let mut took = Vec::new();
            let renewals: Vec<Renewal> = sessions
                .iter()
                .cycle()
                .take(batch)
                .map(|session| Renewal { session: *session, known: Revision(session.0) })
                .collect();
            while Instant::now() < until {
                let began = Instant::now();
                let answered = client.renew(renewals.clone(), Duration::from_secs(5)).await;
                let answered = answered.expect("answered").expect("it leads").len();
                took.push(began.elapsed());
                done.fetch_add(answered as u64, Ordering::Relaxed);
            }
            took
        });
    }
    let mut took = Vec::new();
    while let Some(one) = clients.join_next().await {
        took.extend(one.expect("no panic"));
    }
    let rate = done.load(Ordering::Relaxed) as f64 / SPAN.as_secs_f64();
    json!({
        "connections": CLIENTS,
        "sessions": CLIENTS * sessions_each,
        "renewals_per_question": batch,
        "renewals_per_second": rate.round(),
        "question": micros(took),
    })
}

/// From the moment at which a session may be ended to the moment at which a waiter has its lease.
pub(crate) async fn expiry_overshoot() -> Value {
    let lab = Lab::start(quiet()).await;
    let client = at_leader(&lab).await;
    let waiter = open(&client, 3_600_000).await;
    let ttl = Duration::from_millis(500);
    let mut over = Vec::new();
    for i in 0..40 {
        let name = format!("over/{i}");
        let holder = open(&client, ttl.as_millis() as u64).await;
        client.write(acquire(holder, name.clone())).await.expect("granted");
        let Command::Acquire(mut ask) = acquire(waiter, name.clone()) else { unreachable!("made above") };
        ask.wait = true;
        ask.holder = format!("waiter {i}");
        client.write(Command::Acquire(ask)).await.expect("queued");
        let sent = Instant::now();
        let renewal = Renewal { session: holder, known: Revision(0) };
        client.renew(vec![renewal], Duration::from_secs(1)).await.expect("answered").expect("it leads");
        let lease = LeaseName::new(name).expect("a name");
        loop {
            let ask = Renewal { session: waiter, known: Revision(0) };
            let answers = client.renew(vec![ask], Duration::from_secs(1)).await.expect("answered").expect("it leads");
            if let leaseward_raft::net::wire::Renewed::Alive { leases: Some(held), .. } = &answers[0]
                && held.leases.iter().any(|(held, _)| *held == lease)
            {
                break;
            }
        }
        over.push(sent.elapsed().saturating_sub(ttl));
    }
    json!({ "ttl_ms": ttl.as_millis() as u64, "overshoot": micros(over) })
}
