//! Clocks of hosts: each may have a boot clock of its own, and a wall clock.
//!
//! Must stay true: a boot clock is a time namespace's (Linux 6.0, for whoever enters by `exec`), so what a host reads and what
//! its kernel timers wait for is shifted alike; it is set before anything of the host runs, as a boot does. A wall clock is what the
//! C library says to all programs of a host (`tests/wall-clock`): the kernel has none of a host's own. It can be stepped at any time,
//! and survives its host's power; the machine's is never touched.
//!
//! Left out on purpose: boot clocks that run at other rates (`adjtimex` is the machine's; the simulation has them), and the stamps
//! of files, which are the machine's.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};

use super::network::Network;

/// A boot clock does not begin before this: the kernel knows no negative times.
const AGE_MIN: i64 = 5;

const NS: i64 = 1_000_000_000;

/// How the library is called that gives programs their host's wall clock.
pub const LIBRARY: &str = "libleaseward_wall_clock.so";

/// What the loader of each program reads on a host.
const PRELOADED: &str = "ld.so.preload";

/// How a wall clock goes, for the library.
const CLOCK: &str = "leaseward-wall-clock";

impl Network {
    /// Gives whatever is started on a host from now on a boot clock, and a monotonic one, that say so many seconds. What runs there
    /// keeps the clocks that it has.
    pub fn set_boot_clock(&mut self, host: &str, seconds: i64) {
        let now = clock_gettime(ClockId::Boottime).tv_sec.min(clock_gettime(ClockId::Monotonic).tv_sec);
        let ahead = seconds.max(AGE_MIN) - now;
        self.host_mut(host).clock_ahead = Some(ahead.max(AGE_MIN - now));
    }

    /// Returns by how many seconds the boot clock of a host is ahead of the machine's.
    #[must_use]
    pub fn clock_ahead(&self, host: &str) -> i64 {
        self.host(host).clock_ahead.unwrap_or(0)
    }
}

/// Returns the words before a program that is to see clocks which are ahead of the machine's.
pub(super) fn ahead(seconds: i64) -> Vec<String> {
    let shift = seconds.to_string();
    ["unshare", "--time", "--boottime", &shift, "--monotonic", &shift, "--"].map(str::to_owned).into()
}

/// The wall clock of one host. It goes on as it was set when this is dropped.
#[derive(Debug)]
pub struct WallClock {
    file: File,
    turn: u64,
    ahead: i64,
    from: i64,
    /// In millionths.
    rate: i64,
}

impl WallClock {
    /// Makes one that is right, in a directory that must be seen over `/etc` on the host.
    ///
    /// # Panics
    /// If its library is not built yet.
    #[must_use]
    pub fn make(etc: &Path) -> Self {
        fs::create_dir(etc).expect("a directory");
        let library = etc.join(LIBRARY);
        // Where the build is, others may not look; and it may be built anew meanwhile.
        fs::copy(self::library(), &library).expect("a copy");
        fs::set_permissions(&library, fs::Permissions::from_mode(0o755)).expect("our own file");
        fs::write(etc.join(PRELOADED), format!("/etc/{LIBRARY}\n")).expect("a file");
        let file = File::create_new(etc.join(CLOCK)).expect("a file");
        file.write_all_at(&[0; 32], 0).expect("written");
        Self { file, turn: 0, ahead: 0, from: 0, rate: 0 }
    }

    /// Sets it so many seconds ahead of the machine's, and lets it go faster by so many millionths.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set(&mut self, ahead_seconds: i64, rate: i64) {
        (self.ahead, self.from, self.rate) = (ahead_seconds * NS, machine_ns(), rate);
        let words = [self.ahead, self.from, self.rate].map(i64::to_ne_bytes).concat();
        let write = |bytes: &[u8], at| self.file.write_all_at(bytes, at).expect("written in memory");
        // Whoever reads an odd turn reads again.
        write(&(self.turn + 1).to_ne_bytes(), 0);
        write(&words, 8);
        write(&(self.turn + 2).to_ne_bytes(), 0);
        self.turn += 2;
    }

    /// Returns how many seconds it is ahead of the machine's now.
    #[must_use]
    pub fn ahead_seconds(&self) -> f64 {
        let drifted = i128::from(machine_ns() - self.from) * i128::from(self.rate) / 1_000_000;
        (i128::from(self.ahead) + drifted) as f64 / NS as f64
    }
}

/// Returns the machine's wall clock in seconds since 1970: nobody steps it.
#[must_use]
pub fn machine_seconds() -> f64 {
    machine_ns() as f64 / NS as f64
}

fn machine_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NS + now.tv_nsec
}

/// Returns the library, from where this program was built.
///
/// # Panics
/// If it is not built yet.
#[must_use]
pub fn library() -> PathBuf {
    let me = std::env::current_exe().expect("a program knows where it is");
    let dirs = me.ancestors().skip(1).take(2).flat_map(|dir| [dir.to_owned(), dir.join("deps")]);
    let found = dirs.map(|dir| dir.join(LIBRARY)).find(|path| path.is_file());
    found.expect(
        "the library of wall clocks is not built: run `cargo build -p leaseward-tests` with the same profile first",
    )
}
