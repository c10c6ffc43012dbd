//! What is wrong with the lines of hosts: each fault says its part, and a host has all of them at a time.
//!
//! Must stay true: the end of one fault leaves what others have broken.

use std::collections::{BTreeMap, BTreeSet};

use crate::hosts::filter::Filter;
use crate::hosts::network::Network;

/// What is wrong with the line of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// What it does not hear.
    pub(super) filter: Filter,
    /// What it sends in a second, at most.
    pub(super) kilobits: Option<u32>,
}

impl Line {
    /// Returns both at a time.
    fn and(mut self, other: &Self) -> Self {
        self.filter.deaf_to.extend(&other.filter.deaf_to);
        self.filter.loses_percent = self.filter.loses_percent.max(other.filter.loses_percent);
        self.kilobits = self.kilobits.into_iter().chain(other.kilobits).min();
        self
    }
}

/// The lines of all hosts, and what each fault has broken of them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    broken: BTreeMap<u64, Vec<(&'static str, Line)>>,
    next: u64,
}

impl Lines {
    /// Breaks something more. Returns by which number it is mended.
    pub(super) fn add(&mut self, part: Vec<(&'static str, Line)>, network: &Network) -> u64 {
        let id = self.next;
        self.next += 1;
        let changed = part.iter().map(|(host, _)| *host).collect();
        self.broken.insert(id, part);
        self.set(&changed, network);
        id
    }

    /// Mends it.
    pub(super) fn remove(&mut self, id: u64, network: &Network) {
        let part = self.broken.remove(&id).unwrap_or_default();
        self.set(&part.iter().map(|(host, _)| *host).collect(), network);
    }

    fn set(&self, hosts: &BTreeSet<&'static str>, network: &Network) {
        for host in hosts {
            let line = self.of(host);
            network.set_filter(host, &line.filter);
            network.set_rate(host, line.kilobits);
        }
    }

    /// Returns all that is wrong with a host's line.
    fn of(&self, host: &str) -> Line {
        let parts = self.broken.values().flatten().filter(|(of, _)| *of == host);
        parts.fold(Line::default(), |all, (_, part)| all.and(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_all_faults_have_broken_and_keeps_it_when_one_of_them_ends() {
        let deaf = |to: &str, loses_percent, kilobits| {
            let deaf_to = [to.parse().expect("an address")].into();
            ("h1", Line { filter: Filter { deaf_to, loses_percent }, kilobits })
        };
        let mut lines = Lines::default();
        lines.broken.insert(0, vec![deaf("10.0.0.1", 0, Some(1_000))]);
        lines.broken.insert(1, vec![deaf("10.0.0.2", 7, Some(40)), ("h2", Line::default())]);
        let both = lines.of("h1");
        assert_eq!((both.filter.deaf_to.len(), both.filter.loses_percent, both.kilobits), (2, 7, Some(40)));
        assert_eq!(lines.of("h2"), Line::default());
        lines.broken.remove(&1);
        assert_eq!(lines.of("h1"), deaf("10.0.0.1", 0, Some(1_000)).1);
    }
}
