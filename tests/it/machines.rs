//! What machines bring along: boot clocks of different ages, wall clocks that somebody sets, long lines, disks that lie. Needs root.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use leaseward_tests::chaos::missing;
use leaseward_tests::hosts::delay::Latency;
use leaseward_tests::hosts::outage::Timing;
use leaseward_tests::hosts::{CLIENT, HOSTS, Hosts, Setup, clock};
use leaseward_tests::stamps::Stamps;
use leaseward_tests::{owns_machine, victim};
use tokio::time::Instant;

/// Bytes of a disk.
const DISK_BYTES: u64 = 512 << 20;

/// Writes that a disk acknowledges and loses.
const LOST: u64 = 10;

async fn hosts(setup: Setup) -> Option<Hosts> {
    if let Some(missing) = missing().or_else(|| (!owns_machine()).then_some("root of the machine")) {
        println!("left out: needs {missing}");
        return None;
    }
    Hosts::set_up(setup).await
}

fn leader(hosts: &Hosts) -> Option<usize> {
    let name = hosts.cluster()?["leader"].as_str()?.to_owned();
    HOSTS.iter().position(|host| *host == name)
}

fn up(hosts: &Hosts) -> Option<usize> {
    let cluster = hosts.cluster()?;
    cluster["leader"].as_str()?;
    Some(cluster["voters"].as_array()?.iter().filter(|voter| voter["up"] == true).count())
}

/// Returns a number of the policy, which is written here again and again.
fn written(hosts: &Hosts) -> Option<u64> {
    hosts.get("/v1/policy")?["poison_after"].as_u64()
}

/// A voter that acknowledged, lost it, and votes could elect somebody who never had it. Two of three have it still: nothing may be lost.
async fn loses_what_it_acknowledged(leads: bool) {
    let Some(mut hosts) = hosts(Setup { disk_bytes: Some(DISK_BYTES), ..Setup::default() }).await else { return };
    let was_leader = hosts.until_some("somebody leads", async |hosts| leader(hosts)).await;
    let host = if leads { was_leader } else { (was_leader + 1) % HOSTS.len() };
    hosts.disk(host).begin_to_lie();
    for i in 1..=LOST {
        hosts.must(&["policy", "set", &format!("poison_after={i}")]);
    }
    let lag = |hosts: &Hosts| {
        let nodes = hosts.get("/v1/nodes")?;
        let nodes = nodes["items"].as_array()?.clone();
        nodes.iter().map(|node| node["lag"].as_u64()).sum::<Option<u64>>()
    };
    hosts.until("all have it", async |hosts| lag(hosts) == Some(0)).await;
    // A confirmation round carries to everybody what the leader knows of everybody.
    assert_eq!(written(&hosts), Some(LOST));
    hosts.power_off_and_forget(host);
    hosts.until("the others go on", async |hosts| up(hosts) == Some(2)).await;
    hosts.power_on(host);
    let why = hosts.until_some("it is recognised", async |hosts| hosts.quarantined(host)).await;
    println!("{why}");
    assert!(why.contains("acknowledged entry"), "{why}");
    assert_eq!(written(&hosts), Some(LOST), "what was acknowledged is there");
    assert_ne!(leader(&hosts), Some(host), "it takes no part");
    hosts.power_off(host);
    hosts.replace(host);
    // Before the others have let its former self go: that had its address, and its own answer is no other process.
    let follows = |hosts: &Hosts| Some(hosts.ask(host, "/v1/cluster")?.body["leader"].is_string());
    hosts.until("it has joined", async |hosts| follows(hosts) == Some(true)).await;
    hosts.kill_agent(host);
    hosts.start_agent(host);
    hosts.until("all vote again", async |hosts| up(hosts) == Some(HOSTS.len())).await;
    hosts.until_connected(HOSTS.len() as u64).await;
    assert_eq!(written(&hosts), Some(LOST));
}

#[tokio::test]
async fn a_follower_whose_disk_lost_what_it_acknowledged_is_recognised_and_replaced() {
    loses_what_it_acknowledged(false).await;
}

#[tokio::test]
async fn a_leader_whose_disk_lost_what_it_acknowledged_is_recognised_and_replaced() {
    loses_what_it_acknowledged(true).await;
}

