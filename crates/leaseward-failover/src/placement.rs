//! Which machine a server should go to, and why not to the others.
//!
//! Must stay true: a pure function of the state and of what the same plan has given away already; the same state gives
//! the same answer on every member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use leaseward_state::machine::{MANAGER_LABEL, MachineProfile};
use leaseward_state::server::{
    FenceLevel, HookStep, ManagerKind, Placement, Readiness, ResourceLimits, Server, ServerSpec,
};
use leaseward_state::{MachineName, ServerName, State};

/// Why a machine is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The cluster does not know it.
    Unknown,
    /// Its agent has no session.
    NotConnected,
    /// Its agent was not heard for two renewals.
    Suspected,
    /// An operator, or the master, keeps new servers away from it.
    Cordoned(String),
    /// It cannot stop the server surely enough.
    Fence {
        /// What it has.
        has: FenceLevel,
        /// What the server requires.
        required: FenceLevel,
    },
    /// It lacks a label.
    Label {
        /// The label.
        key: String,
        /// What the server requires.
        required: String,
        /// What it has.
        has: Option<String>,
    },
    /// A server is there that must not be on the same machine.
    Apart(ServerName),
    /// The server weighs more than what is free.
    Full {
        /// What is free.
        free: u32,
        /// What the server takes.
        weight: u32,
    },
    /// It starts as many servers as it may at the same time.
    Busy(u32),
    /// The server failed there as often as it may.
    FailedThere(u32),
    /// It is run by a control script through ssh, and the server is not content with that.
    Manager,
    /// It is run by a control script, which brings up nothing around a server.
    Surrounded,
    /// The server is not allowed there.
    NotCandidate,
    /// The server does not leave its machine by itself.
    Pinned(MachineName),
}

impl Unfit {
    /// Returns whether it passes by itself within seconds.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Suspected)
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the cluster does not know it"),
            Self::NotConnected => f.write_str("its agent is not connected"),
            Self::Suspected => f.write_str("its agent was not heard for two renewals"),
            Self::Cordoned(why) => write!(f, "cordoned: {why}"),
            Self::Fence { has, required } => write!(f, "its fence level is {has}; {required} is required"),
            Self::Label { key, required, has: None } => write!(f, "label {key}={required} is required, it has none"),
            Self::Label { key, required, has: Some(has) } => {
                write!(f, "label {key}={required} is required, it has {key}={has}")
            }
            Self::Apart(other) => write!(f, "{other} is there, and must not be on the same machine"),
            Self::Full { free, weight } => write!(f, "{weight} is needed of its capacity, {free} is free"),
            Self::Busy(slots) => write!(f, "it starts {slots} servers already, as many as it may at a time"),
            Self::FailedThere(times) => write!(f, "the server failed there {times} times"),
            Self::Manager => {
                f.write_str("a control script runs it by ssh, and the server does not say manager = \"ssh\"")
            }
            Self::Surrounded => f.write_str(
                "its control script brings up no addresses, mounts, hooks or limits, and the server needs some",
            ),
            Self::NotCandidate => f.write_str("it is not one of the server's candidates"),
            Self::Pinned(machine) => write!(f, "the server waits for {machine}: it does not migrate by itself"),
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

/// What the machines carry, or are about to: by the state, and by what the same plan has given them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    machines: BTreeMap<MachineName, Carried>,
    starting: BTreeSet<ServerName>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Carried {
    servers: BTreeSet<ServerName>,
    weight: u32,
    starting: BTreeSet<ServerName>,
}

impl Load {
    /// Returns what the machines carry by the state. Who is on its way somewhere has its place there, too.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let mut load = Self::default();
        for (name, server) in state.servers() {
            let next = match &server.placement {
                Placement::Assigned(at) => {
                    load.add(&at.machine, name, server.spec.weight, !at.ready);
                    at.moving.as_ref().filter(|moving| moving.machine != at.machine)
                }
                Placement::Unplaced { next } => next.as_ref(),
                Placement::Expired(_) | Placement::Failed { .. } => None,
            };
            if let Some(next) = next {
                load.add(&next.machine, name, server.spec.weight, true);
            }
        }
        load
    }

