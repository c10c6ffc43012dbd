//! Whether a specification can work at all in this cluster, asked before it is committed. Pure.
//!
//! Must stay true: only what no waiting can mend is refused, and nothing while the cluster knows no machine yet: an
//! operator may define servers first. The plan itself never asks this.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use leaseward_state::server::{Server, ServerSpec};
use leaseward_state::{MachineName, ServerName, State};

use crate::placement::{Unfit, able};

/// Why a specification cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// No machine that the cluster knows could ever run it.
    Nowhere(BTreeMap<MachineName, Unfit>),
    /// With it, the loss of one machine could no longer be carried by the others.
    NoSpare {
        /// The machine whose loss is the worst.
        lost: MachineName,
        /// What the servers need that can go nowhere else.
        needed: u64,
        /// What the others have.
        left: u64,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere(machines) => {
                let reasons: Vec<_> = machines.iter().map(|(machine, why)| format!("{machine}: {why}")).collect();
                write!(f, "no machine could ever run it: {}", reasons.join("; "))
            }
            Self::NoSpare { lost, needed, left } => write!(
                f,
                "`weight`: if {lost} were lost, the servers that can go nowhere else would need {needed}, and the \
                 other machines have {left}"
            ),
        }
    }
}

/// Returns why the cluster could not run this, if it could not.
#[must_use]
pub fn misfit(state: &State, name: &ServerName, spec: &ServerSpec) -> Option<Misfit> {
    let unfit: BTreeMap<_, _> = known(state, spec)
        .filter_map(|machine| {
            let why = match state.machine(&machine) {
                None => Unfit::Unknown,
                Some(known) => able(spec, &known.profile).err()?,
            };
            Some((machine, why))
        })
        .collect();
    let fit = pool(state, spec);
    if fit.is_empty() && !unfit.is_empty() && state.machines().next().is_some() {
        return Some(Misfit::Nowhere(unfit));
    }
    let others = |server: &ServerName| *server != *name;
    let before = state.server(name).map(|server| &server.spec);
    let known_before = before.is_some_and(|before| without_one(state, &fit, others, Some(before)).is_some());
    // Without it there is no promise to lose; what it breaks was whole before.
    if known_before || without_one(state, &fit, others, None).is_some() {
        return None;
    }
    without_one(state, &fit, others, Some(spec))
}

/// Returns the machines that the specification speaks of.
fn known(state: &State, spec: &ServerSpec) -> impl Iterator<Item = MachineName> {
    let listed = [&spec.candidates, &state.policy().candidates].into_iter().find(|list| !list.is_empty());
    let all: Vec<MachineName> = match listed {
        Some(listed) => listed.clone(),
        None => state.machines().map(|(name, _)| name.clone()).collect(),
    };
    all.into_iter()
}

/// Returns the machines that could run it, connected or not.
fn pool(state: &State, spec: &ServerSpec) -> BTreeSet<MachineName> {
    let fits = |machine: &MachineName| state.machine(machine).is_some_and(|known| able(spec, &known.profile).is_ok());
    known(state, spec).filter(fits).collect()
}

/// Returns what would be missing if the largest machine of a pool were lost, counting the servers that can go nowhere
/// else. A pool of one machine, or with one that has no bound, promises nothing.
fn without_one(
    state: &State,
    pool: &BTreeSet<MachineName>,
    counts: impl Fn(&ServerName) -> bool,
    and: Option<&ServerSpec>,
) -> Option<Misfit> {
    let capacity = |machine: &MachineName| state.machine(machine).and_then(|known| known.profile.capacity);
    let capacities: Option<Vec<(u64, &MachineName)>> =
        pool.iter().map(|machine| Some((u64::from(capacity(machine)?), machine))).collect();
    let capacities = capacities.filter(|all| all.len() > 1)?;
    let (largest, lost) = capacities.iter().max()?;
    let left = capacities.iter().map(|(capacity, _)| capacity).sum::<u64>() - largest;
    let bound_here = |server: &Server| {
        let theirs = self::pool(state, &server.spec);
        server.spec.migrates && !theirs.is_empty() && theirs.is_subset(pool)
    };
    let others = state.servers().filter(|(name, server)| counts(name) && bound_here(server));
    let weights = others.map(|(_, server)| u64::from(server.spec.weight)).sum::<u64>();
    let needed = weights + and.filter(|spec| spec.migrates).map_or(0, |spec| u64::from(spec.weight));
    (needed > left).then(|| Misfit::NoSpare { lost: (*lost).clone(), needed, left })
}
