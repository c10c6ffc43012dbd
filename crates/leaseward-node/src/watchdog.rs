//! The machine's watchdog: a device that resets the machine unless somebody pets it in time (fence level F4).
//!
//! Must stay true: it is petted only while every server here whose time is over is dead and given up; so when the
//! kernel itself cannot end one (a process in uninterruptible sleep, a mount that stays), the machine goes instead. It
//! is put to sleep only when nothing is armed here. A device that was opened and is closed without a word goes on
//! counting: a machine without an agent is reset, too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::c_int;

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
