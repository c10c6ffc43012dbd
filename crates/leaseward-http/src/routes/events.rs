//! What happened, as a stream or as a question that waits.
//!
//! Must stay true: a stream that is resumed at its last id misses nothing and may repeat a part of one entry: the id
//! stands at the last event of an entry. Who is too far behind is told so. A slow reader costs no memory: events are
//! taken from the state when there is room for them. A stream of revisions tells of every entry, event or not, and has
//! nothing to resume: whoever reads the state again when it says so has missed nothing.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use leaseward_raft::Published;
use leaseward_state::event::Recorded;
use leaseward_state::{Revision, State as Clustered, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Consistency, Fresh, Params, wait};
use crate::describe::describe;
use crate::limits::{PAGE_MAX, PAGE_USUAL, REVISIONS_EACH_MIN, STREAM_COMMENT, STREAM_EVENTS_AT_ONCE};
use crate::model::{Compacted, Duration, EventList, Snapshot, Time, Wide};
use crate::problem::{self, Code};
use crate::suggest;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(events))
}

const KINDS: [&str; 7] = ["session", "lease", "machine", "server", "config", "token", "cluster"];

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventParams {
    /// Only these kinds, with commas: `session`, `lease`, `machine`, `server`, `config`, `token`, `cluster`.
    #[serde(default)]
    kinds: Option<String>,
    /// Only objects whose names begin so.
    #[serde(default)]
    prefix: String,
    /// Only what came after this revision. Without it a stream begins now, and a question gets the newest ones.
    #[serde(default)]
    after: Option<Wide>,
    /// The newest ones that came before this revision, to go back from the oldest of an answer. Not for a stream.
    #[serde(default)]
    before: Option<Wide>,
    /// Only what happened at this time or later, by the clocks of those who proposed it. Not for a stream.
    #[serde(default)]
    since: Option<Time>,
    /// Only what happened before this time. Not for a stream.
    #[serde(default)]
    until: Option<Time>,
    /// Wait so long for something to come, if there is nothing. Not for a stream.
    #[serde(default)]
    wait: Option<Duration>,
    /// Events in one answer, 200 if not given, at most 1000, and what else the last entry made. Not for a stream.
    #[serde(default)]
    limit: Option<u32>,
    /// Only for a stream: instead of events, say which revision it is, at once and whenever that has moved, but never more
    /// often than this. Reports of members move it too, and are no events.
    #[serde(default)]
    revisions: Option<Duration>,
}

/// Which events.
#[derive(Debug, Clone, Default)]
struct Filter {
    kinds: Vec<String>,
    prefix: String,
    since: Option<UnixMillis>,
    until: Option<UnixMillis>,
}

impl Filter {
    fn of(params: &EventParams) -> Result<Self, Fault> {
        let kinds =
            params.kinds.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|kind| !kind.is_empty());
        let kinds: Vec<String> = kinds.map(ToOwned::to_owned).collect();
        if let Some(unknown) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            return Err(suggest::unknown_word("kind of event", unknown, &KINDS).into());
        }
        let (since, until) = (params.since.map(Into::into), params.until.map(Into::into));
        Ok(Self { kinds, prefix: params.prefix.clone(), since, until })
    }

    fn takes_all(&self) -> bool {
        self.kinds.is_empty() && self.prefix.is_empty()
    }

    fn takes(&self, recorded: &Recorded) -> bool {
        let kind = recorded.event.kind();
        (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
            && self.since.is_none_or(|since| recorded.at >= since)
            && self.until.is_none_or(|until| recorded.at < until)
            && (self.prefix.is_empty() || recorded.event.subject().starts_with(&self.prefix))
    }
}

