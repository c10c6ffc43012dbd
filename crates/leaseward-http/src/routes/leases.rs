//! Leases: list, get, acquire, release, revoke.
//!
//! Must stay true: whoever gives up waiting does not stay in the queue; a session that was opened for a grant ends if
//! there is no grant, or nobody to whom it can be told: who has a key may ask again, of any node.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_raft::net::wire::Renewal;
use leaseward_state::command::Acquire;
use leaseward_state::propose::Propose;
use leaseward_state::{Command, LeaseName, Refusal, Reply, Revision, SessionId};
use serde::Deserialize;
use tokio::time::{Duration, Instant, sleep_until};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write, is_here, name, not_found, wait};
use crate::limits::TTL_MS_USUAL;
use crate::model::{self, AcquireLease, Lease, LeaseList, Revoke, Wide};
use crate::page::Page;
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, acquire, release)).routes(routes!(revoke))
}

/// Lists leases.
#[utoipa::path(get, path = "/v1/leases", params(ListParams), responses((status = 200, body = LeaseList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<LeaseList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let all = page.state.leases().filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let (leases, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let remaining = api.remaining();
    let items = leases.into_iter().map(|(name, lease)| view::lease(&page.state, &remaining, name, lease)).collect();
    Ok(At(page.revision, Json(LeaseList { revision: page.revision.into(), items, next_page })))
}

/// Returns a lease that is held, delayed or waited for.
#[utoipa::path(
    get, path = "/v1/leases/{*name}", params(("name" = String, Path, description = "May hold slashes")),
    responses((status = 200, body = Lease))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(lease): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let lease: LeaseName = name(&lease)?;
    let state = api.read(&fresh).await?;
    let found = state.lease(&lease).ok_or_else(|| not_found("lease", &lease))?;
    let object = view::lease(&state, &api.remaining(), &lease, found);
    Ok(At(state.revision(), tagged(StatusCode::OK, found.modified.0, object)))
}

/// Takes a lease, or waits for it. Asking again as the same holder of the same session is harmless.
///
/// Renew its session at once after the answer: what is left is counted from the moment a renewal is sent.
#[utoipa::path(
    put, path = "/v1/leases/{*name}", params(("name" = String, Path, description = "May hold slashes")),
    request_body = AcquireLease, responses((status = 200, body = Lease))
)]
async fn acquire(
    State(api): State<Api>,
    Path(lease): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<AcquireLease>,
) -> Result<At<Response>, Fault> {
    let lease: LeaseName = name(&lease)?;
    write.without_version()?;
    let patience = body.wait.map(wait).transpose()?.filter(|wait| !wait.is_zero());
    let ttl_ms = body.ttl.map_or(TTL_MS_USUAL, model::Duration::millis);
    let begun = Instant::now();
    // In a task of its own: whoever hangs up meanwhile leaves a claim behind that gives itself up.
    let claim = Claim::make(api.clone(), write, lease, body, ttl_ms, patience.is_some());
    let mut claim = tokio::spawn(claim).await.map_err(|error| problem::with_code("LW0607", error.to_string()))??;
    let outcome = match claim.queued {
        true => claim.wait(begun + patience.unwrap_or_default(), ttl_ms).await,
        false => Ok(()),
    };
    let granted = match outcome {
        Ok(()) => claim.granted(),
        Err(mut fault) => {
            if let Fault::Problem(problem) = &mut fault {
                problem.waited = patience.map(|_| begun.elapsed().into());
            }
            Err(fault)
        }
    };
    match granted {
        Ok(granted) => {
            claim.open = false;
            Ok(granted)
        }
        Err(fault) => {
            // Whoever reads the answer finds the queue without this caller.
            claim.open = false;
            // What was granted, and cannot be told from here, is asked for again under the same key.
            if !matches!(&fault, Fault::Problem(problem) if problem.code == "LW0502") {
                claim.give_up().await;
            }
            Err(fault)
        }
    }
}

