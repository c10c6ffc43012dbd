//! kill -9 of any voter at any time loses no acknowledged write.
//!
//! The slow run: `LEASEWARD_CRASH_KILLS=150 cargo test -p leaseward-tests --test it crash -- --nocapture`, with
//! `LEASEWARD_SEED=…` to repeat one. The seed decides whom to kill and when; the kernel's scheduler decides the rest.
//!
//! Each writer writes one thing after another and notes what it was told. A write whose outcome nobody told may have
//! happened, once. At the end the cluster must have exactly what the notes allow, on all three voters alike.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::{Error, LeaseName, SetName};
use leaseward_state::command::{Acquire, PublishSet};
use leaseward_state::config::Digest;
use leaseward_state::propose::Committed;
use leaseward_state::{Command, FencingToken, Reply, SessionId};
use leaseward_tests::{Lab, PATIENCE, Plan, binary, eventually};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::time::sleep;

/// Kills in the ordinary run.
const KILLS: u64 = 12;

/// Acknowledged writes that must follow before the next kill, unless it is to come early.
const PROGRESS: u64 = 30;

/// Longer than the test: nobody renews.
const TTL_MS: u64 = 6 * 60 * 60 * 1000;

/// Versions in one set; older ones would be forgotten beyond 100, where nobody asks for more.
const VERSIONS: u64 = 90;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What all writers share.
#[derive(Clone, Default)]
struct Shared {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    unknown: Arc<AtomicU64>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A client that writes one thing at a time.
struct Writer {
    client: Client,
    shared: Shared,
    newest: u64,
}

impl Writer {
    fn new(lab: &Lab, shared: &Shared) -> Self {
        Self { client: lab.client(), shared: shared.clone(), newest: 0 }
    }

    /// Returns the reply, or `None` if nobody told the outcome.
    async fn write(&mut self, command: Command) -> Option<Reply> {
        match self.client.write_within(command, PATIENCE / 6).await {
            Ok(Committed { revision, reply }) => {
                assert!(revision.0 > self.newest, "revision {revision} came after {}", self.newest);
                self.newest = revision.0;
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                Some(reply)
            }
            Err(error @ (Error::Unknown | Error::Unavailable(_))) => {
                println!("outcome unknown: {error}");
                self.shared.unknown.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => panic!("nobody should say no: {error}"),
        }
    }

    async fn session(&mut self) -> SessionId {
        loop {
            match self.write(Command::OpenSession { name: "crash".into(), ttl_ms: TTL_MS }).await {
                Some(Reply::Session(session)) => return session,
                Some(other) => panic!("a strange answer: {other:?}"),
                None => {}
            }
        }
    }
}

/// What a writer knows of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Free,
    Held(FencingToken),
    /// The last write of it may or may not have happened.
    Unsure,
}

/// Takes and gives back leases. Returns what must be so at the end.
async fn lease_writer(mut writer: Writer, who: u64, mut random: SmallRng) -> BTreeMap<String, Known> {
    let session = writer.session().await;
    let names: Vec<LeaseName> = (0..40).map(|i| LeaseName::new(format!("crash/{who}/{i}")).expect("a name")).collect();
    let mut known: BTreeMap<String, Known> = names.iter().map(|name| (name.to_string(), Known::Free)).collect();
    let mut greatest: BTreeMap<String, FencingToken> = BTreeMap::new();
    while writer.shared.goes_on() {
        let name = names[random.gen_range(0..names.len())].clone();
        let slot = known.get_mut(name.as_str()).expect("it is one of them");
        if let Known::Held(token) = *slot {
            *slot = match writer.write(Command::Release { lease: name, token }).await {
                Some(_) => Known::Free,
                None => Known::Unsure,
            };
            continue;
        }
        let was_free = *slot == Known::Free;
        let acquire = Acquire {
            lease: name.clone(),
            session,
            holder: "w".into(),
            wait: false,
            priority: 0,
            lock_delay_ms: 0,
            meta: BTreeMap::new(),
        };
        *slot = match writer.write(Command::Acquire(acquire)).await {
            Some(Reply::Granted { grant, .. }) => {
                let before = greatest.insert(name.to_string(), grant.token);
                assert!(before.is_none_or(|before| grant.token > before || (!was_free && grant.token == before)));
                Known::Held(grant.token)
            }
            Some(other) => panic!("a strange answer: {other:?}"),
            None => Known::Unsure,
        };
    }
    known
}

/// What a publisher knows of one set: manifest by version, and those whose outcome nobody told.
#[derive(Debug, Default)]
struct Published {
    acknowledged: BTreeMap<u64, String>,
    unsure: BTreeSet<String>,
    /// So many whose manifest is not known here.
    nameless: u64,
}

/// Publishes versions whatever the set has, so that a write that is applied twice makes two of them.
async fn publisher(mut writer: Writer, who: u64) -> BTreeMap<String, Published> {
    let mut sets: BTreeMap<String, Published> = BTreeMap::new();
    for i in 0.. {
        if !writer.shared.goes_on() {
            break;
        }
        let set = SetName::new(format!("crash-{who}-{}", i / VERSIONS)).expect("a name");
        let mut digest = [who as u8; 32];
        digest[..8].copy_from_slice(&i.to_be_bytes());
        let manifest = Digest(digest);
        let publish = PublishSet { set: set.clone(), parent: None, manifest, files: 1, bytes: 1, delta: None };
        let command = Command::Publish { sets: vec![publish], author: "crash".into(), message: i.to_string() };
        let published = sets.entry(set.to_string()).or_default();
        match writer.write(command).await {
            Some(Reply::Versions(versions)) => {
                let before = published.acknowledged.insert(versions[0].1, manifest.to_string());
                assert_eq!(before, None, "two writes got the same version");
            }
            Some(other) => panic!("a strange answer: {other:?}"),
            None => {
                published.unsure.insert(manifest.to_string());
            }
        }
    }
    sets
}

/// Publishes real directories with the command line, which asks one voter after the other.
async fn command_line_publisher(shared: Shared, dir: PathBuf, addresses: String) -> BTreeMap<String, Published> {
    let mut published = Published::default();
    for i in 0..VERSIONS {
        if !shared.goes_on() {
            break;
        }
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("number"), i.to_string()).expect("written");
        let mut command = tokio::process::Command::new(binary());
        command.args(["config", "publish", "crash-cli", "--no-wait", "-o", "json", "--from"]).arg(&dir);
        command.env("XDG_CACHE_HOME", dir.with_extension("cache"));
        command.env("LEASEWARD_ADDR", &addresses).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.expect("it starts");
        if output.status.success() {
            let version: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
            let (number, manifest) = (version["version"].as_u64(), version["manifest"].as_str());
            let (number, manifest) = (number.expect("a number"), manifest.expect("a name").to_owned());
            assert_eq!(published.acknowledged.insert(number, manifest), None, "two writes got the same version");
            shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            published.nameless += 1;
            shared.unknown.fetch_add(1, Ordering::Relaxed);
        }
    }
    BTreeMap::from([("crash-cli".to_owned(), published)])
}

