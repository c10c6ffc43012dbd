//! Who may change config: roles, wherever somebody sits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use leaseward::Error;
use leaseward_state::{Command, MachineName, SetName};
use leaseward_tests::{Lab, Plan};
use reqwest::Method;
use serde_json::Value;

/// Runs a command with a token. Returns its exit code and what it complained of.
fn with(lab: &Lab, token: &Path, words: &[&str]) -> (Option<i32>, String) {
    let file = token.to_str().expect("text");
    let (code, said, why) = lab.run(&[&["--token-file", file], words].concat());
    (code, format!("{said}{why}"))
}

async fn answered(lab: &Lab, method: Method, path: &str) -> Option<u16> {
    Some(lab.call(method, path, None).await?.0)
}

#[tokio::test]
async fn who_may_change_config_is_a_matter_of_roles_and_not_of_machines() {
    let lab = Lab::start(Plan { machines: 2, ..Plan::default() }).await;
    lab.works(&["config", "put", "app", "a.conf", "--text", "one"]);
    lab.works(&["config", "put", "web", "a.conf", "--text", "one"]);
    let file = |name: &str| lab.dir().join(format!("{name}.token"));
    let (root, ci, eye) = (file("root"), file("ci"), file("eye"));
    let create = |name: &str, role: &str, to: &Path| {
        ["token", "create", name, "--role", role, "--to", to.to_str().expect("text")].map(str::to_owned)
    };
    fn words(owned: &[String]) -> Vec<&str> {
        owned.iter().map(String::as_str).collect()
    }

    // The first one must be able to make the others.
    let (code, _, why) = lab.run(&words(&create("eye", "viewer", &eye)));
    assert!(code == Some(2) && why.contains("LW0101") && !eye.exists(), "{why}");
    lab.works(&words(&create("root", "admin", &root)));
    assert_eq!(fs::metadata(&root).expect("it is there").permissions().mode() & 0o777, 0o600);

    // From now on nobody is answered anywhere without one; how a node is, everybody may know.
    lab.until("every voter has heard of it", async |lab| lab.get_at(2, "/v1/configs").await.is_none().into(), true)
        .await;
    assert_eq!(answered(&lab, Method::GET, "/v1/configs").await, Some(401));
    assert_eq!(answered(&lab, Method::GET, "/livez").await, Some(200));
    let (code, _, why) = lab.run(&["config", "put", "app", "a.conf", "--text", "two"]);
    assert!(code == Some(4) && why.contains("LW0401") && why.contains("--token-file"), "{why}");
    for (name, role, to) in [("ci", "publisher:app", &ci), ("eye", "viewer", &eye)] {
        let (code, why) = with(&lab, &root, &words(&create(name, role, to)));
        assert_eq!(code, Some(0), "{why}");
    }

    let may_not = |token: &Path, asked: &[&str]| {
        let (code, why) = with(&lab, token, asked);
        assert!(code == Some(4) && why.contains("LW0403"), "{asked:?}: {code:?} {why}");
    };
    // Who publishes one set publishes that one, in his own name.
    let (code, why) = with(&lab, &ci, &["config", "put", "app", "a.conf", "--text", "two"]);
    assert_eq!(code, Some(0), "{why}");
    let (_, history) = with(&lab, &eye, &["config", "history", "app", "-o", "json"]);
    let history: Value = serde_json::from_str(&history).expect("JSON");
    assert!(history["items"][0]["author"].as_str().is_some_and(|author| author.ends_with("(ci)")), "{history}");
    may_not(&ci, &["config", "put", "web", "a.conf", "--text", "two"]);
    may_not(&ci, &["config", "policy", "app", "drift=repair"]);
    may_not(&ci, &["config", "rm", "app"]);
    may_not(&ci, &["config", "pin", "app", "--machine", "m1", "--as-is"]);
    may_not(&ci, &["token", "ls"]);
    may_not(&ci, &["machine", "rm", "m1"]);
    // Who looks changes nothing.
    may_not(&eye, &["config", "put", "app", "a.conf", "--text", "three"]);
    may_not(&eye, &["config", "sync", "app"]);
    assert_eq!(with(&lab, &eye, &["config", "ls"]).0, Some(0));

    // A member's place gives no right: what agents speak with changes nothing of the group's.
    let set = SetName::new("app").expect("a name");
    let machine = MachineName::new("m1").expect("a name");
    for command in [
        Command::RemoveSet { set: set.clone() },
        Command::Resync { set, machines: vec![machine.clone()] },
        Command::RemoveMachine { machine },
    ] {
        match lab.client().write(command).await {
            Err(Error::Failed { code, .. }) if code == "LW0403" => {}
            other => panic!("{other:?}"),
        }
    }
    // And what it is for goes on.
    let here = async |lab: &Lab| {
        let text = |machine| fs::read_to_string(lab.set_dir(machine, "app").join("a.conf")).unwrap_or_default();
        Some((text(0), text(1)))
    };
    lab.until("members get what is published", here, ("two".into(), "two".into())).await;
    let (code, synced) = with(&lab, &eye, &["wait", "config/app=synced"]);
    assert_eq!(code, Some(0), "their reports are heard: {synced}");
    let (_, events) = with(&lab, &eye, &["events", "--for", "token/ci"]);
    assert!(events.contains("ci may do as publisher:app from now on"), "{events}");

    // What is revoked is over; without any token everybody may again.
    assert_eq!(with(&lab, &root, &["token", "revoke", "ci"]).0, Some(0));
    let (code, why) = with(&lab, &ci, &["config", "put", "app", "a.conf", "--text", "three"]);
    assert!(code == Some(4) && why.contains("LW0401"), "{why}");
    let (code, why) = with(&lab, &root, &["token", "revoke", "root"]);
    assert!(code == Some(5) && why.contains("LW0413"), "the others would have nobody: {why}");
    assert_eq!(with(&lab, &root, &["token", "revoke", "eye"]).0, Some(0));
    assert_eq!(with(&lab, &root, &["token", "revoke", "root"]).0, Some(0));
    lab.works(&["config", "put", "app", "a.conf", "--text", "three"]);
}
