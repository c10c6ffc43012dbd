//! Makes the objects of the API from the state: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as Span;

use leaseward_state::config::program::ProgramSync;
use leaseward_state::config::rollout::{Pin, Rollout};
use leaseward_state::config::{DriftedPath, MemberSync, SetStep, SyncState, Version};
use leaseward_state::lease::{Lease, LeaseState};
use leaseward_state::machine::Machine;
use leaseward_state::policy::{Pause, Policy};
use leaseward_state::server::{FenceEarned, Heir, Placement, Readiness, Server, ServerStatus, Wanted};
use leaseward_state::session::{Owner, Session};
use leaseward_state::state::ConfigSet;
use leaseward_state::{LeaseName, MachineName, ServerName, SessionId, SetName, State};

use crate::model::{self, Duration, ServerFile, ServerPhase, SyncPhase};

/// What the leader's timers say; empty elsewhere.
pub type Remaining = BTreeMap<SessionId, Span>;

/// Returns a lease as the API shows it.
#[must_use]
pub fn lease(state: &State, remaining: &Remaining, name: &LeaseName, lease: &Lease) -> model::Lease {
    let (grant, token) = match &lease.state {
        LeaseState::Held(grant) => (Some(grant), grant.token),
        LeaseState::Delayed { token, .. } => (None, *token),
    };
    let session = grant.and_then(|grant| state.session(grant.session));
    let holder = grant.map(|grant| match (grant.holder.as_str(), session) {
        ("", Some(session)) => session.owner.name().to_owned(),
        (holder, _) => holder.to_owned(),
    });
    model::Lease {
        name: name.to_string(),
        state: if grant.is_some() { model::LeaseState::Held } else { model::LeaseState::Delayed },
        holder,
        session: grant.map(|grant| grant.session.into()),
        token: token.into(),
        ttl: session.map(|session| Duration::from_millis(session.ttl_ms)),
        remaining: grant.and_then(|grant| remaining.get(&grant.session)).map(|left| (*left).into()),
        held_since: grant.map(|grant| grant.at.into()),
        meta: grant.map(|grant| grant.meta.clone()).unwrap_or_default(),
        waiting: lease
            .waiters
            .iter()
            .map(|waiter| model::Waiter {
                holder: waiter.holder.clone(),
                session: waiter.session.into(),
                priority: waiter.priority,
                since: waiter.queued.into(),
            })
            .collect(),
        version: lease.modified.0,
        created: lease.created.into(),
        modified: lease.modified.into(),
    }
}

/// Returns a session as the API shows it.
#[must_use]
pub fn session(state: &State, remaining: &Remaining, session: &Session) -> model::Session {
    model::Session {
        id: session.id.into(),
        name: session.owner.name().to_owned(),
        owner: match session.owner {
            Owner::Machine(_) => model::SessionOwner::Machine,
            Owner::Client(_) => model::SessionOwner::Client,
        },
        ttl: Duration::from_millis(session.ttl_ms),
        remaining: remaining.get(&session.id).map(|left| (*left).into()),
        opened: session.opened_at.into(),
        leases: held(&state.held(session)),
        version: session.leases_revision.0,
        leases_revision: session.leases_revision.into(),
    }
}

/// Returns leases with their tokens.
pub(crate) fn held(leases: &[(LeaseName, leaseward_state::FencingToken)]) -> Vec<model::HeldLease> {
    leases.iter().map(|(name, token)| model::HeldLease { name: name.to_string(), token: (*token).into() }).collect()
}

/// Returns where a server is in its life.
#[must_use]
pub fn phase(server: &Server) -> ServerPhase {
    match &server.placement {
        Placement::Failed { .. } => ServerPhase::Failed,
        Placement::Unplaced { .. } if server.wanted == Wanted::Stopped => ServerPhase::Stopped,
        Placement::Unplaced { .. } => ServerPhase::Unplaced,
        Placement::Expired(expired) if expired.fence.is_some() => ServerPhase::Fenced,
        Placement::Expired(_) => ServerPhase::Fencing,
        Placement::Assigned(_) if server.wanted == Wanted::Stopped => ServerPhase::Stopping,
        Placement::Assigned(assignment) if assignment.moving.is_some() => ServerPhase::Moving,
        Placement::Assigned(assignment) => match assignment.status {
            ServerStatus::Ordered => ServerPhase::Ordered,
            ServerStatus::Starting { .. } => ServerPhase::Starting,
            ServerStatus::Running { .. } => ServerPhase::Running,
            ServerStatus::Unhealthy { .. } => ServerPhase::Unhealthy,
            ServerStatus::Restarting { .. } => ServerPhase::Restarting,
            ServerStatus::Stopping => ServerPhase::Stopping,
            ServerStatus::Preparing { .. } => ServerPhase::Preparing,
            ServerStatus::Stuck { .. } => ServerPhase::Stuck,
        },
    }
}

