//! A data directory for the first voter of a restored cluster, out of a state: an identity and a snapshot, no log.
//!
//! Must stay true: it is a directory like any other, so that whatever starts a node starts this one; nothing is written
//! into a directory that holds anything; the identity comes last, so that a restore that was cut short starts nothing.
//! The voter's name and addresses are not known here: it says them itself when it starts (`open.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use leaseward_state::State;

use crate::identity::DataDir;
use crate::life::Life;
use crate::replica::StartError;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::store::AppliedTo;
use crate::stored::{LogPosition, Membership, StoredMembership};
use crate::types::{NodeId, NodeInfo, Standing};

/// The node that begins a cluster.
const FIRST: NodeId = 1;

/// Checks that a restore may write into `dir`, and makes it if it is not there.
///
/// # Errors
/// [`StartError`] with `LW0616` if anything is in it.
pub fn claimable(dir: &Path) -> Result<(), StartError> {
    let io = |error| StartError::Io { what: format!("cannot use {}", dir.display()), error };
    fs::create_dir_all(dir).map_err(io)?;
    match fs::read_dir(dir).map_err(io)?.next() {
        None => Ok(()),
        Some(_) => Err(occupied(dir)),
    }
}

fn occupied(dir: &Path) -> StartError {
    StartError::Refused { code: "LW0616".into(), why: format!("{} is not empty", dir.display()) }
}

/// Makes `dir` the data directory of the first voter of this life, with this state. Durable when it returns.
///
/// # Errors
/// [`StartError`]; then the directory must be emptied before it is tried again.
pub fn lay_down(dir: &Path, life: Life, state: &State) -> Result<(), StartError> {
    let mut data = DataDir::open(dir)?;
    if data.identity().is_some() {
        return Err(occupied(dir));
    }
    let io = |error| StartError::Io { what: "cannot write the snapshot".into(), error };
    let snapshots = Snapshots::open(&data.join("snapshots"), life.id()).map_err(io)?;
    // Of no term: whoever is elected first leads in a later one, and counts from there.
    let position = LogPosition { term: 0, node: FIRST, index: 1 };
    let nobody = NodeInfo {
        name: String::new(),
        peer_address: String::new(),
        api_address: String::new(),
        standing: Standing::Voter,
        replaces: None,
    };
    let membership = Membership { voters: vec![BTreeSet::from([FIRST])], nodes: BTreeMap::from([(FIRST, nobody)]) };
    let applied =
        AppliedTo { position: Some(position), membership: StoredMembership { at: Some(position), membership } };
    snapshots.write(state, &applied).map_err(|error| match error {
        SnapshotError::Io(error) => io(error),
        other => StartError::Core(other.to_string()),
    })?;
    data.claim(life.id(), FIRST, life.generation().0)?;
    Ok(())
}
