//! Every bound of config sync on one machine: its unit and its reason. A page one can argue with.

use std::time::Duration;

/// Plain size of one blob, in bytes. Only manifests come near it: about 120,000 paths.
pub const BLOB_BYTES_MAX: usize = 16 << 20;

/// Smallest piece that a large file is cut into, in bytes (except its last piece).
pub const CHUNK_BYTES_MIN: usize = 16 << 10;

/// Usual piece of a large file, in bytes: small enough that a small edit moves little, large enough to compress.
pub const CHUNK_BYTES_USUAL: usize = 64 << 10;

/// Largest piece of a file, in bytes. A file up to this size is one piece.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Compression level of blobs. A publisher waits for it: the next level takes twice the time for some per cent, and what
/// travels again and again are deltas.
pub const BLOB_ZSTD_LEVEL: i32 = 1;

/// Compression level of deltas: each is made once and goes to everybody. A large one is made at the level of blobs, as it is
/// waited for, and what it saves are long matches.
pub const DELTA_ZSTD_LEVEL: i32 = 3;

/// Plain bytes of a delta and what it refers to, from which on it is a large one: the tables of the level cover some hundred
/// kilobytes.
pub(crate) const DELTA_LARGE_BYTES: usize = 256 << 10;

/// Bytes that a delta refers to, up to which the places to look at stand in one table (8 MiB of memory): it takes two fifths of the
/// time of a search for long matches (3 MB: 1.1 ms and 2.7 ms). A table for more no longer fits a processor's cache.
pub(crate) const DELTA_TABLE_BYTES_MAX: usize = 8 << 20;

/// Contexts for compressing, and as many for decompressing, that are kept for the next blob: some megabytes at most.
pub(crate) const CONTEXTS_KEPT: usize = 2;

/// Threads that read a directory which is published: hashing is bound by one core, and a publisher is seldom alone.
pub const SCAN_THREADS_MAX: usize = 4;

/// Files that one of those threads takes at a time.
pub const SCAN_FILES_AT_ONCE: usize = 32;

/// Paths of one tree, directories and links included: twice the files that a set may have.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Extended attributes of one file that a version keeps.
pub const XATTRS_MAX: usize = 32;

/// Bytes of their names and values together: ext4 has one block of 4,096 bytes for them, less its own lines.
pub const XATTR_BYTES_MAX: usize = 3 << 10;

/// Bytes of the names of all attributes of a file, those of the system included: as many as Linux lists.
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;

/// Directories above a path. Each level costs an open file descriptor while trees are walked.
pub const DEPTH_MAX: usize = 128;

/// Changed files and directories up to which each is synced alone. Each costs about what one `syncfs` does from the second
/// on (ext4, the least of 7, with 1 to 64 files); a few are borne, as `syncfs` also waits for what others wrote.
pub const SYNC_EACH_MAX: usize = 4;

/// Files and directories that are kept open to be synced one after another, though more were written than was planned; each
/// costs an open file descriptor, and some processes may have no more than 256.
pub(crate) const UNSYNCED_MAX: usize = 2 * SYNC_EACH_MAX;

/// Files of a tree from which on the next one is begun ahead: below it a tree is built within a millisecond.
pub const AHEAD_FILES_MIN: usize = 64;

/// Packs of blobs that are kept open until each is synced alone; beyond it the whole file system is, with what others wrote.
pub const PACKS_OPEN_MAX: usize = 16;

/// Bytes of a pack of blobs: what is written at one time stands in one file, up to this size.
pub const PACK_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a pack that are written at a time.
pub(crate) const PACK_BUFFER_BYTES: usize = 256 << 10;

/// A pack below this size, in bytes, is put together with others once there are many.
pub const PACK_SMALL_BYTES: u64 = 1 << 20;

/// Bytes of blobs that are moved into new packs before the old ones go: half a pack, as one that is moved has less than
/// half of its bytes left. The half of the floor that may be used for it is as large.
pub const MOVED_BYTES_MAX: u64 = 32 << 20;

/// Small packs that a store keeps: each version that was published alone makes one.
pub const PACKS_SMALL_MAX: usize = 64;

/// Free bytes that applying a version leaves for others: file systems near full become slow and refuse renames.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// The reserve is never more than this fraction (one in so many) of the file system, for small ones.
pub const RESERVE_ONE_IN: u64 = 20;

/// Free bytes that the content store leaves, as the log on the same disk must still be written.
pub const STORE_FLOOR_BYTES: u64 = 64 << 20;

/// Bytes that are written before the free space is looked at again, when many blobs are stored: a fraction of the floor.
pub const FLOOR_LOOK_EACH: usize = 1 << 20;

