//! Config sets as registers: reads, compare-and-set, blind writes and transactions on two of them.
//!
//! Must stay true: each write says something that no other one says, in its message.

use std::time::Duration;

use leaseward_state::config::Manifest;
use leaseward_sync::digest_of;
use leaseward_sync::manifest::encode;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Scene;
use super::clients::{Answer, Api};
use crate::history::{Record, number, op};
use crate::stamps::boot_ns;

/// The registers.
pub(super) const SETS: [&str; 2] = ["r0", "r1"];

struct Worker {
    scene: Scene,
    api: Api,
    host: &'static str,
    client: u32,
    random: SmallRng,
    /// The newest version of each set that it has seen.
    seen: [u64; 2],
    manifest: Vec<u8>,
    writes: u32,
}

/// Works until the run is over.
pub(super) async fn work(scene: Scene, host: &'static str, first: usize) {
    let client = scene.next_client();
    let random = SmallRng::seed_from_u64(scene.seed ^ (u64::from(client) << 32));
    let manifest = encode(&Manifest::default());
    let mut worker = Worker { api: scene.api(first), scene, host, client, random, seen: [0; 2], manifest, writes: 0 };
    while !worker.scene.is_over() {
        let set = worker.random.gen_range(0..SETS.len());
        match worker.random.gen_range(0..100) {
            0..45 => worker.read(set).await,
            45..85 => worker.write(set).await,
            _ => worker.transact().await,
        }
        sleep(Duration::from_millis(worker.random.gen_range(20..120))).await;
    }
}

impl Worker {
    fn begun(&self, kind: &str, object: &str) -> Record {
        Record::begun(kind, self.client, self.host, object, boot_ns())
    }

    async fn read(&mut self, set: usize) {
        let record = self.begun(op::READ, SETS[set]);
        let path = format!("/v1/configs/{}/versions?limit=1", SETS[set]);
        let answer = self.api.call(Method::GET, &path, None, None).await;
        let record = match answer {
            Answer::Ok { body, revision } => {
                let newest = &body["items"][0];
                let version = newest["version"].as_u64().unwrap_or(0);
                self.seen[set] = version;
                let value = newest["message"].as_str().unwrap_or_default();
                record.done(boot_ns(), json!({ "version": version, "value": value })).at(revision)
            }
            Answer::Refused { code, .. } => record.failed(boot_ns(), json!({ "code": code })),
            Answer::Unknown { .. } => record,
        };
        self.scene.history.add(record);
    }

    fn next_value(&mut self) -> String {
        self.writes += 1;
        format!("w{}-{}", self.client, self.writes)
    }

    async fn write(&mut self, set: usize) {
        let value = self.next_value();
        let upon = self.random.gen_bool(0.7).then_some(self.seen[set]);
        let record = self.begun(op::WRITE, SETS[set]);
        let record = record.asking(json!({ "sets": [{ "set": SETS[set], "upon": upon }], "value": value }));
        let body = json!({ "parent": upon, "manifest": self.name(), "author": self.host, "message": value });
        let path = format!("/v1/configs/{}/publish", SETS[set]);
        let answer = self.api.call(Method::POST, &path, Some(&body), None).await;
        let versions = |body: &Value| body["version"].as_u64().into_iter().collect();
        self.written(record, answer, &[set], versions).await;
    }

    async fn transact(&mut self) {
        let value = self.next_value();
        let seen = self.seen;
        let both = [0, 1].map(|set| json!({ "set": SETS[set], "upon": seen[set] }));
        let record = self.begun(op::WRITE, "r0+r1").asking(json!({ "sets": both, "value": value }));
        let operations = [0, 1].map(|set| {
            json!({ "do": "publish", "set": SETS[set], "manifest": self.name(), "author": self.host, "message": value })
        });
        let conditions = [0, 1].map(|set| json!({ "if": "config_version", "set": SETS[set], "version": seen[set] }));
        let body = json!({ "conditions": conditions, "operations": operations });
        let answer = self.api.call(Method::POST, "/v1/transaction", Some(&body), None).await;
        let versions = |body: &Value| {
            let outcomes = body["outcomes"].as_array().into_iter().flatten();
            outcomes.filter_map(|outcome| number(&outcome["version"])).collect()
        };
        self.written(record, answer, &[0, 1], versions).await;
    }

    async fn written(&mut self, record: Record, answer: Answer, sets: &[usize], versions: impl Fn(&Value) -> Vec<u64>) {
        let record = match answer {
            Answer::Ok { body, revision } => {
                let versions = versions(&body);
                for (set, version) in sets.iter().zip(&versions) {
                    self.seen[*set] = *version;
                }
                record.done(boot_ns(), json!({ "versions": versions })).at(revision)
            }
            Answer::Refused { code, body } => {
                let current = number(&body["current_version"]);
                if let ([set], Some(current)) = (sets, current) {
                    self.seen[*set] = current;
                }
                let record = record.failed(boot_ns(), json!({ "code": code, "current": current }));
                if code == "LW0801" {
                    let manifest = self.manifest.clone();
                    self.api.put_blob(&self.name(), manifest).await;
                }
                record
            }
            Answer::Unknown { code } => Record { output: json!({ "code": code }), ..record },
        };
        self.scene.history.add(record);
    }

    fn name(&self) -> String {
        digest_of(&self.manifest).to_string()
    }
}
