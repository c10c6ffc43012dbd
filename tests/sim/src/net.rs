//! The simulated network: streams between hosts, with delays and cuts in each direction, and what TCP makes of them.
//!
//! Must stay true: bytes of a stream arrive in order and once, or the stream breaks; bytes that meet a cut wait and are
//! sent again; a machine that lost its power closes nothing, and whoever speaks to it learns of it after the same time
//! as from a kernel; a process that ends closes its streams. Loss, duplication and reordering of packets are delays
//! here, for a stream shows no more of them; all streams that go the same way share what it carries. Left out: windows that fill.

mod stream;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use leaseward_raft::limits::UNACKNOWLEDGED_MAX;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clocks::{At, MS};
use crate::trace::Trace;

pub use stream::{Listener, Stream, connect, listen};

/// What meets a cut is sent again after this.
const AGAIN: At = 200 * MS;

/// Each so often it is looked whether streams lead anywhere.
const LOOK_EACH: At = 250 * MS;

/// The network. Clones share it.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Inner>>);

struct Inner {
    random: SmallRng,
    trace: Trace,
    nodes: Vec<Node>,
    /// From one host to another.
    links: Vec<Vec<Link>>,
    /// When what each of them carries is through.
    busy_until: Vec<Vec<At>>,
    events: BinaryHeap<Reverse<(At, u64, Event)>>,
    sequence: u64,
    streams: BTreeMap<u64, Pair>,
    looked: At,
    delivered: u64,
}

struct Node {
    address: SocketAddr,
    powered: bool,
    listening: Option<Backlog>,
}

#[derive(Default)]
struct Backlog {
    id: u64,
    arrived: VecDeque<u64>,
    waker: Option<Waker>,
}

/// One direction between two hosts.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Nothing comes through.
    pub cut: bool,
    /// The shortest and the longest way of a packet.
    pub delay: (At, At),
    /// Bytes that it carries in a millisecond; more have to wait. `None`: as many as there are.
    pub carries: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first packet of a stream is there.
    Open(u64),
    /// Its answer.
    Opened(u64, bool),
    /// The next bytes of a stream, from this end.
    Bytes(u64, usize),
    /// This end learns that the stream is broken.
    Broken(u64, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Waits,
    Open,
    Refused,
}

struct Pair {
    opening: Opening,
    ends: [End; 2],
    /// Since when nothing comes through.
    silent: Option<At>,
}

#[derive(Default)]
struct End {
    host: usize,
    /// What arrived here.
    arrived: VecDeque<u8>,
    /// What this end sent and has not arrived; `None` is its end.
    sent: VecDeque<Option<Vec<u8>>>,
    last_at: At,
    ended: bool,
    broken: bool,
    /// The program does not have it any more.
    dropped: bool,
    /// The machine does not know it any more.
    lost: bool,
    waker: Option<Waker>,
}

impl Net {
    /// Returns a network of these hosts.
    #[must_use]
    pub fn new(seed: u64, addresses: &[SocketAddr], trace: Trace) -> Self {
        let nodes = addresses.iter().map(|address| Node { address: *address, powered: false, listening: None });
        let usual = Link { cut: false, delay: (MS, 2 * MS), carries: None };
        let inner = Inner {
            random: SmallRng::seed_from_u64(seed),
            trace,
            nodes: nodes.collect(),
            links: vec![vec![usual; addresses.len()]; addresses.len()],
            busy_until: vec![vec![0; addresses.len()]; addresses.len()],
            events: BinaryHeap::new(),
            sequence: 0,
            streams: BTreeMap::new(),
            looked: 0,
            delivered: 0,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Changes one direction between two hosts.
    pub fn link(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.lock().links[from][to]);
    }

    /// Returns whether nothing comes through in this direction.
    #[must_use]
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.lock().links[from][to].cut
    }

    /// A host has power from now on, or none. Without it nothing of its streams is left, and nobody is told.
    pub fn power(&self, host: usize, powered: bool) {
        let mut inner = self.lock();
        inner.nodes[host].powered = powered;
        if !powered {
            inner.nodes[host].listening = None;
            for pair in inner.streams.values_mut() {
                for end in pair.ends.iter_mut().filter(|end| end.host == host) {
                    end.lost = true;
                }
            }
        }
    }

    /// Breaks every stream between two hosts: a firewall that forgot them.
    pub fn reset(&self, one: usize, other: usize, now: At) {
        let mut inner = self.lock();
        let ids: Vec<u64> =
            inner.streams.iter().filter(|(_, pair)| pair.is_between(one, other)).map(|(id, _)| *id).collect();
        for id in ids {
            inner.push(now, Event::Broken(id, 0));
            inner.push(now, Event::Broken(id, 1));
        }
    }

