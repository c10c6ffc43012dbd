//! Whether this machine has what a server needs: facts, found by trying each once.
//!
//! Must stay true: it changes nothing that lasts, and needs no cluster. Real-time priority is taken by a child that
//! ends at once. Left out on purpose: the attacks ([`crate::attack`]), and whatever concerns other machines.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_state::server::FenceLevel;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigEvent, SigevNotify};
use nix::sys::time::TimeValLike;
use nix::sys::timer::Timer;
use nix::time::{ClockId, clock_gettime};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

use crate::attack::{self, Cgroup};
use crate::clock::BootInstant;
use crate::fence::{self, Privileges};
use crate::limits::{
    CHECK_FILES_LOW, CHECK_FILES_MIN, CHECK_SPACE_LOW, CHECK_SPACE_MIN, CHECK_SYNC_SLOW, CHECK_SYNC_TIME, CHECK_SYNCS,
};
use crate::watchdog::{self, Seen};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, but less well than it could.
    Warning,
    /// Something does not work without it.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub fact: String,
    /// What to do about it; empty if nothing.
    pub advice: String,
}

fn ok(name: &'static str, fact: impl Into<String>) -> Finding {
    Finding { name, state: State::Ok, fact: fact.into(), advice: String::new() }
}

fn bad(name: &'static str, state: State, fact: impl Into<String>, advice: &str) -> Finding {
    Finding { name, state, fact: fact.into(), advice: advice.to_owned() }
}

/// Looks at this machine. Blocks for a few seconds at most on a slow disk; writes a few files in `data` and removes
/// them. `watchdog` is the one that an agent would use.
#[must_use]
pub fn look(data: &Path, watchdog: Option<&Path>) -> Vec<Finding> {
    let privileges = fence::privileges(true);
    let mut found = vec![clocks()];
    found.extend(disk(data));
    found.extend([namespaces(privileges), real_time(privileges), memory(privileges), cgroup(), open_files()]);
    let (network, dog) = (network_fence(), watchdog_at(watchdog));
    let level = most(privileges.level(), &network, watchdog.map(|_| &dog));
    found.extend([network, dog]);
    found.push(ok("fence", format!("this user earns {level} at most; --fence tries up to F3")));
    found
}

fn clocks() -> Finding {
    const NAME: &str = "clocks";
    let read = || -> Result<(i64, i64), nix::errno::Errno> {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)?.num_nanoseconds();
        Ok((boot, clock_gettime(ClockId::CLOCK_MONOTONIC_RAW)?.num_nanoseconds()))
    };
    // A clock may be readable, and yet have no timers.
    let timer = || Timer::new(ClockId::CLOCK_BOOTTIME, SigEvent::new(SigevNotify::SigevNone)).map(drop);
    let looked = (|| {
        timer()?;
        let before = read()?;
        std::thread::sleep(Duration::from_millis(2));
        Ok::<_, nix::errno::Errno>((before, read()?))
    })();
    match looked {
        Ok((before, after)) if after.0 > before.0 && after.1 > before.1 => {
            ok(NAME, "BOOTTIME and MONOTONIC_RAW run, BOOTTIME has timers")
        }
        Ok(_) => bad(NAME, State::Failed, "a clock stands still", "do not run servers here: no deadline would pass"),
        Err(errno) => bad(NAME, State::Failed, errno.desc(), "use Linux 5.15 or later, without a filter on timers"),
    }
}

/// A directory of our own in the data directory; removed when dropped.
struct Corner(PathBuf);

