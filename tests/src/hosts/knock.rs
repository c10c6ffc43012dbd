//! A client that knocks every two milliseconds, whatever became of the knocks before: when a host is there again it is
//! noticed at once, and not when some earlier knock is given up.
//!
//! Must stay true: a refusal is an answer of the host, a greeting is one of the server.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::probe::Answer;
use crate::stamps::boot_ns;

/// From one knock to the next.
const PAUSE: Duration = Duration::from_millis(2);

/// A knock that is not answered within this is forgotten.
const WAIT: Duration = Duration::from_millis(100);

/// What was heard so far, by arrival.
#[derive(Debug, Default)]
struct Heard {
    greetings: Vec<Answer>,
    refusals: Vec<u64>,
}

/// Knocks until it is dropped.
#[derive(Debug)]
pub struct Knocks {
    heard: Arc<Mutex<Heard>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Knocks {
    /// Starts to knock, in the network of the thread that calls this.
    #[must_use]
    pub fn start(to: SocketAddr) -> Self {
        let (heard, is_over) = (Arc::<Mutex<Heard>>::default(), Arc::<AtomicBool>::default());
        let (found, over) = (Arc::clone(&heard), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(knock_until(&over, to, &found));
        });
        Self { heard, is_over, thread: Some(thread) }
    }

    /// Returns the first greeting under another token than this.
    #[must_use]
    pub fn other_than(&self, token: u64) -> Option<Answer> {
        self.lock().greetings.iter().find(|answer| answer.token != token).cloned()
    }

    /// Returns the last greeting so far under this token.
    #[must_use]
    pub fn last(&self, token: u64) -> Option<Answer> {
        self.lock().greetings.iter().rev().find(|answer| answer.token == token).cloned()
    }

    /// Returns the newest greeting.
    #[must_use]
    pub fn newest(&self) -> Option<Answer> {
        self.lock().greetings.last().cloned()
    }

    /// Returns how many greetings came.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().greetings.len()
    }

    /// Returns when anything was heard first after this, be it that nobody listens yet.
    #[must_use]
    pub fn first_sign(&self, after: u64) -> Option<u64> {
        let heard = self.lock();
        let greetings = heard.greetings.iter().map(|answer| answer.at);
        greetings.chain(heard.refusals.iter().copied()).filter(|at| *at > after).min()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().expect("nobody panics with it")
    }
}

impl Drop for Knocks {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn knock_until(over: &AtomicBool, to: SocketAddr, heard: &Arc<Mutex<Heard>>) {
    let mut turns = interval(PAUSE);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !over.load(Ordering::Relaxed) {
        turns.tick().await;
        let heard = Arc::clone(heard);
        tokio::spawn(async move {
            let Ok(outcome) = timeout(WAIT, knock(to)).await else { return };
            let mut heard = heard.lock().expect("nobody panics with it");
            match outcome {
                Ok(Some(answer)) => heard.greetings.push(answer),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => heard.refusals.push(boot_ns()),
                Ok(None) | Err(_) => {}
            }
        });
    }
}

async fn knock(to: SocketAddr) -> io::Result<Option<Answer>> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So many connections must not wait for each other's end.
    socket.set_zero_linger()?;
    let mut line = String::new();
    BufReader::new(socket.connect(to).await?).read_line(&mut line).await?;
    let said = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
    Ok(said.and_then(|(machine, token)| {
        Some(Answer { at: boot_ns(), machine: machine.to_owned(), token: token.parse().ok()? })
    }))
}
