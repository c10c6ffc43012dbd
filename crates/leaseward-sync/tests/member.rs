//! The member's loop with real directories and a source that can be made to misbehave.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_state::config::{Digest, SyncState};
use leaseward_state::name::SetName;
use leaseward_sync::member::{Blob, FetchError, Fetching, Member, MemberConfig, Report, Source, Wanted, WantedVersion};
use leaseward_sync::{digest_of, frame, manifest, scan};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc, watch};

const BOUND: Duration = Duration::from_secs(30);

/// A voter in memory.
#[derive(Default)]
struct Voter {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// How often each blob was given.
    given: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are refused so many times.
    failing: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are given wrong so many times.
    corrupt: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are never given, though they are asked for.
    stuck: Mutex<BTreeSet<Digest>>,
    asked_stuck: Notify,
}

fn take(times: &Mutex<BTreeMap<Digest, usize>>, digest: Digest) -> bool {
    match times.lock().unwrap().get_mut(&digest) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    }
}

impl Source for Voter {
    fn fetch(&self, digest: Digest) -> Fetching<'_> {
        Box::pin(async move {
            if self.stuck.lock().unwrap().contains(&digest) {
                self.asked_stuck.notify_one();
                std::future::pending::<()>().await;
            }
            let refuse = |why: &str| FetchError { digest, why: why.to_owned() };
            if take(&self.failing, digest) {
                return Err(refuse("connection refused"));
            }
            if take(&self.corrupt, digest) {
                return Ok(Blob::Plain(b"wrong".to_vec()));
            }
            let bytes = self.blobs.lock().unwrap().get(&digest).cloned().ok_or_else(|| refuse("not here"))?;
            let mut given = self.given.lock().unwrap();
            let count = given.entry(digest).or_default();
            *count += 1;
            // Both forms, in turn.
            Ok(if *count % 2 == 1 { Blob::Frame(frame::pack(&bytes).unwrap()) } else { Blob::Plain(bytes) })
        })
    }
}

impl Voter {
    fn publish(&self, number: u64, files: &[(&str, &str)]) -> WantedVersion {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), files);
        let scanned = scan(temp.path()).unwrap();
        let bytes = manifest::encode(scanned.manifest());
        let manifest = digest_of(&bytes);
        let mut blobs = self.blobs.lock().unwrap();
        blobs.insert(manifest, bytes);
        for digest in scanned.digests() {
            blobs.insert(digest, scanned.read(digest).unwrap());
        }
        WantedVersion { number, manifest }
    }
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

struct World {
    temp: TempDir,
    voter: Arc<Voter>,
    wanted: watch::Sender<Wanted>,
    reports: mpsc::Receiver<Report>,
    member: Option<Member>,
    seen: Vec<Report>,
}

fn set(name: &str) -> SetName {
    SetName::new(name).unwrap()
}

impl World {
    fn new() -> Self {
        let (wanted, _) = watch::channel(Wanted::new());
        let (_, reports) = mpsc::channel(1);
        let temp = tempfile::tempdir().unwrap();
        let mut world = Self { temp, voter: Arc::default(), wanted, reports, member: None, seen: Vec::new() };
        world.start();
        world
    }

    fn config(&self) -> MemberConfig {
        let config = MemberConfig::new(self.temp.path().join("config"), self.temp.path().join("state"));
        MemberConfig { parallel_fetches: 2, reserve_bytes: 0, ..config }
    }

    fn start(&mut self) {
        self.start_with(self.config());
    }

    fn start_with(&mut self, config: MemberConfig) {
        let (sender, reports) = mpsc::channel(1000);
        let source: Arc<dyn Source> = Arc::clone(&self.voter) as _;
        self.member = Some(Member::spawn(config, self.wanted.subscribe(), source, sender));
        self.reports = reports;
    }

    async fn stop(&mut self) {
        tokio::time::timeout(BOUND, self.member.take().unwrap().stop()).await.expect("it stops");
    }

    fn want(&self, name: &str, version: WantedVersion) {
        self.wanted.send_modify(|wanted| {
            wanted.insert(set(name), version);
        });
    }

