//! Config sets as operators keep them: rollouts, drift, members that come and go, with real processes.
//!
//! The programs that read them are in `config_programs.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use leaseward_tests::{Lab, Plan};
use serde_json::{Value, json};

pub(crate) async fn lab(settings: &[String]) -> Lab {
    Lab::start(Plan { machines: settings.len(), machine_settings: settings.to_vec(), ..Plan::default() }).await
}

pub(crate) fn published(lab: &Lab, set: &str, files: &[(&str, &str)]) -> u64 {
    let temp = tempfile::tempdir().expect("a directory");
    for (path, text) in files {
        let path = temp.path().join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        fs::write(path, text).expect("written");
    }
    let from = temp.path().to_str().expect("text");
    let said = lab.works(&["config", "publish", set, "--from", from, "-o", "json", "--no-wait"]);
    serde_json::from_str::<Value>(&said).expect("JSON")["version"].as_u64().expect("a number")
}

fn here(lab: &Lab, machine: usize, set: &str, path: &str) -> String {
    fs::read_to_string(lab.set_dir(machine, set).join(path)).unwrap_or_default()
}

/// Returns each member's phase and version.
pub(crate) async fn members(lab: &Lab, set: &str) -> Option<BTreeMap<String, (String, u64)>> {
    let list = lab.list_at(0, &format!("/v1/configs/{set}/members?consistency=linearizable")).await?;
    let member = |member: &Value| {
        let text = |key: &str| member[key].as_str().map(str::to_owned);
        Some((text("machine")?, (text("phase")?, member["applied"].as_u64()?)))
    };
    list.iter().map(member).collect()
}

async fn set(lab: &Lab, set: &str) -> Option<Value> {
    lab.get_at(0, &format!("/v1/configs/{set}?consistency=linearizable")).await
}

pub(crate) fn all_at(phase: &str, version: u64, machines: usize) -> BTreeMap<String, (String, u64)> {
    (1..=machines).map(|machine| (format!("m{machine}"), (phase.to_owned(), version))).collect()
}

#[tokio::test]
async fn a_bad_version_stops_at_its_canary_and_everybody_goes_back_by_himself() {
    let lab = lab(&["labels = { role = \"canary\" }".into(), String::new(), String::new()]).await;
    let check = "check.command=[\"sh\", \"-c\", \"! grep -q bad {tree}/app.conf\"]";
    lab.works(&[
        "config",
        "policy",
        "app",
        check,
        "rollout.canaries=1",
        "rollout.roll_back=true",
        "rollout.max_unavailable=1",
        "rollout.canary_labels={ role = \"canary\" }",
    ]);
    assert_eq!(published(&lab, "app", &[("app.conf", "good 1")]), 1);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at("applied", 1, 3)).await;

    assert_eq!(published(&lab, "app", &[("app.conf", "good 2")]), 2);
    lab.until("the second went round", async |lab| members(lab, "app").await, all_at("applied", 2, 3)).await;
    let events = lab.list_at(0, "/v1/events?kinds=config&prefix=app").await.unwrap_or_default();
    let turns: Vec<String> = events
        .iter()
        .filter(|event| event["data"]["change"] == "released" && event["data"]["version"] == 2)
        .map(|event| event["data"]["more"].to_string())
        .collect();
    assert_eq!(turns, ["[\"m1\"]", "[\"m2\"]", "[\"m3\"]"], "the canary, and then one after the other");

    assert_eq!(published(&lab, "app", &[("app.conf", "bad 3")]), 3);
    let back = async |lab: &Lab| Some((set(lab, "app").await?["version"].as_u64()?, members(lab, "app").await?));
    lab.until("everybody is back at the second, as the fourth", back, (4, all_at("applied", 4, 3))).await;
    for machine in 0..3 {
        assert_eq!(here(&lab, machine, "app", "app.conf"), "good 2");
    }
    let events = lab.list_at(0, "/v1/events?kinds=config&prefix=app").await.unwrap_or_default();
    let refused = |event: &&Value| event["text"].as_str().is_some_and(|text| text.contains("rejected v3"));
    let who: Vec<_> = events.iter().filter(refused).map(|event| event["data"]["machine"].to_string()).collect();
    assert_eq!(who, ["\"m1\""], "nobody but the canary ever saw it");
    let history = lab.works(&["config", "history", "app"]);
    assert!(history.contains("back to v2: v3 1 of its members refused it: m1 (LW0811"), "{history}");

    // Who waits for what was published is not told that all is well.
    for condition in ["config/app=synced", "config/app=synced@3"] {
        let (code, _, why) = lab.run(&["wait", condition, "--timeout", "30s"]);
        assert_eq!(code, Some(1), "{condition}: {why}");
        assert!(why.contains("LW0816") && why.contains("v3 was taken back") && why.contains("m1 (LW0811"), "{why}");
    }
    lab.works(&["wait", "config/app=synced@4", "--timeout", "30s"]);
    assert_eq!(published(&lab, "app", &[("app.conf", "good 5")]), 5);
    lab.works(&["wait", "config/app=synced", "--timeout", "30s"]);
    lab.works(&["config", "rollback", "app", "--to", "2"]);
    lab.works(&["wait", "config/app=synced", "--timeout", "30s"]);
    let (code, _, why) = lab.run(&["wait", "config/app=synced@5", "--timeout", "30s"]);
    assert!(code == Some(1) && why.contains("published v6, which is what was there before"), "{code:?}: {why}");
}

