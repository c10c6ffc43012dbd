//! Floating addresses on real interfaces: who reaches them, who may not have them, and when they go by themselves.
//!
//! Each story has namespaces of its own and sends nothing elsewhere. They need root, and the fence needs `nft`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "addresses/fence.rs"]
mod fence;
#[path = "addresses/net.rs"]
mod net;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use leaseward_node::BootInstant;
use leaseward_node::address::Addresses;
use leaseward_state::name::ServerName;
use leaseward_state::server::{Announce, FloatingAddress};
use leaseward_state::token::FencingToken;
use net::{LINK, Net, Player};
use rustix::process::Signal;
use support::{PATIENCE, is_root};

const V4: &str = "10.9.0.100";
const V6: &str = "fd09::100";

/// How long a client waits in vain where the rule under test is broken.
const IN_VAIN: Duration = Duration::from_secs(2);

/// A network, and the directory of machine `a`'s records.
struct Stage {
    net: Net,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("left out: needs root");
            return None;
        }
        Some(Self { net: Net::new(), dir: tempfile::tempdir().unwrap() })
    }

    /// Starts a machine's agent, with the records of its former one.
    fn agent(&self, machine: &str) -> Player {
        self.net.play(machine, &["address", self.records(machine).to_str().unwrap()])
    }

    fn records(&self, machine: &str) -> std::path::PathBuf {
        self.dir.path().join(machine)
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn ms(from: BootInstant, to: BootInstant) -> f64 {
    to.saturating_since(from).as_secs_f64() * 1e3
}

/// Asserts that a client is not answered from `start` for as long as `IN_VAIN`.
fn is_unanswered(client: &net::Client, start: BootInstant) {
    while BootInstant::now().saturating_since(start) < IN_VAIN {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.answered_since(start), None);
    }
}

#[test]
fn an_address_is_reached_and_goes_with_its_release() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    for (ip, prefix) in [(V4, 32), (V6, 128)] {
        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        assert!(stage.net.shown("a", ip).unwrap().contains(&format!(" {ip}/{prefix} ")));
        let _echo = stage.net.echo("a", ip);
        let client = stage.net.client(ip);
        client.wait_for_answer(BootInstant(0));

        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        a.must("release pay-1");
        let released = BootInstant::now();
        assert_eq!(stage.net.shown("a", ip), None);
        assert!(is_empty(&stage.records("a")));
        // What was under way may still come in.
        assert_eq!(client.answered_since(released + Duration::from_millis(50)), None);
        a.must("release pay-1");
    }
    assert!(a.ask(&format!("claim pay-1 {V4} - 0 0")).starts_with("LW0356 "), "a time that is over");
    assert!(a.ask("claim pay-1 192.0.2.1 - 60000 0").starts_with("LW0351 "), "nobody's subnet");
    assert!(a.ask("claim pay-1 0.0.0.0 - 60000 0").starts_with("LW0357 "));
    assert!(is_empty(&stage.records("a")));
}

#[test]
fn a_holder_that_answers_keeps_its_address() {
    let Some(stage) = Stage::new() else { return };
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    for ip in [V4, V6] {
        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        let refused = b.ask(&format!("claim pay-1 {ip} - 60000 0"));
        assert!(refused.starts_with("LW0350 ") && refused.contains(&stage.net.mac("a")), "{refused}");
        assert_eq!((stage.net.shown("b", ip), is_empty(&stage.records("b"))), (None, true));

        a.must("release pay-1");
        b.must(&format!("probe {ip}"));
        assert_eq!(stage.net.shown("b", ip), None, "a probe changes nothing");
        b.must(&format!("claim pay-1 {ip} - 60000 0"));
        b.must("release pay-1");
    }
}

#[test]
fn who_kept_an_eye_on_a_free_address_need_not_ask_and_a_holder_keeps_it_all_the_same() {
    let Some(stage) = Stage::new() else { return };
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    for ip in [V4, V6] {
        let claim = format!("claim pay-1 {ip} - 60000 0");
        let took = |b: &mut Player| {
            let begun = BootInstant::now();
            b.must(&claim);
            ms(begun, BootInstant::now())
        };
        let asked = took(&mut b);
        b.must("release pay-1");
        b.must(&format!("watch {ip} 300"));
        let at_once = took(&mut b);
        println!("{ip}: claimed in {asked:.1} ms, and in {at_once:.1} ms after a watch");
        assert!(asked >= 90.0 && at_once <= asked - 60.0, "{asked} {at_once}");
        b.must("release pay-1");
        // What was seen counts for one claim, and not for long.
        assert!(took(&mut b) >= 90.0);
        b.must("release pay-1");

        a.must(&claim);
        b.must(&format!("watch {ip} 300"));
        assert!(b.ask(&claim).starts_with("LW0350 "), "it is not free");
        a.must("release pay-1");
    }
}