impl Corner {
    fn of(data: &Path) -> io::Result<Self> {
        let path = data.join(format!(".leaseward-doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn disk(data: &Path) -> Vec<Finding> {
    let corner = match Corner::of(data) {
        Ok(corner) => corner,
        Err(error) => {
            let fact = format!("{}: {error}", data.display());
            return vec![bad("data", State::Failed, fact, "name a directory that this user may write: --data DIR")];
        }
    };
    vec![ok("data", format!("{} can be written", data.display())), sync(&corner.0), space(data), exchange(&corner.0)]
}

fn sync(corner: &Path) -> Finding {
    const NAME: &str = "fdatasync";
    let measure = || -> io::Result<Vec<Duration>> {
        let file = File::create(corner.join("sync"))?;
        let (begun, mut times) = (BootInstant::now(), Vec::new());
        while times.len() < CHECK_SYNCS && BootInstant::now().saturating_since(begun) < CHECK_SYNC_TIME {
            file.write_all_at(&[1; 4096], times.len() as u64 * 4096)?;
            let before = BootInstant::now();
            file.sync_data()?;
            times.push(BootInstant::now().saturating_since(before));
        }
        times.sort();
        Ok(times)
    };
    let times = match measure() {
        Ok(times) => times,
        Err(error) => return bad(NAME, State::Failed, error.to_string(), "mend the disk, or use another"),
    };
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, p99) = (at(50), at(99));
    let fact = format!("median {:.2} ms, p99 {:.2} ms of {} writes of 4 KiB", ms(median), ms(p99), times.len());
    if p99 > CHECK_SYNC_SLOW {
        let advice = "every commit waits for it: use a faster disk, or one that others do not use";
        return bad(NAME, State::Warning, fact, advice);
    }
    ok(NAME, fact)
}

fn space(data: &Path) -> Finding {
    const NAME: &str = "space";
    let free = match rustix::fs::statvfs(data) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(errno) => return bad(NAME, State::Failed, errno.to_string(), "mend the disk, or use another"),
    };
    let fact = format!("{} MiB free", free >> 20);
    let advice = "make room: a voter whose disk is full ends";
    match free {
        free if free < CHECK_SPACE_MIN => bad(NAME, State::Failed, fact, advice),
        free if free < CHECK_SPACE_LOW => bad(NAME, State::Warning, fact, advice),
        _ => ok(NAME, fact),
    }
}

fn exchange(corner: &Path) -> Finding {
    const NAME: &str = "exchange";
    let (a, b) = (corner.join("a"), corner.join("b"));
    let done = fs::create_dir(&a).and_then(|()| fs::create_dir(&b)).and_then(|()| {
        renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE)?;
        Ok(())
    });
    match done {
        Ok(()) => ok(NAME, "RENAME_EXCHANGE works here"),
        Err(error) => bad(
            NAME,
            State::Failed,
            format!("RENAME_EXCHANGE: {error}"),
            "keep config sets on ext4, xfs, btrfs or tmpfs: they switch by one exchange",
        ),
    }
}

fn namespaces(privileges: Privileges) -> Finding {
    const NAME: &str = "namespaces";
    match privileges.level() {
        _ if privileges.by_privilege => ok(NAME, "PID namespace by privilege"),
        FenceLevel::F0 => bad(
            NAME,
            State::Failed,
            "this user gets no PID namespace",
            "run as root, or allow user namespaces: sysctl user.max_user_namespaces, \
             kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns",
        ),
        _ => bad(NAME, State::Warning, "PID namespace in a user namespace", "run as root for a fence of F2"),
    }
}

fn real_time(privileges: Privileges) -> Finding {
    if privileges.scheduled {
        return ok("SCHED_FIFO", "allowed");
    }
    let advice = "run as root or with CAP_SYS_NICE, outside a cgroup that limits real-time";
    bad("SCHED_FIFO", State::Warning, "refused: a busy machine may end servers late", advice)
}

fn memory(privileges: Privileges) -> Finding {
    if privileges.may_lock {
        return ok("mlock", "allowed");
    }
    let advice = "run as root or with CAP_IPC_LOCK";
    bad("mlock", State::Warning, "refused: a machine short of memory may end servers late", advice)
}

fn cgroup() -> Finding {
    match Cgroup::make() {
        Ok(_made) => ok("cgroup", "v2, writable"),
        Err(why) => bad("cgroup", State::Warning, why, "run as root, or let systemd delegate: Delegate=yes"),
    }
}

fn network_fence() -> Finding {
    const NAME: &str = "network fence";
    match attack::wires::try_fence() {
        Ok(()) => ok(NAME, "nft sets it up in a namespace of its own; --fence measures it"),
        Err(why) => bad(NAME, State::Warning, why, "run as root and install nftables for a fence of F3"),
    }
}

fn watchdog_at(device: Option<&Path>) -> Finding {
    const NAME: &str = "watchdog";
    let Some(device) = device else {
        return ok(NAME, "not measured: none is named (--watchdog DEVICE, or machine.watchdog of --config)");
    };
    let advice = "load a driver, let this user write to it, and let no other program have it; see LW0343";
    match watchdog::look(device) {
        Ok(seen) if seen.is_taken => bad(NAME, State::Warning, watchdog_words(device, &seen), advice),
        Ok(seen) => ok(NAME, watchdog_words(device, &seen)),
        Err(error) => bad(NAME, State::Failed, format!("{}: {error}", device.display()), advice),
    }
}