    /// Returns how many pieces arrived so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.lock().delivered
    }

    /// Lets arrive what has arrived by `now`.
    pub fn deliver(&self, now: At) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.lock();
            while inner.events.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
                let Some(Reverse((_, _, event))) = inner.events.pop() else { break };
                inner.happen(event, now, &mut wakers);
            }
            if now >= inner.looked + LOOK_EACH {
                inner.looked = now;
                inner.look(now);
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Pair {
    fn is_between(&self, one: usize, other: usize) -> bool {
        let hosts = (self.ends[0].host, self.ends[1].host);
        hosts == (one, other) || hosts == (other, one)
    }
}

impl Inner {
    fn push(&mut self, at: At, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn delay(&mut self, from: usize, to: usize) -> At {
        if from == to {
            return MS / 10;
        }
        let (low, high) = self.links[from][to].delay;
        self.random.gen_range(low..=high)
    }

    /// Returns when so many bytes have left, behind all others that go the same way.
    fn carried(&mut self, from: usize, to: usize, now: At, bytes: usize) -> At {
        let Some(each_ms) = self.links[from][to].carries.filter(|_| from != to) else { return now };
        let busy = &mut self.busy_until[from][to];
        *busy = now.max(*busy) + bytes as At * MS / each_ms.max(1);
        *busy
    }

    /// Sends one packet of a stream on its way, behind those before it.
    fn send(&mut self, id: u64, side: usize, now: At, piece: Option<Vec<u8>>) {
        let Some(pair) = self.streams.get(&id) else { return };
        let (from, to) = (pair.ends[side].host, pair.ends[1 - side].host);
        let at = self.carried(from, to, now, piece.as_ref().map_or(0, Vec::len)) + self.delay(from, to);
        let Some(pair) = self.streams.get_mut(&id) else { return };
        let end = &mut pair.ends[side];
        end.last_at = end.last_at.max(at);
        end.sent.push_back(piece);
        let at = end.last_at;
        self.push(at, Event::Bytes(id, side));
    }

    fn happen(&mut self, event: Event, now: At, wakers: &mut Vec<Waker>) {
        match event {
            Event::Open(id) => self.open(id, now, wakers),
            Event::Opened(id, open) => {
                let Some(pair) = self.streams.get_mut(&id) else { return };
                if self.links[pair.ends[1].host][pair.ends[0].host].cut {
                    return self.push(now + AGAIN, event);
                }
                pair.opening = if open { Opening::Open } else { Opening::Refused };
                wakers.extend(pair.ends[0].waker.take());
            }
            Event::Bytes(id, side) => self.arrive(id, side, now, wakers),
            Event::Broken(id, side) => {
                let Some(pair) = self.streams.get_mut(&id) else { return };
                pair.ends[side].broken = true;
                wakers.extend(pair.ends[side].waker.take());
            }
        }
    }

    fn open(&mut self, id: u64, now: At, wakers: &mut Vec<Waker>) {
        let Some(pair) = self.streams.get(&id) else { return };
        let (from, to) = (pair.ends[0].host, pair.ends[1].host);
        if pair.ends[0].lost || !self.nodes[to].powered {
            return;
        }
        if from != to && self.links[from][to].cut {
            return self.push(now + AGAIN, Event::Open(id));
        }
        let back = self.delay(to, from);
        let accepted = match &mut self.nodes[to].listening {
            Some(backlog) => {
                backlog.arrived.push_back(id);
                wakers.extend(backlog.waker.take());
                true
            }
            None => false,
        };
        self.push(now + back, Event::Opened(id, accepted));
    }

    fn arrive(&mut self, id: u64, side: usize, now: At, wakers: &mut Vec<Waker>) {
        let Some(pair) = self.streams.get_mut(&id) else { return };
        let (from, to) = (pair.ends[side].host, pair.ends[1 - side].host);
        if !self.nodes[to].powered || (from != to && self.links[from][to].cut) {
            return self.push(now + AGAIN, Event::Bytes(id, side));
        }
        let Some(piece) = pair.ends[side].sent.pop_front() else { return };
        self.delivered += 1;
        let end = &mut pair.ends[1 - side];
        if end.lost || (end.dropped && piece.is_some()) {
            // Nobody knows the stream there: the other kernel says so.
            let back = self.delay(to, from);
            return self.push(now + back, Event::Broken(id, side));
        }
        self.trace.bytes(now, id * 2 + side as u64, piece.as_deref().unwrap_or_default());
        match piece {
            Some(bytes) => end.arrived.extend(bytes),
            None => end.ended = true,
        }
        wakers.extend(end.waker.take());
    }

    /// Breaks streams on which nothing came through for as long as a kernel waits; forgets those that nobody has.
    fn look(&mut self, now: At) {
        let wait = UNACKNOWLEDGED_MAX.as_nanos() as u64;
        let mut broken = Vec::new();
        for (id, pair) in &mut self.streams {
            let [one, other] = [pair.ends[0].host, pair.ends[1].host];
            let dead = !self.nodes[one].powered || !self.nodes[other].powered;
            let cut = one != other && (self.links[one][other].cut || self.links[other][one].cut);
            if !dead && !cut {
                pair.silent = None;
                // A machine that was started again does not know the stream.
                for side in 0..2 {
                    if pair.ends[1 - side].lost && !pair.ends[side].broken {
                        broken.push((*id, side));
                    }
                }
                continue;
            }
            let since = *pair.silent.get_or_insert(now);
            if now >= since + wait {
                broken.extend([(*id, 0), (*id, 1)]);
            }
        }
        for (id, side) in broken {
            self.push(now + MS, Event::Broken(id, side));
        }
        self.streams.retain(|_, pair| !pair.ends.iter().all(|end| end.dropped || end.lost));
    }
}
