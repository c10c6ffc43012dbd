//! What is broken when: a schedule that follows from a seed.
//!
//! Must stay true: pure, so that the same seed breaks the same things at the same times; one thing at a time, and whatever
//! is broken is mended before the next thing breaks, so that a majority can always come back. Who leads is looked up when
//! the fault comes: that is the one thing that a seed cannot know.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

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
    /// Every agent is told to end and started again, one after the other.
    Restart,
    /// A host is removed for good, and comes back as a new one with an empty disk.
    Churn,
    /// Every agent is started again with the newer binary, one after the other. Once.
    Upgrade,
}

/// All of them, by name.
pub const NEMESES: [(&str, Nemesis); 17] = [
    ("partition", Nemesis::Partition),
    ("isolate", Nemesis::Isolate),
    ("one-way", Nemesis::OneWay),
    ("flap", Nemesis::Flap),
    ("loss", Nemesis::Loss),
    ("slow", Nemesis::Slow),
    ("clients", Nemesis::Clients),
    ("pause", Nemesis::Pause),
    ("pause-host", Nemesis::PauseHost),
    ("kill", Nemesis::Kill),
    ("kill-shims", Nemesis::KillShims),
    ("power", Nemesis::Power),
    ("disk-full", Nemesis::DiskFull),
    ("disk-stall", Nemesis::DiskStall),
    ("restart", Nemesis::Restart),
    ("churn", Nemesis::Churn),
    ("upgrade", Nemesis::Upgrade),
];

impl Nemesis {
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

/// Returns what is broken when.
#[must_use]
pub fn schedule(seed: u64, nemeses: &[Nemesis], hosts: usize, lasting: Duration) -> Vec<Fault> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut at = Duration::from_millis(random.gen_range(500..1_500));
    // Each once before any comes again: a short run has all of them.
    let mut left: Vec<Nemesis> = Vec::new();
    let mut upgraded = false;
    while !nemeses.is_empty() {
        if left.is_empty() {
            left = nemeses.iter().copied().filter(|nemesis| *nemesis != Nemesis::Upgrade || !upgraded).collect();
            left.shuffle(&mut random);
        }
        let Some(nemesis) = left.pop() else { break };
        upgraded |= nemesis == Nemesis::Upgrade;
        let mut order: Vec<usize> = (0..hosts).collect();
        order.shuffle(&mut random);
        // The leader's loss is what there is most to learn from.
        let target = if random.gen_bool(0.5) { Target::Leader } else { Target::Host(order[0]) };
        let long = match nemesis {
            // Longer than any lease lives.
            Nemesis::Power | Nemesis::DiskStall | Nemesis::DiskFull | Nemesis::Flap | Nemesis::Clients => {
                random.gen_range(2_500..6_000)
            }
            Nemesis::Kill | Nemesis::KillShims => 0,
            _ => random.gen_range(800..4_500),
        };
        let long = Duration::from_millis(long);
        let strength = random.gen_range(2..25);
        let pause = Duration::from_millis(random.gen_range(300..2_500));
        if at + long > lasting {
            break;
        }
        faults.push(Fault { nemesis, after: at, lasting: long, target, order, strength });
        at += long + pause;
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
        let faults = schedule(7, &all, 5, lasting);
        assert_eq!(faults, schedule(7, &all, 5, lasting));
        assert_ne!(faults, schedule(8, &all, 5, lasting));
        for pair in faults.windows(2) {
            assert!(pair[0].after + pair[0].lasting < pair[1].after, "{pair:?}");
        }
        assert!(faults.iter().all(|fault| fault.after + fault.lasting <= lasting));
        for nemesis in all {
            assert!(faults.iter().any(|fault| fault.nemesis == nemesis), "{nemesis:?} never comes");
        }
        let upgrades = faults.iter().filter(|fault| fault.nemesis == Nemesis::Upgrade);
        assert_eq!(upgrades.count(), 1);
        assert!(schedule(7, &[], 5, lasting).is_empty());
    }
}
