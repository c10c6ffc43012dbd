//! Config sets: from blobs to a version that members report.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use leaseward_state::command::Command;
use leaseward_state::config::program::{ProgramReport, RejectedVersion};
use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode, SyncState};
use leaseward_state::propose::Propose;
use leaseward_state::{MachineName, Reply, SetName};
use leaseward_sync::secret::Key;
use leaseward_sync::{digest_of, manifest};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::harness::{Cluster, PATIENCE, ask};

fn tree(content: &[u8]) -> (Manifest, Vec<Vec<u8>>) {
    let pieces: Vec<Vec<u8>> = content.chunks(4).map(<[u8]>::to_vec).collect();
    let chunks = pieces.iter().map(|piece| Chunk { digest: digest_of(piece), size: piece.len() as u32 }).collect();
    let file = ManifestNode::File { mode: 0o644, size: content.len() as u64, digest: digest_of(content), chunks };
    let entries = vec![
        ManifestEntry { path: "conf.d".into(), node: ManifestNode::Directory { mode: 0o755 } },
        ManifestEntry { path: "conf.d/app.toml".into(), node: file },
        ManifestEntry { path: "current".into(), node: ManifestNode::Symlink { target: "conf.d/app.toml".into() } },
    ];
    (Manifest { entries, ..Manifest::default() }, pieces)
}

async fn put_blob(cluster: &Cluster, bytes: Vec<u8>) -> Digest {
    let digest = digest_of(&bytes);
    ask(cluster.request("PUT", &format!("/v1/blobs/{digest}")).body(bytes)).await.ok(204);
    digest
}

