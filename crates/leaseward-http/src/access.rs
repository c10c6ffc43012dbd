//! Who asks, and whether he may: a token of the cluster in `Authorization: Bearer`, or the local socket.
//!
//! Must stay true: while there is any token, nothing is answered without one but how this node is, the console's own files and
//! the description of the API; what a request commits is asked once more by its commands (`Api::commit`), whatever route
//! it came by; who signs is who asked; a stream ends with the right to it. Left out on purpose: passwords, and encryption: a token travels as the connection does.

use std::sync::Arc;
use std::time::Duration;

use crate::answer::Fault;
use crate::api::Api;
use crate::limits::HEAR_WITHIN;
use crate::problem::{self, Code};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use leaseward_state::access::{Access, AccessToken, Need};
use leaseward_state::config::Digest;
use leaseward_state::config::rollout::Pin;
use leaseward_state::session::Owner;
use leaseward_state::{Command, SessionId, SetName, State as Clustered, TokenName, UnixMillis};
use tokio::time::timeout;

/// How a token begins. The rest is its name and its secret.
pub const TOKEN_PREFIX: &str = "lwt1";

/// A request that came by the local socket: from root, or from the agent's own user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local;

/// Who asks, where that is known.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    name: String,
    token: Arc<AccessToken>,
}

/// Returns a token as its bearer has it.
#[must_use]
pub fn spell(name: &TokenName, secret: &str) -> String {
    format!("{TOKEN_PREFIX}.{secret}.{name}")
}

/// Returns what is stored of a secret.
#[must_use]
pub fn hash(secret: &str) -> Digest {
    Digest(*blake3::hash(secret.as_bytes()).as_bytes())
}

