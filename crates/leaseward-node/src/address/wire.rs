//! Frames in and out of one interface, and the question who has an address.
//!
//! Must stay true: a probe changes nothing, here or elsewhere. Cancel safe: a dropped probe leaves nothing behind.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{SockaddrIn, SockaddrIn6};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, eth, ipproto, recv, send, socket_with,
};
use tokio::time::{Instant, timeout_at};

use super::Connection;
use super::frame::{self, Mac};
use super::link::Link;
use super::segment;
use crate::kernel;
use crate::limits::{ADDRESS_PROBE_WAIT, ADDRESS_PROBES, PROBE_FRAME_BYTES_MAX};

/// Returns who answers for `ip` on this link, after the first answer or after 90 ms of silence. Nobody does where
/// there are no neighbours.
pub(super) async fn holder(link: &Link, ip: IpAddr) -> io::Result<Option<Mac>> {
    let Some(own) = link.mac else { return Ok(None) };
    let protocol = if ip.is_ipv4() { eth::ARP } else { eth::IPV6 };
    let socket = kernel::watch(open(link, Some(protocol))?)?;
    let mut frame = [0; PROBE_FRAME_BYTES_MAX];
    // Between opening and binding it may have heard other interfaces.
    while recv(socket.get_ref(), &mut frame[..], RecvFlags::DONTWAIT).is_ok() {}
    for _ in 0..ADDRESS_PROBES {
        send(socket.get_ref(), &frame::probe(own, ip), SendFlags::DONTWAIT)?;
        let until = Instant::now() + ADDRESS_PROBE_WAIT;
        while let Ok(ready) = timeout_at(until, socket.readable()).await {
            let mut ready = ready?;
            match recv(socket.get_ref(), &mut frame[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => match frame::holder(&frame[..length.min(frame.len())], ip) {
                    Some(mac) if mac != own => return Ok(Some(mac)),
                    _ => {}
                },
                Err(rustix::io::Errno::WOULDBLOCK) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(None)
}

/// Tells the neighbours once that this link has `ip` now.
pub(super) fn announce(link: &Link, ip: IpAddr) -> io::Result<()> {
    let Some(own) = link.mac else { return Ok(()) };
    let socket = open(link, None)?;
    for frame in frame::announcements(own, ip) {
        send(&socket, &frame, SendFlags::DONTWAIT)?;
    }
    Ok(())
}

/// Wakes the clients of a former owner. A connection that cannot be reached is passed over.
pub(super) fn tickle(connections: &[Connection]) -> io::Result<()> {
    for is_ipv4 in [true, false] {
        let mut of_family = connections.iter().filter(|(local, _)| local.is_ipv4() == is_ipv4).peekable();
        if of_family.peek().is_none() {
            continue;
        }
        let family = if is_ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
        for (local, peer) in of_family {
            let Some(packet) = segment::tickle(*local, *peer) else { continue };
            // A raw socket wants no port.
            let _ = match peer.ip() {
                IpAddr::V4(ip) => send_to(&socket, &packet, &SockaddrIn::from(std::net::SocketAddrV4::new(ip, 0))),
                IpAddr::V6(ip) => {
                    send_to(&socket, &packet, &SockaddrIn6::from(std::net::SocketAddrV6::new(ip, 0, 0, 0)))
                }
            };
        }
    }
    Ok(())
}

fn send_to(socket: &OwnedFd, packet: &[u8], to: &dyn nix::sys::socket::SockaddrLike) -> nix::Result<usize> {
    nix::sys::socket::sendto(socket.as_raw_fd(), packet, to, nix::sys::socket::MsgFlags::MSG_DONTWAIT)
}

/// Without a protocol it hears nothing.
fn open(link: &Link, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
    nix::sys::socket::bind(socket.as_fd().as_raw_fd(), &link.place)?;
    Ok(socket)
}
