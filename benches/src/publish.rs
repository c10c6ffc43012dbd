//! From `publish` to the version being live on every member.

use std::path::Path;

use leaseward_http::model::MemberSyncList;
use leaseward_tests::{Lab, Plan};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::figures::micros;

/// A set of one small file, and a set of two hundred files of which one changes, on three members.
pub(crate) async fn publish_to_applied() -> Value {
    let plan = Plan { machines: 3, profile: "default", ttl: "3s", log: "warn", ..Plan::default() };
    let lab = Lab::start(plan).await;
    let dir = tempfile::tempdir().expect("a directory");
    let small = dir.path().join("small");
    let site = dir.path().join("site");
    std::fs::create_dir_all(&small).expect("made");
    std::fs::create_dir_all(&site).expect("made");
    for i in 0..200 {
        std::fs::write(site.join(format!("f{i}")), format!("{i}\n").repeat(500)).expect("written");
    }
    let small = measure(&lab, "small", &small).await;
    let site = measure(&lab, "site", &site).await;
    json!({ "members": 3, "one_file_of_one": small, "one_file_of_two_hundred": site })
}

async fn measure(lab: &Lab, set: &str, dir: &Path) -> Value {
    let mut took = Vec::new();
    for round in 1..=20_u64 {
        std::fs::write(dir.join("greeting"), format!("round {round}\n")).expect("written");
        let began = Instant::now();
        let published = lab.cli(&["config", "publish", set, "--no-wait", "--from", &dir.display().to_string()]);
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        let path = format!("/v1/configs/{set}/members?consistency=stale");
        loop {
            if let Some(members) = lab.get::<MemberSyncList>(&path).await
                && members.items.len() == 3
                && members.items.iter().all(|member| member.applied == round)
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        if round > 1 {
            took.push(began.elapsed());
        }
    }
    micros(took)
}
