//! What probes, load balancers and Prometheus ask. All of it is answered from this node's own knowledge.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use leaseward_state::config::SyncState;
use leaseward_state::propose::Propose;
use leaseward_state::state::ConfigSet;
use leaseward_state::{MachineName, ServerName, SetName, State as Clustered};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Consistency, Fresh, Nothing, Params, name, not_found};
use crate::model::{ServerHealth, ServerPhase};
use crate::problem::{self, Code};
use crate::routes::cluster::count;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(server)).routes(routes!(metrics))
}

/// Whether the process answers.
#[utoipa::path(get, path = "/livez", responses((status = 200, body = String, content_type = "text/plain")))]
async fn livez() -> &'static str {
    "ok\n"
}

/// Whether this node takes part and knows a leader.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = String, content_type = "text/plain")))]
async fn readyz(State(api): State<Api>) -> Result<String, Fault> {
    if let Some(why) = api.replica.status().quarantined {
        return Err(problem::with_code("LW0603", why).into());
    }
    match api.leader_name() {
        Some(leader) => Ok(format!("ok, {leader} leads\n")),
        None => Err(problem::of(Code::NoLeader, "this node knows no leader").into()),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HealthParams {
    /// 200 only if it runs on this machine.
    #[serde(default)]
    machine: Option<String>,
}

/// 200 only while a server passes its checks, for load balancers. What the answering node knows, unless the
/// `consistency` says more.
#[utoipa::path(
    get, path = "/v1/health/server/{name}", params(("name" = String, Path), HealthParams),
    responses((status = 200, body = ServerHealth), (status = 503, body = ServerHealth, description = "It does not"))
)]
async fn server(
    State(api): State<Api>,
    fresh: Fresh,
    Path(server): Path<String>,
    Params(params): Params<HealthParams>,
) -> Result<At<Response>, Fault> {
    let server: ServerName = name(&server)?;
    let state = api.read(&fresh.or(Consistency::Stale)).await?;
    let found = state.server(&server).ok_or_else(|| not_found("server", &server))?;
    let object = view::server(&state, &server, found);
    let is_there = params.machine.is_none() || params.machine == object.machine;
    let status =
        if object.phase == ServerPhase::Running && is_there { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let health =
        ServerHealth { server: server.to_string(), phase: object.phase, machine: object.machine, token: object.token };
    Ok(At(state.revision(), (status, Json(health)).into_response()))
}

/// Metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics(State(api): State<Api>, Params(Nothing {}): Params<Nothing>) -> Response {
    let status = api.replica.status();
    let mut page = Exposition::default();
    page.gauge("leaseward_raft_term", "The Raft term", [("", status.term)]);
    page.gauge(
        "leaseward_raft_is_leader",
        "Whether this node leads",
        [("", u64::from(api.replica.leading().is_some()))],
    );
    page.gauge("leaseward_raft_applied_index", "The last entry applied", [("", status.applied_index)]);
    page.gauge("leaseward_raft_last_index", "The last entry of the log", [("", status.last_index)]);
    page.counter("leaseward_storage_log_syncs_total", "Syncs of the log", status.log_syncs);
    let wall = leaseward_raft::clock::wall_millis() / 1_000;
    page.gauge("leaseward_wall_clock_seconds", "What this node's wall clock says, since 1970", [("", wall)]);
    of_state(&mut page, &api.here());
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, page.0).into_response()
}

fn of_state(page: &mut Exposition, state: &Clustered) {
    let labelled = |label: &str, counts: std::collections::BTreeMap<String, u64>| {
        counts.into_iter().map(|(word, count)| (format!("{{{label}=\"{word}\"}}"), count)).collect::<Vec<_>>()
    };
    let leases = count(state.leases().map(|(_, lease)| if lease.grant().is_some() { "held" } else { "delayed" }));
    let servers = count(state.servers().map(|(_, server)| view::phase(server).as_str()));
    let machines = count(state.machines().map(|(_, machine)| match machine.session {
        Some(_) => "connected",
        None => "lost",
    }));
    page.gauge("leaseward_revision", "The revision of this node's state", [("", state.revision().0)]);
    page.gauge("leaseward_sessions", "Open sessions", [("", state.sessions().count() as u64)]);
    page.gauge("leaseward_leases", "Leases by state", labelled("state", leases));
    page.gauge("leaseward_servers", "Servers by phase", labelled("phase", servers));
    page.gauge("leaseward_machines", "Machines by state", labelled("state", machines));
    page.gauge("leaseward_answers_kept", "Answers kept for late retries", [("", state.answers_kept() as u64)]);
    page.gauge("leaseward_events_kept", "Events kept in the ledger", [("", state.events_kept() as u64)]);
    page.gauge("leaseward_config_sets", "Config sets", [("", state.sets().count() as u64)]);
    let versions = state.sets().map(|(name, set)| (format!("{{set=\"{name}\"}}"), set.head));
    page.gauge("leaseward_config_version", "The newest version", versions);
    let mut members = std::collections::BTreeMap::new();
    for (name, set) in state.sets() {
        for (at, machine) in state.members_of(set) {
            let phase = view::member(state, name, set, at, machine).phase;
            *members.entry(format!("{{set=\"{name}\",state=\"{}\"}}", phase.as_str())).or_insert(0) += 1;
        }
    }
    page.gauge("leaseward_config_members", "Members of each config set by what they do", members);
    let slowest = state.sets().filter_map(|(name, set)| {
        let took = synced_within(state, name, set)?;
        Some((format!("{{set=\"{name}\"}}"), took.as_secs_f64()))
    });
    let help =
        "From the newest version to the last member so far that has it, by the clocks of those who wrote both down";
    page.gauge("leaseward_config_sync_seconds", help, slowest);
}

/// Returns how long the slowest member took that has the newest version; `None` while nobody has it.
fn synced_within(state: &Clustered, name: &SetName, set: &ConfigSet) -> Option<Duration> {
    let newest = set.newest()?;
    let took = |machine: &MachineName| {
        let sync = state.sync(name, machine)?;
        let is_there = sync.applied == newest.number && matches!(sync.state, SyncState::Applied);
        is_there.then(|| Duration::from_millis(sync.at.0.saturating_sub(newest.at.0)))
    };
    state.members_of(set).filter_map(|(machine, _)| took(machine)).max()
}

/// Prometheus' text form.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn gauge<L: AsRef<str>, V: Display>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (L, V)>) {
        self.head(name, help, "gauge");
        for (labels, value) in values {
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "{name}{} {value}", labels.as_ref());
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }
}