/// What happened. With `Accept: text/event-stream` a stream: `event: snapshot` says from which revision on changes
/// follow, `event: change` is an event, its `id` the revision to resume at, `event: compacted` says that some are gone, or
/// that the revision to resume at is of an earlier life of the cluster. With `revisions` it has `event: revision` only.
/// Otherwise a list, which may wait for something to come.
#[utoipa::path(
    get, path = "/v1/events",
    params(EventParams, ("Last-Event-ID" = Option<String>, Header, description = "Resumes a stream")),
    responses((status = 200, content((EventList = "application/json"), (String = "text/event-stream"))))
)]
async fn events(
    State(api): State<Api>,
    fresh: Fresh,
    headers: HeaderMap,
    Params(params): Params<EventParams>,
) -> Result<Response, Fault> {
    let filter = Filter::of(&params)?;
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let state = api.read(&fresh).await?;
    if !header(header::ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")) {
        if params.revisions.is_some() {
            return Err(
                problem::of(Code::Invalid, "`revisions` is for streams: ask with Accept: text/event-stream").into()
            );
        }
        return Ok(list(&api, &fresh, &filter, &params).await?.into_response());
    }
    let is_list = params.wait.is_some() || params.limit.is_some() || params.before.is_some();
    if is_list || params.since.is_some() || params.until.is_some() {
        let why = "`wait`, `limit`, `before`, `since` and `until` are not for streams";
        return Err(problem::of(Code::Invalid, why).into());
    }
    let keep_alive = KeepAlive::new().interval(STREAM_COMMENT).text("");
    if let Some(each) = params.revisions {
        if !filter.takes_all() || params.after.is_some() {
            return Err(problem::of(
                Code::Invalid,
                "`kinds`, `prefix` and `after` choose events: `revisions` has none",
            )
            .into());
        }
        let moves = Moves { published: api.replica.published(), each: wait(each)?.max(REVISIONS_EACH_MIN), said: None };
        return Ok(Sse::new(revisions(moves)).keep_alive(keep_alive).into_response());
    }
    let resumed = match headers.get("last-event-id").map(|id| id.to_str().ok().and_then(|id| id.parse().ok())) {
        Some(None) => return Err(problem::of(Code::Invalid, "Last-Event-ID is a revision").into()),
        Some(Some(id)) => Some(Revision(id)),
        None => params.after.map(Into::into),
    };
    let mut follow = Follow {
        published: api.replica.published(),
        filter,
        after: resumed.unwrap_or_else(|| state.revision()),
        waiting: match resumed {
            Some(_) => VecDeque::new(),
            None => VecDeque::from([snapshot(&state)]),
        },
    };
    if is_of_an_earlier_life(&fresh, follow.after, state.revision()) {
        follow.begin_anew(&state);
    }
    Ok(Sse::new(lines(follow)).keep_alive(keep_alive).into_response())
}

async fn list(api: &Api, fresh: &Fresh, filter: &Filter, params: &EventParams) -> Result<At<Json<EventList>>, Fault> {
    let limit = params.limit.map_or(PAGE_USUAL, |limit| limit as usize);
    if limit == 0 || limit > PAGE_MAX {
        return Err(problem::of(Code::Invalid, format!("`limit` is 1 to {PAGE_MAX}")).into());
    }
    if params.before.is_some() && params.after.is_some() {
        return Err(problem::of(Code::Invalid, "`after` goes forward and `before` back: give one of them").into());
    }
    let deadline = Instant::now() + params.wait.map(wait).transpose()?.unwrap_or_default();
    let mut published = api.replica.published();
    if let Some(after) = params.after.map(Revision::from)
        && is_of_an_earlier_life(fresh, after, published.borrow().state.revision())
    {
        return Err(compacted(&published.borrow().state, after));
    }
    let mut waited = false;
    loop {
        if waited {
            api.read_here(fresh)?;
        }
        let state = std::sync::Arc::clone(&published.borrow_and_update().state);
        let (items, revision) = match params.after {
            Some(after) => after_revision(&state, filter, after.into(), limit)?,
            None => (newest(&state, filter, params.before.map(Into::into), limit), state.revision()),
        };
        let is_late = Instant::now() >= deadline;
        if !items.is_empty() || is_late || timeout_at(deadline, published.changed()).await.is_err() {
            let compacted = state.compacted().into();
            let list =
                EventList { revision: revision.into(), compacted, items: items.into_iter().map(describe).collect() };
            return Ok(At(state.revision(), Json(list)));
        }
        waited = true;
    }
}

/// Returns whether a reader goes on from what this cluster has not come to: a backup brought back what was before.
fn is_of_an_earlier_life(fresh: &Fresh, after: Revision, newest: Revision) -> bool {
    // Of a stale read it may be this node that is late.
    fresh.consistency() != Consistency::Stale && after > newest
}

