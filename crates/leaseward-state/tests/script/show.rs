//! What came of a step, in words that stay the same and fit on a line.

use std::fmt::{Debug, Write};

use leaseward_state::lease::LeaseState;
use leaseward_state::order::Order;
use leaseward_state::{Applied, Revision, State};

/// Returns the debug text without the names of newtypes.
pub(crate) fn plain(value: &impl Debug) -> String {
    let mut text = format!("{value:?}");
    for name in ["LeaseName", "MachineName", "ServerName", "SetName"] {
        text = unwrap(&text, name);
    }
    for name in ["FencingToken", "SessionId", "Revision", "UnixMillis", "ClusterMillis", "Term"] {
        text = unwrap(&text, name);
    }
    text
}

fn unwrap(text: &str, name: &str) -> String {
    let opening = format!("{name}(");
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&opening) {
        let inner = &rest[at + opening.len()..];
        let end = inner.find(')').expect("a newtype closes");
        out.push_str(&rest[..at]);
        out.push_str(inner[..end].trim_matches('"'));
        rest = &inner[end + 1..];
    }
    out + rest
}

pub(crate) fn applied(revision: Revision, applied: &Applied) -> String {
    let mut out = format!("@{revision} {}\n", plain(&applied.reply));
    if let leaseward_state::Reply::Refused(refusal) = &applied.reply {
        writeln!(out, "   {}: {refusal}", refusal.code()).expect("a string takes it");
    }
    for event in &applied.events {
        writeln!(out, " + {}", plain(event)).expect("a string takes it");
    }
    out
}

pub(crate) fn state(state: &State) -> String {
    let mut out = format!("revision {} now {}ms\n", state.revision(), state.now());
    for (id, session) in state.sessions() {
        let (owner, leases) = (plain(&session.owner), plain(&session.leases));
        out +=
            &format!("session {id} {owner} ttl={}ms {leases} changed @{}\n", session.ttl_ms, session.leases_revision);
    }
    for (name, machine) in state.machines() {
        let (session, boot) = (plain(&machine.session), &machine.incarnation.boot_id);
        out += &format!("machine {name} session={session} boot={boot} orders @{}", machine.orders_revision);
        out += &machine.cordoned.as_ref().map_or_else(String::new, |cordon| format!(" {}", plain(cordon)));
        if !machine.losses.is_empty() {
            out += &format!(" lost {}", plain(&machine.losses));
        }
        out += "\n";
    }
    for (name, lease) in state.leases() {
        let held = match &lease.state {
            LeaseState::Held(grant) => format!("held by {}/{} token={}", grant.session, grant.holder, grant.token),
            LeaseState::Delayed { token, delay_ms } => format!("delayed {delay_ms}ms token={token}"),
        };
        out += &format!("lease {name} {held} @{}..{}", lease.created, lease.modified);
        for waiter in &lease.waiters {
            out += &format!(" <- {}/{} priority={}", waiter.session, waiter.holder, waiter.priority);
        }
        out += "\n";
    }
    for (name, server) in state.servers() {
        let (wanted, placement) = (server.wanted, plain(&server.placement));
        out += &format!("server {name} v{} {wanted:?} {placement}", server.version);
        out += &server.paused.as_ref().map_or_else(String::new, |pause| format!(" {}", plain(pause)));
        out += "\n";
        for failure in &server.failures {
            out += &format!("  failure {}\n", plain(failure));
        }
    }
    for (name, set) in state.sets() {
        let versions: Vec<_> = set.versions.values().map(|version| (version.number, version.parent)).collect();
        let kept = match versions.as_slice() {
            [first, .., last] if versions.len() > 4 => format!("{} versions, {first:?} to {last:?}", versions.len()),
            all => format!("{all:?}"),
        };
        out += &format!("config {name} head={} {kept}\n", set.head);
        if set.spec_version > 0 {
            out += &format!("  policy v{}\n", set.spec_version);
        }
        if let Some(rollout) = &set.rollout {
            out += &format!("  {}\n", plain(rollout));
        }
        for (machine, pin) in &set.pins {
            out += &format!("  {} {}\n", plain(machine), plain(pin));
        }
        for (version, why) in &set.bad {
            out += &format!("  v{version} failed: {why}\n");
        }
    }
    for ((set, machine), sync) in state.syncs() {
        out += &format!("sync {set} {machine} {} {} @{}\n", sync.applied, plain(&sync.state), sync.reported);
    }
    for (session, program) in state.programs() {
        let (report, step) = (&program.report, program.step);
        let rejected = report.rejected.as_ref().map_or_else(String::new, |rejected| format!(" {}", plain(rejected)));
        out += &format!("program {session} {}/{} {}{rejected} step {step}", report.set, report.file, report.applied);
        out += &format!(" @{}\n", program.reported);
    }
    out
}

pub(crate) fn orders(orders: &[Order]) -> String {
    orders
        .iter()
        .map(|order| {
            let action = match &order.action {
                leaseward_state::order::Action::Run { version, paused, clients, .. } => {
                    let wakes: Vec<_> = clients.iter().map(|client| format!(" wakes {}", client.peer)).collect();
                    format!("run v{version}{}{}", if *paused { " paused" } else { "" }, wakes.concat())
                }
                leaseward_state::order::Action::Prepare { .. } => "prepare".to_owned(),
                other => format!("{other:?}"),
            };
            format!("{} token={} {action}\n", order.server, order.token)
        })
        .collect()
}
