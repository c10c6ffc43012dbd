//! Tables by digest. Whoever plans, makes or reads a version looks up thousands of them.
//!
//! Must stay true: nothing that is planned, stored or sent depends on the order in which a table is walked.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;
use leaseward_state::config::Digest;

/// What belongs to each of some digests. A digest is a hash already, so a quick mixing is enough; it is seeded, as manifests
/// come from strangers.
pub type DigestMap<T> = HashMap<Digest, T, RandomState>;

/// Some digests.
pub type DigestSet = HashSet<Digest, RandomState>;