/// Opens sessions and ends most of them. Returns those that must live, those that must not, and how many may.
async fn session_writer(mut writer: Writer, mut random: SmallRng) -> (BTreeSet<u64>, BTreeSet<u64>, u64) {
    let (mut open, mut ended, mut unsure) = (BTreeSet::new(), BTreeSet::new(), 0);
    while writer.shared.goes_on() {
        let command = Command::OpenSession { name: "counted".into(), ttl_ms: TTL_MS };
        match writer.write(command).await {
            Some(Reply::Session(session)) => assert!(open.insert(session.0), "a session was opened twice"),
            Some(other) => panic!("a strange answer: {other:?}"),
            None => unsure += 1,
        }
        let Some(session) = open.first().copied().filter(|_| random.gen_bool(0.9)) else { continue };
        open.remove(&session);
        match writer.write(Command::EndSession { session: SessionId(session) }).await {
            Some(_) => {
                ended.insert(session);
            }
            None => unsure += 1,
        }
    }
    (open, ended, unsure)
}

/// Kills voters and starts them again, as the seed says.
async fn kill_again_and_again(lab: &mut Lab, shared: &Shared, random: &mut SmallRng, kills: u64) {
    let mut killed = 0;
    while killed < kills {
        let first = random.gen_range(0..3);
        let mut down = vec![first];
        if random.gen_bool(0.25) {
            down.push((first + random.gen_range(1..3)) % 3);
        }
        for voter in &down {
            lab.kill_voter(*voter);
            killed += 1;
            // Not to wait for anything: how long a voter is down is part of the attack.
            sleep(Duration::from_millis(random.gen_range(0..250))).await;
        }
        for voter in &down {
            lab.start_voter(*voter);
        }
        let before = shared.acknowledged.load(Ordering::Relaxed);
        if random.gen_bool(0.7) {
            let enough = || std::future::ready(shared.acknowledged.load(Ordering::Relaxed) >= before + PROGRESS);
            eventually("writes are acknowledged again", enough).await;
        }
        sleep(Duration::from_millis(random.gen_range(0..300))).await;
    }
}

/// Returns what a voter has, without what differs by its role.
async fn everything(lab: &Lab, voter: usize, consistency: &str) -> Option<BTreeMap<&'static str, Vec<Value>>> {
    let mut all = BTreeMap::new();
    for path in ["/v1/leases", "/v1/sessions", "/v1/configs", "/v1/servers"] {
        let mut items = lab.list_at(voter, &format!("{path}?consistency={consistency}")).await?;
        for item in &mut items {
            // Only the leader's timers run.
            item.as_object_mut()?.remove("remaining");
        }
        all.insert(path, items);
    }
    Some(all)
}

fn name_of(item: &Value) -> &str {
    item["name"].as_str().expect("a name")
}

