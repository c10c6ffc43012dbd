//! What is broken when: a schedule that follows from a seed.
//!
//! Must stay true: pure, so that the same seed breaks the same things at the same times; never more things at a time than was
//! asked for, and no two of one kind. What takes away what others may need to make good for it ([`Nemesis::is_alone`]) meets nothing
//! else. Who leads is looked up when the fault comes: that is the one thing that a seed cannot know.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::history::op;

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nemesis {
    /// The hosts fall into two halves that do not hear each other; clients reach both.
    Partition,
    /// The leader hears nobody and nobody hears it; clients reach it.
    Isolate,
    /// One host does not hear another one, which hears it.
    OneWay,
    /// A host's cable is pulled and put back again and again.
    Flap,
    /// Every host loses some of its packets.
    Loss,
    /// A host sends slowly.
    Slow,
    /// Every host sends a megabit a second.
    Narrow,
    /// Whatever one host sends or gets takes long, or whatever any host does.
    Latency,
    /// One of the hosts of clients hears nobody.
    Clients,
    /// SIGSTOP for an agent, which also votes.
    Pause,
    /// SIGSTOP for everything on a host.
    PauseHost,
    /// SIGKILL for an agent, and a new one at once.
    Kill,
    /// SIGKILL for the shims of a host's servers.
    KillShims,
    /// A host loses its power, and gets it back.
    Power,
    /// A host's disk is full.
    DiskFull,
    /// A host's disk stands still.
    DiskStall,
    /// A host's disk acknowledges syncs that it loses with the power.
    LostFsync,
    /// The wall clock of a host is stepped, by minutes or hours, and back; or it stays so; or goes at another rate besides.
    WallClock,
    /// Every agent is told to end and started again, one after the other.
    Restart,
    /// A host is removed for good, and comes back as a new one with an empty disk.
    Churn,
    /// Every agent is started again with the newer binary, one after the other. Once.
    Upgrade,
}

/// All of them, by name.
pub const NEMESES: [(&str, Nemesis); 21] = [
    ("partition", Nemesis::Partition),
    ("isolate", Nemesis::Isolate),
    ("one-way", Nemesis::OneWay),
    ("flap", Nemesis::Flap),
    ("loss", Nemesis::Loss),
    ("slow", Nemesis::Slow),
    ("narrow", Nemesis::Narrow),
    ("latency", Nemesis::Latency),
    ("clients", Nemesis::Clients),
    ("pause", Nemesis::Pause),
    ("pause-host", Nemesis::PauseHost),
    ("kill", Nemesis::Kill),
    ("kill-shims", Nemesis::KillShims),
    (op::POWER, Nemesis::Power),
    ("disk-full", Nemesis::DiskFull),
    ("disk-stall", Nemesis::DiskStall),
    (op::LOST_FSYNC, Nemesis::LostFsync),
    ("wall-clock", Nemesis::WallClock),
    ("restart", Nemesis::Restart),
    ("churn", Nemesis::Churn),
    ("upgrade", Nemesis::Upgrade),
];

impl Nemesis {
    /// Returns whether nothing else may be broken meanwhile. A disk that loses what it acknowledged leaves one copy less of it: what
    /// is promised is that the others' copies suffice, so they must not be away.
    #[must_use]
    pub fn is_alone(self) -> bool {
        self == Self::LostFsync
    }

    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NEMESES.iter().find(|(_, nemesis)| *nemesis == self).map_or("?", |(name, _)| name)
    }
}

/// Whom a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Whoever leads then.
    Leader,
    /// This host.
    Host(usize),
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub nemesis: Nemesis,
    /// When, counted from the beginning.
    pub after: Duration,
    /// For how long.
    pub lasting: Duration,
    /// Whom it meets.
    pub target: Target,
    /// All hosts in some order: sides and partners are taken from it.
    pub order: Vec<usize>,
    /// Percent of packets, or the like.
    pub strength: u8,
}

