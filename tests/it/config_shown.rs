//! What the monitor shows of members that are not where they should be, and of those that are kept somewhere.

use std::fs;
use std::time::Duration;

use leaseward_state::command::PublishSet;
use leaseward_state::config::Digest;
use leaseward_state::{Command, SetName};
use leaseward_tests::{Lab, Plan};
use reqwest::Method;
use serde_json::{Value, json};

/// Returns what the API says of the only member.
async fn member(lab: &Lab, set: &str) -> Option<Value> {
    lab.list_at(0, &format!("/v1/configs/{set}/members?consistency=linearizable")).await?.pop()
}

/// Returns the member's phase and version.
async fn stands(lab: &Lab, set: &str) -> Option<(String, u64)> {
    let member = member(lab, set).await?;
    Some((member["phase"].as_str()?.to_owned(), member["applied"].as_u64()?))
}

#[tokio::test]
async fn a_check_that_hangs_is_shown_with_its_time_and_ends_by_itself() {
    let lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    let gate = lab.dir().join("gate");
    let script = format!("test ! -e {{tree}}/slow || while test ! -e {}; do sleep 0.05; done", gate.display());
    let check = format!("check={{ command = [\"sh\", \"-c\", \"{script}\"], timeout = \"50m\" }}");
    lab.works(&["config", "policy", "app", &check]);
    lab.works(&["config", "put", "app", "slow", "--text", "x", "--no-wait"]);
    let what = async |lab: &Lab| Some(member(lab, "app").await?["running"]["what"].as_str()?.to_owned());
    lab.until("it is said what runs", what, "check".into()).await;
    let (_, monitor, _) = lab.run(&["config", "monitor", "app"]);
    assert!(monitor.contains("checking v1 for ") && monitor.contains("(50m at most): sh -c test"), "{monitor}");
    let (_, explained, _) = lab.run(&["explain", "config/app"]);
    assert!(explained.contains("runs the check of v1 for ") && explained.contains("50m at most"), "{explained}");
    // It is watched as it goes on, though nothing happens of which anybody is told: a question for that waits half a minute.
    let seen = lab.dir().join("seen");
    let mut watching = lab.command(&["config", "monitor", "app", "-w", "--timeout", "60s"]);
    let mut watching = watching.stdout(fs::File::create(&seen).expect("a file")).spawn().expect("it starts");
    let times = |text: String| text.lines().filter(|line| line.contains("checking v1 for ")).count();
    let shown = async {
        while times(fs::read_to_string(&seen).unwrap_or_default()) < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let shown = tokio::time::timeout(Duration::from_secs(20), shown).await;
    watching.kill().expect("it is there");
    watching.wait().expect("it ends");
    shown.expect("it is shown anew");
    fs::write(&gate, "").expect("written");
    lab.until("it goes on", async |lab| stands(lab, "app").await, ("applied".into(), 1)).await;
    assert_eq!(member(&lab, "app").await.expect("it is there")["running"], Value::Null);

    // A reload is shown, too; both are killed when their time is over, and that is said.
    fs::remove_file(&gate).expect("removed");
    let script = format!("while test ! -e {}; do sleep 0.05; done", gate.display());
    let reload = format!("reload={{ command = [\"sh\", \"-c\", \"{script}\"], timeout = \"4s\" }}");
    lab.works(&["config", "policy", "app", "check=", &reload]);
    lab.works(&["config", "put", "app", "slow", "--text", "y", "--no-wait"]);
    lab.until("it is said what runs", what, "reload".into()).await;
    lab.until("it is taken back", async |lab| stands(lab, "app").await, ("rejected".into(), 1)).await;
    let refused = member(&lab, "app").await.expect("it is there");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("longer than 4000 ms")), "{refused}");
}

