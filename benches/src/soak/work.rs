//! What clients do during a soak, a little of everything and at a modest rate.
//!
//! Must stay true: a client that is told no where the cluster owes it a yes is written down as unexpected; what may be so
//! (a lease that others hold, a node that is being started) is not. A client tries again for as long as a program would.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command as Program, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use leaseward::client::Client;
use leaseward::clock::Moment;
use leaseward::keeper::Keeper;
use leaseward::{Cluster, Error, LostReason};
use leaseward_raft::net::transport::Transport;
use leaseward_state::command::Acquire;
use leaseward_state::{Command, LeaseName, MachineName, Reply, SessionId};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::members::{self, Member};

/// Time to live of sessions that are renewed.
const TTL: Duration = Duration::from_secs(10);

/// Whatever is asked must be answered within this, elections and restarts included.
const PATIENCE: Duration = Duration::from_secs(20);

/// Leases for which holders contend.
const NAMES: u32 = 16;

/// A change of this many bytes travels inside the log.
const INLINE_BYTES: usize = 150 << 10;

/// A change of this many bytes is put on a quorum of voters first.
const LARGE_BYTES: usize = 1_500_000;

/// What became of it all.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) stop: AtomicBool,
    did: Mutex<BTreeMap<&'static str, u64>>,
    unexpected: Mutex<Vec<String>>,
    pub(super) members: Arc<members::Tally>,
}

impl Tally {
    pub(super) fn did(&self, what: &'static str) {
        *self.did.lock().expect("no holder of this lock panics").entry(what).or_default() += 1;
    }

    pub(super) fn unexpected(&self, what: String) {
        eprintln!("unexpected: {what}");
        self.unexpected.lock().expect("no holder of this lock panics").push(what);
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.did.lock().expect("no holder of this lock panics").clone()
    }

    pub(super) fn count(&self, what: &str) -> u64 {
        self.counts().get(what).copied().unwrap_or(0)
    }