/// Returns what is broken when, by their beginnings; so many things at a time.
#[must_use]
pub fn schedule(seed: u64, nemeses: &[Nemesis], hosts: usize, lasting: Duration, overlap: usize) -> Vec<Fault> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let ms = Duration::from_millis;
    // When each lane is free again.
    let mut lanes: Vec<Duration> = (0..overlap.max(1)).map(|_| ms(random.gen_range(500..1_500))).collect();
    // Each once before any comes again: a short run has all of them.
    let mut left: Vec<Nemesis> = Vec::new();
    let mut upgraded = false;
    while !nemeses.is_empty() {
        if left.is_empty() {
            left = nemeses.iter().copied().filter(|nemesis| *nemesis != Nemesis::Upgrade || !upgraded).collect();
            left.shuffle(&mut random);
        }
        if left.is_empty() {
            break;
        }
        // The first of the earliest, so that everybody plans alike.
        let lane = (0..lanes.len()).min_by_key(|lane| lanes[*lane]).expect("there is one at least");
        let mut at = lanes[lane];
        let on = |at| faults.iter().filter(move |fault: &&Fault| fault.after + fault.lasting >= at);
        let Some(next) = left.iter().rposition(|nemesis| on(at).all(|fault| fault.nemesis != *nemesis)) else {
            // All that is left is on already.
            lanes[lane] = on(at).map(|fault| fault.after + fault.lasting).min().unwrap_or(at) + ms(1);
            continue;
        };
        let nemesis = left.remove(next);
        upgraded |= nemesis == Nemesis::Upgrade;
        if nemesis.is_alone() {
            at = lanes.iter().copied().max().unwrap_or(at);
        }
        let mut order: Vec<usize> = (0..hosts).collect();
        order.shuffle(&mut random);
        // The leader's loss is what there is most to learn from.
        let target = if random.gen_bool(0.5) { Target::Leader } else { Target::Host(order[0]) };
        let long = ms(match nemesis {
            // Longer than any lease lives.
            Nemesis::Power
            | Nemesis::DiskStall
            | Nemesis::DiskFull
            | Nemesis::LostFsync
            | Nemesis::Flap
            | Nemesis::Clients => random.gen_range(2_500..6_000),
            Nemesis::Kill | Nemesis::KillShims => 0,
            _ => random.gen_range(800..4_500),
        });
        let strength = random.gen_range(2..25);
        let pause = ms(random.gen_range(300..2_500));
        if at + long > lasting {
            break;
        }
        faults.push(Fault { nemesis, after: at, lasting: long, target, order, strength });
        match nemesis.is_alone() {
            true => lanes.fill(at + long + pause),
            false => lanes[lane] = at + long + pause,
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_breaks_the_same_things_one_after_the_other() {
        let all = NEMESES.map(|(_, nemesis)| nemesis);
        let lasting = Duration::from_secs(300);
        let faults = schedule(7, &all, 5, lasting, 1);
        assert_eq!(faults, schedule(7, &all, 5, lasting, 1));
        assert_ne!(faults, schedule(8, &all, 5, lasting, 1));
        for pair in faults.windows(2) {
            assert!(pair[0].after + pair[0].lasting < pair[1].after, "{pair:?}");
        }
        assert!(faults.iter().all(|fault| fault.after + fault.lasting <= lasting));
        for nemesis in all {
            assert!(faults.iter().any(|fault| fault.nemesis == nemesis), "{nemesis:?} never comes");
        }
        let upgrades = faults.iter().filter(|fault| fault.nemesis == Nemesis::Upgrade);
        assert_eq!(upgrades.count(), 1);
        assert!(schedule(7, &[], 5, lasting, 1).is_empty());
    }

    #[test]
    fn as_many_things_are_broken_at_a_time_as_was_asked_for_and_no_two_alike() {
        let all = NEMESES.map(|(_, nemesis)| nemesis);
        let lasting = Duration::from_secs(300);
        let mut most = 0;
        for seed in 0..20 {
            let faults = schedule(seed, &all, 5, lasting, 3);
            for (i, fault) in faults.iter().enumerate() {
                assert!(i == 0 || faults[i - 1].after <= fault.after, "by their beginnings");
                let meets = |other: &&Fault| other.after + other.lasting >= fault.after;
                let met: Vec<Nemesis> = faults[..i].iter().filter(meets).map(|other| other.nemesis).collect();
                assert!(!met.contains(&fault.nemesis), "{:?} meets itself", fault.nemesis);
                assert!(!fault.nemesis.is_alone() || met.is_empty(), "{:?} meets {met:?}", fault.nemesis);
                assert!(!met.iter().any(|other| other.is_alone()), "{met:?} meets {:?}", fault.nemesis);
                most = most.max(met.len() + 1);
            }
            assert!(all.iter().all(|nemesis| faults.iter().any(|fault| fault.nemesis == *nemesis)), "seed {seed}");
        }
        assert_eq!(most, 3);
        // Fewer kinds than could be broken at a time.
        let few = schedule(7, &[Nemesis::Power], 5, lasting, 3);
        assert!(few.len() > 20 && few.windows(2).all(|pair| pair[0].after + pair[0].lasting < pair[1].after));
    }
}