    /// Returns the first report of which `found` holds, with a bound.
    async fn until(&mut self, found: impl Fn(&Report) -> bool) -> Report {
        let search = async {
            loop {
                let report = self.reports.recv().await.expect("the member runs");
                self.seen.push(report.clone());
                if found(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(BOUND, search).await.expect("the report comes")
    }

    async fn applied(&mut self, name: &str, version: u64) {
        self.until(|report| report.set == set(name) && report.applied == version && report.state == SyncState::Applied)
            .await;
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.temp.path().join("config").join(path)).unwrap_or_default()
    }

    /// Returns the states reported so far, in short.
    fn story(&self) -> Vec<String> {
        let word = |report: &Report| match &report.state {
            SyncState::Fetching { version } => format!("{} fetching {version}", report.applied),
            SyncState::OnDisk { version } => format!("{} on disk {version}", report.applied),
            SyncState::Applied => format!("{} applied", report.applied),
            SyncState::Rejected { version, why } => format!("{} rejected {version}: {}", report.applied, &why[..6]),
            other => format!("{other:?}"),
        };
        self.seen.iter().map(word).collect()
    }
}

#[tokio::test]
async fn versions_arrive_one_after_the_other_and_each_step_is_reported_once() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1"), ("d/b", "1")]));
    world.applied("app", 1).await;
    assert_eq!((world.read("app/a"), world.read("app/d/b")), ("1".into(), "1".into()));
    world.want("app", world.voter.publish(2, &[("a", "2"), ("d/b", "1")]));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "2");
    // Back to an older version is a version like any other.
    world.want("app", world.voter.publish(3, &[("a", "1"), ("d/b", "1")]));
    world.applied("app", 3).await;
    let story = [
        "0 fetching 1",
        "0 on disk 1",
        "1 applied",
        "1 fetching 2",
        "1 on disk 2",
        "2 applied",
        "2 fetching 3",
        "2 on disk 3",
        "3 applied",
    ];
    assert_eq!(world.story(), story);
    assert_eq!(world.voter.given.lock().unwrap()[&digest_of(b"1")], 1, "the old file was not fetched again");
    world.stop().await;
    let blobs = leaseward_sync::BlobStore::open(&world.temp.path().join("state/sets/app/blobs")).unwrap();
    assert_eq!(blobs.digests().unwrap().count(), 0, "the tree holds them now");
}

#[tokio::test]
async fn a_newer_version_supersedes_a_fetch_under_way() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "first")]);
    world.voter.stuck.lock().unwrap().insert(digest_of(b"first"));
    world.want("app", one);
    tokio::time::timeout(BOUND, world.voter.asked_stuck.notified()).await.unwrap();
    world.want("app", world.voter.publish(2, &[("a", "second")]));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "second");
    assert!(world.seen.iter().all(|report| report.applied != 1));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_and_then_works_is_asked_again() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x"), ("b", "y")]);
    world.voter.failing.lock().unwrap().extend([(one.manifest, 3), (digest_of(b"x"), 2)]);
    let began = tokio::time::Instant::now();
    world.want("app", one);
    world.applied("app", 1).await;
    // Five waits, each twice the one before: 0.2 s to 3.2 s.
    assert!(began.elapsed() >= Duration::from_millis(6200), "{:?}", began.elapsed());
    assert_eq!(world.story(), ["0 fetching 1", "0 on disk 1", "1 applied"]);
    assert_eq!(world.voter.given.lock().unwrap()[&digest_of(b"y")], 1, "what was fetched stays");
}

#[tokio::test]
async fn a_corrupt_chunk_is_refused_and_fetched_again() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x")]);
    world.voter.corrupt.lock().unwrap().extend([(one.manifest, 1), (digest_of(b"x"), 4)]);
    world.want("app", one);
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "x");
}

