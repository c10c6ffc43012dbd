//! Servers with floating addresses, on hosts that lose their power, their cable or their agent; seen by clients.
//!
//! Two witnesses: the stamps of `leaseward-victim`, whose lives never overlap; and clients, who see no older token
//! after a newer one, and for how long nobody answered. As root a copy is dead 100 ms after its time at the latest.

mod fence;
mod programs;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use leaseward_tests::hosts::probe::{Answer, Probe, greeting};
use leaseward_tests::hosts::watch::Watch;
use leaseward_tests::hosts::{CLIENT, HOSTS, Hosts};
use leaseward_tests::stamps::{Stamps, boot_ns};
use leaseward_tests::{PATIENCE, eventually};
use serde_json::Value;

use crate::story::{TTL, token_of, victim};

/// The name of every server here.
const NAME: &str = "pay";

/// Where it listens.
const PORT: u16 = 7000;

/// After a death: what has to run out, the grace of a root's fence, and something has to start.
const BACK_WITHIN: Duration = Duration::from_millis(1_000 + 100 + 2_000);

/// The kernel takes an address whose time is over away within a second and a little.
const ADDRESS_GONE_WITHIN: Duration = Duration::from_millis(1_200);

/// What a client has to notice, it notices within this.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// An agent looks every three seconds who is connected, and tells the cluster.
const CLIENTS_KNOWN_AFTER: Duration = Duration::from_secs(4);

/// So many answers make a client that works.
const STEADY: usize = 20;

/// Hosts with a server that greets, and clients of both its addresses.
struct Floating {
    hosts: Hosts,
    stamps: Stamps,
    probes: Vec<Probe>,
}

impl Floating {
    async fn hosts() -> Option<Self> {
        let hosts = Hosts::start().await?;
        let stamps = Stamps::at(&hosts.dir().join("stamps"));
        Some(Self { hosts, stamps, probes: Vec::new() })
    }

    /// Starts hosts with a server that runs on the first of them, and answers.
    async fn start(options: &[&str]) -> Option<Self> {
        let mut story = Self::hosts().await?;
        story.hosts.must(&["server", "apply", "-f", &story.file(options)]);
        let to = [story.hosts.floating(), story.hosts.floating_v6()].map(|ip| SocketAddr::new(ip, PORT));
        story.probes = to.into_iter().map(|to| story.hosts.probe(to)).collect();
        let answer = story.answered_after(0).await;
        assert_eq!(answer.machine, HOSTS[0], "its first candidate");
        let steady = async |_: &Hosts| story.probes.iter().all(|probe| probe.answers().len() >= STEADY);
        story.hosts.until("it answers steadily", steady).await;
        Some(story)
    }

    /// Writes the server's file, and returns where it is.
    fn file(&self, options: &[&str]) -> String {
        let (port, stamps) = (PORT.to_string(), self.stamps.path().to_str().expect("text"));
        let command = [&[victim(), "stamp", stamps, "--greet", &port], options].concat();
        let text = format!(
            "command = {command:?}\nstop_grace = \"500ms\"\ncandidates = {HOSTS:?}\n\
             vips = [{{ ip = \"{}\" }}, {{ ip = \"{}\" }}]\n",
            self.hosts.floating(),
            self.hosts.floating_v6()
        );
        let file = self.hosts.dir().join(format!("{NAME}.toml"));
        fs::write(&file, text).expect("the file is written");
        file.to_str().expect("text").to_owned()
    }

    /// Returns an answer under a token greater than this, once each client has one.
    async fn answered_after(&self, token: u64) -> Answer {
        let all = async |_: &Hosts| self.probes.iter().map(|probe| probe.after(token)).collect::<Option<Vec<_>>>();
        let answers = self.hosts.until_some("it answers under a new token, at each address", all).await;
        answers[0].clone()
    }

    /// Waits until each client was answered after this time.
    async fn answered_since(&self, at: u64) {
        let all = async |_: &Hosts| self.probes.iter().all(|probe| probe.newest(at).is_some());
        self.hosts.until("it answers, at each address", all).await;
    }

    fn token(&self) -> u64 {
        self.probes[0].newest(0).expect("it answers").token
    }

    /// Both addresses are on this host, and on no other that a client can reach.
    #[track_caller]
    fn only_on(&self, host: usize) {
        for address in [self.hosts.floating(), self.hosts.floating_v6()] {
            assert_eq!(self.hosts.who_has(address), [host], "{address}");
        }
    }

    /// Starts to look who has the addresses, which may move to the second host only.
    fn watch(&self) -> [Watch; 2] {
        let [old, new, _] = HOSTS;
        [self.hosts.floating(), self.hosts.floating_v6()].map(|ip| self.hosts.network().watch(&[new, old], ip))
    }

    #[track_caller]
    fn check_gaps(&self, what: &str, since: u64, at_most: Duration) {
        for probe in &self.probes {
            probe.check_gap(what, since, at_most);
        }
    }

