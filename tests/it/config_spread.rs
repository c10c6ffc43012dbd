//! Who publishes waits until it is live, and is told what keeps it from being so.

use std::fs;
use std::time::Duration;

use leaseward_tests::{Lab, Plan};
use tokio::time::Instant;

use crate::config::lab;

#[tokio::test]
async fn a_publication_ends_when_every_member_has_it_or_says_who_refused_it() {
    let lab = lab(&[String::new(), String::new(), String::new()]).await;
    let here = |machine: usize| fs::read_to_string(lab.set_dir(machine, "app").join("a")).unwrap_or_default();
    for text in ["1", "2", "3"] {
        let (code, _, why) = lab.run(&["config", "put", "app", "a", "--text", text]);
        assert_eq!(code, Some(0), "{why}");
        assert!(why.contains(&format!("✓ app v{text}: live on 3 members")), "{why}");
        assert_eq!([here(0), here(1), here(2)], [text; 3], "at once");
    }
    let (code, _, why) = lab.run(&["config", "rollback", "app", "--to", "1"]);
    assert!(code == Some(0) && why.contains("live on 3 members"), "{why}");
    assert_eq!([here(0), here(1), here(2)], ["1"; 3], "at once");

    lab.works(&["config", "policy", "app", "check.command=[\"sh\", \"-c\", \"! grep -q bad {tree}/a\"]"]);
    let (code, said, why) = lab.run(&["config", "put", "app", "a", "--text", "bad", "-o", "json"]);
    assert!(code == Some(1) && why.contains("LW0817") && why.contains("3 members refused it"), "{why}");
    for machine in ["m1", "m2", "m3"] {
        assert!(why.contains(&format!("{machine}  rejected: ")), "{why}");
        assert!(why.contains(&format!("{machine}: LW0811")), "{why}");
    }
    let version: serde_json::Value = serde_json::from_str(&said).expect("that it is published is said all the same");
    assert_eq!(version["version"], 5);

    // What a rollout does with it is told when it is done.
    lab.works(&["config", "put", "app", "a", "--text", "good"]);
    lab.works(&["config", "policy", "app", "rollout.canaries=1", "rollout.max_unavailable=1"]);
    let (code, _, why) = lab.run(&["config", "put", "app", "a", "--text", "bad again"]);
    assert!(code == Some(1) && why.contains("LW0817") && why.contains("stands still"), "{why}");
    assert!(why.contains("leaseward config rollout app abort"), "{why}");
    lab.works(&["config", "rollout", "app", "abort"]);
    lab.works(&["wait", "config/app=synced@8", "--timeout", "30s"]);
    lab.works(&["config", "policy", "app", "rollout.roll_back=true"]);
    let (code, _, why) = lab.run(&["config", "put", "app", "a", "--text", "bad at last"]);
    assert!(code == Some(1) && why.contains("LW0816"), "{why}");
}

#[tokio::test]
async fn a_publication_that_hangs_is_left_when_nothing_moves_any_more() {
    let lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    let gate = lab.dir().join("gate");
    let script = format!("test ! -e {{tree}}/slow || while test ! -e {}; do sleep 0.05; done", gate.display());
    lab.works(&[
        "config",
        "policy",
        "app",
        &format!("check={{ command = [\"sh\", \"-c\", \"{script}\"], timeout = \"50m\" }}"),
    ]);
    let put = ["config", "put", "app", "slow", "--text"];
    let began = Instant::now();
    lab.works(&[&put[..], &["x", "--no-wait", "--timeout", "60s"]].concat());
    assert!(began.elapsed() < Duration::from_secs(30), "it does not wait: {:?}", began.elapsed());
    let (code, _, why) = lab.run(&[&put[..], &["y", "--timeout", "1s"]].concat());
    assert!(code == Some(7) && why.contains("LW0504") && why.contains("✓ app v2"), "{code:?}: {why}");
    assert!(why.contains("leaseward wait config/app=synced@2"), "{why}");
    // Who is kept where he is, is not waited for.
    lab.works(&["config", "pin", "app", "--machine", "m1", "--as-is", "-m", "not now"]);
    let (code, _, why) = lab.run(&[&put[..], &["z"]].concat());
    assert!(code == Some(0) && why.contains("no member has it yet; 1 that cannot be waited for"), "{code:?}: {why}");
    fs::write(&gate, "").expect("written");
}