/// Returns what a machine says of a server, in words, and the process.
pub(crate) fn status(status: &ServerStatus) -> (String, Option<u32>) {
    match status {
        ServerStatus::Ordered => ("ordered, nothing heard yet".into(), None),
        ServerStatus::Starting { pid } => ("starting".into(), Some(*pid)),
        ServerStatus::Running { pid } => ("running".into(), Some(*pid)),
        ServerStatus::Unhealthy { pid, why } => (format!("its checks fail: {why}"), Some(*pid)),
        ServerStatus::Restarting { why } => (format!("restarted in place: {why}"), None),
        ServerStatus::Stopping => ("stopping".into(), None),
        ServerStatus::Preparing { step } => (format!("preparing: {step}"), None),
        ServerStatus::Stuck { step, why } => (format!("dead, and stuck at {step}: {why}"), None),
    }
}

/// Returns a pause as the API shows it.
pub(crate) fn pause(pause: &Pause) -> model::Pause {
    model::Pause { reason: pause.why.clone(), until: pause.until.map(Into::into) }
}

/// Returns a policy as the API shows it.
pub(crate) fn policy(policy: &Policy) -> model::Policy {
    model::Policy {
        version: policy.version,
        candidates: policy.candidates.iter().map(ToString::to_string).collect(),
        concurrent_starts: policy.concurrent_starts,
        brake_percent: policy.brake_percent,
        brake: Duration::from_millis(policy.brake_ms),
        quarantine_losses: policy.quarantine_losses,
        quarantine_window: Duration::from_millis(policy.quarantine_window_ms),
        quarantine: Duration::from_millis(policy.quarantine_ms),
        poison_after: policy.poison_after,
        poison_within: Duration::from_millis(policy.poison_within_ms),
        voters_max: policy.voters_max,
        voters_min: policy.voters_min,
        voter_silence: Duration::from_millis(policy.voter_silence_ms),
        config_bytes_max: policy.config_bytes_max,
        maintenance: policy.maintenance.as_ref().map(pause),
    }
}

/// Returns a server as the API shows it.
#[must_use]
pub fn server(state: &State, name: &ServerName, server: &Server) -> model::Server {
    let assignment = server.assignment();
    let expired = match &server.placement {
        Placement::Expired(expired) => Some(expired),
        _ => None,
    };
    let (words, pid) = match &server.placement {
        Placement::Assigned(assignment) => status(&assignment.status),
        Placement::Unplaced { next: Some(next) } => (format!("should go to {}", next.machine), None),
        Placement::Unplaced { next: None } => ("it runs nowhere".into(), None),
        Placement::Expired(expired) if expired.fence.is_some() => {
            (format!("its copy on {} is dead", expired.machine), None)
        }
        Placement::Expired(expired) => {
            (format!("the death of its copy on {} is not proven yet", expired.machine), None)
        }
        Placement::Failed { why } => (why.clone(), None),
    };
    let target = match &server.placement {
        Placement::Unplaced { next } => next.as_ref(),
        _ => assignment.and_then(|assignment| assignment.moving.as_ref()),
    };
    let machine = assignment.map(|assignment| &assignment.machine).or(expired.map(|expired| &expired.machine));
    let token = assignment.map(|assignment| assignment.token).or(expired.map(|expired| expired.token));
    model::Server {
        name: name.to_string(),
        version: server.version,
        wanted: match server.wanted {
            Wanted::Running => model::Wanted::Running,
            Wanted::Stopped => model::Wanted::Stopped,
        },
        phase: phase(server),
        paused: state.pause_of(server).map(pause),
        machine: machine.map(ToString::to_string),
        token: token.map(Into::into),
        moving_to: target.map(|next| next.machine.to_string()),
        status: words,
        pid,
        since: assignment.map(|assignment| assignment.at.into()),
        restarts: assignment.map_or(0, |assignment| assignment.restarts),
        heir: server.heir().map(heir),
        failures: server.failures.iter().map(failure).collect(),
        last_machine: server.last_machine.as_ref().map(ToString::to_string),
        worst_case: assignment.and_then(|assignment| worst_case(state, server, &assignment.machine)),
        spec: ServerFile::from_spec(name.as_str(), &server.spec),
        created: server.created.into(),
        modified: server.modified.into(),
    }
}

/// Returns in a word how far a machine is with its preparation, and what is missing there.
pub(crate) fn readiness(readiness: &Readiness) -> (&'static str, Option<String>) {
    match readiness {
        Readiness::Preparing => ("preparing", None),
        Readiness::Ready => ("ready", None),
        Readiness::Lacking(what) => ("lacking", Some(what.clone())),
    }
}

