//! Asking one node after the other until one answers.
//!
//! Must stay true: a node that is silent (its process is stopped, its packets are lost) costs about a second, however much
//! patience there is for one that answers slowly; the next one is asked beside it. Whoever was sent a change and did not
//! answer may have made it: what other nodes say afterwards is the outcome only if it says something of the change itself.

use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leaseward_raft::limits::{QUIET_BEFORE_ASKING, SILENT_AFTER};
use reqwest::Method;

use super::{Api, problem};
use crate::diagnostic::Diagnostic;

/// Fills in a request: once for each node that is asked.
pub(super) type Fill<'a> = dyn Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder + Sync + 'a;

/// How it went with one node.
enum Outcome {
    /// It answered.
    Said(Result<Vec<u8>, Diagnostic>),
    /// It did nothing, and another one may.
    Declined(Diagnostic),
    /// It was asked, and what it did with it is not known.
    Silent(Diagnostic),
}

impl Api {
    pub(super) async fn exchange(&self, method: &Method, path: &str, fill: &Fill<'_>) -> Result<Vec<u8>, Diagnostic> {
        let (count, first) = (self.target.api.len(), self.first.load(Ordering::Relaxed));
        let changes = changes(method, path);
        let mut waiting = (first..first + count).map(|turn| turn % count);
        let mut asked = FuturesUnordered::new();
        let mut unsettled = Vec::new();
        let mut last = Diagnostic::new("LW0501", "no address is known");
        while let Some(turn) = waiting.next() {
            let address = &self.target.api[turn];
            asked.push(async move { (turn, self.attempt(address, method, path, fill).await) });
            let is_last = waiting.len() == 0;
            let (http, host) = self.way_to(address);
            let silent = silent(&http, host);
            tokio::pin!(silent);
            loop {
                tokio::select! {
                    Some((turn, outcome)) = asked.next() => {
                        let is_open = changes && !(unsettled.is_empty() && asked.is_empty());
                        last = match outcome {
                            Outcome::Said(Err(why)) if is_open && !settles(&why.code) => why,
                            Outcome::Said(answer) => {
                                self.first.store(turn, Ordering::Relaxed);
                                return answer;
                            }
                            Outcome::Declined(why) => why,
                            Outcome::Silent(why) => {
                                unsettled.push(self.target.api[turn].as_str());
                                why
                            }
                        };
                        // Another one that is asked already may answer yet.
                        if !is_last || asked.is_empty() {
                            break;
                        }
                    }
                    () = &mut silent, if !is_last => break,
                }
            }
        }
        if !changes || unsettled.is_empty() {
            return Err(last);
        }
        let why = format!("asked, and without an answer: {}; then: {}", unsettled.join(", "), last.what());
        Err(unknown(path, format!("{method} {path}: it is not known whether it was done")).why(why))
    }

    /// Asks one node.
    async fn attempt(&self, address: &str, method: &Method, path: &str, fill: &Fill<'_>) -> Outcome {
        let (http, host) = self.way_to(address);
        let request = http.request(method.clone(), format!("http://{host}{path}")).timeout(self.target.timeout);
        let response = match self.signed(fill(request)).send().await {
            Ok(response) => response,
            Err(error) => {
                let never_sent = error.is_connect() || error.is_builder();
                let what = if never_sent { "nobody answers" } else { "no answer" };
                let why = Diagnostic::new("LW0501", format!("{what} at {address}"))
                    .hint("leaseward context ls      see which clusters are known")
                    .hint("--addr host:port          name a node");
                return if never_sent { Outcome::Declined(why) } else { Outcome::Silent(why) };
            }
        };
        let status = response.status();
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes.to_vec(),
            Err(error) => return Outcome::Silent(Diagnostic::new("LW0501", format!("{address}: {error}"))),
        };
        if status.is_success() {
            return Outcome::Said(Ok(bytes));
        }
        let why = problem(status, &bytes);
        match why.code.as_str() {
            code if is_of_one_node(code) => Outcome::Declined(why),
            "LW0502" if changes(method, path) => Outcome::Said(Err(unknown(path, why.what()))),
            _ => Outcome::Said(Err(why)),
        }
    }
}

/// Returns whether something may be otherwise afterwards. Blobs are nothing before a version names them.
fn changes(method: &Method, path: &str) -> bool {
    *method != Method::GET && !path.starts_with("/v1/blobs") && !path.contains("dry_run=true")
}

/// Returns whether this says something of the node that was asked, and nothing of the others: it is cut off, is behind, or is kept out
/// of its cluster.
pub(super) fn is_of_one_node(code: &str) -> bool {
    matches!(code, "LW0501" | "LW0505" | "LW0603")
}

