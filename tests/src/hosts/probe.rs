//! A client that asks again and again, each time on a new connection: what a user of the server would notice.
//!
//! Must stay true: only what was answered counts as working, and who answered says so himself.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::stamps::boot_ns;

/// From an answer to the next question.
const PAUSE: Duration = Duration::from_millis(5);

/// An answer that takes longer is none. A switch that does not know yet where the address went loses questions.
const WAIT: Duration = Duration::from_millis(50);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When it arrived, in nanoseconds of the boot clock.
    pub at: u64,
    /// The host that answered.
    pub machine: String,
    /// The token under which it did.
    pub token: u64,
}

/// Asks until it is dropped.
#[derive(Debug)]
pub struct Probe {
    to: SocketAddr,
    answers: Arc<Mutex<Vec<Answer>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Starts to ask, in the network of the thread that calls this.
    #[must_use]
    pub fn start(to: SocketAddr) -> Self {
        let (answers, is_over) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let (found, over) = (Arc::clone(&answers), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if let Some(answer) = ask(to) {
                    found.lock().expect("nobody panics with it").push(answer);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { to, answers, is_over, thread: Some(thread) }
    }

    /// Returns the answers so far.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().expect("nobody panics with it").clone()
    }

    /// Returns the newest answer, if it came after `since`.
    #[must_use]
    pub fn newest(&self, since: u64) -> Option<Answer> {
        self.answers().pop().filter(|answer| answer.at > since)
    }

    /// Returns the first answer under a greater token.
    #[must_use]
    pub fn after(&self, token: u64) -> Option<Answer> {
        self.answers().into_iter().find(|answer| answer.token > token)
    }

    /// Returns the longest time without an answer that ended after `since`, up to now.
    #[must_use]
    pub fn longest_gap(&self, since: u64) -> Duration {
        longest_gap(&self.answers(), since, boot_ns())
    }

    /// Returns the longest gap, and prints it, after it is certain that no older token answered after a newer one.
    ///
    /// # Panics
    /// If one did, or if the gap is longer than this.
    #[track_caller]
    pub fn check_gap(&self, what: &str, since: u64, at_most: Duration) -> Duration {
        let answers = self.answers();
        for pair in answers.windows(2) {
            assert!(pair[0].token <= pair[1].token, "two owners: {:?}, then {:?}", pair[0], pair[1]);
        }
        let gap = longest_gap(&answers, since, boot_ns());
        println!("{what}: {} did not answer for {gap:?} at most, of {} answers", self.to, answers.len());
        assert!(gap <= at_most, "{what}: {} was silent for {gap:?}; {at_most:?} are allowed", self.to);
        gap
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn longest_gap(answers: &[Answer], since: u64, now: u64) -> Duration {
    let ends = answers.iter().skip(1).map(|answer| answer.at).chain([now]);
    let gaps = answers.iter().zip(ends).filter(|(_, end)| *end > since).map(|(answer, end)| end - answer.at);
    Duration::from_nanos(gaps.max().unwrap_or(u64::MAX))
}

fn ask(to: SocketAddr) -> Option<Answer> {
    let stream = TcpStream::connect_timeout(&to, WAIT).ok()?;
    let (machine, token) = greeting(&stream, WAIT)?;
    Some(Answer { at: boot_ns(), machine, token })
}

/// Reads who is there: the first line on every connection.
#[must_use]
pub fn greeting(stream: &TcpStream, wait: Duration) -> Option<(String, u64)> {
    stream.set_read_timeout(Some(wait)).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let (machine, token) = line.strip_suffix('\n')?.split_once(' ')?;
    Some((machine.to_owned(), token.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_one_that_ended_since_and_may_be_the_one_until_now() {
        let answers: Vec<Answer> =
            [10, 40, 45, 55].map(|at| Answer { at, machine: "h1".to_owned(), token: 1 }).to_vec();
        let gap = |since, now| longest_gap(&answers, since, now).as_nanos();
        assert_eq!((gap(0, 56), gap(42, 56), gap(42, 99)), (30, 10, 44));
        assert_eq!(longest_gap(&[], 0, 5), Duration::from_nanos(u64::MAX), "never an answer is no short gap");
    }
}
