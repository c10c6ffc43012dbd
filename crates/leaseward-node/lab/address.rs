//! The machine's floating addresses, driven by lines; and a server that echoes at one.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use leaseward_node::BootInstant;
use leaseward_node::address::{AddressError, Addresses, connections};
use leaseward_state::name::ServerName;
use leaseward_state::server::{Announce, FloatingAddress};
use leaseward_state::token::FencingToken;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

/// Answers each line of standard input with one line, until it ends.
pub(crate) fn converse(record_dir: &str, interfaces: &[&str]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let pair = |text: &&str| {
        let (subnet, interface) = text.split_once('=').expect("SUBNET=INTERFACE");
        (subnet.to_owned(), interface.to_owned())
    };
    let interfaces: BTreeMap<String, String> = interfaces.iter().map(pair).collect();
    let addresses = Addresses::new(record_dir.into(), interfaces);
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input");
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match runtime.block_on(perform(&addresses, &words)) {
            Ok(said) => println!("ok {said}"),
            Err(error) => println!("{} {error}", error.code()),
        }
    }
}

async fn perform(addresses: &Addresses, words: &[&str]) -> Result<String, AddressError> {
    match words {
        ["claim", server, ip, flags, valid_ms, patience_ms] => {
            let (address, token) = (address(ip, flags), FencingToken(7));
            addresses.claim(&name(server), token, &address, until(valid_ms), milliseconds(patience_ms)).await?;
        }
        ["probe", ip] => addresses.probe(&address(ip, "")).await?,
        ["watch", ip, for_ms] => {
            let address = address(ip, "");
            tokio::time::timeout(milliseconds(for_ms), addresses.keep_an_eye_on(&address)).await.ok();
        }
        ["extend", server, valid_ms] => addresses.extend(&name(server), until(valid_ms)).await?,
        ["announce", server] => addresses.announce(&name(server)),
        ["release", server] => addresses.release(&name(server)).await?,
        ["sweep", keep @ ..] => {
            let removed = addresses.sweep(&keep.iter().map(|server| name(server)).collect()).await?;
            return Ok(removed.join(" "));
        }
        ["connections", ip] => {
            let found = connections(ip.parse().expect("an address")).expect("/proc");
            return Ok(found.iter().map(|(local, peer)| format!("{local} {peer}")).collect::<Vec<_>>().join(" "));
        }
        ["connected", server, ends @ ..] => {
            let end = |text: &str| text.parse::<SocketAddr>().expect("a socket address");
            addresses.set_connections(&name(server), ends.chunks(2).map(|pair| (end(pair[0]), end(pair[1]))).collect());
        }
        other => panic!("the lab does not know {other:?}"),
    }
    Ok(String::new())
}

/// `flags` holds any of `silent`, `tickle`, `fence` and `on:INTERFACE`, with commas between.
fn address(ip: &str, flags: &str) -> FloatingAddress {
    let mut address = FloatingAddress {
        ip: ip.to_owned(),
        interface: None,
        announce: Announce::BeforeStart,
        tickle: false,
        network_fence: false,
    };
    for flag in flags.split(',') {
        match flag.split_once(':') {
            Some(("on", interface)) => address.interface = Some(interface.to_owned()),
            _ => match flag {
                "silent" => address.announce = Announce::AfterReady,
                "tickle" => address.tickle = true,
                "fence" => address.network_fence = true,
                _ => {}
            },
        }
    }
    address
}

/// Echoes at an address that need not be there yet, by UDP and by TCP. Says `ready`.
pub(crate) fn echo(ip: &str, port: &str) {
    let at = SocketAddr::new(ip.parse().expect("an address"), port.parse().expect("a port"));
    let udp = UdpSocket::from(open(at, SockType::Datagram));
    let tcp = open(at, SockType::Stream);
    listen(&tcp, Backlog::new(16).expect("a backlog")).expect("listen");
    let tcp = TcpListener::from(tcp);
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.expect("accept");
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..length]);
                }
            });
        }
    });
    println!("ready");
    let mut bytes = [0; 64];
    loop {
        // A fence makes both fail for a while.
        if let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..length], from);
        }
    }
}

fn open(at: SocketAddr, kind: SockType) -> OwnedFd {
    let family = if matches!(at.ip(), IpAddr::V4(_)) { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&opened, sockopt::IpFreebind, &true).expect("IP_FREEBIND");
    bind(opened.as_raw_fd(), &SockaddrStorage::from(at)).expect("bind");
    opened
}

fn name(text: &str) -> ServerName {
    ServerName::new(text).expect("a name")
}

fn milliseconds(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("a number"))
}

fn until(valid_ms: &str) -> BootInstant {
    BootInstant::now() + milliseconds(valid_ms)
}
