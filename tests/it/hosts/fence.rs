//! Servers that require the network fence: which hosts get them, and that a host on which nobody acts falls silent.
//!
//! The witness is a program that is no server: it answers at the server's addresses on the old host, and goes on when
//! the server is dead. So what ends its answers is the fence, and nothing else.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use leaseward_tests::eventually;
use leaseward_tests::hosts::probe::Probe;
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::stamps::{Stamps, boot_ns};
use rustix::process::Signal;

use super::{BACK_WITHIN, Floating, NAME};
use crate::story::{TTL, victim};

const REQUIRED: &str = "requires_fence = \"F3\"\n";

/// Where the bystander listens.
const BESIDE: u16 = 7001;

/// What F3 allows after a deadline.
const GRACE: Duration = Duration::from_millis(100);

/// For how long after that nothing must be heard.
const SILENT_FOR: Duration = Duration::from_millis(300);

/// A program on a host that is no server, and answers at every address there.
struct Bystander(Child);

impl Bystander {
    fn on(hosts: &Hosts, host: usize) -> Self {
        let stamps = hosts.dir().join("bystander");
        let mut command = hosts.network().command(HOSTS[host], Path::new(victim()));
        command.arg("stamp").arg(stamps).args(["--greet", &BESIDE.to_string()]);
        command.env("LEASEWARD_TOKEN", "1").env("LEASEWARD_MACHINE", HOSTS[host]);
        Self(command.spawn().expect("it starts"))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Agent and shim are stopped: nobody acts, and yet no packet leaves after the deadline; only then the new copy begins.
#[tokio::test]
async fn a_host_on_which_nobody_acts() {
    let Some(hosts) = Hosts::fenced(&[0, 1]).await else { return };
    if hosts.get("/v1/machines/h1").expect("it is shown")["fence"] != "F3" {
        println!("left out: no machine earns F3 here");
        return;
    }
    let stamps = Stamps::at(&hosts.dir().join("stamps"));
    let mut story = Floating { hosts, stamps, probes: Vec::new() };
    let file = story.file(&[]);
    fs::write(&file, fs::read_to_string(&file).expect("written") + REQUIRED).expect("written");
    story.hosts.must(&["server", "apply", "-f", &file]);
    let addresses = [story.hosts.floating(), story.hosts.floating_v6()];
    let probes = |port| addresses.map(|ip| story.hosts.probe(SocketAddr::new(ip, port)));
    let (servers, _bystander) = (probes(super::PORT), Bystander::on(&story.hosts, 0));
    let beside = probes(BESIDE);
    story.probes = servers.into();
    let old = story.answered_after(0).await;
    assert_eq!(old.machine, HOSTS[0], "its first candidate");
    story.hosts.lead(0).await;
    let lead = boot_ns();
    eventually("the bystander answers", async || beside.iter().all(|probe| probe.newest(lead).is_some())).await;

    story.hosts.signal_all(0, Signal::STOP);
    let stopped = boot_ns();
    // Takes the second line of the fence away: only nft is left.
    addresses.iter().for_each(|ip| story.hosts.network().keep_address(HOSTS[0], *ip));
    let closed = stopped + (TTL + GRACE).as_nanos() as u64;
    eventually("the deadline is over", async || boot_ns() > closed + SILENT_FOR.as_nanos() as u64).await;
    let last = |probe: &Probe| probe.newest(stopped).expect("it should have answered until the deadline").at;
    for probe in &beside {
        let after = Duration::from_nanos(last(probe) - stopped);
        println!("nobody acts: the old host's last answer came {after:?} after its agent stopped");
        assert!(last(probe) <= closed, "the old host answered {after:?} after its agent stopped");
    }

    assert_eq!(story.answered_after(old.token).await.machine, HOSTS[1]);
    story.check_gaps("nobody acts", stopped, BACK_WITHIN);
    let lives = story.stamps.exclusive();
    assert_eq!(lives.len(), 2, "{lives:?}");
    assert!(lives[0].last < stopped + TTL.as_nanos() as u64, "it outlived its deadline");
    assert!(
        beside.iter().all(|probe| last(probe) < lives[1].first),
        "the new copy began before the old host was silent"
    );
    assert!(addresses.iter().all(|ip| story.hosts.network().has(HOSTS[0], *ip)), "it is the packets that stop");

    // Awake again it gives them up, and takes nothing back.
    story.hosts.signal_all(0, Signal::CONT);
    story
        .hosts
        .until("its addresses are gone", async |hosts| addresses.iter().all(|ip| hosts.who_has(*ip) == [1]))
        .await;
    let awake = boot_ns();
    story.answered_since(awake + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 2, "the one that woke up moved something");
    story.check_gaps("awake again", awake, Duration::from_millis(300));
}

/// What requires the fence does not go where there is none, and `explain` says why.
#[tokio::test]
async fn hosts_without_a_fence() {
    let Some(hosts) = Hosts::fenced(&[2]).await else { return };
    let has =
        |hosts: &Hosts, host: &str| hosts.get(&format!("/v1/machines/{host}")).expect("it is shown")["fence"].clone();
    if has(&hosts, HOSTS[2]) != "F3" {
        println!("left out: no machine earns F3 here");
        return;
    }
    assert_eq!([has(&hosts, HOSTS[0]), has(&hosts, HOSTS[1])], ["F2", "F2"]);
    let stamps = Stamps::at(&hosts.dir().join("stamps"));
    let story = Floating { hosts, stamps, probes: Vec::new() };
    let file = story.file(&[]);
    let text = fs::read_to_string(&file).expect("written") + REQUIRED;
    let two = text.replace(&format!("{HOSTS:?}"), &format!("{:?}", &HOSTS[..2]));
    assert_ne!(two, text);
    fs::write(&file, two).expect("written");
    // Without that word it is refused: no machine that may take it ever could.
    story.hosts.must(&["server", "apply", "-f", &file, "--no-wait", "--force"]);
    let reason = "its fence level is F2; F3 is required";
    let explained = |hosts: &Hosts| hosts.must(&["explain", &format!("server/{NAME}"), "-o", "json"]);
    story.hosts.until("both say why", async |hosts| explained(hosts).matches(reason).count() == 2).await;
    assert_eq!(story.stamps.lives(), [], "it runs without what it requires");

    fs::write(&file, &text).expect("written");
    story.hosts.must(&["server", "apply", "-f", &file]);
    assert_eq!(story.hosts.phase(NAME, "running").await["machine"], HOSTS[2], "the last of its candidates");
    assert_eq!(story.stamps.exclusive().len(), 1);
    assert_eq!(explained(&story.hosts).matches(reason).count(), 2);
}