fn heir(heir: &Heir) -> model::Heir {
    let (word, lacking) = readiness(&heir.readiness);
    model::Heir { machine: heir.machine.to_string(), readiness: word.to_owned(), lacking }
}

fn failure(failure: &leaseward_state::server::Failure) -> model::ServerFailure {
    model::ServerFailure {
        at: failure.at.into(),
        machine: failure.machine.to_string(),
        token: failure.token.into(),
        attempt: failure.attempt,
        why: failure.why.clone(),
        machine_lost: failure.machine_lost,
    }
}

/// The session's whole time with the clocks' drift of 0.1 % on both sides, and the grace of the fence.
fn worst_case(state: &State, server: &Server, machine: &MachineName) -> Option<Duration> {
    let machine = state.machine(machine)?;
    let ttl = state.session(machine.session?)?.ttl_ms;
    let earned = FenceEarned { level: machine.profile.fence, watchdog_ms: machine.profile.watchdog_ms };
    let grace = server.spec.grace_ms.or(earned.grace_ms(server.spec.requires_fence))?;
    Some(Duration::from_millis((ttl + ttl.div_ceil(500)).saturating_add(grace)))
}

/// Returns a machine as the API shows it.
#[must_use]
pub fn machine(state: &State, name: &MachineName, machine: &Machine) -> model::Machine {
    let here = |server: &Server| matches!(&server.placement, Placement::Assigned(at) if at.machine == *name);
    model::Machine {
        name: name.to_string(),
        connected: machine.session.is_some(),
        session: machine.session.map(Into::into),
        since: machine.since.into(),
        cordoned: machine.cordoned.as_ref().map(|cordon| cordon.why.clone()),
        cordon: machine.cordoned.as_ref().map(|cordon| model::CordonShown {
            reason: cordon.why.clone(),
            drains: cordon.drains,
            quarantine: cordon.quarantine,
            until: cordon.until.map(Into::into),
        }),
        suspected: machine.suspected.map(Into::into),
        losses: machine.losses.iter().map(|at| (*at).into()).collect(),
        capacity: machine.profile.capacity,
        start_slots: machine.profile.start_slots,
        labels: machine.profile.labels.clone(),
        fence: machine.profile.fence.into(),
        address: machine.profile.address.clone(),
        agent_version: machine.profile.version.clone(),
        servers: state.servers().filter(|(_, server)| here(server)).map(|(name, _)| name.to_string()).collect(),
        version: machine.modified.0,
        created: machine.created.into(),
        modified: machine.modified.into(),
    }
}

/// Returns a version of a set as the API shows it.
#[must_use]
pub(crate) fn version(set: &SetName, version: &Version) -> model::ConfigVersion {
    model::ConfigVersion {
        set: set.to_string(),
        version: version.number,
        parent: version.parent,
        manifest: version.manifest.to_string(),
        files: version.files,
        bytes: version.bytes,
        author: version.author.clone(),
        message: version.message.clone(),
        at: version.at.into(),
        revision: version.revision.into(),
    }
}

/// Returns a set as the API shows it.
#[must_use]
pub(crate) fn set(state: &State, name: &SetName, set: &ConfigSet) -> model::ConfigSet {
    let (mut members, mut in_sync) = (0, 0);
    for (machine, _) in state.members_of(set) {
        members += 1;
        in_sync += u64::from(state.sync(name, machine).is_some_and(|sync| is_in_sync(sync, set.head)));
    }
    model::ConfigSet {
        name: name.to_string(),
        version: set.head,
        newest: set.newest().map(|newest| version(name, newest)),
        policy: model::SetPolicy::from(&*set.spec),
        policy_version: set.spec_version,
        rollout: set.rollout.as_ref().map(|going| rollout(state, name, set, going)),
        pins: set.pins.iter().map(|(machine, pin)| pinned(machine.as_ref(), pin)).collect(),
        taken_back: set
            .bad
            .iter()
            .map(|(version, why)| model::TakenBack { version: *version, why: why.clone() })
            .collect(),
        versions_kept: set.versions.len() as u64,
        in_sync,
        members,
        created: set.created.into(),
        modified: set.modified.into(),
    }
}

fn rollout(state: &State, name: &SetName, set: &ConfigSet, rollout: &Rollout) -> model::RolloutView {
    let names = |machines: &BTreeSet<MachineName>| machines.iter().map(ToString::to_string).collect();
    model::RolloutView {
        version: rollout.version,
        base: rollout.base,
        released: names(&rollout.released),
        failed: names(&state.failed_members(name, rollout)),
        members: state.members_of(set).count() as u64,
        halted: rollout.halted.clone(),
        stepped: rollout.stepped_at.into(),
    }
}

fn pinned(machine: Option<&MachineName>, pin: &Pin) -> model::PinView {
    model::PinView {
        machine: machine.map(ToString::to_string),
        version: pin.version,
        by: pin.by.clone(),
        why: pin.why.clone(),
    }
}

