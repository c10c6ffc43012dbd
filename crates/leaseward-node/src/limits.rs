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

/// Shims that wait for an order: a machine seldom takes over more servers at once, and each costs a megabyte.
pub const SPARE_SHIMS: usize = 4;

/// How long after a start the spare shims are filled up: other servers may be starting at the same time.
pub const SPARES_PAUSE: Duration = Duration::from_millis(500);

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

/// Bytes of a server's log on disk; of a longer one the oldest half goes while it is written, and at the next start it
/// is set aside as `.1`.
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// How often it is looked how long the logs are: what is written meanwhile may be more.
pub const LOG_LOOK_EACH: Duration = Duration::from_secs(2);

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

/// The lease of a server that is about to be attacked, extended every fifth of it: long enough for a busy machine to
/// attack in time, short enough for a hundred attacks.
pub const ATTACK_LEASE: Duration = Duration::from_millis(400);

/// Its first deadline: nobody extends a server that is still starting. Long enough for an idle machine; one that is too
/// busy for it gets twice as much, up to the next bound. Most of a round's time, and so of a hundred of them.
pub const ATTACK_FIRST_DEADLINE: Duration = Duration::from_millis(500);

/// The longest first deadline, for machines that are very busy.
pub const ATTACK_FIRST_DEADLINE_MAX: Duration = Duration::from_secs(4);

/// How long packets of a fenced address are watched for after its deadline: several times what the levels allow.
pub const ATTACK_PACKETS_WATCH: Duration = Duration::from_millis(400);

/// A way that let a packet through within this is open.
pub const ATTACK_PACKETS_OPEN: Duration = Duration::from_millis(100);

/// Between two packets of a fenced address, each way: half of what is worth knowing.
pub const ATTACK_PACKETS_PAUSE: Duration = Duration::from_micros(500);

/// The lease of a server that is to sleep through its deadline: falling asleep begins with writing every disk.
pub const ATTACK_SLEEP_LEASE: Duration = Duration::from_secs(5);

/// A machine sleeps for so much longer than until the deadline.
pub const ATTACK_SLEEP_MARGIN: Duration = Duration::from_secs(2);

/// Between two looks at the clock while a machine falls asleep and wakes up.
pub const ATTACK_SLEEP_SAMPLE: Duration = Duration::from_micros(200);

/// Servers under attack at a time: a round takes as long for four of them as for one, and with more of them victims keep
/// a small machine's processors too busy to attack in time.
pub const ATTACK_SERVERS_MAX: usize = 4;

/// How long each step of an attack may take on a bad day; what runs this long after its deadline has survived.
pub const ATTACK_PATIENCE: Duration = Duration::from_secs(10);

/// How often an attack looks whether it is called off, in milliseconds.
pub const ATTACK_LOOK: u8 = 20;

/// How long victims are watched for being still: a hundred of their stamps.
pub const ATTACK_STILL: Duration = Duration::from_millis(30);

/// How often in a cell the machine may be too busy to attack in time.
pub const ATTACK_MISSES_MAX: usize = 10;

/// Writes that are timed to know a disk: enough to see its slow ones.
pub const CHECK_SYNCS: usize = 100;

/// How long they may take together, on a disk of whatever speed.
pub const CHECK_SYNC_TIME: Duration = Duration::from_secs(3);

/// Slower than this, commits are felt.
pub const CHECK_SYNC_SLOW: Duration = Duration::from_millis(100);

/// Free bytes below which a voter's next snapshot may not fit.
pub const CHECK_SPACE_MIN: u64 = 64 << 20;

/// Free bytes below which somebody should look.
pub const CHECK_SPACE_LOW: u64 = 1 << 30;

/// Open files below which a small cluster's daemon does not work.
pub const CHECK_FILES_MIN: u64 = 256;

/// Open files below which many clients are too many.
pub const CHECK_FILES_LOW: u64 = 1024;

/// Probes for an address before it is claimed. One may be lost on a busy wire.
pub const ADDRESS_PROBES: u32 = 3;

/// Between two probes, and after the last: three of these are 90 ms, hidden while the old lease runs out. A neighbour
/// answers within a millisecond.
pub const ADDRESS_PROBE_WAIT: Duration = Duration::from_millis(30);

/// Between two looks whether a conflict has gone away: a twentieth of what the kernel may lag behind a lifetime.
pub const ADDRESS_CONFLICT_PAUSE: Duration = Duration::from_millis(50);

/// When an address is announced, counted from the claim: the first frame may be lost while a switch learns.
pub const ADDRESS_BURST: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1_500),
];

/// Between later announcements: a switch forgets an idle address after five minutes.
pub const ADDRESS_REFRESH: Duration = Duration::from_secs(60);

/// Whoever asked for an address so short a time ago, and heard nothing, need not ask again before a claim: a look
/// takes 90 ms, and there are two in it.
pub const ADDRESS_FREE_FOR: Duration = Duration::from_millis(250);

/// How long a lifetime may take to the kernel, which counts from its arrival: it is given so much less. What took longer
/// is handed over again.
pub const ADDRESS_HANDOVER_MAX: Duration = Duration::from_millis(100);

/// How long one run of `nft` may take; it takes some milliseconds.
pub const NFT_WAIT: Duration = Duration::from_secs(2);

/// Connections of a former owner that are woken: 4 096 bare segments are a quarter of a megabyte.
pub const TICKLES_MAX: usize = 4096;

/// Bytes of a frame that a probe reads: ARP and neighbour discovery are far shorter.
pub const PROBE_FRAME_BYTES_MAX: usize = 1514;

/// Bytes of a hook's last output that are kept for a reason: what fits an event and a terminal.
pub const HOOK_TAIL_BYTES: usize = 4096;

/// How long killing a hook's tree may take; what lives after it cannot be killed.
pub const TREE_KILL_WAIT: Duration = Duration::from_secs(5);

/// After a failed step of a stop, the first wait before it is tried again; each further one is twice as long.
pub const STUCK_PAUSE: Duration = Duration::from_millis(100);

/// The longest of these waits: whoever frees a mount by hand should not have to wait long.
pub const STUCK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// After a hook that asks to be tried later.
pub const TRY_LATER_PAUSE: Duration = Duration::from_secs(1);

/// Processes that are named as holders of a mount: enough to find the rest.
pub const HOLDERS_NAMED_MAX: usize = 8;

/// Mounts of one server stacked on the same directory: more is a loop.
pub const MOUNTS_STACKED_MAX: usize = 16;

/// A conflict over an address is waited for this long: the kernel takes a dead owner's address away within about a
/// second of its time, and a busy machine needs a moment more.
pub const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// A watchdog is petted so many times within its time-out: two in a row may be late.
pub const WATCHDOG_PETS: u32 = 4;

/// Without a watchdog nobody is petted; the timer has to have some period.
pub const WATCHDOG_NONE: Duration = Duration::from_secs(3_600);

/// A server's time may be over for so long before the watchdog is not petted for its sake: the kernel needs a moment to
/// end it, and mounts and addresses to come down.
pub const WATCHDOG_PATIENCE: Duration = Duration::from_millis(500);