    /// Adds a server that is given to a machine, or sent there.
    pub fn give(&mut self, machine: &MachineName, name: &ServerName, server: &Server) {
        self.add(machine, name, server.spec.weight, true);
    }

    /// Returns how many servers besides this one are on their way up.
    #[must_use]
    pub fn starting_besides(&self, name: &ServerName) -> u32 {
        u32::try_from(self.starting.len() - usize::from(self.starting.contains(name))).unwrap_or(u32::MAX)
    }

    fn add(&mut self, machine: &MachineName, name: &ServerName, weight: u32, is_starting: bool) {
        let carried = self.machines.entry(machine.clone()).or_default();
        if carried.servers.insert(name.clone()) {
            carried.weight = carried.weight.saturating_add(weight);
        }
        if is_starting {
            carried.starting.insert(name.clone());
            self.starting.insert(name.clone());
        }
    }

    /// Returns what a machine carries besides this server.
    fn besides(&self, machine: &MachineName, name: &ServerName, server: &Server) -> Carried {
        let mut carried = self.machines.get(machine).cloned().unwrap_or_default();
        if carried.servers.remove(name) {
            carried.weight = carried.weight.saturating_sub(server.spec.weight);
        }
        carried.starting.remove(name);
        carried
    }
}

/// Returns where a server could go now.
#[must_use]
pub fn choose(state: &State, load: &Load, name: &ServerName, server: &Server) -> Choice {
    let mut choice = Choice::default();
    // Someone said where to, or the machine is back: it has everything the server needs at hand.
    let (first, by_word) = match &server.placement {
        Placement::Unplaced { next } => (next.as_ref().map(|next| next.machine.clone()), next.is_some()),
        Placement::Expired(expired) => (Some(expired.machine.clone()), false),
        Placement::Assigned(_) | Placement::Failed { .. } => (None, false),
    };
    let listed = candidates(state, server);
    let names: Vec<MachineName> =
        listed.map_or_else(|| state.machines().map(|(name, _)| name.clone()).collect(), <[MachineName]>::to_vec);
    let pinned = server.last_machine.as_ref().filter(|_| !server.spec.migrates && !by_word);
    for machine in names {
        let fit = match pinned.filter(|pinned| **pinned != machine) {
            Some(pinned) => Err(Unfit::Pinned(pinned.clone())),
            None => fitness(state, load, name, server, &machine),
        };
        match fit {
            Ok(()) => choice.fit.push(machine),
            Err(why) => {
                choice.unfit.insert(machine, why);
            }
        }
    }
    match listed {
        Some(listed) => {
            for (machine, _) in state.machines().filter(|(machine, _)| !listed.contains(machine)) {
                choice.unfit.insert(machine.clone(), Unfit::NotCandidate);
            }
        }
        // The lightest first; the sort is stable and names ascend, so that every member chooses alike.
        None => choice.fit.sort_by_key(|machine| load.besides(machine, name, server).weight),
    }
    if choice.fit.is_empty() && !choice.unfit.values().any(Unfit::is_passing) {
        // Better where it failed than nowhere: its budget in the whole cluster still holds.
        let failed = choice.unfit.iter().filter(|(_, why)| matches!(why, Unfit::FailedThere(_)));
        choice.fit = failed.map(|(machine, _)| machine.clone()).collect();
    }
    if let Some(heir) = server.heir()
        && let Some(place) = choice.fit.iter().position(|machine| *machine == heir.machine)
    {
        match heir.readiness {
            Readiness::Ready => choice.fit[..=place].rotate_right(1),
            Readiness::Preparing => {}
            // Something is missing there; where nothing else is left, it may have come since.
            Readiness::Lacking(_) => choice.fit[place..].rotate_left(1),
        }
    }
    if let Some(place) = first.and_then(|first| choice.fit.iter().position(|machine| *machine == first)) {
        choice.fit[..=place].rotate_right(1);
    }
    choice
}