    pub(super) fn all_unexpected(&self) -> Vec<String> {
        self.unexpected.lock().expect("no holder of this lock panics").clone()
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// What every client knows.
#[derive(Clone)]
pub(super) struct World {
    pub(super) peers: Vec<String>,
    pub(super) apis: Vec<SocketAddr>,
    pub(super) http: reqwest::Client,
    pub(super) tally: Arc<Tally>,
}

impl World {
    fn client(&self) -> Client {
        Client::new(self.peers.clone(), Transport::PlainLoopback)
    }

    async fn open(&self, client: &Client, ttl: Duration) -> Option<SessionId> {
        let open = Command::OpenSession { name: "soak".into(), ttl_ms: ttl.as_millis() as u64 };
        match client.write_within(open, PATIENCE).await.map(|committed| committed.reply) {
            Ok(Reply::Session(session)) => return Some(session),
            Ok(other) => self.tally.unexpected(format!("open a session: {other:?}")),
            Err(error) => self.tally.unexpected(format!("open a session: {error}")),
        }
        None
    }

    /// Asks one node after the other, under one key, until one answers with something other than "not now".
    async fn post(&self, path: &str, key: &str, body: &Value) -> Option<Value> {
        let until = Instant::now() + PATIENCE;
        let mut last = String::new();
        for api in self.apis.iter().cycle() {
            if Instant::now() > until {
                break;
            }
            let request = self.http.post(format!("http://{api}{path}")).header("Idempotency-Key", key).json(body);
            match request.timeout(PATIENCE / 2).send().await {
                Ok(answer) if answer.status().is_success() => match answer.json().await {
                    Ok(body) => return Some(body),
                    Err(error) => last = error.to_string(),
                },
                Ok(answer) if answer.status().as_u16() == 503 => last = "nobody leads".into(),
                Ok(answer) => {
                    let status = answer.status();
                    last = format!("{status}: {}", answer.text().await.unwrap_or_default());
                    break;
                }
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.tally.unexpected(format!("POST {path}: {last}"));
        None
    }
}

/// So many times shorter are all pauses.
static PACE: LazyLock<u32> = LazyLock::new(|| {
    std::env::var("LEASEWARD_PACE").map_or(1, |text| text.parse().expect("LEASEWARD_PACE is a number from 1 on")).max(1)
});

fn between(random: &mut SmallRng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(random.gen_range(from_ms..=to_ms)) / *PACE
}

/// Takes a lease that others want too, as a program does; holds it, and gives it back.
pub(super) async fn hold(world: World, mut random: SmallRng) {
    let cluster = Cluster::with_client(world.client());
    while world.tally.goes_on() {
        let name = format!("contended/{}", random.gen_range(0..NAMES));
        let note = "n".repeat(random.gen_range(10..900));
        let request = cluster.lease(&name).expect("a name").ttl(TTL).meta("note", note);
        let lease = match request.acquire_timeout(between(&mut random, 100, 8_000)).await {
            Ok(lease) => lease,
            Err(Error::NotGranted) => {
                world.tally.did("leases_not_granted");
                continue;
            }
            Err(error) => {
                world.tally.unexpected(format!("acquire {name}: {error}"));
                continue;
            }
        };
        world.tally.did("leases_acquired");
        match timeout(between(&mut random, 500, 6_000), lease.lost()).await {
            Err(_) => match lease.release().await {
                Ok(()) => world.tally.did("leases_released"),
                Err(error) => world.tally.unexpected(format!("release {name}: {error}")),
            },
            Ok(lost) if lost.reason == LostReason::Expired => {
                world.tally.unexpected(format!("{name}: no renewal was answered for {TTL:?}"));
            }
            // Nobody revokes here, and it was renewed.
            Ok(_) => world.tally.did(FALSE_EXPIRIES),
        }
    }
}

/// Counts sessions that were renewed and ended all the same.
pub(super) const FALSE_EXPIRIES: &str = "false_expiries";

/// Keeps a session with a lease for the whole time.
pub(super) async fn stay(world: World, number: usize) {
    let client = world.client();
    while world.tally.goes_on() {
        let sent = Moment::now();
        let Some(session) = world.open(&client, TTL).await else { continue };
        let keeper = Keeper::start(client.clone(), session, TTL, sent);
        if let Err(error) = client.write(acquire(session, format!("steady/{number}"))).await {
            world.tally.unexpected(format!("acquire steady/{number}: {error}"));
        }
        let mut standing = keeper.standing();
        loop {
            let over = timeout(Duration::from_millis(500), standing.wait_for(|standing| standing.over)).await;
            if let Ok(Ok(standing)) = over {
                match standing.validity.remaining().is_zero() {
                    true => world.tally.unexpected(format!("steady/{number}: no renewal was answered for {TTL:?}")),
                    false => world.tally.did(FALSE_EXPIRIES),
                }
                break;
            }
            if !world.tally.goes_on() {
                world.tally.did("sessions_kept_throughout");
                return;
            }
        }
    }
}

/// Opens sessions and forgets them: they expire, with their leases.
pub(super) async fn abandon(world: World, mut random: SmallRng) {
    let client = world.client();
    while world.tally.goes_on() {
        if let Some(session) = world.open(&client, Duration::from_secs(1)).await {
            let lease = format!("abandoned/{}", random.gen_range(0..1_000_000));
            // It may be over before.
            client.write(acquire(session, lease)).await.ok();
            world.tally.did("sessions_abandoned");
        }
        sleep(between(&mut random, 500, 2_500)).await;
    }
}

fn acquire(session: SessionId, lease: String) -> Command {
    Command::Acquire(Acquire {
        lease: LeaseName::new(lease).expect("a name"),
        session,
        holder: "soak".into(),
        wait: false,
        priority: 0,
        lock_delay_ms: 0,
        meta: BTreeMap::new(),
    })
}

/// Comes, reads the stream of events for a while, and goes.
pub(super) async fn watch(world: World, mut random: SmallRng) {
    let mut failed = 0;
    while world.tally.goes_on() {
        let api = world.apis[random.gen_range(0..world.apis.len())];
        let url = format!("http://{api}/v1/events?consistency=stale");
        let asked = world.http.get(url).header("Accept", "text/event-stream").send().await;
        let Ok(answer) = asked.and_then(reqwest::Response::error_for_status) else {
            // The node may be starting; that it is for so long is odd.
            failed += 1;
            if failed == 60 {
                world.tally.unexpected("a watcher found nobody for half a minute".into());
            }
            sleep(Duration::from_millis(500)).await;
            continue;
        };
        failed = 0;
        let mut stream = answer.bytes_stream();
        let read = async { while let Some(Ok(_)) = stream.next().await {} };
        timeout(between(&mut random, 500, 15_000), read).await.ok();
        world.tally.did("watchers_gone");
    }
}

/// Takes and gives back a lease by transactions, each sent twice under one key.
pub(super) async fn transact(world: World, mut random: SmallRng) {
    let client = world.client();
    let sent = Moment::now();
    let Some(session) = world.open(&client, TTL).await else { return };
    let _keeper = Keeper::start(client, session, TTL, sent);
    while world.tally.goes_on() {
        let lease = format!("transacted/{}", random.gen_range(0..1_000));
        let (lease, session) = (lease.as_str(), session.0.to_string());
        let take = json!({
            "conditions": [{ "if": "lease_free", "lease": lease }],
            "operations": [{ "do": "acquire", "lease": lease, "session": session, "holder": "soak" }],
        });
        let Some(took) = twice(&world, &mut random, &take).await else { continue };
        let token = &took["outcomes"][0]["token"];
        let give = json!({
            "conditions": [{ "if": "fence", "lease": lease, "token": token }],
            "operations": [{ "do": "release", "lease": lease, "token": token }],
        });
        twice(&world, &mut random, &give).await;
        sleep(between(&mut random, 3_000, 8_000)).await;
    }
}

async fn twice(world: &World, random: &mut SmallRng, body: &Value) -> Option<Value> {
    let key = format!("soak-{:016x}", random.next_u64());
    let first = world.post("/v1/transaction", &key, body).await?;
    let again = world.post("/v1/transaction", &key, body).await?;
    if first != again {
        world.tally.unexpected(format!("a transaction was done twice: {first} and {again}"));
    }
    world.tally.did(TRANSACTIONS);
    Some(first)
}

const TRANSACTIONS: &str = "transactions_sent_twice";
const PUBLISHED: [&str; 3] = ["published_lines", "published_inline", "published_large"];

/// What is done under a key of the caller's own, once each: its answer is kept for a day.
pub(super) const NAMED: [&str; 4] = [TRANSACTIONS, PUBLISHED[0], PUBLISHED[1], PUBLISHED[2]];

/// What one who publishes changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// A line in one of twenty files.
    Line,
    /// A file that goes through the log.
    Inline,
    /// A file that goes to a quorum of voters first.
    Large,
}

/// Publishes one version after the other of a set of its own, with the command line.
pub(super) async fn publish(
    world: World,
    mut random: SmallRng,
    change: Change,
    run: impl Fn(&[&str]) -> Program + Send + 'static,
) {
    let (set, pause) = match change {
        Change::Line => (members::SET, (1_500, 3_500)),
        Change::Inline => ("inline", (4_000, 8_000)),
        Change::Large => ("large", (15_000, 25_000)),
    };
    let dir = tempfile::tempdir().expect("a directory");
    for file in 0..20 {
        fs::write(dir.path().join(format!("f{file}")), format!("{file}\n").repeat(100)).expect("written");
    }
    let mut rounds = 0_u64;
    while world.tally.goes_on() {
        rounds += 1;
        let bytes = match change {
            Change::Line => format!("round {rounds}\n").into_bytes(),
            Change::Inline => noise(&mut random, INLINE_BYTES),
            Change::Large => noise(&mut random, LARGE_BYTES),
        };
        let file = if matches!(change, Change::Line) { rounds % 20 } else { 0 };
        fs::write(dir.path().join(format!("f{file}")), bytes).expect("written");
        let from = dir.path().display().to_string();
        say(&world, "publish", || run(&["config", "publish", set, "--no-wait", "--from", &from])).await;
        if rounds == 1 {
            let policy = r#"{"keep_versions":3}"#.to_owned();
            let path = format!("/v1/configs/{set}/policy");
            say(&world, "policy", || run(&["api", "PUT", &path, &policy])).await;
        }
        world.tally.did(match change {
            Change::Line => PUBLISHED[0],
            Change::Inline => PUBLISHED[1],
            Change::Large => PUBLISHED[2],
        });
        sleep(between(&mut random, pause.0, pause.1)).await;
    }
}

/// Runs the command line until it works, as a script would while nobody leads.
async fn say(world: &World, what: &str, command: impl Fn() -> Program) {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut command = command();
        let done: std::io::Result<Output> =
            tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
        let why = match done {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let may_be = ["LW0501", "LW0505"].iter().any(|code| why.contains(code));
        if !may_be || Instant::now() > until {
            return world.tally.unexpected(format!("{what}: {}", why.trim()));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn noise(random: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    random.fill_bytes(&mut noise);
    noise
}

/// Joins the machines that keep a set, follows it for a while, and dies; then the machine is removed.
pub(super) async fn join(world: World, mut random: SmallRng, number: usize) {
    let client = world.client();
    let name = MachineName::new(format!("soak{number}")).expect("a name");
    while world.tally.goes_on() {
        let speaks = client.another();
        let member = Member {
            name: name.clone(),
            looks: speaks.another(),
            fetches: speaks.another(),
            speaks,
            tally: Arc::clone(&world.tally.members),
        };
        timeout(between(&mut random, 4_000, 20_000), member.run()).await.ok();
        // Once its session has expired.
        let until = Instant::now() + PATIENCE;
        loop {
            match client.write(Command::RemoveMachine { machine: name.clone() }).await {
                Ok(_) => break world.tally.did("members_joined_and_left"),
                Err(error) if Instant::now() > until => {
                    break world.tally.unexpected(format!("remove {name}: {error}"));
                }
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }
}
