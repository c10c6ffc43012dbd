//! A member with a source in memory that can be made to misbehave, and what it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_state::config::spec::SetSpec;
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::name::SetName;
use leaseward_sync::member::{
    Blob, FetchError, Fetching, FetchingDelta, FetchingMany, Gate, GivenBy, Leaving, Member, MemberConfig, Report,
    Source, Wanted, WantedSet, WantedVersion,
};
use leaseward_sync::{digest_of, frame, manifest, scan};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc, watch};

pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A voter in memory.
#[derive(Default)]
pub(crate) struct Voter {
    pub(crate) blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// How often each blob was given.
    pub(crate) given: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are refused so many times.
    pub(crate) failing: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are given wrong so many times.
    pub(crate) corrupt: Mutex<BTreeMap<Digest, usize>>,
    /// Blobs that are never given, though they are asked for.
    pub(crate) stuck: Mutex<BTreeSet<Digest>>,
    pub(crate) asked_stuck: Notify,
    /// Answers that hold only what nobody asked for, so many.
    pub(crate) lies: AtomicUsize,
    /// What the member's machine is said to hold, and what is read there.
    pub(crate) here: Mutex<BTreeMap<Digest, Option<Blob>>>,
    /// What is given for any delta.
    pub(crate) delta: Mutex<Option<Vec<u8>>>,
    /// Who was refused, and why.
    pub(crate) refused: Mutex<Vec<(String, String)>>,
}

pub(crate) fn take(times: &Mutex<BTreeMap<Digest, usize>>, digest: Digest) -> bool {
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
            Ok(if *count % 2 == 1 { Blob::Frame(frame::pack(&bytes).unwrap().into()) } else { Blob::Plain(bytes) })
        })
    }

    fn fetch_many<'a>(&'a self, digests: &'a [Digest], _: usize) -> FetchingMany<'a> {
        Box::pin(async move {
            let is_lie = |left: usize| left.checked_sub(1);
            let given = if self.lies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_lie).is_ok() {
                let other = b"nobody asked for it".to_vec();
                vec![(digest_of(&other), Blob::Plain(other))]
            } else {
                vec![(digests[0], self.fetch(digests[0]).await?)]
            };
            Ok(GivenBy { who: "voter 1".to_owned(), given })
        })
    }

    fn delta<'a>(&'a self, _: &'a SetName, _: Digest, _: Digest) -> FetchingDelta<'a> {
        let given = self.delta.lock().unwrap().clone();
        Box::pin(async move { given.map(|given| GivenBy { who: "voter 2".to_owned(), given: given.into() }) })
    }

    fn is_here(&self, digest: Digest) -> bool {
        self.here.lock().unwrap().contains_key(&digest)
    }

    fn read_here(&self, digest: Digest) -> Option<Blob> {
        self.here.lock().unwrap().get(&digest)?.clone()
    }

    fn refuse(&self, who: &str, why: &str) {
        self.refused.lock().unwrap().push((who.to_owned(), why.to_owned()));
    }
}

impl Voter {
    pub(crate) fn publish(&self, number: u64, files: &[(&str, &str)]) -> WantedVersion {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), files);
        self.publish_dir(number, temp.path())
    }

    pub(crate) fn publish_dir(&self, number: u64, dir: &Path) -> WantedVersion {
        let scanned = scan(dir).unwrap();
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

pub(crate) fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

pub(crate) struct World {
    pub(crate) temp: TempDir,
    pub(crate) voter: Arc<Voter>,
    pub(crate) gate: Arc<Door>,
    pub(crate) wanted: watch::Sender<Wanted>,
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) member: Option<Member>,
    pub(crate) seen: Vec<Report>,
}