/// Opens a session for the holder and acquires in it: one entry.
async fn open_and_acquire(
    api: &Api,
    write: &Write,
    ttl_ms: u64,
    acquire: Acquire,
) -> Result<(SessionId, Revision, Reply), Fault> {
    let command = Command::AcquireOpening { name: acquire.holder.clone(), ttl_ms, acquire: acquire.clone() };
    match api.commit(write, 2, Vec::new(), command).await {
        Ok((committed, Reply::Atomic(replies))) => match <[Reply; 2]>::try_from(replies) {
            Ok([Reply::Session(session), reply]) => Ok((session, committed, reply)),
            Ok([other, _]) => Err(unexpected(&other)),
            Err(replies) => Err(unexpected(&Reply::Atomic(replies))),
        },
        Ok((_, other)) => Err(unexpected(&other)),
        // Until every node can read the entry that does both, there are two.
        Err(Fault::Problem(problem)) if problem.code == "LW0612" => {
            open_then_acquire(api, write, ttl_ms, acquire).await
        }
        Err(fault) => Err(fault),
    }
}

async fn open_then_acquire(
    api: &Api,
    write: &Write,
    ttl_ms: u64,
    mut acquire: Acquire,
) -> Result<(SessionId, Revision, Reply), Fault> {
    let open = Command::OpenSession { name: acquire.holder.clone(), ttl_ms };
    let session = match api.commit(write, 1, Vec::new(), open).await? {
        (_, Reply::Session(session)) => session,
        (_, other) => return Err(unexpected(&other)),
    };
    acquire.session = session;
    match api.commit(write, 0, Vec::new(), Command::Acquire(acquire)).await {
        Ok((committed, reply)) => Ok((session, committed, reply)),
        Err(fault) => {
            api.replica.propose(Command::EndSession { session }.into()).await.ok();
            Err(fault)
        }
    }
}

fn unexpected(reply: &Reply) -> Fault {
    problem::with_code("LW0607", format!("an answer that does not fit: {reply:?}")).into()
}

/// Somebody's wish for a lease while its request lives. A caller that hangs up withdraws it, unless it was granted under a
/// key.
struct Claim {
    api: Api,
    lease: LeaseName,
    session: SessionId,
    holder: String,
    /// The session was opened for this request.
    is_ours: bool,
    queued: bool,
    /// The caller has a key under which to ask for the answer again, of any node.
    is_named: bool,
    /// The entry that granted it, or put it into the queue.
    committed: Revision,
    /// Nobody has been told yet how it ended.
    open: bool,
}

impl Claim {
    /// Asks for the lease: one entry, also if its session is opened for it.
    async fn make(
        api: Api,
        write: Write,
        lease: LeaseName,
        body: AcquireLease,
        ttl_ms: u64,
        wait: bool,
    ) -> Result<Self, Fault> {
        let named = body.session.map(|session| SessionId(session.0));
        if named.is_none() && write.fence.is_some() {
            let detail = "Leaseward-Fence guards an acquire only in a session that is open already";
            return Err(problem::of(Code::Unsupported, detail).into());
        }
        let acquire = Acquire {
            lease: lease.clone(),
            session: named.unwrap_or(SessionId(0)),
            holder: body.holder.clone(),
            wait,
            priority: body.priority,
            lock_delay_ms: body.lock_delay.map_or(0, model::Duration::millis),
            meta: body.meta,
        };
        let (session, committed, reply) = match named {
            Some(session) => {
                let (committed, reply) = api.commit(&write, 0, Vec::new(), Command::Acquire(acquire)).await?;
                (session, committed, reply)
            }
            None => open_and_acquire(&api, &write, ttl_ms, acquire).await?,
        };
        let queued = match reply {
            Reply::Granted { .. } => false,
            Reply::Queued { .. } => true,
            other => return Err(unexpected(&other)),
        };
        let (is_ours, is_named) = (named.is_none(), write.is_named());
        Ok(Self { api, lease, session, holder: body.holder, is_ours, queued, is_named, committed, open: true })
    }

