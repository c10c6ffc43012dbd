//! The machine's watchdog: a device that resets the machine unless somebody pets it in time (fence level F4).
//!
//! Must stay true: it is petted only while every server here whose time is over is dead and given up; so when the
//! kernel itself cannot end one (a process in uninterruptible sleep, a mount that stays), the machine goes instead. It
//! is put to sleep only when nothing is armed here. A device that was opened and is closed without a word goes on
//! counting: a machine without an agent is reset, too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::c_int;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::kernel;

/// Written before the device is closed, it says that nobody will pet it any more, and need not.
const SLEEP: &[u8] = b"V";

/// Anything else pets it.
const PET: &[u8] = b"\0";

/// An open watchdog.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    path: PathBuf,
    timeout: Duration,
}

/// What can be known of a watchdog that is not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is a device; otherwise a file that stands in for one.
    pub is_device: bool,
    /// Its time-out as it is set now, where the kernel tells.
    pub timeout: Option<Duration>,
    /// What the driver calls it; empty where the kernel does not tell.
    pub identity: String,
    /// Whether somebody has it open now: then an agent cannot have it.
    pub is_taken: bool,
}

/// Looks at a watchdog, and leaves it asleep. A device is not opened: from that moment on it counts, and many can never
/// be put to sleep again. So this reads who may open it, and what the kernel tells of it in `sysfs`.
///
/// # Errors
/// Why an agent run by this user could not use it; [`io::ErrorKind::InvalidInput`] if it is no watchdog.
pub fn look(path: &Path) -> io::Result<Seen> {
    let found = std::fs::metadata(path)?;
    if !found.file_type().is_char_device() {
        OpenOptions::new().append(true).open(path)?;
        return Ok(Seen { is_device: false, timeout: None, identity: String::new(), is_taken: false });
    }
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?;
    let (major, minor) = (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
    let about = match (major, minor) {
        // The old name of the first one.
        (10, 130) => PathBuf::from("/sys/class/watchdog/watchdog0"),
        _ => PathBuf::from(format!("/sys/dev/char/{major}:{minor}")),
    };
    let tells = |what: &str| std::fs::read_to_string(about.join(what)).map(|text| text.trim().to_owned());
    let is_watchdog = (major, minor) == (10, 130) || tells("identity").is_ok() || tells("timeout").is_ok();
    if !is_watchdog {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the kernel knows no watchdog of this number"));
    }
    let timeout = tells("timeout").ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let is_taken = tells("state").is_ok_and(|state| state == "active");
    Ok(Seen { is_device: true, timeout, identity: tells("identity").unwrap_or_default(), is_taken })
}

impl Watchdog {
    /// Opens a watchdog and sets its time-out, in whole seconds, at least one. From here on it counts.
    ///
    /// # Errors
    /// Those of the device; [`io::ErrorKind::InvalidInput`] if it takes no time-out.
    pub fn open(path: &Path, timeout: Duration) -> io::Result<Self> {
        let mut device = OpenOptions::new().append(true).open(path)?;
        let mut seconds = c_int::try_from(timeout.as_secs().max(1)).unwrap_or(c_int::MAX);
        if device.metadata()?.file_type().is_char_device() {
            kernel::set_watchdog_timeout(&device, &mut seconds)
                .map_err(|errno| io::Error::new(io::ErrorKind::InvalidInput, errno))?;
        }
        device.write_all(PET)?;
        let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        Ok(Self { device, path: path.to_owned(), timeout })
    }

    /// Returns after how long without being petted it resets the machine, as the device said.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells it that all is well.
    pub(crate) fn pet(&mut self) -> io::Result<()> {
        self.device.write_all(PET)
    }

    /// Puts it to sleep: the machine is not reset when nobody pets it any more.
    pub(crate) fn sleep(mut self) -> io::Result<()> {
        self.device.write_all(SLEEP)
    }
}
