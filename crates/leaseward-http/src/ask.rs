//! What a request says besides its body: how fresh, under which condition, as which request.
//!
//! Must stay true: a word that is not understood is refused, never ignored.

use std::sync::{Arc, Mutex, OnceLock};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use leaseward_state::command::Condition;
use leaseward_state::{FencingToken, LeaseName, RequestKey, Revision, State as Clustered};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::access::Caller;
use crate::answer::Fault;
use crate::limits::{KEY_BYTES_MAX, WAIT_MAX};
use crate::model::Duration;
use crate::problem::{self, Code};
use crate::suggest;

const FENCE: &str = "leaseward-fence";
const IDEMPOTENCY: &str = "idempotency-key";

/// At this feature level another node may go by the key, the method and the path alone, and a request that is sent again is to be the same
/// one there. Above it, and before a new cluster has its level, a key names a request together with its body and its caller.
const BODIES_NOT_COUNTED: u32 = 1;

/// What the body says, once it is read.
#[derive(Debug, Clone, Default)]
struct Told(Arc<OnceLock<blake3::Hash>>);

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = given.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        // Insisting keeps other people's web pages from posting here without a browser asking first.
        if kind.as_deref() != Some("application/json") {
            let given = given.unwrap_or("nothing");
            let detail = format!("the body must be application/json, not {given}");
            return Err(problem::of(Code::MediaType, detail).into());
        }
        let told = request.extensions().get::<Told>().cloned();
        let bytes = bytes(Bytes::from_request(request, state).await)?;
        if let Some(Told(told)) = told {
            told.set(blake3::hash(&bytes)).ok();
        }
        decode(&bytes).map(Self)
    }
}

/// A JSON body that may be left out.
pub(crate) struct OptionalBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        let length = request.headers().get(header::CONTENT_LENGTH).map(|value| value.as_bytes() == b"0");
        let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        if length.unwrap_or(!chunked) {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, state).await.map(|Body(body)| Self(body))
    }
}

pub(crate) fn bytes(read: Result<Bytes, BytesRejection>) -> Result<Bytes, Fault> {
    read.map_err(|error| {
        let code = if error.status() == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::Unreadable };
        problem::of(code, error.body_text()).into()
    })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = if error.is_data() { Code::Invalid } else { Code::Unreadable };
        suggest::problem(&error.to_string(), code).into()
    })
}

/// The query, without the words that every read understands.
pub(crate) struct Params<T>(pub(crate) T);

/// Returns the value of a word of the query.
///
/// # Errors
/// [`Code::Invalid`] if it has none, or more than one: what was meant must not be guessed.
fn word<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, Fault> {
    let mut values = query.split('&').filter_map(|pair| match pair.split_once('=') {
        Some((word, value)) => (word == name).then_some(Some(value)),
        None => (pair == name).then_some(None),
    });
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(Some(value)), None) => Ok(Some(value)),
        (Some(None), None) => Err(invalid(format!("`{name}` has no value: write `{name}=`, and which"))),
        (Some(_), Some(_)) => Err(invalid(format!("`{name}` is given more than once"))),
    }
}

/// Words of the query that [`Fresh`] reads.
const COMMON: [&str; 2] = ["consistency", "max_staleness"];

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let can_be_tried = !parts.method.is_safe() && can_be_tried(parts.uri.path());
        let is_common = |word: &str| COMMON.contains(&word) || (word == DRY_RUN && can_be_tried);
        let query = parts.uri.query().unwrap_or_default();
        for name in COMMON.into_iter().chain([DRY_RUN]) {
            word(query, name)?;
        }
        let own: Vec<&str> =
            query.split('&').filter(|pair| !is_common(pair.split('=').next().unwrap_or_default())).collect();
        let unreadable = |why: String| Fault::from(problem::of(Code::Unreadable, why));
        let uri: Uri =
            format!("/?{}", own.join("&")).parse().map_err(|_| unreadable("the query is no query".into()))?;
        match Query::<T>::try_from_uri(&uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => {
                let text = error.body_text();
                let message = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, message)| message);
                // A wrong value is named as `key: what is wrong`.
                let inner = message.split_once(": ").map_or(message, |(_, inner)| inner);
                let message = if inner.starts_with("unknown ") { inner } else { message };
                Err(suggest::problem(message, Code::Invalid).into())
            }
        }
    }
}

/// Asks what would come of a write.
const DRY_RUN: &str = "dry_run";

/// Writes whose whole effect is one command of the state: [`Api::commit`](crate::api::Api::commit) tries it on a copy.
/// Elsewhere the word is not understood, and so refused.
const CAN_BE_TRIED: [&str; 4] = ["/v1/servers/", "/v1/machines/", "/v1/policy", "/v1/maintenance"];

/// Returns whether a write to this path understands `dry_run`.
#[must_use]
pub fn can_be_tried(path: &str) -> bool {
    let publishes = path.starts_with("/v1/configs/") && path.ends_with("/publish");
    publishes || CAN_BE_TRIED.iter().any(|prefix| path.starts_with(prefix))
}

