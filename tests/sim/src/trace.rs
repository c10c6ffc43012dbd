//! What happened, in order: a hash that two runs of one seed share, and the last lines for people.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clocks::{At, MS};

/// Lines kept for people.
const LINES_MAX: usize = 400;

/// The trace of a run. Clones share it.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
    print: bool,
}

fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

impl Trace {
    /// Prints each line from now on.
    pub fn print(&self) {
        self.lock().print = true;
    }

    /// Notes bytes that arrived somewhere.
    pub fn bytes(&self, now: At, of: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.events += 1;
        let mut hash = fnv(inner.hash, &now.to_le_bytes());
        hash = fnv(hash, &of.to_le_bytes());
        inner.hash = fnv(hash, bytes);
    }

    /// Notes something that a person wants to read.
    pub fn line(&self, now: At, text: &str) {
        let mut inner = self.lock();
        inner.events += 1;
        let line = format!("{:>10.3} {text}", now as f64 / (1_000 * MS) as f64);
        inner.hash = fnv(inner.hash, line.as_bytes());
        if inner.print {
            println!("{line}");
        }
        inner.lines.push_back(line);
        if inner.lines.len() > LINES_MAX {
            inner.lines.pop_front();
        }
    }

    /// Returns the hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    /// Returns how many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// Returns the newest lines.
    #[must_use]
    pub fn newest(&self, count: usize) -> Vec<String> {
        let inner = self.lock();
        inner.lines.iter().skip(inner.lines.len().saturating_sub(count)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }
}
