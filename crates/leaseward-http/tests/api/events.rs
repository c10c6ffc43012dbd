//! What happened, as a stream and as a question that waits.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Cluster, PATIENCE, ask};

/// A stream, read event by event.
struct Stream {
    answer: reqwest::Response,
    read: String,
}

/// One event of a stream.
#[derive(Debug)]
struct Line {
    event: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    async fn open(cluster: &Cluster, query: &str, last: Option<&str>) -> Self {
        let mut request = cluster.request("GET", &format!("/v1/events{query}")).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = timeout(PATIENCE, request.send()).await.expect("in time").unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, read: String::new() }
    }

    async fn next(&mut self) -> Line {
        // All of it: comments come for ever.
        timeout(PATIENCE, self.read()).await.expect("in time")
    }

    async fn read(&mut self) -> Line {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    let prefix = format!("{name}: ");
                    block.lines().find_map(|line| line.strip_prefix(&prefix)).map(ToOwned::to_owned)
                };
                if let (Some(event), Some(data)) = (field("event"), field("data")) {
                    return Line { event, id: field("id"), data: serde_json::from_str(&data).unwrap() };
                }
                continue;
            }
            let more = self.answer.chunk().await.unwrap().expect("it goes on");
            self.read.push_str(std::str::from_utf8(&more).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_after_the_id_where_it_broke() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    let mut stream = Stream::open(&cluster, "?kinds=lease&prefix=batch/", None).await;
    let snapshot = stream.next().await;
    assert_eq!((snapshot.event.as_str(), snapshot.id.as_deref()), ("snapshot", snapshot.data["revision"].as_str()));

    let acquire = |name: &str| {
        ask(cluster.request("PUT", &format!("/v1/leases/{name}")).json(&json!({ "session": session, "holder": "h" })))
    };
    let mut tokens = Vec::new();
    for name in ["other/x", "batch/a", "batch/b", "batch/c"] {
        tokens.push(acquire(name).await.ok(200)["token"].as_str().unwrap().to_owned());
    }
    let first = stream.next().await;
    assert_eq!((first.event.as_str(), &first.data["subject"]), ("change", &"batch/a".into()));
    assert_eq!(first.id.as_deref(), Some(tokens[1].as_str()), "its id is its revision");
    assert_eq!((&first.data["kind"], &first.data["data"]["token"]), (&"lease".into(), &tokens[1].as_str().into()));
    assert_eq!(first.data["text"], format!("batch/a granted to h, token {}", tokens[1]));
    drop(stream);

    let mut resumed = Stream::open(&cluster, "?kinds=lease&prefix=batch/", first.id.as_deref()).await;
    assert_eq!(resumed.next().await.data["subject"], "batch/b");
    assert_eq!(resumed.next().await.data["subject"], "batch/c");
    cluster.delete(&format!("/v1/sessions/{session}")).await.ok(204);
    let ended: Vec<Line> = [resumed.next().await, resumed.next().await, resumed.next().await].into();
    assert!(ended.iter().all(|line| line.data["data"]["why"] == "released"));
    assert_eq!(
        ended.iter().map(|line| line.id.is_some()).collect::<Vec<_>>(),
        [false, false, true],
        "only the last event of an entry is a place to resume"
    );
    let mut after = Stream::open(&cluster, &format!("?kinds=lease&after={}", tokens[2]), None).await;
    assert_eq!(after.next().await.data["subject"], "batch/c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_saw_more_than_ever_happened_here_begins_anew() {
    let cluster = Cluster::of(1).await;
    let mut stream = Stream::open(&cluster, "?kinds=session", Some("1000000")).await;
    let compacted = stream.next().await;
    assert_eq!((compacted.event.as_str(), &compacted.data["after"]), ("compacted", &"1000000".into()));
    let snapshot = stream.next().await;
    assert_eq!((snapshot.event.as_str(), snapshot.id.as_deref()), ("snapshot", snapshot.data["revision"].as_str()));
    let session = cluster.session("job").await;
    assert_eq!(stream.next().await.data["subject"], session, "and hears what comes");

    let refused = cluster.get("/v1/events?after=1000000&wait=20s").await.problem(410, "LW0207");
    assert!(refused["detail"].as_str().unwrap().contains("an earlier life"), "{refused}");
    // This node may only be late.
    cluster.get("/v1/events?after=1000000&consistency=stale").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_revisions_tells_of_entries_that_are_no_events() {
    let cluster = Cluster::of(1).await;
    let mut stream = Stream::open(&cluster, "?revisions=100ms", Some("1000000")).await;
    let number = |line: &Line| line.data["revision"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap();
    let first = stream.next().await;
    assert_eq!((first.event.as_str(), first.id.clone()), ("revision", Some(number(&first).to_string())));

    let (one, other) = (cluster.session("one").await, cluster.session("other").await);
    cluster.put("/v1/leases/a", json!({ "session": one, "holder": "h" })).await.ok(200);
    let before: u64 = cluster.get("/v1/events").await.ok(200)["revision"].as_str().unwrap().parse().unwrap();
    // The lease is held: an entry that changes nothing, and nothing happened.
    let held = cluster.request("PUT", "/v1/leases/a").json(&json!({ "session": other, "holder": "h" }));
    assert!(ask(held).await.status.is_client_error());
    while number(&stream.next().await) <= before {}
    let events = cluster.get(&format!("/v1/events?after={before}")).await.ok(200);
    assert_eq!(events["items"], json!([]));

    for wrong in
        ["?revisions=1s&kinds=lease", "?revisions=1s&prefix=a", "?revisions=1s&after=1", "?revisions=1s&limit=1"]
    {
        let stream = cluster.request("GET", &format!("/v1/events{wrong}")).header("accept", "text/event-stream");
        ask(stream).await.problem(422, "LW0101");
    }
    for wrong in ["?before=9", "?since=2026-01-01T00:00:00Z", "?until=2026-01-01T00:00:00Z"] {
        let stream = cluster.request("GET", &format!("/v1/events{wrong}")).header("accept", "text/event-stream");
        ask(stream).await.problem(422, "LW0101");
    }
    cluster.get("/v1/events?before=9&after=1").await.problem(422, "LW0101");
    cluster.get("/v1/events?since=yesterday").await.problem(422, "LW0101");
    let long_ago = cluster.get("/v1/events?kinds=cluster,token,session&until=2001-01-01T00:00:00Z").await.ok(200);
    assert_eq!(long_ago["items"], json!([]));
    cluster.get("/v1/events?revisions=1s").await.problem(422, "LW0101");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_waits_until_something_comes() {
    let cluster = Cluster::of(1).await;
    let session = cluster.session("job").await;
    let newest = cluster.get("/v1/events?limit=1").await.ok(200);
    assert_eq!(newest["items"][0]["kind"], "session");
    let revision = newest["revision"].as_str().unwrap().to_owned();
    let empty = cluster.get(&format!("/v1/events?after={revision}&wait=50ms")).await.ok(200);
    assert_eq!(empty["items"], json!([]));

    let path = format!("/v1/events?kinds=lease&after={revision}&wait=20s");
    let waiting = tokio::spawn(ask(cluster.request("GET", &path)));
    cluster.put("/v1/leases/a", json!({ "session": session, "holder": "h" })).await.ok(200);
    let found = timeout(PATIENCE, waiting).await.expect("in time").unwrap().ok(200);
    assert_eq!(found["items"][0]["subject"], "a");

    let unknown = cluster.get("/v1/events?kinds=leases").await.problem(422, "LW0101");
    assert!(unknown["detail"].as_str().unwrap().contains("did you mean `lease`?"), "{unknown}");
    cluster.get("/v1/events?wait=2h").await.problem(422, "LW0101");
    let stream = cluster.request("GET", "/v1/events").header("accept", "text/event-stream");
    ask(stream.header("last-event-id", "x")).await.problem(422, "LW0101");
}