/// No words but those that every read understands.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// How new the state must be that is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Consistency {
    /// With everything that was acknowledged to anybody before the request came.
    #[default]
    Linearizable,
    /// What the leader knows. This version gives the same as `linearizable`.
    Leader,
    /// What the answering node knows.
    Stale,
}

/// When the state that an answer shows was the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AsOf {
    /// When the request came, or later.
    Request,
    /// When the answering node heard its leader; `None` if it never did in this run.
    Moment(Option<Instant>),
}

/// Carries [`AsOf`] from the route, which knows it, to the headers of its answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted(Arc<Mutex<Option<AsOf>>>);

impl Noted {
    /// Returns what was noted last.
    pub(crate) fn last(&self) -> Option<AsOf> {
        *self.0.lock().expect("no holder of this lock panics")
    }
}

/// `?consistency=` and `?max_staleness=`. The second without the first asks for a stale read with that bound.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    consistency: Option<Consistency>,
    max_staleness: Option<Duration>,
    noted: Noted,
}

impl Fresh {
    pub(crate) fn consistency(&self) -> Consistency {
        match (self.consistency, self.max_staleness) {
            (Some(said), _) => said,
            (None, Some(_)) => Consistency::Stale,
            (None, None) => Consistency::default(),
        }
    }

    /// Returns it with another consistency where the caller named none.
    pub(crate) fn or(mut self, usual: Consistency) -> Self {
        self.consistency = self.consistency.or(Some(usual));
        self
    }

    /// Returns it for what only the answering node knows.
    pub(crate) fn here(mut self) -> Self {
        self.consistency = Some(Consistency::Stale);
        self
    }

    /// Refuses what was the newest state too long ago.
    pub(crate) fn allows(&self, as_of: Option<Instant>) -> Result<(), Fault> {
        let Some(most) = self.max_staleness.filter(|_| self.consistency() == Consistency::Stale) else {
            return Ok(());
        };
        let said = match as_of.map(|as_of| as_of.elapsed()) {
            Some(age) if age <= most.into() => return Ok(()),
            Some(age) => format!("this was the newest state {} ago", Duration::from(age)),
            None => "this node has heard no leader yet".to_owned(),
        };
        Err(problem::of(Code::Stale, format!("{said}; `max_staleness` is {most}")).into())
    }

    pub(crate) fn note(&self, as_of: AsOf) {
        *self.noted.0.lock().expect("no holder of this lock panics") = Some(as_of);
    }

    /// Returns when what was read was the newest state, as it is known now.
    pub(crate) fn as_of(&self) -> Option<Instant> {
        match self.noted.last() {
            Some(AsOf::Request) => Some(Instant::now()),
            Some(AsOf::Moment(as_of)) => as_of,
            None => None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Fresh {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let query = parts.uri.query().unwrap_or_default();
        let consistency = match word(query, "consistency")? {
            None => None,
            Some("linearizable") => Some(Consistency::Linearizable),
            Some("leader") => Some(Consistency::Leader),
            Some("stale") => Some(Consistency::Stale),
            Some(other) => {
                return Err(suggest::unknown_word("consistency", other, &["linearizable", "leader", "stale"]).into());
            }
        };
        let max_staleness = word(query, "max_staleness")?.map(str::parse::<Duration>).transpose();
        let max_staleness = max_staleness.map_err(|error| invalid(format!("`max_staleness`: {error}")))?;
        let noted = parts.extensions.get::<Noted>().cloned().unwrap_or_default();
        Ok(Self { consistency, max_staleness, noted })
    }
}

/// What a write says besides its body.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// The lease under which the writer writes.
    pub(crate) fence: Option<Condition>,
    /// The version that the object must have; 0: it must not exist.
    if_version: Option<u64>,
    /// Names the request, with what it says and who asks.
    client: Option<u128>,
    told: Told,
    /// Whether it is only asked what would come of it.
    pub(crate) dry_run: bool,
    /// Who asks, where that matters.
    pub(crate) caller: Option<Caller>,
}

impl<S: Send + Sync> FromRequestParts<S> for Write {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let headers = &parts.headers;
        let fence = text(headers, FENCE)?.map(|text| {
            fence(text).ok_or_else(|| invalid("Leaseward-Fence is `<lease>;<token>`, such as server/pay-1;17"))
        });
        let client = text(headers, IDEMPOTENCY)?.map(|key| {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(invalid(format!("Idempotency-Key has 1 to {KEY_BYTES_MAX} bytes")));
            }
            Ok(client(&[key, parts.method.as_str(), parts.uri.path()]))
        });
        let query = parts.uri.query().unwrap_or_default();
        let dry_run = match word(query, DRY_RUN)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(suggest::unknown_word(DRY_RUN, other, &["true", "false"]).into()),
        };
        let if_version = if_version(headers)?;
        let caller = parts.extensions.get::<Caller>().cloned();
        let told = Told::default();
        parts.extensions.insert(told.clone());
        Ok(Self { fence: fence.transpose()?, if_version, client: client.transpose()?, told, dry_run, caller })
    }
}

