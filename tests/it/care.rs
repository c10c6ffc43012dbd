//! What operators do around servers, with real processes: drain, restart, fail back, maintenance, a vouched death.
//!
//! In every story no two lives of the server overlap.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::story::{NAME, Story, machine_of};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

impl Story {
    fn says(&self, words: &[&str]) -> Value {
        let output = self.lab.cli(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output)))
    }

    async fn on(&self, machine: usize) {
        let there = async |_: &_| {
            let server = self.server().await;
            (server["phase"] == "running" && machine_of(&server) == machine).then_some(())
        };
        self.lab.until_some(&format!("the server runs on m{}", machine + 1), there).await;
    }
}

const EVERYWHERE: &str = "candidates = [\"m1\", \"m2\", \"m3\"]";

#[tokio::test]
async fn a_drained_machine_is_empty_and_serves_again_when_it_is_back() {
    let Some(story) = Story::start(&[], EVERYWHERE).await else { return };
    let other = story.path("other.toml");
    std::fs::write(&other, format!("command = [\"sleep\", \"100000\"]\n{EVERYWHERE}\n")).expect("written");
    assert_eq!(story.operate(&["server", "apply", "-f", other.to_str().expect("text")]), 0);
    story.on(0).await;

    let ahead = story.says(&["machine", "drain", "m1", "-m", "firmware", "--dry-run"]);
    let names: Vec<_> = ahead["servers"].as_array().expect("a list").iter().map(|one| one["server"].clone()).collect();
    assert_eq!(names, ["other", NAME], "{ahead}");
    assert_eq!(story.server().await["machine"], "m1", "nothing was done yet");

    assert_eq!(story.operate(&["machine", "drain", "m1", "-m", "firmware"]), 0);
    let machine: Value = story.says(&["machine", "get", "m1"]);
    assert_eq!(machine["servers"], Value::Array(Vec::new()), "the command ends when the machine is empty");
    assert_ne!(machine_of(&story.server().await), 0);
    assert_eq!(story.operate(&["server", "failback", NAME]), 0, "the next best candidate is where it is");
    assert_ne!(machine_of(&story.server().await), 0, "a drained machine gets nothing");

    assert_eq!(story.operate(&["machine", "resume", "m1"]), 0);
    assert_eq!(story.operate(&["server", "failback", NAME]), 0);
    story.on(0).await;
    assert_eq!(story.stamps.exclusive().len(), 3);
}

