//! Ten times what anybody should expect, on three real voter processes: sessions that renew, leases, watchers, and clients
//! that ask and never listen. Then the leader is killed, and everybody comes at once.
//!
//! Must stay true: a session is renewed as a program renews it, by one question in each quarter of its time, asked again
//! when it failed; whoever is told that its session is over counts as a false expiry. Clients, watchers and voters share this
//! machine. `LEASEWARD_SESSIONS` says how many.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use leaseward::client::Client;
use leaseward_raft::net::wire::{Renewal, Renewed};
use leaseward_state::command::Acquire;
use leaseward_state::{Command, LeaseName, Reply, Revision, SessionId};
use leaseward_tests::{Lab, Plan};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::figures::micros;
use crate::members::{enough_files, rss_mb};

/// Sessions, if nothing else is said; a tenth of them is more than most clusters see.
const SESSIONS: usize = 10_000;
const LEASES_EACH: usize = 10;

/// Programs that hold them, each on a connection of its own.
const PROGRAMS: usize = 100;
const TTL: Duration = Duration::from_secs(10);

/// Readers of the stream of events, spread over the voters.
const WATCHERS: usize = 2_000;

/// Clients that ask for long answers and never read one.
const DEAF: usize = 50;

/// How long everything goes on before the leader is killed.
const SPAN: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    granted: AtomicU64,
    renewed: AtomicU64,
    over: AtomicU64,
    /// Programs that have renewed all of their sessions since the leader was killed.
    back: AtomicU64,
    /// Set once it is.
    killed: AtomicBool,
    /// Events that watchers were told of.
    seen: AtomicU64,
}

pub(crate) async fn load() -> Value {
    enough_files();
    let sessions = std::env::var("LEASEWARD_SESSIONS").ok().map_or(SESSIONS, |text| text.parse().expect("a number"));
    let plan = Plan { profile: "default", ttl: "3s", log: "warn", ..Plan::default() };
    let mut lab = Lab::start(plan).await;
    let tally = Arc::<Tally>::default();
    let rss = |lab: &Lab| (0..3).map(|voter| rss_mb(lab, voter)).collect::<Vec<_>>();
    let at_rest = rss(&lab);

    let began = Instant::now();
    let mut programs = JoinSet::new();
    for number in 0..PROGRAMS {
        let program = Program { client: lab.client(), number, tally: Arc::clone(&tally) };
        programs.spawn(program.run(sessions / PROGRAMS));
    }
    let wanted = (sessions / PROGRAMS * PROGRAMS * LEASES_EACH) as u64;
    until("every lease is granted", || tally.granted.load(Ordering::Relaxed) >= wanted).await;
    let filled = began.elapsed();
    let full = rss(&lab);

    let mut watchers = JoinSet::new();
    let http = reqwest::Client::new();
    for number in 0..WATCHERS {
        let url = format!("http://{}/v1/events?kinds=lease&prefix=watched", lab.api(number % 3));
        watchers.spawn(watch(http.clone(), url, Arc::clone(&tally)));
    }
    let mut deaf = Vec::new();
    for number in 0..DEAF {
        deaf.push(ask_and_never_listen(&lab, number % 3).await);
    }
    let seen = notify(&lab, &tally).await;
    let renewed_before = tally.renewed.load(Ordering::Relaxed);
    let span = Instant::now();
    sleep(SPAN).await;
    let renewed = (tally.renewed.load(Ordering::Relaxed) - renewed_before) as f64 / span.elapsed().as_secs_f64();
    let busy = rss(&lab);

    // Everybody asks again, at once.
    let leader = lab.leader().await;
    lab.kill_voter(leader);
    tally.killed.store(true, Ordering::SeqCst);
    let killed = Instant::now();
    until("everybody renewed again", || tally.back.load(Ordering::Relaxed) >= PROGRAMS as u64).await;
    let herd = killed.elapsed();
    lab.start_voter(leader);
    sleep(TTL).await;
    let after = rss(&lab);
    tally.stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(one) = programs.join_next().await {
        took.extend(one.expect("no panic"));
    }
    watchers.abort_all();
    let held = lab.get::<Value>("/v1/leases?limit=1").await.is_some();
    json!({
        "sessions": sessions, "leases": wanted, "watchers": WATCHERS, "deaf_clients": DEAF,
        "granted_per_second": (wanted as f64 / filled.as_secs_f64()).round(),
        "renewals_per_second": renewed.round(), "renewal_question": micros(took),
        "watchers_told_within_ms": seen.as_millis() as u64,
        "everybody_back_after_leader_kill_ms": herd.as_millis() as u64,
        "false_expiries": tally.over.load(Ordering::Relaxed), "answers_afterwards": held,
        "voters_rss_mb": { "at_rest": at_rest, "full": full, "busy": busy, "after": after },
    })
}

/// A program with many sessions.
struct Program {
    client: Client,
    number: usize,
    tally: Arc<Tally>,
}

