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

/// No further attempt at a write begins with less time than this: it would be cut off, and nobody would know whether it was
/// applied, though it is known of all before it that they were not.
pub const LAST_ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// A write is given up after this; its outcome may be unknown then.
pub const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// The time to live of the session under which a program says how far it is with a config file: after its death it is
/// shown for so long. A renewal each quarter of it is all that an idle program costs.
pub const PROGRAM_TTL: Duration = Duration::from_secs(10);

/// A voter says within ten seconds what programs should have; longer than this it is silent.
pub const VIEW_WITHIN: Duration = Duration::from_secs(12);

/// Pauses before a program asks again for a config file, the shortest and the longest: a voter has the content of a
/// version moments after the version itself.
pub const CONFIG_RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Bytes of a config file that a program follows: it is held in memory, and read at one go.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 << 20;

/// Characters of a program's reason to refuse a version that are shown: a line or two in a table.
pub const REASON_CHARS_MAX: usize = 1_000;

/// Reports of servers that wait to be sent.
pub const REPORTS_WAITING_MAX: usize = 4_096;

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

/// Connections carried through one ssh: an agent has five.
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

/// A voter that was silent is listened for again after this, while others are asked.
pub const SILENT_LOOK_EACH: Duration = Duration::from_secs(2);

/// A voter that gave what nobody asked for, or wrong bytes, is asked last for so long: what it has may have been put right.
pub const REFUSED_FOR: Duration = Duration::from_secs(60);

/// Questions for blobs, or sendings of them, that are under way at once: one is worked on while others travel.
pub const SENDINGS_AT_ONCE: usize = 4;

/// Manifests that a voter keeps as it read them.
pub const RECENT_KEPT: usize = 3;

/// Paths of a manifest that is kept so: some ten megabytes.
pub const RECENT_ENTRIES_MAX: usize = 50_000;

/// Voters make what small deltas say after this: it is in their logs, and members go first. Whoever asks for a blob that is
/// not here yet ends the wait.
pub const MAKE_AFTER: Duration = Duration::from_millis(200);

/// Whoever needs what was committed and is yet to be made waits for it no longer than this: making takes milliseconds.
pub const MADE_WITHIN: Duration = Duration::from_secs(2);

/// How often he looks.
pub const MADE_LOOK_EACH: Duration = Duration::from_millis(10);

/// What was made from committed deltas is synced after this: members on the same disk go first, and one sync serves
/// several versions.
pub const SETTLE_AFTER: Duration = Duration::from_millis(200);

/// Whoever has a set keep fewer versions waits for so long for voters that make and sync the newest ones: several times what
/// they take. Then the newest one is put on a quorum.
pub const HELD_WITHIN: Duration = Duration::from_secs(2);

/// How often he looks.
pub const HELD_LOOK_EACH: Duration = Duration::from_millis(50);

/// A blob that somebody was told is here stays for so long: longer than any publication takes.
pub const PROMISED_FOR: Duration = Duration::from_secs(3600);

/// How often it is looked which blobs nothing names any more. Looking reads the manifests of all versions.
pub const COLLECT_EACH: Duration = Duration::from_secs(600);

/// Load balancers that are answered at one time: a probe takes milliseconds.
pub const CHECKS_AT_ONCE: usize = 256;

/// A load balancer that did not ask for so long asks no more.
pub const CHECKER_GONE: Duration = Duration::from_secs(15);

/// How often a machine that leaves its load balancer looks whether its sessions have ended.
pub const SESSIONS_LOOK_EACH: Duration = Duration::from_millis(50);