#[tokio::test]
async fn a_restart_is_a_new_life_under_a_new_token_on_the_same_machine() {
    let Some(story) = Story::start(&[], EVERYWHERE).await else { return };
    let (before, old) = (story.phase("running").await, story.newest().await);
    assert_eq!(story.operate(&["server", "restart", NAME]), 0);
    let new = story.next_life(old.token).await;
    assert!(new.token > old.token);
    assert_eq!(story.phase("running").await["machine"], before["machine"]);
    assert_eq!(story.stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn what_cannot_run_where_it_is_moved_goes_back() {
    let Some(story) = Story::lab().await else { return };
    let settings = format!(
        "{EVERYWHERE}\nhooks.pre_start.command = [\"/bin/sh\", \"-c\", \"test $LEASEWARD_MACHINE != m2 || exit 1\"]\n\
         [restart]\nin_place = 0"
    );
    story.apply(&[], &settings);
    story.on(0).await;
    assert_ne!(story.operate(&["server", "move", NAME, "--to", "m2"]), 0, "the operation fails");
    story.on(0).await;
    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m3"]), 0);
    story.on(2).await;
    story.stamps.exclusive();
}

#[tokio::test]
async fn in_maintenance_a_lost_machine_waits_and_the_end_comes_by_itself() {
    let Some(mut story) = Story::start(&[], EVERYWHERE).await else { return };
    story.on(0).await;
    let old = story.newest().await;
    let lasting = Duration::from_secs(6);
    let begun = Instant::now();
    assert_eq!(story.operate(&["maintenance", "on", "-m", "new switches", "--for", "6s"]), 0);
    story.lab.kill_machine(0);
    let waiting = async |_: &_| {
        let explained: Value = story.lab.get(&format!("/v1/explain/server/{NAME}")).await?;
        explained["because"].to_string().contains("it is paused until").then_some(())
    };
    story.lab.until_some("it says why it waits", waiting).await;
    let new = story.next_life(old.token).await;
    assert!(begun.elapsed() >= lasting, "it was placed {:?} after maintenance began", begun.elapsed());
    assert!(new.token > old.token);
    assert_eq!(story.stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn a_vouched_death_ends_the_wait_for_a_proof() {
    // An hour of grace: nobody would wait for it.
    let Some(mut story) = Story::start(&[], &format!("{EVERYWHERE}\ngrace = \"1h\"")).await else { return };
    story.on(0).await;
    let old = story.newest().await;
    let ahead = story.says(&["whatif", "machine", "m1", "down"]);
    assert_eq!(ahead["servers"][0]["to"], "m2", "{ahead}");
    assert_ne!(story.operate(&["machine", "confirm-dead", "m1", "--confirm", "m1"]), 0, "it is connected");
    story.lab.kill_machine(0);
    story.phase("fencing").await;
    assert_ne!(story.operate(&["machine", "confirm-dead", "m1", "--confirm", "m2"]), 0, "another name was typed");
    assert_eq!(story.server().await["phase"], "fencing");
    assert_eq!(story.operate(&["machine", "confirm-dead", "m1", "--confirm", "m1"]), 0);
    story.next_life(old.token).await;
    story.on(1).await;
    assert_eq!(story.stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn it_returns_by_itself_and_its_history_tells_all_of_it() {
    let Some(mut story) = Story::start(&[], &format!("{EVERYWHERE}\nfailback = \"auto-after 2s\"")).await else {
        return;
    };
    story.on(0).await;
    story.lab.kill_machine(0);
    story.on(1).await;
    story.lab.start_machine(0);
    let begun = Instant::now();
    story.on(0).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "back after {:?}", begun.elapsed());
    let history = story.says(&["server", "history", NAME]);
    let items = history["items"].as_array().expect("a list");
    let causes: Vec<_> = items.iter().map(|item| item["cause"].as_str().unwrap_or_default()).collect();
    assert_eq!(causes, ["machine_lost", "failed_back"], "{history}");
    let phases: Vec<_> =
        items[0]["phases"].as_array().expect("a list").iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    let told = ["last_renewal", "suspect", "expired", "fenced", "decided", "exec", "ready"];
    assert!(told.iter().all(|name| phases.contains(name)), "{phases:?}");
    // It was placed within what the rules say, and a commit's time.
    let ms = |key: &str| {
        let text = items[0][key].as_str().unwrap_or_else(|| panic!("{key}: {}", items[0]));
        text.strip_suffix("ms").map_or_else(
            || text.trim_end_matches('s').parse::<u64>().expect("seconds") * 1_000,
            |ms| ms.parse().expect("ms"),
        )
    };
    let (took, bound) = (ms("took"), ms("bound"));
    println!("placed {took} ms after the last sign of life, {bound} ms by the rules");
    assert!(took <= bound + 1_000, "{took} ms; {bound} ms by the rules");
    assert_eq!(story.stamps.exclusive().len(), 3);
}

#[tokio::test]
async fn a_paused_server_is_left_as_it_is() {
    let Some(story) = Story::start(&[], EVERYWHERE).await else { return };
    story.on(0).await;
    let old = story.newest().await;
    assert_eq!(story.operate(&["server", "pause", NAME, "-m", "surgery"]), 0);
    // The machine has heard of it once it says so of itself.
    let pid = story.server().await["pid"].as_u64().expect("it runs");
    let knows = async |_: &_| {
        let order = story.server().await;
        (order["paused"]["reason"] == "surgery").then_some(())
    };
    story.lab.until_some("it is paused", knows).await;
    assert_eq!(story.operate(&["machine", "drain", "m1", "-m", "x", "--no-wait"]), 0);
    leaseward_tests::signal(u32::try_from(pid).expect("a pid"), rustix::process::Signal::KILL);
    story.phase("unplaced").await;
    let explained: Value =
        story.lab.until_some("it is explained", async |lab| lab.get(&format!("/v1/explain/server/{NAME}")).await).await;
    assert!(explained["because"].to_string().contains("it is paused"), "{explained}");
    assert_eq!(story.newest().await.first, old.first, "it was restarted");
    assert_eq!(story.operate(&["server", "resume", NAME]), 0);
    let new = story.next_life(old.token).await;
    assert!(new.token > old.token);
    assert_ne!(machine_of(&story.phase("running").await), 0, "m1 is drained");
    story.stamps.exclusive();
}

#[tokio::test]
async fn a_fence_hook_proves_what_nobody_else_can() {
    let Some(mut story) = Story::lab().await else { return };
    let (switch, told, hook) = (story.path("off"), story.path("told"), story.path("fence.sh"));
    let script = format!(
        "#!/bin/sh\nenv | grep ^LEASEWARD_ | sort > {told}.new\nmv {told}.new {told}\ntest -e {switch}\n",
        told = told.display(),
        switch = switch.display()
    );
    std::fs::write(&hook, script).expect("written");
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    // Nobody would wait an hour.
    story
        .apply(&[], &format!("{EVERYWHERE}\ngrace = \"1h\"\nhooks.fence.command = [{:?}]", hook.display().to_string()));
    story.on(0).await;
    let old = story.newest().await;
    story.lab.kill_machine(0);
    let said = story.lab.until_some("the hook is run", async |_: &_| std::fs::read_to_string(&told).ok()).await;
    for line in [
        format!("LEASEWARD_SERVER={NAME}"),
        "LEASEWARD_MACHINE=m1".into(),
        "LEASEWARD_STEP=fence".into(),
        format!("LEASEWARD_TOKEN={}", old.token),
    ] {
        assert!(said.lines().any(|said| *said == line), "{line} is not in {said}");
    }
    assert_eq!(story.server().await["phase"], "fencing", "a hook that fails proves nothing");
    std::fs::write(&switch, b"").expect("written");
    story.next_life(old.token).await;
    story.on(1).await;
    let events: Value =
        story.lab.until_some("events", async |lab| lab.get("/v1/events?kinds=server&prefix=pay").await).await;
    assert!(events.to_string().contains("its fence hook on "), "{events}");
    assert_eq!(story.stamps.exclusive().len(), 2);
}