#[tokio::test]
async fn an_operator_halts_resumes_and_pins() {
    let lab = lab(&[String::new(), String::new(), String::new()]).await;
    // What an ordinary user may check, too.
    lab.works(&["config", "policy", "app", "rollout.max_unavailable=1", "rollout.bake=10m", "rollout.canaries=1"]);
    published(&lab, "app", &[("a", "1")]);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at("applied", 1, 3)).await;
    lab.works(&["config", "pin", "app", "--machine", "m3", "--version", "1", "-m", "old hardware"]);
    published(&lab, "app", &[("a", "2")]);
    let canary = async |lab: &Lab| Some(members(lab, "app").await?["m1"].clone());
    lab.until("the canary has the second", canary, ("applied".into(), 2)).await;
    lab.works(&["config", "rollout", "app", "halt"]);
    let (_, explained, _) = lab.run(&["explain", "config/app"]);
    assert!(
        explained.contains("it stands still: halted by") && explained.contains("rollout app resume"),
        "{explained}"
    );
    let (_, shown, _) = lab.run(&["config", "rollout", "app"]);
    assert!(shown.contains("v2 goes round: the turn of 1 of 3"), "{shown}");
    lab.works(&["config", "rollout", "app", "finish"]);
    let second = async |lab: &Lab| Some(members(lab, "app").await?["m2"].clone());
    lab.until("m2 has it, too", second, ("applied".into(), 2)).await;
    assert_eq!(here(&lab, 2, "app", "a"), "1", "a pinned member stays");
    lab.works(&["wait", "config/app=synced", "--timeout", "30s"]);
    lab.works(&["config", "unpin", "app", "--machine", "m3"]);
    lab.until("and goes on", async |lab| members(lab, "app").await, all_at("applied", 2, 3)).await;
}

#[tokio::test]
async fn staged_members_switch_together_once_all_have_it() {
    // Long enough that a stopped agent stays connected while the rest is looked at.
    let lab = Lab::start(Plan { machines: 2, ttl: "30s", ..Plan::default() }).await;
    lab.works(&["config", "policy", "app", "rollout.staged=true"]);
    published(&lab, "app", &[("a", "1")]);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at("applied", 1, 2)).await;
    lab.signal_agent(1, rustix::process::Signal::STOP);
    published(&lab, "app", &[("a", "2")]);
    let ready = async |lab: &Lab| Some(members(lab, "app").await?["m1"].0.clone());
    lab.until("m1 has it ready", ready, "on_disk".into()).await;
    // It would switch within milliseconds if it did not wait: other work of the same member comes and goes meanwhile.
    published(&lab, "other", &[("x", "x")]);
    lab.until("m1 goes on with other sets", async |lab| Some(here(lab, 0, "other", "x")), "x".into()).await;
    assert_eq!((here(&lab, 0, "app", "a"), ready(&lab).await), ("1".into(), Some("on_disk".into())));
    lab.signal_agent(1, rustix::process::Signal::CONT);
    lab.until("both have it", async |lab| members(lab, "app").await, all_at("applied", 2, 2)).await;
    assert_eq!((here(&lab, 0, "app", "a"), here(&lab, 1, "app", "a")), ("2".into(), "2".into()));
}

