//! What a machine's agent should do: derived from the state, never stored.
//!
//! Must stay true: an order is a hint. The agent carries it out only under a renewal that a quorum confirmed for
//! exactly its token; a stale order is refused there. Orders are level-triggered: the list is the whole of what the
//! machine should run, so a lost or repeated order costs nothing.

use serde::{Deserialize, Serialize};

use crate::name::{MachineName, ServerName};
use crate::server::{Connection, Placement, Server, ServerSpec, Wanted};
use crate::state::State;
use crate::token::FencingToken;

/// What an agent should do with one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The server.
    pub server: ServerName,
    /// The token under which the machine may act.
    pub token: FencingToken,
    /// What to do.
    pub action: Action,
}

/// What to do with a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Keep it running as this version says.
    Run {
        /// Counts the specifications.
        version: u64,
        /// How.
        spec: Box<ServerSpec>,
        /// Whether it is left as it is when it ends.
        paused: bool,
        /// Clients of the copy before, to be woken.
        clients: Vec<Connection>,
    },
    /// Stop it and prove it.
    Stop {
        /// It may take this long, in milliseconds.
        grace_ms: u64,
    },
    /// Its lease is over: kill it and prove it.
    Kill,
    /// Another machine runs it and is not heard: make ready, and touch nothing that is its owner's. The token is that
    /// of the other machine's copy.
    Prepare {
        /// How it would run.
        spec: Box<ServerSpec>,
    },
}

impl State {
    fn preparation(&self, name: &ServerName, server: &Server, machine: &MachineName) -> Option<Order> {
        let heir = server.heir().filter(|heir| heir.machine == *machine && server.wanted == Wanted::Running)?;
        let action = Action::Prepare { spec: Box::new(server.spec.clone()) };
        Some(Order { server: name.clone(), token: heir.token, action })
    }

    /// Returns everything the machine's agent should do now, by ascending server names.
    #[must_use]
    pub fn orders(&self, machine: &MachineName) -> Vec<Order> {
        self.servers()
            .filter_map(|(name, server)| match &server.placement {
                Placement::Assigned(assignment) if assignment.machine == *machine => {
                    let stop = server.wanted == Wanted::Stopped || assignment.moving.is_some();
                    let action = if stop {
                        Action::Stop { grace_ms: server.spec.stop_grace_ms }
                    } else {
                        let (version, spec) = (server.version, Box::new(server.spec.clone()));
                        let (paused, clients) = (self.pause_of(server).is_some(), server.clients.clone());
                        Action::Run { version, spec, paused, clients }
                    };
                    Some(Order { server: name.clone(), token: assignment.token, action })
                }
                Placement::Expired(expired) if expired.machine == *machine && expired.fence.is_none() => {
                    Some(Order { server: name.clone(), token: expired.token, action: Action::Kill })
                }
                _ => self.preparation(name, server, machine),
            })
            .collect()
    }
}
