//! Which life of which cluster: a cluster that is restored from a backup begins a new one, under a new id.
//!
//! Must stay true: all lives of a cluster share its lineage; a later life has a greater generation; two clusters that
//! were restored from one backup are different ones, and nobody goes from one to the other.
//!
//! An id has its parts in fixed places, so that everybody who meets it can tell: lineage (64 bits, drawn once),
//! generation (16 bits), and a number drawn at each restore (48 bits).

use leaseward_state::Generation;

const SALT_BITS: u32 = 48;
const LINEAGE_BITS: u32 = 64;

/// One life of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    lineage: u64,
    generation: Generation,
    salt: u64,
}

/// What somebody who knows one life makes of another one that answers him.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// It is the one he knows.
    Same,
    /// His cluster was restored meanwhile: he goes with the later life.
    Later,
    /// His cluster as it was before it was restored: he stays away from it.
    Earlier,
    /// Another cluster, or the same backup restored twice: he stays away from it.
    Foreign,
}

impl Life {
    /// Returns the first life of a new cluster, out of a number that nobody else draws.
    #[must_use]
    pub fn first(random: u128) -> Self {
        Self { generation: Generation(0), ..Self::of(random) }
    }

    /// Returns the life of a cluster with this id.
    #[must_use]
    pub fn of(cluster: u128) -> Self {
        let low = cluster as u64;
        Self {
            lineage: (cluster >> LINEAGE_BITS) as u64,
            generation: Generation((low >> SALT_BITS) as u16),
            salt: low & ((1 << SALT_BITS) - 1),
        }
    }

    /// Returns the life with this generation that begins with a restore, out of a number that nobody else draws.
    #[must_use]
    pub fn restored(self, generation: Generation, random: u128) -> Self {
        Self { generation, salt: Self::of(random).salt, ..self }
    }

    /// Returns the id of the cluster in this life.
    #[must_use]
    pub fn id(self) -> u128 {
        let low = u64::from(self.generation.0) << SALT_BITS | self.salt;
        u128::from(self.lineage) << LINEAGE_BITS | u128::from(low)
    }

    /// Returns how often the cluster was restored by then.
    #[must_use]
    pub fn generation(self) -> Generation {
        self.generation
    }

    /// Returns what somebody who knows this life makes of another one.
    #[must_use]
    pub fn meets(self, other: Self) -> Meeting {
        if self == other {
            Meeting::Same
        } else if self.lineage != other.lineage || self.generation == other.generation {
            Meeting::Foreign
        } else if self.generation < other.generation {
            Meeting::Later
        } else {
            Meeting::Earlier
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_goes_with_the_later_life_and_never_back() {
        let first = Life::first(0x0123_4567_89ab_cdef_ffff_1111_2222_3333);
        assert_eq!(first.generation(), Generation(0));
        assert_eq!(Life::of(first.id()), first);
        let second = first.restored(Generation(1), 0x42);
        assert_eq!(Life::of(second.id()), second);
        assert_eq!(first.meets(second), Meeting::Later);
        assert_eq!(second.meets(first), Meeting::Earlier);
        assert_eq!(second.meets(second), Meeting::Same);
        let twin = first.restored(Generation(1), 0x43);
        assert_eq!(second.meets(twin), Meeting::Foreign, "one backup restored twice");
        let other = Life::first(0xfedc_0000_0000_0000_0000_1111_2222_3333);
        assert_eq!(first.meets(other), Meeting::Foreign);
        assert_eq!(other.restored(Generation(7), 1).meets(first), Meeting::Foreign);
    }
}
