//! The rules that a test can switch off, to show that it would notice: R1 to R6 with their parts, and those of reads,
//! of cluster time, of leaders that are none any more and of upgrades (`sessions.rs`, `forward.rs`, `election.rs`,
//! `cluster_time.rs`, `upgrade.rs`, `leaseward::keeper`).
//!
//! Must stay true: only a build for tests can switch anything off, and only on the thread that asks for it.

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A holder counts from the sending of what was answered.
    R1,
    /// A renewal is answered after a confirmation round that started after it arrived.
    R2,
    /// A renewal gives a whole time to live.
    R3,
    /// A new reign forgets the deadlines of the one before.
    R4,
    /// A new reign counts from the newest word that its voters gave to an earlier leader.
    R4Word,
    /// A confirmation round names the sessions that it renews, and its voters remember them.
    R4Names,
    /// That word says nothing of sessions that were opened in the reign itself.
    R4Own,
    /// A new reign listens for half a time to live before it ends anybody.
    R4Listen,
    /// A session is marked before its end is proposed, and never answered again.
    R5,
    /// Whether a session lives is looked up while its mark cannot be taken away.
    R5Seen,
    /// A leader that was deaf shifts its deadlines.
    R6,
    /// A read is answered after a confirmation round that started after it arrived.
    Read,
    /// How long answers are kept depends on nobody's wall clock.
    ClusterTime,
    /// A leader that no quorum confirms for an election timeout says so to whoever waits for its word.
    Unconfirmed,
    /// A later leader's vote is noted before the core knows of it.
    Successor,
    /// An upgrade is finished only once every node can read what comes with it.
    Upgrade,
}

/// Returns whether a test has switched this rule off.
#[cfg(not(any(test, feature = "mutants")))]
#[must_use]
pub fn broken(_: Rule) -> bool {
    false
}

#[cfg(any(test, feature = "mutants"))]
pub use switch::{break_rule, broken};

#[cfg(any(test, feature = "mutants"))]
mod switch {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Returns whether a test has switched this rule off.
    #[must_use]
    pub fn broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }

    /// Switches a rule off on this thread, and all others on.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
    }
}
