//! The cluster at a glance, and its own description.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use leaseward_state::State as Clustered;
use leaseward_state::config::SyncState;
use leaseward_state::server::FenceLevel;
use serde_json::Value;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Consistency, Fresh, Nothing, Params};
use crate::limits::STATUS_READ_WITHIN;
use crate::model::{ClusterStatus, Count, Health, Node, NodeRole, ServerPhase};
use crate::routes::nodes::nodes;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(openapi))
}

/// How the cluster is. Answered without a leader too, from what the answering node knows.
#[utoipa::path(get, path = "/v1/cluster", responses((status = 200, body = ClusterStatus)))]
async fn status(
    State(api): State<Api>,
    fresh: Fresh,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Json<ClusterStatus>>, Fault> {
    let stale = fresh.consistency() == Consistency::Stale;
    let here = api.read_here(&fresh)?;
    let read = async {
        match stale {
            true => None,
            false => timeout(STATUS_READ_WITHIN, api.read(&fresh)).await.ok().and_then(Result::ok),
        }
    };
    let (state, nodes) = tokio::join!(read, nodes(&api));
    let answers = state.is_some() || (stale && api.replica.leader().is_some());
    let state = state.unwrap_or(here);
    let status = api.replica.status();
    let leader = api.leader_name().filter(|_| answers);
    let cluster = format!("{:032x}", api.replica.cluster());
    Ok(At(state.revision(), Json(summary(cluster, &state, nodes, leader, status.term))))
}

/// Returns the whole picture: pure.
pub(crate) fn summary(
    cluster: String,
    state: &Clustered,
    nodes: Vec<Node>,
    leader: Option<String>,
    term: u64,
) -> ClusterStatus {
    let (voters, learners): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| matches!(node.role, NodeRole::Leader | NodeRole::Voter));
    let warnings = warnings(state, &voters, &learners);
    let (health, sentence) = health(&voters, leader.as_deref(), &warnings);
    let mut in_sync = Count::default();
    for ((set, _), sync) in state.syncs() {
        in_sync.all += 1;
        in_sync.of += u64::from(state.set(set).is_some_and(|set| view::is_in_sync(sync, set.head)));
    }
    ClusterStatus {
        cluster,
        health,
        sentence,
        leader,
        term,
        revision: state.revision().into(),
        voters,
        learners,
        machines: count(state.machines().map(|(_, machine)| match (&machine.session, &machine.cordoned) {
            (None, _) => "lost",
            (Some(_), Some(_)) => "cordoned",
            (Some(_), None) => "connected",
        })),
        leases: count(state.leases().map(|(_, lease)| if lease.grant().is_some() { "held" } else { "delayed" })),
        sessions: state.sessions().count() as u64,
        servers: count(state.servers().map(|(_, server)| view::phase(server).as_str())),
        sets: state.sets().count() as u64,
        in_sync,
        warnings,
    }
}

pub(crate) fn count<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

fn health(voters: &[Node], leader: Option<&str>, warnings: &[String]) -> (Health, String) {
    let (all, down) = (voters.len(), voters.iter().filter(|node| !node.up).count());
    let Some(leader) = leader else {
        return (Health::Down, format!("nobody leads: {down} of {all} voters do not answer; nothing can be committed"));
    };
    let spare = (all.saturating_sub(1) / 2).saturating_sub(down);
    if down > 0 {
        let room = match spare {
            0 => "no further loss allowed".to_owned(),
            spare => format!("{spare} more may fail"),
        };
        return (Health::Degraded, format!("{down} of {all} voters down, {room}"));
    }
    match warnings.len() {
        0 => (Health::Ok, format!("all {all} voters up, {leader} leads, {spare} may fail")),
        1 => (Health::Degraded, warnings[0].clone()),
        more => (Health::Degraded, format!("{more} things need a look, first: {}", warnings[0])),
    }
}