/// Returns whether a refusal says what became of a change that another node may have made: not if it never came as far as
/// the log.
fn settles(code: &str) -> bool {
    let unheard = matches!(code, "LW0401" | "LW0403" | "LW0502" | "LW0503" | "LW0614" | "LW0701");
    !(unheard || is_of_one_node(code) || code.starts_with("LW060"))
}

fn unknown(path: &str, what: impl Into<String>) -> Diagnostic {
    let noun = path.trim_start_matches("/v1/").split(['/', ':', '?']).next().unwrap_or_default();
    let shows = match noun {
        "servers" => "server ls",
        "leases" | "sessions" => "lease ls",
        "machines" => "machine ls",
        "nodes" => "node ls",
        "configs" | "transaction" => "config ls",
        "tokens" => "token ls",
        "policy" | "maintenance" => "policy get",
        _ => "status",
    };
    Diagnostic::new("LW0502", what)
        .hint(format!("leaseward {shows}      look whether it was done, before you ask again"))
        .hint("leaseward events --since 10m      what was done of late")
}

/// Waits until a node that owes an answer does not even say that it lives. It may work on a long answer, or wait for
/// something to happen, for as long as it likes.
pub(super) async fn silent(http: &reqwest::Client, host: &str) {
    loop {
        tokio::time::sleep(QUIET_BEFORE_ASKING).await;
        let word = http.get(format!("http://{host}/livez")).timeout(SILENT_AFTER).send();
        if word.await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::{get, put};
    use leaseward_http::problem;
    use reqwest::StatusCode;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::target::Target;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Returns the address of a node whose process is stopped: the kernel accepts for it, and nobody reads.
    async fn stopped() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        (listener, address)
    }

    /// Starts a node that answers after a while, and says meanwhile that it lives. Returns its address and the keys that it
    /// was asked with.
    async fn alive(takes: Duration) -> (String, Arc<Mutex<Vec<String>>>) {
        node(takes, true).await
    }

    /// As [`alive`], and it does not say that it lives.
    async fn dumb(takes: Duration) -> (String, Arc<Mutex<Vec<String>>>) {
        node(takes, false).await
    }

    async fn node(takes: Duration, lives: bool) -> (String, Arc<Mutex<Vec<String>>>) {
        let keys: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&keys);
        let change = async move |headers: HeaderMap| {
            let key = headers["idempotency-key"].to_str().expect("text").to_owned();
            heard.lock().expect("no panic").push(key);
            sleep(takes).await;
            axum::Json(json!({ "done": true }))
        };
        let read = async move || {
            sleep(takes).await;
            axum::Json(json!({ "read": true }))
        };
        let word = async move || {
            sleep(if lives { Duration::ZERO } else { PATIENCE }).await;
            "ok"
        };
        let router = Router::new().route("/livez", get(word)).route("/read", get(read)).route("/change", put(change));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(axum::serve(listener, router).into_future());
        (address, keys)
    }

    /// Starts a node that refuses with a code whatever it is asked.
    async fn refusing(code: &'static str) -> String {
        let refuses = async move || {
            let problem = problem::with_code(code, "it does not do that");
            (StatusCode::from_u16(problem.status).expect("a status"), axum::Json(problem))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let router = Router::new().route("/read", get(refuses)).route("/change", put(refuses));
        tokio::spawn(axum::serve(listener, router).into_future());
        address
    }

    /// Starts a node that hangs up on whoever asks, after it said so much.
    async fn breaking_off(says: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            while let Ok((mut asks, _)) = listener.accept().await {
                if asks.read(&mut [0; 4096]).await.is_err() {
                    continue;
                }
                asks.write_all(says.as_bytes()).await.ok();
            }
        });
        address
    }

    fn of(addresses: &[&String]) -> Api {
        let api = addresses.iter().map(|address| (*address).clone()).collect();
        Api::new(&Target { api, token: None, timeout: PATIENCE })
    }

    #[tokio::test]
    async fn a_silent_node_costs_a_second_and_only_once() {
        let (_listener, silent) = stopped().await;
        let (alive, keys) = alive(Duration::ZERO).await;
        let api = of(&[&silent, &alive]);
        let began = Instant::now();
        let read: Value = api.get("/read").await.expect("the other one answers");
        assert_eq!(read["read"], true);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let began = Instant::now();
        let done: Value = api.call(Method::PUT, "/change", Some(&json!({}))).await.expect("the other one answers");
        assert_eq!(done["done"], true);
        assert!(began.elapsed() < QUIET_BEFORE_ASKING + SILENT_AFTER, "{:?}", began.elapsed());
        assert_eq!(keys.lock().expect("no panic").len(), 1);
    }

    #[tokio::test]
    async fn a_node_that_is_kept_out_keeps_nobody_from_the_others() {
        let kept_out = refusing("LW0603").await;
        let (other, _) = alive(Duration::ZERO).await;
        assert_eq!(of(&[&kept_out, &other]).get::<Value>("/read").await.expect("the other one answers")["read"], true);
        let changed = of(&[&kept_out, &other]).call::<Value>(Method::PUT, "/change", Some(&json!({}))).await;
        assert_eq!(changed.expect("the other one answers")["done"], true);
        let refused = of(&[&kept_out]).get::<Value>("/read").await.expect_err("there is no other one");
        assert_eq!(refused.code, "LW0603");
    }

    #[tokio::test]
    async fn a_node_that_says_that_it_lives_is_waited_for_and_nobody_else_is_asked() {
        let (slow, slow_keys) = alive(QUIET_BEFORE_ASKING + SILENT_AFTER * 2).await;
        let (other, other_keys) = alive(Duration::ZERO).await;
        let api = of(&[&slow, &other]);
        let done: Value = api.call(Method::PUT, "/change", Some(&json!({}))).await.expect("it answers");
        assert_eq!(done["done"], true);
        assert_eq!((slow_keys.lock().expect("no panic").len(), other_keys.lock().expect("no panic").len()), (1, 0));
    }

    #[tokio::test]
    async fn a_change_that_is_sent_to_two_nodes_has_one_key_and_the_first_answer_counts() {
        let (first, first_keys) = dumb(Duration::from_secs(2)).await;
        let (second, second_keys) = alive(PATIENCE).await;
        let api = of(&[&first, &second]);
        let done: Value = api.call(Method::PUT, "/change", Some(&json!({}))).await.expect("the first one answers late");
        assert_eq!(done["done"], true);
        let keys = (first_keys.lock().expect("no panic").clone(), second_keys.lock().expect("no panic").clone());
        assert_eq!((keys.0.len(), &keys.0), (1, &keys.1));
    }

    #[tokio::test]
    async fn where_all_are_silent_the_patience_of_the_caller_counts() {
        let (_listener, silent) = stopped().await;
        let mut api = of(&[&silent, &silent]);
        api.target.timeout = Duration::from_secs(3);
        let began = Instant::now();
        let refused = api.get::<Value>("/read").await.expect_err("nobody answers");
        assert_eq!(refused.code, "LW0501");
        assert!(began.elapsed() >= api.target.timeout, "{:?}", began.elapsed());
    }

    async fn change(nodes: &[&String]) -> Result<Value, Diagnostic> {
        let mut api = of(nodes);
        api.target.timeout = Duration::from_secs(3);
        api.call::<Value>(Method::PUT, "/change", Some(&json!({}))).await
    }

    #[tokio::test]
    async fn what_may_have_been_done_is_not_called_undone() {
        let nobody = "127.0.0.1:1".to_owned();
        let (_listener, silent) = stopped().await;
        let unheard =
            [breaking_off("").await, breaking_off("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await, silent];
        for unheard in &unheard {
            let refused = change(&[unheard]).await.expect_err("it does not answer");
            assert_eq!((refused.code.as_str(), refused.exit_code()), ("LW0502", 7));
            for code in ["LW0501", "LW0505", "LW0603", "LW0401", "LW0403", "LW0503"] {
                let refused = change(&[unheard, &nobody, &refusing(code).await]).await.expect_err("nobody did it");
                assert_eq!(refused.code, "LW0502", "{code}");
                assert!(refused.to_string().contains(unheard.as_str()), "{refused}");
            }
            // It says something of the change.
            let refused = change(&[unheard, &refusing("LW0412").await]).await.expect_err("it is refused");
            assert_eq!(refused.code, "LW0412");
            // Whatever is read can be read again.
            let mut api = of(&[unheard]);
            api.target.timeout = Duration::from_secs(1);
            assert_eq!(api.get::<Value>("/read").await.expect_err("it does not answer").code, "LW0501");
        }
        // Nobody who could have done it was asked.
        for code in ["LW0501", "LW0603", "LW0401", "LW0412"] {
            let refused = change(&[&nobody, &refusing(code).await]).await.expect_err("nobody did it");
            assert_eq!(refused.code, code);
        }
        assert_eq!(change(&[&nobody]).await.expect_err("nobody is there").code, "LW0501");
    }

    #[test]
    fn what_changes_nothing_may_be_left_without_an_answer() {
        for (method, path, is_change) in [
            (Method::GET, "/v1/servers/x", false),
            (Method::PUT, "/v1/servers/x", true),
            (Method::PUT, "/v1/servers/x?dry_run=true", false),
            (Method::POST, "/v1/blobs/missing", false),
        ] {
            assert_eq!(changes(&method, path), is_change, "{method} {path}");
        }
    }
}
