//! The wire: framed requests and answers over TCP, to peers and from clients.
//!
//! Must stay true: who speaks is known before anything is allocated for it; every frame is bounded, and so are all that wait; a slow reader
//! slows its own connection only. A peer has two connections: `control` for consensus and `bulk` for what is large,
//! so that a snapshot never delays a heartbeat. Left out on purpose: TLS, which wraps the stream in `transport.rs`.

pub mod connection;
pub mod frame;
mod heard;
mod inbox;
pub mod links;
pub mod listener;
mod outbox;
pub mod transport;
pub mod wire;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Returns whether an address is one of this machine: then it can be listened on.
#[must_use]
pub fn is_here(address: &str) -> bool {
    let ip: Option<IpAddr> = match address.parse::<SocketAddr>() {
        Ok(address) => Some(address.ip()),
        Err(_) => address.to_socket_addrs().ok().and_then(|mut found| found.next()).map(|found| found.ip()),
    };
    ip.is_some_and(|ip| UdpSocket::bind((ip, 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_listened_on_is_here() {
        assert!(is_here("127.0.0.1:7") && is_here("localhost:7"));
        assert!(!is_here("192.0.2.1:7") && !is_here("no such host:7"));
    }
}