/// A load balancer that is told.
#[derive(Default)]
pub(crate) struct Door(pub(crate) Mutex<Vec<&'static str>>);

impl Gate for Door {
    fn leave<'a>(&'a self, _: &'a SetName, _: Duration) -> Leaving<'a> {
        self.0.lock().unwrap().push("leave");
        Box::pin(async {})
    }

    fn come_back(&self, _: &SetName) {
        self.0.lock().unwrap().push("come back");
    }
}

impl Door {
    pub(crate) fn is_shut(&self) -> bool {
        self.0.lock().unwrap().last() == Some(&"leave")
    }

    pub(crate) async fn opens(&self) {
        let open = async {
            while self.is_shut() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(BOUND, open).await.expect("the machine comes back");
    }
}

pub(crate) fn set(name: &str) -> SetName {
    SetName::new(name).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let (wanted, _) = watch::channel(Wanted::new());
        let (_, reports) = mpsc::channel(1);
        let temp = tempfile::tempdir().unwrap();
        let mut world =
            Self { temp, voter: Arc::default(), gate: Arc::default(), wanted, reports, member: None, seen: Vec::new() };
        world.start();
        world
    }

    pub(crate) fn config(&self) -> MemberConfig {
        let config = MemberConfig::new(self.temp.path().join("config"), self.temp.path().join("state"));
        MemberConfig { parallel_fetches: 2, reserve_bytes: 0, ..config }
    }

    pub(crate) fn start(&mut self) {
        self.start_with(self.config());
    }

    pub(crate) fn start_with(&mut self, config: MemberConfig) {
        let (sender, reports) = mpsc::channel(1000);
        let source: Arc<dyn Source> = Arc::clone(&self.voter) as _;
        let gate = Arc::clone(&self.gate) as _;
        self.member = Some(Member::spawn(config, self.wanted.subscribe(), source, gate, sender));
        self.reports = reports;
    }

    /// Changes files of a set and has a version wanted at once: nobody comes between to look at them.
    pub(crate) fn change_and_want(&self, name: &str, version: WantedVersion, change: impl FnOnce(&Path)) {
        change(&self.path(name));
        self.want(name, version);
    }

    pub(crate) async fn stop(&mut self) {
        tokio::time::timeout(BOUND, self.member.take().unwrap().stop()).await.expect("it stops");
    }

    pub(crate) fn want(&self, name: &str, version: WantedVersion) {
        self.wanted.send_modify(|wanted| {
            let spec = wanted.get(&set(name)).map_or_else(Arc::default, |wanted| Arc::clone(&wanted.spec));
            wanted.insert(set(name), WantedSet { live: Some(version), staged: None, attempt: 0, spec });
        });
    }

    /// Returns the first report of which `found` holds, with a bound.
    pub(crate) async fn until(&mut self, found: impl Fn(&Report) -> bool) -> Report {
        let search = async {
            loop {
                let report = self.reports.recv().await.expect("the member runs");
                self.seen.push(report.clone());
                if found(&report) {
                    return report;
                }
            }
        };
        match tokio::time::timeout(BOUND, search).await {
            Ok(report) => report,
            Err(_) => panic!("the report does not come: {:?}", self.story()),
        }
    }

    pub(crate) async fn applied(&mut self, name: &str, version: u64) {
        self.until(|report| report.set == set(name) && report.applied == version && report.state == SyncState::Applied)
            .await;
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.temp.path().join("config").join(path)).unwrap_or_default()
    }

    /// Says how the set is kept, and asks for nothing new.
    pub(crate) fn keep(&self, name: &str, change: impl FnOnce(&mut SetSpec)) {
        self.wanted.send_modify(|wanted| {
            let none = || WantedSet { live: None, staged: None, attempt: 0, spec: Arc::default() };
            let wanted = wanted.entry(set(name)).or_insert_with(none);
            change(Arc::make_mut(&mut wanted.spec));
        });
    }

    pub(crate) fn order(&self, name: &str, change: impl FnOnce(&mut WantedSet)) {
        self.wanted.send_modify(|wanted| change(wanted.get_mut(&set(name)).unwrap()));
    }

    /// Waits until so many bytes are held in memory for what is in no tree yet.
    pub(crate) async fn holds(&self, bytes: usize) {
        let member = self.member.as_ref().unwrap();
        let holds = async {
            while member.held_bytes() != bytes {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let held = tokio::time::timeout(BOUND, holds).await;
        assert!(held.is_ok(), "{} bytes are held in place of {bytes}", member.held_bytes());
    }

    /// Returns whether a blob that came is kept in a file.
    pub(crate) fn is_in_a_file(&self, name: &str, digest: Digest) -> bool {
        let files = self.temp.path().join("state/sets").join(name).join("blobs");
        leaseward_sync::stored(&files).unwrap().contains_key(&digest)
    }

    /// Waits until a switch has left nothing to be done: the record of the live tree says how its last file looks.
    pub(crate) async fn at_rest(&self, name: &str) {
        let state = self.temp.path().join("state/sets").join(name);
        let records = || fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        let is_proven = |path: std::path::PathBuf| {
            let is_record = path.extension().is_some_and(|ending| ending == "tree");
            // Its last stamp stands before its checksum.
            is_record && fs::read(path).is_ok_and(|bytes| bytes[bytes.len() - 52..bytes.len() - 4] != [0; 48])
        };
        let rest = async {
            while !records().any(is_proven) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(BOUND, rest).await.expect("what a switch left is done");
    }

    pub(crate) async fn rejected(&mut self, number: u64) -> String {
        let is = |report: &Report| matches!(report.state, SyncState::Rejected { version, .. } if version == number);
        match self.until(is).await.state {
            SyncState::Rejected { why, .. } => why,
            _ => unreachable!(),
        }
    }

    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        self.temp.path().join("config").join(path)
    }

    /// Returns the states reported so far, in short.
    pub(crate) fn story(&self) -> Vec<String> {
        let word = |report: &Report| match &report.state {
            SyncState::Fetching { version, .. } => format!("{} fetching {version}", report.applied),
            SyncState::OnDisk { version } => format!("{} on disk {version}", report.applied),
            SyncState::Applied => format!("{} applied", report.applied),
            SyncState::Rejected { version, why } => format!("{} rejected {version}: {}", report.applied, &why[..6]),
            other => format!("{other:?}"),
        };
        self.seen.iter().map(word).collect()
    }
}
