//! The established TCP connections of an address, as the kernel lists them.
//!
//! Left out on purpose: other network namespaces than the caller's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits::TICKLES_MAX;

/// A connection: this machine's end, and the client's.
pub type Connection = (SocketAddr, SocketAddr);

/// Returns the established connections of `ip`, at most [`TICKLES_MAX`]. Blocks while the kernel lists them.
///
/// # Errors
/// Where `/proc` is not mounted.
pub fn connections(ip: IpAddr) -> io::Result<Vec<Connection>> {
    // A server that listens for both families has its IPv4 connections in the second list.
    let mut found = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(path) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(parse).filter(|(local, _)| local.ip() == ip)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    found.truncate(TICKLES_MAX);
    Ok(found)
}

fn parse(line: &str) -> Option<Connection> {
    const ESTABLISHED: &str = "01";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, peer) = (fields.next()?, fields.next()?);
    (fields.next()? == ESTABLISHED).then_some((socket_address(local)?, socket_address(peer)?))
}

/// Words in the machine's own order, as hexadecimal digits.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_lists_are_read() {
        let line = "   0: 6400090A:0050 0100090A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let expected = ("10.9.0.100:80".parse().unwrap(), "10.9.0.1:40000".parse().unwrap());
        assert_eq!(parse(line), Some(expected));
        let mapped = "0: 0000000000000000FFFF00006400090A:0050 0000000000000000FFFF00000100090A:9C40 01 0:0";
        assert_eq!(parse(mapped), Some(expected));
        let six = "0: 000009FD000000000000000000010000:0050 000009FD000000000000000001000000:9C40 01 0:0";
        assert_eq!(parse(six).unwrap().0, "[fd09::100]:80".parse().unwrap());
        assert_eq!(parse(&line.replace(" 01 ", " 0A ")), None, "a listener is no connection");
        assert_eq!(parse("a line of another kind"), None);
    }

    #[test]
    fn our_own_connection_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (listener.local_addr().unwrap(), client.local_addr().unwrap());
        assert!(connections(ends.0.ip()).unwrap().contains(&ends));
    }
}
