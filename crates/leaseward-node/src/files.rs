//! A server's files in the run directory, and how they are written.
//!
//! Must stay true: a file is replaced whole or not at all; `<server>.live` is on disk before the server's first
//! instruction, so whoever finds no such file and no shim knows that nothing runs; `<server>.token` never shrinks.
//! Left out on purpose: surviving a power cut. After a boot nothing lives, and the grant itself refuses old tokens.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leaseward_state::name::ServerName;
use leaseward_state::server::Exit;
use leaseward_state::token::FencingToken;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::BootInstant;
use crate::limits::SOCKET_PATH_BYTES_MAX;
use crate::process::ProcessId;
use crate::protocol::Order;

/// Written by a shim before it lets the server run, removed after its end is on record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) order: Order,
    pub(crate) shim: ProcessId,
    pub(crate) init: ProcessId,
}

/// Written by a shim when it has seen the end of every process of its server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) order: Order,
    pub(crate) init: ProcessId,
    pub(crate) at: BootInstant,
    pub(crate) exit: Exit,
}

/// Written by a supervisor before it starts a shim, and before anybody hears that nothing under a token runs here any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) token: FencingToken,
    /// Nothing is started under this token again, either.
    #[serde(default)]
    pub(crate) retired: bool,
}

/// Where a server's files are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    stem: String,
}

impl Files {
    /// Returns the files of a server. A name too long for a socket's path is cut and made unique by its hash.
    pub(crate) fn of(dir: &Path, server: &str) -> Self {
        let room = SOCKET_PATH_BYTES_MAX.saturating_sub(dir.as_os_str().len() + "/.sock".len());
        let stem = if server.len() <= room {
            server.to_owned()
        } else {
            let head: String = server.chars().take(room.saturating_sub(17)).collect();
            format!("{head}-{:016x}", fnv1a(server))
        };
        Self { dir: dir.to_owned(), stem }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.stem))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// The record of a preparation that is under way.
    pub(crate) fn preparation(&self) -> PathBuf {
        self.path("prepare")
    }

    pub(crate) fn live(&self) -> PathBuf {
        self.path("live")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.path("exit")
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.path("token")
    }

    /// What stands around the server, from before its mounts until after them.
    pub(crate) fn around(&self) -> PathBuf {
        self.path("around")
    }

    /// The hook that runs for it.
    pub(crate) fn hook(&self) -> PathBuf {
        self.path("hook")
    }

    /// Held by the shim and its init: two shims of one server never run at a time.
    pub(crate) fn lock(&self) -> PathBuf {
        self.path("lock")
    }

    /// Removes what says that it lives. Only for whoever has proof that it does not.
    pub(crate) fn forget_live(&self) {
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_file(self.live());
    }

    /// Returns the exit record of exactly this run, if its shim wrote one.
    pub(crate) fn exit_of(&self, init: ProcessId, boot_id: &str) -> Option<ExitRecord> {
        let record: ExitRecord = read(&self.exit()).ok()?;
        (record.init == init && record.order.boot_id == boot_id).then_some(record)
    }
}

/// Takes a server's lock, for as long as what is returned lives.
pub(crate) fn lock(path: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.into())
}

/// Returns the longest path a run directory may have.
pub(crate) const fn run_dir_bytes_max() -> usize {
    SOCKET_PATH_BYTES_MAX - "/.sock".len() - 24
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Replaces a file by `value` as JSON, readable by its owner only.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    let new = path.with_added_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    fs::rename(&new, path)
}

/// Reads a file that [`write`] wrote.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Opens a log for appending; one that is too long is set aside first.
pub(crate) fn open_log(path: &Path, bytes_max: u64) -> io::Result<fs::File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > bytes_max) {
        fs::rename(path, path.with_added_extension("1"))?;
    }
    fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Returns the log of a server.
pub(crate) fn log_path(dir: &Path, server: &ServerName) -> PathBuf {
    dir.join(format!("{server}.log"))
}

/// Returns the process ids of the shims whose servers live, as far as `run_dir` knows. For whoever plays the death of
/// a whole machine.
#[must_use]
pub fn live_shims(run_dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(run_dir) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "live"))
        .filter_map(|path| read::<Live>(&path).ok())
        .filter(|live| live.shim.open().is_ok_and(|found| found.is_some()))
        .map(|live| live.shim.pid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_fit_a_socket_path_and_stay_apart() {
        let dir = Path::new("/run/leaseward/shims");
        let (a, b) = (format!("{}a", "x".repeat(127)), format!("{}b", "x".repeat(127)));
        let (a, b) = (Files::of(dir, &a).socket(), Files::of(dir, &b).socket());
        assert!(a.as_os_str().len() <= SOCKET_PATH_BYTES_MAX && a != b);
        assert_eq!(Files::of(dir, "pay-1").socket(), dir.join("pay-1.sock"));
    }
}
