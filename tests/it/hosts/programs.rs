//! Programs that people run, with what surrounds them: a database, a web server, a file system that follows.
//!
//! Each says what it needs, and is left out where that is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leaseward_tests::hosts::network::is_mounted;
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::stamps::{Stamps, boot_ns};
use leaseward_tests::{eventually, is_root, signal};
use rustix::process::Signal;

use super::BACK_WITHIN;
use crate::story::{TTL, token_of, victim};

/// A database has to recover, and sees to it before that every file is on disk; the program that asks it waits for half
/// a second at most, and has to start.
const DATABASE_BACK_WITHIN: Duration = Duration::from_millis(BACK_WITHIN.as_millis() as u64 + 3_000);

/// What a database client does: a row on each new connection, and a line for each that was acknowledged.
const INSERTS: &str = "n=0; while :; do n=$((n+1)); \
    timeout 0.5 psql -qh $0 -U postgres -c \"insert into t values ($n)\" && read -r now _ < /proc/uptime && \
    echo $n $now >> $1; done";

/// Returns the first of these files that is there. If none is, the story is left out, and says so.
fn needed(what: &str, files: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let found = files.into_iter().find(|file| file.is_file());
    if found.is_none() {
        println!("left out: needs {what}");
    }
    found
}

fn apply(hosts: &Hosts, name: &str, text: &str) {
    let file = hosts.dir().join(format!("{name}.toml"));
    fs::write(&file, text).expect("the file is written");
    hosts.must(&["server", "apply", "-f", file.to_str().expect("text")]);
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Makes an empty database that its clients may use. Returns its directory.
fn make_database(hosts: &Hosts, postgres: &Path) -> PathBuf {
    let data = hosts.dir().join("data");
    let path = data.to_str().expect("text");
    run("install", &["-d", "-o", "postgres", "-m", "700", path]);
    let initdb = postgres.with_file_name("initdb");
    let initdb = initdb.to_str().expect("text");
    let options = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"];
    run("runuser", &[&["-u", "postgres", "--", initdb, "-D", path], &options[..]].concat());
    run("sh", &["-c", "echo host all all all trust >> $0/pg_hba.conf", path]);
    data
}

/// A database on a disk that all hosts have: after a power loss each row that was acknowledged is there.
#[tokio::test]
async fn a_database() {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin/postgres"));
    let Some(postgres) = needed("postgresql", versions) else { return };
    let Some(mut hosts) = Hosts::start().await else { return };
    let (data, address) = (make_database(&hosts, &postgres), hosts.floating().to_string());
    // A socket that listens says that it runs on this host. The process id in the file is another host's.
    let hook = hosts.dir().join("tidy.sh");
    let path = data.display();
    let tidied = hosts.dir().join("tidied");
    let tidy = format!(
        "#!/bin/sh\n[ -n \"$(ss -Hltn 'sport = :5432')\" ] || rm -f {path}/postmaster.pid\n\
         echo $LEASEWARD_MACHINE >> {}\n",
        tidied.display()
    );
    fs::write(&hook, tidy).expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("our own file");
    let settings = format!(
        "command = [{postgres:?}, \"-D\", {data:?}, \"-h\", \"{address}\", \"-c\", \"unix_socket_directories=\"]\n\
         user = \"postgres\"\ncandidates = {HOSTS:?}\nvips = [{{ ip = \"{address}\" }}]\n\
         [check]\ntype = \"tcp\"\naddress = \"{address}:5432\"\ninterval = \"200ms\"\n\
         [hooks.pre_start]\ncommand = [{hook:?}]\n"
    );
    apply(&hosts, "db", &settings);
    let sql = |hosts: &Hosts, words: &str| {
        let connect = ["1", "psql", "-h", &address, "-U", "postgres", "-Atc", words];
        let output = hosts.client("timeout").args(connect).output().expect("a client");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    hosts.until_some("there is a table", async |hosts| sql(hosts, "create table t (n int)")).await;
    let rows = hosts.dir().join("rows");
    let mut client = hosts.client("sh");
    let mut client = client.args(["-c", INSERTS, &address]).arg(&rows).stderr(Stdio::null()).spawn().expect("a client");
    let acknowledged = || -> Vec<(u64, f64)> {
        let text = fs::read_to_string(&rows).unwrap_or_default();
        let row = |line: &str| line.split_once(' ').map(|(n, at)| (n.parse().unwrap_or(0), at.parse().unwrap_or(0.0)));
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(|line| row(line.trim())).collect()
    };
    eventually("rows are acknowledged", async || acknowledged().len() >= 10).await;
    assert_eq!(hosts.phase("db", "running").await["machine"], HOSTS[0]);

    let off = boot_ns() as f64 / 1e9;
    hosts.power_off(0);
    // Ten: the first of them may have been on its way.
    let since = |at: f64| acknowledged().iter().filter(|row| row.1 > at).count();
    eventually("rows are acknowledged again", async || since(off + 0.1) >= 10).await;
    client.kill().expect("ours");
    client.wait().expect("ours");
    assert_eq!(hosts.phase("db", "running").await["machine"], HOSTS[1]);
    let hooks = fs::read_to_string(&tidied).unwrap_or_default();
    assert_eq!(hooks.lines().collect::<Vec<_>>(), HOSTS[..2], "its hook was to run on each host before it");
    let acknowledged = acknowledged();
    let there = sql(&hosts, "select n from t").expect("it answers");
    let there: Vec<u64> = there.lines().map(|n| n.parse().expect("a number")).collect();
    let lost: Vec<u64> = acknowledged.iter().map(|row| row.0).filter(|n| !there.contains(n)).collect();
    assert_eq!(lost, [0; 0], "acknowledged, and not there");
    let gaps = acknowledged.windows(2).map(|pair| pair[1].1 - pair[0].1);
    let gap = Duration::from_secs_f64(gaps.fold(0.0, f64::max));
    println!("power loss under a database: no row for {gap:?}; all of {} acknowledged are there", acknowledged.len());
    assert!(gap <= DATABASE_BACK_WITHIN, "{gap:?}");
}

/// A web server with its config set: killed behind our back it is started again in place; stopped it stays stopped.
#[tokio::test]
async fn a_web_server() {
    let Some(nginx) = needed("nginx", ["/usr/sbin/nginx".into()]) else { return };
    let Some(hosts) = Hosts::start().await else { return };
    let (address, own) = (hosts.floating(), hosts.own_dir());
    let site = hosts.dir().join("site");
    fs::create_dir(&site).expect("a directory");
    let own_path = own.display();
    let conf = format!(
        "daemon off;\npid {own_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n access_log off;\n \
         server {{ listen {address}:80; root {own_path}/sets/site; }}\n}}\n"
    );
    fs::write(site.join("nginx.conf"), conf).expect("written");
    fs::write(site.join("index.html"), "first\n").expect("written");
    hosts.must(&["config", "publish", "site", "--from", site.to_str().expect("text")]);
    let settings = format!(
        "command = [{nginx:?}, \"-c\", \"{own_path}/sets/site/nginx.conf\"]\nconfig = [\"site\"]\n\
         candidates = {HOSTS:?}\nvips = [{{ ip = \"{address}\" }}]\nstop_grace = \"2s\"\n\
         [check]\ntype = \"tcp\"\naddress = \"{address}:80\"\ninterval = \"200ms\"\n\
         [restart]\nbackoff = [\"0s\"]\n"
    );
    apply(&hosts, "web", &settings);
    let page = |hosts: &Hosts| hosts.fetch(&format!("http://{address}/"));
    hosts.until("the page is served", async |hosts| page(hosts).as_deref() == Some("first\n")).await;
    let before = hosts.phase("web", "running").await;

    let killed = boot_ns();
    signal(before["pid"].as_u64().expect("a process") as u32, Signal::KILL);
    let restarted = async |hosts: &Hosts| {
        let server = hosts.get("/v1/servers/web")?;
        (server["phase"] == "running" && server["pid"] != before["pid"]).then_some(server)
    };
    let now = hosts.until_some("it runs again", restarted).await;
    hosts.until("the page is served again", async |hosts| page(hosts).is_some()).await;
    let gap = Duration::from_nanos(boot_ns() - killed);
    println!("web server killed: its page was there again after {gap:?}");
    assert!(gap <= BACK_WITHIN, "{gap:?}");
    assert_eq!((&now["machine"], token_of(&now)), (&before["machine"], token_of(&before)), "not in place");
    assert_eq!(hosts.who_has(address), [0]);

    fs::write(site.join("index.html"), "second\n").expect("written");
    hosts.must(&["config", "publish", "site", "--from", site.to_str().expect("text")]);
    hosts.until("the new page is served", async |hosts| page(hosts).as_deref() == Some("second\n")).await;

    hosts.must(&["server", "stop", "web"]);
    assert_eq!(hosts.who_has(address), [0; 0], "its address outlived it");
    // Longer than whatever could bring it back.
    let stopped = boot_ns();
    hosts
        .until("some time has passed", async |hosts| {
            assert_eq!(page(hosts), None, "it came back");
            boot_ns() > stopped + 2 * TTL.as_nanos() as u64
        })
        .await;
    hosts.phase("web", "stopped").await;
}

/// A disk that all hosts can mount, removed when dropped.
struct Disk {
    device: PathBuf,
}

impl Disk {
    /// Returns a disk with a file system; `None` where that cannot be had, and says so.
    fn new(file: &Path) -> Option<Self> {
        needed("e2fsprogs", ["/sbin/mkfs.ext4".into()])?;
        if !Path::new("/dev/loop-control").exists() {
            println!("left out: needs loop devices");
            return None;
        }
        let path = file.to_str().expect("text");
        run("truncate", &["-s", "16M", path]);
        run("mkfs.ext4", &["-q", path]);
        Some(Self { device: run("losetup", &["--find", "--show", path]).into() })
    }

    /// Returns whether anybody has it mounted, in whatever mount table: the kernel shows each ext4 that lives.
    fn is_in_use(&self) -> bool {
        Path::new("/sys/fs/ext4").join(self.device.file_name().expect("a device")).exists()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.device).status().ok();
    }
}

/// Looks at the mount tables of two hosts all the time; says whether both ever had `at`, and whether each did.
fn watch_mounts(hosts: &Hosts, at: &Path, is_over: Arc<AtomicBool>) -> std::thread::JoinHandle<(bool, bool, bool)> {
    let tables = [0, 1].map(|host| hosts.network().mount_table(HOSTS[host]));
    let at = at.to_owned();
    std::thread::spawn(move || {
        let mounted = |host: usize| is_mounted(&fs::read_to_string(&tables[host]).unwrap_or_default(), &at);
        let (mut both, mut first, mut second) = (false, false, false);
        while !is_over.load(Ordering::Relaxed) {
            // The new one first: if it has the disk, the old one must not have it from here on.
            let on_new = mounted(1);
            let on_old = mounted(0);
            (both, first, second) = (both || on_new && on_old, first || on_old, second || on_new);
        }
        (both, first, second)
    })
}

/// A file system follows its server: it is unmounted on the old host before it is mounted on the new one.
#[tokio::test]
async fn a_file_system() {
    if !is_root() {
        println!("left out: needs root");
        return;
    }
    // Made before the hosts, so that it goes after them.
    let directory = tempfile::tempdir().expect("a directory");
    let Some(disk) = Disk::new(&directory.path().join("disk")) else { return };
    let Some(hosts) = Hosts::start().await else { return };
    let at = hosts.dir().join("disk");
    let stamps = Stamps::at(&at.join("stamps"));
    // The stamps are on the disk itself, where only who has mounted it can read them.
    let settings = format!(
        "command = [{:?}, \"stamp\", {:?}]\nstop_grace = \"500ms\"\ngrace = \"1s\"\ncandidates = {HOSTS:?}\n\
         [[mounts]]\ndevice = {:?}\nat = {at:?}\ntype = \"ext4\"\n",
        victim(),
        stamps.path(),
        disk.device
    );
    apply(&hosts, "files", &settings);
    assert_eq!(hosts.phase("files", "running").await["machine"], HOSTS[0]);
    let is_over = Arc::new(AtomicBool::new(false));
    let watcher = watch_mounts(&hosts, &at, Arc::clone(&is_over));
    let asked = boot_ns();
    hosts.must(&["server", "move", "files", "--to", HOSTS[1]]);
    assert_eq!(hosts.phase("files", "running").await["machine"], HOSTS[1]);
    is_over.store(true, Ordering::Relaxed);
    let (both, first, second) = watcher.join().expect("it watches");
    assert!(first && second && !both, "on the old host: {first}, on the new one: {second}, at the same time: {both}");
    assert!(!stamps.path().exists(), "it is mounted outside of the hosts");

    // What both wrote is there, one after the other.
    let copy = hosts.dir().join("copy");
    let mut cp = hosts.network().command(HOSTS[1], Path::new("cp"));
    assert!(cp.arg(stamps.path()).arg(&copy).status().expect("it starts").success());
    let lives = Stamps::at(&copy).exclusive();
    assert_eq!(lives.len(), 2, "{lives:?}");
    println!("a move with a file system took {:?}", Duration::from_nanos(lives[1].first.saturating_sub(asked)));
    assert!(disk.is_in_use());
    hosts.must(&["server", "stop", "files"]);
    assert!(!disk.is_in_use(), "somebody still has it");
}