impl Write {
    /// Returns the version that the object must have.
    pub(crate) fn version(&self) -> Option<u64> {
        self.if_version
    }

    /// Refuses a version where none can be checked, so that nobody believes it was.
    pub(crate) fn without_version(&self) -> Result<(), Fault> {
        match self.if_version {
            None => Ok(()),
            Some(_) => Err(problem::of(Code::Unsupported, "If-Match and If-None-Match do not apply here").into()),
        }
    }

    /// Refuses every condition where none can be checked.
    pub(crate) fn without_condition(&self) -> Result<(), Fault> {
        self.without_version()?;
        match self.fence {
            None => Ok(()),
            Some(_) => Err(problem::of(Code::Unsupported, "Leaseward-Fence does not apply here").into()),
        }
    }

    /// Returns the key of a command of this request, in a cluster of this feature level. Two callers that use the same words for
    /// different things, or the same things for themselves, are not given each other's answers.
    pub(crate) fn key(&self, step: u64, level: u32) -> Option<RequestKey> {
        let named = self.client?;
        let client = if level == BODIES_NOT_COUNTED {
            named
        } else {
            let told = self.told.0.get().map(blake3::Hash::to_hex);
            let caller = self.caller.as_ref().map(Caller::name);
            client(&[&named.to_string(), told.as_deref().unwrap_or_default(), caller.unwrap_or_default()])
        };
        Some(RequestKey { client, sequence: step })
    }

    /// Returns whether the caller chose the key.
    pub(crate) fn is_named(&self) -> bool {
        self.client.is_some()
    }
}

fn invalid(why: impl Into<String>) -> Fault {
    problem::of(Code::Invalid, why).into()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let value = headers.get(name).map(|value| value.to_str().map(str::trim));
    value.transpose().map_err(|_| invalid(format!("the header {name} is not plain text")))
}

fn fence(text: &str) -> Option<Condition> {
    let (lease, token) = text.rsplit_once(';')?;
    let lease = LeaseName::new(lease.trim()).ok()?;
    Some(Condition::Fence { lease, token: FencingToken(token.trim().parse().ok()?) })
}

fn client(words: &[&str]) -> u128 {
    let hash = blake3::hash(words.join("\0").as_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_be_bytes(first)
}

fn if_version(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let (same, none) = (text(headers, "if-match")?, text(headers, "if-none-match")?);
    match (same, none) {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(0)),
        (None, Some(_)) => Err(invalid("If-None-Match takes `*` only: the object must not exist")),
        (Some(tag), None) => {
            version(tag).map(Some).ok_or_else(|| invalid("If-Match is the ETag of the object, such as \"v42\""))
        }
        (Some(_), Some(_)) => Err(invalid("If-Match and If-None-Match exclude each other")),
    }
}

fn version(tag: &str) -> Option<u64> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    tag.strip_prefix('v').unwrap_or(tag).parse().ok().filter(|version| *version > 0)
}

/// Returns how long a request may wait for something to happen.
pub(crate) fn wait(asked: Duration) -> Result<std::time::Duration, Fault> {
    let asked = std::time::Duration::from(asked);
    if asked > WAIT_MAX {
        return Err(invalid(format!("`wait` is at most {}", Duration::from(WAIT_MAX))));
    }
    Ok(asked)
}

/// Returns a name, or the fault for one that is not allowed.
pub(crate) fn name<T: std::str::FromStr<Err = leaseward_state::BadName>>(text: &str) -> Result<T, Fault> {
    text.parse().map_err(|error: leaseward_state::BadName| invalid(error.to_string()))
}

/// Looks whether this node has applied what it committed. One that ends may never see it; that something does not exist, or
/// belongs to somebody else, it must not say then.
///
/// # Errors
/// [`Code::Unknown`], with the revision.
pub(crate) fn is_here(state: &Clustered, committed: Revision, what: &str) -> Result<(), Fault> {
    if state.revision() >= committed {
        return Ok(());
    }
    let detail = format!("{what} is committed at revision {committed}; this node has not got so far");
    Err(problem::of(Code::Unknown, detail).into())
}

/// Returns the fault for an object that does not exist.
pub(crate) fn not_found(kind: &str, name: impl std::fmt::Display) -> Fault {
    problem::of(Code::NotFound, format!("{kind}/{name} does not exist")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_tags_and_keys_are_read() {
        let expected = LeaseName::new("server/pay-1").unwrap();
        assert_eq!(fence("server/pay-1;17"), Some(Condition::Fence { lease: expected, token: FencingToken(17) }));
        assert_eq!(fence("server/pay-1"), None);
        assert_eq!(fence("../x;17"), None);
        assert_eq!((version("\"v42\""), version("42"), version("W/\"v42\"")), (Some(42), Some(42), Some(42)));
        assert_eq!((version("\"v0\""), version("*"), version("")), (None, None, None));
        assert_ne!(client(&["k", "PUT", "/a"]), client(&["k", "PUT", "/b"]));
    }
}