/// Returns whole entries only, so that the revision that comes with them is a place to go on from.
fn after_revision<'a>(
    state: &'a Clustered,
    filter: &Filter,
    after: Revision,
    limit: usize,
) -> Result<(Vec<&'a Recorded>, Revision), Fault> {
    let kept = state.events_after(after).ok_or_else(|| compacted(state, after))?;
    let mut items: Vec<&Recorded> = Vec::new();
    for recorded in kept.filter(|recorded| filter.takes(recorded)) {
        let last = items.last().map(|last| last.revision);
        if items.len() >= limit && last != Some(recorded.revision) {
            return Ok((items, last.unwrap_or(after)));
        }
        items.push(recorded);
    }
    Ok((items, state.revision().max(after)))
}

/// Returns whole entries only, so that the oldest one is a place to go back from.
fn newest<'a>(state: &'a Clustered, filter: &Filter, before: Option<Revision>, limit: usize) -> Vec<&'a Recorded> {
    let mut items: Vec<&Recorded> = Vec::new();
    let known = state.ledger().rev().skip_while(|recorded| before.is_some_and(|before| recorded.revision >= before));
    for recorded in known.filter(|recorded| filter.takes(recorded)) {
        if items.len() >= limit && items.last().map(|last| last.revision) != Some(recorded.revision) {
            break;
        }
        items.push(recorded);
    }
    items.reverse();
    items
}

fn compacted(state: &Clustered, after: Revision) -> Fault {
    let detail = match state.revision() {
        newest if after > newest => {
            format!(
                "this cluster is at revision {newest}: {after} is of an earlier life, before a backup came back, or of another cluster"
            )
        }
        _ => format!("events after revision {after} are gone up to revision {}", state.compacted()),
    };
    problem::of(Code::Compacted, detail).into()
}

/// A stream on its way.
struct Follow {
    published: watch::Receiver<Published>,
    filter: Filter,
    after: Revision,
    waiting: VecDeque<Line>,
}

fn line(name: &str, data: &impl Serialize) -> Line {
    Line::default().event(name).data(serde_json::to_string(data).expect("it is plain text and numbers"))
}

fn snapshot(state: &Clustered) -> Line {
    line("snapshot", &Snapshot { revision: state.revision().into() }).id(state.revision().to_string())
}

fn lines(follow: Follow) -> impl Stream<Item = Result<Line, Infallible>> {
    stream::unfold(follow, |mut follow| async move {
        loop {
            if let Some(next) = follow.waiting.pop_front() {
                return Some((Ok(next), follow));
            }
            let state = std::sync::Arc::clone(&follow.published.borrow_and_update().state);
            follow.take(&state);
            if follow.waiting.is_empty() && follow.published.changed().await.is_err() {
                return None;
            }
        }
    })
}

impl Follow {
    fn take(&mut self, state: &Clustered) {
        match after_revision(state, &self.filter, self.after, STREAM_EVENTS_AT_ONCE) {
            Ok((items, revision)) => {
                for (i, recorded) in items.iter().enumerate() {
                    let is_last = items.get(i + 1).is_none_or(|next| next.revision != recorded.revision);
                    let line = line("change", &describe(recorded));
                    self.waiting.push_back(if is_last { line.id(recorded.revision.to_string()) } else { line });
                }
                self.after = revision;
            }
            Err(_) => self.begin_anew(state),
        }
    }

    /// Says that what the reader knows is not what went before: some of it is gone, or it saw an earlier life of the cluster,
    /// which a backup brought back since.
    fn begin_anew(&mut self, state: &Clustered) {
        let gone = Compacted { after: self.after.into(), compacted: state.compacted().into() };
        self.waiting.extend([line("compacted", &gone), snapshot(state)]);
        self.after = state.revision();
    }
}

/// A stream of revisions on its way.
struct Moves {
    published: watch::Receiver<Published>,
    each: std::time::Duration,
    /// What was said last, and when.
    said: Option<(Revision, Instant)>,
}

fn revisions(moves: Moves) -> impl Stream<Item = Result<Line, Infallible>> {
    stream::unfold(moves, |mut moves| async move {
        if let Some((_, at)) = moves.said {
            sleep_until(at + moves.each).await;
        }
        loop {
            let revision = moves.published.borrow_and_update().state.revision();
            if moves.said.is_none_or(|(said, _)| said != revision) {
                moves.said = Some((revision, Instant::now()));
                let said = line("revision", &Snapshot { revision: revision.into() });
                return Some((Ok(said.id(revision.to_string())), moves));
            }
            moves.published.changed().await.ok()?;
        }
    })
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
