//! Programs that follow a config file in their memory, through the library.

use std::fs;
use std::time::Duration;

use leaseward::{Cluster, ConfigWatch, Error};
use leaseward_tests::{Lab, PATIENCE, Plan, free_port};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const SET: &str = "app";

/// More is refused by the program itself.
const MOST: u32 = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    max: u32,
}

fn works(lab: &Lab, words: &[&str]) -> String {
    let output = lab.cli(&[words, &["--yes"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Publishes `limits.toml` and a file beside it. Returns the version.
fn published(lab: &Lab, limits: &str, beside: &str) -> u64 {
    let temp = tempfile::tempdir().expect("a directory");
    fs::write(temp.path().join("limits.toml"), limits).expect("written");
    fs::write(temp.path().join("motd"), beside).expect("written");
    let from = temp.path().to_str().expect("text");
    let said = works(lab, &["config", "publish", SET, "--from", from, "-o", "json", "--no-wait"]);
    serde_json::from_str::<Value>(&said).expect("JSON")["version"].as_u64().expect("a number")
}

/// What the monitor shows of a program.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    phase: String,
    applied: u64,
    refused: Option<(u64, String)>,
}

fn green(applied: u64) -> Vec<Shown> {
    vec![Shown { phase: "applied".into(), applied, refused: None }]
}

fn red(applied: u64, version: u64, why: &str) -> Vec<Shown> {
    vec![Shown { phase: "rejected".into(), applied, refused: Some((version, why.into())) }]
}

async fn monitor(lab: &Lab) -> Option<Value> {
    lab.get(&format!("/v1/configs/{SET}/members?consistency=linearizable")).await
}

async fn shown(lab: &Lab) -> Option<Vec<Shown>> {
    let list = monitor(lab).await?;
    let shown = |program: &Value| Shown {
        phase: program["phase"].as_str().unwrap_or_default().into(),
        applied: program["applied"].as_u64().unwrap_or_default(),
        refused: program["version"]
            .as_u64()
            .map(|version| (version, program["why"].as_str().unwrap_or_default().into())),
    };
    Some(list["programs"].as_array().map(|all| all.iter().map(shown).collect()).unwrap_or_default())
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn followed(lab: &Lab) -> leaseward::Result<ConfigWatch<Limits>> {
    let addresses: Vec<String> = (0..3).map(|voter| lab.peer(voter).to_string()).collect();
    let cluster = Cluster::connect(&addresses.join(",")).await?;
    within("it is followed or not", cluster.config("app", "limits.toml")).await
}

/// What arrived: the version, what it says, and when.
type Arrived = (u64, u32, Instant);

/// A program as the manual has it. Ends when nobody wants to know any more what arrives.
fn program(mut limits: ConfigWatch<Limits>) -> (mpsc::UnboundedReceiver<Arrived>, JoinHandle<leaseward::Result<()>>) {
    let (tell, arrived) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        loop {
            let new = tokio::select! {
                new = limits.changed() => new?,
                () = tell.closed() => return Ok(()),
            };
            tell.send((new.version, new.value.max, Instant::now())).ok();
            match new.value.max {
                max if max > MOST => limits.rejected(new.version, format!("{max} is more than {MOST}")).await?,
                _ => limits.applied(new.version).await?,
            }
            assert_eq!(limits.current().version, new.version);
        }
    });
    (arrived, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_takes_each_version_that_makes_sense_and_the_monitor_says_so() {
    let mut lab = Lab::start(Plan { machines: 1, ..Plan::default() }).await;
    assert_eq!(published(&lab, "max = 1\n", "hello"), 1);
    let limits = followed(&lab).await.expect("it is there");
    assert_eq!((limits.current().version, limits.current().value.max), (1, 1));
    lab.until("it stands in the monitor", shown, green(1)).await;
    let (mut arrived, task) = program(limits);

    assert_eq!(published(&lab, "max = 2\n", "hello"), 2);
    let committed = Instant::now();
    let (version, max, at) = within("the second arrives", arrived.recv()).await.expect("it lives");
    assert_eq!((version, max), (2, 2));
    let after = at.saturating_duration_since(committed);
    println!("v2 was there {after:?} after its publisher knew");
    assert!(after < Duration::from_secs(2), "a waiting program is told at once, not when it asks again: {after:?}");
    lab.until("it is applied", shown, green(2)).await;

    // What does not parse is nothing to the program, and red to everybody else.
    assert_eq!(published(&lab, "# a typo\nmax = \"many\"\n", "hello"), 3);
    let why = "invalid type: string \"many\", expected u32 at line 2 column 7";
    lab.until("it is refused", shown, red(2, 3, why)).await;
    let table = works(&lab, &["config", "monitor", SET]);
    assert!(table.contains("PROGRAM") && table.contains(&format!("v3: {why}")), "{table}");
    works(&lab, &["wait", "config/app=synced", "--timeout", "30s"]);

    // The leader dies. Nobody has to tell the program.
    let leader = lab.leader().await;
    lab.kill_voter(leader);
    lab.leader().await;
    assert_eq!(published(&lab, "max = 4\n", "hello"), 4);
    let (version, max, _) = within("the fourth arrives", arrived.recv()).await.expect("it lives");
    assert_eq!((version, max), (4, 4), "nothing came of the third");
    lab.until("it is applied under the new leader", shown, green(4)).await;
    lab.start_voter(leader);

    // Another file changed: the program is told nothing, and is green all the same.
    assert_eq!(published(&lab, "max = 4\n", "good morning"), 5);
    lab.until("it is up to date", shown, green(5)).await;
    assert!(arrived.try_recv().is_err(), "nothing is new to it");

    // Its own no.
    assert_eq!(published(&lab, "max = 1000\n", "good morning"), 6);
    assert_eq!(within("the sixth arrives", arrived.recv()).await.expect("it lives").0, 6);
    lab.until("it is refused", shown, red(5, 6, "1000 is more than 100")).await;
    assert_eq!(published(&lab, "max = 1000\n", "good evening"), 7);
    lab.until("the same again is refused again", shown, red(5, 7, "1000 is more than 100")).await;
    assert_eq!(published(&lab, "max = 8\n", "good evening"), 8);
    assert_eq!(within("the eighth arrives", arrived.recv()).await.expect("it lives").1, 8, "and not the seventh");
    lab.until("all is well", shown, green(8)).await;

    // Its session is taken away: it gets itself another one.
    let list = monitor(&lab).await.expect("a list");
    let session = list["programs"][0]["session"].as_str().expect("a session").to_owned();
    lab.call(Method::DELETE, &format!("/v1/sessions/{session}"), None).await.expect("an answer");
    let another = async |lab: &Lab| {
        let list = monitor(lab).await?;
        list["programs"][0]["session"].as_str().filter(|now| *now != session).map(drop)
    };
    lab.until_some("it stands there again", another).await;
    assert_eq!(shown(&lab).await, Some(green(8)));

    drop(arrived);
    within("it ends", task).await.expect("no panic").expect("no error on the way");
    lab.until("it stands there no more", shown, Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_cannot_have_is_said_at_once() {
    let lab = Lab::start(Plan::default()).await;
    let refused = async |what: &str| match followed(&lab).await {
        Ok(_) => panic!("{what}: it was given"),
        Err(error) => (error.code().to_owned(), error.to_string()),
    };
    let (code, why) = refused("no set").await;
    assert_eq!((code.as_str(), why.contains("config/app does not exist")), ("LW0404", true), "{why}");
    works(&lab, &["config", "policy", SET, "rollout.bake=1m"]);
    let (code, why) = refused("no version").await;
    assert_eq!((code.as_str(), why.contains("no version")), ("LW0404", true), "{why}");

    assert_eq!(published(&lab, "max = 5\nmin = 1\n", ""), 1);
    let (code, why) = refused("a key that nobody knows").await;
    assert_eq!(code, "LW0815");
    assert!(why.contains("config/app v1 limits.toml: unknown field `min`") && why.contains("at line 2"), "{why}");
    let refused_one = async |lab: &Lab| shown(lab).await?.first().map(|shown| shown.refused.clone());
    let found = lab.until_some("the monitor heard of it", refused_one).await.expect("it is refused");
    assert!(found.0 == 1 && found.1.contains("unknown field `min`"), "{found:?}");
    lab.until("its session runs out", shown, Vec::new()).await;

    let cluster = Cluster::with_client(lab.client());
    let code = async |file: &str| match cluster.config::<Limits>(SET, file).await {
        Ok(_) => panic!("{file}: it was given"),
        Err(Error::Config { code, .. }) => code,
        Err(other) => panic!("{file}: {other}"),
    };
    assert_eq!(code("limits.yaml").await, "LW0101");
    assert_eq!(code("../limits.toml").await, "LW0101");
    assert_eq!(code("none.toml").await, "LW0404");
    assert!(matches!(cluster.config::<Limits>("a/b", "limits.toml").await, Err(Error::Name(_))));
    published(&lab, &format!("max = 5 # {}\n", "x".repeat(5 << 20)), "");
    assert_eq!(code("limits.toml").await, "LW0808");

    // Files that no program should see as they were published.
    published(&lab, "max = 5\n", "");
    works(&lab, &["config", "policy", SET, "templates=true"]);
    assert_eq!(code("limits.toml").await, "LW0814");
    works(&lab, &["config", "policy", SET, "templates=false"]);
    followed(&lab).await.expect("now it may").close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_gets_what_everybody_has() {
    let lab = Lab::start(Plan { machines: 2, ..Plan::default() }).await;
    published(&lab, "max = 1\n", "");
    works(&lab, &["config", "policy", SET, "rollout.canaries=1", "rollout.bake=10m"]);
    let (mut arrived, _task) = program(followed(&lab).await.expect("it is there"));
    assert_eq!(published(&lab, "max = 2\n", ""), 2);
    let canary = async |lab: &Lab| monitor(lab).await?["items"][0]["applied"].as_u64();
    lab.until("the canary has it", canary, 2).await;
    assert_eq!(shown(&lab).await, Some(green(1)), "it is no canary, and not behind");
    // Nor is a program that begins now.
    assert_eq!(followed(&lab).await.expect("it is there").current().value.max, 1);
    works(&lab, &["config", "rollout", SET, "finish"]);
    assert_eq!(within("everybody gets it", arrived.recv()).await.expect("it lives").1, 2);
    lab.until("it is applied", shown, green(2)).await;

    works(&lab, &["config", "pin", SET, "--version", "1", "-m", "back, all of you"]);
    assert_eq!(within("a pin of all", arrived.recv()).await.expect("it lives").1, 1);
    lab.until("it is back", shown, green(1)).await;
    works(&lab, &["config", "unpin", SET]);
    assert_eq!(within("the end of it", arrived.recv()).await.expect("it lives").1, 2);
    lab.until("it goes on", shown, green(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_a_node_itself_follows_as_well() {
    let lab = Lab::start(Plan { voters: 1, ..Plan::default() }).await;
    published(&lab, "max = 1\n", "");
    let data = tempfile::tempdir().expect("a directory");
    let listen = format!("127.0.0.1:{}", free_port()).parse().expect("an address");
    let node = Cluster::builder().node("host").data_dir(data.path()).listen(listen).peers([lab.peer(0).to_string()]);
    let cluster = within("it takes part", node.fast().start()).await.expect("it starts");
    let mut limits = within("it follows", cluster.config::<Limits>(SET, "limits.toml")).await.expect("it is there");
    assert_eq!(limits.current().value.max, 1);
    published(&lab, "max = 2\n", "");
    let new = within("the second arrives", limits.changed()).await.expect("it is there");
    assert_eq!(new.value.max, 2);
    limits.applied(new.version).await.expect("it is heard");
    assert_eq!(shown(&lab).await, Some(green(2)), "it is there once `applied` has returned");
    // Asked for in vain: a dropped wait takes nothing with it.
    assert!(timeout(Duration::from_millis(1), limits.changed()).await.is_err());
    published(&lab, "max = 3\n", "");
    assert_eq!(within("the third arrives", limits.changed()).await.expect("it is there").value.max, 3);
    limits.applied(3).await.expect("it is heard");
    // Forgotten and made anew, with the same file: what was said of the old set went with it, and is said again.
    // Twice: the second time the numbers are the same, too.
    for _ in 0..2 {
        works(&lab, &["config", "rm", SET]);
        assert_eq!(published(&lab, "max = 3\n", ""), 1);
        tokio::select! {
            new = limits.changed() => panic!("nothing is new to it: {new:?}"),
            () = lab.until("it stands in the monitor of the new set", shown, green(1)) => {}
        }
    }
    limits.close().await;
    assert_eq!(shown(&lab).await, Some(Vec::new()), "it is gone once `close` has returned");
    cluster.voter().expect("it is a node").stop().await;
}