#[tokio::test]
async fn what_a_staged_member_refused_is_shown_until_somebody_acts() {
    let lab = lab(&[String::new(), String::new()]).await;
    let second = lab.set_dir(1, "app");
    let script =
        format!("test $LEASEWARD_TARGET != {} || {{ echo no room here; exit 1; }} # {{tree}}", second.display());
    let check = format!("check.command=[\"sh\", \"-c\", \"{script}\"]");
    published(&lab, "app", &[("a", "1")]);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at("applied", 1, 2)).await;
    lab.works(&["config", "policy", "app", "rollout.staged=true", &check]);
    published(&lab, "app", &[("a", "2")]);
    let halted = async |lab: &Lab| Some(set(lab, "app").await?["rollout"]["halted"].is_string());
    lab.until("it stands still", halted, true).await;
    // The member hears of that, and would say that all is well within milliseconds: another set comes and goes meanwhile.
    published(&lab, "other", &[("x", "x")]);
    lab.until("members go on", async |lab| members(lab, "other").await, all_at("applied", 1, 2)).await;
    lab.until(
        "who takes it waits no more",
        async |lab| Some(members(lab, "app").await?["m1"].0.clone()),
        "applied".into(),
    )
    .await;
    let rollout = set(&lab, "app").await.expect("it is there")["rollout"].clone();
    assert_eq!(rollout["failed"], json!(["m2"]), "{rollout}");
    assert!(rollout["halted"].as_str().is_some_and(|why| why.contains("m2 (LW0811") && why.contains("no room here")));
    assert_eq!(members(&lab, "app").await.expect("they are there")["m2"], ("rejected".into(), 1));
    let (_, monitor, _) = lab.run(&["config", "monitor", "app"]);
    let (_, explained, _) = lab.run(&["explain", "config/app"]);
    assert!(monitor.contains("no room here") && explained.contains("rejected v2: LW0811"), "{monitor}{explained}");
    // Who resumes it passes over m2, which is not asked twice.
    lab.works(&["config", "rollout", "app", "resume"]);
    lab.until("the other one has it", async |lab| Some(here(lab, 0, "app", "a")), "2".into()).await;
}

#[tokio::test]
async fn what_is_changed_by_hand_is_seen_by_everybody_and_put_right_or_made_everybodys() {
    let lab = lab(&[String::new(), String::new()]).await;
    published(&lab, "app", &[("limits.toml", "max = 1\n"), ("conf.d/a", "a")]);
    lab.until("everybody has it", async |lab| members(lab, "app").await, all_at("applied", 1, 2)).await;

    fs::write(lab.set_dir(1, "app").join("limits.toml"), "max = 2\n").expect("written");
    fs::write(lab.set_dir(1, "app").join("conf.d/b"), "b").expect("written");
    let drifted = async |lab: &Lab| Some(members(lab, "app").await?["m2"].0.clone());
    lab.until("it is seen", drifted, "drifted".into()).await;
    let both = async |lab: &Lab| {
        let (_, monitor, _) = lab.run(&["config", "monitor", "app"]);
        Some(monitor.contains("limits.toml (content") && monitor.contains("conf.d/b (extra"))
    };
    lab.until("the monitor names both", both, true).await;

    // It is a good change: everybody gets it.
    lab.works(&["config", "publish", "app", "--from-member", "m2", "-m", "from m2"]);
    lab.until("everybody has what m2 had", async |lab| members(lab, "app").await, all_at("applied", 2, 2)).await;
    assert_eq!(
        (here(&lab, 0, "app", "limits.toml"), here(&lab, 0, "app", "conf.d/b")),
        ("max = 2\n".into(), "b".into())
    );
    let (code, diff, _) = lab.run(&["config", "diff", "app", "1", "2"]);
    assert_eq!(code, Some(1));
    assert!(
        diff.contains("M limits.toml") && diff.contains("-max = 1\n+max = 2\n") && diff.contains("A conf.d/b"),
        "{diff}"
    );

    // Another one is not: it is put right when somebody asks, and by itself where the set says so.
    fs::write(lab.set_dir(0, "app").join("limits.toml"), "max = 3\n").expect("written");
    let drifted = async |lab: &Lab| Some(members(lab, "app").await?["m1"].0.clone());
    lab.until("it is seen", drifted, "drifted".into()).await;
    lab.works(&["config", "sync", "app", "--machine", "m1"]);
    lab.until("it is put right", async |lab| Some(here(lab, 0, "app", "limits.toml")), "max = 2\n".into()).await;
    lab.works(&["config", "policy", "app", "drift=repair"]);
    fs::remove_file(lab.set_dir(1, "app").join("conf.d/a")).expect("removed");
    lab.until("it is back", async |lab| Some(here(lab, 1, "app", "conf.d/a")), "a".into()).await;
    lab.works(&["config", "policy", "app", "drift=adopt"]);
    let adopted = async |lab: &Lab| {
        // The machine may not have heard yet that changes are good now, and have put this one right.
        if here(lab, 0, "app", "conf.d/a") != "adopted" {
            fs::write(lab.set_dir(0, "app").join("conf.d/a"), "adopted").expect("written");
        }
        Some(here(lab, 1, "app", "conf.d/a"))
    };
    lab.until("it is everybody's by itself", adopted, "adopted".into()).await;
}

