//! Watchers of config sets: each asks one node after the other for what came after what it knows.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Scene;
use super::clients::{Answer, WAIT};
use crate::history::{Record, number, op};
use crate::stamps::boot_ns;

/// Watches until the run is over and the last write is answered, and then once more, so that the end is not missed.
pub(super) async fn watch(scene: Scene, name: &'static str, first: usize) {
    let client = scene.next_client();
    let who = format!("watcher {name}");
    let mut api = scene.api(first);
    let mut after = 0;
    // Both ways of reading must tell everything: what the leader confirmed, and what some node knows.
    let consistency = if first.is_multiple_of(2) { "linearizable" } else { "stale" };
    loop {
        let is_last = scene.is_written();
        let (wait, consistency) = if is_last { (0, "linearizable") } else { (WAIT.as_secs(), consistency) };
        let path = format!("/v1/events?kinds=config&limit=1000&after={after}&wait={wait}s&consistency={consistency}");
        let record = Record::begun(op::EVENT, client, &who, "", boot_ns()).asking(json!({ "after": after }));
        match api.call(Method::GET, &path, None, None).await {
            Answer::Ok { body, revision: Some(revision) } => {
                let events: Vec<Value> = body["items"].as_array().into_iter().flatten().filter_map(event).collect();
                scene.history.add(record.done(boot_ns(), json!({ "events": events })).at(Some(revision)));
                after = revision;
                if is_last {
                    return;
                }
            }
            Answer::Refused { code, .. } if code == "LW0207" => {
                scene.history.add(Record::begun(op::GAP, client, &who, "", boot_ns()));
                // It goes on from the present.
                let now = api.call(Method::GET, "/v1/events?limit=1", None, None).await;
                if let Answer::Ok { revision: Some(revision), .. } = now {
                    after = revision;
                }
            }
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

fn event(item: &Value) -> Option<Value> {
    let data = &item["data"];
    (data["event"] == "published").then(|| {
        json!({
            "revision": number(&item["revision"]), "part": item["part"], "set": item["subject"],
            "version": data["version"], "value": data["message"],
        })
    })
}
