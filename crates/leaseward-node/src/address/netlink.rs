//! Three requests to the kernel: add an address, move its lifetime, remove it.
//!
//! Written by hand: a crate for it brings some thirty others, and these are all the messages we need.
//!
//! Must stay true: addresses are /32 and /128, so that they depend on no other address of the interface: with the
//! first address of a subnet the kernel removes all others in it. Every address has a lifetime, so that it goes
//! without us.
//!
//! Blocks for some tens of microseconds, longer while others change the machine's network.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

const HEADER: usize = 16;

/// Adds an address for `seconds`.
///
/// # Errors
/// `EEXIST` if the interface has it already.
pub(super) fn add(ip: IpAddr, interface: u32, seconds: u32) -> io::Result<()> {
    ask(&request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, ip, interface, seconds))
}

/// Gives an address that is there `seconds` from now.
pub(super) fn extend(ip: IpAddr, interface: u32, seconds: u32) -> io::Result<()> {
    ask(&request(libc::RTM_NEWADDR, libc::NLM_F_REPLACE, ip, interface, seconds))
}

/// Removes an address, if it is there.
pub(super) fn remove(ip: IpAddr, interface: u32) -> io::Result<()> {
    match ask(&request(libc::RTM_DELADDR, 0, ip, interface, 0)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(()),
        done => done,
    }
}

fn request(kind: u16, flags: i32, ip: IpAddr, interface: u32, seconds: u32) -> Vec<u8> {
    let (family, octets) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    // The kernel's own search for duplicates takes two seconds, and we have looked ourselves.
    let address_flags = if ip.is_ipv6() { libc::IFA_F_NODAD } else { 0 };
    let mut body = vec![family as u8, octets.len() as u8 * 8, address_flags as u8, libc::RT_SCOPE_UNIVERSE];
    body.extend(interface.to_ne_bytes());
    body.extend(attribute(libc::IFA_LOCAL, &octets));
    body.extend(attribute(libc::IFA_ADDRESS, &octets));
    if kind == libc::RTM_NEWADDR {
        // Preferred for no time: nothing on this machine takes it as its own source by accident.
        let lifetime = [0, seconds, 0, 0].map(u32::to_ne_bytes).concat();
        body.extend(attribute(libc::IFA_CACHEINFO, &lifetime));
    }
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port: one request per socket needs neither.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The values are whole words, so nothing needs padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

fn ask(request: &[u8]) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 512];
    // The kernel has answered before the sending returns.
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    verdict(&answer[..length])
}

fn verdict(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let errno = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind.map(i32::from), errno) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(errno)) => Err(Errno::from_raw(-errno).into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_a_host_prefix_and_a_lifetime() {
        let request = request(libc::RTM_NEWADDR, libc::NLM_F_REPLACE, "10.9.0.100".parse().unwrap(), 7, 3);
        assert_eq!(request.len(), 60);
        assert_eq!(request[..4], 60_u32.to_ne_bytes());
        assert_eq!(request[16..20], [2, 32, 0, 0]);
        assert_eq!(request[20..24], 7_u32.to_ne_bytes());
        assert_eq!(request[28..32], [10, 9, 0, 100]);
        assert_eq!(request[48..52], 3_u32.to_ne_bytes());
    }

    #[test]
    fn the_kernels_word_is_understood() {
        let answer = |errno: i32| {
            let mut answer = vec![0; HEADER + 4];
            answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
            answer[HEADER..].copy_from_slice(&errno.to_ne_bytes());
            answer
        };
        assert!(verdict(&answer(0)).is_ok());
        assert_eq!(verdict(&answer(-libc::EEXIST)).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(verdict(&[]).is_err());
    }
}