#[tokio::test]
async fn many_small_changes_are_one_version_and_nobody_overwrites_another() {
    let lab = lab(&[String::new()]).await;
    let batch = lab.dir().join("batch.ndjson");
    let lines: Vec<String> = (0..2000)
        .map(|i| json!({ "path": format!("users/{i}.toml"), "content": format!("id = {i}\n") }).to_string())
        .collect();
    fs::write(&batch, lines.join("\n")).expect("written");
    lab.works(&["config", "put", "users", "--batch", batch.to_str().expect("text"), "-m", "bulk"]);
    lab.until("all of it is there", async |lab| Some(here(lab, 0, "users", "users/1999.toml")), "id = 1999\n".into())
        .await;
    assert_eq!(set(&lab, "users").await.expect("it is there")["version"], 1, "one version");

    lab.works(&["config", "put", "users", "users/7.toml", "--text", "id = seven\n", "--if-version", "1"]);
    let (code, _, why) = lab.run(&["config", "put", "users", "users/7.toml", "--text", "lost", "--if-version", "1"]);
    assert_eq!(code, Some(5), "{why}");
    assert!(why.contains("LW0412") && why.contains("v2"), "{why}");
    lab.works(&["config", "put", "users", "users/8.toml", "--remove"]);
    let (code, _, why) = lab.run(&["config", "put", "users", "../x", "--text", "x"]);
    assert!(code != Some(0) && why.contains("LW0106"), "{why}");
    let gone = async |lab: &Lab| Some((here(lab, 0, "users", "users/7.toml"), here(lab, 0, "users", "users/8.toml")));
    lab.until("the member follows", gone, ("id = seven\n".into(), String::new())).await;

    // Out and in again: the same tree, as a directory and as a tar file.
    let (dir, tar) = (lab.dir().join("out"), lab.dir().join("out.tar"));
    lab.works(&["config", "pull", "users", "--to", dir.to_str().expect("text")]);
    lab.works(&["config", "pull", "users", "--tar", tar.to_str().expect("text")]);
    lab.works(&["config", "verify", "users", "--dir", dir.to_str().expect("text")]);
    lab.works(&["config", "publish", "again", "--tar", tar.to_str().expect("text")]);
    lab.works(&["config", "verify", "again", "--dir", dir.to_str().expect("text")]);
    fs::write(dir.join("users/9.toml"), "by hand").expect("written");
    let (code, said, _) = lab.run(&["config", "verify", "users", "--dir", dir.to_str().expect("text")]);
    assert_eq!((code, said.trim()), (Some(1), "content  users/9.toml"));
}