#[test]
fn an_address_of_this_machine_that_is_not_ours_is_left_alone() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    for (ip, prefix) in [(V4, 32), (V6, 128), ("10.9.0.1", 24)] {
        if prefix != 24 {
            stage.net.ip("a", &["addr", "add", &format!("{ip}/{prefix}"), "dev", LINK]);
        }
        let refused = a.ask(&format!("claim pay-1 {ip} - 60000 100"));
        assert!(refused.starts_with("LW0350 ") && refused.contains(&stage.net.mac("a")), "{refused}");
        a.must("release pay-1");
        assert_eq!(a.must("sweep"), "");
        assert!(stage.net.shown("a", ip).is_some());
    }
}

#[test]
fn takeover_from_a_machine_without_power() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    let mut b = stage.agent("b");
    let ips = [V4, V6].map(|ip| {
        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        let echoes = [stage.net.echo("a", ip), stage.net.echo("b", ip)];
        let client = stage.net.client(ip);
        client.wait_for_answer(BootInstant(0));
        (ip, client, echoes)
    });
    stage.net.power_off("a");
    for (ip, client, _) in &ips {
        let claimed = BootInstant::now();
        b.must(&format!("claim pay-1 {ip} - 60000 0"));
        let (last, first) = (client.last_before(claimed), client.wait_for_answer(claimed));
        println!("{ip}: {:.1} ms from the claim, {:.1} ms without an answer", ms(claimed, first), ms(last, first));
        assert!(first.saturating_since(claimed) < Duration::from_secs(1));
        assert!(stage.net.shown("a", ip).is_some(), "it never gave it up");
    }
}

/// Breaks the rule of the story above: without an announcement its client is not answered.
#[test]
fn without_an_announcement_clients_stay_with_the_former_owner() {
    let Some(stage) = Stage::new() else { return };
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    let ips = [V4, V6].map(|ip| {
        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        let echoes = [stage.net.echo("a", ip), stage.net.echo("b", ip)];
        let client = stage.net.client(ip);
        client.wait_for_answer(BootInstant(0));
        (ip, client, echoes)
    });
    stage.net.power_off("a");
    let start = BootInstant::now() + Duration::from_millis(50);
    for (ip, ..) in &ips {
        b.must(&format!("claim pay-1 {ip} silent 60000 0"));
    }
    for (_, client, _) in &ips {
        is_unanswered(client, start);
    }
    let announced = BootInstant::now();
    b.must("announce pay-1");
    for (ip, client, _) in &ips {
        let first = client.wait_for_answer(announced);
        println!("{ip}: {:.1} ms from the announcement", ms(announced, first));
        assert!(first.saturating_since(announced) < Duration::from_secs(1));
    }
}

#[test]
fn an_address_goes_by_itself_and_its_successor_waits_for_that() {
    let Some(stage) = Stage::new() else { return };
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    let valid = Duration::from_millis(2_500);
    for ip in [V4, V6] {
        a.must(&format!("claim pay-1 {ip} - {} 0", valid.as_millis()));
    }
    let claimed = BootInstant::now();
    a.signal(Signal::KILL);
    for ip in [V4, V6] {
        assert!(b.ask(&format!("claim pay-1 {ip} - 60000 0")).starts_with("LW0350 "), "it is still there");
    }
    for ip in [V4, V6] {
        b.must(&format!("claim pay-1 {ip} - 60000 4000"));
        println!("{ip}: claimed {:.0} ms after it was lent for {valid:?}", ms(claimed, BootInstant::now()));
        assert_eq!(stage.net.shown("a", ip), None);
    }
    assert!(BootInstant::now() < claimed + valid + Duration::from_secs(2));
}

#[test]
fn a_claim_goes_no_further_after_its_release() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    a.must(&format!("claim pay-1 {V4} - 60000 0"));
    let addresses = Addresses::new(stage.records("b"), BTreeMap::new());
    let server = ServerName::new("pay-1").unwrap();
    let address = FloatingAddress {
        ip: V4.to_owned(),
        interface: None,
        announce: Announce::BeforeStart,
        tickle: false,
        network_fence: false,
    };
    let story = async {
        let until = BootInstant::now() + PATIENCE;
        let mut claim = Box::pin(addresses.claim(&server, FencingToken(8), &address, until, PATIENCE));
        // It has met the holder by then, and waits for it to go.
        let met = tokio::time::timeout(Duration::from_millis(200), &mut claim).await;
        assert!(met.is_err(), "{met:?}");
        addresses.release(&server).await.unwrap();
        a.must("release pay-1");
        claim.await.unwrap_err().code()
    };
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story);
    assert_eq!(stage.net.within("b", run), "LW0356");
    assert!(stage.net.shown("b", V4).is_none() && is_empty(&stage.records("b")));
}

