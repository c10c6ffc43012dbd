//! Who may ask what.

use std::time::Duration;

use leaseward_http::access::{hash, spell};
use leaseward_state::TokenName;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::configs;
use crate::harness::{Answer, Cluster, PATIENCE, ask, eventually};

fn bearer(request: RequestBuilder, name: &str) -> RequestBuilder {
    request.bearer_auth(spell(&TokenName::new(name).unwrap(), &secret(name)))
}

fn secret(name: &str) -> String {
    format!("secret-of-{name}")
}

async fn put_token(cluster: &Cluster, by: &str, name: &str, roles: &[&str], ttl: Option<&str>) -> Answer {
    let body = json!({ "secret_hash": hash(&secret(name)).to_string(), "roles": roles, "ttl": ttl, "by": "ops" });
    ask(bearer(cluster.request("PUT", &format!("/v1/tokens/{name}")), by).json(&body)).await
}

async fn post(cluster: &Cluster, by: &str, path: &str, body: Value) -> Answer {
    ask(bearer(cluster.request("POST", path), by).json(&body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_commits_is_asked_of_its_roles_whatever_route_it_came_by() {
    let cluster = Cluster::of(2).await;
    assert_eq!(configs::publish(&cluster, b"max = 500\n", "while everybody may").await, 1);
    let manifest = cluster.get("/v1/configs/app/versions/1").await.ok(200)["version"]["manifest"].clone();
    let list = cluster.get("/v1/tokens").await.ok(200);
    assert_eq!((&list["on"], &list["items"]), (&json!(false), &json!([])));
    put_token(&cluster, "root", "late", &["admin"], Some("1h")).await.problem(422, "LW0101");
    put_token(&cluster, "root", "odd", &["root"], None).await.problem(422, "LW0101");
    put_token(&cluster, "root", "root", &["admin"], None).await.ok(201);

    let unknown = cluster.get("/v1/configs").await;
    assert_eq!(unknown.header("www-authenticate"), "Bearer");
    unknown.problem(401, "LW0401");
    cluster.get("/metrics").await.problem(401, "LW0401");
    ask(cluster.request("GET", "/v1/configs").bearer_auth("lwt1.wrong.root")).await.problem(401, "LW0401");
    ask(cluster.request("GET", "/v1/configs").bearer_auth("root")).await.problem(401, "LW0401");
    ask(cluster.request("GET", "/v1/configs").basic_auth("root", Some("x"))).await.problem(401, "LW0401");
    assert_eq!(cluster.get("/livez").await.status, 200);
    eventually("the other node has heard of it", || cluster.nodes[1].published().borrow().state.access().is_on()).await;
    ask(cluster.request_at(1, "GET", "/v1/configs")).await.problem(401, "LW0401");
    ask(bearer(cluster.request_at(1, "GET", "/v1/configs"), "root")).await.ok(200);

    put_token(&cluster, "root", "root", &["admin"], None).await.problem(412, "LW0409");
    put_token(&cluster, "root", "ci", &["publisher:app", "holder:batch/"], None).await.ok(201);
    put_token(&cluster, "root", "brief", &["viewer"], Some("0s")).await.ok(201);
    put_token(&cluster, "ci", "mine", &["admin"], None).await.problem(403, "LW0403");
    ask(bearer(cluster.request("GET", "/v1/configs"), "brief")).await.problem(401, "LW0401");
    let list = ask(bearer(cluster.request("GET", "/v1/tokens"), "root")).await.ok(200);
    assert_eq!(list["items"][0]["over"], true, "{list}");
    assert!(!list.to_string().contains(&hash(&secret("ci")).to_string()), "not even a hash is shown");

    // One set of two is not enough for both of them, and nothing of it is done.
    let part = |set: &str| json!({ "do": "publish", "set": set, "manifest": manifest, "author": "ann" });
    let both = json!({ "operations": [part("app"), part("web")] });
    let refused = post(&cluster, "ci", "/v1/transaction", both).await.problem(403, "LW0403");
    assert!(refused["detail"].as_str().unwrap().contains("config/web"), "{refused}");
    post(&cluster, "ci", "/v1/transaction", json!({ "operations": [part("app")] })).await.ok(200);
    let newest = ask(bearer(cluster.request("GET", "/v1/configs/app"), "ci")).await.ok(200);
    assert_eq!((&newest["version"], &newest["newest"]["author"]), (&json!(2), &json!("ann (ci)")));
    post(&cluster, "ci", "/v1/configs/web/publish", json!({ "manifest": manifest })).await.problem(403, "LW0403");
    let stop = json!({ "operations": [{ "do": "remove_server", "server": "pay" }] });
    post(&cluster, "ci", "/v1/transaction", stop).await.problem(403, "LW0403");

    // A lease needs its prefix; so does what ends one.
    let session = post(&cluster, "ci", "/v1/sessions", json!({ "name": "job", "ttl": "1h" })).await.ok(201);
    let take = async |by: &str, lease: &str, session: &Value| {
        let body = json!({ "session": session["id"], "holder": by });
        ask(bearer(cluster.request("PUT", &format!("/v1/leases/{lease}")), by).json(&body)).await
    };
    take("ci", "batch/nightly", &session).await.ok(200);
    take("ci", "other", &session).await.problem(403, "LW0403");
    take("ci", "config-edit/app", &session).await.ok(200);
    take("ci", "config-edit/web", &session).await.problem(403, "LW0403");
    let theirs = post(&cluster, "root", "/v1/sessions", json!({ "name": "op", "ttl": "1h" })).await.ok(201);
    take("root", "other", &theirs).await.ok(200);
    let renew = |id: &Value| json!({ "sessions": [{ "session": id, "known": "0" }] });
    post(&cluster, "ci", "/v1/leases:renew", renew(&session["id"])).await.ok(200);
    post(&cluster, "ci", "/v1/leases:renew", renew(&theirs["id"])).await.problem(403, "LW0403");
    post(&cluster, "root", "/v1/leases:renew", renew(&theirs["id"])).await.ok(200);
    let end = |id: &Value| bearer(cluster.request("DELETE", &format!("/v1/sessions/{}", id.as_str().unwrap())), "ci");
    ask(end(&theirs["id"])).await.problem(403, "LW0403");
    // Nor may it be filled with what its owner could not renew.
    take("ci", "batch/theirs", &theirs).await.problem(403, "LW0403");
    take("root", "batch/ours", &theirs).await.ok(200);
    ask(end(&session["id"])).await.ok(204);

    // The same words of two callers are two requests.
    let open = async |by: &str| {
        let request = bearer(cluster.request("POST", "/v1/sessions"), by).header("idempotency-key", "k");
        ask(request.json(&json!({ "name": "job", "ttl": "1h" }))).await.ok(201)["id"].clone()
    };
    let (ours, again, theirs) = (open("ci").await, open("ci").await, open("root").await);
    assert_eq!(ours, again);
    assert_ne!(ours, theirs);

    // What is being told ends with the right to hear it.
    let hear = |by: &str| bearer(cluster.request("GET", "/v1/events").header("accept", "text/event-stream"), by).send();
    let (mut revoked, mut stays) = (hear("ci").await.unwrap(), hear("root").await.unwrap());
    assert_eq!((revoked.status().as_u16(), stays.status().as_u16()), (200, 200));
    put_token(&cluster, "root", "short", &["viewer"], Some("3s")).await.ok(201);
    let mut over = hear("short").await.unwrap();
    assert_eq!(over.status().as_u16(), 200);
    to_end(&mut over).await;
    ask(bearer(cluster.request("DELETE", "/v1/tokens/ci"), "root")).await.ok(204);
    to_end(&mut revoked).await;
    let goes_on = timeout(Duration::from_millis(300), to_end(&mut stays)).await;
    assert!(goes_on.is_err(), "somebody else's stream ended");

    ask(bearer(cluster.request("DELETE", "/v1/tokens/root"), "root")).await.problem(409, "LW0413");
    for name in ["brief", "short", "root"] {
        ask(bearer(cluster.request("DELETE", &format!("/v1/tokens/{name}")), "root")).await.ok(204);
    }
    cluster.get("/v1/configs").await.ok(200);

    // Nor does somebody without any token go on hearing once there is one.
    let nameless = cluster.request("GET", "/v1/events").header("accept", "text/event-stream").send().await;
    let mut nameless = nameless.unwrap();
    assert_eq!(nameless.status().as_u16(), 200);
    put_token(&cluster, "root", "root", &["admin"], None).await.ok(201);
    to_end(&mut nameless).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_not_heard_of_the_first_token_shows_nothing_without_one() {
    for _ in 0..3 {
        let cluster = Cluster::of(3).await;
        let leader = cluster.leader().await;
        put_token(&cluster, "root", "root", &["admin"], None).await.ok(201);
        for node in (0..3).filter(|node| *node != leader) {
            ask(cluster.request_at(node, "GET", "/v1/configs?consistency=stale")).await.problem(401, "LW0401");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_who_looks_sees_what_the_node_knows_and_nobody_learns_of_tokens() {
    let cluster = Cluster::of(3).await;
    for node in [1, 2] {
        cluster.nodes[node].stop().await;
    }
    let look = async |path| ask(cluster.request("GET", path)).await;
    look("/v1/configs?consistency=stale").await.ok(200);
    assert!(!look("/v1/tokens?consistency=stale").await.status.is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_but_our_own_has_a_browser_change_anything() {
    let cluster = Cluster::of(1).await;
    let here = cluster.address(0).to_string();
    let (ours, theirs) = (format!("http://{here}"), "http://evil.example".to_owned());
    let asked = async |headers: &[(&'static str, &str)]| {
        let mut request = cluster.request("POST", "/v1/cluster/transfer-leader");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        ask(request).await
    };
    for foreign in [
        &[("origin", theirs.as_str())][..],
        &[("origin", "null")],
        &[("origin", "http://127.0.0.1:1")],
        &[("sec-fetch-site", "cross-site"), ("origin", &ours)],
        &[("sec-fetch-site", "same-site")],
        &[("origin", &theirs), ("x-forwarded-host", "lw.example")],
    ] {
        let refused = asked(foreign).await.problem(403, "LW0403");
        assert!(refused["detail"].as_str().unwrap().contains("web pages"), "{refused}");
    }
    for own in [
        &[][..],
        &[("origin", ours.as_str())],
        &[("sec-fetch-site", "same-origin"), ("origin", &theirs)],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://LW.example"), ("x-forwarded-host", "lw.example")],
    ] {
        let answer = asked(own).await;
        assert_ne!(answer.status, 403, "{own:?}: {answer:?}");
    }
    let read = cluster.request("GET", "/v1/configs").header("origin", &theirs);
    ask(read).await.ok(200);
}

/// Reads a stream until it ends.
async fn to_end(stream: &mut reqwest::Response) {
    let end = async { while stream.chunk().await.expect("it ends in order").is_some() {} };
    timeout(PATIENCE, end).await.expect("it ends");
}
