//! What every answer carries, whoever made it: headers, and a problem with everything in it.
//!
//! Must stay true: no error leaves without a code, a request id and the known leader; every answer names its revision.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use leaseward_state::Revision;
use serde::Serialize;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::api::Api;
use crate::ask::{AsOf, Noted};
use crate::limits::{REFUSAL_BYTES_MAX, REQUEST_WITHIN};
use crate::model::{Prediction, Problem};
use crate::problem::{self, Code};

const REVISION: HeaderName = HeaderName::from_static("leaseward-revision");
const LEADER: HeaderName = HeaderName::from_static("leaseward-leader");
const STALENESS: HeaderName = HeaderName::from_static("leaseward-staleness-ms");
const SERVED_BY: HeaderName = HeaderName::from_static("leaseward-served-by");
const REQUEST_ID: HeaderName = HeaderName::from_static("leaseward-request-id");
const TIMEOUT: &str = "leaseward-timeout-ms";

/// Why a route ends early.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A problem on its way out. [`finish`] writes it.
    Problem(Box<Problem>),
    /// It was only asked what would come of it.
    Foreseen(Box<Prediction>),
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<Box<Problem>> for Fault {
    fn from(problem: Box<Problem>) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => {
                let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let mut response = status.into_response();
                response.extensions_mut().insert(OnItsWay(problem));
                response
            }
            Self::Foreseen(prediction) => At(prediction.revision.into(), Json(prediction)).into_response(),
        }
    }
}

/// A problem that waits for [`finish`].
#[derive(Debug, Clone)]
struct OnItsWay(Box<Problem>);

/// The revision that an answer reflects, if it is not the newest one here.
#[derive(Debug, Clone, Copy)]
struct Reflects(Revision);

/// An answer with the revision that it reflects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<T>(pub(crate) Revision, pub(crate) T);

impl<T: IntoResponse> IntoResponse for At<T> {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        response.extensions_mut().insert(Reflects(self.0));
        response
    }
}

/// Returns an object with its version as its entity tag.
pub(crate) fn tagged<T: Serialize>(status: StatusCode, version: u64, object: T) -> Response {
    let tag = format!("\"v{version}\"");
    (status, [(header::ETAG, tag)], Json(object)).into_response()
}

pub(crate) async fn no_route(request: Request) -> Fault {
    problem::of(Code::Route, format!("there is no route {}", request.uri().path())).into()
}

pub(crate) async fn no_method(request: Request) -> Fault {
    problem::of(Code::Method, format!("{} does not take {}", request.uri().path(), request.method())).into()
}

/// Runs a request within its deadline and puts on its answer what every answer carries.
pub(crate) async fn finish(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = api.new_request();
    let noted = Noted::default();
    request.extensions_mut().insert(noted.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match deadline(&request) {
        Ok(within) => match timeout(within, next.run(request)).await {
            Ok(response) => response,
            Err(_) => out_of_time(&method, within).into_response(),
        },
        Err(fault) => fault.into_response(),
    };
    as_problem(&mut response).await;
    if let Some(OnItsWay(mut problem)) = response.extensions_mut().remove::<OnItsWay>() {
        problem.instance = format!("urn:leaseward:request:{id}");
        problem.leader = api.leader_name();
        if problem.status >= 500 {
            warn!(%method, path, request = id, code = problem.code, detail = problem.detail, "request failed");
        } else {
            debug!(%method, path, request = id, code = problem.code, detail = problem.detail, "request refused");
        }
        write_problem(&mut response, &problem);
    }
    let revision = response.extensions().get::<Reflects>().map(|reflects| reflects.0);
    let as_of = match noted.last() {
        Some(as_of) => as_of,
        // It reflects what this request has just committed.
        None if revision.is_some() && !method.is_safe() => AsOf::Request,
        None => AsOf::Moment(api.heard()),
    };
    let revision = revision.unwrap_or_else(|| api.here().revision());
    let headers = response.headers_mut();
    headers.insert(REVISION, HeaderValue::from(revision.0));
    headers.insert(LEADER, text(api.leader_name().as_deref().unwrap_or("-")));
    headers.insert(STALENESS, staleness(as_of));
    headers.insert(SERVED_BY, text(&api.shared.name));
    headers.insert(REQUEST_ID, text(&id));
    response
}

/// Makes a problem of what the router or an extractor refused in its own words.
async fn as_problem(response: &mut Response) {
    let status = response.status();
    let is_plain =
        response.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/"));
    if !is_plain || status.as_u16() < 400 || response.extensions().get::<OnItsWay>().is_some() {
        return;
    }
    let code = if status.is_server_error() { "LW0607" } else { Code::Unreadable.as_str() };
    let body = std::mem::take(response.body_mut());
    let words = axum::body::to_bytes(body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let mut problem = problem::with_code(code, String::from_utf8_lossy(&words).into_owned());
    problem.status = status.as_u16();
    response.extensions_mut().insert(OnItsWay(Box::new(problem)));
}

/// How long ago the answer was the newest there was, in milliseconds; `-` if this node has heard no leader yet.
fn staleness(as_of: AsOf) -> HeaderValue {
    match as_of {
        AsOf::Request => HeaderValue::from(0_u64),
        AsOf::Moment(Some(as_of)) => HeaderValue::from(u64::try_from(as_of.elapsed().as_millis()).unwrap_or(u64::MAX)),
        AsOf::Moment(None) => HeaderValue::from_static("-"),
    }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

fn write_problem(response: &mut Response, problem: &Problem) {
    let body = serde_json::to_vec(problem).expect("a problem is plain text and numbers");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.remove(header::CONTENT_LENGTH);
    if let Some(wait) = problem.retry_after_ms {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.div_ceil(1_000)));
    }
    if let Some(version) = problem.current_version
        && let Ok(tag) = HeaderValue::from_str(&format!("\"v{version}\""))
    {
        headers.insert(header::ETAG, tag);
    }
    *response.body_mut() = body.into();
}

/// A request may take as long as it says; without a word, as long as the longest wait and a little more.
fn deadline(request: &Request) -> Result<Duration, Fault> {
    match request.headers().get(TIMEOUT) {
        None => Ok(REQUEST_WITHIN + crate::limits::WAIT_MAX),
        Some(value) => {
            value.to_str().ok().and_then(|text| text.parse().ok()).map(Duration::from_millis).ok_or_else(|| {
                problem::of(Code::Invalid, "Leaseward-Timeout-Ms is a whole number of milliseconds").into()
            })
        }
    }
}

fn out_of_time(method: &axum::http::Method, within: Duration) -> Fault {
    let ms = within.as_millis();
    if method.is_safe() {
        return problem::of(Code::NoLeader, format!("no answer within the {ms} ms that were given")).into();
    }
    problem::of(Code::Unknown, format!("no answer within the {ms} ms that were given; the outcome is unknown")).into()
}