/// Machines are of different ages, and each boot begins a clock anew: what one of them counts by means nothing to another one, and
/// nothing to itself after a boot.
#[tokio::test]
async fn machines_of_different_ages_agree_on_whose_time_is_over() {
    let Some(mut hosts) = hosts(Setup { boot_clocks: vec![20, 9_000_000, 4_000], ..Setup::default() }).await else {
        return;
    };
    let age = |hosts: &Hosts, host: usize| -> f64 {
        let output = hosts.network().command(HOSTS[host], Path::new("cat")).arg("/proc/uptime").output().expect("cat");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().next().expect("a number").parse().expect("a number")
    };
    assert!(age(&hosts, 0) < 1_000.0 && age(&hosts, 1) >= 9_000_000.0, "they are of different ages");
    let stamps = Stamps::at(&hosts.dir().join("stamps"));
    let victim = victim();
    let command = [victim.to_str().expect("text"), "stamp", stamps.path().to_str().expect("text"), "--ignore-term"];
    let file = hosts.dir().join("pay.toml");
    std::fs::write(&file, format!("command = {command:?}\nstop_grace = \"500ms\"\ncandidates = {HOSTS:?}\n"))
        .expect("written");
    hosts.must(&["server", "apply", "-f", file.to_str().expect("text")]);
    hosts.phase("pay", "running").await;
    let boot = |hosts: &Hosts, host: usize| {
        let mut cat = hosts.network().command(HOSTS[host], Path::new("cat"));
        let output = cat.arg("/proc/sys/kernel/random/boot_id").output().expect("cat");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // From the young machine to the old one and back: once time seems to leap, and once it runs backwards.
    for (host, seconds) in [(0, 9_500_000), (1, 20), (0, 7)] {
        let before = hosts.until_some("it executes", async |_| stamps.newest()).await;
        let known = boot(&hosts, host);
        hosts.power_off(host);
        let moved = hosts.until_some("it executes elsewhere, or still", async |hosts| {
            let server = hosts.get("/v1/servers/pay")?;
            let away = server["machine"] != HOSTS[host] && server["phase"] == "running";
            away.then(|| stamps.newest()).flatten()
        });
        let after = moved.await;
        assert!(after.token >= before.token, "{after:?}");
        hosts.network_mut().set_boot_clock(HOSTS[host], seconds);
        hosts.power_on(host);
        assert_ne!(boot(&hosts, host), known, "it knows that it booted");
        hosts.until_connected(HOSTS.len() as u64).await;
        hosts.until("all vote", async |hosts| up(hosts) == Some(HOSTS.len())).await;
    }
    let lives = stamps.exclusive();
    let tokens: BTreeSet<u64> = lives.iter().map(|life| life.token).collect();
    assert_eq!(tokens.len(), lives.len(), "each under a token of its own: {lives:?}");
    println!("{} lives, none beside another one", lives.len());
    assert!(lives.len() >= 2, "it moved: {lives:?}");
}

/// Whoever is on a machine goes by its wall clock, and by no other one; a step of it makes nobody execute twice, moves no other
/// clock, and what the cluster keeps the time of goes on.
#[tokio::test]
async fn a_machine_whose_wall_clock_is_stepped_stops_what_it_may_not_believe_in_and_goes_on() {
    if let Some(missing) = missing() {
        println!("left out: needs {missing}");
        return;
    }
    let setup = Setup { boot_clocks: vec![90, 9_000_000, 4_000], wall_clocks: true, ..Setup::default() };
    let Some(mut hosts) = Hosts::set_up(setup).await else { return };
    let stamps = Stamps::at(&hosts.dir().join("stamps"));
    let (victim, told) = (victim(), hosts.dir().join("told"));
    // A server that stamps, and says what time it is.
    let script = "while :; do date +%s > $1.new; mv $1.new $1; sleep 0.05; done & exec $2 stamp $3 --ignore-term";
    let words = [told.as_path(), &victim, stamps.path()].map(|path| path.to_str().expect("text"));
    let command = [&["sh", "-c", script, "sh"][..], &words].concat();
    let file = hosts.dir().join("pay.toml");
    let text = format!("command = {command:?}\nstop_grace = \"500ms\"\ncandidates = {HOSTS:?}\n");
    std::fs::write(&file, text).expect("written");
    hosts.must(&["server", "apply", "-f", file.to_str().expect("text")]);
    let on = hosts.phase("pay", "running").await["machine"].as_str().expect("a name").to_owned();
    let on = HOSTS.iter().position(|host| *host == on).expect("one of them");

    let clocks = |hosts: &Hosts, host: usize| -> Vec<f64> {
        let output = hosts.network().command(HOSTS[host], &victim).arg("clocks").output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("text");
        text.split_whitespace().map(|ns| ns.parse::<f64>().expect("a number") / 1e9).collect()
    };
    let before: Vec<_> = (0..HOSTS.len()).map(|host| clocks(&hosts, host)).collect();
    // The last one leaps only for what was renewed since the one before.
    for (seconds, leaps) in [(7_200, true), (-3_600, false), (0, false)] {
        let held = hosts.until_some("it executes", async |_| stamps.tail()).await;
        hosts.wall_clock(on).set(seconds, 0);
        let is_near = |clock: f64, other: f64| (clock - other).abs() < 60.0;
        for host in 0..HOSTS.len() {
            let [wall, others @ ..] = &clocks(&hosts, host)[..] else { panic!("it says nothing") };
            let ahead = if host == on { seconds } else { 0 };
            assert!(is_near(*wall, clock::machine_seconds() + ahead as f64), "{}: {wall}", HOSTS[host]);
            let same = others.iter().zip(&before[host][1..]).all(|(clock, before)| is_near(*clock, *before));
            assert!(same, "{others:?}, before {:?}", before[host]);
        }
        let api = hosts.all_apis()[on];
        hosts
            .until("its agent knows", async |hosts| {
                let page = hosts.fetch(&format!("http://{api}/metrics")).unwrap_or_default();
                let said = page.lines().find_map(|line| line.strip_prefix("leaseward_wall_clock_seconds "));
                said.is_some_and(|said| {
                    is_near(said.parse().expect("a number"), clock::machine_seconds() + seconds as f64)
                })
            })
            .await;
        // A time that is over on the holder's clock is over.
        hosts
            .until("it executes, in another life if time seemed to leap", async |hosts| {
                let server = hosts.get("/v1/servers/pay");
                let runs = server.is_some_and(|server| server["phase"] == "running" && server["machine"].is_string());
                runs && stamps.tail().is_some_and(|(_, life)| !leaps || life != held.1)
            })
            .await;
        let server = hosts.get("/v1/servers/pay").expect("it is there");
        if server["machine"] == HOSTS[on] {
            hosts
                .until("the server knows", async |_| {
                    let said = std::fs::read_to_string(&told).unwrap_or_default();
                    said.trim().parse().is_ok_and(|said| is_near(said, clock::machine_seconds() + seconds as f64))
                })
                .await;
        }
        hosts.until_connected(HOSTS.len() as u64).await;
    }
    let lives = stamps.exclusive();
    println!("{} lives, none beside another one", lives.len());
}

/// Voters that are far from each other agree, only later; and the harness tells the truth about how far.
#[tokio::test]
async fn voters_far_from_each_other_agree_and_nothing_is_lost_on_the_way() {
    let timing = Timing { profile: "wan", ttl: "6s".to_owned() };
    let Some(hosts) = hosts(Setup { timing, ..Setup::default() }).await else { return };
    let connect = |hosts: &Hosts, host: usize| {
        let to: SocketAddr = hosts.all_apis()[host];
        let began = Instant::now();
        hosts
            .network()
            .within(CLIENT, || TcpStream::connect_timeout(&to, Duration::from_secs(10)))
            .expect("it listens");
        began.elapsed()
    };
    let least = Duration::from_millis(30);
    let latency = Latency { least, jitter: Duration::from_millis(10) };
    let far: Vec<_> = HOSTS.iter().map(|host| hosts.network().delay(host, latency)).collect();
    // There and back on the host's cable alone.
    let took = connect(&hosts, 0);
    assert!(took >= 2 * least && took < 20 * least, "{took:?}");
    hosts.until("all vote", async |hosts| up(hosts) == Some(HOSTS.len())).await;
    let led = hosts.until_some("somebody leads", async |hosts| leader(hosts)).await;
    let began = Instant::now();
    hosts.must(&["policy", "set", "poison_after=7"]);
    let write = began.elapsed();
    // A question and its answer to the client, and one to a voter and back, over two cables each way.
    assert!(write >= 2 * least + 4 * least, "{write:?}");
    assert_eq!(written(&hosts), Some(7));
    // More than a frame, and more than a queue's worth of small ones: the tree's bytes come out as they went in.
    let dir = hosts.dir().join("tree");
    std::fs::create_dir(&dir).expect("a directory");
    let text: String =
        (0..300_000_u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    std::fs::write(dir.join("file"), &text).expect("written");
    hosts.must(&["config", "publish", "far", "--from", dir.to_str().expect("text")]);
    let to = hosts.dir().join("pulled");
    hosts.must(&["config", "pull", "far", "--to", to.to_str().expect("text")]);
    assert!(std::fs::read_to_string(to.join("file")).expect("pulled") == text, "bytes were changed on the way");
    let frames: u64 = far.iter().map(leaseward_tests::hosts::delay::Delay::carried).sum();
    println!("connected in {took:?}, wrote in {write:?}, {frames} frames; {} led", HOSTS[led]);
    drop(far);
    hosts.until("the lines are short again", async |hosts| connect(hosts, 0) < least).await;
    hosts.until("all vote", async |hosts| up(hosts) == Some(HOSTS.len())).await;
    hosts.until_connected(HOSTS.len() as u64).await;
}
