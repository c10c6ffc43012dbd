//! The API from the client's side: what is asked, and how the answers are read. Which node is asked is in `exchange.rs`.
//!
//! Must stay true: everything that is sent may arrive twice: reads and blobs may, and every change has a key.

mod exchange;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use leaseward_http::limits::PAGE_MAX;
use leaseward_http::model::{EventList, Node, NodeList, Prediction, Problem};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::exchange::{is_of_one_node, silent};
use crate::diagnostic::Diagnostic;
use crate::printer::Output;
use crate::route::Route;
use crate::target::Target;

/// Names a change. It is the same at every node, so that what one of them made is not made again by the next.
#[derive(Debug)]
pub(crate) struct Key(String);

impl Key {
    /// Returns the key of a change that nobody asked for yet.
    pub(crate) fn new() -> Self {
        Self(format!("{:032x}", leaseward_raft::random::unique()))
    }
}

/// A client of the API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    target: Target,
    /// Whoever answered last is asked first. Clones share it.
    first: Arc<AtomicUsize>,
    consistency: String,
    /// Nothing is done; what would come of it is shown like this.
    dry_run: Option<Output>,
}

impl Api {
    /// Returns a client of the cluster that `target` means.
    pub(crate) fn new(target: &Target) -> Self {
        let http = client(|builder| builder);
        Self { http, target: target.clone(), first: Arc::default(), consistency: "linearizable".into(), dry_run: None }
    }

    /// Sets how fresh reads must be.
    pub(crate) fn consistency(mut self, consistency: &str) -> Self {
        consistency.clone_into(&mut self.consistency);
        self
    }

    /// Only shows what would be asked.
    pub(crate) fn dry_run(mut self, dry_run: Option<Output>) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Answers may take so much longer: whoever is asked was told to wait.
    pub(crate) fn and_waits(mut self, so_long: Duration) -> Self {
        self.target.timeout = self.target.timeout.saturating_add(so_long);
        self
    }

