//! Machines that are reached by ssh: a real sshd, the system's ssh, and a login that prints whatever it likes.
//!
//! The witness is `leaseward-victim`, as in `failover.rs`: with our program on the far machine no two lives overlap,
//! however ssh is cut. With a control script nothing ends them, and nobody claims so.

mod apart;
mod host;

use std::path::Path;
use std::time::Duration;

use host::{Host, TTL_MS};
use leaseward_tests::stamps::{Life, Stamps, boot_ns};
use leaseward_tests::{Lab, Plan, eventually, signal};
use rustix::process::Signal;
use serde_json::Value;

/// What a second machine's login, start and grace may take besides the time to live.
const GRACE_AND_START: Duration = Duration::from_secs(4);

const MS: u64 = 1_000_000;

/// A server that may be on a machine of level F0, and waits there until somebody knows that it is dead.
const FOR_EVER: &str = "manager = \"ssh\"\nrequires_fence = \"F0\"\ngrace = \"1h\"";

struct Story {
    // Dropped first: its servers stamp below the lab's directory.
    host: Host,
    lab: Lab,
    stamps: Stamps,
}

impl Story {
    /// Starts three voters, an ordinary machine `m1`, and a machine `far` that is not managed yet.
    async fn start() -> Option<Self> {
        Self::with(Host::start().await?).await
    }

    async fn with(host: Host) -> Option<Self> {
        let lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
        let stamps = Stamps::at(&lab.dir().join("stamps"));
        Some(Self { host, lab, stamps })
    }

    /// Starts it with our program on the far machine, if servers can be fenced here.
    async fn with_our_program() -> Option<Self> {
        Self::with_our_program_on(Host::start().await?).await
    }

    async fn with_our_program_on(host: Host) -> Option<Self> {
        let mut story = Self::with(host).await?;
        story.host.with_our_program();
        story.host.manage(&story.lab, "");
        story.connected(2).await;
        if story.far().await["fence"] == "F0" {
            println!("left out: this system has no PID namespaces for us, so no server can be fenced");
            return None;
        }
        Some(story)
    }

    async fn with_control_script() -> Option<Self> {
        let mut story = Self::start().await?;
        story.host.with_control_script();
        story.manage_by_script();
        story.connected(2).await;
        Some(story)
    }

    fn manage_by_script(&mut self) {
        self.manage_by_script_as("near");
    }

    fn manage_by_script_as(&mut self, name: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/hooks/control");
        let lines = format!("control = \"{}\"\nlease_ttl = \"{}ms\"\npoll = \"200ms\"", script.display(), 2 * TTL_MS);
        self.host.manage_as(name, &self.lab, &lines);
    }

    async fn far(&self) -> Value {
        self.lab.until_some("it is shown", async |lab| lab.get("/v1/machines/far").await).await
    }

    async fn connected(&self, machines: u64) {
        let connected = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
        self.lab.until(&format!("{machines} machines are connected"), connected, machines).await;
    }

    fn apply(&self, options: &[&str], settings: &str) {
        let stamps = self.stamps.path().to_str().expect("text");
        let command: Vec<String> = [&[env!("CARGO_BIN_EXE_leaseward-victim"), "stamp", stamps], options]
            .concat()
            .iter()
            .map(|word| format!("{word:?}"))
            .collect();
        let file = self.lab.dir().join("pay.toml");
        let text = format!(
            "command = [{}]\ncandidates = [\"far\", \"m1\"]\nstop_grace = \"1s\"\n{settings}\n",
            command.join(", ")
        );
        std::fs::write(&file, text).expect("written");
        self.operate(&["server", "apply", "-f", file.to_str().expect("text"), "--no-wait"]);
    }

