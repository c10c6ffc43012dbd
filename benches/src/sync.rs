//! Config sync against rsync, and for small files against etcd with watchers, on hosts of their own: three members that
//! vote, of which one publishes.
//!
//! Must stay true: both move the same bytes between the same hosts in the same run, in turn; what came is compared with
//! what was sent after each step; neither pays for what the other one does after it is done. Bytes are those that the
//! members' network cards counted, replication to voters and reports included, until a while after the last byte; less
//! what the same cards count in such a time when nothing is done. The time ends when every member shows the version.
//! Each member has a disk of its own, newly made (`LEASEWARD_DISK=shared`: the machine's, where what was removed before slows both
//! down: ext4 without a journal looks at every inode that was freed within minutes before it gives one).
//! rsync runs as it is served best: a daemon on each member, all three at once, `-az`; it does not sync its files to the
//! disk, we do. `LEASEWARD_TRIALS` says how often, `LEASEWARD_FILES` and `LEASEWARD_MB` how much, `LEASEWARD_EDITS` which
//! edits (`one,dbswap`).
//! Left out: slow links.

mod etcd;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaseward_tests::hosts::outage::Timing;
use leaseward_tests::hosts::{CLIENT, HOSTS, Hosts, Setup};
use leaseward_tests::{PATIENCE, binary};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use self::etcd::Etcd;
use self::workload::{EDITS, Site};
use crate::figures::at_share;

/// Where rsync's daemons listen.
const PORT: u16 = 8730;

/// Where rsync's copies are, on the disk of each member.
const THEIRS: &str = "rsync";

/// What is said and cleaned up after a version is live has come to an end by then.
const AFTERWARDS: Duration = Duration::from_millis(700);

/// How long the cards are watched while nothing is done.
const IDLE: Duration = Duration::from_secs(5);

/// Edits that etcd takes part in: those of small files.
const ETCD_EDITS: [&str; 2] = ["one", "edit1"];

/// One way from the source to the members: how long it took, in milliseconds, and the bytes of the members' cards.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    ms: f64,
    bytes: f64,
}

/// The hosts, with rsync's daemons beside the agents.
struct Race {
    hosts: Hosts,
    daemons: Vec<Child>,
    /// Bytes of the members' cards in a second in which nothing is done.
    idle: f64,
}

impl Drop for Race {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }
}

