//! What holds for every route, asked of every route.

use std::collections::BTreeSet;

use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, ask};

/// A write that would be done if nothing stood in its way: method, path, body.
type Asked = (&'static str, String, Option<Value>);

/// Every route that writes, each with a request that makes sense after [`furnished`].
fn writes(Furniture { session, token, manifest }: &Furniture) -> Vec<Asked> {
    let spec = json!({ "command": ["/bin/true"] });
    let digest = "0".repeat(64);
    let ask = |method, path: &str, body| (method, path.to_owned(), body);
    vec![
        ask("PUT", "/v1/leases/new", Some(json!({ "session": session, "holder": "h" }))),
        ask("DELETE", &format!("/v1/leases/held?token={token}"), None),
        ask("POST", "/v1/leases:revoke", Some(json!({ "name": "held" }))),
        ask("POST", "/v1/leases:renew", Some(json!({ "sessions": [{ "session": session }] }))),
        ask("POST", "/v1/sessions", Some(json!({ "name": "x" }))),
        ask("DELETE", &format!("/v1/sessions/{session}"), None),
        ask("PUT", "/v1/servers/pay", Some(spec)),
        ask("POST", "/v1/servers/pay/start", None),
        ask("POST", "/v1/servers/pay/stop", None),
        ask("POST", "/v1/servers/pay/move?to=m1", None),
        ask("POST", "/v1/servers/pay/restart", None),
        ask("POST", "/v1/servers/pay/failback", None),
        ask("POST", "/v1/servers/pay/pause", Some(json!({ "reason": "r" }))),
        ask("POST", "/v1/servers/pay/resume", None),
        ask("DELETE", "/v1/servers/pay", None),
        ask("POST", "/v1/machines/m1/cordon", Some(json!({ "reason": "r" }))),
        ask("POST", "/v1/machines/m1/resume", None),
        ask("POST", "/v1/machines/m1/drain", Some(json!({ "reason": "r" }))),
        ask("POST", "/v1/machines/m1/confirm-dead", Some(json!({ "confirm": "m1", "by": "ann" }))),
        ask("DELETE", "/v1/machines/m1", None),
        ask("PUT", "/v1/policy", Some(policy())),
        ask("POST", "/v1/maintenance", Some(json!({ "reason": "r" }))),
        ask("DELETE", "/v1/maintenance", None),
        ask("POST", "/v1/nodes/1/promote", None),
        ask("POST", "/v1/nodes/1/demote", None),
        ask("DELETE", "/v1/nodes/1", None),
        ask("POST", "/v1/cluster/transfer-leader", None),
        ask("POST", "/v1/cluster/finish-upgrade", None),
        ask("POST", "/v1/configs/app/publish", Some(json!({ "manifest": manifest, "author": "a", "message": "m" }))),
        ask("POST", "/v1/configs/app/rollback", Some(json!({ "to": 1, "author": "a" }))),
        ask("PUT", "/v1/configs/app/policy", Some(json!({ "drift": "repair" }))),
        ask("POST", "/v1/configs/app/pin", Some(json!({ "version": 1, "by": "ann" }))),
        ask("POST", "/v1/configs/app/unpin", Some(json!({}))),
        ask("POST", "/v1/configs/app/sync", Some(json!({}))),
        ask("POST", "/v1/configs/app/rollout", Some(json!({ "action": "finish" }))),
        ask("POST", "/v1/configs/app/changes", Some(json!({ "changes": [{ "path": "a", "content": "x" }] }))),
        ask("POST", "/v1/configs/app/adopt", Some(json!({ "machine": "m1" }))),
        ask("DELETE", "/v1/configs/app", None),
        // Refused, as the first token is an administrator's: everything else here is asked without one.
        ask("PUT", "/v1/tokens/eye", Some(json!({ "secret_hash": digest.to_string(), "roles": ["viewer"] }))),
        ask("DELETE", "/v1/tokens/eye", None),
        ask("POST", "/v1/blobs/missing", Some(json!({ "digests": [] }))),
        ask("PUT", &format!("/v1/blobs/{digest}"), None),
        ask("POST", "/v1/blobs", None),
        ask(
            "POST",
            "/v1/transaction",
            Some(json!({ "operations": [{ "do": "set_wanted", "server": "pay", "wanted": "stopped" }] })),
        ),
    ]
}

fn policy() -> Value {
    json!({
        "concurrent_starts": 4, "brake_percent": 30, "brake": "3s", "quarantine_losses": 3, "quarantine_window": "1h",
        "quarantine": "2h", "poison_after": 3, "poison_within": "1m",
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_can_be_tried_without_effect_or_does_not_know_the_word() {
    let (cluster, furniture) = furnished().await;
    let before = cluster.get("/v1/cluster").await.ok(200)["revision"].clone();
    let mut tried = BTreeSet::new();
    for (method, path, body) in writes(&furniture) {
        let with = |words: &str| format!("{path}{}{words}", if path.contains('?') { '&' } else { '?' });
        for unclear in ["dry_run", "dry_run=", "dry_run=true&dry_run=false", "dry_run=false&dry_run", "dry%5Frun=true"]
        {
            let answer = send(&cluster, &(method, with(unclear), body.clone()), &[]).await;
            assert!(matches!(code(&answer).as_deref(), Some("LW0101" | "LW0103")), "{path}: {unclear}: {answer:?}");
        }
        let answer = send(&cluster, &(method, with("dry_run=true"), body), &[]).await;
        match answer.status.as_u16() {
            200 => {
                let prediction = answer.ok(200);
                assert!(prediction["servers"].is_array() && prediction["event"].is_string(), "{path}: {prediction}");
                tried.insert(path);
            }
            // What would be refused is refused the same way.
            _ => {
                assert!(matches!(code(&answer).as_deref(), Some("LW0101" | "LW0103" | "LW0413")), "{path}: {answer:?}");
            }
        }
    }
    let now = cluster.get("/v1/cluster").await.ok(200)["revision"].clone();
    assert_eq!(before, now, "nothing was written");
    for path in [
        "/v1/servers/pay",
        "/v1/servers/pay/stop",
        "/v1/machines/m1/drain",
        "/v1/policy",
        "/v1/maintenance",
        "/v1/configs/app/publish",
    ] {
        assert!(tried.contains(path), "{path} can be tried: {tried:?}");
    }
}

/// What requests can name: one object of each kind is there.
struct Furniture {
    session: String,
    /// Of the lease `held`.
    token: String,
    manifest: String,
}

async fn furnished() -> (Cluster, Furniture) {
    let cluster = Cluster::of(1).await;
    cluster.machine("m1").await;
    let session = cluster.session("job").await;
    let held = cluster.put("/v1/leases/held", json!({ "session": session, "holder": "h" })).await.ok(200);
    cluster.put("/v1/servers/pay", json!({ "command": ["/bin/true"], "candidates": ["m1"] })).await.ok(201);
    crate::configs::publish(&cluster, b"max = 500\n", "first").await;
    let set = cluster.get("/v1/configs/app").await.ok(200);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (token, manifest) = (text(&held["token"]), text(&set["newest"]["manifest"]));
    (cluster, Furniture { session, token, manifest })
}

async fn send(cluster: &Cluster, (method, path, body): &Asked, headers: &[(&'static str, &str)]) -> Answer {
    let mut request = cluster.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    ask(match body {
        Some(body) => request.json(body),
        None => request,
    })
    .await
}

fn code(answer: &Answer) -> Option<String> {
    serde_json::from_str::<Value>(&answer.text).ok()?["code"].as_str().map(ToOwned::to_owned)
}

#[test]
fn no_write_is_left_out_here() {
    let document = leaseward_http::document();
    let is_value = |part: &str| part.starts_with('{');
    let named = || "1".to_owned();
    let asked = writes(&Furniture { session: named(), token: named(), manifest: named() });
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|method| *method != "get") {
            let matches = |(asked, url, _): &&Asked| {
                let url = url.split('?').next().unwrap_or_default();
                asked.to_lowercase() == **method
                    && url.split('/').count() == path.split('/').count()
                    && url.split('/').zip(path.split('/')).all(|(part, name)| is_value(name) || part == name)
            };
            assert!(asked.iter().any(|write| matches(&write)), "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_heeds_a_fence_or_says_that_it_does_not() {
    let (cluster, furniture) = furnished().await;
    let mut heeded = BTreeSet::new();
    for write in writes(&furniture) {
        let answer = send(&cluster, &write, &[("leaseward-fence", "other;7")]).await;
        let code = code(&answer);
        assert!(matches!(code.as_deref(), Some("LW0203" | "LW0107")), "{write:?}: {answer:?}");
        if code.as_deref() == Some("LW0203") {
            heeded.insert(write.1);
        }
    }
    for path in ["/v1/leases/new", "/v1/servers/pay", "/v1/configs/app", "/v1/configs/app/publish", "/v1/transaction"] {
        assert!(heeded.contains(path), "{path} is guarded by a fence: {heeded:?}");
    }
    let right = format!("held;{}", furniture.token);
    for write in writes(&furniture).iter().filter(|write| write.1.starts_with("/v1/servers/pay/st")) {
        send(&cluster, write, &[("leaseward-fence", &right)]).await.ok(202);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_heeds_a_version_or_says_that_it_does_not() {
    let (cluster, furniture) = furnished().await;
    let mut heeded = BTreeSet::new();
    for write in writes(&furniture) {
        let answer = send(&cluster, &write, &[("if-match", "\"v999999\"")]).await;
        match code(&answer).as_deref() {
            Some("LW0412") => {
                assert_eq!(answer.status, 412, "{write:?}");
                let problem = answer.json();
                let current = problem["current_version"].as_u64().unwrap_or_else(|| panic!("{write:?}: {problem}"));
                assert_eq!(answer.header("etag"), format!("\"v{current}\""), "{write:?}: the tag to try again with");
                heeded.insert(write.1.clone());
            }
            other => assert!(other == Some("LW0107"), "{write:?}: {answer:?}"),
        }
        let both = send(&cluster, &write, &[("if-match", "\"v1\""), ("if-none-match", "*")]).await;
        assert_eq!(code(&both).as_deref(), Some("LW0101"), "{write:?}: {both:?}");
    }
    let expected = [
        "/v1/servers/pay",
        "/v1/servers/pay/start",
        "/v1/machines/m1/cordon",
        "/v1/configs/app",
        "/v1/configs/app/rollback",
    ];
    for path in expected {
        assert!(heeded.contains(path), "{path} is guarded by a version: {heeded:?}");
    }
    let made = cluster.request("PUT", "/v1/servers/new").header("if-none-match", "*");
    ask(made.json(&json!({ "command": ["/bin/true"] }))).await.ok(201);
    let again = cluster.request("PUT", "/v1/servers/new").header("if-none-match", "*");
    ask(again.json(&json!({ "command": ["/bin/true"] }))).await.problem(412, "LW0409");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_is_sent_again_under_its_key_is_one_entry() {
    let (cluster, furniture) = furnished().await;
    let revision = || cluster.nodes[0].published().borrow().state.revision();
    let posts = [
        "/v1/sessions",
        "/v1/servers/pay/stop",
        "/v1/servers/pay/start",
        "/v1/machines/m1/cordon",
        "/v1/machines/m1/resume",
        "/v1/configs/app/publish",
        "/v1/configs/app/rollback",
        "/v1/leases:revoke",
        "/v1/transaction",
    ];
    for path in posts {
        let all = writes(&furniture);
        let write = all.iter().find(|write| write.0 == "POST" && write.1 == path).expect(path);
        let first = send(&cluster, write, &[("idempotency-key", "k")]).await;
        assert!(first.status.is_success(), "{path}: {first:?}");
        let state = std::sync::Arc::clone(&cluster.nodes[0].published().borrow().state);
        let again = send(&cluster, write, &[("idempotency-key", "k")]).await;
        assert_eq!(again.status, first.status, "{path}: {again:?}");
        let same = |answer: &Answer| {
            let object: Value = serde_json::from_str(&answer.text).unwrap_or_default();
            (object["id"].clone(), object["version"].clone(), object["outcomes"].clone())
        };
        assert_eq!(same(&again), same(&first), "{path}");
        let now = std::sync::Arc::clone(&cluster.nodes[0].published().borrow().state);
        let since: Vec<_> = now.events_after(state.revision()).unwrap().collect();
        assert!(since.is_empty(), "{path}: nothing happened the second time: {since:?}");
    }
    // What a request did itself is no reason to refuse it when it is sent again.
    let path = |name: &str| format!("/v1/configs/app/{name}");
    let newest = async || cluster.get("/v1/configs/app").await.ok(200)["version"].as_u64().unwrap();
    let put =
        |file: &str, parent: Option<u64>| json!({ "parent": parent, "changes": [{ "path": file, "content": "1" }] });
    let posts: [(&str, String, Value); 4] = [
        ("file", path("changes"), put("once", Some(newest().await))),
        ("removal", path("changes"), json!({ "changes": [{ "path": "once", "remove": true }] })),
        ("adoption", path("adopt"), json!({ "machine": "m1", "parent": newest().await + 2 })),
        ("failback", "/v1/servers/pay/failback".to_owned(), json!({})),
    ];
    for (key, path, body) in posts {
        let write = ("POST", path.clone(), (key != "failback").then_some(body));
        let first = send(&cluster, &write, &[("idempotency-key", key)]).await;
        assert!(first.status.is_success(), "{key}: {first:?}");
        let before = newest().await;
        if key == "failback" {
            // No candidate could take it now.
            cluster.post("/v1/machines/m1/cordon", json!({ "reason": "r" })).await;
        }
        let again = send(&cluster, &write, &[("idempotency-key", key)]).await;
        let shown = |answer: &Answer| (answer.json()["version"].clone(), answer.json()["id"].clone());
        assert_eq!((again.status, shown(&again)), (first.status, shown(&first)), "{key}");
        assert_eq!(newest().await, before, "{key}");
    }
    let long = "x".repeat(257);
    for bad in ["", &long] {
        let before = revision();
        let opened = ("POST", "/v1/sessions".to_owned(), Some(json!({ "name": "x" })));
        send(&cluster, &opened, &[("idempotency-key", bad)]).await.problem(422, "LW0101");
        assert_eq!(revision(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_has_a_version_that_is_its_tag() {
    let (cluster, Furniture { session, .. }) = furnished().await;
    let objects = [
        "/v1/leases/held".to_owned(),
        format!("/v1/sessions/{session}"),
        "/v1/servers/pay".into(),
        "/v1/machines/m1".into(),
        "/v1/configs/app".into(),
        "/v1/configs/app/versions/1".into(),
    ];
    for path in &objects {
        let answer = cluster.get(path).await;
        let tag = answer.header("etag").to_owned();
        let object = answer.ok(200);
        let version = object.pointer("/version/version").unwrap_or(&object["version"]);
        assert!(version.is_u64(), "{path}: {object}");
        assert_eq!(tag, format!("\"v{version}\""), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_has_pages() {
    let (cluster, Furniture { session, .. }) = furnished().await;
    cluster.machine("m2").await;
    cluster.session("other").await;
    cluster.put("/v1/servers/pay-2", json!({ "command": ["/bin/true"] })).await.ok(201);
    for verb in ["stop", "start"] {
        ask(cluster.request("POST", &format!("/v1/servers/pay-2/{verb}"))).await.ok(202);
    }
    cluster.put("/v1/leases/held-2", json!({ "session": session, "holder": "h" })).await.ok(200);
    let rollback = json!({ "to": 1, "author": "a" });
    cluster.post("/v1/configs/app/rollback", rollback).await.ok(201);
    let document = leaseward_http::document();
    let lists: Vec<&String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, item)| {
            let body = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
            body.as_str().is_some_and(|name| name.ends_with("List") && !name.ends_with("EventList"))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(lists.len() >= 8, "{lists:?}");
    for path in lists {
        let path = path.replace("{set}", "app");
        let whole = cluster.get(&path).await.ok(200);
        assert!(whole["revision"].is_string() && whole["next_page"].is_null(), "{path}: {whole}");
        let (mut seen, mut next) = (Vec::new(), None::<String>);
        loop {
            let page = next.map_or_else(String::new, |next| format!("&page={next}"));
            let part = cluster.get(&format!("{path}?limit=1{page}")).await.ok(200);
            assert_eq!(part["revision"], whole["revision"], "{path}: one revision");
            seen.extend(part["items"].as_array().unwrap().iter().cloned());
            next = part["next_page"].as_str().map(ToOwned::to_owned);
            if next.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), whole["items"].as_array().unwrap().len(), "{path}");
        assert!(
            ["/v1/nodes", "/v1/configs", "/v1/tokens"].contains(&path.as_str()) || seen.len() > 1,
            "{path} has more than one page"
        );
        cluster.get(&format!("{path}?limit=0")).await.problem(422, "LW0101");
        cluster.get(&format!("{path}?page=nonsense")).await.problem(422, "LW0101");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_reads_its_deadline() {
    let cluster = Cluster::of(1).await;
    let document = leaseward_http::document();
    for (path, item) in document["paths"].as_object().unwrap() {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "0" } else { part });
        let url = parts.collect::<Vec<_>>().join("/");
        for method in item.as_object().unwrap().keys() {
            let request = cluster.request(&method.to_uppercase(), &url).header("leaseward-timeout-ms", "soon");
            ask(request).await.problem(422, "LW0101");
        }
    }
    let waits = cluster.request("GET", "/v1/events?kinds=lease&after=0&wait=20s").header("leaseward-timeout-ms", "50");
    ask(waits).await.problem(503, "LW0501");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_router_refuses_is_a_problem_too() {
    let cluster = Cluster::of(1).await;
    for path in ["/v1/leases/%ff", "/v1/servers/%ff", "/v1/configs/app/versions/%ff"] {
        let problem = cluster.get(path).await.problem(400, "LW0104");
        assert!(!problem["detail"].as_str().unwrap().is_empty() && problem["leader"] == "n1", "{problem}");
    }
    let mut request = cluster.request("GET", "/v1/leases").build().unwrap();
    request.headers_mut().insert("leaseward-timeout-ms", HeaderValue::from_bytes(b"\xff").unwrap());
    let answer = reqwest::Client::new().execute(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (422, &"application/problem+json".parse().unwrap())
    );
    let wrong = ask(cluster.request("PATCH", "/v1/leases")).await;
    assert!(wrong.header("allow").contains("GET"), "{wrong:?}");
    wrong.problem(405, "LW0108");
}
