//! Which servers may live on a machine, and under which token, on this side's disk.
//!
//! Must stay true: it is written before a start is asked for, and forgets a server only after its script said that
//! nothing of it runs. One process has it at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use leaseward_state::{FencingToken, ServerName};

/// What may live. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct MayLive {
    path: PathBuf,
    known: Arc<Mutex<BTreeMap<ServerName, FencingToken>>>,
    _lock: Arc<File>,
}

impl MayLive {
    /// Reads what was remembered.
    ///
    /// # Errors
    /// What the disk says, that it cannot be understood, or that another process has it.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock().map_err(|_| io::Error::other(format!("another process has {}", dir.display())))?;
        let path = dir.join("may-live.json");
        let known = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, known: Arc::new(Mutex::new(known)), _lock: Arc::new(lock) })
    }

    pub(crate) fn all(&self) -> BTreeMap<ServerName, FencingToken> {
        self.known.lock().expect("no holder of this lock panics").clone()
    }

    pub(crate) fn token(&self, server: &ServerName) -> Option<FencingToken> {
        self.known.lock().expect("no holder of this lock panics").get(server).copied()
    }

    /// Remembers a server, durably, before it is started.
    ///
    /// # Errors
    /// What the disk says: then it must not be started.
    pub(crate) fn add(&self, server: &ServerName, token: FencingToken) -> io::Result<()> {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        known.insert(server.clone(), token);
        self.save(&known)
    }

    /// Forgets a server of which nothing runs.
    pub(crate) fn remove(&self, server: &ServerName) {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        if known.remove(server).is_some()
            && let Err(error) = self.save(&known)
        {
            // A name too many costs a question after the next start.
            tracing::warn!(%server, %error, "cannot forget a server");
        }
    }

    fn save(&self, known: &BTreeMap<ServerName, FencingToken>) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(known)?)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests start programs: for a moment these have our lock too.
    fn reopened(dir: &Path) -> MayLive {
        let mut tries = (0..1_000).map(|_| std::thread::sleep(std::time::Duration::from_millis(5)));
        tries.find_map(|()| MayLive::open(dir).ok()).expect("opened again")
    }

    #[test]
    fn it_is_there_after_a_restart_and_one_process_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let pay = ServerName::new("pay").expect("a name");
        let memory = MayLive::open(dir.path()).expect("opened");
        memory.add(&pay, FencingToken(7)).expect("remembered");
        assert!(MayLive::open(dir.path()).is_err(), "two processes have it");
        drop(memory);
        let memory = reopened(dir.path());
        assert_eq!(memory.token(&pay), Some(FencingToken(7)));
        memory.remove(&pay);
        drop(memory);
        assert!(reopened(dir.path()).all().is_empty());
    }
}