/// Returns what was seen of a watchdog, and why not more.
#[must_use]
pub fn watchdog_words(device: &Path, seen: &Seen) -> String {
    let device = device.display();
    if !seen.is_device {
        return format!("{device} is a file that can be opened, and no device: it resets nothing, so not measured");
    }
    let name = if seen.identity.is_empty() { String::new() } else { format!(" ({})", seen.identity) };
    if seen.is_taken {
        return format!("{device}{name} counts already: another program has it");
    }
    let timeout = seen.timeout.map_or("its time-out is not told".to_owned(), |time| format!("time-out {time:?}"));
    format!(
        "{device}{name} may be opened, {timeout}; not measured: once opened it counts, and might reset this machine"
    )
}

/// Returns what this user may earn, by what was found beside its privileges.
fn most(level: FenceLevel, network: &Finding, watchdog: Option<&Finding>) -> FenceLevel {
    match level {
        FenceLevel::F2 if network.state != State::Ok => FenceLevel::F2,
        FenceLevel::F2 if watchdog.is_some_and(|dog| dog.state == State::Ok) => FenceLevel::F4,
        FenceLevel::F2 => FenceLevel::F3,
        level => level,
    }
}

fn open_files() -> Finding {
    const NAME: &str = "open files";
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(errno) => return bad(NAME, State::Warning, errno.desc(), "look at `ulimit -n`"),
    };
    let fact = if hard == soft { format!("at most {soft}") } else { format!("at most {soft}, up to {hard} if raised") };
    let advice = "raise it: LimitNOFILE=65536 in the unit, or `ulimit -n 65536`";
    match soft {
        soft if soft < CHECK_FILES_MIN => bad(NAME, State::Failed, fact, advice),
        soft if soft < CHECK_FILES_LOW => bad(NAME, State::Warning, fact, advice),
        _ => ok(NAME, fact),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_a_failure_with_advice_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let found = look(&dir.path().join("none"), None);
        let data = found.iter().find(|finding| finding.name == "data").unwrap();
        assert!(data.state == State::Failed && data.advice.contains("--data"), "{data:?}");
        assert!(!found.iter().any(|finding| finding.name == "fdatasync"));
        let found = look(dir.path(), None);
        for name in [
            "clocks",
            "data",
            "fdatasync",
            "space",
            "exchange",
            "namespaces",
            "SCHED_FIFO",
            "mlock",
            "cgroup",
            "network fence",
            "watchdog",
        ] {
            assert!(found.iter().any(|finding| finding.name == name), "{name}: {found:?}");
        }
        assert!(found.iter().all(|finding| (finding.state == State::Ok) == finding.advice.is_empty()), "{found:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something stayed");
    }

    #[test]
    fn a_watchdog_that_is_named_is_looked_at_and_stays_asleep() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dog");
        fs::write(&file, b"").unwrap();
        let found = watchdog_at(Some(&file));
        assert!(found.state == State::Ok && found.fact.contains("not measured"), "{found:?}");
        assert_eq!(fs::read(&file).unwrap(), b"", "it was petted");
        for none in [&dir.path().join("none"), Path::new("/dev/null")] {
            let found = watchdog_at(Some(none));
            assert!(found.state == State::Failed && found.advice.contains("LW0343"), "{found:?}");
        }
        assert!(watchdog_at(None).fact.starts_with("not measured"));
        let device = |is_taken| Seen { is_device: true, timeout: None, identity: "Dog".into(), is_taken };
        assert!(watchdog_words(&file, &device(false)).contains("(Dog) may be opened"));
        assert!(watchdog_words(&file, &device(true)).contains("another program has it"));
    }

    #[test]
    fn each_level_needs_the_one_below() {
        use FenceLevel::{F1, F2, F3, F4};
        let (good, poor) = (ok("x", "y"), bad("x", State::Warning, "y", "z"));
        assert_eq!(most(F2, &poor, Some(&good)), F2);
        assert_eq!((most(F2, &good, None), most(F2, &good, Some(&poor)), most(F2, &good, Some(&good))), (F3, F3, F4));
        assert_eq!(most(F1, &good, Some(&good)), F1);
    }
}