fn number(name: &str, usually: usize) -> usize {
    std::env::var(name).map_or(usually, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Returns the bytes of a member's disk: room for all that both ways keep of a tree of so many megabytes. They are only taken when written.
fn disk_bytes(mb: usize) -> u64 {
    (4 << 30) + ((mb as u64) << 20) * 24
}

/// Returns the host on which somebody publishes: one of the members, or with `LEASEWARD_FROM=client` the fourth host.
fn publisher() -> &'static str {
    if std::env::var("LEASEWARD_FROM").is_ok_and(|from| from == CLIENT) { CLIENT } else { HOSTS[0] }
}

/// Publishes to three members in both ways, edit after edit.
pub(crate) async fn sync() -> Value {
    let (trials, files, mb) =
        (number("LEASEWARD_TRIALS", 5), number("LEASEWARD_FILES", 2_000), number("LEASEWARD_MB", 50));
    let timing = Timing { profile: "default", ttl: "3s".to_owned() };
    let disk_bytes = (std::env::var("LEASEWARD_DISK").as_deref() != Ok("shared")).then(|| disk_bytes(mb));
    let setup = Setup { timing, disk_bytes, ..Setup::default() };
    let Some(hosts) = Hosts::set_up(setup).await else { return json!({ "left_out": "needs root" }) };
    if Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_err() {
        return json!({ "left_out": "needs rsync" });
    }
    let mut race = Race { hosts, daemons: Vec::new(), idle: 0.0 };
    race.hosts.lead(0).await;
    race.start_daemons();
    race.idle = race.bytes_at_rest();
    let mut line = Map::new();
    line.insert("members".into(), json!(HOSTS.len()));
    line.insert("files".into(), json!(files));
    line.insert("mb".into(), json!(mb));
    line.insert("idle_bytes_per_member_and_s".into(), json!((race.idle / HOSTS.len() as f64) as u64));

    // First, each time something that nobody has.
    let mut costs = Vec::new();
    let mut site = None;
    for trial in 0..trials.min(3) {
        let source = race.hosts.dir().join(format!("source-{trial}"));
        let made = Site::make(&source, 1 + trial as u64, files, mb << 20);
        costs.push(race.both(&format!("first{trial}"), &source, &made, trial));
        site = Some((format!("first{trial}"), source, made));
    }
    line.insert("first".into(), compared(&costs));
    if let Some((set, source, mut site)) = site {
        let only = std::env::var("LEASEWARD_EDITS").ok();
        let is_asked = |edit: &str| only.as_ref().is_none_or(|only| only.split(',').any(|one| one == edit));
        for edit in EDITS.into_iter().filter(|edit| is_asked(edit)) {
            let mut costs = Vec::new();
            for trial in 0..trials {
                site.edit(edit);
                costs.push(race.both(&set, &source, &site, trial));
            }
            let figures = compared(&costs);
            eprintln!("{edit}: {figures}");
            line.insert(edit.into(), figures);
        }
    }
    line.insert("key".into(), race.key(trials.max(10)));
    line.insert("etcd".into(), race.beside_etcd(trials, files, mb));
    Value::Object(line)
}

impl Race {
    fn start_daemons(&mut self) {
        for (i, host) in HOSTS.iter().enumerate() {
            let dir = self.hosts.dir().join(host).join(THEIRS);
            fs::create_dir_all(&dir).expect("a directory");
            let config = self.hosts.dir().join(format!("rsync-{host}.conf"));
            let text = format!(
                "use chroot = no\nuid = root\ngid = root\npid file = {}\n[m]\npath = {}\nread only = no\n",
                config.with_extension("pid").display(),
                dir.display()
            );
            fs::write(&config, text).expect("written");
            let mut command = self.hosts.network().command(host, Path::new("rsync"));
            command.args(["--daemon", "--no-detach", "--address", &self.hosts.network().v4(1 + i as u8).to_string()]);
            command.arg(format!("--port={PORT}")).arg("--config").arg(config).stdout(Stdio::null());
            self.daemons.push(command.spawn().expect("rsync starts"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Takes both ways, ours first every other time, and compares what came.
    fn both(&self, set: &str, source: &Path, site: &Site, trial: usize) -> (Cost, Cost) {
        let mark = format!("{set} {:?}\n", Instant::now());
        site.mark(&mark);
        let (ours, theirs) = if trial.is_multiple_of(2) {
            let ours = self.ours(set, source, &mark);
            (ours, self.theirs(set, source))
        } else {
            let theirs = self.theirs(set, source);
            (self.ours(set, source, &mark), theirs)
        };
        for host in HOSTS {
            for copy in [self.tree(host, set), self.hosts.dir().join(host).join(THEIRS).join(set)] {
                let same = Command::new("diff").arg("-r").args([source, &copy]).stdout(Stdio::null()).status();
                assert!(same.is_ok_and(|status| status.success()), "{} differs", copy.display());
            }
        }
        // What is written back late shall not be in the other one's time.
        rustix::fs::sync();
        (ours, theirs)
    }

    /// Returns where a member has a set, as seen from here.
    fn tree(&self, host: &str, set: &str) -> PathBuf {
        self.hosts.dir().join(host).join("sets").join(set)
    }

    fn ours(&self, set: &str, source: &Path, mark: &str) -> Cost {
        let before = self.bytes();
        let began = Instant::now();
        let api = self.hosts.network().v4(1);
        let mut command = self.hosts.network().command(publisher(), &binary());
        command.env("XDG_CACHE_HOME", self.hosts.dir().join("cache"));
        command
            .env("LEASEWARD_ADDR", format!("{api}:7420"))
            .args(["config", "publish", set, "--no-wait", "--from"])
            .arg(source);
        let output = command.output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let marks: Vec<PathBuf> = HOSTS.iter().map(|host| self.tree(host, set).join("VERSION")).collect();
        while !marks.iter().all(|path| fs::read_to_string(path).is_ok_and(|found| found == mark)) {
            assert!(began.elapsed() < PATIENCE, "{set} does not arrive");
            std::thread::sleep(Duration::from_micros(200));
        }
        self.cost(began, before)
    }

    /// Ends a measurement that began then with so many bytes.
    fn cost(&self, began: Instant, before: f64) -> Cost {
        let ms = began.elapsed().as_secs_f64() * 1e3;
        std::thread::sleep(AFTERWARDS);
        rustix::fs::sync();
        let bytes = self.bytes() - before - self.idle * began.elapsed().as_secs_f64();
        Cost { ms, bytes: bytes.max(0.0) }
    }

    fn bytes_at_rest(&self) -> f64 {
        let (before, began) = (self.bytes(), Instant::now());
        std::thread::sleep(IDLE);
        (self.bytes() - before) / began.elapsed().as_secs_f64()
    }

    fn theirs(&self, set: &str, source: &Path) -> Cost {
        let before = self.bytes();
        let began = Instant::now();
        let mut running: Vec<Child> = (0..HOSTS.len())
            .map(|i| {
                let to = format!("rsync://{}:{PORT}/m/{set}/", self.hosts.network().v4(1 + i as u8));
                let mut command = self.hosts.network().command(publisher(), Path::new("rsync"));
                command.args(["-az", "--delete", &format!("{}/", source.display()), &to]).spawn().expect("it starts")
            })
            .collect();
        for rsync in &mut running {
            assert!(rsync.wait().is_ok_and(|status| status.success()), "rsync fails");
        }
        self.cost(began, before)
    }

    /// Publishes small edits both with us and with etcd, in turn; etcd's nodes run only now.
    fn beside_etcd(&mut self, trials: usize, files: usize, mb: usize) -> Value {
        let Some(mut etcd) = Etcd::start(&self.hosts) else { return json!({ "left_out": "needs etcd" }) };
        let source = self.hosts.dir().join("source-etcd");
        let mut site = Site::make(&source, 77, files, mb << 20);
        self.idle = self.bytes_at_rest();
        let mut figures = Map::new();
        for edit in ["first"].into_iter().chain(ETCD_EDITS) {
            let (mut costs, mut refused) = (Vec::new(), 0);
            for trial in 0..if edit == "first" { 1 } else { trials } {
                if edit != "first" {
                    site.edit(edit);
                }
                let mark = format!("{edit} {trial} {:?}\n", Instant::now());
                site.mark(&mark);
                let ours = self.ours("etcd", &source, &mark);
                rustix::fs::sync();
                let before = self.bytes();
                let (began, left_out) = etcd.publish(&self.hosts, publisher(), &source, &mark);
                refused = left_out;
                costs.push((ours, self.cost(began, before)));
            }
            let mut line = compared(&costs);
            if let Some(line) = line.as_object_mut() {
                for name in ["ms", "bytes_per_member"] {
                    if let Some(figure) = line.remove(&format!("rsync_{name}")) {
                        line.insert(format!("etcd_{name}"), figure);
                    }
                }
                line.insert("files_that_etcd_refuses".into(), json!(refused));
            }
            eprintln!("beside etcd, {edit}: {line}");
            figures.insert(edit.into(), line);
        }
        Value::Object(figures)
    }

    /// Returns the bytes that the members' cards sent and received so far.
    fn bytes(&self) -> f64 {
        let of = |host: &&str| {
            let output = self.hosts.network().command(host, Path::new("cat")).arg("/proc/net/dev").output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let cards = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
            cards
                .map(|(_, figures)| {
                    let figures: Vec<f64> = figures.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                    figures.first().unwrap_or(&0.0) + figures.get(8).unwrap_or(&0.0)
                })
                .sum::<f64>()
        };
        HOSTS.iter().map(of).sum()
    }

    /// Publishes a set of one small file again and again.
    fn key(&self, trials: usize) -> Value {
        let source = self.hosts.dir().join("key");
        fs::create_dir_all(&source).expect("a directory");
        let mut took = Vec::new();
        let mut bytes = Vec::new();
        for trial in 0..trials {
            let mark = format!("{trial:0200}");
            fs::write(source.join("VERSION"), &mark).expect("written");
            let cost = self.ours("key", &source, &mark);
            if trial > 0 {
                took.push(cost.ms);
                bytes.push(cost.bytes / HOSTS.len() as f64);
            }
        }
        json!({ "p50_ms": round(at_share(&took, 0.5)), "p99_ms": round(at_share(&took, 0.99)),
            "bytes_per_member": at_share(&bytes, 0.5) as u64 })
    }
}

fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// Returns the medians of both ways, and ours as a share of theirs.
fn compared(costs: &[(Cost, Cost)]) -> Value {
    let median = |of: &dyn Fn(&(Cost, Cost)) -> f64| at_share(&costs.iter().map(of).collect::<Vec<_>>(), 0.5);
    let (ours, theirs) = (median(&|(ours, _)| ours.ms), median(&|(_, theirs)| theirs.ms));
    let members = HOSTS.len() as f64;
    let (sent, their_sent) = (median(&|(ours, _)| ours.bytes) / members, median(&|(_, theirs)| theirs.bytes) / members);
    json!({
        "ms": round(ours), "rsync_ms": round(theirs), "wall_ratio": round(ours / theirs.max(1e-9)),
        "bytes_per_member": sent as u64, "rsync_bytes_per_member": their_sent as u64,
        "bytes_ratio": (sent / their_sent.max(1e-9) * 10_000.0).round() / 10_000.0,
    })
}
