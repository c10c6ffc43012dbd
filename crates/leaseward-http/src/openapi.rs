//! The OpenAPI document: made from the same words that make the routes.
//!
//! Must stay true: routes are added here only, through `routes!`, which adds them to the router and to the document
//! at once. What all routes share (problems, headers) is added once, in [`finish`].

use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::api::Api;
use crate::ask::can_be_tried;
use crate::model::Problem;
use crate::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Leaseward",
        description = "Leases, failover of servers, and config sets. Every voter answers everything. `/v1` never \
                       breaks: new fields may appear, and clients ignore those that they do not know.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    components(schemas(Problem))
)]
struct Document;

/// Returns every route with its description.
pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(routes::leases::routes())
        .merge(routes::sessions::routes())
        .merge(routes::servers::routes())
        .merge(routes::machines::routes())
        .merge(routes::nodes::routes())
        .merge(routes::operations::routes())
        .merge(routes::policy::routes())
        .merge(routes::whatif::routes())
        .merge(routes::cluster::routes())
        .merge(routes::configs::routes())
        .merge(routes::publish::routes())
        .merge(routes::adopt::routes())
        .merge(routes::changes::routes())
        .merge(routes::keeping::routes())
        .merge(routes::blobs::routes())
        .merge(routes::backup::routes())
        .merge(routes::events::routes())
        .merge(routes::explain::routes())
        .merge(routes::tokens::routes())
        .merge(routes::transaction::routes())
        .merge(routes::health::routes())
}

/// Returns the OpenAPI 3.1 document.
#[must_use]
pub fn document() -> Value {
    finish(routes().split_for_parts().1)
}

/// Adds what all routes share, and writes wildcards as OpenAPI has them.
pub(crate) fn finish(document: utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("the document is plain JSON");
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return document };
    let all = std::mem::take(paths);
    for (path, mut item) in all {
        let noun = path.split(['/', ':']).find(|part| !part.is_empty() && *part != "v1").unwrap_or("other").to_owned();
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            if let Some(operation) = operation.as_object_mut() {
                share(method, &noun, &path, operation);
            }
        }
        paths.insert(path.replace("{*", "{"), item);
    }
    document
}

fn share(method: &str, noun: &str, path: &str, operation: &mut Map<String, Value>) {
    operation.insert("tags".into(), json!([noun]));
    let problem = json!({
        "description": "What went wrong",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    if let Some(responses) = operation.entry("responses").or_insert_with(|| json!({})).as_object_mut() {
        responses.insert("default".into(), problem);
    }
    if !path.starts_with("/v1/") {
        return;
    }
    let header = |name: &str, text: &str| json!({ "name": name, "in": "header", "required": false, "description": text, "schema": { "type": "string" } });
    let mut shared = vec![header("Leaseward-Timeout-Ms", "Give up after so many milliseconds")];
    if method == "get" {
        shared.push(json!({
            "name": "consistency", "in": "query", "required": false,
            "description": "How new: linearizable is the default; stale asks nobody",
            "schema": { "type": "string", "enum": ["linearizable", "leader", "stale"] },
        }));
        shared.push(json!({
            "name": "max_staleness", "in": "query", "required": false,
            "description": "Answer a stale read with 503 rather than with anything older; alone it asks for a stale \
                            read",
            "schema": { "$ref": "#/components/schemas/Duration" },
        }));
    } else {
        if can_be_tried(path) {
            shared.push(json!({
                "name": "dry_run", "in": "query", "required": false,
                "description": "Do nothing; say what would come of it: the answer is 200 and a Prediction",
                "schema": { "type": "boolean" },
            }));
        }
        shared.push(header(
            "Idempotency-Key",
            "Makes a retry the same request, for a day: the same method, path and body of the same caller",
        ));
        shared.push(header("Leaseward-Fence", "`<lease>;<token>`: do it only while this grant stands"));
        shared.push(header("If-Match", "The ETag that the object must have"));
        shared.push(header("If-None-Match", "`*`: the object must not exist"));
    }
    if let Some(parameters) = operation.entry("parameters").or_insert_with(|| json!([])).as_array_mut() {
        for parameter in parameters.iter_mut() {
            if let Some(name) = parameter.get("name").and_then(Value::as_str).map(|name| name.replace('*', "")) {
                parameter["name"] = Value::String(name);
            }
        }
        parameters.extend(shared);
    }
}
