//! Jepsen's lock-set: clients add elements to a set that has no transactions, each under a lease: read, work for a while,
//! write. Two holders at one time lose elements.
//!
//! Two kinds. Unguarded: the resource takes whatever comes, and the client looks at its lease right before it writes. Guarded:
//! the client never looks, and the resource refuses smaller tokens than it has seen, at reading too: whoever has read under a
//! token has ended those before it.
//!
//! Must stay true: a client believes in its lease when its library says so at that moment, and each such moment is known by
//! the boot clock, read before it asked. The same workers, set and times for every lock service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::{Cluster, Lease};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Scene;
use crate::history::{History, Record, op};
use crate::stamps::boot_ns;

/// How long a client waits for the lease before it asks anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a client looks whether it believes.
const LOOK_EACH: Duration = Duration::from_millis(3);

/// What a client keeps back of its validity for the write itself.
const TO_WRITE: Duration = Duration::from_millis(20);

/// A service of locks.
pub(super) trait Locks {
    /// A lock that is held.
    type Held: Held;

    /// Waits for a lock; `None` if it was not to be had in this time.
    async fn acquire(&self, lease: &str, owner: &str, within: Duration) -> Option<Self::Held>;
}

/// A lock that is held, as far as its holder knows.
pub(super) trait Held {
    /// The fencing token.
    fn token(&self) -> u64;

    /// For how long the holder may still believe; zero once it may not.
    fn remaining(&self) -> Duration;

    /// Gives it back.
    async fn release(self);
}

/// Our leases.
#[derive(Clone)]
pub(super) struct Ours {
    cluster: Cluster,
    ttl: Duration,
}

impl Ours {
    pub(super) fn new(client: Client, ttl: Duration) -> Self {
        Self { cluster: Cluster::with_client(client), ttl }
    }
}

impl Locks for Ours {
    type Held = Lease;

    async fn acquire(&self, lease: &str, owner: &str, within: Duration) -> Option<Lease> {
        let request = self.cluster.lease(lease).expect("a name").ttl(self.ttl).owner(owner);
        request.acquire_timeout(within).await.ok()
    }
}

impl Held for Lease {
    fn token(&self) -> u64 {
        Self::token(self).0
    }

    fn remaining(&self) -> Duration {
        Self::remaining(self)
    }

    async fn release(self) {
        Self::release(self).await.ok();
    }
}

/// What the leases guard.
#[derive(Debug, Default)]
struct Resource {
    elements: Vec<u64>,
    /// The greatest token so far, if it looks.
    greatest: u64,
}

impl Resource {
    /// Returns whether it takes what comes with this token.
    fn takes(&mut self, guarded: bool, token: u64) -> bool {
        if guarded && token < self.greatest {
            return false;
        }
        self.greatest = self.greatest.max(token);
        true
    }
}

/// The resources of a run.
#[derive(Clone)]
pub(super) struct Resources {
    by_name: Arc<HashMap<&'static str, Mutex<Resource>>>,
    next_element: Arc<AtomicU64>,
}

const GUARDED: &str = "guarded";
const UNGUARDED: &str = "unguarded";

/// Returns the name of the resource that looks at tokens, or of the one that does not.
pub(super) fn name(guarded: bool) -> &'static str {
    if guarded { GUARDED } else { UNGUARDED }
}

/// Returns resources that have nothing yet.
pub(super) fn resources() -> Resources {
    let by_name = [GUARDED, UNGUARDED].map(|name| (name, Mutex::default())).into();
    Resources { by_name: Arc::new(by_name), next_element: Arc::default() }
}

/// Writes down what they have in the end.
pub(super) fn write_down(resources: &Resources, history: &History) {
    for (name, resource) in resources.by_name.iter() {
        let resource = resource.lock().expect("no holder of this lock panics");
        let now = boot_ns();
        let last = Record::begun(op::FINAL, 0, "harness", name, now);
        history.add(last.done(now, json!({ "elements": resource.elements })));
    }
}

/// One client.
pub(super) struct Worker {
    history: History,
    is_over: Arc<AtomicBool>,
    resources: Resources,
    name: &'static str,
    host: &'static str,
    client: u32,
    random: SmallRng,
    /// It works under the lock for up to so long.
    works_for: Duration,
    slowly_for: Duration,
    /// Whether it is to work slowly from its next turn on.
    pub(super) is_slow: Arc<AtomicBool>,
    /// Tells whether it has begun to work slowly, under its lock.
    pub(super) is_holding: Arc<AtomicBool>,
}

/// The moments at which a client believed.
#[derive(Default)]
struct Belief {
    moments: Option<(u64, u64)>,
}

impl Belief {
    /// Looks, and returns whether there is so much time left.
    fn looks(&mut self, held: &impl Held, least: Duration) -> bool {
        let now = boot_ns();
        let remaining = held.remaining();
        if !remaining.is_zero() {
            self.moments = Some((self.moments.map_or(now, |moments| moments.0), now));
        }
        remaining > least
    }
}

impl Worker {
    pub(super) fn new(scene: &Scene, resources: &Resources, guarded: bool, host: &'static str, ttl: Duration) -> Self {
        let client = scene.next_client();
        Self {
            history: scene.history.clone(),
            is_over: Arc::clone(&scene.is_over),
            resources: resources.clone(),
            name: name(guarded),
            host,
            client,
            random: SmallRng::seed_from_u64(scene.seed ^ (u64::from(client) << 32)),
            // Longer than a lease lives: it has to be kept.
            works_for: ttl * 4,
            slowly_for: Duration::ZERO,
            is_slow: Arc::default(),
            is_holding: Arc::default(),
        }
    }

