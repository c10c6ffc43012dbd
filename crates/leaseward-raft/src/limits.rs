//! Every bound of this crate: its unit and its reason.

use std::time::Duration;

/// Size of a log segment, in bytes. Zero-filled beforehand, so that a commit touches no metadata.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// Largest record of the log, in bytes: it must fit a segment with room to spare.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// Encoded entries kept in memory for followers that are a little behind, in bytes.
pub const ENTRY_CACHE_BYTES: usize = 32 << 20;

/// Entries sent to a follower at once, in bytes: a slow link must not hold back the heartbeat behind it for long.
pub const APPEND_BYTES_MAX: usize = 1 << 20;

/// Commands in one entry. Beyond it, latency grows without gain in throughput.
pub const BATCH_COMMANDS_MAX: usize = 1_024;

/// Bytes of commands in one entry.
pub const BATCH_BYTES_MAX: usize = 256 << 10;

/// Largest single command, in bytes, as it is encoded.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Commands that wait for their turn on a leader. Beyond it, callers are told to slow down.
pub const PROPOSALS_WAITING_MAX: usize = 65_536;

/// Entries proposed and not yet applied. Two: one is written while the next one is gathered.
pub const BATCHES_IN_FLIGHT_MAX: usize = 2;

/// Largest frame on a control connection, in bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Largest frame on a bulk connection, in bytes: a blob, or a piece of a snapshot.
pub const BULK_FRAME_BYTES_MAX: usize = 20 << 20;

/// Largest frame before the peer has said who it is, in bytes.
pub const HELLO_BYTES_MAX: usize = 4 << 10;

/// A piece of a snapshot on its way, in bytes.
pub const SNAPSHOT_PIECE_BYTES: usize = 1 << 20;

/// Requests of one connection that are worked on at the same time.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 4_096;

/// The same in bytes, as they came: one of the largest, and what else is on its way. Whoever asks for more waits in its own socket.
pub const QUESTIONS_BYTES_MAX: usize = 32 << 20;

/// Questions up to this size, in bytes, count as small: renewals, reads, most commands.
pub const SMALL_QUESTION_BYTES_MAX: usize = 64 << 10;

/// Small questions of all clients of a node that are worked on at the same time, in bytes: a million renewals.
pub const CLIENTS_SMALL_QUESTIONS_BYTES_MAX: usize = 64 << 20;

/// Larger ones, in bytes: as many commands of the largest size. What nodes ask does not count: there are few of them.
pub const CLIENTS_LARGE_QUESTIONS_BYTES_MAX: usize = 64 << 20;

/// A client that began a question and sends nothing for so long is cut off: it has room that others wait for.
pub const QUESTION_STALLED_MAX: Duration = Duration::from_secs(10);

/// Connections of clients that one node serves.
pub const CLIENTS_MAX: usize = 4_096;

/// Connections that one node accepts: clients take none of the last ones, so that the nodes can always speak.
pub const CONNECTIONS_MAX: usize = CLIENTS_MAX + 512;

/// Frames that wait to be written on one connection.
pub const FRAMES_WAITING_MAX: usize = 1_024;

/// The same in bytes: one of the largest, and what else is on its way. A peer that reads slowly, or not at all, costs no more.
pub const FRAMES_WAITING_BYTES_MAX: usize = 32 << 20;

/// Questions of one connection for content, each answered with up to a frame of it, that are worked on at the same time. Enough to
/// keep a line full; the others wait, and are small.
pub const CONTENT_ANSWERS_MAX: usize = 8;

/// Renewals that wait for one confirmation round.
pub const RENEWALS_WAITING_MAX: usize = 262_144;

/// Sessions whose last renewal a voter remembers by name. Beyond it, those that were heard longest ago count as one; a
/// vote tells of all of them.
pub const WORDS_NAMED_MAX: usize = 16_384;

/// Sessions that one confirmation round names, so that it stays a short question. Beyond it, it counts for everybody.
pub const RENEWED_NAMED_MAX: usize = 4_096;

/// A confirmation round without an answer of a quorum is given up after this.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);

/// A new connection to a peer is given up after this.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection on which the other machine was silent for so long is looked after by the kernel, and again each time.
pub const KEEPALIVE_EACH: Duration = Duration::from_secs(1);

/// So many of those looks without an answer end a connection.
pub const KEEPALIVE_LOOKS: u32 = 4;

/// What was sent and is not acknowledged for so long ends a connection: a machine that lost power says nothing.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// A node says something so often on each connection that it opened to another one, so that both know that it lives.
pub const SPEAK_EACH: Duration = Duration::from_millis(500);

/// A process that was not heard for so long may be followed by another one with its id: six words are missing by then.
pub const SILENT_MAX: Duration = Duration::from_secs(3);

/// What was on its way when a process ended is heard within this time, and proves no life.
pub const ON_ITS_WAY_MAX: Duration = Duration::from_secs(1);

