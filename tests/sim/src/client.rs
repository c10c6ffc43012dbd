//! A client on a simulated host: the real library, used as a program would, stubbornly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::keeper::Standing;
use leaseward::{Cluster, Lease, LeaseName, SetName};
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::{Answer, Ask};
use leaseward_raft::random::{Source, between};
use leaseward_state::command::{Condition, PublishSet};
use leaseward_state::config::Digest;
use leaseward_state::{Command, Reply};
use rand::RngCore;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::clocks::MS;
use crate::host::{Host, Program};
use crate::judge::{Judge, Write};

/// What a client does.
#[derive(Clone)]
pub struct Habits {
    /// The addresses of the voters.
    pub voters: Vec<String>,
    /// The leases it takes in turn.
    pub leases: Vec<LeaseName>,
    /// Their time to live.
    pub ttl: Duration,
    /// It holds a lease for a time between these.
    pub holds: (Duration, Duration),
    /// Effects are on their way for so long, at most.
    pub effects_take: Duration,
    /// It gives a lease up only once its session is over, as an agent does: it goes on renewing while nobody answers.
    pub clings: bool,
    /// The registers that it reads and writes.
    pub registers: Vec<SetName>,
}

fn chance(of: u32) -> bool {
    Source.next_u32().is_multiple_of(of)
}

fn content() -> Digest {
    let mut bytes = [0; 32];
    Source.fill_bytes(&mut bytes);
    Digest(bytes)
}

fn publish(set: &SetName, parent: Option<u64>, manifest: Digest) -> Command {
    let set = PublishSet { set: set.clone(), parent, manifest, files: 0, bytes: 0, delta: None };
    Command::Publish { sets: vec![set], author: "sim".into(), message: String::new() }
}

/// Returns the program.
#[must_use]
pub fn program(habits: Habits, judge: Judge) -> Program {
    Arc::new(move |host| {
        let (habits, judge) = (habits.clone(), judge.clone());
        Box::pin(async move {
            if !habits.registers.is_empty() {
                tokio::spawn(use_registers(Arc::clone(&host), habits.clone(), judge.clone()));
            }
            take_leases(host, habits, judge).await;
        })
    })
}

async fn take_leases(host: Arc<Host>, habits: Habits, judge: Judge) {
    let client = Client::new(habits.voters.clone(), Transport::PlainAnywhere);
    let cluster = Cluster::with_client(client.clone());
    let mut turn = host.id();
    while !judge.is_stopped() && !habits.leases.is_empty() {
        turn += 1;
        let name = habits.leases[turn % habits.leases.len()].clone();
        let Ok(request) = cluster.lease(name.to_string()) else { return };
        let taken = request.ttl(habits.ttl).owner(host.name()).acquire_timeout(habits.ttl * 4).await;
        match taken {
            Ok(lease) => hold(&host, &habits, &judge, &client, lease).await,
            Err(_) => sleep(between(Duration::from_millis(10), Duration::from_millis(200))).await,
        }
    }
}

async fn hold(host: &Arc<Host>, habits: &Habits, judge: &Judge, client: &Client, lease: Lease) {
    let lease = Arc::new(lease);
    let number = judge.took(host, &lease);
    let watched = lease.standing();
    let gives = Arc::new(AtomicBool::new(false));
    tokio::spawn(watch_session(Arc::clone(host), judge.clone(), watched, Arc::clone(&gives)));
    let until = Instant::now() + between(habits.holds.0, habits.holds.1);
    // Whoever hears that a lease is all but lost should stop. These go on for as long as they may.
    let stubborn = habits.clings || !chance(4);
    let standing = lease.standing();
    while Instant::now() < until && !judge.is_stopped() {
        let lost = if habits.clings { standing.borrow().over } else { lease.check().is_err() };
        if lost || (judge.is_hurried() && chance(3)) {
            break;
        }
        if !habits.effects_take.is_zero() {
            let late = between(Duration::ZERO, habits.effects_take);
            let at = host.now() + late.as_nanos() as u64;
            judge.send(Write { at, lease: lease.name().clone(), token: lease.token() });
        }
        if chance(6) {
            write_guarded(host, judge, client, &lease).await;
        }
        let pause = between(Duration::from_millis(20), Duration::from_millis(250));
        if stubborn {
            sleep(pause).await;
        } else if timeout(pause, lease.lost()).await.is_ok() {
            break;
        }
    }
    judge.gave(number);
    gives.store(true, Ordering::Relaxed);
    if chance(3) {
        // Dropped: given back in the background.
    } else if let Some(lease) = Arc::into_inner(lease) {
        timeout(Duration::from_secs(5), lease.release()).await.ok();
    }
}

/// Says when the cluster has ended a session of somebody who lives, and did not ask for it: a renewal may be told so before
/// the one who gave the lease back is.
async fn watch_session(host: Arc<Host>, judge: Judge, mut standing: watch::Receiver<Standing>, gives: Arc<AtomicBool>) {
    if standing.wait_for(|standing| standing.over).await.is_ok() && !gives.load(Ordering::Relaxed) {
        judge.session_over(host.now(), host.name());
    }
}

/// A write that the cluster itself takes only under the lease's token.
async fn write_guarded(host: &Arc<Host>, judge: &Judge, client: &Client, lease: &Lease) {
    let Ok(set) = SetName::new(format!("under-{}", lease.name())) else { return };
    let conditions = vec![Condition::Fence { lease: lease.name().clone(), token: lease.token() }];
    let commands = vec![publish(&set, None, content())];
    let written = client.write_within(Command::Atomic { conditions, commands }, Duration::from_secs(1)).await;
    if let Ok(committed) = written {
        judge.guarded_write(host.now(), lease.name(), lease.token(), committed.revision.0);
    }
}

async fn use_registers(host: Arc<Host>, habits: Habits, judge: Judge) {
    let client = Client::new(habits.voters.clone(), Transport::PlainAnywhere);
    let mut known = 0;
    while !judge.is_stopped() {
        let set = &habits.registers[Source.next_u32() as usize % habits.registers.len()];
        let began = host.now();
        if chance(2) {
            let asked = client.ask(&Ask::Set { set: set.clone(), known: None }, Duration::from_secs(3)).await;
            if let Ok(Answer::Set(view)) = asked
                && let Some(version) = view.version
            {
                known = version.number;
                let when = (began, host.now());
                judge.answered(set, when, view.revision.0, version.number, version.manifest, false);
            }
        } else {
            let content = content();
            judge.publishes(set, content);
            let parent = chance(2).then_some(known);
            let written = client.write_within(publish(set, parent, content), Duration::from_secs(4)).await;
            if let Ok(committed) = written
                && let Reply::Versions(versions) = committed.reply
                && let Some((_, version)) = versions.first()
            {
                known = *version;
                judge.answered(set, (began, host.now()), committed.revision.0, *version, content, true);
            }
        }
        sleep(Duration::from_nanos(MS) * (20 + Source.next_u32() % 300)).await;
    }
}
