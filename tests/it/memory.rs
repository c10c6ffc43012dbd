//! What a voter may have in memory while it has much to do: thousands of sessions that renew, tens of thousands of leases that
//! are granted as fast as it goes, watchers who listen, and clients who ask and never listen.
//!
//! Must stay true: what is counted is anonymous resident memory, its peak over the whole story; whoever stopped to
//! listen is told that it missed something once it listens again. The bound has room for a slow machine, and none for the store's
//! pages that pile up while a batch is written, nor for answers that nobody reads.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use leaseward::client::Client;
use leaseward_raft::net::wire::{Renewal, Renewed};
use leaseward_state::command::Acquire;
use leaseward_state::limits::LEDGER_MAX;
use leaseward_state::{Command, LeaseName, Reply, Revision, SessionId};
use leaseward_tests::{Lab, PATIENCE, Plan, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Programs with sessions and leases, each on a connection of its own.
const PROGRAMS: usize = 40;
const SESSIONS_EACH: usize = 75;
const LEASES_EACH: usize = 10;
const LEASES: u64 = (PROGRAMS * SESSIONS_EACH * LEASES_EACH) as u64;

/// Short enough that renewals are a load, long enough that a busy machine is never late.
const TTL: Duration = Duration::from_secs(20);

/// Readers of the stream of events who listen, to few of them.
const WATCHERS: usize = 300;

/// Clients who ask for all events, and as many who ask for long lists; they never read an answer.
const DEAF: usize = 60;

/// A kernel keeps so much for those who do not listen, in bytes: little, so that what they are not told stays with the voter.
const DEAF_BUFFER: u32 = 4_096;

/// Anonymous memory of a voter, in mebibytes. 95 to 120 is usual; 320 if streams are made for those who do not listen, and
/// if the store writes all of half a second at once (less than that if the machine is busy: half a second is less).
const MEMORY_MAX: u64 = 160;

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    granted: AtomicU64,
    over: AtomicU64,
    /// Watchers who know from where on they are told.
    listening: AtomicU64,
    /// Events that watchers were told of.
    seen: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_with_much_to_do_and_clients_who_never_listen_has_a_bound() {
    let lab = Lab::start(Plan { profile: "default", log: "warn", ..Plan::default() }).await;
    let tally = Arc::<Tally>::default();
    let began = Instant::now();
    let memory = Memory::watch((0..3).map(|voter| lab.voter_pid(voter)).collect());

    let mut silent = Vec::new();
    for number in 0..DEAF {
        let lists = "GET /v1/leases?limit=1000&consistency=stale HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200);
        silent.push(Deaf::ask(lab.api(number % 3), &lists).await);
    }
    let events = "GET /v1/events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
    let mut late = Vec::new();
    for number in 0..DEAF {
        late.push(Deaf::ask(lab.api(number % 3), events).await);
    }
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut watchers = JoinSet::new();
    for number in 0..WATCHERS {
        let url = format!("http://{}/v1/events?kinds=lease&prefix=load/0/0/", lab.api(number % 3));
        watchers.spawn(watch(http.clone(), url, Arc::clone(&tally)));
    }
    let listen = async || tally.listening.load(Ordering::Relaxed) == WATCHERS as u64;
    eventually("watchers listen", listen).await;

    let mut programs = JoinSet::new();
    for number in 0..PROGRAMS {
        programs.spawn(Program { client: lab.client(), number, tally: Arc::clone(&tally) }.run());
    }
    eventually("every lease is granted", async || tally.granted.load(Ordering::Relaxed) == LEASES).await;
    println!("{LEASES} leases granted after {:?}", began.elapsed());
    memory.holds();

    // Who listened was told of everything, who did not is told of what is gone.
    let told = async || tally.seen.load(Ordering::Relaxed) == (WATCHERS * LEASES_EACH) as u64;
    eventually("watchers are told", told).await;
    for (number, deaf) in late.into_iter().enumerate() {
        timeout(PATIENCE, deaf.hears_what_it_missed())
            .await
            .unwrap_or_else(|_| panic!("{number} was not told that events are gone"));
    }
    drop(silent);
    tally.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = programs.join_next().await {
        ended.expect("no panic");
    }
    memory.holds();
    assert_eq!(tally.over.load(Ordering::Relaxed), 0, "a session that was renewed ended");
    assert_eq!(watchers.try_join_next().map(|ended| ended.is_ok()), None, "a stream of events ended");
}

/// Looks at what processes have in memory of their own, until it is dropped.
struct Memory {
    peaks: Arc<Vec<AtomicU64>>,
    _looks: JoinSet<()>,
}

impl Memory {
    fn watch(pids: Vec<u32>) -> Self {
        let peaks: Arc<Vec<AtomicU64>> = Arc::new(pids.iter().map(|_| AtomicU64::new(0)).collect());
        let mut looks = JoinSet::new();
        let seen = Arc::clone(&peaks);
        looks.spawn(async move {
            loop {
                for (peak, pid) in seen.iter().zip(&pids) {
                    peak.fetch_max(anonymous(*pid), Ordering::Relaxed);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { peaks, _looks: looks }
    }

    fn holds(&self) {
        let peaks: Vec<u64> = self.peaks.iter().map(|peak| peak.load(Ordering::Relaxed)).collect();
        println!("peak of anonymous memory: {peaks:?} MiB");
        assert!(peaks.iter().all(|peak| (1..=MEMORY_MAX).contains(peak)), "{peaks:?} MiB, of {MEMORY_MAX}");
    }
}

/// Returns what a process has in memory of its own, in mebibytes; nothing of one that is gone.
fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// A program with many sessions.
struct Program {
    client: Client,
    number: usize,
    tally: Arc<Tally>,
}

impl Program {
    /// Opens its sessions, takes its leases, and renews until it is told to stop.
    async fn run(self) {
        let mut held: Vec<Renewal> = Vec::new();
        let mut due = Instant::now() + TTL / 4;
        for number in 0..SESSIONS_EACH {
            let open = Command::OpenSession { name: "load".into(), ttl_ms: TTL.as_millis() as u64 };
            let Reply::Session(session) = self.write(open).await else { panic!("a session is opened") };
            // At once, so that an entry of the log carries many.
            let acquired = (0..LEASES_EACH)
                .map(|lease| self.write(acquire(session, &format!("load/{}/{number}/{lease}", self.number))));
            self.tally.granted.fetch_add(join_all(acquired).await.len() as u64, Ordering::Relaxed);
            held.push(Renewal { session, known: Revision(u64::MAX) });
            if Instant::now() >= due {
                due += TTL / 4;
                self.renew(&held).await;
            }
        }
        while !self.tally.stop.load(Ordering::Relaxed) {
            sleep_until(due.min(Instant::now() + Duration::from_millis(100))).await;
            if Instant::now() >= due {
                due += TTL / 4;
                self.renew(&held).await;
            }
        }
    }

    async fn write(&self, command: Command) -> Reply {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.client.write(command.clone()).await {
                Ok(reply) => return reply,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn renew(&self, held: &[Renewal]) {
        let until = Instant::now() + TTL / 2;
        while Instant::now() < until {
            if let Ok(Some(answers)) = self.client.renew(held.to_vec(), Duration::from_secs(2)).await {
                let over = answers.iter().filter(|answer| matches!(answer, Renewed::Over)).count();
                self.tally.over.fetch_add(over as u64, Ordering::Relaxed);
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn acquire(session: SessionId, name: &str) -> Command {
    let lease = LeaseName::new(name).expect("a name");
    let (holder, meta) = ("load".to_owned(), BTreeMap::new());
    Command::Acquire(Acquire { lease, session, holder, wait: false, priority: 0, lock_delay_ms: 0, meta })
}

/// Listens. Returns only if the stream ends.
async fn watch(http: reqwest::Client, url: String, tally: Arc<Tally>) {
    let asked = async || http.get(&url).header("Accept", "text/event-stream").send().await?.error_for_status();
    let mut stream = loop {
        match asked().await {
            Ok(answer) => break answer.bytes_stream(),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    // A line at a time: a piece may end anywhere.
    let mut line = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        for byte in piece {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            match line.as_slice() {
                b"event: snapshot" => tally.listening.fetch_add(1, Ordering::Relaxed),
                b"event: change" => tally.seen.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
            line.clear();
        }
    }
}

/// A client who asks and does not listen.
struct Deaf(TcpStream);

impl Deaf {
    async fn ask(api: SocketAddr, question: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(DEAF_BUFFER).expect("a small buffer");
        let mut stream = socket.connect(api).await.expect("it is heard");
        // Who does not listen is not heard for long, either.
        timeout(Duration::from_millis(200), stream.write_all(question.as_bytes())).await.ok();
        Self(stream)
    }

    /// Listens again: what was on its way, then the word of what is gone, then from where on it is told.
    async fn hears_what_it_missed(self) {
        let mut lines = BufReader::new(self.0).lines();
        let mut gone = false;
        loop {
            let line = lines.next_line().await.expect("the connection stands").expect("the stream goes on");
            gone |= line == "event: compacted";
            if gone && line == "event: snapshot" {
                return;
            }
        }
    }
}

const _: () = assert!(LEASES >= 3 * LEDGER_MAX as u64, "who does not listen must miss something");