#[tokio::test]
async fn a_restart_in_the_middle_resumes() {
    let mut world = World::new();
    let files: Vec<(String, String)> = (0..20).map(|i| (format!("f{i}"), format!("content {i}"))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let one = world.voter.publish(1, &files);
    // The last one that is asked for, as chunks go in ascending order.
    let last = files.iter().map(|(_, text)| digest_of(text.as_bytes())).max().unwrap();
    world.voter.stuck.lock().unwrap().insert(last);
    world.want("app", one);
    tokio::time::timeout(BOUND, world.voter.asked_stuck.notified()).await.unwrap();
    world.stop().await;
    assert_eq!(world.read("app/f0"), "");
    world.voter.stuck.lock().unwrap().clear();
    world.start();
    world.applied("app", 1).await;
    assert_eq!(world.read("app/f19"), "content 19");
    let given = world.voter.given.lock().unwrap().clone();
    let again = given.values().filter(|count| **count > 1).count();
    assert!(again <= 2, "{again} blobs were fetched twice; only those under way may be");
    // And once more: nothing is fetched, and the version is reported.
    world.stop().await;
    world.start();
    world.applied("app", 1).await;
    assert_eq!(*world.voter.given.lock().unwrap(), given);
}

#[tokio::test]
async fn a_target_that_is_somebody_elses_is_reported_until_it_is_moved_away() {
    let mut world = World::new();
    write(&world.temp.path().join("config/app"), &[("a", "mine")]);
    world.want("app", world.voter.publish(1, &[("a", "theirs")]));
    let report = world.until(|report| matches!(report.state, SyncState::Rejected { .. })).await;
    let SyncState::Rejected { version: 1, why } = report.state else { panic!() };
    assert!(why.starts_with("LW0805") && why.contains("config/app"), "{why}");
    assert_eq!(world.read("app/a"), "mine");
    fs::remove_file(world.temp.path().join("config/app/a")).unwrap();
    world.applied("app", 1).await;
    assert_eq!(world.story(), ["0 fetching 1", "0 rejected 1: LW0805", "1 applied"]);
}

#[tokio::test]
async fn a_hostile_manifest_is_rejected_and_the_next_version_is_taken() {
    let mut world = World::new();
    let text = "leaseward manifest 1\nd 755 ../out\n";
    let bytes = format!("{text}end 1 {:08x}\n", crc32c::crc32c(text.as_bytes())).into_bytes();
    let manifest = digest_of(&bytes);
    world.voter.blobs.lock().unwrap().insert(manifest, bytes);
    world.want("app", WantedVersion { number: 1, manifest });
    world.until(|report| matches!(report.state, SyncState::Rejected { version: 1, .. })).await;
    assert!(!world.temp.path().join("config/out").exists());
    world.want("app", world.voter.publish(2, &[("a", "2")]));
    world.applied("app", 2).await;
}

#[tokio::test]
async fn sets_do_not_disturb_each_other_and_an_unwanted_one_is_left_alone() {
    let mut world = World::new();
    world.stop().await;
    let config = world.config();
    let elsewhere = world.temp.path().join("elsewhere/b");
    let inside = world.temp.path().join("config/a/inside");
    let targets = BTreeMap::from([(set("b"), elsewhere.clone()), (set("c"), inside)]);
    world.start_with(MemberConfig { targets, ..config });
    let stuck = world.voter.publish(1, &[("a", "stuck")]);
    world.want("a", world.voter.publish(1, &[("a", "1")]));
    world.applied("a", 1).await;
    world.voter.stuck.lock().unwrap().insert(digest_of(b"stuck"));
    world.want("a", stuck);
    world.want("b", world.voter.publish(7, &[("b", "7")]));
    world.applied("b", 7).await;
    assert_eq!(fs::read_to_string(elsewhere.join("b")).unwrap(), "7");
    // A target inside another set's target would be torn away with it.
    world.want("c", world.voter.publish(1, &[("c", "1")]));
    world.until(|report| report.set == set("c") && matches!(report.state, SyncState::Rejected { .. })).await;
    world.wanted.send_modify(|wanted| {
        wanted.remove(&set("b"));
    });
    world.want("d", world.voter.publish(1, &[("d", "1")]));
    world.applied("d", 1).await;
    assert_eq!(fs::read_to_string(elsewhere.join("b")).unwrap(), "7");
    world.stop().await;
}
