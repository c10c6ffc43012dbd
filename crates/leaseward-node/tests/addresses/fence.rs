//! What reaches beyond one machine: the fence that stops packets, and clients that are woken.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use leaseward_node::BootInstant;
use rustix::process::Signal;

use super::net::LINK;
use super::support::{PATIENCE, wait_for};
use super::{IN_VAIN, Stage, V4, V6, is_empty, ms};

#[test]
fn a_network_fence_closes_by_itself() {
    let Some(stage) = Stage::new() else { return };
    if !["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|path| Path::new(path).exists()) {
        eprintln!("left out: needs nft");
        assert!(stage.agent("a").ask(&format!("claim pay-1 {V4} fence 60000 0")).starts_with("LW0354 "));
        assert!(stage.net.shown("a", V4).is_none() && is_empty(&stage.records("a")));
        return;
    }
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    let ips = [V4, V6].map(|ip| {
        a.must(&format!("claim pay-1 {ip} fence 2000 0"));
        let echo = stage.net.echo("a", ip);
        let client = stage.net.client(ip);
        client.wait_for_answer(BootInstant(0));
        (ip, client, echo)
    });
    let before = BootInstant::now();
    a.must("announce pay-1");
    a.must("extend pay-1 2500");
    let after = BootInstant::now();
    a.signal(Signal::STOP);
    let lent = Duration::from_millis(2_500);
    for (ip, ..) in &ips {
        // Takes the second line of the fence away: only nft is left.
        let prefix = if *ip == V4 { 32 } else { 128 };
        let lifetime = ["valid_lft", "forever", "preferred_lft", "forever"];
        stage.net.ip("a", &[&["addr", "change", &format!("{ip}/{prefix}"), "dev", LINK][..], &lifetime].concat());
    }
    for (ip, client, _) in &ips {
        // Until the end of the extension, which is later than that of the claim.
        client.wait_for_answer(before + lent - Duration::from_millis(200));
        let closed = after + lent + Duration::from_millis(100);
        while BootInstant::now() < closed + Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(client.answered_since(closed), None, "{ip}");
        }
        println!(
            "{ip}: the last answer {:.1} ms after it was lent for {lent:?}",
            ms(before, client.last_before(closed))
        );
        assert!(stage.net.shown("a", ip).is_some(), "it is the packets that stop");
    }
    // It is silent, so it is succeeded while it still has the address. What it meant to announce it keeps to itself.
    let echoes = [V4, V6].map(|ip| {
        b.must(&format!("claim pay-1 {ip} - 60000 0"));
        stage.net.echo("b", ip)
    });
    let burst_over = BootInstant::now() + Duration::from_millis(1_600);
    wait_for("the successor's burst", PATIENCE, || (BootInstant::now() > burst_over).then_some(()));
    a.signal(Signal::CONT);
    a.must("probe 10.9.0.99");
    for (ip, client, _) in &ips {
        let woken = BootInstant::now();
        assert!(client.wait_for_answer(woken) < woken + Duration::from_millis(300), "{ip}");
    }
    b.must("release pay-1");
    drop(echoes);
    // Without the fence it answers again, as it would have all along.
    stage.net.run("a", &["nft", "flush", "ruleset"]);
    for ip in [V4, V6] {
        assert!(b.ask(&format!("probe {ip}")).starts_with("LW0350 "));
    }
    a.must("release pay-1");
    assert!(stage.net.shown("a", V4).is_none() && stage.net.shown("a", V6).is_none());
    // What was guarded is free again: an address without a fence is not closed by a former one's.
    a.must(&format!("claim pay-2 {V4} fence 60000 0"));
    a.must("release pay-2");
    a.must(&format!("claim pay-2 {V4} - 60000 0"));
    ips[0].1.wait_for_answer(BootInstant::now());
}

#[test]
fn clients_of_the_former_owner_are_woken() {
    let Some(stage) = Stage::new() else { return };
    let (mut a, mut b) = (stage.agent("a"), stage.agent("b"));
    let clients = [V4, V6].map(|ip| {
        a.must(&format!("claim pay-1 {ip} - 60000 0"));
        let echo = stage.net.echo("a", ip);
        let at = SocketAddr::new(ip.parse().unwrap(), 7);
        let mut stream = stage.net.within("c", || TcpStream::connect_timeout(&at, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"you?").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        (ip, stream, echo)
    });
    let ends = clients.each_ref().map(|(ip, stream, _)| {
        let ends = a.must(&format!("connections {ip}"));
        assert_eq!(ends, format!("{} {}", stream.peer_addr().unwrap(), stream.local_addr().unwrap()));
        ends
    });
    stage.net.power_off("a");
    b.must(&format!("connected pay-1 {}", ends.join(" ")));
    for (ip, mut stream, _) in clients {
        // Without a tickle it hears nothing, though the address is here: breaks the rule.
        b.must(&format!("claim pay-1 {ip} - 60000 0"));
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert_eq!(stream.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);

        let woken = BootInstant::now();
        b.must(&format!("claim pay-1 {ip} tickle 60000 0"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        println!("{ip}: reset {:.1} ms after the claim", ms(woken, BootInstant::now()));
        assert!(BootInstant::now() < woken + IN_VAIN);
    }
    wait_for("no connection", PATIENCE, || b.must(&format!("connections {V4}")).is_empty().then_some(()));
}
