//! Every bound of the replicated state: its unit and its reason. A page one can argue with.

/// Longest name of an object, in bytes: it must fit a file name together with our own suffixes.
pub const NAME_BYTES_MAX: usize = 128;

/// Shortest time to live of a session, in milliseconds. Below it, ordinary scheduling delays of a busy machine end
/// leases by mistake (measured stalls: up to 0.2 s at ordinary priority).
pub const TTL_MS_MIN: u64 = 200;

/// Longest time to live of a session, in milliseconds: one day. A longer one is a lease nobody would wait out.
pub const TTL_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Longest lock-delay, in milliseconds, as in Chubby and Consul.
pub const LOCK_DELAY_MS_MAX: u64 = 60_000;

/// Metadata on a lease, in bytes of keys and values together: enough for a host, a pid and a reason.
pub const META_BYTES_MAX: usize = 1024;

/// Waiters of one lease. Beyond it, the herd itself is the problem.
pub const WAITERS_MAX: usize = 4096;

/// Leases in the cluster: about 250 bytes each, so a quarter of a gigabyte.
pub const LEASES_MAX: usize = 1_000_000;

/// Open sessions: each costs a timer on the leader.
pub const SESSIONS_MAX: usize = 100_000;

/// Machines known to the cluster.
pub const MACHINES_MAX: usize = 10_000;

/// Servers defined in the cluster.
pub const SERVERS_MAX: usize = 10_000;

/// Access tokens: they are one record.
pub const ACCESS_TOKENS_MAX: usize = 1_000;

/// Roles of one access token.
pub const ROLES_MAX: usize = 32;

/// Config sets.
pub const SETS_MAX: usize = 1_000;

/// Versions that a config set may keep; the oldest ones go first, never one that somebody needs.
pub const VERSIONS_KEPT_MAX: usize = 1_000;

/// Versions that a config set keeps where nothing is asked: weeks of work, and few enough to look through.
pub const VERSIONS_KEPT_USUAL: u32 = 100;

/// Programs that say how far they are with files of one config set. Each is an entry after each new version; where more
/// follow a set, an agent's files serve them better.
pub const PROGRAMS_MAX: usize = 256;

/// Versions of one config set that are marked as failed ones, newest last.
pub const BAD_KEPT_MAX: usize = 100;

/// How often members look for changes made by hand where nothing is asked, in milliseconds. A look at 10,000 files costs
/// 18 ms.
pub const SCAN_EACH_MS: u64 = 60_000;

/// How often they may look at most, in milliseconds.
pub const SCAN_EACH_MS_MIN: u64 = 100;

/// Patterns of paths that a set ignores.
pub const IGNORES_MAX: usize = 256;

/// Longest run of a set's check or reload, and longest wait between two steps of a rollout, in milliseconds: an hour.
pub const HOOK_MS_MAX: u64 = 60 * 60_000;

/// Entries of the ledger kept, across all objects. At two hundred bytes each: two megabytes.
pub const LEDGER_MAX: usize = 10_000;

/// Failures of one server that are remembered, newest last.
pub const FAILURES_KEPT_MAX: usize = 32;

/// Machines in one list of candidates: more than a cluster has.
pub const NAMES_MAX: usize = 1_000;

/// Losses of one machine that are remembered, newest last.
pub const LOSSES_KEPT_MAX: usize = 16;

/// Clients of one server that are remembered, to be woken by the next owner of its addresses. At 64 bytes each, two
/// kilobytes in an entry that is written at most every few seconds.
pub const CLIENTS_KEPT_MAX: usize = 32;

/// Answers kept for retries that arrive late: of so many requests with a key, the newest. At a thousand writes a second that is the
/// two minutes of [`ANSWER_KEPT_MS`]; at fifty thousand a second it is less than three seconds.
pub const ANSWERS_KEPT_MAX: usize = 131_072;

/// How long the answer to a client's retry is kept, in milliseconds of cluster time: longer than any deadline.
pub const ANSWER_KEPT_MS: u64 = 120_000;

/// How long the answer under a caller's own `Idempotency-Key` is kept, in milliseconds of cluster time: a day.
pub const NAMED_ANSWER_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// Commands in one atomic command: a transaction people can still read.
pub const ATOMIC_COMMANDS_MAX: usize = 128;

/// Length of a human text (message, reason, error), in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Size of a server specification with all its texts, in bytes.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;

/// Files in one version of a config set.
pub const FILES_MAX: u64 = 1_000_000;

/// Bytes of one version of a config set, all files together: four gibibytes.
pub const SET_BYTES_MAX: u64 = 4 << 30;

/// Length of a path inside a config set, in bytes, as Linux has it.
pub const PATH_BYTES_MAX: usize = 4095;

/// Length of one part of a path, in bytes, as Linux has it.
pub const PATH_PART_BYTES_MAX: usize = 255;

/// How long a server may take until its first good check where nothing is asked, in milliseconds: a slow database's
/// recovery fits.
pub const START_TIMEOUT_MS: u64 = 60_000;

/// How long a server may take after its stop signal where nothing is asked, in milliseconds.
pub const STOP_GRACE_MS: u64 = 30_000;

/// Voters at most: each commit waits for a majority of them.
pub const VOTERS_MAX: u32 = 9;

/// The shortest silence after which a voter may be taken for lost, in milliseconds: longer than any election.
pub const VOTER_SILENCE_MS_MIN: u64 = 1_000;

/// Delta of a version inside the entry that commits it, in bytes: as much as one entry carries. A larger change is
/// put on a quorum of voters first.
pub const DELTA_BYTES_MAX: usize = 256 << 10;

/// Revisions that a restored cluster leaves out: more than the old one can have applied after the backup, were it to
/// apply ten thousand a second for a hundred days. Tokens have room for 2,800 such steps.
pub const ANEW_REVISIONS: u64 = 100_000_000_000;

/// Numbers of versions that each set of a restored cluster leaves out: one a second for eleven days.
pub const ANEW_VERSIONS: u64 = 1_000_000;
