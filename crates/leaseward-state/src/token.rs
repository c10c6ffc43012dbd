//! Numbers that only grow: revisions, terms, sessions, fencing tokens.
//!
//! Must stay true: a [`FencingToken`] is never handed out twice and never gets smaller, also across a restore from
//! a backup (rule R7): the recovery generation stands above the revision.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bits of a token that hold the revision; the recovery generation stands above them.
///
/// 2^48 revisions are nine years at a million commits a second.
const REVISION_BITS: u32 = 48;

macro_rules! number {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $type(pub u64);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The position of an applied entry. One entry, one revision; every object remembers the one that made it and
    /// the one that changed it last.
    Revision);
number!(
    /// The Raft term in which an entry was proposed.
    Term);
number!(
    /// A session: the revision that opened it, so it is never used again.
    SessionId);
number!(
    /// Wall-clock milliseconds since 1970, stamped by the proposer. For people, and for what people set to a time of day:
    /// no lease is ever granted or ended by it, and no answer forgotten.
    UnixMillis);
number!(
    /// Milliseconds of cluster time: how long the cluster was led, as far as anybody counted. Each leader goes on from the
    /// newest entry by a clock of its own that nobody sets, so it never runs backwards and is never ahead of the time that
    /// really passed; while nobody proposes and nobody leads it may stand still.
    ClusterMillis);

impl SessionId {
    /// Returns the revision of the entry that opened it.
    #[must_use]
    pub fn opened(self) -> Revision {
        Revision(self.0)
    }
}

impl Revision {
    /// Returns the revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How often this cluster was restored from a backup. Stands above the revision in every token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u16);

/// The fencing token: recovery generation and revision of the granting entry, as one number that only grows.
///
/// Whoever acts under a lease sends it along; whoever is acted upon refuses a smaller one than it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// Returns the token of a grant at `revision` in `generation`.
    #[must_use]
    pub fn new(generation: Generation, revision: Revision) -> Self {
        assert!(revision.0 < 1 << REVISION_BITS, "revisions are used up");
        Self(u64::from(generation.0) << REVISION_BITS | revision.0)
    }

    /// Returns the revision of the granting entry.
    #[must_use]
    pub fn revision(self) -> Revision {
        Revision(self.0 & ((1 << REVISION_BITS) - 1))
    }

    /// Returns the recovery generation in which it was granted.
    #[must_use]
    pub fn generation(self) -> Generation {
        Generation((self.0 >> REVISION_BITS) as u16)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What makes a write the same write when it is sent again: the client and its own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// The client, a random number it drew when it started.
    pub client: u128,
    /// The client's own count of its requests.
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_later_generation_is_larger_whatever_its_revision() {
        let before = FencingToken::new(Generation(0), Revision(1 << 40));
        let after = FencingToken::new(Generation(1), Revision(1));
        assert!(after > before);
        assert_eq!((after.generation(), after.revision()), (Generation(1), Revision(1)));
    }
}
