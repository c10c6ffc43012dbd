//! A data directory for the first voter of a restored cluster.
//!
//! Must stay true: all of the backup was read and found whole before the directory can be started; what it names is
//! durable by then. It cannot be started before every copy of a server that the old life may have started after the
//! backup is at its deadline, provided that the old life had ended when the restore began: nobody else knows of them.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_raft::clock::wall_millis;
use leaseward_raft::life::Life;
use leaseward_raft::{StartError, random, restore as raft};
use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::session::Owner;
use leaseward_state::{Generation, Revision, State, UnixMillis};
use leaseward_sync::BlobStore;
use tokio::time::{Instant, sleep_until};

use super::check::{Contents, read};
use super::format::BackupError;
use crate::limits::TTL;

/// The longest grace that a master adds without a certificate, where the operator says nothing (fence level F1).
const GRACE: Duration = Duration::from_secs(2);

/// A cluster that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was in the backup.
    pub contents: Contents,
    /// The new cluster.
    pub cluster: u128,
    /// How often it was restored by now.
    pub generation: Generation,
    /// The revision with which it begins.
    pub revision: Revision,
}

/// Makes `dir` the data directory of the first voter of a cluster with what is in the backup. Durable when it returns.
/// Takes as long as the longest session of a machine may live, at least: not cancel safe, `dir` must be emptied then.
///
/// # Errors
/// [`BackupError`]; `dir` cannot be started then, and must be emptied unless it was refused.
pub async fn restore(file: PathBuf, dir: PathBuf) -> Result<Restored, BackupError> {
    let began = Instant::now();
    let to = dir.clone();
    let reading = move || -> Result<_, BackupError> {
        raft::claimable(&to).map_err(refused)?;
        unpack(&file, &to)
    };
    let (contents, state) = spawn(reading).await?;
    let anew = state
        .anew(UnixMillis(wall_millis()))
        .ok_or_else(|| BackupError::NotWhole("it was restored too often for tokens to grow on".into()))?;
    let life = Life::of(contents.head.cluster).restored(anew.generation(), random::unique());
    let (generation, revision) = (anew.generation(), anew.revision());
    sleep_until(began + longest(&state) + GRACE).await;
    spawn(move || raft::lay_down(&dir, life, &anew).map_err(refused)).await?;
    Ok(Restored { contents, cluster: life.id(), generation, revision })
}

/// Checks all of the backup, and puts its blobs into the content store of `dir`.
fn unpack(file: &Path, dir: &Path) -> Result<(Contents, State), BackupError> {
    let named = |error| BackupError::Io(std::io::Error::other(format!("{}: {error}", file.display())));
    let open = || Ok::<_, BackupError>(BufReader::with_capacity(1 << 20, File::open(file).map_err(named)?));
    // Once without touching the disk: a backup that is not whole leaves nothing behind.
    let (contents, _) = read(open()?, file, |_| Ok(()))?;
    if contents.head.feature_level > FEATURE_LEVEL {
        let why =
            format!("its feature level is {}, and this release reads {FEATURE_LEVEL}", contents.head.feature_level);
        return Err(BackupError::Newer(why));
    }
    let blob_error =
        |error: leaseward_sync::Error| BackupError::Directory { code: error.code().to_owned(), why: error.to_string() };
    let store = BlobStore::open(&dir.join("blobs")).map_err(blob_error)?;
    let done = read(open()?, file, |blobs| store.put_loose(&blobs).map_err(blob_error))?;
    store.settle().map_err(blob_error)?;
    Ok(done)
}

/// How long a copy of a server may live without a renewal.
fn longest(state: &State) -> Duration {
    let machines = state.sessions().filter(|(_, session)| matches!(session.owner, Owner::Machine(_)));
    machines.map(|(_, session)| Duration::from_millis(session.ttl_ms)).max().unwrap_or(TTL)
}

fn refused(error: StartError) -> BackupError {
    let why = match &error {
        StartError::Refused { why, .. } => why.clone(),
        other => other.to_string(),
    };
    BackupError::Directory { code: error.code().to_owned(), why }
}

async fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(BackupError::Io(std::io::Error::other(error))),
    }
}
