//! Opening what a node has on its disk: the log, the state, the snapshots.
//!
//! Must stay true: the stored state is used only if the log can take it on from there and no readable snapshot is newer; else the
//! newest snapshot is; if neither can, the node does not start. A snapshot from a leader that was not installed to its end is
//! installed here: what the core is told of the snapshot, the state and the log is of one piece.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use leaseward_state::{Generation, State};
use tokio::sync::watch;
use tracing::warn;

use crate::background;
use crate::disk::{Disk, RealDisk};
use crate::identity::{DataDir, Identity};
use crate::last_word::LastWord;
use crate::log_store::LogStore;
use crate::machine::{Machine, Published};
use crate::replica::StartError;
use crate::settings::Settings;
use crate::sled_store::SledStore;
use crate::snapshot::{SnapshotError, SnapshotFile, Snapshots};
use crate::store::{AppliedTo, StateStore};
use crate::stored::Membership;
use crate::types::{NodeId, NodeInfo};
use crate::wal::{Wal, WalError, WalIdentity, Writer};

/// What a node has on its disk.
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    /// The newest members that are known, committed or not.
    pub(crate) membership: Membership,
}

/// Opens everything. Returns what the state publishes, and the thread that keeps it on disk, too.
pub(crate) async fn stores(
    settings: &Settings,
    data: &DataDir,
    identity: &Identity,
    snapshots: &Snapshots,
    word: LastWord,
) -> Result<(Opened, watch::Receiver<Published>, Option<JoinHandle<()>>), StartError> {
    let (wal_dir, state_dir) = (data.join("wal"), data.join("state"));
    let (identity, snapshots) = (identity.clone(), snapshots.clone());
    let (segment_bytes, feature_level, fatal) =
        (settings.segment_bytes, settings.feature_level, settings.fatal.clone());
    let own = NodeInfo {
        name: settings.name.clone(),
        peer_address: settings.advertise.clone(),
        api_address: settings.api_address.clone(),
        standing: settings.standing,
        replaces: None,
    };
    let open = move || {
        let io = |what: &str| {
            let what = what.to_owned();
            move |error| StartError::Io { what, error }
        };
        let disk = log_disk(&wal_dir).map_err(io("cannot open the log"))?;
        let whose = WalIdentity { cluster: identity.cluster, node: identity.node };
        let (wal, recovered) = Wal::open(Arc::clone(&disk), whose, segment_bytes)?;
        let purged = recovered.purged.map_or(0, |purged| purged.index);
        let in_log = recovered.memberships.last_key_value().map(|(_, membership)| membership.clone());
        let writer = Writer::start(wal, disk, segment_bytes, fatal).map_err(io("cannot start the log"))?;
        let log = LogStore::new(writer, recovered).with_word(word);

        let mut store = state_store(&state_dir).map_err(io("cannot open the state"))?;
        let newest = snapshots.newest().map_err(io("cannot read the snapshots"))?;
        let newest = newest.filter(|(_, head, _)| head.applied.position.map_or(0, |at| at.index) >= purged);
        let stored = load_store(store.as_mut(), purged);
        let current = newest.as_ref().map(|(file, head, _)| (head.applied.clone(), file.clone()));
        let newest = newest
            .filter(|(_, head, _)| stored.as_ref().is_none_or(|(applied, _)| head.applied.position > applied.position));
        let installed = newest.as_ref().and_then(|(_, head, _)| head.applied.position);
        let (applied, state) = match (stored, newest) {
            (_, Some((_, head, state))) => {
                let records: Vec<_> = state.records().collect();
                store.replace(&records, &head.applied).map_err(|error| StartError::Core(error.to_string()))?;
                (head.applied, state)
            }
            (Some(stored), None) => stored,
            (None, None) if purged > 0 => {
                return Err(StartError::Log(WalError::Hole(format!(
                    "entries up to {purged} were purged, and no snapshot that covers them is readable"
                ))));
            }
            (None, None) => (AppliedTo::default(), State::new(Generation(identity.generation))),
        };
        let (applied, current) = introduce(identity.node, &own, applied, &state, current, &snapshots)
            .map_err(|error| StartError::Core(error.to_string()))?;
        if state.feature_level() > feature_level {
            return Err(StartError::Refused {
                code: "LW0601".into(),
                why: format!(
                    "the data is at feature level {}, and this release reads {feature_level}",
                    state.feature_level()
                ),
            });
        }
        // The newest that is known, committed or not: the stored state may lag behind the log.
        let membership = in_log.unwrap_or_else(|| applied.membership.membership.clone());
        let (machine, published, keeper) = Machine::new(state, applied, snapshots, current, store);
        Ok((Opened { log, machine, membership }, installed, published, keeper))
    };
    let opened = background::blocking(open).await.map_err(|error| StartError::Core(error.to_string()))?;
    let (opened, installed, published, keeper) = opened?;
    if let Some(position) = installed {
        opened.log.begin_after(position).await.map_err(|error| StartError::Core(error.to_string()))?;
    }
    Ok((opened, published, keeper))
}

fn log_disk(dir: &Path) -> io::Result<Arc<dyn Disk>> {
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        return Ok(host.log_disk(dir));
    }
    Ok(Arc::new(RealDisk::open(dir)?))
}

fn state_store(dir: &Path) -> io::Result<Box<dyn StateStore>> {
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        return Ok(host.state_store(dir));
    }
    Ok(Box::new(SledStore::open(dir)?))
}

/// Where its snapshot is, and how far the log is applied in it.
type Current = Option<(AppliedTo, SnapshotFile)>;

/// A restored cluster begins without its only node's name and addresses: nobody knew them. Nobody else knows the cluster
/// either until it says them, so they are what its settings say.
fn introduce(
    node: NodeId,
    own: &NodeInfo,
    mut applied: AppliedTo,
    state: &State,
    current: Current,
    snapshots: &Snapshots,
) -> Result<(AppliedTo, Current), SnapshotError> {
    match applied.membership.membership.nodes.get_mut(&node) {
        Some(info) if info.peer_address.is_empty() => *info = own.clone(),
        _ => return Ok((applied, current)),
    }
    // Those that join get this one.
    let file = snapshots.write(state, &applied)?;
    Ok((applied.clone(), Some((applied, file))))
}

/// Returns the stored state if the log can take it on from there.
fn load_store(store: &mut dyn StateStore, purged: u64) -> Option<(AppliedTo, State)> {
    let (applied, records) = match store.load() {
        Ok(found) => found?,
        Err(error) => {
            warn!(%error, "rebuilding the state");
            return None;
        }
    };
    let index = applied.position.map_or(0, |position| position.index);
    if index < purged {
        warn!(index, purged, "the stored state is older than the log; rebuilding it");
        return None;
    }
    match State::restore(records) {
        Ok(state) => Some((applied, state)),
        Err(error) => {
            warn!(%error, "rebuilding the state");
            None
        }
    }
}