    /// Works for other times: up to so long, and exactly so long while it is to be slow.
    pub(super) fn working(mut self, works_for: Duration, slowly_for: Duration) -> Self {
        (self.works_for, self.slowly_for) = (works_for, slowly_for);
        self
    }

    /// Works until the run is over.
    pub(super) async fn work(mut self, service: impl Locks) {
        let owner = format!("{}-{}", self.host, self.client);
        let lease = format!("lock-set/{}", self.name);
        while !self.is_over.load(Ordering::Relaxed) {
            let Some(held) = service.acquire(&lease, &owner, PATIENCE).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let mut belief = Belief::default();
            self.add(&held, &mut belief).await;
            belief.looks(&held, Duration::ZERO);
            self.is_holding.store(false, Ordering::Relaxed);
            if let Some((from, to)) = belief.moments {
                let hold = Record::begun(op::HOLD, self.client, self.host, &lease, from);
                self.history.add(hold.done(to, json!({ "token": held.token().to_string() })));
            }
            held.release().await;
            sleep(Duration::from_millis(self.random.gen_range(0..60))).await;
        }
    }

    /// Reads the set, works, and writes the set with one more.
    async fn add(&mut self, held: &impl Held, belief: &mut Belief) {
        let element = self.resources.next_element.fetch_add(1, Ordering::Relaxed);
        let record = Record::begun(op::ADD, self.client, self.host, self.name, boot_ns());
        let record = record.asking(json!({ "element": element, "token": held.token().to_string() }));
        let refused = |record: Record, why: &str| record.failed(boot_ns(), json!({ "why": why }));
        let guarded = self.name == GUARDED;
        let resource = &self.resources.by_name[self.name];
        let read = {
            let is_believed = belief.looks(held, TO_WRITE);
            let mut resource = resource.lock().expect("no holder of this lock panics");
            ((guarded || is_believed) && resource.takes(guarded, held.token())).then(|| resource.elements.clone())
        };
        let Some(mut elements) = read else {
            self.history.add(refused(record, "refused at reading"));
            return;
        };
        let is_slow = self.is_slow.load(Ordering::Relaxed);
        let works_for = self.works_for.mul_f64(self.random.gen_range(0.0..1.0));
        let until = Instant::now() + if is_slow { self.slowly_for } else { works_for };
        self.is_holding.store(is_slow, Ordering::Relaxed);
        while Instant::now() < until {
            // Who is careful ends his work when he may not believe any more; who is not, goes on.
            if !belief.looks(held, TO_WRITE) && !guarded {
                self.history.add(refused(record, "the lease was lost"));
                return;
            }
            sleep(LOOK_EACH).await;
        }
        elements.push(element);
        let is_believed = belief.looks(held, TO_WRITE);
        let written = {
            let mut resource = resource.lock().expect("no holder of this lock panics");
            let takes = (guarded || is_believed) && resource.takes(guarded, held.token());
            if takes {
                resource.elements = elements;
                if guarded {
                    let at = boot_ns();
                    let effect = Record::begun(op::EFFECT, self.client, self.host, self.name, at);
                    self.history.add(effect.done(at, json!({ "token": held.token().to_string() })));
                }
            }
            takes
        };
        let done = if written { record.done(boot_ns(), json!({})) } else { refused(record, "refused at writing") };
        self.history.add(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::judge::{Expected, judge};

    /// A service that gives its lock to whoever asks: the workload must notice.
    struct Everybody(AtomicU64);

    struct Mine(u64);

    impl Locks for &Everybody {
        type Held = Mine;

        async fn acquire(&self, _: &str, _: &str, _: Duration) -> Option<Mine> {
            Some(Mine(self.0.fetch_add(1, Ordering::Relaxed)))
        }
    }

    impl Held for Mine {
        fn token(&self) -> u64 {
            self.0
        }

        fn remaining(&self) -> Duration {
            Duration::from_secs(1)
        }

        async fn release(self) {}
    }

    /// Returns the checkers that found something, after so many elements.
    async fn found(guarded: bool) -> Vec<&'static str> {
        let dir = tempfile::tempdir().expect("a directory");
        let history = History::create(&dir.path().join("history")).expect("written");
        let is_over = Arc::<AtomicBool>::default();
        let scene = Scene {
            history: history.clone(),
            apis: Vec::new(),
            peers: Vec::new(),
            seed: 1,
            clients: Arc::default(),
            writing: Arc::default(),
            is_over: Arc::clone(&is_over),
        };
        let (resources, service) = (resources(), Everybody(AtomicU64::new(1)));
        let worker = || Worker::new(&scene, &resources, guarded, "c", Duration::from_millis(20)).work(&service);
        let over = async {
            let count = || history.records().iter().filter(|record| record.op == op::ADD).count();
            crate::eventually("elements are added", async || count() >= 60).await;
            is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(worker(), worker(), worker(), over);
        write_down(&resources, &history);
        let found = judge(&history.records(), &Expected::default());
        let mut checkers: Vec<&str> = found.iter().map(|anomaly| anomaly.checker).collect();
        checkers.dedup();
        checkers
    }

    #[tokio::test]
    async fn a_lock_that_everybody_has_loses_elements_unless_the_resource_looks_at_tokens() {
        assert_eq!(found(false).await, ["exclusive", "lock-set"]);
        assert_eq!(found(true).await, ["exclusive"], "two believe, and the resource loses nothing");
    }
}
