//! The policy of the cluster, and maintenance.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_state::policy::Pause;
use leaseward_state::{Command, MachineName, UnixMillis, policy};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write, name};
use crate::model::{BeginPause, Duration, Policy};
use crate::problem::{self, Code};
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get, put)).routes(routes!(begin, end))
}

/// Returns the policy of the cluster.
#[utoipa::path(get, path = "/v1/policy", responses((status = 200, body = Policy)))]
async fn get(State(api): State<Api>, fresh: Fresh, Params(Nothing {}): Params<Nothing>) -> Result<At<Response>, Fault> {
    let state = api.read(&fresh).await?;
    Ok(shown(&state))
}

fn shown(state: &leaseward_state::State) -> At<Response> {
    At(state.revision(), tagged(StatusCode::OK, state.policy().version, view::policy(state.policy())))
}

/// Replaces the policy of the cluster.
#[utoipa::path(put, path = "/v1/policy", request_body = Policy, responses((status = 200, body = Policy)))]
async fn put(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Policy>,
) -> Result<At<Response>, Fault> {
    if body.brake_percent > 100 {
        return Err(problem::of(Code::Invalid, "`brake_percent` is at most 100").into());
    }
    let candidates: Result<Vec<MachineName>, Fault> = body.candidates.iter().map(|machine| name(machine)).collect();
    let policy = policy::Policy {
        version: 0,
        candidates: candidates?,
        concurrent_starts: body.concurrent_starts,
        brake_percent: body.brake_percent,
        brake_ms: body.brake.millis(),
        quarantine_losses: body.quarantine_losses,
        quarantine_window_ms: body.quarantine_window.millis(),
        quarantine_ms: body.quarantine.millis(),
        poison_after: body.poison_after,
        poison_within_ms: body.poison_within.millis(),
        voters_max: body.voters_max,
        voters_min: body.voters_min,
        voter_silence_ms: body.voter_silence.millis(),
        config_bytes_max: body.config_bytes_max,
        maintenance: body.maintenance.map(|pause| Pause { why: pause.reason, until: pause.until.map(Into::into) }),
    };
    replace(&api, &write, policy, write.version()).await
}

async fn replace(
    api: &Api,
    write: &Write,
    policy: policy::Policy,
    if_version: Option<u64>,
) -> Result<At<Response>, Fault> {
    api.commit(write, 0, Vec::new(), Command::PutPolicy { policy: Box::new(policy), if_version }).await?;
    Ok(shown(&api.here()))
}

/// Begins maintenance: nothing is moved or restarted until it ends. Leases and fences go on.
#[utoipa::path(
    post, path = "/v1/maintenance", request_body = BeginPause, responses((status = 200, body = Policy))
)]
async fn begin(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<BeginPause>,
) -> Result<At<Response>, Fault> {
    write.without_version()?;
    maintain(&api, &write, Some(Pause { why: body.reason, until: body.lasting.map(from_now) })).await
}

/// Ends maintenance.
#[utoipa::path(delete, path = "/v1/maintenance", responses((status = 200, body = Policy)))]
async fn end(State(api): State<Api>, Params(Nothing {}): Params<Nothing>, write: Write) -> Result<At<Response>, Fault> {
    write.without_version()?;
    maintain(&api, &write, None).await
}

/// Changes nothing but the maintenance; somebody else's change in between is a conflict, and retryable.
async fn maintain(api: &Api, write: &Write, maintenance: Option<Pause>) -> Result<At<Response>, Fault> {
    let known = api.read_now().await?.policy().clone();
    let version = known.version;
    replace(api, write, policy::Policy { maintenance, ..known }, Some(version)).await
}

/// Returns the moment after so long, by this node's wall clock.
pub(crate) fn from_now(lasting: Duration) -> UnixMillis {
    UnixMillis(leaseward_raft::clock::wall_millis().saturating_add(lasting.millis()))
}