/// Returns the machines that may run a server, best first; `None` if all may.
#[must_use]
pub fn candidates<'a>(state: &'a State, server: &'a Server) -> Option<&'a [MachineName]> {
    let lists = [&server.spec.candidates, &state.policy().candidates];
    lists.into_iter().find(|list| !list.is_empty()).map(Vec::as_slice)
}

/// Returns why a machine could never run a server, whatever else runs there, if it could not.
///
/// # Errors
/// What it lacks.
pub fn able(spec: &ServerSpec, profile: &MachineProfile) -> Result<(), Unfit> {
    // With our agent on its far side a machine that is reached by ssh is like any other.
    let by_ssh = profile.labels.get(MANAGER_LABEL.0).is_some_and(|value| value == MANAGER_LABEL.1);
    if by_ssh && profile.fence == FenceLevel::F0 {
        if spec.manager != ManagerKind::Ssh {
            return Err(Unfit::Manager);
        }
        let hooks = spec.hooks.keys().any(|step| *step != HookStep::Fence);
        let limited = spec.limits != ResourceLimits::default();
        if hooks || limited || !spec.addresses.is_empty() || !spec.mounts.is_empty() {
            return Err(Unfit::Surrounded);
        }
    }
    // A fence hook is what F5 adds to F4, and it is the server's.
    let has = match profile.fence {
        FenceLevel::F4 if spec.hooks.contains_key(&HookStep::Fence) => FenceLevel::F5,
        level => level,
    };
    let required = spec.requires_fence;
    if has < required {
        return Err(Unfit::Fence { has, required });
    }
    for (key, required) in &spec.labels {
        let has = profile.labels.get(key);
        if has != Some(required) {
            return Err(Unfit::Label { key: key.clone(), required: required.clone(), has: has.cloned() });
        }
    }
    if let Some(free) = profile.capacity.filter(|capacity| *capacity < spec.weight) {
        return Err(Unfit::Full { free, weight: spec.weight });
    }
    Ok(())
}

fn fitness(
    state: &State,
    load: &Load,
    server_name: &ServerName,
    server: &Server,
    name: &MachineName,
) -> Result<(), Unfit> {
    let machine = state.machine(name).ok_or(Unfit::Unknown)?;
    if machine.session.is_none() {
        return Err(Unfit::NotConnected);
    }
    if machine.suspected.is_some() {
        return Err(Unfit::Suspected);
    }
    if let Some(cordon) = &machine.cordoned {
        return Err(Unfit::Cordoned(cordon.why.clone()));
    }
    able(&server.spec, &machine.profile)?;
    let carried = load.besides(name, server_name, server);
    let apart = |other: &&ServerName| {
        server.spec.apart_from.contains(other)
            || state.server(other).is_some_and(|other| other.spec.apart_from.contains(server_name))
    };
    if let Some(other) = carried.servers.iter().find(apart) {
        return Err(Unfit::Apart(other.clone()));
    }
    if let Some(capacity) = machine.profile.capacity {
        let (free, weight) = (capacity.saturating_sub(carried.weight), server.spec.weight);
        if weight > free {
            return Err(Unfit::Full { free, weight });
        }
    }
    let window = state.now().0.saturating_sub(server.spec.restart.per_ms);
    let failed = server
        .failures
        .iter()
        .filter(|failure| failure.machine == *name && failure.at.0 >= window && !failure.machine_lost)
        .count();
    if failed > server.spec.restart.in_place as usize {
        return Err(Unfit::FailedThere(failed as u32));
    }
    // Last: what passes by itself is said only where nothing else is in the way.
    let slots = machine.profile.start_slots;
    if slots > 0 && carried.starting.len() >= slots as usize {
        return Err(Unfit::Busy(slots));
    }
    Ok(())
}
