//! Three real voters under a steady mix of everything, for an hour: does anything grow that should not?
//!
//! `LEASEWARD_FOR` says how long (`1h`), `LEASEWARD_SEED` what clients do, `LEASEWARD_PACE` how many times as fast. At the
//! usual pace they work at a modest rate, well below half a processor, so that it may run beside
//! other work. Snapshots are made and the log is purged several times, leadership is handed over, and the last voter is
//! killed and started again now and then; the other two live throughout.
//!
//! Must stay true: what is sampled is judged by a pure function ([`judge`]). Memory of the voter that is killed is compared
//! from life to life, at the same age. It fails on growth, on a session that was renewed and ended, and on every answer
//! that the cluster should not have given; also if it was too short to judge.

mod judge;
mod sample;
mod work;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use judge::Series;
use leaseward_tests::{Lab, Plan};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use reqwest::Method;
use sample::Sample;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use work::{Change, FALSE_EXPIRIES, NAMED, Tally, World};

use crate::members::{cpu_ms_of, enough_files};

const HOUR: Duration = Duration::from_secs(3_600);
const SAMPLE_EACH: Duration = Duration::from_secs(5);

/// Sessions with a lease that are kept throughout.
const STAYING: usize = 40;

/// Programs that contend for leases.
const HOLDERS: usize = 16;
const WATCHERS: usize = 12;
const JOINING: usize = 3;

/// The voter that is killed now and then.
const KILLED: usize = 2;

/// Small, so that snapshots are made, the log is purged and content is collected many times.
const STORAGE: &str = "[storage]\nsnapshot_after_bytes = 2097152\nlog_bytes_kept = 2097152\ncontent_kept = \"30s\"\n";

/// Clients that are told to stop must come to an end within this.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) async fn soak() -> Value {
    enough_files();
    let span = std::env::var("LEASEWARD_FOR").map_or(HOUR, |text| {
        text.parse::<leaseward_http::model::Duration>().expect("LEASEWARD_FOR is a duration such as 1h").into()
    });
    let seed = std::env::var("LEASEWARD_SEED").map_or(1, |text| text.parse().expect("LEASEWARD_SEED is a number"));
    eprintln!("soak for {span:?}, seed {seed}");
    let plan = Plan { profile: "default", ttl: "3s", log: "warn", voter_settings: STORAGE, ..Plan::default() };
    let mut lab = Lab::start(plan).await;
    let tally = Arc::<Tally>::default();
    let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(1)).build().expect("a client");
    let world = World {
        peers: (0..3).map(|voter| lab.peer(voter).to_string()).collect(),
        apis: (0..3).map(|voter| lab.api(voter)).collect(),
        http: http.clone(),
        tally: Arc::clone(&tally),
    };
    let mut clients = start(&lab, &world, seed);
    let mut record = Record { began: Instant::now(), life_began: 0.0, samples: Vec::new() };
    let mut disturb = Disturb::over(span);
    let mut ticks = interval(SAMPLE_EACH);
    while record.began.elapsed() < span {
        ticks.tick().await;
        record.sample(&lab, &http, &tally).await;
        disturb.now_and_then(&mut lab, &mut record, &tally).await;
    }
    tally.stop.store(true, Ordering::Relaxed);
    let ended = async { while clients.join_next().await.is_some_and(|ended| ended.is_ok()) {} };
    if timeout(STOPPED_WITHIN, ended).await.is_err() || !clients.is_empty() {
        tally.unexpected("a client did not come to its end".into());
    }
    let mut line = record.report(seed, span, disturb.snapshots(&lab), &tally);
    let cores = |voter| cpu_ms_of(&lab, voter) as f64 / record.began.elapsed().as_millis() as f64;
    line["voters_cpu_cores"] = (0..KILLED).map(cores).map(|cores| (cores * 1_000.0).round() / 1_000.0).collect();
    line
}

/// Starts all clients.
fn start(lab: &Lab, world: &World, seed: u64) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    let mut number = seed.wrapping_mul(1_000);
    let mut random = || {
        number += 1;
        SmallRng::seed_from_u64(number)
    };
    let mut spawn = |client: Box<dyn Future<Output = ()> + Send>| drop(clients.spawn(Box::into_pin(client)));
    (0..STAYING).for_each(|n| spawn(Box::new(work::stay(world.clone(), n))));
    (0..HOLDERS).for_each(|_| spawn(Box::new(work::hold(world.clone(), random()))));
    (0..WATCHERS).for_each(|_| spawn(Box::new(work::watch(world.clone(), random()))));
    (0..JOINING).for_each(|n| spawn(Box::new(work::join(world.clone(), random(), n))));
    spawn(Box::new(work::abandon(world.clone(), random())));
    spawn(Box::new(work::transact(world.clone(), random())));
    for change in [Change::Line, Change::Inline, Change::Large] {
        spawn(Box::new(work::publish(world.clone(), random(), change, lab.shell())));
    }
    clients
}

/// Hands leadership over, and kills a voter, now and then.
struct Disturb {
    hand_over_each: Duration,
    kill_each: Duration,
    hand_over_at: Instant,
    kill_at: Instant,
}

