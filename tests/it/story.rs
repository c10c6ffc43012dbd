//! A lab with one server that stamps while it executes, and short words for what happens to it.
//!
//! The witness is `leaseward-victim`, which stamps the boot clock and its token.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use leaseward_tests::stamps::{Life, Stamps};
use leaseward_tests::{Lab, Plan};
use serde_json::Value;

/// Time to live of the machines' sessions.
pub(crate) const TTL: Duration = Duration::from_secs(1);

/// A machine without privileges has a grace of two seconds, and something has to start.
pub(crate) const GRACE_AND_START: Duration = Duration::from_millis(2_500);

/// The name of every server here.
pub(crate) const NAME: &str = "pay";

/// A lab with one server that stamps.
pub(crate) struct Story {
    pub(crate) lab: Lab,
    pub(crate) stamps: Stamps,
}

pub(crate) fn victim() -> &'static str {
    env!("CARGO_BIN_EXE_leaseward-victim")
}

impl Story {
    /// Starts a lab whose machines can end servers; without that there is nothing to see, and it says so.
    pub(crate) async fn lab() -> Option<Self> {
        Self::planned(Plan::default()).await
    }

    pub(crate) async fn planned(plan: Plan) -> Option<Self> {
        let lab = Lab::start(Plan { machines: 3, ..plan }).await;
        let machines: Value = lab.until_some("machines are listed", async |lab| lab.get("/v1/machines").await).await;
        let fence = machines["items"][0]["fence"].as_str().expect("a level").to_owned();
        if fence == "F0" {
            println!("left out: this system has no PID namespaces for us, so no server can be fenced");
            return None;
        }
        let stamps = Stamps::at(&lab.dir().join("stamps"));
        Some(Self { lab, stamps })
    }

    /// Starts a lab with a server that runs.
    pub(crate) async fn start(options: &[&str], settings: &str) -> Option<Self> {
        let story = Self::lab().await?;
        story.apply(options, settings);
        story.next_life(0).await;
        Some(story)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }

    /// Defines the server and waits until it runs.
    pub(crate) fn apply(&self, options: &[&str], settings: &str) {
        self.define(options, settings, &[]);
    }

    pub(crate) fn define(&self, options: &[&str], settings: &str, flags: &[&str]) {
        let stamps = self.stamps.path().to_str().expect("text");
        let command: Vec<String> =
            [&[victim(), "stamp", stamps], options].concat().iter().map(|word| format!("{word:?}")).collect();
        let file = self.path(&format!("{NAME}.toml"));
        // What is stopped by signals only waits long enough to be noticed if it should not have to wait.
        let text = format!("command = [{}]\nstop_grace = \"500ms\"\n{settings}\n", command.join(", "));
        fs::write(&file, text).expect("the file is written");
        let output = self.lab.cli(&[&["server", "apply", "-f", file.to_str().expect("text")], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) async fn server(&self) -> Value {
        self.lab.until_some("the server is shown", async |lab| lab.get(&format!("/v1/servers/{NAME}")).await).await
    }

    /// Returns the server once it has this phase.
    pub(crate) async fn phase(&self, phase: &str) -> Value {
        let look = async |lab: &Lab| {
            let server: Value = lab.get(&format!("/v1/servers/{NAME}")).await?;
            (server["phase"] == phase).then_some(server)
        };
        self.lab.until_some(&format!("the server is {phase}"), look).await
    }

    /// Returns the machine on which the server runs.
    pub(crate) async fn machine(&self) -> usize {
        machine_of(&self.phase("running").await)
    }

    /// Returns the first life under a token greater than this, once there is one.
    pub(crate) async fn next_life(&self, token: u64) -> Life {
        self.lab.until_some("it lives under a new token", async |_| self.stamps.after(token)).await
    }

    /// Returns the newest life, once it is another one than this.
    pub(crate) async fn other_life(&self, than: &Life) -> Life {
        let newer = async |_: &Lab| self.stamps.newest().filter(|life| life.first > than.first);
        self.lab.until_some("it lives again", newer).await
    }

    /// Waits until this life's last stamp is later than `at`.
    pub(crate) async fn lives_beyond(&self, life: &Life, at: u64) {
        let beyond = async |_: &Lab| {
            let now = self.stamps.lives().into_iter().find(|known| known.first == life.first)?;
            (now.last > at).then_some(())
        };
        self.lab.until_some("it lives on", beyond).await;
    }

    /// Returns the newest life. A server may be running a moment before its first stamp is written.
    pub(crate) async fn newest(&self) -> Life {
        self.lab.until_some("it lives", async |_| self.stamps.newest()).await
    }

    /// Runs a command of an operator. Returns its exit code.
    pub(crate) fn operate(&self, words: &[&str]) -> i32 {
        let output = self.lab.cli(&[words, &["--yes", "--timeout", "30s"]].concat());
        let code = output.status.code().expect("it is not killed");
        println!("{words:?}: {code} {}", String::from_utf8_lossy(&output.stderr).trim());
        code
    }
}

pub(crate) fn machine_of(server: &Value) -> usize {
    let name = server["machine"].as_str().expect("it has a machine");
    name.trim_start_matches('m').parse::<usize>().expect("a number") - 1
}

pub(crate) fn token_of(server: &Value) -> u64 {
    server["token"].as_str().expect("it has a token").parse().expect("a number")
}

pub(crate) fn after(what: &str, since: u64, life: &Life, at_most: Duration) {
    let took = Duration::from_nanos(life.first.saturating_sub(since));
    println!("{what}: back after {took:?}");
    assert!(took <= at_most, "{what}: back only after {took:?}; {at_most:?} are allowed");
}