/// Returns whether a member has the newest version as it was published.
pub(crate) fn is_in_sync(sync: &MemberSync, head: u64) -> bool {
    sync.applied == head && !matches!(sync.state, SyncState::Drifted { .. })
}

/// Returns in words which files were changed by hand, whose they are now, and since when.
pub(crate) fn drifted(paths: &[DriftedPath], all: u64) -> String {
    let named = |drift: &DriftedPath| match drift.at {
        Some(at) => format!("{drift} at {}", model::Time::from(at)),
        None => drift.to_string(),
    };
    let named: Vec<String> = paths.iter().map(named).collect();
    let more = all.saturating_sub(paths.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// Returns how far a program is with a file of a set.
#[must_use]
pub(crate) fn program(state: &State, set: &ConfigSet, session: SessionId, sync: &ProgramSync) -> model::ProgramSync {
    let report = &sync.report;
    let phase = match (&report.rejected, set.for_programs()) {
        (Some(_), _) => SyncPhase::Rejected,
        (None, Some(version)) if version.number != report.applied => SyncPhase::Behind,
        (None, _) => SyncPhase::Applied,
    };
    model::ProgramSync {
        name: state.session(session).map_or_else(String::new, |session| session.owner.name().to_owned()),
        session: session.into(),
        file: report.file.clone(),
        applied: report.applied,
        phase,
        version: report.rejected.as_ref().map(|rejected| rejected.version),
        why: report.rejected.as_ref().map(|rejected| rejected.why.clone()),
        at: sync.at.into(),
    }
}

/// Returns how far a machine is with a set.
#[must_use]
pub(crate) fn member(
    state: &State,
    set_name: &SetName,
    set: &ConfigSet,
    name: &MachineName,
    machine: &Machine,
) -> model::MemberSync {
    let sync = state.sync(set_name, name);
    let wanted = state.wanted_version(set_name, set, name, machine);
    let pinned = set.pin_of(name);
    let mut member = model::MemberSync {
        machine: name.to_string(),
        connected: machine.session.is_some(),
        applied: sync.map_or(0, |sync| sync.applied),
        wanted: wanted.as_ref().and_then(|wanted| wanted.live).map(|version| version.number),
        pinned: pinned.is_some(),
        pin: pinned.map(|pin| self::pinned(set.pins.contains_key(&Some(name.clone())).then_some(name), pin)),
        running: None,
        phase: SyncPhase::Behind,
        version: None,
        done: None,
        total: None,
        eta: None,
        why: None,
        paths: Vec::new(),
        at: sync.map(|sync| sync.at.into()),
    };
    if pinned.is_some_and(|pin| pin.version.is_none()) {
        member.phase = SyncPhase::Disabled;
        return member;
    }
    let Some(sync) = sync else { return member };
    member.phase = match &sync.state {
        // It may not have heard of the version that it should have yet.
        SyncState::Applied if member.wanted.is_some_and(|wanted| sync.applied != wanted) => SyncPhase::Behind,
        SyncState::Applied => SyncPhase::Applied,
        SyncState::Behind => SyncPhase::Behind,
        SyncState::Fetching { version, done, total, elapsed_ms } => {
            member.version = Some(*version);
            (member.done, member.total) = (Some(*done), Some(*total));
            let left = total.saturating_sub(*done);
            member.eta = (*done > 0).then(|| Duration::from_millis(elapsed_ms.saturating_mul(left) / done));
            SyncPhase::Fetching
        }
        SyncState::OnDisk { version } => {
            member.version = Some(*version);
            SyncPhase::OnDisk
        }
        SyncState::Rejected { version, why } => {
            member.version = Some(*version);
            member.why = Some(why.clone());
            SyncPhase::Rejected
        }
        SyncState::Drifted { paths, all } => {
            member.why = Some(drifted(paths, *all));
            member.paths = paths.iter().map(|drift| drift.path.clone()).collect();
            SyncPhase::Drifted
        }
        SyncState::Draining => SyncPhase::Draining,
        SyncState::Disabled => SyncPhase::Disabled,
        SyncState::Running { version, step, command, elapsed_ms, timeout_ms } => {
            member.version = Some(*version);
            let (what, phase) = match step {
                SetStep::Check => ("check", SyncPhase::Behind),
                SetStep::Reload => ("reload", SyncPhase::OnDisk),
            };
            let since = sync.at.0.saturating_sub(*elapsed_ms);
            member.running = Some(model::RunningStep {
                what: what.to_owned(),
                command: command.clone(),
                since: model::Time::from_unix_millis(since),
                lasting: Duration::from_millis(leaseward_raft::clock::wall_millis().saturating_sub(since)),
                timeout: Duration::from_millis(*timeout_ms),
            });
            phase
        }
    };
    member
}