impl Disturb {
    fn over(span: Duration) -> Self {
        let hand_over_each = (span / 30).clamp(Duration::from_secs(15), Duration::from_secs(60));
        let kill_each = (span / 12).clamp(Duration::from_secs(45), Duration::from_secs(300));
        let now = Instant::now();
        Self { hand_over_each, kill_each, hand_over_at: now + hand_over_each, kill_at: now + kill_each }
    }

    async fn now_and_then(&mut self, lab: &mut Lab, record: &mut Record, tally: &Tally) {
        if Instant::now() >= self.kill_at {
            self.kill_at += self.kill_each;
            lab.kill_voter(KILLED);
            lab.start_voter(KILLED);
            record.life_began = record.began.elapsed().as_secs_f64();
            tally.did("voter_killed");
        } else if Instant::now() >= self.hand_over_at {
            self.hand_over_at += self.hand_over_each;
            // Nobody may be able to take over just now.
            match lab.call(Method::POST, "/v1/cluster/transfer-leader", None).await {
                Some((204, _)) => tally.did("leader_handed_over"),
                _ => tally.did("leader_not_handed_over"),
            }
        }
    }

    /// Returns how far the snapshots of the voters are: they must have been made.
    fn snapshots(&self, lab: &Lab) -> Vec<u64> {
        let newest = |voter: usize| -> Option<u64> {
            let names = std::fs::read_dir(lab.voter_data(voter).join("snapshots")).ok()?;
            let index = |name: String| name.strip_prefix("snapshot-")?.split('-').next()?.parse().ok();
            names.flatten().filter_map(|entry| index(entry.file_name().to_string_lossy().into_owned())).max()
        };
        (0..3).map(|voter| newest(voter).unwrap_or(0)).collect()
    }
}

/// Everything that was sampled.
struct Record {
    began: Instant,
    /// When the killed voter was started last, in seconds.
    life_began: f64,
    /// Seconds since the beginning, the voter, how long its process is sure to live already, and what it used.
    samples: Vec<(f64, usize, f64, Sample)>,
}

impl Record {
    async fn sample(&mut self, lab: &Lab, http: &reqwest::Client, tally: &Tally) {
        for voter in 0..3 {
            let mut sample = sample::take(lab, http, voter).await;
            // They are kept for a day, so they grow by design.
            if let Some(kept) = sample.get_mut("answers_kept") {
                *kept -= NAMED.iter().map(|what| tally.count(what)).sum::<u64>() as f64;
            }
            let at = self.began.elapsed().as_secs_f64();
            let age = if voter == KILLED { at - self.life_began } else { f64::INFINITY };
            self.samples.push((at, voter, age, sample));
        }
    }

    /// Returns what is judged, by voter and name. Of the voter that is killed, memory counts once it has lived a while.
    fn series(&self, settled: f64) -> Vec<Series> {
        let mut all: BTreeMap<(usize, &str), Vec<(f64, f64)>> = BTreeMap::new();
        for (at, voter, age, sample) in &self.samples {
            for (name, value) in sample.iter().filter(|(name, _)| *age >= settled || !sample::is_of_process(name)) {
                all.entry((*voter, name)).or_default().push((*at, *value));
            }
        }
        let series = |((voter, name), samples): ((usize, &str), _)| Series {
            name: format!("n{} {name}", voter + 1),
            allowed: sample::allowed(name),
            samples,
        };
        all.into_iter().map(series).collect()
    }

    fn report(&self, seed: u64, span: Duration, snapshots: Vec<u64>, tally: &Tally) -> Value {
        let seconds = span.as_secs_f64();
        let settled = Disturb::over(span).kill_each.as_secs_f64() / 3.0;
        let series = self.series(settled);
        let judged: Vec<_> =
            series.iter().filter_map(|series| Some((&series.name, judge::judge(series, seconds)?))).collect();
        let grew: Vec<_> = judged.iter().filter(|(_, verdict)| verdict.grew()).map(|(name, _)| *name).collect();
        let not_judged: Vec<_> =
            series.iter().map(|series| &series.name).filter(|name| judged.iter().all(|(of, _)| of != name)).collect();
        let false_expiries = tally.count(FALSE_EXPIRIES) + tally.members.over.load(Ordering::Relaxed);
        let unexpected = tally.all_unexpected();
        let failed = !grew.is_empty()
            || !not_judged.is_empty()
            || false_expiries > 0
            || !unexpected.is_empty()
            || snapshots.contains(&0);
        let lines: serde_json::Map<_, _> =
            judged.iter().map(|(name, verdict)| ((*name).clone(), verdict.line())).collect();
        json!({
            "seed": seed, "seconds": seconds, "samples": self.samples.len(), "did": tally.counts(), "series": lines,
            "grew": grew, "not_judged": not_judged, "newest_snapshots": snapshots, "false_expiries": false_expiries,
            "unexpected": unexpected.len(), "unexpected_first": unexpected.iter().take(20).collect::<Vec<_>>(),
            "failed": failed,
        })
    }
}