fn warnings(state: &Clustered, voters: &[Node], others: &[Node]) -> Vec<String> {
    let mut warnings = Vec::new();
    for node in voters.iter().filter(|node| !node.up) {
        match &node.quarantined {
            Some(why) => warnings.push(format!("voter {} takes no part: {why}", node.name)),
            None => warnings.push(format!("voter {} does not answer", node.name)),
        }
    }
    for node in others.iter().filter(|node| !node.up) {
        warnings.push(format!("node {} does not answer; it does not vote", node.name));
    }
    warnings.extend(missing_votes(voters, others, state.policy().voters_max));
    for (name, machine) in state.machines().filter(|(_, machine)| machine.session.is_none()) {
        warnings.push(format!("machine {name} is lost since {}", crate::model::Time::from(machine.since)));
    }
    if let Some(pause) = &state.policy().maintenance {
        let until = pause.until.map_or_else(String::new, |until| format!(" until {}", crate::model::Time::from(until)));
        warnings.push(format!("maintenance{until}: nothing is moved or restarted: {}", pause.why));
    }
    let quarantined = |machine: &leaseward_state::machine::Machine| {
        machine.cordoned.as_ref().filter(|cordon| cordon.quarantine).map(|cordon| cordon.why.clone())
    };
    for (name, why) in state.machines().filter_map(|(name, machine)| Some((name, quarantined(machine)?))) {
        warnings.push(format!("machine {name} gets no server: {why}"));
    }
    for (name, server) in state.servers() {
        if let Some(at) = server.assignment().filter(|at| at.fence.level == FenceLevel::F0) {
            warnings
                .push(format!("server {name} is on {}, where nothing ends it in time (fence level F0)", at.machine));
        }
        match view::phase(server) {
            ServerPhase::Stuck => {
                let status = view::server(state, name, server).status;
                warnings.push(format!("server {name}: {status}"));
            }
            ServerPhase::Failed => {
                warnings.push(format!("server {name} failed: {}", view::server(state, name, server).status));
            }
            ServerPhase::Unhealthy => warnings.push(format!("server {name} does not pass its checks")),
            ServerPhase::Fencing => {
                warnings.push(format!("server {name} waits for the proof that its last copy is dead"));
            }
            ServerPhase::Unplaced => warnings.push(format!("server {name} has no machine")),
            _ => {}
        }
    }
    for ((set, machine), sync) in state.syncs() {
        match &sync.state {
            SyncState::Rejected { version, why } => {
                warnings.push(format!("config {set} v{version} was rejected by {machine}: {why}"));
            }
            SyncState::Drifted { .. } => warnings.push(format!("config {set} was changed by hand on {machine}")),
            _ => {}
        }
    }
    warnings
}

/// Says which nodes should vote and do not yet: fewer may fail than there are nodes for.
fn missing_votes(voters: &[Node], others: &[Node], voters_max: u32) -> Option<String> {
    let waiting: Vec<_> = others.iter().filter(|node| node.up && node.role == NodeRole::Standby).collect();
    let may_vote = (voters.len() + waiting.len()).min(voters_max as usize);
    // An even number of voters bears no more losses than one less.
    let odd = may_vote.saturating_sub(1) | 1;
    let names: Vec<_> = waiting.iter().map(|node| node.name.as_str()).collect();
    (!waiting.is_empty() && odd > voters.len())
        .then(|| format!("only {} of {odd} voters vote so far: waiting for {}", voters.len(), names.join(" and ")))
}

/// Describes this API.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
async fn openapi(Extension(document): Extension<Arc<Value>>, Params(Nothing {}): Params<Nothing>) -> Json<Value> {
    Json(Value::clone(&document))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: NodeRole, up: bool) -> Node {
        Node {
            id: 1,
            name: name.into(),
            role,
            witness: false,
            up,
            lag: None,
            applied: None,
            version: None,
            feature_level: None,
            quarantined: None,
            peer_address: String::new(),
            api_address: String::new(),
            answered_in: None,
        }
    }

    /// `1` votes, `2s` stands by, `3sx` does so and does not answer, `4l` learns only.
    fn says(text: &str) -> String {
        let node = |word: &str| {
            let role = match (word.contains('s'), word.contains('l')) {
                (true, _) => NodeRole::Standby,
                (_, true) => NodeRole::Learner,
                _ => NodeRole::Voter,
            };
            node(&format!("n{}", &word[..1]), role, !word.contains('x'))
        };
        let status =
            summary(String::new(), &Clustered::default(), text.split(' ').map(node).collect(), Some("n1".into()), 1);
        format!("{:?}: {}", status.health, status.sentence)
    }

    #[test]
    fn nodes_that_should_vote_and_do_not_yet_are_missed() {
        for (seen, expected) in [
            ("1", "Ok: all 1 voters up, n1 leads, 0 may fail"),
            ("1 2s", "Ok: all 1 voters up, n1 leads, 0 may fail"),
            ("1 2s 3s", "Degraded: only 1 of 3 voters vote so far: waiting for n2 and n3"),
            ("1 2 3s", "Degraded: only 2 of 3 voters vote so far: waiting for n3"),
            ("1 2s 3l", "Ok: all 1 voters up, n1 leads, 0 may fail"),
            ("1 2 3 4s", "Ok: all 3 voters up, n1 leads, 1 may fail"),
            ("1 2 3 4 5 6s 7s", "Ok: all 5 voters up, n1 leads, 2 may fail"),
            ("1 2 3x 4s", "Degraded: 1 of 3 voters down, no further loss allowed"),
            ("1 2s 3sx", "Degraded: node n3 does not answer; it does not vote"),
        ] {
            assert_eq!(says(seen), expected, "{seen}");
        }
    }
}
