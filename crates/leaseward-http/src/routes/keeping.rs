//! How a config set is kept on its members: its policy, pins, rollouts, and members that begin anew.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use leaseward_state::command::Condition;
use leaseward_state::config::rollout::{Pin, Steer};
use leaseward_state::config::spec::{Layout, SetHook, SetSpec};
use leaseward_state::{Command, MachineName, Revision, SetName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Consistency, Fresh, Nothing, Params, Write, name, not_found};
use crate::limits::PUBLISH_TRIES;
use crate::model::{ConfigSet, MemberSync, PinView, Resync, SetPolicy, SteerRollout, SteerWord, SyncPhase, Unpin};
use crate::problem::{self, Code};
use crate::routes::publish::content;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(get_policy, put_policy))
        .routes(routes!(pin))
        .routes(routes!(unpin))
        .routes(routes!(resync))
        .routes(routes!(steer))
        .routes(routes!(member))
}

/// Returns how a set is kept on its members. Its tag is the policy's own, not the one of the set's content.
#[utoipa::path(
    get, path = "/v1/configs/{set}/policy", params(("set" = String, Path)), responses((status = 200, body = SetPolicy))
)]
async fn get_policy(
    State(api): State<Api>,
    fresh: Fresh,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    let state = api.read(&fresh).await?;
    let found = state.set(&set).ok_or_else(|| not_found("config", &set))?;
    Ok(At(state.revision(), tagged(StatusCode::OK, found.spec_version, SetPolicy::from(&*found.spec))))
}

/// Says how a set is kept on its members. A set that does not exist is made, without a version.
#[utoipa::path(
    put, path = "/v1/configs/{set}/policy", params(("set" = String, Path)), request_body = SetPolicy,
    responses((status = 200, body = SetPolicy))
)]
async fn put_policy(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<SetPolicy>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    let spec = SetSpec::from(&body);
    leaseward_sync::patterns::Patterns::new(&spec.ignore)
        .map_err(|error| problem::of(Code::Invalid, format!("`ignore`: {error}")))?;
    if spec.layout == Layout::Files && spec.check.as_ref().is_some_and(|check| !names_tree(check)) {
        // Every member would refuse every version.
        let detail = "`layout` is \"files\", so the set's own path has the old files while `check` runs, and the new version stands \
                      as a whole at {tree} only: name that in `check.command`";
        return Err(problem::of(Code::Invalid, detail).into());
    }
    let revision = keep_so(&api, &write, &set, spec).await?;
    let state = api.here();
    let found = state.set(&set).ok_or_else(|| not_found("config", &set))?;
    Ok(At(revision, tagged(StatusCode::OK, found.spec_version, SetPolicy::from(&*found.spec))))
}

fn names_tree(check: &SetHook) -> bool {
    check.command.iter().any(|word| word.contains("{tree}"))
}

/// Commits how a set is kept. Where it forgets versions by that, no version may come between the look whether what stays
/// can be made, and the entry.
async fn keep_so(api: &Api, write: &Write, set: &SetName, spec: SetSpec) -> Result<Revision, Fault> {
    for step in 0.. {
        let now = api.read_now().await?;
        let found = now.set(set);
        let known = found.map_or(0, |found| found.spec_version);
        let mut conditions = Vec::new();
        if found.is_some_and(|found| spec.keep_versions < found.spec.keep_versions) && !write.dry_run {
            let newest = api.content.may_keep(set.clone(), spec.keep_versions).await.map_err(content)?;
            conditions.push(Condition::Set(set.clone(), newest));
        }
        // Whether it makes fewer of them is known for this policy only.
        let if_version = write.version().or(Some(known));
        let command = Command::PutSet { set: set.clone(), spec: Box::new(spec.clone()), if_version };
        match api.commit(write, step, conditions, command).await {
            Ok((revision, _)) => return Ok(revision),
            // Another policy or version came in between; what the caller asked for himself is his.
            Err(Fault::Problem(problem))
                if problem.code == "LW0412"
                    && write.version().is_none_or(|asked| asked == known)
                    && step < PUBLISH_TRIES => {}
            Err(fault) => return Err(fault),
        }
    }
    Err(problem::with_code("LW0607", "no policy was put").into())
}

