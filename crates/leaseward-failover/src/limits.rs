//! Every bound of this crate: its unit and its reason.

use std::time::Duration;

/// Proposals of one plan that are under way at the same time.
pub const PROPOSALS_AT_ONCE: usize = 64;

/// After a failed proposal the master plans again after this.
pub const PLAN_AGAIN: Duration = Duration::from_millis(20);

/// What was committed is in the published state within this; else its order is left to the machine's own view.
pub const PUBLISHED_WITHIN: Duration = Duration::from_secs(1);

/// A machine that has not taken an order for this long is reported; its session says whether it lives.
pub const ORDER_TAKEN_WITHIN: Duration = Duration::from_secs(2);

/// Machines that are lost within this time of one another are lost at once.
pub const BRAKE_WINDOW: Duration = Duration::from_secs(5);

/// The wall clock is looked at this often while something is to end by it: it may be set.
pub const CLOCK_AGAIN: Duration = Duration::from_secs(10);

/// More of the machines are never in quarantine, in percent: the rest could not carry the load.
pub const QUARANTINED_PERCENT_MAX: usize = 25;

/// Rounds of plan and obedience after which a look ahead ends, in case it never comes to rest.
pub const FORESEEN_ROUNDS_MAX: usize = 1_000;