fn check_leases(found: &[Value], known: &BTreeMap<String, Known>) {
    let held: BTreeMap<&str, &str> =
        found.iter().map(|lease| (name_of(lease), lease["token"].as_str().expect("a token"))).collect();
    for (name, known) in known {
        let found = held.get(name.as_str()).copied();
        match known {
            Known::Free => assert_eq!(found, None, "{name} was given back"),
            Known::Held(token) => assert_eq!(found, Some(token.to_string().as_str()), "{name} was granted"),
            Known::Unsure => {}
        }
    }
    let foreign: Vec<_> = held.keys().filter(|name| !known.contains_key(**name)).collect();
    assert!(foreign.is_empty(), "nobody took {foreign:?}");
}

async fn check_set(lab: &Lab, set: &str, published: &Published) {
    let path = format!("/v1/configs/{set}/versions");
    let versions = lab.until_some("the history is shown", async |lab| lab.list_at(0, &path).await).await;
    let found: BTreeMap<u64, String> = versions
        .iter()
        .map(|version| {
            let manifest = version["manifest"].as_str().expect("a name").to_owned();
            (version["version"].as_u64().expect("a number"), manifest)
        })
        .collect();
    for (number, manifest) in &published.acknowledged {
        assert_eq!(found.get(number), Some(manifest), "{set} v{number} was acknowledged");
    }
    let distinct: BTreeSet<&String> = found.values().collect();
    assert_eq!(distinct.len(), found.len(), "{set}: a write was applied twice");
    let others = found.iter().filter(|(number, _)| !published.acknowledged.contains_key(number));
    let others: Vec<_> = others.filter(|(_, manifest)| !published.unsure.contains(*manifest)).collect();
    assert!(others.len() as u64 <= published.nameless, "{set}: nobody published {others:?}");
}

fn check_sessions(found: &[Value], open: &BTreeSet<u64>, ended: &BTreeSet<u64>, unsure: u64) {
    let counted = found.iter().filter(|session| name_of(session) == "counted");
    let found: BTreeSet<u64> =
        counted.map(|session| session["id"].as_str().expect("an id").parse().expect("a number")).collect();
    let lost: Vec<_> = open.difference(&found).collect();
    assert!(lost.is_empty(), "sessions are lost: {lost:?}");
    let back: Vec<_> = ended.intersection(&found).collect();
    assert!(back.is_empty(), "sessions that ended are back: {back:?}");
    assert!(found.len() as u64 <= open.len() as u64 + unsure, "sessions were opened twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost() {
    let kills = number("LEASEWARD_CRASH_KILLS", KILLS);
    let seed = number("LEASEWARD_SEED", 4_711);
    println!("crash test: seed {seed}, {kills} kills; LEASEWARD_CRASH_KILLS=150 for the slow run");
    let mut lab = Lab::start(Plan { log: "warn", ..Plan::default() }).await;
    let mut random = SmallRng::seed_from_u64(seed);
    let shared = Shared::default();
    let leases: Vec<_> = (0..3)
        .map(|who| {
            let random = SmallRng::seed_from_u64(seed ^ (who + 1));
            tokio::spawn(lease_writer(Writer::new(&lab, &shared), who, random))
        })
        .collect();
    let addresses = (0..3).map(|voter| lab.api(voter).to_string()).collect::<Vec<_>>().join(",");
    let mut publishers: Vec<_> = (0..2).map(|who| tokio::spawn(publisher(Writer::new(&lab, &shared), who))).collect();
    publishers.push(tokio::spawn(command_line_publisher(shared.clone(), lab.dir().join("published"), addresses)));
    let sessions = tokio::spawn(session_writer(Writer::new(&lab, &shared), SmallRng::seed_from_u64(!seed)));

    kill_again_and_again(&mut lab, &shared, &mut random, kills).await;
    shared.stop.store(true, Ordering::Relaxed);
    let mut known = BTreeMap::new();
    for writer in leases {
        known.append(&mut writer.await.expect("the writer ends"));
    }
    let mut published = BTreeMap::new();
    for publisher in publishers {
        published.append(&mut publisher.await.expect("the publisher ends"));
    }
    let (open, ended, unsure) = sessions.await.expect("the writer ends");

    for voter in 0..3 {
        assert!(lab.voter_lives(voter), "a voter ended by itself");
    }
    // A linearizable read sees everything that was acknowledged, whichever voter is asked.
    let truth = lab.until_some("a voter reads", async |lab| everything(lab, 0, "linearizable").await).await;
    check_leases(&truth["/v1/leases"], &known);
    check_sessions(&truth["/v1/sessions"], &open, &ended, unsure);
    for (set, published) in &published {
        check_set(&lab, set, published).await;
    }
    for voter in 0..3 {
        let alike = async |lab: &Lab| Some(everything(lab, voter, "stale").await? == truth);
        lab.until("all voters have the same", alike, true).await;
    }
    let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
    let versions: usize = published.values().map(|published| published.acknowledged.len()).sum();
    let held = known.values().filter(|known| matches!(known, Known::Held(_))).count();
    println!(
        "crash test: seed {seed}, {kills} kills, {acknowledged} acknowledged writes, 0 lost ({} of unknown outcome; \
         checked: {held} held leases of {}, {versions} versions, {} open and {} ended sessions, 3 equal voters)",
        shared.unknown.load(Ordering::Relaxed),
        known.len(),
        open.len(),
        ended.len(),
    );
}
