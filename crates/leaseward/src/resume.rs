//! The agent's memory of its session, so that an agent that is started again goes on instead of losing its servers.
//!
//! Must stay true: it counts only in the same boot; the directory is one process's alone (the supervisor's lock).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
}

impl Memory {
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
