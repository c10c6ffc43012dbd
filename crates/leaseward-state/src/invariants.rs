//! What must be true of every state. Checked after each step of each test, and when a stored state is loaded.

use crate::lease::LeaseState;
use crate::server::Placement;
use crate::session::Owner;
use crate::state::{ConfigSet, State};

impl State {
    /// Returns the first invariant that does not hold, in words.
    ///
    /// # Errors
    /// A sentence that names the objects that contradict each other.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_leases()?;
        self.check_sessions()?;
        self.check_servers()?;
        self.check_machines()?;
        self.check_sets()?;
        self.check_programs()
    }

    fn check_leases(&self) -> Result<(), String> {
        for (name, lease) in &self.leases {
            match &lease.state {
                LeaseState::Held(grant) => {
                    let Some(session) = self.sessions.get(&grant.session) else {
                        return Err(format!("lease/{name} is held by session {}, which is over", grant.session));
                    };
                    if !session.leases.contains(name) {
                        return Err(format!("session {} does not know that it holds lease/{name}", session.id));
                    }
                    if grant.token.revision() > self.revision || grant.token.generation() > self.generation {
                        return Err(format!("token {} of lease/{name} is from the future", grant.token));
                    }
                }
                LeaseState::Delayed { token, .. } => {
                    if token.revision() > self.revision {
                        return Err(format!("token {token} of lease/{name} is from the future"));
                    }
                }
            }
            for pair in lease.waiters.windows(2) {
                let ordered =
                    (-i64::from(pair[0].priority), pair[0].queued) <= (-i64::from(pair[1].priority), pair[1].queued);
                if !ordered {
                    return Err(format!("the waiters of lease/{name} are out of order"));
                }
            }
            if let Some(waiter) = lease.waiters.iter().find(|w| !self.sessions.contains_key(&w.session)) {
                return Err(format!("session {} waits for lease/{name} and is over", waiter.session));
            }
        }
        Ok(())
    }

    fn check_sessions(&self) -> Result<(), String> {
        for (id, session) in &self.sessions {
            for name in &session.leases {
                let holder = self.leases.get(name).and_then(|lease| lease.grant()).map(|grant| grant.session);
                if holder != Some(*id) {
                    return Err(format!("session {id} thinks that it holds lease/{name}"));
                }
            }
            if let Owner::Machine(machine) = &session.owner
                && self.machines.get(machine).and_then(|machine| machine.session) != Some(*id)
            {
                return Err(format!("session {id} of machine/{machine} is not that machine's session"));
            }
        }
        Ok(())
    }

    fn check_servers(&self) -> Result<(), String> {
        for (name, server) in &self.servers {
            let lease = self.leases.get(&name.lease()).map(|lease| &lease.state);
            let ok = match (&server.placement, lease) {
                (Placement::Assigned(assignment), Some(LeaseState::Held(grant))) => {
                    grant.token == assignment.token
                        && grant.session == assignment.session
                        && self.machines.get(&assignment.machine).and_then(|machine| machine.session)
                            == Some(assignment.session)
                        && server.last_token == Some(assignment.token)
                }
                (Placement::Expired(expired), Some(LeaseState::Delayed { token, .. })) => *token == expired.token,
                (Placement::Unplaced { .. } | Placement::Failed { .. }, None) => true,
                _ => false,
            };
            if !ok {
                return Err(format!("server/{name} and its lease contradict each other: {:?}", server.placement));
            }
        }
        for (name, _) in &self.leases {
            if let Some(server) = name.server()
                && !self.servers.contains_key(&server)
            {
                return Err(format!("lease/{name} belongs to no server"));
            }
        }
        Ok(())
    }

    fn check_machines(&self) -> Result<(), String> {
        for (name, machine) in &self.machines {
            let Some(session) = machine.session else { continue };
            let owner = self.sessions.get(&session).map(|session| &session.owner);
            if owner != Some(&Owner::Machine(name.clone())) {
                return Err(format!("machine/{name} has session {session}, which is not its own"));
            }
        }
        Ok(())
    }

    fn check_sets(&self) -> Result<(), String> {
        for (name, set) in &self.sets {
            if set.versions.get_max().map_or(0, |(number, _)| *number) != set.head {
                return Err(format!("config/{name} lacks its newest version {}", set.head));
            }
        }
        let bytes: u64 = self.sets.values().map(ConfigSet::bytes).sum();
        if bytes != self.config_bytes {
            return Err(format!("the config sets have {bytes} bytes and are counted as {}", self.config_bytes));
        }
        Ok(())
    }

    fn check_programs(&self) -> Result<(), String> {
        for (session, program) in &self.programs {
            let set = &program.report.set;
            let owner = self.sessions.get(session).map(|session| &session.owner);
            if !matches!(owner, Some(Owner::Client(_))) || !self.sets.contains_key(set) {
                return Err(format!(
                    "a program follows config/{set} under session {session}, and one of them is not there"
                ));
            }
        }
        Ok(())
    }
}
