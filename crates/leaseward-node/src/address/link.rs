//! The machine's interfaces, and which of them an address belongs to.
//!
//! Must stay true: an interface named in the server's specification wins, then the settings by their longest prefix,
//! then the interface that has an address in a subnet that contains it, by the longest prefix again.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{LinkAddr, SockaddrStorage};

use super::error::AddressError;
use super::frame::Mac;

/// An interface.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    /// What sockets are bound to.
    pub(super) place: LinkAddr,
    /// None where there are no neighbours to ask or tell: the loopback, and what has no ARP.
    pub(super) mac: Option<Mac>,
}

impl Link {
    /// Returns its hardware address, all zero where there is none.
    pub(super) fn mac_or_zero(&self) -> Mac {
        self.mac.unwrap_or(Mac([0; 6]))
    }
}

/// An address that an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Assigned {
    ip: IpAddr,
    prefix: u8,
    interface: String,
}

/// What this machine has at one moment.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<String, Link>,
    assigned: Vec<Assigned>,
}

impl Links {
    /// Reads them from the kernel.
    pub(super) fn read() -> io::Result<Self> {
        let mut read = Self::default();
        for entry in getifaddrs()? {
            // A label stands behind a colon.
            let interface = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
            if let Some(place) = entry.address.as_ref().and_then(SockaddrStorage::as_link_addr) {
                let quiet = entry.flags.intersects(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP);
                let mac = place.addr().filter(|_| !quiet && place.halen() == 6).map(Mac);
                let index = u32::try_from(place.ifindex()).unwrap_or_default();
                read.links.insert(interface.clone(), Link { name: interface, index, place: *place, mac });
            } else if let Some(ip) = entry.address.as_ref().and_then(ip_of) {
                let prefix = entry.netmask.as_ref().and_then(ip_of).map_or(128, ones);
                read.assigned.push(Assigned { ip, prefix, interface });
            }
        }
        Ok(read)
    }

    /// Returns the interfaces that have `ip`, whatever its prefix.
    pub(super) fn with(&self, ip: IpAddr) -> Vec<&Link> {
        self.found(|assigned| assigned.ip == ip)
    }

    /// Returns the interfaces that have `ip` in the way we add it.
    pub(super) fn with_alone(&self, ip: IpAddr) -> Vec<&Link> {
        self.found(|assigned| assigned.ip == ip && assigned.prefix == bits(ip))
    }

    fn found(&self, is_meant: impl Fn(&Assigned) -> bool) -> Vec<&Link> {
        let names = self.assigned.iter().filter(|assigned| is_meant(assigned)).map(|assigned| &assigned.interface);
        names.filter_map(|name| self.links.get(name)).collect()
    }

    /// Returns where `ip` belongs.
    pub(super) fn choose(&self, ip: IpAddr, named: Option<&str>, settings: &[Subnet]) -> Result<&Link, AddressError> {
        let name = named.map(str::to_owned).or_else(|| longest(settings, ip)).or_else(|| {
            let neighbours = self.assigned.iter().filter(|assigned| assigned.prefix < bits(assigned.ip));
            let subnets: Vec<Subnet> = neighbours.map(Subnet::of).collect();
            longest(&subnets, ip)
        });
        let Some(name) = name else {
            let why = "none of this machine's has a subnet that contains it, so name one".to_owned();
            return Err(AddressError::NoInterface { ip, why });
        };
        self.links.get(&name).ok_or(AddressError::NoInterface { ip, why: format!("there is no {name} here") })
    }
}

/// A subnet and the interface that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subnet {
    network: IpAddr,
    prefix: u8,
    interface: String,
}

impl Subnet {
    /// Reads `10.0.0.0/24`.
    pub(super) fn parse(text: &str, interface: &str) -> Option<Self> {
        let (network, prefix) = text.split_once('/')?;
        let (network, prefix): (IpAddr, u8) = (network.parse().ok()?, prefix.parse().ok()?);
        (prefix <= bits(network)).then(|| Self { network, prefix, interface: interface.to_owned() })
    }

    fn of(assigned: &Assigned) -> Self {
        Self { network: assigned.ip, prefix: assigned.prefix, interface: assigned.interface.clone() }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let head = |ip| number(ip).checked_shr(u32::from(bits(ip) - self.prefix)).unwrap_or(0);
        self.network.is_ipv4() == ip.is_ipv4() && head(self.network) == head(ip)
    }
}

/// Of equal prefixes the first: the order of the settings, then that of the kernel.
fn longest(subnets: &[Subnet], ip: IpAddr) -> Option<String> {
    let containing = subnets.iter().filter(|subnet| subnet.contains(ip));
    Some(containing.rev().max_by_key(|subnet| subnet.prefix)?.interface.clone())
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let four = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn ones(mask: IpAddr) -> u8 {
    number(mask).count_ones() as u8
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::SockaddrLike;

    use super::*;

    /// The loopback's own place stands in for everybody's.
    fn machine(addresses: &[(&str, &str)]) -> Links {
        let lo = Links::read().unwrap().links.remove("lo").unwrap();
        assert!(lo.place.len() > 0 && lo.mac.is_none());
        let mut machine = Links::default();
        for (interface, address) in addresses {
            let Subnet { network: ip, prefix, interface } = Subnet::parse(address, interface).unwrap();
            machine.links.insert(interface.clone(), Link { name: interface.clone(), ..lo.clone() });
            machine.assigned.push(Assigned { ip, prefix, interface });
        }
        machine
    }

    fn chosen(machine: &Links, ip: &str, named: Option<&str>, settings: &[(&str, &str)]) -> String {
        let settings: Vec<Subnet> = settings.iter().map(|(net, name)| Subnet::parse(net, name).unwrap()).collect();
        machine.choose(ip.parse().unwrap(), named, &settings).map_or_else(|e| e.code().to_owned(), |l| l.name.clone())
    }

    #[test]
    fn name_then_settings_then_subnet() {
        let machine = machine(&[("eth0", "10.0.0.5/8"), ("eth1", "10.9.0.5/24"), ("eth2", "fd09::5/64")]);
        assert_eq!(chosen(&machine, "10.9.0.100", None, &[]), "eth1");
        assert_eq!(chosen(&machine, "10.8.0.100", None, &[]), "eth0");
        assert_eq!(chosen(&machine, "fd09::100", None, &[]), "eth2");
        assert_eq!(chosen(&machine, "10.9.0.100", None, &[("10.0.0.0/8", "eth1"), ("10.9.0.0/16", "eth0")]), "eth0");
        assert_eq!(chosen(&machine, "10.9.0.100", None, &[("0.0.0.0/0", "eth0")]), "eth0");
        assert_eq!(chosen(&machine, "10.9.0.100", Some("eth2"), &[("10.9.0.0/16", "eth0")]), "eth2");
        assert_eq!(chosen(&machine, "10.9.0.100", Some("eth9"), &[]), "LW0351");
        assert_eq!(chosen(&machine, "192.0.2.1", None, &[]), "LW0351");
    }

    #[test]
    fn a_floating_address_leads_nowhere() {
        let machine = machine(&[("eth0", "10.9.0.100/32")]);
        assert_eq!(chosen(&machine, "10.9.0.100", None, &[]), "LW0351");
    }

    #[test]
    fn what_is_no_subnet_is_none() {
        for text in ["10.0.0.0", "10.0.0.0/33", "fd09::/129", "net/8", "10.0.0.0/-1"] {
            assert_eq!(Subnet::parse(text, "eth0"), None, "{text}");
        }
    }
}
