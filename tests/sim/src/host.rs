//! A simulated host: its own runtime with its own time, its clocks, its disk; it crashes, sleeps and stands still.
//!
//! Must stay true: a crash drops the runtime, so that every task ends at the await where it is; what a process leaves
//! behind depends on whether the machine lost its power; a host that stands still is not stepped, and finds its
//! clocks further on afterwards.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use leaseward_raft::Later;
use leaseward_raft::clock::Which;
use leaseward_raft::disk::Disk;
use leaseward_raft::net::transport::Duplex;
use leaseward_raft::simulation::{self, Accept, SimDisk};
use leaseward_raft::store::{MemoryStore, StateStore};
use tokio::runtime::Runtime;
use tokio::time::{Instant, advance, sleep};

use crate::clocks::{At, Clocks, MS};
use crate::net::{self, Net};
use crate::trace::Trace;

/// What a host runs.
pub type Program = Arc<dyn Fn(Arc<Host>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A host as its programs see it. The world keeps it through crashes.
pub struct Host {
    me: Weak<Self>,
    id: usize,
    name: String,
    address: SocketAddr,
    data: PathBuf,
    net: Net,
    trace: Trace,
    inner: Mutex<Inner>,
}

struct Inner {
    clocks: Clocks,
    /// The step that is made, from and to in true time, and where the runtime's clock was when it began.
    step: Option<(At, At, Instant)>,
    now: At,
    powered: bool,
    running: bool,
    died: Option<String>,
    asleep: bool,
    stalled_until: At,
    disk: SimDisk,
    store: MemoryStore,
    boots: u64,
}

impl Host {
    /// Returns a host that is off.
    #[must_use]
    pub fn new(id: usize, name: String, address: SocketAddr, data: PathBuf, net: Net, trace: Trace) -> Arc<Self> {
        let inner = Inner {
            clocks: Clocks::new((id as u64 + 1) * 1_000_000 * MS),
            step: None,
            now: 0,
            powered: false,
            running: false,
            died: None,
            asleep: false,
            stalled_until: 0,
            disk: SimDisk::default(),
            store: MemoryStore::default(),
            boots: 0,
        };
        Arc::new_cyclic(|me| Self { me: me.clone(), id, name, address, data, net, trace, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }

    /// Returns which host it is.
    #[must_use]
    pub fn id(&self) -> usize {
        self.id
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the directory of its data.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Returns the network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Returns the true time, as exact as this host's steps are.
    #[must_use]
    pub fn now(&self) -> At {
        let inner = self.lock();
        match inner.step {
            Some((from, to, began)) => (from + began.elapsed().as_nanos() as u64).min(to),
            None => inner.now,
        }
    }

    /// Returns whether its process can still say anything.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let inner = self.lock();
        inner.powered && inner.running && inner.died.is_none()
    }

    /// Returns whether its machine is on, and does not sleep.
    #[must_use]
    pub fn has_power(&self) -> bool {
        let inner = self.lock();
        inner.powered && !inner.asleep
    }

    /// Returns how often it was booted.
    #[must_use]
    pub fn boots(&self) -> u64 {
        self.lock().boots
    }

    /// The process cannot go on.
    pub fn die(&self, why: &str) {
        let now = self.now();
        let mut inner = self.lock();
        if inner.died.is_none() {
            inner.died = Some(why.to_owned());
            self.trace.line(now, &format!("{} dies: {why}", self.name));
        }
    }

    /// Returns why its process has ended, once.
    pub fn take_death(&self) -> Option<String> {
        self.lock().died.take()
    }

    /// Notes something for people.
    pub fn say(&self, text: &str) {
        self.trace.line(self.now(), &format!("{}: {text}", self.name));
    }

    /// Reads a clock at a true instant.
    #[must_use]
    pub fn clock_at(&self, which: Which, at: At) -> Duration {
        self.lock().clocks.read(which, at)
    }

    /// Changes its clocks.
    pub fn change_clocks(&self, change: impl FnOnce(&mut Clocks, At)) {
        let mut inner = self.lock();
        let now = inner.now;
        change(&mut inner.clocks, now);
    }

    /// Its disk writes nothing until then.
    pub fn stall_disk(&self, until: At) {
        self.lock().stalled_until = until;
    }

    /// Returns the disk of its log.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        self.lock().disk.clone()
    }

    /// Puts another disk into it, with the state that was materialised on it.
    pub fn put_disk(&self, disk: SimDisk, store: MemoryStore) {
        let mut inner = self.lock();
        inner.disk = disk;
        inner.store = store;
    }

    /// Returns the store of its state.
    #[must_use]
    pub fn store(&self) -> MemoryStore {
        self.lock().store.clone()
    }
}

impl simulation::Host for Host {
    fn clock(&self, which: Which) -> Duration {
        self.clock_at(which, self.now())
    }

    fn connect(&self, address: &str) -> Later<'static, io::Result<Box<dyn Duplex>>> {
        let me = self.me.upgrade().expect("the world keeps its hosts");
        let stream = net::connect(&me, address);
        Box::pin(async move { stream.await.map(|stream| Box::new(stream) as Box<dyn Duplex>) })
    }

    fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Accept>> {
        let me = self.me.upgrade().expect("the world keeps its hosts");
        Ok(Box::new(net::listen(&me)?))
    }

    fn log_disk(&self, _: &Path) -> Arc<dyn Disk> {
        Arc::new(self.disk())
    }

    fn log_written(&self) -> Later<'static, ()> {
        let me = self.me.upgrade().expect("the world keeps its hosts");
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            while me.now() < me.lock().stalled_until {
                sleep(Duration::from_millis(5)).await;
            }
        })
    }

    fn state_store(&self, _: &Path) -> Box<dyn StateStore> {
        Box::new(self.store())
    }
}