#[tokio::test]
async fn a_check_whose_agent_was_killed_is_ended_by_the_next_agent() {
    let mut lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    let (gate, begun) = (lab.dir().join("gate"), lab.dir().join("begun"));
    // A child of its own, which a signal to the shell alone would leave.
    let script = format!(
        "(while test ! -e {}; do sleep 0.05; done) & echo $! >>{}; wait # {{tree}}",
        gate.display(),
        begun.display()
    );
    let check = format!("check={{ command = [\"sh\", \"-c\", \"{script}\"], timeout = \"50m\" }}");
    lab.works(&["config", "policy", "app", &check]);
    lab.works(&["config", "put", "app", "a", "--text", "x", "--no-wait"]);
    let children = || fs::read_to_string(&begun).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    lab.until("it is being checked", async |_| Some(children().len()), 1).await;
    lab.kill_agent(0);
    let lives = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(lives(&children()[0]), "nobody outlives its agent here: this shows nothing");
    lab.start_machine(0);
    lab.until("it is checked once more", async |_| Some(children().len()), 2).await;
    let alive = async |_: &Lab| Some(children().iter().filter(|pid| lives(pid)).count());
    lab.until("it is checked by one program", alive, 1).await;
    assert!(lives(&children()[1]), "the wrong one was ended");
    fs::write(&gate, "").expect("written");
    lab.until("it goes on", async |lab| stands(lab, "app").await, ("applied".into(), 1)).await;
}

#[tokio::test]
async fn a_set_that_was_forgotten_and_made_anew_is_reported_anew() {
    let lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    lab.works(&["config", "put", "app", "a", "--text", "one"]);
    lab.until("it has it", async |lab| stands(lab, "app").await, ("applied".into(), 1)).await;
    // In one entry, so that the agent's next view is of another set with the same version.
    let version = lab.get_at(0, "/v1/configs/app/versions/1").await.expect("it is there")["version"].clone();
    let number = |key: &str| version[key].as_u64().expect("a number");
    let set = SetName::new("app").expect("a name");
    let manifest = version["manifest"].as_str().and_then(Digest::parse).expect("its name");
    let publish = PublishSet {
        set: set.clone(),
        parent: Some(0),
        manifest,
        files: number("files"),
        bytes: number("bytes"),
        delta: None,
    };
    let (author, message) = ("ann".to_owned(), "anew".to_owned());
    let anew = vec![Command::RemoveSet { set }, Command::Publish { sets: vec![publish], author, message }];
    lab.client().write(Command::Atomic { conditions: Vec::new(), commands: anew }).await.expect("it is made anew");
    lab.until("it says so again", async |lab| stands(lab, "app").await, ("applied".into(), 1)).await;
}

#[tokio::test]
async fn who_is_kept_at_a_version_is_shown_with_who_and_why() {
    let lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    lab.works(&["config", "put", "app", "a", "--text", "one"]);
    lab.works(&["config", "put", "app", "a", "--text", "two"]);
    lab.until("it has both", async |lab| stands(lab, "app").await, ("applied".into(), 2)).await;
    lab.works(&["config", "pin", "app", "--machine", "m1", "--version", "1", "-m", "holds the old licence"]);
    lab.until("it goes back", async |lab| stands(lab, "app").await, ("applied".into(), 1)).await;
    let pin = member(&lab, "app").await.expect("it is there")["pin"].clone();
    assert_eq!((&pin["version"], &pin["machine"]), (&json!(1), &json!("m1")));
    let (_, monitor, _) = lab.run(&["config", "monitor", "app"]);
    assert!(monitor.contains("● applied") && monitor.contains("kept at v1 by "), "{monitor}");
    assert!(monitor.contains(": holds the old licence"), "{monitor}");
    // Of all members, and as they are.
    lab.works(&["config", "unpin", "app", "--machine", "m1"]);
    lab.call(Method::POST, "/v1/configs/app/pin", Some(&json!({ "by": "ann" }))).await.expect("answered");
    lab.until("it is left alone", async |lab| Some(stands(lab, "app").await?.0), "disabled".into()).await;
    let (_, monitor, _) = lab.run(&["config", "monitor", "app"]);
    assert!(monitor.contains("kept as it is by ann"), "{monitor}");
}
