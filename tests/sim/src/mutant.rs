//! Rules, switched off one at a time, so that it is seen whether anybody notices.

use leaseward_raft::rules::{Rule, break_rule};

/// A rule that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// One of the rules of leases, reads, retries, deposed leaders and upgrades, in the code that ships.
    Lease(Rule),
    /// R7: what a lease guards refuses a smaller token. In the model of a receiver.
    Receiver,
    /// The fence: the timer is armed before the server is started. In the model of an agent.
    Arm,
    /// The fence: the deadline counts from the sending of the renewal. In the model of an agent.
    Sending,
    /// The fence: no other machine gets the server before the grace is over. The master's clock runs fast.
    Grace,
    /// The fence: an order is a hint, the grant is the authority. In the model of an agent.
    Grant,
    /// The fence: nothing is started under a token whose end was told. In the model of an agent.
    Retire,
    /// What is acknowledged is durable. In the model of a disk: its syncs do nothing.
    Sync,
    /// Clocks are what is assumed of them. They are not, and the judge excuses nothing.
    Clocks,
}

/// All of them, each with the name that people give it.
pub const ALL: &[(&str, Mutant)] = &[
    ("R1", Mutant::Lease(Rule::R1)),
    ("R2", Mutant::Lease(Rule::R2)),
    ("R3", Mutant::Lease(Rule::R3)),
    ("R4", Mutant::Lease(Rule::R4)),
    ("R4-word", Mutant::Lease(Rule::R4Word)),
    ("R4-names", Mutant::Lease(Rule::R4Names)),
    ("R4-own", Mutant::Lease(Rule::R4Own)),
    ("R4-listen", Mutant::Lease(Rule::R4Listen)),
    ("R5", Mutant::Lease(Rule::R5)),
    ("R6", Mutant::Lease(Rule::R6)),
    ("R7", Mutant::Receiver),
    ("fence-arm", Mutant::Arm),
    ("fence-sending", Mutant::Sending),
    ("fence-grace", Mutant::Grace),
    ("fence-grant", Mutant::Grant),
    ("fence-retire", Mutant::Retire),
    ("read", Mutant::Lease(Rule::Read)),
    ("cluster-time", Mutant::Lease(Rule::ClusterTime)),
    ("unconfirmed", Mutant::Lease(Rule::Unconfirmed)),
    ("successor", Mutant::Lease(Rule::Successor)),
    ("upgrade", Mutant::Lease(Rule::Upgrade)),
    ("sync", Mutant::Sync),
    ("clocks", Mutant::Clocks),
];

impl Mutant {
    /// Returns the mutant of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|(known, _)| *known == name).map(|(_, mutant)| *mutant)
    }

    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(_, mutant)| *mutant == self).map_or("", |(name, _)| name)
    }

    /// Switches the rule off in the code that ships, if it stands there.
    pub fn begin(mutant: Option<Self>) {
        break_rule(match mutant {
            Some(Self::Lease(rule)) => Some(rule),
            _ => None,
        });
    }
}
