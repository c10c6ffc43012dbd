//! Which life of its cluster a client knows: the first one that it met, and later ones of the same cluster.
//!
//! Must stay true: it never goes back to an earlier life, and never to another cluster, whoever answers at its addresses;
//! so a cluster that was restored beside the living one takes its members over once, and they do not come and go. An
//! agent remembers across its own restarts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leaseward_raft::life::{Life, Meeting};
use leaseward_raft::net::connection::CallError;
use tracing::{info, warn};

/// The life that a client knows. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    cluster: Option<u128>,
    /// Where it is remembered, if anywhere.
    file: Option<PathBuf>,
    /// Told once that somebody else answers, until the right one does.
    told: bool,
}

impl Known {
    /// Remembers in this file, and what it says.
    ///
    /// # Errors
    /// What the operating system says; a file that does not hold what it should.
    pub(crate) fn remember_in(&self, file: PathBuf) -> io::Result<()> {
        self.remember_with(file, sync_names)
    }

    fn remember_with(&self, file: PathBuf, sync_names: fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let mut inner = self.lock();
        match fs::read_to_string(&file) {
            Ok(text) => {
                let wrong =
                    |_| io::Error::new(io::ErrorKind::InvalidData, format!("{} names no cluster", file.display()));
                let cluster = u128::from_str_radix(text.trim(), 16).map_err(wrong)?;
                // Whoever wrote it may have died before its name was durable: the next start must not go back.
                sync_names(&file)?;
                inner.cluster = Some(cluster);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        inner.file = Some(file);
        Ok(())
    }

    /// Returns whether this is the cluster that it knows.
    pub(crate) fn is_of(&self, cluster: u128) -> bool {
        self.lock().cluster == Some(cluster)
    }

    /// Meets a cluster, and says whether it may be spoken with.
    ///
    /// # Errors
    /// [`CallError::Broken`] if not: another address may lead to the right one.
    pub(crate) fn meet(&self, cluster: u128) -> Result<(), CallError> {
        let mut inner = self.lock();
        let meeting = inner.cluster.map(|known| Life::of(known).meets(Life::of(cluster)));
        let why = match meeting {
            Some(Meeting::Same) => {
                inner.told = false;
                return Ok(());
            }
            None | Some(Meeting::Later) => {
                if meeting.is_some() {
                    info!(cluster = format!("{cluster:032x}"), "the cluster was restored from a backup: going with it");
                }
                // Before anything is asked of it: an agent that is started again must not go back.
                if let Some(file) = &inner.file
                    && let Err(error) = write(file, cluster)
                {
                    warn!(%error, file = %file.display(), "cannot remember the cluster");
                    return Err(CallError::Broken(format!("cannot remember the cluster: {error}")));
                }
                inner.cluster = Some(cluster);
                inner.told = false;
                return Ok(());
            }
            Some(Meeting::Earlier) => "the cluster as it was before it was restored answers there",
            Some(Meeting::Foreign) => "another cluster answers there",
        };
        if !inner.told {
            inner.told = true;
            warn!(cluster = format!("{cluster:032x}"), "LW0614: {why}");
        }
        Err(CallError::Broken(format!("LW0614: {why}")))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held cannot leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the file, whole or not at all.
fn write(file: &Path, cluster: u128) -> io::Result<()> {
    let temporary = file.with_extension("tmp");
    let mut out = File::create(&temporary)?;
    out.write_all(format!("{cluster:032x}\n").as_bytes())?;
    out.sync_all()?;
    fs::rename(&temporary, file)?;
    sync_names(file)
}

/// Makes the names durable that are beside a file, and its own.
fn sync_names(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use leaseward_state::Generation;

    use super::*;

    #[test]
    fn a_member_is_taken_over_once_and_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster");
        let first = Life::first(0x77 << 64 | 3);
        let second = first.restored(Generation(1), 4);
        let twin = first.restored(Generation(1), 5);
        let stranger = Life::first(0x78 << 64 | 3);

        let known = Known::default();
        known.remember_in(file.clone()).unwrap();
        assert!(known.meet(first.id()).is_ok(), "whoever comes first");
        assert!(known.meet(stranger.id()).is_err());
        assert!(known.meet(second.id()).is_ok(), "the restored cluster takes it over");
        for _ in 0..3 {
            // Both answer, in turn.
            assert!(known.meet(first.id()).is_err(), "back to the life before");
            assert!(known.meet(second.id()).is_ok());
            assert!(known.meet(twin.id()).is_err(), "the same backup, restored elsewhere");
        }
        assert!(known.is_of(second.id()) && !known.is_of(first.id()));

        let again = Known::default();
        again.remember_in(file.clone()).unwrap();
        assert!(again.meet(first.id()).is_err(), "back after a restart");
        assert!(again.meet(second.id()).is_ok());
        let broken = |_: &Path| Err(io::Error::from_raw_os_error(5));
        Known::default().remember_with(file.clone(), broken).expect_err("what may be gone tomorrow is not believed");
        fs::write(&file, "nonsense").unwrap();
        assert!(Known::default().remember_in(file).is_err());
    }
}
