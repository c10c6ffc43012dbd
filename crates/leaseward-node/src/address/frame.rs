//! Frames by which neighbours learn who has an address: ARP for IPv4, neighbour discovery for IPv6.
//!
//! Must stay true: a probe changes nobody's cache (its sender address is empty); an announcement changes every cache
//! that already knows the address. Left out on purpose: VLAN tags, which the interface adds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const BROADCAST: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0; 6]);

const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const TARGET_LINK_ADDRESS: u8 = 2;

/// Length of an Ethernet header, of an IPv6 header, and of a solicitation without options.
const ETHERNET: usize = 14;
const IPV6_HEADER: usize = 40;
const NEIGHBOUR: usize = 24;

/// The hardware address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Returns the question whether anybody has `ip`.
pub(super) fn probe(own: Mac, ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => arp(own, 1, Ipv4Addr::UNSPECIFIED, NOBODY, ip),
        IpAddr::V6(ip) => solicitation(own, ip),
    }
}

/// Returns the frames that tell everybody that `own` has `ip` now.
pub(super) fn announcements(own: Mac, ip: IpAddr) -> Vec<Vec<u8>> {
    match ip {
        // Both forms, since some only heed one. Linux takes a reply as gratuitous only if its target is its sender.
        IpAddr::V4(ip) => vec![arp(own, 1, ip, NOBODY, ip), arp(own, 2, ip, own, ip)],
        IpAddr::V6(ip) => vec![advertisement(own, ip)],
    }
}

/// Returns who says in this frame that it has `ip`, if anybody.
pub(super) fn holder(frame: &[u8], ip: IpAddr) -> Option<Mac> {
    match ip {
        IpAddr::V4(ip) => arp_sender(frame, ip),
        IpAddr::V6(ip) => advertiser(frame, ip),
    }
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

fn arp(own: Mac, operation: u16, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, own, ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(own.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame
}

fn arp_sender(frame: &[u8], ip: Ipv4Addr) -> Option<Mac> {
    let of_ethernet = frame.get(12..20)? == [0x08, 0x06, 0, 1, 8, 0, 6, 4];
    (of_ethernet && frame.get(28..32)? == ip.octets()).then_some(mac_at(frame, 22)?)
}

/// As in duplicate address detection: from nobody, so that the holder answers to all.
fn solicitation(own: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = ip.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(ip.octets());
    neighbour(own, Mac([0x33, 0x33, 0xff, a, b, c]), Ipv6Addr::UNSPECIFIED, group, message)
}

fn advertisement(own: Mac, ip: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([TARGET_LINK_ADDRESS, 1]);
    message.extend(own.0);
    neighbour(own, Mac([0x33, 0x33, 0, 0, 0, 1]), ip, all_nodes, message)
}

fn neighbour(own: Mac, to: Mac, source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    // Neighbours refuse what a router may have passed on: the hop limit must be whole.
    const HOPS: u8 = 255;
    let length = u16::try_from(message.len()).expect("a message of neighbour discovery is short");
    let sum = checksum(&[&pseudo_header(source, destination, ICMPV6, length), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to, own, IPV6);
    frame.extend(ipv6_header(source, destination, ICMPV6, HOPS, length));
    frame.extend(message);
    frame
}

fn advertiser(frame: &[u8], ip: Ipv6Addr) -> Option<Mac> {
    let header = frame.get(ETHERNET..ETHERNET + IPV6_HEADER)?;
    let message = frame.get(ETHERNET + IPV6_HEADER..)?;
    let is_one = frame[12..14] == IPV6.to_be_bytes() && header[6] == ICMPV6 && *message.first()? == ADVERTISEMENT;
    if !is_one || message.get(8..NEIGHBOUR)? != ip.octets() {
        return None;
    }
    let named = message.get(NEIGHBOUR..NEIGHBOUR + 2) == Some(&[TARGET_LINK_ADDRESS, 1]);
    if named { mac_at(message, NEIGHBOUR + 2) } else { mac_at(frame, 6) }
}

fn mac_at(frame: &[u8], at: usize) -> Option<Mac> {
    Some(Mac(frame.get(at..at + 6)?.try_into().ok()?))
}

/// Returns an IPv6 header in front of `length` bytes.
pub(super) fn ipv6_header(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hops: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, next, hops][..], &source.octets(), &destination.octets()].concat()
}

/// Returns what stands for the IPv6 header in the checksum of what it carries.
pub(super) fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, next: u8, length: u16) -> Vec<u8> {
    [&source.octets()[..], &destination.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, next]].concat()
}

/// Returns the Internet checksum of parts of even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);

    fn hex(frame: &[u8]) -> String {
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn arp_frames_byte_for_byte() {
        let head = |operation| format!("ffffffffffff02000000000a08060001080006040{operation:03x}02000000000a");
        let zero = "000000000000";
        assert_eq!(hex(&probe(OWN, ip("10.9.0.100"))), format!("{}00000000{zero}0a090064", head(1)));
        let told: Vec<String> = announcements(OWN, ip("10.9.0.100")).iter().map(|frame| hex(frame)).collect();
        assert_eq!(told[0], format!("{}0a090064{zero}0a090064", head(1)));
        assert_eq!(told[1], format!("{}0a09006402000000000a0a090064", head(2)));
    }

    #[test]
    fn neighbour_discovery_byte_for_byte() {
        let group = "ff0200000000000000000001ff010100";
        let address = "fd090000000000000000000000010100";
        let (nobody, all) = ("0".repeat(32), "ff020000000000000000000000000001");
        // The sums are another program's.
        assert_eq!(
            hex(&probe(OWN, ip("fd09::1:100"))),
            format!("3333ff01010002000000000a86dd6000000000183aff{nobody}{group}87007b9c00000000{address}")
        );
        assert_eq!(
            hex(&announcements(OWN, ip("fd09::1:100"))[0]),
            format!(
                "33330000000102000000000a86dd6000000000203aff{address}{all}8800588020000000{address}020102000000000a"
            )
        );
    }

    #[test]
    fn a_message_with_its_sum_adds_up_to_nothing() {
        let IpAddr::V6(address) = ip("fd09::1:100") else { unreachable!() };
        let frame = advertisement(OWN, address);
        let (source, destination) = (&frame[22..38], &frame[38..54]);
        assert_eq!(checksum(&[source, destination, &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &frame[54..]]), 0);
    }

    #[test]
    fn a_holder_is_found_in_its_answer_and_nowhere_else() {
        let (four, six) = (ip("10.9.0.100"), ip("fd09::100"));
        for address in [four, six] {
            assert_eq!(holder(&probe(OWN, address), address), None, "a probe claims nothing");
            for told in announcements(OWN, address) {
                assert_eq!(holder(&told, address), Some(OWN));
                assert_eq!(holder(&told, if address == four { ip("10.9.0.101") } else { ip("fd09::101") }), None);
                for length in 0..told.len() - 14 {
                    // Cut short it may say less, and must not make us fall over.
                    let _ = holder(&told[..length], address);
                }
            }
        }
        // Without its option, an advertisement speaks for whoever sent it.
        assert_eq!(holder(&announcements(OWN, six)[0][..78], six), Some(OWN));
    }
}
