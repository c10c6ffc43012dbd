//! A machine is not heard: others make ready for its servers, and go back to sleep when it is heard again.
//!
//! The witnesses are the hook `prepare`, which writes what it is told, and the stamps of the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, Plan};
use rustix::process::Signal;
use serde_json::Value;

use crate::story::{GRACE_AND_START, NAME, Story, TTL, after};

impl Story {
    /// Writes a hook that says where it runs and for which copy, and then runs `then`.
    fn hook(&self, then: &str) -> PathBuf {
        let (hook, said) = (self.path("prepare.sh"), self.said());
        let words = "$LEASEWARD_MACHINE $LEASEWARD_TOKEN $LEASEWARD_OPERATION_ID $1";
        let text = format!("#!/bin/sh\necho \"{words}\" >> {}\n{then}\n", said.display());
        fs::write(&hook, text).expect("written");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("it may run");
        hook
    }

    fn said(&self) -> PathBuf {
        self.path("prepared")
    }

    /// Returns what the hook has said, once it has said something.
    async fn hears_the_hook(&self) -> String {
        let said = async |_: &Lab| fs::read_to_string(self.said()).ok().filter(|said| said.ends_with('\n'));
        self.lab.until_some("another machine makes ready", said).await
    }

    fn on_every_machine(&self, hook: &std::path::Path) -> String {
        let hook = hook.to_str().expect("text");
        format!("candidates = [\"m1\", \"m2\", \"m3\"]\nhooks.prepare.command = [{hook:?}]")
    }
}

#[tokio::test]
async fn the_next_machine_is_ready_before_the_old_ones_time_is_over() {
    let Some(mut story) = Story::lab().await else { return };
    let hook = story.hook("");
    story.apply(&[], &story.on_every_machine(&hook));
    let old = story.next_life(0).await;
    assert_eq!(story.machine().await, 0);

    let killed = boot_ns();
    story.lab.kill_machine(0);
    let said = story.hears_the_hook().await;
    let token = old.token;
    assert_eq!(said, format!("m2 {token} {NAME}:{token}:prepare prepare\n"), "once, on the next candidate");
    let new = story.next_life(old.token).await;
    after("machine killed", killed, &new, TTL + GRACE_AND_START);
    assert_eq!(story.machine().await, 1, "where it was made ready");

    let history: Value = story.lab.get(&format!("/v1/servers/{NAME}/history")).await.expect("it is told");
    let phases = history["items"][0]["phases"].as_array().expect("a list");
    let names: Vec<_> = phases.iter().filter_map(|phase| phase["name"].as_str()).collect();
    let at = |name: &str| names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name}: {history}"));
    assert!(at("suspect") < at("prepared") && at("prepared") < at("expired"), "{names:?}");
    assert_eq!(story.stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn a_machine_that_is_heard_again_keeps_its_server_and_nobody_makes_ready_any_more() {
    let Some(story) = Story::planned(Plan { ttl: "8s", ..Plan::default() }).await else { return };
    // A preparation that would go on for ever, and what it started.
    let hook = story.hook("sleep 100000 & echo $! > $0.pid; wait");
    story.apply(&[], &story.on_every_machine(&hook));
    let life = story.next_life(0).await;
    assert_eq!(story.machine().await, 0);

    story.lab.signal_agent(0, Signal::STOP);
    story.hears_the_hook().await;
    let server = story.server().await;
    assert_eq!((&server["heir"]["machine"], &server["heir"]["readiness"]), (&"m2".into(), &"preparing".into()));
    let explained = story.lab.cli(&["explain", &format!("server/{NAME}")]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("m1 is not heard") && explained.contains("m2 makes ready"), "{explained}");
    let machine: Value = story.lab.get("/v1/machines/m1").await.expect("it is known");
    assert!(machine["suspected"].is_string() && machine["connected"] == true, "{machine}");
    let of_the_hook = async |_: &Lab| fs::read_to_string(story.path("prepare.sh.pid")).ok()?.trim().parse::<u32>().ok();
    let pid = story.lab.until_some("the hook runs", of_the_hook).await;

    story.lab.signal_agent(0, Signal::CONT);
    let heard = async |lab: &Lab| {
        let machine: Value = lab.get("/v1/machines/m1").await?;
        (machine["suspected"].is_null() && machine["connected"] == true).then_some(())
    };
    story.lab.until_some("it is heard again", heard).await;
    let ended = async |_: &Lab| (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    story.lab.until_some("the preparation is ended, with what it started", ended).await;
    assert_eq!(story.server().await["heir"], Value::Null);
    story.lives_beyond(&life, boot_ns()).await;
    assert_eq!(story.stamps.exclusive().len(), 1, "it was moved or restarted");
    let events = story.lab.cli(&["events", "--for", "machine/m1"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("m1 was not heard for two renewals") && events.contains("m1 is heard again"), "{events}");
}

#[tokio::test]
async fn a_machine_that_lacks_the_program_is_passed_over() {
    let Some(mut story) = Story::lab().await else { return };
    let hook = story.hook("[ $LEASEWARD_MACHINE = m3 ] || { echo no disk here; exit 2; }");
    story.apply(&[], &story.on_every_machine(&hook));
    let old = story.next_life(0).await;
    assert_eq!(story.machine().await, 0);
    story.lab.kill_machine(0);
    story.next_life(old.token).await;
    assert_eq!(story.machine().await, 2, "m2 said that it could not");
    let events = story.lab.cli(&["events", "--for", &format!("server/{NAME}")]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("m2 could not take") && events.contains("no disk here"), "{events}");
    assert_eq!(story.stamps.exclusive().len(), 2);
}