    /// Waits for the grant. Renews a session of its own meanwhile, as its owner does not know it yet.
    async fn wait(&self, deadline: Instant, ttl_ms: u64) -> Result<(), Fault> {
        let mut published = self.api.replica.published();
        let each = Duration::from_millis(ttl_ms / 4);
        let mut renew_at = Instant::now() + each;
        loop {
            let state = std::sync::Arc::clone(&published.borrow_and_update().state);
            // Before its own entry is applied here, it stands in no queue.
            is_here(&state, self.committed, &self.what())?;
            if self.is_granted(&state) {
                return Ok(());
            }
            if state.session(self.session).is_none() {
                return Err(self.api.refused(&Refusal::NoSession { session: self.session }));
            }
            let waits = state.lease(&self.lease).is_some_and(|lease| {
                lease.waiters.iter().any(|waiter| waiter.session == self.session && waiter.holder == self.holder)
            });
            if !waits {
                return Err(self.held());
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return Err(self.held()) },
                () = sleep_until(deadline) => return self.withdraw().await,
                () = sleep_until(renew_at), if self.is_ours => {
                    renew_at = Instant::now() + each;
                    self.renew().await;
                }
            }
        }
    }

    fn what(&self) -> String {
        format!("the claim of {} to lease/{}", self.holder, self.lease)
    }

    async fn renew(&self) {
        self.api.replica.renew(vec![Renewal { session: self.session, known: Revision(0) }]).await;
    }

    /// Leaves the queue; the grant may have come first.
    async fn withdraw(&self) -> Result<(), Fault> {
        self.leave().await;
        if self.is_granted(&self.api.here()) { Ok(()) } else { Err(self.held()) }
    }

    async fn leave(&self) {
        let (lease, session, holder) = (self.lease.clone(), self.session, self.holder.clone());
        self.api.replica.propose(Command::Withdraw { lease, session, holder }.into()).await.ok();
    }

    fn is_granted(&self, state: &leaseward_state::State) -> bool {
        let grant = state.lease(&self.lease).and_then(leaseward_state::lease::Lease::grant);
        grant.is_some_and(|grant| grant.session == self.session && grant.holder == self.holder)
    }

    fn held(&self) -> Fault {
        let state = self.api.here();
        match state.lease(&self.lease).and_then(leaseward_state::lease::Lease::grant) {
            Some(grant) => self.api.refused(&Refusal::Held {
                lease: self.lease.to_string(),
                holder: grant.holder.clone(),
                token: grant.token,
            }),
            None => {
                let detail = format!("lease/{} was not granted in time", self.lease);
                problem::of(Code::Held, detail).into()
            }
        }
    }

    fn granted(&self) -> Result<At<Response>, Fault> {
        let state = self.api.here();
        is_here(&state, self.committed, &self.what())?;
        if !self.is_granted(&state) {
            return Err(self.held());
        }
        let found = state.lease(&self.lease).ok_or_else(|| not_found("lease", &self.lease))?;
        let object = view::lease(&state, &self.api.remaining(), &self.lease, found);
        Ok(At(state.revision(), tagged(StatusCode::OK, found.modified.0, object)))
    }

    async fn give_up(&self) {
        if self.is_ours {
            self.api.replica.propose(Command::EndSession { session: self.session }.into()).await.ok();
        } else if self.queued {
            self.leave().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Whoever has a key may have asked another node as well, and been told there; if not, nobody renews the session.
        if !self.open || self.is_named && !self.queued {
            return;
        }
        let claim = Self {
            api: self.api.clone(),
            lease: self.lease.clone(),
            holder: self.holder.clone(),
            open: false,
            ..*self
        };
        tokio::spawn(async move { claim.give_up().await });
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReleaseParams {
    /// The token under which it is held.
    token: Wide,
}

/// Gives a lease back.
#[utoipa::path(
    delete, path = "/v1/leases/{*name}",
    params(("name" = String, Path, description = "May hold slashes"), ReleaseParams), responses((status = 204))
)]
async fn release(
    State(api): State<Api>,
    Path(lease): Path<String>,
    Params(params): Params<ReleaseParams>,
    write: Write,
) -> Result<At<StatusCode>, Fault> {
    write.without_version()?;
    let command = Command::Release { lease: name(&lease)?, token: params.token.into() };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}

/// Takes a lease away from its holder. The next holder has to wait until the former one cannot believe in it any more.
#[utoipa::path(post, path = "/v1/leases:revoke", request_body = Revoke, responses((status = 204)))]
async fn revoke(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Revoke>,
) -> Result<At<StatusCode>, Fault> {
    write.without_condition()?;
    let command = Command::Revoke { lease: name(&body.name)?, token: body.token.map(Into::into) };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}