/// A host as the world drives it.
pub struct Machine {
    /// What its programs see.
    pub host: Arc<Host>,
    program: Program,
    runtime: Option<Runtime>,
    /// How far the runtime's clock is, in milliseconds of the disciplined clock.
    local_ms: u64,
    held: bool,
    asleep: bool,
    paused: bool,
    jump: bool,
    /// Steps that were made.
    pub steps: u64,
}

impl Machine {
    /// Returns a machine that is off.
    #[must_use]
    pub fn new(host: Arc<Host>, program: Program) -> Self {
        Self {
            host,
            program,
            runtime: None,
            local_ms: 0,
            held: false,
            asleep: false,
            paused: false,
            jump: false,
            steps: 0,
        }
    }

    /// Returns whether a process runs on it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.runtime.is_some()
    }

    /// Returns whether it stands still or sleeps.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held || self.asleep || self.paused
    }

    /// Starts its process; with power, if it had none.
    pub fn boot(&mut self, now: At) {
        if self.runtime.is_some() {
            return;
        }
        let had_power = {
            let mut inner = self.host.lock();
            inner.now = now;
            inner.died = None;
            inner.running = true;
            if !inner.powered {
                inner.boots += 1;
            }
            std::mem::replace(&mut inner.powered, true)
        };
        if !had_power {
            self.host.net.power(self.host.id, true);
        }
        self.host.trace.line(now, &format!("{} starts", self.host.name));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without drivers can be made");
        self.local_ms = self.host.clock_at(Which::Monotonic, now).as_millis() as u64;
        self.jump = false;
        let _here = simulation::enter(Arc::clone(&self.host) as Arc<dyn simulation::Host>);
        runtime.spawn((self.program)(Arc::clone(&self.host)));
        self.runtime = Some(runtime);
    }

    /// Ends its process at once. Without power what was not synced is lost, as `seed` decides.
    pub fn crash(&mut self, now: At, power_lost: Option<u64>) {
        if self.runtime.is_none() && power_lost.is_none() {
            return;
        }
        let what = if power_lost.is_some() { "loses its power" } else { "is killed" };
        self.host.trace.line(now, &format!("{} {what}", self.host.name));
        if let Some(seed) = power_lost {
            // Before anything is dropped: nobody is left to close a stream.
            self.host.net.power(self.host.id, false);
            let mut inner = self.host.lock();
            inner.powered = false;
            inner.disk = inner.disk.after_power_cut(seed);
        }
        {
            let mut inner = self.host.lock();
            inner.now = now;
            inner.running = false;
            inner.asleep = false;
            inner.stalled_until = 0;
        }
        (self.held, self.asleep, self.paused) = (false, false, false);
        self.host.change_clocks(|clocks, now| clocks.pause(now, false));
        let _here = simulation::enter(Arc::clone(&self.host) as Arc<dyn simulation::Host>);
        self.runtime = None;
    }

    /// The process stands still, or goes on.
    pub fn hold(&mut self, held: bool) {
        self.jump |= self.held && !held;
        self.held = held;
    }

    /// The machine sleeps, or wakes.
    pub fn sleep(&mut self, now: At, asleep: bool) {
        if self.asleep != asleep && !self.paused {
            self.asleep = asleep;
            let mut inner = self.host.lock();
            (inner.now, inner.asleep) = (now, asleep);
            inner.clocks.suspend(now, asleep);
        }
    }

    /// The virtual machine is paused, or goes on.
    pub fn pause(&mut self, now: At, paused: bool) {
        if self.paused != paused && !self.asleep {
            self.paused = paused;
            let mut inner = self.host.lock();
            inner.now = now;
            inner.clocks.pause(now, paused);
        }
    }

    /// Lets it run from one true instant to another.
    pub fn step(&mut self, from: At, to: At) {
        self.host.lock().now = from;
        if self.is_held() {
            return;
        }
        let Some(runtime) = &self.runtime else { return };
        self.steps += 1;
        let at_from = self.host.clock_at(Which::Monotonic, from).as_millis() as u64;
        let at_to = self.host.clock_at(Which::Monotonic, to).as_millis() as u64;
        let late = if std::mem::take(&mut self.jump) { at_from.saturating_sub(self.local_ms) } else { 0 };
        let forward = at_to.saturating_sub(self.local_ms + late);
        let host = &self.host;
        let _here = simulation::enter(Arc::clone(host) as Arc<dyn simulation::Host>);
        runtime.block_on(async {
            if late > 0 {
                // It stood still: all clocks went on, and it sees the last moment only.
                advance(Duration::from_millis(late)).await;
            }
            host.lock().step = Some((from, to, Instant::now()));
            if forward > 0 {
                sleep(Duration::from_millis(forward)).await;
            } else {
                tokio::task::yield_now().await;
            }
        });
        self.local_ms += late + forward;
        let mut inner = self.host.lock();
        inner.step = None;
        inner.now = to;
    }
}