impl Program {
    /// Opens its sessions, takes its leases, and renews until it is told to stop. Returns how long each question took.
    async fn run(self, sessions: usize) -> Vec<Duration> {
        let mut held: Vec<Renewal> = Vec::new();
        let mut due = Instant::now() + TTL / 4;
        let mut took = Vec::new();
        for number in 0..sessions {
            let session = self.open().await;
            for lease in 0..LEASES_EACH {
                self.acquire(session, format!("load/{}/{number}/{lease}", self.number)).await;
            }
            held.push(Renewal { session, known: Revision(u64::MAX) });
            if Instant::now() >= due {
                due += TTL / 4;
                self.renew(&mut held, &mut took).await;
            }
        }
        let mut is_back = false;
        while !self.tally.stop.load(Ordering::Relaxed) {
            tokio::time::sleep_until(due).await;
            due = Instant::now() + TTL / 4;
            let was_killed = self.tally.killed.load(Ordering::SeqCst);
            if self.renew(&mut held, &mut took).await && was_killed && !is_back {
                is_back = true;
                self.tally.back.fetch_add(1, Ordering::Relaxed);
            }
        }
        took
    }

    async fn open(&self) -> SessionId {
        let ttl_ms = TTL.as_millis() as u64;
        loop {
            match self.client.write(Command::OpenSession { name: "load".into(), ttl_ms }).await {
                Ok(Reply::Session(session)) => return session,
                Ok(other) => panic!("{other:?}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn acquire(&self, session: SessionId, lease: String) {
        let lease = LeaseName::new(lease).expect("a name");
        let (holder, meta) = ("load".to_owned(), std::collections::BTreeMap::new());
        let acquire = Acquire { lease, session, holder, wait: false, priority: 0, lock_delay_ms: 0, meta };
        while self.client.write(Command::Acquire(acquire.clone())).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        self.tally.granted.fetch_add(1, Ordering::Relaxed);
    }

    /// Renews all; asks again while nobody can answer and it may still be in time. Returns whether it was answered.
    async fn renew(&self, held: &mut Vec<Renewal>, took: &mut Vec<Duration>) -> bool {
        let give_up = Instant::now() + TTL / 2;
        while Instant::now() < give_up {
            let began = Instant::now();
            if let Ok(Some(answers)) = self.client.renew(held.clone(), Duration::from_secs(2)).await {
                took.push(began.elapsed());
                let over: BTreeSet<SessionId> = held
                    .iter()
                    .zip(&answers)
                    .filter(|(_, answer)| matches!(answer, Renewed::Over))
                    .map(|(renewal, _)| renewal.session)
                    .collect();
                self.tally.over.fetch_add(over.len() as u64, Ordering::Relaxed);
                self.tally.renewed.fetch_add(answers.len() as u64, Ordering::Relaxed);
                held.retain(|renewal| !over.contains(&renewal.session));
                for (renewal, answer) in held.iter_mut().zip(&answers) {
                    if let Renewed::Alive { leases: Some(leases), .. } = answer {
                        renewal.known = leases.revision;
                    }
                }
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// Reads the stream of events, and counts what it is told of.
async fn watch(http: reqwest::Client, url: String, tally: Arc<Tally>) {
    loop {
        let asked = http.get(&url).header("Accept", "text/event-stream").send().await;
        let Ok(answer) = asked else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        let mut stream = answer.bytes_stream();
        while let Some(Ok(piece)) = stream.next().await {
            let events = String::from_utf8_lossy(&piece).matches("data:").count();
            tally.seen.fetch_add(events as u64, Ordering::Relaxed);
        }
    }
}

/// Grants a lease that every watcher watches, until all were told. Returns how long it took the last time.
async fn notify(lab: &Lab, tally: &Tally) -> Duration {
    let client = lab.client();
    let session = match client.write(Command::OpenSession { name: "notify".into(), ttl_ms: 3_600_000 }).await {
        Ok(Reply::Session(session)) => session,
        other => panic!("{other:?}"),
    };
    let give_up = Instant::now() + PATIENCE;
    let mut number = 0;
    loop {
        assert!(Instant::now() < give_up, "not every watcher was told");
        number += 1;
        let before = tally.seen.load(Ordering::Relaxed);
        let lease = LeaseName::new(format!("watched/{number}")).expect("a name");
        let (holder, meta) = ("notify".to_owned(), std::collections::BTreeMap::new());
        let acquire = Acquire { lease, session, holder, wait: false, priority: 0, lock_delay_ms: 0, meta };
        let began = Instant::now();
        client.write(Command::Acquire(acquire)).await.expect("granted");
        let all = async {
            while tally.seen.load(Ordering::Relaxed) < before + WATCHERS as u64 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        // Until all have connected some are missing.
        if timeout(Duration::from_secs(5), all).await.is_ok() {
            return began.elapsed();
        }
    }
}

/// Asks for all leases again and again on one connection, and reads nothing.
async fn ask_and_never_listen(lab: &Lab, voter: usize) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(lab.api(voter)).await.ok()?;
    let question = "GET /v1/leases?limit=1000&consistency=stale HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200);
    timeout(Duration::from_secs(1), stream.write_all(question.as_bytes())).await.ok();
    Some(stream)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < give_up, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(5)).await;
    }
}
