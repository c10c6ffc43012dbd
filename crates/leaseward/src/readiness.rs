//! Whether this machine should get requests, as load balancers ask: HAProxy's agent check and an HTTP probe, on one port.
//!
//! Must stay true: a machine says `drain` from the moment that a set asks it to leave until that set lets it come back, or
//! is none of this machine's any more; who waits for its sessions to end begins to count only after each load balancer
//! that asks has heard of it.
//! Left out on purpose: which sets ask for it, and when (`leaseward-sync`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use leaseward_state::SetName;
use leaseward_sync::member::{Gate, Leaving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::limits::{CHECKER_GONE, CHECKS_AT_ONCE, SESSIONS_LOOK_EACH};

/// A load balancer that says nothing first gets the agent check's answer after this.
const SPEAKS_WITHIN: Duration = Duration::from_millis(50);

/// An answer to a load balancer has arrived, and its last request before it, after this.
const ON_THEIR_WAY: Duration = Duration::from_millis(100);

/// Whether this machine should get requests.
#[derive(Debug)]
pub struct Readiness {
    now: Mutex<Now>,
    /// Ports of this machine whose connections are the sessions that are waited for.
    ports: Vec<u16>,
    /// Whether anybody can ask at all.
    asked: bool,
}

#[derive(Debug, Default)]
struct Now {
    /// Sets that asked the machine to leave.
    out: BTreeSet<SetName>,
    /// The sets that this machine is to have; `None` until a voter said it. Without any, all are taken for known: an outage
    /// takes nobody out of a load balancer.
    known: Option<BTreeSet<SetName>>,
    /// When each load balancer asked last, and whether it was told to drain then.
    checkers: BTreeMap<IpAddr, (Instant, bool)>,
}

impl Readiness {
    /// Returns a machine that is ready. `ports` are those that its servers listen on; `asked` says whether load balancers
    /// can ask.
    #[must_use]
    pub fn new(ports: Vec<u16>, asked: bool) -> Arc<Self> {
        Arc::new(Self { now: Mutex::default(), ports, asked })
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // A panic while it was held cannot leave it half-changed.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why requests should go elsewhere, if they should; `set` asks for one set only.
    #[must_use]
    pub fn why_not(&self, set: Option<&str>) -> Option<String> {
        let now = self.now();
        let out: Vec<&str> =
            now.out.iter().map(SetName::as_str).filter(|out| set.is_none_or(|set| set == *out)).collect();
        (!out.is_empty()).then(|| format!("config is on its way: {}", out.join(", ")))
    }

    /// Says which sets this machine is to have from now on. Others keep it out no longer.
    pub fn has<'a>(&self, sets: impl Iterator<Item = &'a SetName>) {
        let known: BTreeSet<SetName> = sets.cloned().collect();
        let mut now = self.now();
        now.out.retain(|set| known.contains(set));
        now.known = Some(known);
    }

    /// Returns whether a load balancer may ask for a set.
    fn knows(&self, set: &str) -> bool {
        self.now().known.as_ref().is_none_or(|known| known.iter().any(|known| known.as_str() == set))
    }

    /// Answers load balancers until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "a load balancer could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Too many at once are let go: they ask again.
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                let _slot = slot;
                timeout(Duration::from_secs(2), this.answer(stream, from.ip())).await.ok();
            });
        }
    }

    async fn answer(&self, mut stream: TcpStream, from: IpAddr) {
        let mut asked = [0; 1024];
        let length = match timeout(SPEAKS_WITHIN, stream.read(&mut asked)).await {
            Ok(Ok(length)) => length,
            Ok(Err(_)) => return,
            Err(_) => 0,
        };
        let asked = String::from_utf8_lossy(&asked[..length]);
        let line = asked.lines().next().unwrap_or_default();
        let path = line.split(' ').nth(1).filter(|_| line.starts_with("GET ") || line.starts_with("HEAD "));
        let answer = match path {
            None => {
                let out = self.why_not(None).is_some();
                self.now().checkers.insert(from, (Instant::now(), out));
                // HAProxy's words: a drained server goes on with the sessions that it has.
                if out { "drain\n".to_owned() } else { "ready up\n".to_owned() }
            }
            Some(path) => {
                let set = path.split_once("?set=").map(|(_, set)| set);
                let known = path == "/readyz" || path.starts_with("/readyz?set=");
                let why = self.why_not(set);
                if set.is_none() {
                    self.now().checkers.insert(from, (Instant::now(), why.is_some()));
                }
                let (status, body) = match why {
                    _ if !known => ("404 Not Found", "ask for /readyz\n".to_owned()),
                    None if set.is_some_and(|set| !self.knows(set)) => {
                        let set = set.unwrap_or_default();
                        ("404 Not Found", format!("this machine has no set {set}: see leaseward config ls\n"))
                    }
                    Some(why) => ("503 Service Unavailable", format!("{why}\n")),
                    None => ("200 OK", "ready\n".to_owned()),
                };
                format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                )
            }
        };
        stream.write_all(answer.as_bytes()).await.ok();
        stream.shutdown().await.ok();
    }

    /// Returns whether each load balancer that asks has heard that this machine drains. One that has not asked yet may
    /// send requests all the same: until somebody has, nobody knows.
    fn everybody_knows(&self) -> bool {
        let mut now = self.now();
        now.checkers.retain(|_, (asked, _)| asked.elapsed() < CHECKER_GONE);
        !now.checkers.is_empty() && now.checkers.values().all(|(_, told)| *told)
    }

    async fn sessions_end(&self) {
        while !self.everybody_knows() {
            sleep(SESSIONS_LOOK_EACH).await;
        }
        // The answer is on its way, and a request that was sent just before it, too.
        sleep(ON_THEIR_WAY).await;
        // Without ports nobody can say when they ended: the whole time is theirs.
        if self.ports.is_empty() {
            std::future::pending::<()>().await;
        }
        while sessions(&self.ports) > 0 {
            sleep(SESSIONS_LOOK_EACH).await;
        }
    }
}

