//! A machine loses its power at any instant: what it acknowledged is on its disk, and its store opens.
//!
//! A voter writes to a file system of its own, on a loop device. At a random instant it is stopped, and what the device has
//! then is copied: that is what the machine finds when it boots again. What the kernel still held in memory is lost.
//! The slow run: `LEASEWARD_POWER_CUTS=50 cargo test -p leaseward-tests --test it power_cut -- --nocapture`, with
//! `LEASEWARD_SEED=…` to repeat one. The seed decides when; the kernel decides what it has written by then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::{Error, LeaseName};
use leaseward_state::command::Acquire;
use leaseward_state::{Command, FencingToken, Reply};
use leaseward_tests::{Lab, PATIENCE, Plan, eventually, is_root};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

/// Cuts in the ordinary run.
const CUTS: u64 = 4;

/// Acknowledged writes between two cuts, at least.
const PROGRESS: usize = 200;

/// Clients that write at the same time, so that entries carry several commands.
const WRITERS: u64 = 8;

/// Longer than the test: nobody renews.
const TTL_MS: u64 = 6 * 60 * 60 * 1000;

/// Bytes of the device: the log's segments, and the space that they leave.
const DEVICE_BYTES: u64 = 512 << 20;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

fn must(program: &str, arguments: &[&str]) {
    let output = Program::new(program).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Self {
        let disk = Self { image: dir.join("0.img"), at: dir.join("disk") };
        fs::create_dir(&disk.at).expect("a directory");
        File::create(&disk.image).and_then(|file| file.set_len(DEVICE_BYTES)).expect("an image");
        must("mkfs.ext4", &["-q", "-F", &disk.image.to_string_lossy()]);
        disk.mount();
        disk
    }

    fn mount(&self) {
        must("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.at.to_string_lossy()]);
    }

    fn unmount(&self) {
        must("umount", &[&*self.at.to_string_lossy()]);
    }

    /// Copies what the device has at this moment.
    fn copy(&self, to: &Path) {
        must("cp", &["--sparse=always", &self.image.to_string_lossy(), &to.to_string_lossy()]);
    }

    /// Goes on with a copy, as after a boot.
    fn boot_from(&mut self, image: PathBuf) {
        self.unmount();
        fs::remove_file(&self.image).expect("the old image is removed");
        self.image = image;
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever the story ended with. The loop device goes with the mount.
        Program::new("umount").arg("-l").arg(&self.at).output().ok();
    }
}

/// What was acknowledged so far.
#[derive(Clone, Default)]
struct Acknowledged {
    tokens: Arc<Mutex<BTreeMap<String, FencingToken>>>,
    stop: Arc<AtomicBool>,
}

impl Acknowledged {
    fn count(&self) -> usize {
        self.tokens.lock().expect("no holder of this lock panics").len()
    }

    fn now(&self) -> BTreeMap<String, FencingToken> {
        self.tokens.lock().expect("no holder of this lock panics").clone()
    }
}

/// Takes one lease after another, and notes which were granted.
async fn writer(client: Client, who: u64, noted: Acknowledged) {
    let open = Command::OpenSession { name: "power".into(), ttl_ms: TTL_MS };
    let session = loop {
        match client.write_within(open.clone(), PATIENCE / 6).await {
            Ok(committed) => match committed.reply {
                Reply::Session(session) => break session,
                other => panic!("a strange answer: {other:?}"),
            },
            Err(Error::Unknown | Error::Unavailable(_)) => {}
            Err(error) => panic!("nobody should say no: {error}"),
        }
    };
    for i in 0_u64.. {
        if noted.stop.load(Ordering::Relaxed) {
            return;
        }
        let lease = LeaseName::new(format!("power/{who}/{i}")).expect("a name");
        let name = lease.to_string();
        let (holder, meta) = (who.to_string(), BTreeMap::new());
        let acquire = Acquire { lease, session, holder, wait: false, priority: 0, lock_delay_ms: 0, meta };
        match client.write_within(Command::Acquire(acquire), PATIENCE / 6).await {
            Ok(committed) => match committed.reply {
                Reply::Granted { grant, .. } => {
                    noted.tokens.lock().expect("no holder of this lock panics").insert(name, grant.token);
                }
                other => panic!("a strange answer: {other:?}"),
            },
            // Told by nobody: it may have happened.
            Err(Error::Unknown | Error::Unavailable(_)) => {}
            Err(error) => panic!("nobody should say no: {error}"),
        }
    }
}

/// Returns the versions that were acknowledged, each with what its file says.
fn publish(lab: &Lab, versions: &mut BTreeMap<u64, String>) {
    let dir = lab.dir().join("published");
    fs::create_dir_all(&dir).expect("a directory");
    // More than fits a log entry, and not the same twice: its content travels beside the log.
    let mut random = SmallRng::seed_from_u64(versions.len() as u64);
    let text: String = (0..400_000).map(|_| char::from(random.gen_range(b' '..b'~'))).collect();
    fs::write(dir.join("file"), &text).expect("written");
    let printed =
        lab.works(&["config", "publish", "power", "--no-wait", "-o", "json", "--from", &dir.to_string_lossy()]);
    let version: Value = serde_json::from_str(&printed).expect("it prints JSON");
    versions.insert(version["version"].as_u64().expect("a number"), text);
}

async fn check(lab: &Lab, acknowledged: &BTreeMap<String, FencingToken>, versions: &BTreeMap<u64, String>) {
    let read = async |lab: &Lab| lab.list_at(0, "/v1/leases?consistency=linearizable").await;
    let leases = lab.until_some("the voter reads", read).await;
    let text = |lease: &Value, key: &str| lease[key].as_str().expect("a text").to_owned();
    let found: BTreeMap<String, String> =
        leases.iter().map(|lease| (text(lease, "name"), text(lease, "token"))).collect();
    let lost = |(name, token): &(&String, &FencingToken)| found.get(*name) != Some(&token.to_string());
    let lost: Vec<_> = acknowledged.iter().filter(lost).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
    let (newest, text) = versions.last_key_value().expect("something was published");
    let to = lab.dir().join("pulled");
    let _ = fs::remove_dir_all(&to);
    lab.works(&["config", "pull", "power", "--version", &newest.to_string(), "--to", &to.to_string_lossy()]);
    assert_eq!(&fs::read_to_string(to.join("file")).expect("pulled"), text, "version {newest} was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_no_acknowledged_write() {
    if !is_root() {
        return println!("LEFT OUT: a file system of its own needs root");
    }
    let (cuts, seed) = (number("LEASEWARD_POWER_CUTS", CUTS), number("LEASEWARD_SEED", 4_711));
    println!("power cuts: seed {seed}, {cuts} cuts; LEASEWARD_POWER_CUTS=50 for the slow run");
    let mut random = SmallRng::seed_from_u64(seed);
    // In memory where that is: the copy must be quick.
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a directory");
    let mut disk = Disk::new(dir.path());
    let plan = Plan { voters: 1, log: "warn", last_voter_data: Some(disk.at.join("n1")), ..Plan::default() };
    let mut lab = Lab::start(plan).await;
    let noted = Acknowledged::default();
    let writers: Vec<_> = (0..WRITERS).map(|who| tokio::spawn(writer(lab.client(), who, noted.clone()))).collect();
    let mut versions = BTreeMap::new();
    for cut in 1..=cuts {
        publish(&lab, &mut versions);
        let before = noted.count();
        eventually("enough is acknowledged", || std::future::ready(noted.count() >= before + PROGRESS)).await;
        // Not to wait for anything: when the power fails is the attack.
        sleep(Duration::from_micros(random.gen_range(0..300_000))).await;
        let acknowledged = noted.now();
        lab.signal_voter(0, Signal::STOP);
        let image = dir.path().join(format!("{cut}.img"));
        disk.copy(&image);
        lab.kill_voter(0);
        disk.boot_from(image);
        lab.start_voter(0);
        check(&lab, &acknowledged, &versions).await;
        println!("cut {cut}: {} acknowledged writes, 0 lost", acknowledged.len());
    }
    noted.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    lab.kill_voter(0);
    disk.unmount();
}