async fn change(api: &Api, write: &Write, set: &SetName, command: Command) -> Result<At<Json<ConfigSet>>, Fault> {
    write.without_version()?;
    let (revision, _) = api.commit(write, 0, Vec::new(), command).await?;
    let state = api.here();
    let found = state.set(set).ok_or_else(|| not_found("config", set))?;
    Ok(At(revision, Json(view::set(&state, set, found))))
}

fn machine(text: Option<&String>) -> Result<Option<MachineName>, Fault> {
    text.map(|text| name(text)).transpose()
}

/// Keeps a member of a set, or all of them, at a version, or at what is there.
#[utoipa::path(
    post, path = "/v1/configs/{set}/pin", params(("set" = String, Path)), request_body = PinView,
    responses((status = 200, body = ConfigSet))
)]
async fn pin(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<PinView>,
) -> Result<At<Json<ConfigSet>>, Fault> {
    let set: SetName = name(&set)?;
    let machine = machine(body.machine.as_ref())?;
    let pin = Pin { version: body.version, by: body.by, why: body.why };
    change(&api, &write, &set, Command::PinSet { set: set.clone(), machine, pin: Some(pin) }).await
}

/// Lets a member of a set, or all of them, go on to the newest version.
#[utoipa::path(
    post, path = "/v1/configs/{set}/unpin", params(("set" = String, Path)), request_body = Unpin,
    responses((status = 200, body = ConfigSet))
)]
async fn unpin(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Unpin>,
) -> Result<At<Json<ConfigSet>>, Fault> {
    let set: SetName = name(&set)?;
    let machine = machine(body.machine.as_ref())?;
    change(&api, &write, &set, Command::PinSet { set: set.clone(), machine, pin: None }).await
}

/// Asks members to look at every file of a set, to put right what is not as it should be, and to try again what they
/// refused.
#[utoipa::path(
    post, path = "/v1/configs/{set}/sync", params(("set" = String, Path)), request_body = Resync,
    responses((status = 200, body = ConfigSet))
)]
async fn resync(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Resync>,
) -> Result<At<Json<ConfigSet>>, Fault> {
    let set: SetName = name(&set)?;
    let machines = body.machines.iter().map(|machine| name(machine)).collect::<Result<Vec<_>, _>>()?;
    change(&api, &write, &set, Command::Resync { set: set.clone(), machines }).await
}

/// Halts the rollout of a set's newest version, lets it go on, takes everybody back, or gives it to everybody now.
#[utoipa::path(
    post, path = "/v1/configs/{set}/rollout", params(("set" = String, Path)), request_body = SteerRollout,
    responses((status = 200, body = ConfigSet))
)]
async fn steer(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<SteerRollout>,
) -> Result<At<Json<ConfigSet>>, Fault> {
    let set: SetName = name(&set)?;
    let state = api.read_now().await?;
    let found = state.set(&set).ok_or_else(|| not_found("config", &set))?;
    let version = found.rollout.as_ref().map_or(found.head, |rollout| rollout.version);
    let steer = match body.action {
        SteerWord::Halt => Steer::Halt,
        SteerWord::Resume => Steer::Resume,
        SteerWord::Abort => Steer::Abort,
        SteerWord::Finish => Steer::Finish,
    };
    change(&api, &write, &set, Command::SteerRollout { set: set.clone(), version, steer, by: body.by }).await
}

/// How far one member is: 200 only while it has the version that it should have. For load balancers and scripts. What
/// the answering node knows, unless the `consistency` says more.
#[utoipa::path(
    get, path = "/v1/configs/{set}/members/{machine}", params(("set" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = MemberSync), (status = 503, body = MemberSync, description = "It has not"))
)]
async fn member(
    State(api): State<Api>,
    fresh: Fresh,
    Path((set, machine)): Path<(String, String)>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let (set, machine): (SetName, MachineName) = (name(&set)?, name(&machine)?);
    let state = api.read(&fresh.or(Consistency::Stale)).await?;
    let found = state.set(&set).ok_or_else(|| not_found("config", &set))?;
    let known = state.machine(&machine).ok_or_else(|| not_found("machine", &machine))?;
    let member = view::member(&state, &set, found, &machine, known);
    let status = match member.phase {
        SyncPhase::Applied if member.connected => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(At(state.revision(), (status, Json(member)).into_response()))
}