impl Gate for Readiness {
    fn leave<'a>(&'a self, set: &'a SetName, within: Duration) -> Leaving<'a> {
        Box::pin(async move {
            let first = self.now().out.insert(set.clone());
            if !self.asked || within.is_zero() {
                return;
            }
            if first {
                info!(%set, "this machine leaves its load balancer");
            }
            timeout(within, self.sessions_end()).await.ok();
        })
    }

    fn come_back(&self, set: &SetName) {
        if self.now().out.remove(set) {
            info!(%set, "this machine is ready for its load balancer");
        }
    }
}

/// Returns how many connections to these ports of this machine are open.
fn sessions(ports: &[u16]) -> usize {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().map(|table| open_in(Path::new(table), ports)).sum()
}

fn open_in(table: &Path, ports: &[u16]) -> usize {
    /// `TCP_ESTABLISHED`, as the kernel writes it.
    const ESTABLISHED: &str = "01";
    let Ok(text) = std::fs::read_to_string(table) else { return 0 };
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        state == ESTABLISHED && port.is_some_and(|port| ports.contains(&port))
    };
    text.lines().skip(1).filter(is_ours).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16, say: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(say.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_set_takes_the_machine_out_and_puts_it_back() {
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = service.local_addr().unwrap().port();
        let readiness = Readiness::new(vec![port], true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let checks = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(Arc::clone(&readiness).serve(listener));
        assert_eq!(ask(checks, "").await, "ready up\n");
        assert!(ask(checks, "GET /readyz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.1 200"));

        let session = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (accepted, _) = service.accept().await.unwrap();
        let set = SetName::new("app").unwrap();
        let leaving = tokio::spawn({
            let (readiness, set) = (Arc::clone(&readiness), set.clone());
            async move { readiness.leave(&set, Duration::from_secs(60)).await }
        });
        let told = async {
            while ask(checks, "").await != "drain\n" {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), told).await.expect("it says so");
        assert!(ask(checks, "GET /readyz?set=app HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.1 503"));
        assert!(ask(checks, "GET /readyz?set=other HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(ask(checks, "GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        // As soon as it is known which sets there are, a typo is none of them.
        readiness.has([set.clone(), SetName::new("third").unwrap()].iter());
        for (name, status) in [("app", "503"), ("third", "200"), ("other", "404")] {
            let answer = ask(checks, &format!("GET /readyz?set={name} HTTP/1.0\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
        }
        assert!(!leaving.is_finished(), "a session is open");
        drop((session, accepted));
        timeout(Duration::from_secs(20), leaving).await.expect("its sessions ended").unwrap();
        assert!(readiness.why_not(None).is_some(), "it stays out until the set lets it come back");
        readiness.come_back(&set);
        assert_eq!(ask(checks, "").await, "ready up\n");
        // One that is removed lets nobody wait for it.
        readiness.leave(&set, Duration::ZERO).await;
        assert_eq!(ask(checks, "").await, "drain\n");
        readiness.has([SetName::new("third").unwrap()].iter());
        assert_eq!(ask(checks, "").await, "ready up\n");
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_balancer_that_has_not_heard_of_it_is_waited_for_within_the_bound() {
        let readiness = Readiness::new(vec![1], true);
        readiness.now().checkers.insert([127, 0, 0, 1].into(), (Instant::now(), false));
        let set = SetName::new("app").unwrap();
        let began = Instant::now();
        // One that asks no more is forgotten.
        readiness.leave(&set, CHECKER_GONE / 2).await;
        assert_eq!(began.elapsed(), CHECKER_GONE / 2);
        // And while nobody asks, nobody is known to know.
        readiness.leave(&set, CHECKER_GONE * 2).await;
        assert_eq!(began.elapsed(), CHECKER_GONE / 2 + CHECKER_GONE * 2);
        readiness.now().checkers.insert([127, 0, 0, 1].into(), (Instant::now(), true));
        let began = Instant::now();
        readiness.leave(&set, CHECKER_GONE).await;
        assert!(began.elapsed() < CHECKER_GONE);
    }
}
