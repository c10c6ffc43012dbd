//! Every bound of the API: its unit and its reason.

use std::time::Duration;

/// A JSON body, in bytes: four times the largest server specification.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// A list of blob names, in bytes: about sixty thousand names.
pub const NAMES_BYTES_MAX: usize = 4 << 20;

/// A blob, in bytes: as large as the content store takes.
pub const BLOB_BYTES_MAX: usize = leaseward_sync::limits::BLOB_BYTES_MAX;

/// Several blobs in their stored form, in bytes: one of the largest, or many small ones.
pub const FRAMES_BYTES_MAX: usize = leaseward_sync::frame::FRAME_BYTES_MAX + (1 << 20);

/// How often a publication upon the newest version, or a policy, is tried again when somebody else was faster.
pub const PUBLISH_TRIES: u64 = 8;

/// Objects on a page, unless the client asks for fewer or more.
pub const PAGE_USUAL: usize = 200;

/// Objects on a page at most: such a page has about a megabyte.
pub const PAGE_MAX: usize = 1_000;

/// States kept for the later pages of lists that somebody began. A state shares everything with the next one, so an
/// old one costs what changed since.
pub const LISTS_KEPT: usize = 32;

/// Sessions in one renewal.
pub const RENEWALS_MAX: usize = 4_096;

/// How long a request may wait for something to happen: proxies on the way seldom wait longer.
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// A request that says no deadline of its own is given up after this and the longest wait together.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// A silent stream says so often that it lives.
pub const STREAM_COMMENT: Duration = Duration::from_secs(10);

/// Events that are taken from the state at once for one stream.
pub const STREAM_EVENTS_AT_ONCE: usize = 256;

/// A stream of revisions says no more of them than this, whoever asks for more: each is a reason to read everything again.
pub const REVISIONS_EACH_MIN: Duration = Duration::from_millis(100);

/// How long another node has to say how it is.
pub const STATUS_WITHIN: Duration = Duration::from_millis(500);

/// How long a read for a page of status may take before an old state is shown instead.
pub const STATUS_READ_WITHIN: Duration = Duration::from_secs(2);

/// How long a node that began a moment ago tries to hear of tokens before it shows what it knows: without a quorum that is what
/// its operators want, and they look again and again.
pub const HEAR_WITHIN: Duration = Duration::from_secs(1);

/// Time to live of sessions that name none, in milliseconds.
pub const TTL_MS_USUAL: u64 = 3_000;

/// Events and failures in an explanation: what fits a screen with the rest.
pub const EXPLAINED_EVENTS: usize = 5;

/// What the router says when it refuses a request by itself, in bytes: a sentence.
pub const REFUSAL_BYTES_MAX: usize = 4_096;

/// An `Idempotency-Key`, in bytes: a UUID with room.
pub const KEY_BYTES_MAX: usize = 256;

/// Lines of a server's output, unless the client asks for fewer or more.
pub const LINES_USUAL: u32 = 200;
