//! Every bound of this crate: its unit and its reason.

use std::time::Duration;

/// How far ahead a deadline may lie. The longest lease lasts a day; a deadline beyond it is a mistake of units, and
/// a server that nothing would end.
pub const DEADLINE_AHEAD_MAX: Duration = Duration::from_secs(25 * 60 * 60);

/// Bytes of one order to a shim: a specification of at most 64 KiB with its quoting.
pub const ORDER_BYTES_MAX: usize = 256 * 1024;

/// Bytes of one later line to or from a shim: a token, a deadline, a boot id, with room to grow.
pub const LINE_BYTES_MAX: usize = 4096;

/// Clients connected to one shim at a time: an agent, its successor and a few curious operators. The oldest goes.
pub const CLIENTS_MAX: usize = 16;

/// The length of a UNIX socket's path in bytes, as Linux has it, without the closing NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How long a shim may take to acknowledge. Shims answer within a millisecond; a starved machine may take longer,
/// and an answer that comes later is of no use to a lease of seconds.
pub const ACK_WAIT: Duration = Duration::from_millis(1_000);

/// How long a shim may take from its start until the server executes.
pub const LAUNCH_WAIT: Duration = Duration::from_secs(10);

/// How long a new agent waits for the answer of a shim that it finds; a deaf one is ended.
pub const ADOPT_WAIT: Duration = Duration::from_secs(2);

/// How long a shim may live after its server is proven dead, before it is killed too.
pub const SHIM_LINGER: Duration = Duration::from_millis(500);

/// Added to a stop's grace before the agent kills by itself: the shim does it first, if it can.
pub const STOP_MARGIN: Duration = Duration::from_millis(250);

/// Requests that wait for one shim: extensions come a few times a second, so this is a shim that is stuck.
pub const REQUESTS_WAITING_MAX: usize = 64;

/// Commands that wait for the supervisor.
pub const COMMANDS_WAITING_MAX: usize = 256;

/// Notices of the supervisor's own tasks that wait for it.
pub const NOTICES_WAITING_MAX: usize = 1024;

/// Events that wait for the agent. Beyond it they are dropped and logged; the status still tells all.
pub const EVENTS_WAITING_MAX: usize = 1024;

/// Bytes of a server's log; at the next start a longer one is set aside as `.1`, so two of these stay on disk.
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a shim's own log: a few lines a year.
pub const SHIM_LOG_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a log that are searched for its last lines.
pub const LOG_TAIL_BYTES_MAX: u64 = 1 << 20;

/// Bytes of an answer to an HTTP health check that are read: enough for its status line.
pub const STATUS_LINE_BYTES_MAX: usize = 1024;

/// The real-time priority of shims and inits: above ordinary load, below the kernel's own threads (99) and a
/// hardware watchdog's feeder.
pub const REAL_TIME_PRIORITY: i32 = 50;

/// Before its first good check a server is looked at after this, then after twice that, up to its interval.
pub const STARTING_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);
