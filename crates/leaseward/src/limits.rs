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

/// What a login on a far machine may print before our program speaks, in bytes.
pub const NOISE_BYTES_MAX: usize = 64 << 10;

/// Our program on a far machine must speak within this: it includes the login.
pub const SENTINEL_WITHIN: Duration = Duration::from_secs(20);

/// Bytes of one frame of a carried connection: short, so that a renewal does not stand behind a long one.
pub const PIECE_BYTES_MAX: usize = 16 << 10;

/// Frames that wait to be written to ssh: together with the pieces' size, what a renewal may have to wait for.
pub const FRAMES_TO_SSH_MAX: usize = 8;

/// Bytes of one carried connection that are under way and not passed on yet.
pub const WINDOW_BYTES: usize = 256 << 10;

/// Connections carried through one ssh: an agent has four.
pub const CARRIED_MAX: usize = 64;

/// From one sign of life to the next, over ssh.
pub const PING_EVERY: Duration = Duration::from_millis(300);

/// An ssh that is silent for this long is given up by the near side.
pub const SILENCE: Duration = Duration::from_secs(3);

/// Pauses before ssh is tried again, the shortest and the longest: both a small part of a time to live, which goes on.
pub const SSH_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a control script may answer, in bytes.
pub const CONTROL_ANSWER_BYTES_MAX: usize = 64 << 10;

/// Questions to control scripts of one machine at once: sshd turns more than ten beginners away.
pub const CONTROL_QUESTIONS_MAX: usize = 6;

/// A node that has not answered to a new connection after this may have lost its power: another one is asked beside it.
pub const CONNECT_STAGGER: Duration = Duration::from_millis(100);