/// Looks who asks, and answers what he may ask.
pub(crate) async fn check(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    if request.extensions().get::<Local>().is_some() {
        return next.run(request).await;
    }
    let Some(need) = need(request.method(), request.uri().path()) else { return next.run(request).await };
    if !request.method().is_safe()
        && let Err(fault) = of_no_other_page(request.headers())
    {
        return fault.into_response();
    }
    let state = match known(&api, request.method(), &need).await {
        Ok(state) => state,
        Err(fault) => return fault.into_response(),
    };
    if !state.access().is_on() {
        return while_allowed(&api, None, next.run(request).await);
    }
    let now = UnixMillis(leaseward_raft::clock::wall_millis());
    match bearer(&state, request.headers(), now).and_then(|caller| caller.may(&need).map(|()| caller)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            while_allowed(&api, Some(caller), next.run(request).await)
        }
        Err(fault) => {
            let mut response = fault.into_response();
            if response.status() == axum::http::StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

/// Ends an answer that goes on and on once who asked for it may no more: his token is gone or over, or whoever asks needs one now.
fn while_allowed(api: &Api, caller: Option<Caller>, response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
        return response;
    }
    let mut published = api.replica.published();
    let allowed_no_more = async move {
        let over = async {
            match caller.as_ref().and_then(|caller| caller.token.until) {
                Some(UnixMillis(until)) => {
                    let left = until.saturating_sub(leaseward_raft::clock::wall_millis());
                    tokio::time::sleep(Duration::from_millis(left)).await;
                }
                None => std::future::pending().await,
            }
        };
        let gone = published.wait_for(|published| {
            let access = published.state.access();
            match &caller {
                Some(caller) => !caller.is_known(access),
                None => access.is_on(),
            }
        });
        tokio::select! {
            () = over => {}
            _ = gone => {}
        }
    };
    let (head, body) = response.into_parts();
    Response::from_parts(head, Body::from_stream(body.into_data_stream().take_until(Box::pin(allowed_no_more))))
}

/// Refuses what a browser sends for a page that did not come from here. While there is no token, a browser inside the network would
/// otherwise do for any page what its user may do.
fn of_no_other_page(headers: &HeaderMap) -> Result<(), Fault> {
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let refused = |page: &str| {
        let detail = format!("{page} asks for this; of all web pages only the console that this address serves may");
        Err(problem::of(Code::MayNot, detail).into())
    };
    match said("sec-fetch-site") {
        Some("same-origin" | "none") => return Ok(()),
        Some(_) => return refused(said("origin").unwrap_or("another page")),
        // Browsers leave it out where the connection is not encrypted.
        None => {}
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("an unreadable page");
    let site = origin.split_once("://").map(|(_, site)| site);
    // A page cannot set the second one without asking first, and it is not told that it may.
    let here = [said("host"), said("x-forwarded-host")];
    if site.is_some_and(|site| here.into_iter().flatten().any(|host| host.eq_ignore_ascii_case(site))) {
        return Ok(());
    }
    refused(origin)
}

/// Returns the state that says who may do what. A node that began a moment ago may not have heard of any token: before it lets
/// anybody change anything, or see what only administrators do, it hears, once, what everybody knows. For those who look it tries
/// to: without a quorum they see what this node knows.
async fn known(api: &Api, method: &Method, need: &Need) -> Result<Arc<Clustered>, Fault> {
    let here = api.here();
    if here.access().is_on() || api.shared.has_caught_up() {
        return Ok(here);
    }
    let now = if method.is_safe() && *need != Need::Administer {
        match timeout(HEAR_WITHIN, api.read_now()).await {
            Ok(Ok(now)) => now,
            Ok(Err(_)) | Err(_) => return Ok(here),
        }
    } else {
        api.read_now().await?
    };
    api.shared.note_caught_up();
    Ok(now)
}

/// Returns what a request needs, as far as its path says it; `None`: nothing.
fn need(method: &Method, path: &str) -> Option<Need> {
    let mut parts = path.strip_prefix("/v1/").unwrap_or_default().split('/');
    let (noun, name, verb) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    Some(match (method.is_safe(), noun) {
        (true, "") => match path {
            "/metrics" => Need::Look,
            // How this node is, and the console's own files.
            _ => return None,
        },
        (true, "health" | "openapi.json") => return None,
        (true, "backup") | (_, "tokens") => Need::Administer,
        (true, _) => Need::Look,
        (false, "nodes") => Need::Administer,
        (false, "cluster") if name != "transfer-leader" => Need::Administer,
        (false, "blobs") => Need::PublishSome,
        // Which leases and sets is known when their commands are.
        (false, "sessions" | "leases" | "leases:renew" | "transaction") => Need::HoldSome,
        (false, "configs") => match (SetName::new(name), verb) {
            (Ok(set), Some("publish" | "rollback" | "changes" | "adopt" | "rollout" | "sync")) => Need::Publish(set),
            _ => Need::Operate,
        },
        (false, _) => Need::Operate,
    })
}

/// Returns what a command needs.
fn needs(state: &Clustered, command: &Command) -> Vec<Need> {
    match command {
        Command::OpenSession { .. } => vec![Need::HoldSome],
        Command::AcquireOpening { acquire, .. } => vec![Need::Hold(acquire.lease.clone())],
        // A session's owner renews all of it or nothing: whoever may not do the same must not put anything in.
        Command::Acquire(acquire) => {
            let mut all = to_end(state, acquire.session);
            all.push(Need::Hold(acquire.lease.clone()));
            all
        }
        Command::Withdraw { lease, .. } | Command::Release { lease, .. } => vec![Need::Hold(lease.clone())],
        Command::EndSession { session } => to_end(state, *session),
        Command::Publish { sets, .. } => sets.iter().map(|publish| Need::Publish(publish.set.clone())).collect(),
        Command::SteerRollout { set, .. } | Command::Resync { set, .. } => vec![Need::Publish(set.clone())],
        Command::ChangeToken { .. } => vec![Need::Administer],
        Command::Atomic { commands, .. } => commands.iter().flat_map(|command| needs(state, command)).collect(),
        _ => vec![Need::Operate],
    }
}

/// Returns what it needs to end a session.
fn to_end(state: &Clustered, session: SessionId) -> Vec<Need> {
    match state.session(session) {
        Some(found) if matches!(found.owner, Owner::Machine(_)) => vec![Need::Operate],
        Some(found) if !found.leases.is_empty() => found.leases.iter().cloned().map(Need::Hold).collect(),
        _ => vec![Need::HoldSome],
    }
}

fn bearer(state: &Clustered, headers: &HeaderMap, now: UnixMillis) -> Result<Caller, Fault> {
    let unknown = |why: &str| Fault::from(problem::of(Code::WhoAsks, why));
    let given =
        headers.get(header::AUTHORIZATION).ok_or_else(|| unknown("this cluster answers only who has a token"))?;
    let token = given.to_str().ok().and_then(|text| {
        let (kind, token) = text.split_once(' ')?;
        kind.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let (secret, name) = token
        .and_then(|token| token.strip_prefix(TOKEN_PREFIX)?.strip_prefix('.')?.split_once('.'))
        .and_then(|(secret, name)| Some((secret, TokenName::new(name).ok()?)))
        .ok_or_else(|| unknown("`Authorization` is `Bearer` and a token, as `leaseward token create` printed it"))?;
    let found = state.access().tokens.get(&name);
    // Hashes are compared in constant time, and somebody else's name tells no more than a wrong secret.
    let right = |found: &&AccessToken| blake3::Hash::from(found.hash.0) == blake3::hash(secret.as_bytes());
    let found = found.filter(right).ok_or_else(|| unknown("nobody knows this token, or it is revoked"))?;
    if found.is_over(now) {
        return Err(unknown(&format!("the token {name} is over")));
    }
    Ok(Caller { name: name.to_string(), token: Arc::new(found.clone()) })
}

impl Caller {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the token is as it was when its bearer asked.
    fn is_known(&self, access: &Access) -> bool {
        access.tokens.iter().any(|(name, token)| name.as_str() == self.name && *token == *self.token)
    }

    fn may(&self, need: &Need) -> Result<(), Fault> {
        if self.token.may(need) {
            return Ok(());
        }
        let roles: Vec<String> = self.token.roles.iter().map(ToString::to_string).collect();
        let what = match need {
            Need::Look => "looking".to_owned(),
            Need::Publish(set) => format!("changing config/{set} needs publisher:{set}, operator or admin"),
            Need::PublishSome => "sending content needs publisher:SET, operator or admin".to_owned(),
            Need::Hold(lease) => format!("lease/{lease} needs holder:PREFIX, operator or admin"),
            Need::HoldSome => "this needs holder:PREFIX, publisher:SET, operator or admin".to_owned(),
            Need::Operate => "this needs operator or admin".to_owned(),
            Need::Administer => "this needs admin".to_owned(),
        };
        Err(problem::of(Code::MayNot, format!("{what}; the token {} is {}", self.name, roles.join(", "))).into())
    }

    /// Refuses a command that the caller may not ask for.
    pub(crate) fn may_all(&self, state: &Clustered, command: &Command) -> Result<(), Fault> {
        needs(state, command).iter().try_for_each(|need| self.may(need))
    }

    /// Refuses to renew a session that the caller could not end: whoever keeps a dead holder's alive keeps its leases from everybody.
    pub(crate) fn may_renew(&self, state: &Clustered, session: SessionId) -> Result<(), Fault> {
        self.may_all(state, &Command::EndSession { session })
    }

    /// Signs a command: whatever name somebody gives himself, his token's stands with it.
    pub(crate) fn signs(&self, command: &mut Command) {
        match command {
            Command::Publish { author, .. } => self.sign(author),
            Command::SteerRollout { by, .. } | Command::ConfirmDead { by, .. } | Command::ChangeToken { by, .. } => {
                self.sign(by);
            }
            Command::PinSet { pin: Some(Pin { by, .. }), .. } => self.sign(by),
            Command::Atomic { commands, .. } => commands.iter_mut().for_each(|command| self.signs(command)),
            _ => {}
        }
        if let Command::ChangeToken { token: Some(token), by, .. } = command {
            token.by.clone_from(by);
        }
    }

    fn sign(&self, who: &mut String) {
        if who.is_empty() || *who == self.name {
            who.clone_from(&self.name);
        } else {
            *who = format!("{who} ({})", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_needs_something_and_what_nobody_thought_of_needs_an_operator() {
        let set = Need::Publish(SetName::new("app").unwrap());
        for (method, path, expected) in [
            ("GET", "/livez", None),
            ("GET", "/console/config.js", None),
            ("GET", "/v1/health/server/pay", None),
            ("GET", "/metrics", Some(Need::Look)),
            ("GET", "/v1/configs/app/versions/1/files/a", Some(Need::Look)),
            ("GET", "/v1/backup", Some(Need::Administer)),
            ("GET", "/v1/tokens", Some(Need::Administer)),
            ("PUT", "/v1/tokens/ci", Some(Need::Administer)),
            ("POST", "/v1/configs/app/publish", Some(set.clone())),
            ("POST", "/v1/configs/app/rollout", Some(set)),
            ("POST", "/v1/configs/%61pp/publish", Some(Need::Operate)),
            ("PUT", "/v1/configs/app/policy", Some(Need::Operate)),
            ("DELETE", "/v1/configs/app", Some(Need::Operate)),
            ("POST", "/v1/configs/app/pin", Some(Need::Operate)),
            ("POST", "/v1/leases:revoke", Some(Need::Operate)),
            ("DELETE", "/v1/nodes/3", Some(Need::Administer)),
            ("POST", "/v1/cluster/finish-upgrade", Some(Need::Administer)),
            ("POST", "/v1/cluster/transfer-leader", Some(Need::Operate)),
            ("POST", "/v1/something/new", Some(Need::Operate)),
            ("POST", "/", Some(Need::Operate)),
        ] {
            assert_eq!(need(&method.parse().unwrap(), path), expected, "{method} {path}");
        }
    }
}