    /// Returns a connection of a client who then says nothing.
    fn idle_client(&self) -> TcpStream {
        let to = SocketAddr::new(self.hosts.floating(), PORT);
        let stream = self.hosts.network().within(CLIENT, || TcpStream::connect_timeout(&to, PATIENCE));
        let stream = stream.expect("it is there");
        greeting(&stream, PATIENCE).expect("it greets");
        stream
    }
}

/// Each address was here and there, and never on both.
#[track_caller]
fn one_owner_at_a_time(watches: [Watch; 2]) {
    for watch in watches {
        let seen = watch.stop();
        assert!(seen.owners.iter().all(|times| *times > 0), "it did not move: {seen:?}");
        assert_eq!(seen.two_owners, 0, "two hosts had the address at one moment: {seen:?}");
    }
}

/// A host loses its power: its addresses answer elsewhere.
#[tokio::test]
async fn a_host_without_power() {
    let Some(mut story) = Floating::start(&[]).await else { return };
    let old = story.token();
    let (mut talker, mut idler) = (story.idle_client(), story.idle_client());
    let connected = boot_ns();
    // The harder case: whoever decides dies too.
    story.hosts.lead(0).await;
    story.answered_since(connected + CLIENTS_KNOWN_AFTER.as_nanos() as u64).await;
    let off = boot_ns();
    story.hosts.power_off(0);
    let answer = story.answered_after(old).await;
    assert_eq!(answer.machine, HOSTS[1]);
    story.check_gaps("power loss", off, BACK_WITHIN);
    story.only_on(1);
    assert_eq!(story.stamps.exclusive().len(), 2);

    // Who waits for the dead host's server is woken, and told by the new owner that he is not known; and so is who
    // goes on talking.
    idler.set_read_timeout(Some(NOTICED_WITHIN)).expect("a timeout");
    let woken = idler.read(&mut [0]).expect_err("nobody says anything more");
    assert_eq!(woken.kind(), ErrorKind::ConnectionReset, "an idle client was not woken");
    talker.set_read_timeout(Some(NOTICED_WITHIN)).expect("a timeout");
    let told = talker.write_all(b"?").and_then(|()| talker.read(&mut [0]));
    assert_eq!(told.expect_err("it is not known").kind(), ErrorKind::ConnectionReset);
}

/// A host is only cut off: it gives up by itself what it can no longer have, in time, and takes nothing back.
///
/// Its agent lives, so each thing has two who end it: agent and kernel. This holds with either of them alone, and breaks
/// where the host believes for too long in what it has. [`a_host_without_its_agent`] has the kernel only.
#[tokio::test]
async fn a_host_without_its_cable() {
    let Some(mut story) = Floating::start(&["--ignore-term"]).await else { return };
    let old = story.token();
    story.hosts.lead(0).await;
    let cut = boot_ns();
    story.hosts.cut_off(0);
    let addresses = [story.hosts.floating(), story.hosts.floating_v6()];
    let still_there = |hosts: &Hosts| addresses.iter().any(|ip| hosts.network().has(HOSTS[0], *ip));
    assert!(still_there(&story.hosts), "its time was not over");
    story.hosts.until("its addresses are gone", async |hosts| !still_there(hosts)).await;
    let gone = Duration::from_nanos(boot_ns() - cut);
    println!("cable pulled: its addresses were gone after {gone:?}");
    assert!(gone <= TTL + ADDRESS_GONE_WITHIN, "gone only after {gone:?}");

    assert_eq!(story.answered_after(old).await.machine, HOSTS[1]);
    story.check_gaps("cable pulled", cut, BACK_WITHIN);
    let lives = story.stamps.exclusive();
    assert!(lives[0].last > cut, "it should have run on for a while");
    assert!(lives[0].last < cut + TTL.as_nanos() as u64, "it outlived its deadline");

    story.hosts.plug_in(0);
    story.hosts.until_connected(3).await;
    let healed = boot_ns();
    story.answered_since(healed + TTL.as_nanos() as u64).await;
    story.only_on(1);
    assert_eq!(story.stamps.exclusive().len(), 2, "the one that came back moved something");
    story.check_gaps("plugged in again", healed, Duration::from_millis(300));
}