    /// Returns whether nothing is done.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    /// Returns an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, route: impl Into<Route>) -> Result<T, Diagnostic> {
        let route = route.into().with("consistency", &self.consistency);
        self.send(Method::GET, &route, None::<&()>, &[]).await
    }

    /// Returns a list, with the items of all its pages.
    pub(crate) async fn list<T: DeserializeOwned>(&self, route: impl Into<Route>) -> Result<T, Diagnostic> {
        let route = route.into().with("limit", PAGE_MAX);
        let strange = |why: &str| Diagnostic::new("LW0701", format!("{}: a strange answer: {why}", route.as_str()));
        let mut whole: Value = self.get(&route).await?;
        let mut next = next_page(&mut whole);
        while let Some(page) = next {
            let mut more: Value = self.get(route.clone().with("page", &page)).await?;
            next = next_page(&mut more);
            // It would be asked for ever.
            if next.as_ref() == Some(&page) {
                return Err(strange("a page that is its own next one"));
            }
            let (Some(items), Some(others)) = (items(&mut whole), items(&mut more)) else {
                return Err(strange("a page without items"));
            };
            items.append(others);
        }
        serde_json::from_value(whole).map_err(|error| strange(&error.to_string()))
    }

    /// Asks for a change.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        route: impl Into<Route>,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Diagnostic> {
        self.send(method, route, body, &[]).await
    }

    /// As [`Api::call`], for a change that may have been asked for before: under one key it is made once.
    pub(crate) async fn call_again<T: DeserializeOwned>(
        &self,
        key: &Key,
        method: Method,
        route: impl Into<Route>,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Diagnostic> {
        self.send_as(key, method, route.into(), body, &[]).await
    }

    /// As [`Api::call`], with headers.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        route: impl Into<Route>,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<T, Diagnostic> {
        self.send_as(&Key::new(), method, route.into(), body, headers).await
    }

    async fn send_as<T: DeserializeOwned>(
        &self,
        key: &Key,
        method: Method,
        route: Route,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<T, Diagnostic> {
        if let (Some(output), true) = (&self.dry_run, method != Method::GET) {
            let path = route.as_str();
            if leaseward_http::can_be_tried(path) {
                let prediction = self.foresee(method, route, body, headers).await?;
                crate::commands::whatif::show(output, &prediction)?;
                return Err(Diagnostic::new("", "").exit(0));
            }
            let body = body.map(|body| serde_json::to_string(body).unwrap_or_default()).unwrap_or_default();
            return Err(Diagnostic::new("", format!("would ask: {method} {path} {body}")).exit(0));
        }
        self.ask(key, method, route.as_str(), body, headers).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        key: &Key,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<T, Diagnostic> {
        let bytes = self
            .exchange(&method, path, &|request| {
                let mut request = request;
                if method != Method::GET {
                    request = request.header("Idempotency-Key", &key.0);
                }
                for (name, value) in headers {
                    request = request.header(*name, value);
                }
                match body {
                    Some(body) => request.json(body),
                    None => request,
                }
            })
            .await?;
        let bytes = if bytes.is_empty() { b"null".to_vec() } else { bytes };
        serde_json::from_slice(&bytes)
            .map_err(|error| Diagnostic::new("LW0701", format!("{path}: a strange answer: {error}")))
    }

    /// Returns what would come of a change that is not made.
    pub(crate) async fn foresee(
        &self,
        method: Method,
        route: impl Into<Route>,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<Prediction, Diagnostic> {
        let route = route.into().with("dry_run", true);
        self.ask(&Key::new(), method, route.as_str(), body, headers).await
    }

    /// Returns whether the node that is asked first is on this machine.
    pub(crate) fn is_near(&self) -> bool {
        let first = self.target.api.get(self.first.load(Ordering::Relaxed));
        first.is_some_and(|address| address.starts_with("unix:") || leaseward_raft::net::is_here(address))
    }

    /// Sends bytes.
    pub(crate) async fn post_bytes(&self, route: impl Into<Route>, bytes: Bytes) -> Result<(), Diagnostic> {
        if self.dry_run.is_some() {
            return Ok(());
        }
        self.exchange(&Method::POST, route.into().as_str(), &|request| request.body(bytes.clone())).await.map(drop)
    }

    /// Returns bytes.
    pub(crate) async fn get_bytes(&self, route: impl Into<Route>) -> Result<Vec<u8>, Diagnostic> {
        self.exchange(&Method::GET, route.into().as_str(), &|request| request).await
    }

    /// Reads bytes as they come, from the first node that answers; each piece must come in time, not all of them.
    pub(crate) async fn download(
        &self,
        route: impl Into<Route>,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Diagnostic>,
    ) -> Result<(), Diagnostic> {
        let route = route.into();
        let path = route.as_str();
        let mut last = Diagnostic::new("LW0501", "no address is known");
        for address in &self.target.api {
            let timeout = self.target.timeout;
            let (http, host) = match address.strip_prefix("unix:") {
                Some(socket) => {
                    (client(|builder| builder.read_timeout(timeout).unix_socket(Path::new(socket))), "localhost")
                }
                None => (client(|builder| builder.read_timeout(timeout)), address.as_str()),
            };
            let begun = tokio::select! {
                begun = self.signed(http.get(format!("http://{host}{path}"))).send() => begun.ok(),
                () = silent(&http, host), if self.target.api.len() > 1 => None,
            };
            let Some(mut response) = begun else {
                last = Diagnostic::new("LW0501", format!("no answer at {address}"));
                continue;
            };
            let status = response.status();
            if !status.is_success() {
                last = problem(status, &response.bytes().await.unwrap_or_default());
                if is_of_one_node(&last.code) {
                    continue;
                }
                return Err(last);
            }
            // What was taken cannot be given back: another node would begin anew.
            let broken = |error: reqwest::Error| Diagnostic::new("LW0501", format!("{address}: it broke off: {error}"));
            while let Some(piece) = response.chunk().await.map_err(broken)? {
                take(&piece)?;
            }
            return Ok(());
        }
        Err(last)
    }

    /// Says who asks.
    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.target.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Returns what speaks with an address, and which host it asks for.
    fn way_to<'a>(&self, address: &'a str) -> (reqwest::Client, &'a str) {
        match address.strip_prefix("unix:") {
            Some(socket) => (client(|builder| builder.unix_socket(Path::new(socket))), "localhost"),
            None => (self.http.clone(), address),
        }
    }

    /// Returns the nodes of the cluster.
    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, Diagnostic> {
        Ok(self.list::<NodeList>("/v1/nodes").await?.items)
    }

    /// Returns the events after a revision, once there is one, or after `wait`.
    pub(crate) async fn events_after(&self, after: u64, wait: Duration) -> Result<EventList, Diagnostic> {
        self.events(Route::from("/v1/events"), after, wait).await
    }

    /// As [`Api::events_after`], of those that the route chooses.
    pub(crate) async fn events(&self, route: Route, after: u64, wait: Duration) -> Result<EventList, Diagnostic> {
        let wait = wait.min(self.target.timeout / 2).as_millis();
        let route = route.with("after", after).with("wait", format!("{wait}ms")).with("limit", PAGE_MAX);
        self.send(Method::GET, route, None::<&()>, &[]).await
    }
}

/// Takes out of a page of a list which one comes next.
fn next_page(page: &mut Value) -> Option<String> {
    match page.get_mut("next_page")?.take() {
        Value::String(next) => Some(next),
        _ => None,
    }
}

fn items(page: &mut Value) -> Option<&mut Vec<Value>> {
    page.get_mut("items")?.as_array_mut()
}

fn client(with: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    let builder = reqwest::Client::builder().connect_timeout(Duration::from_millis(800)).no_proxy();
    with(builder).build().expect("a plain client can be made")
}

fn problem(status: StatusCode, bytes: &[u8]) -> Diagnostic {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => {
            let mut diagnostic = Diagnostic::new(&problem.code, problem.detail);
            if let Some(leader) = problem.leader.filter(|_| problem.retryable) {
                diagnostic = diagnostic.why(format!("the leader is {leader}"));
            }
            if !problem.hint.is_empty() {
                diagnostic = diagnostic.hint(problem.hint);
            }
            diagnostic
        }
        Err(_) => Diagnostic::new("LW0701", format!("{status}: {}", String::from_utf8_lossy(bytes))),
    }
}
