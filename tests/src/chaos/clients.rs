//! A client of the HTTP API that knows what an answer says about what was done.
//!
//! Must stay true: an outcome is called failed only if the answer promises that nothing was done, or if nothing was sent;
//! whatever is not known is unknown.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

use crate::history::number;

/// How long a node may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How long the way there and back may take besides.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The longest question that waits, such as a watcher's.
pub(super) const WAIT: Duration = Duration::from_secs(2);

/// What a node said.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is done.
    Ok {
        /// The body.
        body: Value,
        /// The revision that it reflects.
        revision: Option<u64>,
    },
    /// It is not done, and never will be.
    Refused {
        /// The stable code.
        code: String,
        /// The problem.
        body: Value,
    },
    /// Nobody knows.
    Unknown {
        /// The stable code, if a node said so itself.
        code: String,
    },
}

/// A client.
pub(super) struct Api {
    http: Client,
    apis: Vec<SocketAddr>,
    turn: usize,
}

impl Api {
    pub(super) fn new(apis: Vec<SocketAddr>, turn: usize) -> Self {
        let http = Client::builder()
            .no_proxy()
            .connect_timeout(ON_ITS_WAY)
            .timeout(ANSWER_WITHIN + ON_ITS_WAY + WAIT)
            .build()
            .expect("a plain client");
        Self { http, apis, turn }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let api = self.apis[self.turn % self.apis.len()];
        self.http.request(method, format!("http://{api}{path}"))
    }

    /// Asks one node, once. After anything but a plain answer the next question goes to another one.
    pub(super) async fn call(&mut self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Answer {
        let within = ANSWER_WITHIN + if path.contains("wait=") { WAIT } else { Duration::ZERO };
        let mut request = self.request(method, path).header("leaseward-timeout-ms", within.as_millis().to_string());
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = answered(request).await;
        if !matches!(&answer, Answer::Ok { .. }) {
            self.turn += 1;
        }
        answer
    }

    /// Puts a blob on the node that is asked next. Returns whether it is there.
    pub(super) async fn put_blob(&self, name: &str, bytes: Vec<u8>) -> bool {
        let put = self.request(Method::PUT, &format!("/v1/blobs/{name}")).body(bytes).timeout(ANSWER_WITHIN).send();
        put.await.is_ok_and(|response| response.status().is_success())
    }
}

async fn answered(request: RequestBuilder) -> Answer {
    let refused = |code: &str, body| Answer::Refused { code: code.to_owned(), body };
    let unknown = |code: &str| Answer::Unknown { code: code.to_owned() };
    let response = match request.send().await {
        Ok(response) => response,
        // Nothing was sent.
        Err(error) if error.is_connect() => return refused("unreachable", Value::Null),
        Err(_) => return unknown(""),
    };
    let status = response.status();
    let revision = response.headers().get("leaseward-revision").and_then(|value| value.to_str().ok()?.parse().ok());
    let body: Value = match response.json().await {
        Ok(body) => body,
        Err(_) if status.is_success() => return unknown(""),
        Err(_) => Value::Null,
    };
    if status.is_success() {
        let revision = number(&body["revision"]).or(revision);
        return Answer::Ok { body, revision };
    }
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    let nothing_done = status.is_client_error() || ["LW0501", "LW0503", "LW0605", "LW0801"].contains(&code.as_str());
    if nothing_done { refused(&code, body) } else { unknown(&code) }
}
