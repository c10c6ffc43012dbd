//! Which machine a server should go to, and why not to the others.
//!
//! Must stay true: a pure function of the state; the same state gives the same answer on every member.

use std::collections::BTreeMap;
use std::fmt;

use leaseward_state::server::{FenceLevel, Placement, Server};
use leaseward_state::{MachineName, ServerName, State};

/// Why a machine is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The cluster does not know it.
    Unknown,
    /// Its agent has no session.
    NotConnected,
    /// An operator keeps new servers away from it.
    Cordoned(String),
    /// It cannot stop the server surely enough.
    Fence {
        /// What it has.
        has: FenceLevel,
        /// What the server requires.
        required: FenceLevel,
    },
    /// The server failed there as often as it may.
    FailedThere(u32),
    /// The server is not allowed there.
    NotCandidate,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the cluster does not know it"),
            Self::NotConnected => f.write_str("its agent is not connected"),
            Self::Cordoned(why) => write!(f, "cordoned: {why}"),
            Self::Fence { has, required } => write!(f, "its fence level is {has}; {required} is required"),
            Self::FailedThere(times) => write!(f, "the server failed there {times} times"),
            Self::NotCandidate => f.write_str("it is not one of the server's candidates"),
        }
    }
}

/// The machines in the order in which they would be taken, and why the others are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Best first.
    pub fit: Vec<MachineName>,
    /// The others, ascending.
    pub unfit: BTreeMap<MachineName, Unfit>,
}

/// Returns where a server could go now.
#[must_use]
pub fn choose(state: &State, name: &ServerName, server: &Server) -> Choice {
    let mut choice = Choice::default();
    let listed = !server.spec.candidates.is_empty();
    let names: Vec<MachineName> =
        if listed { server.spec.candidates.clone() } else { state.machines().map(|(name, _)| name.clone()).collect() };
    for machine in names {
        match fitness(state, server, &machine) {
            Ok(()) => choice.fit.push(machine),
            Err(why) => {
                choice.unfit.insert(machine, why);
            }
        }
    }
    if listed {
        for (machine, _) in state.machines().filter(|(machine, _)| !server.spec.candidates.contains(machine)) {
            choice.unfit.insert(machine.clone(), Unfit::NotCandidate);
        }
    } else {
        // Fewest servers first; the sort is stable and names ascend, so that every member chooses alike.
        let load = load(state, name);
        choice.fit.sort_by_key(|machine| load.get(machine).copied().unwrap_or(0));
    }
    if choice.fit.is_empty() {
        // Better where it failed than nowhere: its budget in the whole cluster still holds.
        let failed: Vec<MachineName> = choice
            .unfit
            .iter()
            .filter(|(_, why)| matches!(why, Unfit::FailedThere(_)))
            .map(|(machine, _)| machine.clone())
            .collect();
        choice.fit = failed;
    }
    let first = match &server.placement {
        // Someone said where to.
        Placement::Unplaced { target } => target.clone(),
        // The machine is back: it has everything the server needs at hand.
        Placement::Expired(expired) => Some(expired.machine.clone()),
        Placement::Assigned(_) | Placement::Failed { .. } => None,
    };
    if let Some(place) = first.and_then(|first| choice.fit.iter().position(|machine| *machine == first)) {
        choice.fit[..=place].rotate_right(1);
    }
    choice
}

fn fitness(state: &State, server: &Server, name: &MachineName) -> Result<(), Unfit> {
    let machine = state.machine(name).ok_or(Unfit::Unknown)?;
    if machine.session.is_none() {
        return Err(Unfit::NotConnected);
    }
    if let Some(why) = &machine.cordoned {
        return Err(Unfit::Cordoned(why.clone()));
    }
    let (has, required) = (machine.profile.fence, server.spec.requires_fence);
    if has < required {
        return Err(Unfit::Fence { has, required });
    }
    let window = state.now().0.saturating_sub(server.spec.restart.per_ms);
    let failed = server.failures.iter().filter(|failure| failure.machine == *name && failure.at.0 >= window).count();
    if failed > server.spec.restart.in_place as usize {
        return Err(Unfit::FailedThere(failed as u32));
    }
    Ok(())
}

fn load(state: &State, except: &ServerName) -> BTreeMap<MachineName, usize> {
    let mut load = BTreeMap::new();
    for (name, server) in state.servers() {
        if let Placement::Assigned(assignment) = &server.placement
            && name != except
        {
            *load.entry(assignment.machine.clone()).or_default() += 1;
        }
    }
    load
}