/// Bytes that a small file or directory takes on disk at least: one block.
pub const BLOCK_BYTES: u64 = 4096;

/// Differences that one verification lists. More than this is "somebody replaced the tree".
pub const DRIFTS_MAX: usize = 1000;

/// Waits of one millisecond for the file system's clock to pass the newest stamp: its ticks are at most 10 ms.
pub const SETTLE_TRIES: usize = 50;

/// What a switch leaves to be done waits for so long: first it is the turn of the programs that read the new version, and of
/// other members on the same machine.
pub const FINISH_AFTER: Duration = Duration::from_millis(200);

/// First wait after a failed attempt of a member.
pub const RETRY_FIRST: Duration = Duration::from_millis(200);

/// Longest wait between two attempts of a member.
pub const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Blobs a member fetches at one time, by default: enough to fill a link with a round trip of 10 ms.
pub const FETCHES_PARALLEL: usize = 8;

/// Most blobs a member fetches at one time. Each holds up to its plain size in memory.
pub const FETCHES_PARALLEL_MAX: usize = 64;

/// Times that a blob with wrong bytes is asked for again at once: another voter may have a good copy.
pub const CORRUPT_TRIES: usize = 2;

/// Plain bytes that making or reading a delta may hold of both versions together: the chunks that only one of them
/// names. A change beyond it travels as whole chunks.
pub const DELTA_PLAIN_BYTES_MAX: usize = 64 << 20;

/// A delta that a member is given for the version it has and the one it should have, in bytes. Beyond it chunks are
/// fetched, several at once and from everybody.
pub const DELTA_SENT_BYTES_MAX: usize = 4 << 20;

/// Plain bytes of blobs that a member holds in memory until they are in a tree, all its sets together; more goes through
/// files. A first version of 2,000 files has 50 MB.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// A version that came in part waits in memory for no longer than this before the next attempt; then in files.
pub const HELD_FOR: Duration = Duration::from_secs(1);

/// Frames in one answer or one sending, in bytes: a link stays busy, and ten of them fit any memory. One frame may be
/// longer.
pub const FRAMES_BYTES_MAX: usize = 4 << 20;

/// Names in one question for frames.
pub const FRAMES_ASKED_MAX: usize = 4_096;

/// Directories of which a publisher remembers what it read; some 150 bytes for each of their files.
pub const SEEN_FILES_MAX: usize = 64;

/// What was read is noted once it is one in so many of a directory's files: what is not noted is read again.
pub const SEEN_NEWS_ONE_IN: usize = 32;

/// A file must have been left alone for this long before its inode's look counts as a proof: longer than any tick.
pub const STAMP_OLD_ENOUGH: Duration = Duration::from_secs(3);

/// Bytes of output that a check or reload may say in a reason; the last ones.
pub const OUTPUT_BYTES_MAX: usize = 1024;

/// Bytes of files that are filled in or decrypted in one version: they are held in memory.
pub const RENDERED_BYTES_MAX: u64 = 256 << 20;

/// Switches of single files that could not be ended and are remembered besides the last one, until a version is wholly there.
pub const HALVES_MAX: usize = 16;

/// Directories of one set that are watched; beyond it only the scan sees changes. The kernel counts 1 KiB for each.
pub const WATCHES_MAX: usize = 8192;

/// After a change is seen, others that belong to it are waited for.
pub const WATCH_SETTLES: Duration = Duration::from_millis(100);

/// Bytes of files changed by hand that are put aside when a version takes their places in a directory that is shared: those
/// of the last time. More is said and not kept.
pub const FOUND_BYTES_MAX: u64 = 64 << 20;

/// Changed files that a member names in a report; how many there are is said besides.
pub const DRIFTS_REPORTED_MAX: usize = 20;

/// A fetch that lasts no longer is not spoken of.
pub const PROGRESS_AFTER: Duration = Duration::from_millis(200);

/// A check or reload that lasts no longer is not spoken of.
pub const STEP_SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Bytes of a command that are shown while it runs: enough to know it.
pub const COMMAND_BYTES_SHOWN: usize = 200;

/// How often progress of a fetch is said at most: each report is an entry of the log.
pub const PROGRESS_EACH: Duration = Duration::from_secs(1);

/// Of what a member says of a version that it refuses, so many characters are kept with the rollout that stops for it; the
/// member's own report has the rest.
pub const REASON_CHARS: usize = 300;

/// How often after a switch it is looked what programs did in the old tree: the second look finds nothing, unless somebody
/// stands in that tree and writes on.
pub const CARRY_PASSES_MAX: usize = 8;

/// How often a path is given back to a program that puts a newer file there at the same moment: it would have to hit some
/// microseconds each time.
pub const CARRY_SWAPS_MAX: usize = 8;
