//! Looks all the time who has an address, in the kernel's own tables.
//!
//! Must stay true: what it calls two owners are two at one moment. It looks at the newest host first: if that one has
//! the address, the older ones must not have it from here on. So the address may only move from the last host that it
//! is given to the first.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::Instant;

/// Looks until it is asked what it saw.
#[derive(Debug)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// How often it looked.
    pub looks: usize,
    /// How often each host had the address, in the order given.
    pub owners: Vec<usize>,
    /// How often two had it at one moment.
    pub two_owners: usize,
    /// For how long, all in all: from such a look until the next look.
    pub two_owners_for: Duration,
}

impl Watch {
    pub(super) fn start(spaces: Vec<File>, address: IpAddr) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen { owners: vec![0; spaces.len()], ..Seen::default() };
            let mut two_since = None::<Instant>;
            while !over.load(Ordering::Relaxed) {
                let mut owners = 0;
                for (space, times) in spaces.iter().zip(&mut seen.owners) {
                    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
                    if is_here(address) {
                        *times += 1;
                        owners += 1;
                    }
                }
                seen.looks += 1;
                seen.two_owners += usize::from(owners > 1);
                seen.two_owners_for += two_since.take().map(|since| since.elapsed()).unwrap_or_default();
                two_since = (owners > 1).then(Instant::now);
                // As often as a client could ask, and no burden for two processors.
                std::thread::sleep(Duration::from_micros(500));
            }
            seen
        });
        Self { is_over, thread }
    }

    /// Returns what was seen so far, and looks no more.
    ///
    /// # Panics
    /// If it could not look.
    #[must_use]
    pub fn stop(self) -> Seen {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it could look")
    }
}

/// Returns whether this thread's network has an address.
fn is_here(address: IpAddr) -> bool {
    let read = |table: &str| fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect("a table");
    match address {
        IpAddr::V4(ip) => has_v4(&read("fib_trie"), &ip.to_string()),
        IpAddr::V6(ip) => {
            let digits: String = ip.octets().iter().map(|octet| format!("{octet:02x}")).collect();
            read("if_inet6").lines().any(|line| line.starts_with(&digits))
        }
    }
}

/// A leaf names the address, and the lines below it what it is.
fn has_v4(trie: &str, ip: &str) -> bool {
    let mut leaf = "";
    trie.lines().map(str::trim).any(|line| {
        if let Some((_, name)) = line.split_once("-- ") {
            leaf = name;
        }
        leaf == ip && line.ends_with("host LOCAL")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_this_machine_only_where_its_leaf_says_so() {
        let trie = "Local:\n  +-- 0.0.0.0/0 2 0 2\n     |-- 10.77.0.1\n        /32 host LOCAL\n     |-- 10.77.0.100\n        \
                    /32 link UNICAST\n     |-- 10.77.0.101\n        /24 link UNICAST\n        /32 host LOCAL\n";
        let here = ["10.77.0.1", "10.77.0.100", "10.77.0.101", "10.77.0.10"].map(|ip| has_v4(trie, ip));
        assert_eq!(here, [true, false, true, false]);
    }
}