#[tokio::test]
async fn a_secret_is_read_by_its_members_alone() {
    let keys = tempfile::tempdir().expect("a directory");
    let key = keys.path().join("app.key");
    let created = Command::new(leaseward_tests::binary())
        .args(["config", "key", key.to_str().expect("text"), "--create"])
        .output()
        .expect("it runs");
    let fingerprint = String::from_utf8_lossy(&created.stdout).trim().to_owned();
    let lab = lab(&[format!("keys = [\"{}\"]", key.display()), String::new()]).await;
    lab.works(&["config", "policy", "vault", &format!("key=\"{fingerprint}\"")]);
    let plain = lab.dir().join("plain");
    fs::create_dir(&plain).expect("a directory");
    fs::write(plain.join("db.conf"), "password = hunter2\n").expect("written");
    let from = plain.to_str().expect("text");
    let publish = ["config", "publish", "vault", "--from", from, "--key", key.to_str().expect("text")];
    let (code, _, why) = lab.run(&publish);
    assert!(code == Some(1) && why.contains("LW0817") && why.contains("m2: "), "who cannot read it refused it: {why}");
    lab.until("its member reads it", async |lab| Some(here(lab, 0, "vault", "db.conf")), "password = hunter2\n".into())
        .await;
    let refused = async |lab: &Lab| Some(members(lab, "vault").await?["m2"].0.clone());
    lab.until("another one cannot", refused, "rejected".into()).await;
    let (_, monitor, _) = lab.run(&["config", "monitor", "vault"]);
    assert!(monitor.contains(&format!("the key {fingerprint} is not on this machine")), "{monitor}");
    let (code, _, why) = lab.run(&["config", "get", "vault", "db.conf"]);
    assert!(code != Some(0) && why.contains("encrypted"), "{why}");
    let shown = lab.works(&["config", "get", "vault", "db.conf", "--key", key.to_str().expect("text")]);
    assert_eq!(shown, "password = hunter2\n");
    // Who forgets the key, or has another one, is told before anything is sent or kept.
    let (code, _, why) = lab.run(&["config", "publish", "vault", "--from", from]);
    assert!(code != Some(0) && why.contains("LW0101") && why.contains("--key"), "{why}");
    let (code, _, why) = lab.run(&["config", "put", "vault", "db.conf", "--text", "password = hunter2"]);
    assert!(code != Some(0) && why.contains("LW0101") && why.contains(&fingerprint), "{why}");
    let changes = json!({ "changes": [{ "path": "new.conf", "content": "password = hunter2" }] }).to_string();
    let (code, _, why) = lab.run(&["api", "POST", "/v1/configs/vault/changes", &changes]);
    assert!(code != Some(0) && why.contains("LW0101"), "{why}");
    let other = keys.path().join("other.key");
    lab.works(&["config", "key", other.to_str().expect("text"), "--create"]);
    let (code, _, why) =
        lab.run(&["config", "publish", "vault", "--from", from, "--key", other.to_str().expect("text")]);
    assert!(code != Some(0) && why.contains(&fingerprint), "{why}");
    for to_open in [["publish", "open", "--from", from], ["put", "open", "db.conf", "--text"]] {
        let mut words = [&["config"], &to_open[..]].concat();
        if to_open[0] == "put" {
            words.push("hunter2");
        }
        let (code, _, why) = lab.run(&[&words[..], &["--key", key.to_str().expect("text")]].concat());
        assert!(code != Some(0) && why.contains("config policy open"), "nobody could read it: {why}");
    }
    let put =
        ["config", "put", "vault", "new.conf", "--text", "hunter2", "--no-wait", "--key", key.to_str().expect("text")];
    lab.works(&put);
    lab.until("and one file can be put, too", async |lab| Some(here(lab, 0, "vault", "new.conf")), "hunter2".into())
        .await;
    assert_eq!(set(&lab, "vault").await.expect("it is there")["version"], 2, "nothing else was published");
    // Nothing that any node wrote, but the member's own target, holds the word.
    let target = lab.set_dir(0, "vault");
    let mut left = vec![lab.dir().to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_before = path == target.with_file_name(".vault.leaseward-prev");
            if path == target || path == plain || is_before {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = fs::read(&path).unwrap_or_default();
                    let found = bytes.windows(7).any(|window| window == b"hunter2");
                    assert!(!found, "{} holds the secret", path.display());
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_member_that_was_away_for_long_joins_again_and_one_that_is_lost_is_replaced() {
    let mut lab = lab(&[String::new(), String::new(), String::new()]).await;
    published(&lab, "app", &[("a", "1"), ("b", "b")]);
    lab.until("everybody has it", async |lab| members(lab, "app").await, all_at("applied", 1, 3)).await;
    lab.works(&["config", "policy", "app", "keep_versions=2"]);
    lab.kill_agent(0);
    let away = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
    lab.until("m1 is away", away, 2).await;
    for version in 2..=12 {
        assert_eq!(published(&lab, "app", &[("a", &version.to_string()), ("b", "b")]), version);
    }
    // Its own version is no longer kept anywhere.
    let kept = lab.list_at(0, "/v1/configs/app/versions").await.unwrap_or_default().len();
    assert_eq!(kept, 2);
    lab.start_machine(0);
    lab.until("it caught up", async |lab| Some(here(lab, 0, "app", "a")), "12".into()).await;

    // Lost with its disk, and forgotten; a new machine of that name begins with nothing.
    lab.kill_agent(1);
    lab.until("m2 is away", away, 2).await;
    lab.works(&["machine", "rm", "m2"]);
    assert_eq!(members(&lab, "app").await.map(|members| members.len()), Some(2), "it is no member any more");
    fs::remove_dir_all(lab.dir().join("m2")).expect("its disk is gone");
    lab.start_machine(1);
    lab.until("a new one has it", async |lab| Some(here(lab, 1, "app", "a")), "12".into()).await;
    lab.until("and says so", async |lab| members(lab, "app").await, all_at("applied", 12, 3)).await;

    // Taken out for maintenance: nothing is touched, and it catches up afterwards.
    lab.works(&["config", "pin", "app", "--machine", "m3", "--as-is", "-m", "maintenance"]);
    published(&lab, "app", &[("a", "13")]);
    let disabled = async |lab: &Lab| Some(members(lab, "app").await?["m3"].0.clone());
    lab.until("it is out", disabled, "disabled".into()).await;
    lab.until("the others go on", async |lab| Some(here(lab, 0, "app", "a")), "13".into()).await;
    assert_eq!(here(&lab, 2, "app", "a"), "12");
    lab.works(&["config", "unpin", "app", "--machine", "m3"]);
    lab.until("it is back", async |lab| Some(here(lab, 2, "app", "a")), "13".into()).await;
}

#[tokio::test]
async fn layers_and_templates_make_each_member_its_own() {
    let lab = lab(&["labels = { zone = \"a\" }".into(), "labels = { zone = \"b\" }".into(), String::new()]).await;
    lab.works(&["config", "policy", "app", "overlays=true", "templates=true"]);
    published(
        &lab,
        "app",
        &[
            ("name.tmpl", "{{ machine }}"),
            ("mode", "plain"),
            ("@zone=a/mode", "zone a"),
            ("@machine=m2/mode", "m2's own"),
        ],
    );
    let own = async |lab: &Lab| {
        Some([0, 1, 2].map(|machine| (here(lab, machine, "app", "name"), here(lab, machine, "app", "mode"))))
    };
    let expected = [("m1", "zone a"), ("m2", "m2's own"), ("m3", "plain")];
    lab.until("each has its own", own, expected.map(|(name, mode)| (name.to_owned(), mode.to_owned()))).await;
    // Only members with the label get a set that asks for it.
    lab.works(&["config", "policy", "zone-a", "members={ zone = \"a\" }"]);
    published(&lab, "zone-a", &[("x", "x")]);
    lab.until("m1 has it", async |lab| Some(here(lab, 0, "zone-a", "x")), "x".into()).await;
    let only = async |lab: &Lab| Some(members(lab, "zone-a").await?.into_keys().collect::<Vec<_>>());
    lab.until("it is for m1 alone", only, vec!["m1".to_owned()]).await;
    assert!(!Path::new(&lab.set_dir(1, "zone-a")).exists());
}
