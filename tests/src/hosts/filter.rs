//! What a host does not hear, and how slowly it speaks.
//!
//! Must stay true: a filter drops what comes in and nothing that goes out, so a cut in one direction is one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::network::{LINK, Network};

/// What a host does not hear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Nothing of what these say.
    pub deaf_to: BTreeSet<IpAddr>,
    /// So many percent of all packets.
    pub loses_percent: u8,
}

impl Filter {
    /// Returns the rules, which take the place of those before.
    fn rules(&self) -> String {
        let mut rules = String::from("table inet chaos {}\ndelete table inet chaos\ntable inet chaos {\n");
        rules.push_str("chain input { type filter hook input priority 0; policy accept;\n");
        for address in &self.deaf_to {
            let family = if address.is_ipv4() { "ip" } else { "ip6" };
            writeln!(rules, "{family} saddr {address} drop").expect("a string grows");
        }
        if self.loses_percent > 0 {
            writeln!(rules, "numgen random mod 100 < {} drop", self.loses_percent).expect("a string grows");
        }
        rules.push_str("}\n}\n");
        rules
    }
}

impl Network {
    /// Says what a host does not hear from now on.
    ///
    /// # Panics
    /// If `nft` is not there.
    pub fn set_filter(&self, host: &str, filter: &Filter) {
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &self.space(host), "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut nft = nft.spawn().expect("iproute2 is installed");
        nft.stdin.take().expect("a pipe").write_all(filter.rules().as_bytes()).expect("it reads");
        assert!(nft.wait().is_ok_and(|status| status.success()), "nft refuses {}", filter.rules());
    }

    /// Says how many kilobits a second a host may send; `None`: as many as it can.
    ///
    /// # Panics
    /// If `tc` is not there.
    pub fn set_rate(&self, host: &str, kilobits: Option<u32>) {
        let space = self.space(host);
        let mut tc = Command::new("tc");
        tc.args(["-n", &space, "qdisc"]);
        match kilobits {
            Some(rate) => {
                tc.args(["replace", "dev", LINK, "root", "tbf", "rate", &format!("{rate}kbit")]);
                tc.args(["burst", "16kb", "latency", "400ms"]);
            }
            None => {
                tc.args(["del", "dev", LINK, "root"]).stderr(Stdio::null());
            }
        }
        let status = tc.status().expect("iproute2 is installed");
        assert!(status.success() || kilobits.is_none(), "tc refuses a rate");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_what_is_dropped_and_replace_what_was() {
        let deaf_to = ["10.0.0.1", "fd77::1"].map(|text| text.parse().expect("an address")).into();
        let rules = Filter { deaf_to, loses_percent: 7 }.rules();
        for line in ["delete table inet chaos", "ip saddr 10.0.0.1 drop", "ip6 saddr fd77::1 drop", "mod 100 < 7 drop"]
        {
            assert!(rules.contains(line), "{line}: {rules}");
        }
        assert!(!Filter::default().rules().contains("drop"));
    }
}