    fn operate(&self, words: &[&str]) {
        let output = self.lab.cli(&[words, &["--yes", "--timeout", "30s"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns the server once it runs on this machine.
    async fn runs_on(&self, machine: &str) -> Value {
        let look = async |lab: &Lab| {
            let server: Value = lab.get("/v1/servers/pay").await?;
            (server["phase"] == "running" && server["machine"] == machine).then_some(server)
        };
        self.lab.until_some(&format!("it runs on {machine}"), look).await
    }

    async fn life_after(&self, token: u64) -> Life {
        self.lab.until_some("it lives under a new token", async |_| self.stamps.after(token)).await
    }

    async fn lives_beyond(&self, life: &Life, at: u64) {
        let beyond = async |_: &Lab| {
            let now = self.stamps.lives().into_iter().find(|known| known.first == life.first)?;
            (now.last > at).then_some(())
        };
        self.lab.until_some("it lives on", beyond).await;
    }
}

#[tokio::test]
async fn a_server_moves_away_from_the_far_machine_and_back() {
    let Some(story) = Story::with_our_program().await else { return };
    story.apply(&[], "");
    story.runs_on("far").await;
    let far = story.far().await;
    assert_eq!(far["labels"]["manager"], "ssh", "{far}");
    story.operate(&["server", "move", "pay", "--to", "m1"]);
    story.runs_on("m1").await;
    story.operate(&["server", "move", "pay", "--to", "far"]);
    story.runs_on("far").await;
    assert_eq!(story.stamps.exclusive().len(), 3);
}

#[tokio::test]
async fn ssh_is_cut_and_the_server_is_dead_before_it_runs_elsewhere() {
    for (what, silent) in [(Signal::KILL, false), (Signal::STOP, true)] {
        let Some(story) = Story::with_our_program().await else { return };
        story.apply(&["--ignore-term", "--daemon"], "");
        story.runs_on("far").await;
        let old = story.life_after(0).await;
        story.host.close();
        let cut = boot_ns();
        story.host.signal_ssh(what);
        let new = story.life_after(old.token).await;
        let took = Duration::from_nanos(new.first - cut);
        println!("ssh cut (silent: {silent}): back after {took:?}");
        assert!(took < Duration::from_millis(TTL_MS) + GRACE_AND_START, "back only after {took:?}");
        story.runs_on("m1").await;
        let lives = story.stamps.exclusive();
        assert!(lives[0].last < cut + TTL_MS * MS, "it outlived its deadline: {lives:?}, cut at {cut}");
        // Killed: nobody is left to end it before. Silent: its agent lives, and ends it a stop budget before.
        let least = if silent { TTL_MS / 3 } else { TTL_MS * 2 / 3 };
        assert!(lives[0].last > cut + least * MS, "it ended early: {lives:?}, cut at {cut}");
        assert_eq!(lives[0].processes, 2, "its daemon never stamped: {lives:?}");

        // Reached again, it starts nothing by itself.
        story.host.open();
        story.connected(2).await;
        story.lives_beyond(&new, boot_ns() + TTL_MS * MS).await;
        assert_eq!(story.stamps.exclusive().len(), 2, "the one that came back moved something");
    }
}

#[tokio::test]
async fn a_connection_that_is_back_in_time_costs_nothing() {
    let Some(mut story) = Story::with_our_program().await else { return };
    story.apply(&[], "");
    let before = story.runs_on("far").await;
    let life = story.life_after(0).await;
    for kills_near in [false, true] {
        if kills_near {
            story.host.kill_near();
            story.host.manage(&story.lab, "");
        } else {
            story.host.signal_ssh(Signal::KILL);
        }
        story.lives_beyond(&life, boot_ns() + 2 * TTL_MS * MS).await;
        let now = story.runs_on("far").await;
        assert_eq!((&now["pid"], &now["token"]), (&before["pid"], &before["token"]));
    }
    assert_eq!(story.stamps.exclusive().len(), 1, "it was started again");
}

#[tokio::test]
async fn a_control_script_starts_stops_and_restarts_through_a_noisy_login() {
    let Some(mut story) = Story::with_control_script().await else { return };
    let far = story.far().await;
    assert_eq!((&far["fence"], &far["labels"]["manager"]), (&"F0".into(), &"ssh".into()), "{far}");
    eventually("somebody is warned", async || story.host.said().contains("LW0377")).await;
    story.apply(&[], &format!("{FOR_EVER}\n[restart]\nin_place = 2\nbackoff = [\"0s\"]"));
    let first = story.runs_on("far").await;
    let life = story.life_after(0).await;

    signal(pid_of(&story), Signal::KILL);
    let again = async |_: &Lab| story.stamps.newest().filter(|newest| newest.first > life.first);
    let second = story.lab.until_some("it lives again", again).await;
    assert_eq!(second.token, life.token, "restarted in place");
    assert_eq!(story.runs_on("far").await["token"], first["token"]);

    // A manager that is started again goes on with it.
    story.host.kill_near();
    story.manage_by_script();
    story.lives_beyond(&second, boot_ns() + 2 * TTL_MS * MS).await;
    assert_eq!(story.runs_on("far").await["token"], first["token"]);

    story.operate(&["server", "stop", "pay"]);
    let stopped = story.stamps.newest().expect("it lived");
    story.operate(&["server", "start", "pay"]);
    let third = story.life_after(stopped.token).await;
    story.operate(&["server", "move", "pay", "--to", "m1"]);
    story.life_after(third.token).await;
    story.runs_on("m1").await;
    assert_eq!(story.stamps.exclusive().len(), 4);
}

#[tokio::test]
async fn a_server_that_ends_too_often_leaves_its_control_script() {
    let Some(story) = Story::with_control_script().await else { return };
    story.apply(&[], &format!("{FOR_EVER}\n[restart]\nin_place = 0"));
    story.runs_on("far").await;
    let old = story.life_after(0).await;
    signal(pid_of(&story), Signal::KILL);
    let new = story.life_after(old.token).await;
    story.lives_beyond(&new, new.first + TTL_MS * MS).await;
    assert_eq!(story.stamps.exclusive().len(), 2, "it was started again under the token that was given back");
    let server: Value = story.lab.get("/v1/servers/pay").await.expect("it is shown");
    assert_eq!(server["failures"][0]["machine"], "far", "{server}");
}

#[tokio::test]
async fn a_control_script_that_is_cut_off_proves_nothing() {
    let Some(story) = Story::with_control_script().await else { return };
    story.apply(&[], FOR_EVER);
    story.runs_on("far").await;
    let old = story.life_after(0).await;
    story.host.close();
    story.operate(&["server", "stop", "pay", "--no-wait"]);
    story.connected(1).await;
    // Nobody ended it, so it must not run elsewhere, however long that takes.
    story.lives_beyond(&old, boot_ns() + 2 * TTL_MS * MS).await;
    let server: Value = story.lab.get("/v1/servers/pay").await.expect("it is shown");
    assert!(server["phase"] != "running" && server["phase"] != "stopped", "nobody knows that: {server}");
    assert_eq!(story.stamps.exclusive().len(), 1);
    story.operate(&["server", "start", "pay", "--no-wait"]);

    // Reached again, its script ends it, and says so; only then it is started again.
    story.host.open();
    let second = story.life_after(old.token).await;
    story.runs_on("far").await;
    assert_eq!(story.stamps.exclusive().len(), 2);

    // An operator who switched the machine off may say how long that takes: here it is ended by hand.
    story.host.close();
    story.connected(1).await;
    signal(pid_of(&story), Signal::KILL);
    story.apply(&[], "manager = \"ssh\"\nrequires_fence = \"F0\"\ngrace = \"100ms\"");
    let third = story.life_after(second.token).await;
    story.runs_on("m1").await;
    story.host.open();
    story.connected(2).await;
    story.lives_beyond(&third, boot_ns() + TTL_MS * MS).await;
    assert_eq!(story.stamps.exclusive().len(), 3, "the one that came back moved something");
}

/// Returns the process id that the control script wrote down.
fn pid_of(story: &Story) -> u32 {
    let text = std::fs::read_to_string(story.host.path("control/pay.pid")).expect("written down");
    text.trim().parse().expect("a number")
}

#[tokio::test]
async fn bad_answers_have_codes_and_break_nothing() {
    let Some(mut story) = Story::start().await else { return };
    story.host.login("exit 3");
    story.host.manage(&story.lab, "");
    let said = async |code: &str, words: &str| {
        let heard = || story.host.said().lines().any(|line| line.contains(code) && line.contains(words));
        eventually(&format!("{code} {words}"), async || heard()).await;
    };
    said("LW0370", "exited with 3").await;
    story.host.login("while :; do echo fortune; done");
    said("LW0370", "65536 bytes").await;
    let sentinel = "echo -----LEASEWARD STREAM 1-----";
    story.host.login(&format!("{sentinel}\nprintf 'GET / HTTP/1.1\\n\\n'; cat"));
    said("LW0372", "a frame of").await;
    story.host.login(&format!("{sentinel}\nprintf '\\007\\0\\0\\0\\0\\0\\0\\0\\0{{}}'; exec sleep 60"));
    said("LW0371", "silent").await;
    // After all that, a machine that works is taken.
    story.host.with_our_program();
    story.connected(2).await;
    assert!(story.host.near_lives());
}
