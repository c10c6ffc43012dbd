//! The segment that wakes a client of a former owner.
//!
//! A bare ACK from the floating address, far out of the client's window. The client answers it with what it really
//! expects; the new owner's kernel knows no such connection and resets it; the client notices at once, and not when
//! its own timers run out.
//!
//! Must stay true: it carries no data and no RST, so a connection that is alive after all is not harmed by it.

use std::net::{IpAddr, SocketAddr};

use super::frame::{checksum, ipv6_header, pseudo_header};

const TCP: u8 = 6;
const ACK: u8 = 0x10;
const HOPS: u8 = 64;

/// Length of a TCP header without options.
const TCP_HEADER: u16 = 20;

/// Returns a whole IP packet from `local` to `peer`; none if they are of different families.
pub(super) fn tickle(local: SocketAddr, peer: SocketAddr) -> Option<Vec<u8>> {
    let mut segment = Vec::with_capacity(usize::from(TCP_HEADER));
    segment.extend(local.port().to_be_bytes());
    segment.extend(peer.port().to_be_bytes());
    // Sequence and acknowledgement 0, five words of header, no window.
    segment.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, ACK, 0, 0, 0, 0, 0, 0]);
    let (mut packet, pseudo) = match (local.ip(), peer.ip()) {
        (IpAddr::V4(local), IpAddr::V4(peer)) => {
            let total = 20 + TCP_HEADER;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, TCP, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header.extend(local.octets());
            header.extend(peer.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let [high, low] = TCP_HEADER.to_be_bytes();
            (header, [&local.octets()[..], &peer.octets(), &[0, TCP, high, low]].concat())
        }
        (IpAddr::V6(local), IpAddr::V6(peer)) => {
            (ipv6_header(local, peer, TCP, HOPS, TCP_HEADER), pseudo_header(local, peer, TCP, TCP_HEADER))
        }
        _ => return None,
    };
    let sum = checksum(&[&pseudo, &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(segment);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tickle_byte_for_byte() {
        let packet = tickle("10.9.0.100:80".parse().unwrap(), "10.9.0.1:40000".parse().unwrap()).unwrap();
        let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        let (header, segment) = hex.split_at(40);
        assert_eq!(header, "45000028000040004006265a0a0900640a090001");
        assert_eq!(segment, "00509c40000000000000000050100000fecd0000");
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(checksum(&[&packet[12..20], &[0, TCP, 0, 20], &packet[20..]]), 0);

        let packet = tickle("[fd09::100]:80".parse().unwrap(), "[fd09::1]:40000".parse().unwrap()).unwrap();
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 20, TCP, HOPS]);
        assert_eq!(checksum(&[&packet[8..40], &[0, 0, 0, 20, 0, 0, 0, TCP], &packet[40..]]), 0);
        assert_eq!(packet[53], ACK);
    }

    #[test]
    fn families_do_not_mix() {
        assert_eq!(tickle("10.9.0.100:80".parse().unwrap(), "[fd09::1]:40000".parse().unwrap()), None);
    }
}