/// An operator moves it; who was connected notices.
#[tokio::test]
async fn a_planned_move() {
    let Some(story) = Floating::start(&[]).await else { return };
    let old = story.token();
    let mut client = story.idle_client();
    let watches = story.watch();
    let asked = boot_ns();
    story.hosts.must(&["server", "move", NAME, "--to", HOSTS[1]]);
    let moved = boot_ns();
    client.set_read_timeout(Some(NOTICED_WITHIN)).expect("a timeout");
    match client.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0, "nobody says anything more"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the client does not notice"),
    }
    let noticed = Duration::from_nanos(boot_ns().saturating_sub(moved));
    println!("planned move: an idle client knew {noticed:?} after it at the latest");
    assert_eq!(story.answered_after(old).await.machine, HOSTS[1]);
    story.check_gaps("planned move", asked, Duration::from_secs(2));
    one_owner_at_a_time(watches);
    story.only_on(1);
    assert_eq!(story.stamps.exclusive().len(), 2);

    story.hosts.must(&["server", "stop", NAME]);
    for address in [story.hosts.floating(), story.hosts.floating_v6()] {
        assert_eq!(story.hosts.who_has(address), [0; 0], "{address} outlived its server");
    }
}

/// An agent is killed. Back in time it goes on with what is there; else all goes elsewhere, and the host's kernel takes
/// the addresses away by itself.
///
/// The shim lives. Without a kernel timer its own loop would end the server in time, and this would still hold (it breaks
/// where the timer is there and never fires); `fence.rs` stops the shim too, and there only the kernel's timer is left.
#[tokio::test]
async fn a_host_without_its_agent() {
    let Some(mut story) = Floating::start(&[]).await else { return };
    let before = story.hosts.phase(NAME, "running").await;
    story.hosts.lead(2).await;
    let killed = boot_ns();
    story.hosts.kill_agent(0);
    story.hosts.start_agent(0);
    story.answered_since(killed + 3 * TTL.as_nanos() as u64).await;
    story.check_gaps("agent killed and restarted", killed, Duration::from_millis(300));
    let now = story.hosts.phase(NAME, "running").await;
    assert_eq!((&now["pid"], &now["token"], &now["machine"]), (&before["pid"], &before["token"], &before["machine"]));
    assert_eq!(story.stamps.exclusive().len(), 1, "it was started again");
    story.only_on(0);

    story.hosts.until_connected(3).await;
    let watches = story.watch();
    let killed = boot_ns();
    story.hosts.kill_agent(0);
    assert_eq!(story.answered_after(token_of(&before)).await.machine, HOSTS[1]);
    story.check_gaps("agent killed for good", killed, BACK_WITHIN);
    one_owner_at_a_time(watches);
    let lives = story.stamps.exclusive();
    assert_eq!(lives.len(), 2, "{lives:?}");
    assert!(lives[0].last > killed, "it should have outlived its agent");
    assert!(lives[0].last < killed + TTL.as_nanos() as u64, "it outlived its deadline");
    story.only_on(1);
}

/// Somebody has the address already: the server is not started, and the holder is named.
#[tokio::test]
async fn a_stranger_with_the_address() {
    let Some(mut story) = Floating::hosts().await else { return };
    story.hosts.add_host("stranger");
    let address = story.hosts.floating();
    story.hosts.network().add_address("stranger", address);
    let mac = story.hosts.network().mac("stranger");
    story.hosts.must(&["server", "apply", "-f", &story.file(&[]), "--no-wait"]);
    let failed = async |hosts: &Hosts| {
        let server: Value = hosts.get(&format!("/v1/servers/{NAME}"))?;
        server["failures"].to_string().contains("LW0350").then_some(server)
    };
    let server = story.hosts.until_some("a start fails", failed).await;
    assert!(server["failures"].to_string().contains(&mac), "the holder {mac} is not named: {}", server["failures"]);
    let explained = story.hosts.must(&["explain", &format!("server/{NAME}"), "-o", "json"]);
    assert!(explained.contains("LW0350") && explained.contains(&mac), "{explained}");
    assert_eq!(story.hosts.who_has(address), [0; 0]);
    assert_eq!(story.stamps.lives(), [], "it was executed without its address");

    story.hosts.network().remove_address("stranger", address);
    story.hosts.must(&["server", "start", NAME]);
    eventually("it runs", async || story.stamps.newest().is_some()).await;
    let host = story.hosts.phase(NAME, "running").await["machine"].clone();
    let host = HOSTS.iter().position(|name| host == *name).expect("one of ours");
    story.only_on(host);
}

/// A former owner's kernel is slow to take the address away: that is waited for, longer than one lease lasts.
#[tokio::test]
async fn a_former_owner_that_lags_behind() {
    let Some(mut story) = Floating::hosts().await else { return };
    story.hosts.add_host("former");
    story.hosts.network().lend_address("former", story.hosts.floating(), 1);
    let asked = boot_ns();
    story.hosts.must(&["server", "apply", "-f", &story.file(&[])]);
    let took = Duration::from_nanos(boot_ns() - asked);
    println!("a former owner lags behind: it runs after {took:?}");
    let server = story.hosts.phase(NAME, "running").await;
    assert_eq!((&server["machine"], &server["failures"]), (&HOSTS[0].into(), &Value::Array(Vec::new())), "{server}");
    assert!(took >= TTL, "it should have waited: {took:?}");
    story.only_on(0);
}