#[test]
fn an_extended_address_stays() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    for ip in [V4, V6] {
        a.must(&format!("claim pay-1 {ip} - 1000 0"));
    }
    let claimed = BootInstant::now();
    a.must("extend pay-1 9500");
    for ip in [V4, V6] {
        assert!((7..=9).contains(&stage.net.lifetime("a", ip)), "whole seconds, rounded down");
    }
    // Its first time, and the kernel's second after it, are over.
    while BootInstant::now() < claimed + Duration::from_millis(2_300) {
        std::thread::sleep(Duration::from_millis(20));
        for ip in [V4, V6] {
            assert!(stage.net.shown("a", ip).is_some());
        }
    }
    // An IPv6 address goes with its link; the next extension puts it back.
    stage.net.ip("a", &["link", "set", LINK, "down"]);
    stage.net.ip("a", &["link", "set", LINK, "up"]);
    stage.net.ip("a", &["addr", "replace", "fd09::1/64", "dev", LINK, "nodad"]);
    assert_eq!(stage.net.shown("a", V6), None);
    a.must("extend pay-1 9500");
    assert!(stage.net.shown("a", V6).is_some() && stage.net.shown("a", V4).is_some());
}

#[test]
fn a_new_agent_sweeps_what_is_not_kept() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    for (server, ip) in [("pay-1", V4), ("pay-1", V6), ("pay-2", "10.9.0.101")] {
        a.must(&format!("claim {server} {ip} - 60000 0"));
    }
    stage.net.ip("a", &["addr", "add", "10.9.0.102/32", "dev", LINK]);
    drop(a);
    let mut a = stage.agent("a");
    assert_eq!(a.must("sweep pay-2"), format!("{V4} {V6}"));
    assert_eq!((stage.net.shown("a", V4), stage.net.shown("a", V6)), (None, None));
    assert!(stage.net.shown("a", "10.9.0.102").is_some(), "somebody else's");

    a.must("extend pay-2 90000");
    assert!((80..=89).contains(&stage.net.lifetime("a", "10.9.0.101")), "taken over");
    assert_eq!(a.must("sweep"), "10.9.0.101");
    assert_eq!(stage.net.shown("a", "10.9.0.101"), None);
    assert!(is_empty(&stage.records("a")));
}

#[test]
fn an_address_outlives_the_first_one_of_its_subnet() {
    let Some(stage) = Stage::new() else { return };
    stage.net.run("a", &["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=0"]);
    stage.net.run("a", &["sysctl", "-qw", &format!("net.ipv4.conf.{LINK}.promote_secondaries=0")]);
    let mut a = stage.agent("a");
    a.must(&format!("claim pay-1 {V4} - 60000 0"));
    // Added as everybody adds them, this one breaks the rule.
    stage.net.ip("a", &["addr", "add", "10.9.0.150/24", "dev", LINK]);
    stage.net.ip("a", &["addr", "del", "10.9.0.1/24", "dev", LINK]);
    assert_eq!(stage.net.shown("a", "10.9.0.150"), None);
    assert!(stage.net.shown("a", V4).is_some());
}

#[test]
fn on_the_loopback_there_is_nobody_to_ask() {
    let Some(stage) = Stage::new() else { return };
    let mut a = stage.agent("a");
    let start = BootInstant::now();
    a.must("claim pay-1 127.0.0.77 - 60000 0");
    assert!(stage.net.shown("a", "127.0.0.77").unwrap().contains(" lo "));
    a.must("claim pay-1 10.9.0.100 on:lo 60000 0");
    println!("{:.1} ms for two claims", ms(start, BootInstant::now()));
    let _echo = stage.net.echo("a", "127.0.0.77");
    let answer = stage.net.within("a", || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(b"you?", "127.0.0.77:7").unwrap();
        socket.recv_from(&mut [0; 8]).unwrap().1
    });
    assert_eq!(answer, "127.0.0.77:7".parse().unwrap());
    a.must("release pay-1");
    assert_eq!(stage.net.shown("a", "127.0.0.77"), None);
}

#[test]
fn the_settings_choose_the_interface() {
    let Some(stage) = Stage::new() else { return };
    let dir = stage.records("a");
    let mut a = stage.net.play("a", &["address", dir.to_str().unwrap(), "192.0.2.0/24=eth0", "192.0.0.0/8=lo"]);
    a.must("claim pay-1 192.0.2.1 - 60000 0");
    assert!(stage.net.shown("a", "192.0.2.1").unwrap().contains(" eth0 "));
}
