//! Sessions: open, renew, end.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_raft::net::wire::{self, Renewal};
use leaseward_state::{Command, Refusal, Reply, SessionId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write};
use crate::limits::{RENEWALS_MAX, TTL_MS_USUAL};
use crate::model::{self, OpenSession, Renew, Renewed, RenewedOne, Session, SessionList};
use crate::page::{Page, number_key};
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list, open)).routes(routes!(get, end)).routes(routes!(renew))
}

/// Lists open sessions.
#[utoipa::path(get, path = "/v1/sessions", params(ListParams), responses((status = 200, body = SessionList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<SessionList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let all = page.state.sessions().filter(|(_, session)| session.owner.name().starts_with(&params.prefix));
    let (sessions, next_page) = page.take(&api, all, |(id, _)| number_key(id.0));
    let remaining = api.remaining();
    let items = sessions.into_iter().map(|(_, session)| view::session(&page.state, &remaining, session)).collect();
    Ok(At(page.revision, Json(SessionList { revision: page.revision.into(), items, next_page })))
}

/// Returns an open session.
#[utoipa::path(
    get, path = "/v1/sessions/{id}", params(("id" = u64, Path)), responses((status = 200, body = Session))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let id = session_id(&id)?;
    let state = api.read(&fresh).await?;
    let found = state.session(id).ok_or_else(|| api.refused(&Refusal::NoSession { session: id }))?;
    let object = view::session(&state, &api.remaining(), found);
    Ok(At(state.revision(), tagged(StatusCode::OK, found.leases_revision.0, object)))
}

/// Opens a session. Renew it at once, and then each quarter of its time to live.
#[utoipa::path(post, path = "/v1/sessions", request_body = OpenSession, responses((status = 201, body = Session)))]
async fn open(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<OpenSession>,
) -> Result<At<Response>, Fault> {
    write.without_condition()?;
    let ttl_ms = body.ttl.map_or(TTL_MS_USUAL, model::Duration::millis);
    let command = Command::OpenSession { name: body.name, ttl_ms };
    let (revision, reply) = api.commit(&write, 0, Vec::new(), command).await?;
    let Reply::Session(id) = reply else { return Err(problem::with_code("LW0607", "no session was opened").into()) };
    let state = api.here();
    let found = state.session(id).ok_or_else(|| api.refused(&Refusal::NoSession { session: id }))?;
    let object = view::session(&state, &api.remaining(), found);
    Ok(At(revision, tagged(StatusCode::CREATED, found.leases_revision.0, object)))
}

/// Ends a session; its leases are released at once.
#[utoipa::path(delete, path = "/v1/sessions/{id}", params(("id" = u64, Path)), responses((status = 204)))]
async fn end(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<StatusCode>, Fault> {
    write.without_condition()?;
    let command = Command::EndSession { session: session_id(&id)? };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}

/// Renews sessions. Answered only after a quorum has confirmed the leader in a round that began after the request
/// came. Nothing is written.
#[utoipa::path(post, path = "/v1/leases:renew", request_body = Renew, responses((status = 200, body = Renewed)))]
async fn renew(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Renew>,
) -> Result<Json<Renewed>, Fault> {
    write.without_condition()?;
    if body.sessions.len() > RENEWALS_MAX {
        return Err(problem::of(Code::Invalid, format!("at most {RENEWALS_MAX} sessions at once")).into());
    }
    if let Some(caller) = &write.caller {
        let state = api.here();
        body.sessions.iter().try_for_each(|one| caller.may_renew(&state, one.session.into()))?;
    }
    let renewals: Vec<_> =
        body.sessions.iter().map(|one| Renewal { session: one.session.into(), known: one.known.into() }).collect();
    let Some(answers) = api.replica.renew(renewals).await else {
        if let Some(why) = api.replica.status().quarantined {
            return Err(problem::with_code("LW0603", why).into());
        }
        return Err(problem::of(Code::NoLeader, "nobody can confirm now that it leads; nothing was renewed").into());
    };
    let sessions = body.sessions.iter().zip(answers).map(|(one, answer)| {
        let (alive, held) = match answer {
            wire::Renewed::Alive { leases, .. } => (true, leases),
            wire::Renewed::Over => (false, None),
        };
        RenewedOne {
            session: one.session,
            alive,
            leases_revision: held.as_ref().map(|held| held.revision.into()),
            leases: held.map(|held| view::held(&held.leases)),
        }
    });
    Ok(Json(Renewed { sessions: sessions.collect() }))
}

fn session_id(text: &str) -> Result<SessionId, Fault> {
    let id = text.parse().map_err(|_| problem::of(Code::Invalid, "a session's id is a number"))?;
    Ok(SessionId(id))
}