/// A node that owes an answer and says nothing for so long is asked for a word: a round trip around the world.
pub const QUIET_BEFORE_ASKING: Duration = Duration::from_millis(300);

/// If that word does not come within this, the node is silent: another one is asked. With the quiet before it a second.
pub const SILENT_AFTER: Duration = Duration::from_millis(700);

/// A question goes out at so many bytes in a millisecond at least (1 Mbit/s): a word that is asked for behind it comes later.
pub const SENT_AT_LEAST_PER_MILLI: u64 = 125;

/// The other side has this long to say who it is.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Free space below which no proposals are taken, in bytes: enough for four segments, so that the log can always
/// write what a quorum already agreed on.
pub const FREE_BYTES_MIN: u64 = 4 * SEGMENT_BYTES;

/// Log bytes after which a snapshot is made.
pub const SNAPSHOT_AFTER_BYTES: u64 = 64 << 20;

/// Entries kept behind a snapshot, so that a follower that was away briefly needs no snapshot.
pub const ENTRIES_KEPT: u64 = 10_000;

/// Log bytes kept behind a snapshot, whatever the number of entries: the log is purged by size.
pub const LOG_BYTES_KEPT: u64 = 64 << 20;

/// What nodes acknowledged is told and kept this often while it changes: what a whole-cluster stop may forget of it.
pub const REMEMBER_EACH: Duration = Duration::from_secs(5);

/// Nodes that are remembered, each with one number, in encoded bytes.
pub const RECALL_BYTES_MAX: usize = 64 << 10;

/// Snapshots kept on disk.
pub const SNAPSHOTS_KEPT: usize = 2;

/// Changes of the state are gathered for so long before they go to the store. A restart replays as much of the log.
pub const STORE_GATHERS_FOR: Duration = Duration::from_millis(500);

/// Records after which a batch goes to the store without waiting longer, and records in one batch of sled. It keeps every
/// page that a batch replaces until the batch ends, one for each record: ten kilobytes each, so five megabytes.
pub const STORE_BATCH_RECORDS: usize = 512;

/// Records that wait for a slow store. Beyond it all of them are written at one go, each once. A crash meanwhile costs the
/// reading of a snapshot.
pub const STORE_BACKLOG_RECORDS_MAX: usize = 16_384;

/// sled's cache of pages, in bytes as they are on disk; in memory they are a few times larger. The store is read when a node
/// starts, and then written only: what is written to lately is enough.
pub const SLED_CACHE_BYTES: u64 = 8 << 20;

/// Largest value in sled, in bytes. Larger ones leak space there.
pub const SLED_VALUE_BYTES_MAX: usize = 32 << 10;

/// A store that was just closed in this process may hold its lock for a moment; it is tried again for so long.
pub const SLED_LOCK_WITHIN: Duration = Duration::from_secs(5);

/// From one such try to the next.
pub const SLED_LOCK_RETRY: Duration = Duration::from_millis(5);

/// Largest encoded record of the state, in bytes.
pub const STATE_RECORD_BYTES_MAX: usize = 4 << 20;

/// A leader that was not scheduled for longer than this was deaf, and shifts its deadlines (rule R6).
pub const DEAF_AFTER: Duration = Duration::from_millis(100);

/// A leader whose disk stands still for longer than this, and for longer than an election timeout, lets others lead. A busy
/// disk is slow for as long now and then, and where all have the same one nobody else would do better.
pub const DISK_WAIT_MIN: Duration = Duration::from_secs(1);

/// The leader asks every node so often how it is.
pub const ASK_NODES_EACH: Duration = Duration::from_millis(250);

/// A node that was started says whom it waits for when it took so long: before, they may be starting too.
pub const RECALL_MISSED_AFTER: Duration = Duration::from_secs(10);

/// A node that was silent for so long is missed by the leader, in its log and once: a pause of a busy machine is no news.
pub const MISSED_AFTER: Duration = Duration::from_secs(1);

/// A voter where nothing listens any more is gone after this share of the silence after which it is lost: a standby
/// takes its place, if there is one. A restart takes less.
pub const GONE_SHARE: u32 = 6;

/// A node that was silent once must answer for this share of that silence before it votes again.
pub const STEADY_SHARE: u32 = 3;

/// Questions to machines that wait at one node: people ask them, not programs.
pub const QUESTIONS_WAITING_MAX: usize = 64;

/// An agent that asks for questions is told that there are none after this, so that it notices a lost node.
pub const ASKED_ABOUT_WITHIN: Duration = Duration::from_secs(3);

/// A machine has so long to say what a server printed there: longer than [`ASKED_ABOUT_WITHIN`], as its agent may wait
/// for a node that is lost.
pub const PRINTED_WITHIN: Duration = Duration::from_secs(5);

/// What a machine says of a server's output, in bytes: about two thousand lines, and no burden for other answers.
pub const PRINTED_BYTES_MAX: usize = 256 << 10;
