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

/// Compression level of stored blobs: beyond it time doubles for a few per cent.
pub const ZSTD_LEVEL: i32 = 3;

/// Paths of one tree, directories and links included: twice the files that a set may have.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Directories above a path. Each level costs an open file descriptor while trees are walked.
pub const DEPTH_MAX: usize = 128;

/// Changed files and directories up to which each is synced alone; above it one `syncfs` is cheaper.
pub const SYNC_EACH_MAX: usize = 64;

/// Free bytes that applying a version leaves for others: file systems near full become slow and refuse renames.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// The reserve is never more than this fraction (one in so many) of the file system, for small ones.
pub const RESERVE_ONE_IN: u64 = 20;

/// Free bytes that the content store leaves, as the log on the same disk must still be written.
pub const STORE_FLOOR_BYTES: u64 = 64 << 20;

/// Bytes that a small file or directory takes on disk at least: one block.
pub const BLOCK_BYTES: u64 = 4096;

/// Differences that one verification lists. More than this is "somebody replaced the tree".
pub const DRIFTS_MAX: usize = 1000;

/// Waits of one millisecond for the file system's clock to pass the newest stamp: its ticks are at most 10 ms.
pub const SETTLE_TRIES: usize = 50;

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
