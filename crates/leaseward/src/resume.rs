//! The agent's memory of its session, so that an agent that is started again goes on instead of losing its servers.
//!
//! Must stay true: it counts only in the same boot; the directory is one process's alone (the supervisor's lock).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use leaseward_raft::random;
use leaseward_state::SessionId;
use serde::{Deserialize, Serialize};

/// What an agent remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) session: u64,
    pub(crate) boot_id: String,
    pub(crate) instance: String,
    pub(crate) ttl_ms: u64,
    /// Where the sockets and proofs of running servers are: nothing is known of servers elsewhere.
    pub(crate) run_dir: PathBuf,
    /// Which of the directories that stood there; releases before this one did not remember it.
    #[serde(default)]
    pub(crate) run_mark: Option<String>,
}

impl Memory {
    /// Returns how the next run calls itself ([`leaseward_state::session::Incarnation::follows`]).
    pub(crate) fn next_instance(memory: Option<&Self>) -> u128 {
        let last = memory.and_then(|memory| u128::from_str_radix(&memory.instance, 16).ok());
        last.and_then(|last| last.checked_add(1)).unwrap_or_else(|| random::unique() & !u128::from(u64::MAX))
    }

    /// Returns whether a session is remembered, and not only that one was to be opened.
    pub(crate) fn had_session(&self) -> bool {
        self.session != 0
    }

    /// Returns whether it is of what ran in this directory.
    pub(crate) fn is_of(&self, run_dir: &Path, mark: &str) -> bool {
        self.run_dir == run_dir && self.run_mark.as_ref().is_none_or(|known| known == mark)
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session)
    }

    /// Returns what was remembered in this boot, if anything readable.
    pub(crate) fn load(path: &Path, boot_id: &str) -> Option<Self> {
        let memory: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (memory.boot_id == boot_id).then_some(memory)
    }

    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    }
}

/// Returns the mark of a run directory; one without gets one. Whoever wipes the directory wipes the mark with what it stands for.
///
/// # Errors
/// It can be neither read nor written.
pub(crate) fn mark(run_dir: &Path) -> io::Result<String> {
    let path = run_dir.join("mark");
    match fs::read_to_string(&path) {
        Ok(mark) if !mark.is_empty() => return Ok(mark),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let mark = format!("{:032x}", random::unique());
    fs::write(&path, &mark)?;
    Ok(mark)
}
