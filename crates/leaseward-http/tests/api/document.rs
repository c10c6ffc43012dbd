//! The OpenAPI document and what is served are the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Cluster, ask};

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_in_the_document_and_every_one_there_is_served() {
    let cluster = Cluster::of(1).await;
    let document = cluster.get("/v1/openapi.json").await.ok(200);
    assert_eq!(document, leaseward_http::document());
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths {
        let known: BTreeSet<&str> = item.as_object().unwrap().keys().map(String::as_str).collect();
        let url = fill(path);
        for method in METHODS {
            let answer = ask(cluster.request(&method.to_uppercase(), &url)).await;
            let code = serde_json::from_str::<Value>(&answer.text).ok().map(|problem| problem["code"].clone());
            if known.contains(method) {
                assert!(
                    code != Some("LW0108".into()) && code != Some("LW0109".into()),
                    "{method} {path} is in the document and not served: {answer:?}"
                );
            } else {
                assert_eq!(code, Some("LW0108".into()), "{method} {path} is served and not in the document");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_is_served_at_the_top_and_may_do_nothing_but_ask_its_voter() {
    let cluster = Cluster::of(1).await;
    let top = ask(cluster.request("GET", "/")).await;
    assert!(top.status == 200 && top.text.contains("console.js"), "{top:?}");
    assert!(top.header("content-type").starts_with("text/html"), "{top:?}");
    for file in ["console.js", "config.js", "voter.js", "words.js", "console.css", "icon.svg"] {
        let answer = ask(cluster.request("GET", &format!("/console/{file}"))).await;
        assert!(answer.status == 200 && !answer.header("leaseward-served-by").is_empty(), "{answer:?}");
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let again = cluster.request("GET", &format!("/console/{file}")).header("if-none-match", answer.header("etag"));
        let again = ask(again).await;
        assert!(again.status == 304 && again.text.is_empty(), "{again:?}");
    }
    ask(cluster.request("GET", "/console/other.js")).await.problem(404, "LW0109");
    ask(cluster.request("POST", "/console/console.js")).await.problem(405, "LW0108");
}

/// Routes that differ in a parameter are never the same object here.
fn fill(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "0" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn routes_are_made_in_one_way_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.clone()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if path.ends_with("console.rs") {
            // Pages for people are no routes of the API. They are read, and nothing else.
            for write in ["post(", "put(", "delete(", "patch(", "any(", "fallback"] {
                assert!(!text.contains(write), "{}: `{write}` is more than a page", path.display());
            }
            continue;
        }
        for other in [".route(", ".nest(", ".nest_service(", ".route_service(", ".fallback_service("] {
            assert!(!text.contains(other), "{}: `{other}` serves what the document does not know", path.display());
        }
        let declared = text.matches("#[utoipa::path(").count();
        let routed: usize = text
            .split("routes!(")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap_or_default().split(',').count())
            .sum();
        assert_eq!(declared, routed, "{}: every described handler is served", path.display());
    }
}

#[test]
fn the_document_says_what_all_routes_share() {
    let document = leaseward_http::document();
    let put = &document["paths"]["/v1/leases/{name}"]["put"];
    let names: Vec<_> = put["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
    assert_eq!(names[0], "name");
    for header in ["Idempotency-Key", "Leaseward-Fence", "If-Match"] {
        assert!(names.contains(&&Value::from(header)), "{header} in {names:?}");
    }
    let problem = &put["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
    assert_eq!(problem, "#/components/schemas/Problem");
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert_eq!(schemas["Duration"]["type"], "string");
    for reference in references(&document) {
        let name = reference.trim_start_matches("#/components/schemas/");
        assert!(schemas.contains_key(name), "{reference} leads nowhere");
    }
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(reference)) => vec![reference.clone()],
                _ => references(value),
            })
            .collect(),
        Value::Array(all) => all.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
