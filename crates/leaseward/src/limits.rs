//! Every bound of this crate: its unit and its reason.

use std::time::Duration;

/// By how much the rates of two clocks may differ: one in a thousand. The raw clock's crystal is ten times better.
pub const CLOCK_RATE_ERROR: f64 = 0.001;

/// The time to live of a session unless the caller says otherwise.
pub const TTL: Duration = Duration::from_secs(3);

/// Renewals per time to live: the fourth one may be lost three times.
pub const RENEWALS_PER_TTL: u32 = 4;

/// A question to one node is given up after this, and another node is asked.
pub const ATTEMPT: Duration = Duration::from_millis(1_500);

/// Pause before the same nodes are asked again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A write is given up after this; its outcome may be unknown then.
pub const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// Reports of servers that wait to be sent.
pub const REPORTS_WAITING_MAX: usize = 4_096;

/// Blobs sent to one node at once, in bytes.
pub const BLOBS_AT_ONCE_BYTES: usize = 8 << 20;

/// A server that needs a config set is started with the copy it has if the newest is not there after this.
pub const SETS_WITHIN: Duration = Duration::from_secs(10);
