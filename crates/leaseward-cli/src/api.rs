//! The API from the client's side: one node after the other until one answers.

use std::path::Path;
use std::time::Duration;

use leaseward_http::model::{Node, NodeList, Prediction, Problem};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::printer::Output;
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
    consistency: String,
    /// Nothing is done; what would come of it is shown like this.
    dry_run: Option<Output>,
}

impl Api {
    /// Returns a client of the cluster that `target` means.
    pub(crate) fn new(target: &Target) -> Self {
        let http = client(|builder| builder);
        Self { http, target: target.clone(), consistency: "linearizable".into(), dry_run: None }
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

    /// Returns whether nothing is done.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    /// Returns an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Diagnostic> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}consistency={}", self.consistency);
        self.send(Method::GET, &path, None::<&()>, &[]).await
    }

    /// Asks for a change.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Diagnostic> {
        self.send(method, path, body, &[]).await
    }

    /// As [`Api::call`], for a change that may have been asked for before: under one key it is made once.
    pub(crate) async fn call_again<T: DeserializeOwned>(
        &self,
        key: &Key,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Diagnostic> {
        self.send_as(key, method, path, body, &[]).await
    }

    /// As [`Api::call`], with headers.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<T, Diagnostic> {
        self.send_as(&Key::new(), method, path, body, headers).await
    }

    async fn send_as<T: DeserializeOwned>(
        &self,
        key: &Key,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<T, Diagnostic> {
        if let (Some(output), true) = (&self.dry_run, method != Method::GET) {
            if leaseward_http::can_be_tried(path) {
                let prediction = self.foresee(method, path, body, headers).await?;
                crate::commands::whatif::show(output, &prediction)?;
                return Err(Diagnostic::new("", "").exit(0));
            }
            let body = body.map(|body| serde_json::to_string(body).unwrap_or_default()).unwrap_or_default();
            return Err(Diagnostic::new("", format!("would ask: {method} {path} {body}")).exit(0));
        }
        self.ask(key, method, path, body, headers).await
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
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        headers: &[(&'static str, String)],
    ) -> Result<Prediction, Diagnostic> {
        let path = format!("{path}{}dry_run=true", if path.contains('?') { '&' } else { '?' });
        self.ask(&Key::new(), method, &path, body, headers).await
    }

    /// Sends bytes.
    pub(crate) async fn post_bytes(&self, path: &str, bytes: Vec<u8>) -> Result<(), Diagnostic> {
        if self.dry_run.is_some() {
            return Ok(());
        }
        self.exchange(&Method::POST, path, &|request| request.body(bytes.clone())).await.map(drop)
    }

    /// Returns bytes.
    pub(crate) async fn get_bytes(&self, path: &str) -> Result<Vec<u8>, Diagnostic> {
        self.exchange(&Method::GET, path, &|request| request).await
    }

    /// Reads bytes as they come, from the first node that answers; each piece must come in time, not all of them.
    pub(crate) async fn download(
        &self,
        path: &str,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Diagnostic>,
    ) -> Result<(), Diagnostic> {
        let mut last = Diagnostic::new("LW0501", "no address is known");
        for address in &self.target.api {
            let timeout = self.target.timeout;
            let (http, host) = match address.strip_prefix("unix:") {
                Some(socket) => {
                    (client(|builder| builder.read_timeout(timeout).unix_socket(Path::new(socket))), "localhost")
                }
                None => (client(|builder| builder.read_timeout(timeout)), address.as_str()),
            };
            let Ok(mut response) = http.get(format!("http://{host}{path}")).send().await else {
                last = Diagnostic::new("LW0501", format!("no answer at {address}"));
                continue;
            };
            let status = response.status();
            if !status.is_success() {
                last = problem(status, &response.bytes().await.unwrap_or_default());
                if matches!(last.code.as_str(), "LW0501" | "LW0505") {
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

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        fill: &(dyn Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder + Sync),
    ) -> Result<Vec<u8>, Diagnostic> {
        let mut last = Diagnostic::new("LW0501", "no address is known");
        for address in &self.target.api {
            let (http, host) = match address.strip_prefix("unix:") {
                Some(socket) => (client(|builder| builder.unix_socket(Path::new(socket))), "localhost"),
                None => (self.http.clone(), address.as_str()),
            };
            let request = http.request(method.clone(), format!("http://{host}{path}")).timeout(self.target.timeout);
            match fill(request).send().await {
                Ok(response) => {
                    let status = response.status();
                    let bytes = match response.bytes().await {
                        Ok(bytes) => bytes.to_vec(),
                        Err(error) => {
                            last = Diagnostic::new("LW0501", format!("{address}: {error}"));
                            continue;
                        }
                    };
                    if status.is_success() {
                        return Ok(bytes);
                    }
                    let diagnostic = problem(status, &bytes);
                    // This node may be cut off; another one may not be.
                    if matches!(diagnostic.code.as_str(), "LW0501" | "LW0505") {
                        last = diagnostic;
                        continue;
                    }
                    return Err(diagnostic);
                }
                Err(error) => {
                    let what = if error.is_connect() { "nobody answers" } else { "no answer" };
                    last = Diagnostic::new("LW0501", format!("{what} at {address}"))
                        .hint("leaseward context ls      see which clusters are known")
                        .hint("--addr host:port          name a node");
                }
            }
        }
        Err(last)
    }

    /// Returns the nodes of the cluster.
    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, Diagnostic> {
        Ok(self.get::<NodeList>("/v1/nodes").await?.items)
    }

    /// Returns the events after a revision, once there is one, or after `wait`.
    pub(crate) async fn events_after(&self, after: u64, wait: Duration) -> Result<Value, Diagnostic> {
        let wait = wait.min(self.target.timeout / 2).as_millis();
        self.send(Method::GET, &format!("/v1/events?after={after}&wait={wait}ms&limit=1000"), None::<&()>, &[]).await
    }
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
