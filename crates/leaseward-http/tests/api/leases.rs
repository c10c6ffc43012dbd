//! Leases and sessions, from the first acquire to a handover.

use std::time::Duration;

use leaseward_state::LeaseName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::harness::{Cluster, PATIENCE, ask, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_taken_seen_renewed_and_given_back() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    let body = json!({ "session": session, "holder": "job", "meta": { "pid": "4711" } });
    let answer = cluster.put("/v1/leases/batch/nightly", body.clone()).await;
    assert_eq!(answer.header("leaseward-served-by"), "n1");
    assert_eq!(answer.header("leaseward-leader"), "n1");
    let tag = answer.header("etag").to_owned();
    let lease = answer.ok(200);
    assert_eq!(
        (&lease["name"], &lease["state"], &lease["holder"]),
        (&"batch/nightly".into(), &"held".into(), &"job".into())
    );
    assert_eq!((&lease["ttl"], &lease["meta"]["pid"]), (&"1h".into(), &"4711".into()));
    let token = lease["token"].as_str().expect("tokens are text").to_owned();
    assert_eq!(tag, format!("\"v{token}\""), "its version is the entry that changed it last");
    assert!(lease["remaining"].is_string(), "this node leads: {lease}");
    assert!(lease["held_since"].as_str().unwrap().ends_with('Z'));

    assert_eq!(cluster.put("/v1/leases/batch/nightly", body).await.ok(200)["token"], token, "asking again is harmless");
    assert_eq!(cluster.get("/v1/leases/batch/nightly").await.ok(200)["token"], token);
    let list = cluster.get("/v1/leases?prefix=batch/").await.ok(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert!(list["revision"].is_string() && list["next_page"].is_null());

    let renewed =
        cluster.post("/v1/leases:renew", json!({ "sessions": [{ "session": session }, { "session": "999" }] }));
    let renewed = renewed.await.ok(200);
    assert_eq!(renewed["sessions"][0]["alive"], true);
    assert_eq!(renewed["sessions"][0]["leases"], json!([{ "name": "batch/nightly", "token": token }]));
    assert_eq!(renewed["sessions"][1]["alive"], false);
    let known = renewed["sessions"][0]["leases_revision"].clone();
    let body = json!({ "sessions": [{ "session": session, "known": known }] });
    assert!(cluster.post("/v1/leases:renew", body).await.ok(200)["sessions"][0]["leases"].is_null());

    let sessions = cluster.get("/v1/sessions").await.ok(200);
    assert_eq!(sessions["items"][0]["leases"][0]["name"], "batch/nightly");
    assert_eq!(cluster.get(&format!("/v1/sessions/{session}")).await.ok(200)["owner"], "client");

    let stale = cluster.delete("/v1/leases/batch/nightly?token=1").await.problem(409, "LW0203");
    assert_eq!(stale["current_token"], token);
    cluster.delete(&format!("/v1/leases/batch/nightly?token={token}")).await.ok(204);
    cluster.get("/v1/leases/batch/nightly").await.problem(404, "LW0404");
    cluster.delete(&format!("/v1/sessions/{session}")).await.ok(204);
    cluster.get(&format!("/v1/sessions/{session}")).await.problem(410, "LW0204");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_opened_for_a_lease_costs_no_entry_of_its_own() {
    let cluster = Cluster::of(1).await;
    let revision = || cluster.nodes[0].published().borrow().state.revision().0;
    // The first command of a cluster brings another one with it.
    cluster.session("job").await;
    let before = revision();
    let answer = cluster.put("/v1/leases/a", json!({ "holder": "h", "ttl": "1h", "meta": { "k": "v" } })).await;
    assert_eq!(answer.header("leaseward-revision"), (before + 1).to_string());
    let lease = answer.ok(200);
    assert_eq!(revision(), before + 1, "one entry opens the session and grants the lease");
    assert_eq!((&lease["holder"], &lease["ttl"], &lease["meta"]["k"]), (&"h".into(), &"1h".into(), &"v".into()));
    let session = cluster.get(&format!("/v1/sessions/{}", lease["session"].as_str().unwrap())).await.ok(200);
    assert_eq!((&session["name"], &session["leases"][0]["name"]), (&"h".into(), &"a".into()));

    cluster.put("/v1/leases/a", json!({ "holder": "other" })).await.problem(409, "LW0202");
    assert_eq!(revision(), before + 2, "a refused one is one entry, too");
    assert_eq!(cluster.get("/v1/sessions").await.ok(200)["items"].as_array().unwrap().len(), 2);

    let fenced = cluster.request("PUT", "/v1/leases/b").header("leaseward-fence", "a;1");
    ask(fenced.json(&json!({ "holder": "h" }))).await.problem(422, "LW0107");
    assert_eq!(revision(), before + 2, "nothing was asked of the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_nodes_of_an_older_release_it_costs_two_entries() {
    let cluster = Cluster::of_level(1, 0).await;
    let revision = || cluster.nodes[0].published().borrow().state.revision().0;
    // The first command of a cluster brings another one with it.
    cluster.session("job").await;
    let before = revision();
    let lease = cluster.put("/v1/leases/a", json!({ "holder": "h", "ttl": "1h" })).await.ok(200);
    assert_eq!(revision(), before + 2, "the older ones cannot read the entry that does both");
    cluster.get(&format!("/v1/sessions/{}", lease["session"].as_str().unwrap())).await.ok(200);
    cluster.put("/v1/leases/a", json!({ "holder": "other" })).await.problem(409, "LW0202");
    let sessions = cluster.get("/v1/sessions").await.ok(200);
    assert_eq!(sessions["items"].as_array().unwrap().len(), 2, "the session of the refused one is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_its_code() {
    let cluster = Cluster::of(1).await;
    let too_short = cluster.put("/v1/leases/a", json!({ "holder": "h", "ttl": "100ms" })).await.problem(422, "LW0102");
    assert!(too_short["detail"].as_str().unwrap().contains("200"), "{too_short}");
    let unknown = cluster.put("/v1/leases/a", json!({ "hodler": "h" })).await.problem(422, "LW0103");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `holder`?"), "{unknown}");
    let unknown = cluster.get("/v1/leases?prefx=a").await.problem(422, "LW0103");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `prefix`?"), "{unknown}");
    let unknown = cluster.get("/v1/leases?consistency=stael").await.problem(422, "LW0101");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `stale`?"), "{unknown}");
    cluster.get("/v1/leases?limit=many").await.problem(422, "LW0101");
    cluster.get("/v1/leases?limit=0").await.problem(422, "LW0101");
    cluster.get("/v1/leases?page=nonsense").await.problem(422, "LW0101");
    cluster.put("/v1/leases/a", json!({ "holder": "h", "ttl": "soon" })).await.problem(422, "LW0101");
    cluster.put("/v1/leases/a", json!({ "holder": "h", "wait": "1d" })).await.problem(422, "LW0101");
    cluster.put("/v1/leases/a%20b", json!({ "holder": "h" })).await.problem(422, "LW0101");
    cluster.put("/v1/leases/server/x", json!({ "holder": "h" })).await.problem(409, "LW0413");
    cluster.put("/v1/leases/a", json!({ "holder": "h", "session": "999" })).await.problem(410, "LW0204");
    cluster.get("/v1/nothing").await.problem(404, "LW0109");
    ask(cluster.request("PATCH", "/v1/leases")).await.problem(405, "LW0108");
    ask(cluster.request("POST", "/v1/sessions").body("{}")).await.problem(415, "LW0111");
    let cut = cluster.request("POST", "/v1/sessions").header("content-type", "application/json").body("{\"name\":");
    ask(cut).await.problem(400, "LW0104");
    let long = json!({ "name": "x".repeat(300 << 10) });
    cluster.post("/v1/sessions", long).await.problem(413, "LW0110");
    let late = cluster.request("GET", "/v1/leases").header("leaseward-timeout-ms", "soon");
    ask(late).await.problem(422, "LW0101");
    let versioned = cluster.request("POST", "/v1/sessions").header("if-match", "\"v1\"").json(&json!({ "name": "x" }));
    ask(versioned).await.problem(422, "LW0107");
    assert_eq!(cluster.get("/v1/sessions").await.ok(200)["items"], json!([]), "no refused acquire left a session");

    // Clients would resolve `..` before they ask.
    let mut raw = tokio::net::TcpStream::connect(cluster.address(0)).await.unwrap();
    raw.write_all(b"GET /v1/leases/a/../b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, raw.read_to_string(&mut text)).await.expect("in time").unwrap();
    assert!(text.starts_with("HTTP/1.1 422") && text.contains("LW0101"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_gets_the_lease_the_moment_it_is_released() {
    let cluster = Cluster::of(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let first = cluster.session("first").await;
    let held = cluster.put("/v1/leases/a", json!({ "session": first, "holder": "first" })).await.ok(200);
    let refused = cluster.put("/v1/leases/a", json!({ "holder": "second" })).await.problem(409, "LW0202");
    assert_eq!((&refused["holder"], &refused["current_token"]), (&"first".into(), &held["token"]));

    // The session that is opened for the waiter is shorter than its wait: it must be kept alive meanwhile.
    let body = json!({ "holder": "second", "ttl": "400ms", "wait": "20s" });
    let waiting = tokio::spawn(ask(cluster.request_at(follower, "PUT", "/v1/leases/a").json(&body)));
    let name = LeaseName::new("a").unwrap();
    let waiters = || cluster.nodes[0].published().borrow().state.lease(&name).map_or(0, |lease| lease.waiters.len());
    eventually("it waits", || waiters() == 1).await;
    assert_eq!(cluster.get("/v1/leases/a").await.ok(200)["waiting"][0]["holder"], "second");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(waiters(), 1, "its session lives, though it is longer than its time to live");

    let token = held["token"].as_str().unwrap();
    cluster.delete(&format!("/v1/leases/a?token={token}")).await.ok(204);
    let granted = timeout(PATIENCE, waiting).await.expect("in time").unwrap().ok(200);
    assert_eq!(granted["holder"], "second");
    let number = |lease: &serde_json::Value| lease["token"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&granted) > number(&held), "tokens grow");
    let session = granted["session"].as_str().unwrap();
    cluster.delete(&format!("/v1/sessions/{session}")).await.ok(204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_leaves_the_queue() {
    let cluster = Cluster::of(1).await;
    let (first, second) = (cluster.session("first").await, cluster.session("second").await);
    cluster.put("/v1/leases/a", json!({ "session": first, "holder": "first" })).await.ok(200);
    let name = LeaseName::new("a").unwrap();
    let waiters = || cluster.nodes[0].published().borrow().state.lease(&name).map_or(0, |lease| lease.waiters.len());

    let body = json!({ "session": second, "holder": "second", "wait": "300ms" });
    let late = cluster.put("/v1/leases/a", body).await.problem(409, "LW0202");
    assert_eq!(late["holder"], "first");
    assert!(late["waited"].is_string(), "{late}");
    assert_eq!(waiters(), 0, "it left before it was answered");

    let body = json!({ "session": second, "holder": "second", "wait": "1m" });
    let hung_up = tokio::spawn(ask(cluster.request("PUT", "/v1/leases/a").json(&body)));
    eventually("it waits", || waiters() == 1).await;
    hung_up.abort();
    eventually("whoever hangs up leaves the queue", || waiters() == 0).await;

    let slow = cluster.request("PUT", "/v1/leases/a").json(&body).header("leaseward-timeout-ms", "200");
    ask(slow).await.problem(504, "LW0502");
    eventually("and who runs out of time", || waiters() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_granted_under_a_key_stays_though_somebody_hung_up_for_it_can_be_asked_again() {
    let cluster = Cluster::of(1).await;
    let body = json!({ "holder": "person", "ttl": "1m" });
    let put = |i: u64| {
        let request = cluster.request("PUT", &format!("/v1/leases/a{i}")).json(&body);
        request.header("idempotency-key", format!("key-{i}"))
    };
    for i in 0..40 {
        // At some moment while it is under way.
        let hung_up = tokio::spawn(ask(put(i)));
        tokio::time::sleep(Duration::from_micros(i * 100)).await;
        hung_up.abort();
        ask(put(i)).await.ok(200);
    }
    // Whatever the ones who hung up left behind is done by now.
    cluster.session("last").await;
    for i in 0..40 {
        let lease = cluster.get(&format!("/v1/leases/a{i}")).await.ok(200);
        assert_eq!((&lease["state"], &lease["holder"]), (&"held".into(), &"person".into()), "a{i}: {lease}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_lease_waits_until_its_holder_cannot_believe_in_it() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    let held = cluster.put("/v1/leases/a", json!({ "session": session, "holder": "job" })).await.ok(200);
    cluster.post("/v1/leases:revoke", json!({ "name": "a", "token": "1" })).await.problem(409, "LW0203");
    cluster.post("/v1/leases:revoke", json!({ "name": "a" })).await.ok(204);
    let delayed = cluster.get("/v1/leases/a").await.ok(200);
    assert_eq!(
        (&delayed["state"], &delayed["token"], &delayed["holder"]),
        (&"delayed".into(), &held["token"], &json!(null))
    );
    cluster.put("/v1/leases/a", json!({ "holder": "other" })).await.problem(409, "LW0205");
    cluster.post("/v1/leases:revoke", json!({ "name": "b" })).await.problem(404, "LW0404");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_is_the_same_request() {
    let cluster = Cluster::of(1).await;
    let open = |key: &str| {
        let request = cluster.request("POST", "/v1/sessions").header("idempotency-key", key);
        ask(request.json(&json!({ "name": "x", "ttl": "1h" })))
    };
    let (first, again, other) = (open("k1").await.ok(201), open("k1").await.ok(201), open("k2").await.ok(201));
    assert_eq!(first["id"], again["id"], "the answer was lost, not the request");
    assert_ne!(first["id"], other["id"]);

    let acquire = || {
        let request = cluster.request("PUT", "/v1/leases/a").header("idempotency-key", "k1");
        ask(request.json(&json!({ "holder": "h", "ttl": "1h" })))
    };
    let (first, again) = (acquire().await.ok(200), acquire().await.ok(200));
    assert_eq!((&first["session"], &first["token"]), (&again["session"], &again["token"]));
    assert_eq!(cluster.get("/v1/sessions").await.ok(200)["items"].as_array().unwrap().len(), 3);

    // Somebody else who uses the same words for himself is answered for himself, and takes nothing from anybody.
    let theirs = cluster.request("PUT", "/v1/leases/a").header("idempotency-key", "k1");
    ask(theirs.json(&json!({ "holder": "other", "ttl": "1h" }))).await.problem(409, "LW0202");
    let held = cluster.get("/v1/leases/a").await.ok(200);
    assert_eq!((&held["holder"], &held["token"]), (&json!("h"), &first["token"]), "it lost its lease: {held}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pages_of_a_list_are_of_one_revision() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    for i in 0..5 {
        cluster.put(&format!("/v1/leases/l{i}"), json!({ "session": session, "holder": "h" })).await.ok(200);
    }
    let first = cluster.get("/v1/leases?limit=2").await.ok(200);
    let names = |list: &serde_json::Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|lease| lease["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&first), ["l0", "l1"]);
    cluster.put("/v1/leases/l9", json!({ "session": session, "holder": "h" })).await.ok(200);
    let (mut page, mut seen) = (first.clone(), names(&first));
    while let Some(next) = page["next_page"].as_str().map(ToOwned::to_owned) {
        page = cluster.get(&format!("/v1/leases?limit=2&page={next}")).await.ok(200);
        assert_eq!(page["revision"], first["revision"]);
        seen.extend(names(&page));
    }
    assert_eq!(seen, ["l0", "l1", "l2", "l3", "l4"], "what came later is not in it");
}