pub(crate) async fn publish(cluster: &Cluster, content: &[u8], message: &str) -> u64 {
    let (tree, pieces) = tree(content);
    for piece in pieces {
        put_blob(cluster, piece).await;
    }
    let manifest = put_blob(cluster, manifest::encode(&tree)).await.to_string();
    let body = json!({ "manifest": manifest, "author": "ops", "message": message });
    cluster.post("/v1/configs/app/publish", body).await.ok(201)["version"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_committed_only_when_all_of_it_is_durable() {
    let cluster = Cluster::of(1).await;
    let (tree, pieces) = tree(b"sessions = 800\n");
    let encoded = manifest::encode(&tree);
    let digest = digest_of(&encoded);
    let body = json!({ "manifest": digest.to_string(), "author": "ops", "message": "raise" });
    cluster.post("/v1/configs/app/publish", body.clone()).await.problem(422, "LW0801");
    put_blob(&cluster, encoded).await;
    let short = cluster.post("/v1/configs/app/publish", body.clone()).await.problem(422, "LW0801");
    assert!(short["detail"].as_str().unwrap().starts_with("4 of 4 blobs"), "{short}");

    let names: Vec<_> = pieces.iter().map(|piece| digest_of(piece).to_string()).collect();
    let missing = cluster.post("/v1/blobs/missing", json!({ "digests": names })).await.ok(200);
    assert_eq!(missing["digests"].as_array().unwrap().len(), 4);
    let wrong = cluster.request("PUT", &format!("/v1/blobs/{}", names[0])).body("something else");
    ask(wrong).await.problem(422, "LW0802");
    ask(cluster.request("PUT", "/v1/blobs/abc").body("x")).await.problem(422, "LW0101");
    let cut = leaseward_sync::frame::join(&[(digest_of(b"x"), leaseward_sync::frame::pack(b"x").unwrap())]);
    ask(cluster.request("POST", "/v1/blobs").body(cut[..9].to_vec())).await.problem(400, "LW0104");
    let lie = leaseward_sync::frame::join(&[(digest_of(b"y"), leaseward_sync::frame::pack(b"x").unwrap())]);
    ask(cluster.request("POST", "/v1/blobs").body(lie)).await.problem(422, "LW0802");
    let frames: Vec<_> =
        pieces.iter().map(|piece| (digest_of(piece), leaseward_sync::frame::pack(piece).unwrap())).collect();
    ask(cluster.request("POST", "/v1/blobs").body(leaseward_sync::frame::join(&frames))).await.ok(204);
    assert_eq!(cluster.get(&format!("/v1/blobs/{}", names[0])).await.text, "sess");
    cluster.get(&format!("/v1/blobs/{}", digest_of(b"nobody has it"))).await.problem(404, "LW0404");
    let published = cluster.post("/v1/configs/app/publish", body).await;
    assert_eq!(published.header("etag"), "\"v1\"");
    let published = published.ok(201);
    assert_eq!((&published["files"], &published["bytes"], &published["version"]), (&1.into(), &15.into(), &1.into()));

    let text = put_blob(&cluster, b"not a manifest".to_vec()).await;
    let body = json!({ "manifest": text.to_string() });
    cluster.post("/v1/configs/app/publish", body).await.problem(422, "LW0806");
    let large = vec![7; (16 << 20) + 1];
    let path = format!("/v1/blobs/{}", digest_of(&large));
    ask(cluster.request("PUT", &path).body(large)).await.problem(413, "LW0110");
    let large = vec![7; 3 << 20];
    put_blob(&cluster, large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_plain_is_committed_in_a_set_whose_files_are_encrypted() {
    let cluster = Cluster::of(1).await;
    assert_eq!(publish(&cluster, b"password\n", "before it had a key").await, 1);
    let manifest = cluster.get("/v1/configs/app/versions/1").await.ok(200)["version"]["manifest"].clone();
    ask(cluster.request("PUT", "/v1/configs/app/policy").json(&json!({ "key": "0123456789abcdef" }))).await.ok(200);
    let publish = json!({ "do": "publish", "set": "app", "manifest": manifest });
    for (path, body) in [
        ("/v1/configs/app/publish", json!({ "manifest": manifest })),
        ("/v1/configs/app/rollback", json!({ "to": 1 })),
        ("/v1/configs/app/changes", json!({ "changes": [{ "path": "new", "content": "password" }] })),
        ("/v1/configs/app/changes", json!({ "changes": [{ "path": "new", "base64": "cGFzc3dvcmQ=" }] })),
        ("/v1/configs/app/changes", json!({ "changes": [{ "path": "new", "content": "" }] })),
        ("/v1/transaction", json!({ "operations": [publish] })),
    ] {
        let refused = cluster.post(path, body).await.problem(422, "LW0101");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("0123456789abcdef") && detail.contains("--key"), "{path}: {detail}");
    }
    assert_eq!(cluster.get("/v1/configs/app").await.ok(200)["version"], 1);
    cluster.get(&format!("/v1/blobs/{}", digest_of(b"password"))).await.problem(404, "LW0404");
    // What is refused was put nowhere but where it was sent.
    assert_eq!(cluster.content.readied.load(Ordering::Relaxed), 1, "for the version before it had a key");

    // The other way round: members of a set without a key would have what nobody can read.
    let dir = tempfile::tempdir().unwrap();
    let sealed = Key::create(&dir.path().join("key")).unwrap().seal("new", b"password".to_vec()).unwrap();
    let change = json!({ "path": "new", "base64": BASE64_STANDARD.encode(sealed) });
    let refused = cluster.post("/v1/configs/open/changes", json!({ "changes": [change] })).await.problem(422, "LW0101");
    assert!(refused["detail"].as_str().unwrap().contains("config/open names no key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_could_only_see_the_old_files_is_refused_where_it_is_asked_for() {
    let cluster = Cluster::of(1).await;
    let ask = async |layout: &str, command: &[&str]| {
        let policy = json!({ "layout": layout, "check": { "command": command } });
        ask(cluster.request("PUT", "/v1/configs/app/policy").json(&policy)).await
    };
    let refused = ask("files", &["nginx", "-t"]).await.problem(422, "LW0101");
    assert!(refused["detail"].as_str().unwrap().contains("{tree}"), "{refused}");
    ask("files", &["nginx", "-t", "-c", "{tree}/nginx.conf"]).await.ok(200);
    ask("tree", &["nginx", "-t"]).await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_bounds_what_all_sets_have_together() {
    let cluster = Cluster::of(1).await;
    assert_eq!(publish(&cluster, b"max = 500\n", "first").await, 1);
    let manifest = cluster.get("/v1/configs/app/versions/1").await.ok(200)["version"]["manifest"].clone();
    ask(cluster.request("PUT", "/v1/policy").json(&json!({ "config_bytes_max": 25 }))).await.ok(200);
    assert_eq!(cluster.get("/v1/policy").await.ok(200)["config_bytes_max"], 25);

    let body = json!({ "manifest": manifest, "author": "ops" });
    cluster.post("/v1/configs/other/publish", body.clone()).await.ok(201);
    for path in ["/v1/configs/app/publish?dry_run=true", "/v1/configs/app/publish"] {
        let full = cluster.post(path, body.clone()).await.problem(422, "LW0112");
        let detail = full["detail"].as_str().unwrap();
        assert!(detail.contains("would have 30 bytes; they have 20") && detail.contains("is 25"), "{path}: {detail}");
        assert!(full["do"].as_str().unwrap().contains("config_bytes_max"), "{full}");
    }
    // A dry run needs none of the content here.
    let unsent = json!({ "manifest": digest_of(b"unsent").to_string(), "size": { "files": 1, "bytes": 6 } });
    let path = "/v1/configs/new/publish?dry_run=true";
    let full = cluster.post(path, unsent.clone()).await.problem(422, "LW0112");
    assert!(full["detail"].as_str().unwrap().contains("would have 26 bytes"), "{full}");
    cluster.delete("/v1/configs/other").await.ok(204);
    cluster.post(path, unsent).await.ok(200);
    cluster.get("/v1/configs/new").await.problem(404, "LW0404");
    assert_eq!(cluster.post("/v1/configs/app/publish", body).await.ok(201)["version"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_listed_read_and_rolled_back() {
    let cluster = Cluster::of(1).await;
    assert_eq!(publish(&cluster, b"max = 500\n", "first").await, 1);
    assert_eq!(publish(&cluster, b"max = 800\n", "raise the limit").await, 2);
    let set = cluster.get("/v1/configs/app").await;
    assert_eq!(set.header("etag"), "\"v2\"");
    assert_eq!(set.ok(200)["newest"]["message"], "raise the limit");
    assert_eq!(cluster.get("/v1/configs").await.ok(200)["items"][0]["version"], 2);

    let first = cluster.get("/v1/configs/app/versions?limit=1").await.ok(200);
    assert_eq!(first["items"][0]["version"], 2, "newest first");
    let next = first["next_page"].as_str().unwrap();
    let second = cluster.get(&format!("/v1/configs/app/versions?limit=1&page={next}")).await.ok(200);
    assert_eq!((&second["items"][0]["version"], &second["next_page"]), (&1.into(), &json!(null)));

    let listing = cluster.get("/v1/configs/app/versions/1").await.ok(200);
    assert_eq!(listing["entries"][1]["path"], "conf.d/app.toml");
    assert_eq!((&listing["entries"][1]["mode"], &listing["entries"][1]["size"]), (&"644".into(), &10.into()));
    assert_eq!(listing["entries"][2]["target"], "conf.d/app.toml");
    let file = cluster.get("/v1/configs/app/versions/1/files/conf.d/app.toml").await;
    assert_eq!((file.header("content-length"), file.text.as_str()), ("10", "max = 500\n"));
    cluster.get("/v1/configs/app/versions/1/files/conf.d").await.problem(404, "LW0404");
    cluster.get("/v1/configs/app/versions/7/files/conf.d/app.toml").await.problem(404, "LW0404");
    cluster.get("/v1/configs/app/versions/new").await.problem(422, "LW0101");

    // Clients would resolve `..` before they ask.
    let mut raw = tokio::net::TcpStream::connect(cluster.address(0)).await.unwrap();
    let request =
        "GET /v1/configs/app/versions/1/files/conf.d/../../etc HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, raw.read_to_string(&mut text)).await.expect("in time").unwrap();
    assert!(text.starts_with("HTTP/1.1 422") && text.contains("LW0106"), "{text}");

    let manifest = listing["version"]["manifest"].clone();
    let stale = cluster.post("/v1/configs/app/publish", json!({ "manifest": manifest, "parent": 1 })).await;
    let stale = stale.problem(412, "LW0412");
    assert_eq!(stale["current_version"], 2);
    assert!(stale["detail"].as_str().unwrap().contains("ops published v2 (\"raise the limit\")"), "{stale}");
    assert!(stale["do"].as_str().unwrap().contains("leaseward config diff app 1 2"), "{stale}");
    let gone = json!({ "changes": [{ "path": "no/such", "remove": true }] });
    let gone = cluster.post("/v1/configs/app/changes", gone).await.problem(404, "LW0404");
    assert_eq!(gone["detail"], "config/app has no no/such that could be removed");
    let hook = ask(cluster.request("PUT", "/v1/configs/app/policy").json(&json!({ "check": "nginx -t" }))).await;
    let hook = hook.json();
    assert!(hook["detail"].as_str().unwrap().contains("expected a program as { command = ["), "{hook}");
    let new = cluster.request("POST", "/v1/configs/app/publish").header("if-none-match", "*");
    ask(new.json(&json!({ "manifest": manifest }))).await.problem(412, "LW0412");
    let twice = cluster.request("POST", "/v1/configs/app/publish").header("if-match", "\"v2\"");
    ask(twice.json(&json!({ "manifest": manifest, "parent": 1 }))).await.problem(422, "LW0101");

    cluster.post("/v1/configs/app/rollback", json!({ "to": 9 })).await.problem(404, "LW0404");
    let stale = cluster.request("POST", "/v1/configs/app/rollback").header("if-match", "\"v1\"");
    ask(stale.json(&json!({ "to": 1 }))).await.problem(412, "LW0412");
    let back = cluster.post("/v1/configs/app/rollback", json!({ "to": 1, "author": "ops" })).await.ok(201);
    assert_eq!((&back["version"], &back["manifest"], &back["message"]), (&3.into(), &manifest, &"back to v1".into()));

    cluster.content.forget(digest_of(b"max "));
    let gone = cluster.get("/v1/configs/app/versions/1/files/conf.d/app.toml").await;
    gone.problem(422, "LW0801");
    ask(cluster.request("DELETE", "/v1/configs/app").header("if-match", "\"v1\"")).await.problem(412, "LW0412");
    cluster.delete("/v1/configs/app").await.ok(204);
    cluster.get("/v1/configs/app").await.problem(404, "LW0404");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_monitor_shows_every_member() {
    let cluster = Cluster::of(1).await;
    for machine in ["m1", "m2", "m3"] {
        cluster.machine(machine).await;
    }
    publish(&cluster, b"max = 500\n", "first").await;
    let set = SetName::new("app").unwrap();
    for (machine, applied, state) in
        [("m1", 1, SyncState::Applied), ("m2", 0, SyncState::Rejected { version: 1, why: "exit 1".into() })]
    {
        let machine = MachineName::new(machine).unwrap();
        let report = Command::ReportSync { machine, sets: vec![(set.clone(), applied, state)] };
        cluster.nodes[0].propose(report.into()).await.unwrap();
    }
    // A program is shown beside them, and is none of them.
    let opened = cluster.nodes[0].propose(Command::OpenSession { name: "limiter".into(), ttl_ms: 60_000 }.into()).await;
    let Reply::Session(session) = opened.unwrap().reply else { panic!("no session") };
    let rejected = Some(RejectedVersion { version: 1, why: "max is no number".into() });
    let report = ProgramReport { set: set.clone(), file: "app.toml".into(), applied: 0, rejected };
    let said = Command::ReportProgram { session, step: 1, report };
    cluster.nodes[0].propose(said.into()).await.unwrap();
    let members = cluster.get("/v1/configs/app/members?limit=2").await.ok(200);
    let program = &members["programs"][0];
    assert_eq!((&program["name"], &program["file"]), (&"limiter".into(), &"app.toml".into()));
    assert_eq!(
        (&program["phase"], &program["applied"], &program["version"]),
        (&"rejected".into(), &0.into(), &1.into())
    );
    assert_eq!((&program["why"], &program["session"]), (&"max is no number".into(), &session.to_string().into()));
    let rest = members["next_page"].as_str().unwrap();
    let rest = cluster.get(&format!("/v1/configs/app/members?limit=2&page={rest}")).await.ok(200);
    assert_eq!(
        (rest["items"].as_array().unwrap().len(), &rest["programs"]),
        (1, &json!(null)),
        "on the first page only"
    );
    let why = cluster.get("/v1/explain/config/app").await.ok(200).to_string();
    assert!(why.contains("a program, works with v0; rejected v1: max is no number"), "{why}");
    let events = cluster.get("/v1/events?kinds=config&prefix=app").await.ok(200).to_string();
    assert!(
        events.contains("app: program limiter works with v0 of app.toml, rejected v1: max is no number"),
        "{events}"
    );

    let members = cluster.get("/v1/configs/app/members").await.ok(200);
    let phases: Vec<_> = members["items"].as_array().unwrap().iter().map(|member| &member["phase"]).collect();
    assert_eq!(phases, ["applied", "rejected", "behind"]);
    assert_eq!((&members["items"][1]["why"], &members["version"]), (&"exit 1".into(), &1.into()));
    let set = cluster.get("/v1/configs/app").await.ok(200);
    assert_eq!((&set["in_sync"], &set["members"]), (&1.into(), &3.into()));
    let metrics = cluster.get("/metrics").await.text;
    for (state, count) in [("applied", 1), ("rejected", 1), ("behind", 1)] {
        let line = format!("leaseward_config_members{{set=\"app\",state=\"{state}\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let took = |metrics: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix("leaseward_config_sync_seconds{set=\"app\"} "))?;
        line.parse::<f64>().ok()
    };
    assert!(took(&metrics).is_some_and(|took| (0.0..60.0).contains(&took)), "{metrics}");
    let status = cluster.get("/v1/cluster").await.ok(200);
    assert_eq!(status["warnings"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!((&status["health"], &status["in_sync"]), (&"degraded".into(), &json!({ "of": 1, "all": 2 })));
    assert!(status["warnings"][0].as_str().unwrap().contains("rejected by m2: exit 1"), "{status}");
    publish(&cluster, b"max = 800\n", "second").await;
    let members = cluster.get("/v1/configs/app/members?prefix=m1").await.ok(200);
    assert_eq!(members["items"][0]["phase"], "behind", "it has not heard of the newest version yet");
    assert_eq!(took(&cluster.get("/metrics").await.text), None, "nobody has the newest version");
    let end = Command::EndSession { session };
    cluster.nodes[0].propose(end.into()).await.unwrap();
    let members = cluster.get("/v1/configs/app/members?consistency=linearizable").await.ok(200);
    assert_eq!(members["programs"], json!(null), "it ends with its session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_are_a_difference_and_stay_with_files_that_stay() {
    let cluster = Cluster::of(1).await;
    let (plain, pieces) = tree(b"max = 500\n");
    for piece in pieces {
        put_blob(&cluster, piece).await;
    }
    let mut number = 0;
    for value in [b"one", b"two"] {
        let xattrs = BTreeMap::from([("user.origin".to_owned(), value.to_vec())]);
        let xattrs = Some(BTreeMap::from([("conf.d/app.toml".to_owned(), xattrs)]));
        let tree = Manifest { xattrs, ..plain.clone() };
        let manifest = put_blob(&cluster, manifest::encode(&tree)).await.to_string();
        let body = json!({ "manifest": manifest, "author": "ops" });
        number = cluster.post("/v1/configs/app/publish", body).await.ok(201)["version"].as_u64().unwrap();
    }
    let diff = cluster.get("/v1/configs/app/diff?from=1&to=2").await.ok(200);
    assert_eq!((&diff["files"][0]["path"], &diff["files"][0]["kind"]), (&"conf.d/app.toml".into(), &"changed".into()));

    let kept = async |number: u64| {
        let listing = cluster.get(&format!("/v1/configs/app/versions/{number}")).await.ok(200);
        let name = listing["version"]["manifest"].as_str().unwrap().to_owned();
        let bytes = ask(cluster.request("GET", &format!("/v1/blobs/{name}"))).await.text;
        manifest::decode(bytes.as_bytes()).unwrap().xattrs.unwrap()
    };
    let before = kept(number).await;
    assert_eq!(before.len(), 1);
    for (change, expected) in [
        (json!({ "path": "conf.d/app.toml", "content": "max = 600\n" }), before),
        (json!({ "path": "conf.d/app.toml", "remove": true }), BTreeMap::new()),
    ] {
        let made = cluster.post("/v1/configs/app/changes", json!({ "changes": [change] })).await.ok(201);
        assert_eq!(kept(made["version"].as_u64().unwrap()).await, expected);
        if expected.is_empty() {
            break;
        }
        let link = json!({ "changes": [{ "path": "current", "remove": true }] });
        cluster.post("/v1/configs/app/changes", link).await.ok(201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_single_files_are_one_version_upon_the_one_they_were_made_for() {
    let cluster = Cluster::of(1).await;
    let change = async |body| cluster.post("/v1/configs/app/changes", body).await;
    let put = |path: &str, content: &str| json!({ "path": path, "content": content });
    let made =
        change(json!({ "parent": 0, "changes": [put("a/b", "1"), put("c", "2")], "author": "ann" })).await.ok(201);
    assert_eq!((&made["version"], &made["files"]), (&1.into(), &2.into()));
    change(json!({ "parent": 0, "changes": [put("c", "3")] })).await.problem(412, "LW0412");
    let blob = put_blob(&cluster, b"bytes".to_vec()).await.to_string();
    let changes = json!([
        { "path": "c", "remove": true },
        { "path": "a/b", "mode": "600" },
        { "path": "raw", "base64": "AP8=", "mode": "755" },
        { "path": "blob", "blob": { "digest": blob, "size": 5 } },
        { "path": "a/link", "target": "b" },
    ]);
    assert_eq!(change(json!({ "changes": changes })).await.ok(201)["version"], 2);
    let diff = cluster.get("/v1/configs/app/diff?from=1&to=2").await.ok(200);
    let kinds: Vec<_> =
        diff["files"].as_array().unwrap().iter().map(|file| format!("{} {}", file["path"], file["kind"])).collect();
    assert_eq!(
        kinds,
        [r#""a/b" "changed""#, r#""a/link" "added""#, r#""blob" "added""#, r#""c" "removed""#, r#""raw" "added""#]
    );
    assert_eq!((&diff["files"][0]["old"]["mode"], &diff["files"][0]["new"]["mode"]), (&"644".into(), &"600".into()));
    for (bad, code) in [
        (put("../x", "x"), "LW0106"),
        (json!({ "path": "x" }), "LW0101"),
        (json!({ "path": "x", "content": "a", "target": "b" }), "LW0101"),
        (json!({ "path": "x", "content": "a", "mode": "4755" }), "LW0101"),
        (json!({ "path": "x", "base64": "?" }), "LW0101"),
        (json!({ "path": "x", "target": "../../out" }), "LW0804"),
    ] {
        let (status, answer) = (422, change(json!({ "changes": [bad] })).await);
        answer.problem(status, code);
    }
    change(json!({ "changes": [{ "path": "nothing", "remove": true }] })).await.problem(404, "LW0404");
    change(json!({ "changes": [] })).await.problem(422, "LW0101");
    assert_eq!(cluster.get("/v1/configs/app").await.ok(200)["version"], 2, "what was refused changed nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_keeps_fewer_versions_only_from_the_one_on_for_which_that_was_found_safe() {
    let cluster = Cluster::of(1).await;
    for text in [&b"one\n"[..], b"two\n", b"three\n"] {
        publish(&cluster, text, "").await;
    }
    let put = async |keep: u32| {
        ask(cluster.request("PUT", "/v1/configs/app/policy").json(&json!({ "keep_versions": keep }))).await
    };
    let asked = || std::mem::take(&mut *cluster.content.keeps.lock().unwrap());
    put(120).await.ok(200);
    assert_eq!(asked(), Vec::<u32>::new(), "nothing is forgotten");
    // It was found for the second version, and the third one came in between.
    *cluster.content.newest.lock().unwrap() = vec![2, 3];
    assert_eq!(put(2).await.ok(200)["keep_versions"], 2);
    assert_eq!(asked(), [2, 2]);
    assert_eq!(cluster.get("/v1/configs/app").await.ok(200)["policy"]["keep_versions"], 2);
    put(3).await.ok(200);
    *cluster.content.newest.lock().unwrap() = vec![2];
    put(2).await.problem(412, "LW0412");
    assert_eq!(cluster.get("/v1/configs/app").await.ok(200)["policy"]["keep_versions"], 3, "it was never safe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_pins_and_rollouts_are_kept_and_shown() {
    let cluster = Cluster::of(1).await;
    cluster.machine("m1").await;
    let policy = json!({ "drift": "repair", "rollout": { "canaries": 1, "bake": "10s" } });
    let put = cluster.request("PUT", "/v1/configs/app/policy").header("if-none-match", "*").json(&policy);
    let kept = ask(put).await;
    assert_eq!(kept.header("etag"), "\"v1\"");
    assert_eq!(kept.ok(200)["rollout"]["bake"], "10s");
    let again = cluster.request("PUT", "/v1/configs/app/policy").header("if-none-match", "*").json(&policy);
    ask(again).await.problem(412, "LW0412");
    let typo = cluster.request("PUT", "/v1/configs/app/policy").json(&json!({ "drifft": "repair" }));
    ask(typo).await.problem(422, "LW0103");
    let bad = cluster.request("PUT", "/v1/configs/app/policy").json(&json!({ "ignore": ["a["] }));
    ask(bad).await.problem(422, "LW0101");
    let set = cluster.get("/v1/configs/app").await.ok(200);
    assert_eq!((&set["version"], &set["newest"], &set["policy"]["drift"]), (&0.into(), &json!(null), &"repair".into()));

    publish(&cluster, b"one\n", "first").await;
    publish(&cluster, b"two\n", "second").await;
    let set = cluster.get("/v1/configs/app").await.ok(200);
    assert_eq!((&set["rollout"]["version"], &set["rollout"]["base"]), (&2.into(), &1.into()));
    let rolling = async || cluster.get("/v1/configs?rolling=true").await.ok(200)["items"].clone();
    assert_eq!(rolling().await[0]["name"], "app");
    let halted = cluster.post("/v1/configs/app/rollout", json!({ "action": "halt", "by": "ann" })).await.ok(200);
    assert_eq!(halted["rollout"]["halted"], "halted by ann");
    let back = cluster.post("/v1/configs/app/rollout", json!({ "action": "abort", "by": "ann" })).await.ok(200);
    assert_eq!(
        (&back["version"], &back["rollout"], &back["newest"]["author"]),
        (&3.into(), &json!(null), &"ann".into())
    );
    assert_eq!(rolling().await, json!([]));
    cluster.post("/v1/configs/app/rollout", json!({ "action": "halt" })).await.problem(409, "LW0206");

    let pinned = json!({ "machine": "m1", "version": 1, "by": "ann", "why": "old" });
    let shown = cluster.post("/v1/configs/app/pin", pinned.clone()).await.ok(200);
    assert_eq!(shown["pins"][0], pinned);
    cluster.post("/v1/configs/app/pin", json!({ "machine": "m9", "version": 1 })).await.problem(404, "LW0404");
    let member = cluster.get("/v1/configs/app/members/m1").await;
    assert_eq!(member.status.as_u16(), 503);
    assert_eq!((&member.json()["pinned"], &member.json()["wanted"]), (&true.into(), &1.into()));
    cluster.post("/v1/configs/app/unpin", json!({ "machine": "m1" })).await.ok(200);
    cluster.post("/v1/configs/app/sync", json!({ "machines": ["m9"] })).await.problem(404, "LW0404");
    cluster.post("/v1/configs/app/sync", json!({ "machines": ["m1"] })).await.ok(200);
}
