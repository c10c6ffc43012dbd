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
use leaseward_state::machine::Machine;
use leaseward_state::server::{FenceEarned, Placement, Server};
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
/// Takes as long as a copy of a server may live by what is in the backup, and `at_least` so long, for what came after it:
/// not cancel safe, `dir` must be emptied then.
///
/// # Errors
/// [`BackupError`]; `dir` cannot be started then, and must be emptied unless it was refused.
pub async fn restore(file: PathBuf, dir: PathBuf, at_least: Duration) -> Result<Restored, BackupError> {
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
    sleep_until(began + copies_end_within(&state).max(at_least)).await;
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

/// Returns how long a copy of a server may live without a renewal, and how much longer a machine may take to end it, as
/// far as the backup knows. Of a machine that is away its time to live is known only while a copy of it is waited for.
fn copies_end_within(state: &State) -> Duration {
    let machines = state.sessions().filter(|(_, session)| matches!(session.owner, Owner::Machine(_)));
    let open = machines.map(|(_, session)| session.ttl_ms);
    let waited_for = state.servers().filter_map(|(_, server)| match &server.placement {
        Placement::Expired(expired) => Some(expired.wait_ms),
        _ => None,
    });
    let ttl = open.chain(waited_for).map(Duration::from_millis).max().unwrap_or(TTL).max(TTL);
    ttl + state.servers().map(|(_, server)| grace(state, server)).max().unwrap_or(GRACE).max(GRACE)
}

/// The longest grace that the master would wait for this server, whichever machine has it.
fn grace(state: &State, server: &Server) -> Duration {
    let of_machine = |(_, machine): (_, &Machine)| {
        let earned = FenceEarned { level: machine.profile.fence, watchdog_ms: machine.profile.watchdog_ms };
        earned.grace_ms(server.spec.requires_fence)
    };
    let of_copy = match &server.placement {
        Placement::Assigned(assignment) => Some(assignment.fence),
        Placement::Expired(expired) => Some(expired.earned),
        Placement::Unplaced { .. } | Placement::Failed { .. } => None,
    };
    let of_copy = of_copy.and_then(|earned| earned.grace_ms(server.spec.requires_fence));
    let earned = state.machines().filter_map(of_machine).chain(of_copy).max();
    Duration::from_millis(server.spec.grace_ms.or(earned).unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use leaseward_state::command::{Assign, OpenMachine};
    use leaseward_state::machine::MachineProfile;
    use leaseward_state::server::{Cause, FenceLevel, ServerSpec};
    use leaseward_state::session::Incarnation;
    use leaseward_state::{ClusterMillis, Command, Entry, MachineName, ServerName, Term};

    use super::*;

    fn apply(state: &mut State, command: Command) {
        let entry = Entry {
            revision: state.revision().next(),
            term: Term(1),
            at: UnixMillis(5),
            elapsed: ClusterMillis(0),
            request: command.into(),
        };
        let applied = state.apply(&entry);
        assert!(!matches!(applied.reply, leaseward_state::Reply::Refused(_)), "{:?}", applied.reply);
    }

    fn open(state: &mut State, incarnation: u128, ttl_ms: u64, profile: MachineProfile) {
        let incarnation = Incarnation { boot_id: "b".into(), instance: incarnation };
        let machine = MachineName::new("m1").unwrap();
        apply(state, Command::OpenMachine(OpenMachine { machine, incarnation, profile, swept: false, ttl_ms }));
    }

    fn server(state: &mut State, name: &str, change: impl FnOnce(&mut ServerSpec)) -> ServerName {
        let (mut spec, server) = (Box::new(ServerSpec::new(["x"])), ServerName::new(name).unwrap());
        change(&mut spec);
        apply(state, Command::PutServer { server: server.clone(), spec, if_version: None });
        server
    }

    #[test]
    fn a_restore_waits_for_every_time_to_live_and_every_grace_that_the_backup_knows() {
        let seconds = Duration::from_secs;
        let mut state = State::default();
        assert_eq!(copies_end_within(&state), TTL + GRACE);
        let profile = MachineProfile { fence: FenceLevel::F2, ..MachineProfile::default() };
        open(&mut state, 1, 60_000, profile.clone());
        assert_eq!(copies_end_within(&state), seconds(60) + GRACE);
        // Its session is over, and a copy of that time may live.
        let pay = server(&mut state, "pay", |_| {});
        let session = *state.sessions().next().unwrap().0;
        let machine = MachineName::new("m1").unwrap();
        let assign =
            Assign { server: pay, machine, session, after: None, fence: None, cause: Cause::Started, term: Term(1) };
        apply(&mut state, Command::Assign(assign));
        open(&mut state, 2, 1_000, profile.clone());
        assert_eq!(copies_end_within(&state), seconds(60) + GRACE);
        // What an operator says of a server, and what a watchdog may take.
        server(&mut state, "mount", |spec| spec.grace_ms = Some(30_000));
        assert_eq!(copies_end_within(&state), seconds(60 + 30));
        let watchdog = MachineProfile { fence: FenceLevel::F4, watchdog_ms: Some(44_000), ..profile };
        open(&mut state, 3, 1_000, watchdog);
        server(&mut state, "disk", |spec| spec.requires_fence = FenceLevel::F4);
        assert_eq!(copies_end_within(&state), seconds(60 + 45));
    }
}
