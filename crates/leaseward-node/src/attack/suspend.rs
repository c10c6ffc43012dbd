//! Putting the machine to sleep past a deadline: the boot clock goes on, and nothing else does.
//!
//! Must stay true: a machine sleeps only if somebody asked for it, and only with an alarm set that wakes it; the alarm
//! is taken back whatever happens. What happens while it wakes up counts from the first moment at which anything runs
//! again. Left out on purpose: machines whose alarm is not that of `rtc0`; pauses by a hypervisor, which no clock
//! of the guest shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Access, access};

use crate::clock::BootInstant;
use crate::limits::{ATTACK_SLEEP_MARGIN, ATTACK_SLEEP_SAMPLE};

/// How a machine can be put to sleep, and woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspend {
    state: PathBuf,
    word: &'static str,
    alarm: PathBuf,
}

/// Returns how this machine can be put to sleep for a while.
///
/// # Errors
/// Why it cannot, in words.
pub fn look() -> Result<Suspend, String> {
    look_at(Path::new("/sys"))
}

fn look_at(sys: &Path) -> Result<Suspend, String> {
    let (state, alarm) = (sys.join("power/state"), sys.join("class/rtc/rtc0/wakealarm"));
    let offers = fs::read_to_string(&state).unwrap_or_default();
    // The lightest sleep stops all clocks but this one, as the deepest does, and more machines wake from it.
    let word = ["freeze", "mem"].into_iter().find(|word| offers.split_whitespace().any(|offer| offer == *word));
    let word = word.ok_or_else(|| format!("the kernel offers no suspend here ({} lacks it)", state.display()))?;
    if !alarm.exists() {
        return Err(format!("nothing would wake this machine: there is no {}", alarm.display()));
    }
    for path in [&state, &alarm] {
        access(path, Access::WRITE_OK).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    Ok(Suspend { state, word, alarm })
}

/// A sleep that the machine had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slept {
    /// The last moment at which something ran.
    pub(super) from: BootInstant,
    /// The first moment at which something ran again.
    pub(super) to: BootInstant,
}

impl Slept {
    /// Returns whether it slept at this moment.
    pub(super) fn covers(self, at: BootInstant) -> bool {
        self.from < at && at < self.to
    }
}

impl Suspend {
    /// Puts the machine to sleep until a little after `past`. Blocks until it is awake again.
    pub(super) fn sleep_past(&self, past: BootInstant) -> io::Result<Slept> {
        let left = past.saturating_since(BootInstant::now()) + ATTACK_SLEEP_MARGIN;
        let _alarm = Alarm::set(&self.alarm, left)?;
        let awake = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| longest_gap(&awake));
            let slept = fs::write(&self.state, self.word);
            awake.store(true, Ordering::Relaxed);
            let gap = watcher.join().map_err(|_| io::Error::other("the watcher of the clock ended"))?;
            slept.map(|()| gap)
        })
    }
}

/// Reads the clock again and again. Returns where it stepped furthest.
fn longest_gap(until: &AtomicBool) -> Slept {
    let mut before = BootInstant::now();
    let mut longest = Slept { from: before, to: before };
    loop {
        // Once more after the end: the machine may have been asleep since the last look.
        let is_last = until.load(Ordering::Relaxed);
        let now = BootInstant::now();
        if now.saturating_since(before) > longest.to.saturating_since(longest.from) {
            longest = Slept { from: before, to: now };
        }
        if is_last {
            return longest;
        }
        before = now;
        std::thread::sleep(ATTACK_SLEEP_SAMPLE);
    }
}

/// An alarm that is set until it is dropped.
struct Alarm<'a>(&'a Path);

impl<'a> Alarm<'a> {
    fn set(path: &'a Path, after: Duration) -> io::Result<Self> {
        // One that is set already refuses another.
        fs::write(path, "0")?;
        let alarm = Self(path);
        // It counts in whole seconds.
        fs::write(path, format!("+{}", after.as_secs() + 1))?;
        Ok(alarm)
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0, "0");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sys(state: Option<&str>, alarm: Option<u32>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("power")).unwrap();
        fs::create_dir_all(dir.path().join("class/rtc/rtc0")).unwrap();
        if let Some(state) = state {
            fs::write(dir.path().join("power/state"), state).unwrap();
        }
        if let Some(mode) = alarm {
            let path = dir.path().join("class/rtc/rtc0/wakealarm");
            fs::write(&path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    fn word(sys: &tempfile::TempDir) -> Result<&'static str, String> {
        look_at(sys.path()).map(|suspend| suspend.word).map_err(|why| why.replace(sys.path().to_str().unwrap(), "/sys"))
    }

    #[test]
    fn a_machine_sleeps_only_where_it_can_be_woken() {
        assert_eq!(word(&sys(Some("freeze mem disk\n"), Some(0o600))), Ok("freeze"));
        assert_eq!(word(&sys(Some("mem disk\n"), Some(0o600))), Ok("mem"));
        for offers in [None, Some(""), Some("\n"), Some("disk\n"), Some("memory\n")] {
            let why = "the kernel offers no suspend here (/sys/power/state lacks it)";
            assert_eq!(word(&sys(offers, Some(0o600))), Err(why.to_owned()), "{offers:?}");
        }
        let why = "nothing would wake this machine: there is no /sys/class/rtc/rtc0/wakealarm";
        assert_eq!(word(&sys(Some("freeze\n"), None)), Err(why.to_owned()));
        // Root may write everything.
        if !rustix::process::geteuid().is_root() {
            let why = word(&sys(Some("freeze\n"), Some(0o400))).unwrap_err();
            assert!(why.starts_with("/sys/class/rtc/rtc0/wakealarm cannot be written"), "{why}");
        }
    }

    /// Plain files in the place of the kernel's: nothing sleeps, so the gap covers no deadline, and that is noticed.
    #[test]
    fn the_alarm_is_set_for_the_sleep_and_taken_back() {
        let sys = sys(Some("freeze\n"), Some(0o600));
        let suspend = look_at(sys.path()).unwrap();
        let past = BootInstant::now() + Duration::from_secs(60);
        let slept = suspend.sleep_past(past).unwrap();
        assert!(!slept.covers(past), "{slept:?}");
        assert_eq!(fs::read_to_string(&suspend.state).unwrap(), "freeze");
        assert_eq!(fs::read_to_string(&suspend.alarm).unwrap(), "0");
        let alarm = Alarm::set(&suspend.alarm, Duration::from_millis(2_500)).unwrap();
        assert_eq!(fs::read_to_string(&suspend.alarm).unwrap(), "+3");
        drop(alarm);
    }

    #[test]
    fn what_covers_a_deadline() {
        let at = BootInstant;
        let slept = Slept { from: at(10), to: at(20) };
        assert_eq!([9, 10, 11, 19, 20, 21].map(|now| slept.covers(at(now))), [false, false, true, true, false, false]);
    }
}
