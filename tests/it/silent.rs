//! A voter that is silent and not dead: its process is stopped, or its packets are lost. Nobody is told, no connection
//! ends, and whoever asks it waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_tests::relay::{Link, Who};
use leaseward_tests::{Lab, Plan};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

const MACHINES: usize = 3;

/// Publication included. A delta from the silent voter would cost a member 5 s, and each question for content 20 s.
const WITHIN: Duration = Duration::from_millis(4_500);

/// Makes a directory of incompressible files: what is no log entry, and no delta either.
fn large(lab: &Lab, name: &str) -> PathBuf {
    let root = lab.dir().join(name);
    fs::create_dir_all(&root).expect("a directory");
    let mut random = StdRng::seed_from_u64(name.len() as u64);
    for i in 0..40 {
        let mut file = vec![0; 200 << 10];
        random.fill_bytes(&mut file);
        fs::write(root.join(format!("part-{i}")), file).expect("written");
    }
    root
}

fn small(lab: &Lab, name: &str) -> PathBuf {
    let root = lab.dir().join(name);
    fs::create_dir_all(&root).expect("a directory");
    fs::write(root.join("limits.toml"), format!("# {name}\n")).expect("written");
    root
}

/// Publishes through a voter that is heard.
fn publish(lab: &Lab, through: usize, set: &str, from: &Path) {
    let mut command = lab.command(&["config", "publish", set, "--yes", "--from"]);
    command.arg(from).env("LEASEWARD_ADDR", lab.api(through).to_string());
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until every machine has exactly these files.
async fn everywhere(lab: &Lab, set: &str, from: &Path) {
    for machine in 0..MACHINES {
        let has = async |lab: &Lab| {
            let is_same = |entry: std::io::Result<fs::DirEntry>| {
                let entry = entry.expect("it is there");
                fs::read(lab.set_dir(machine, set).join(entry.file_name())).ok() == fs::read(entry.path()).ok()
            };
            Some(fs::read_dir(from).expect("it is there").all(is_same))
        };
        lab.until(&format!("m{} has {set}", machine + 1), has, true).await;
    }
}

/// Publishes what travels in each of the ways, before and after `silence` makes a voter silent.
async fn reaches_everybody(lab: &Lab, silence: impl AsyncFnOnce(&Lab, usize)) {
    for (set, from) in [("little", small(lab, "one")), ("much", large(lab, "first"))] {
        publish(lab, 0, set, &from);
        everywhere(lab, set, &from).await;
    }
    // The one that members ask first for a delta.
    let first = (0..3).min_by_key(|voter| lab.peer(*voter).to_string()).expect("there are some");
    silence(lab, first).await;
    let through = (first + 1) % 3;
    for (set, from) in [("little", small(lab, "two")), ("much", large(lab, "second")), ("little", small(lab, "three"))]
    {
        let began = Instant::now();
        publish(lab, through, set, &from);
        let published = began.elapsed();
        everywhere(lab, set, &from).await;
        let took = began.elapsed();
        println!("{set}: published after {published:?}, everywhere after {took:?}");
        assert!(took < WITHIN, "{set} took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_voter_keeps_no_version_from_any_member() {
    let lab = Lab::start(Plan { machines: MACHINES, ..Plan::default() }).await;
    let stop = async |lab: &Lab, voter: usize| {
        lab.signal_voter(voter, Signal::STOP);
        let leads = async |lab: &Lab| {
            let status = lab.get_at((voter + 1) % 3, "/v1/cluster").await?;
            status["leader"].as_str().map(|name| name != format!("n{}", voter + 1))
        };
        lab.until("another one leads", leads, true).await;
    };
    reaches_everybody(&lab, stop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_packets_are_lost_keeps_no_version_from_a_member_that_hears_no_other_way() {
    // m1 reaches voters through relays alone.
    let lab = Lab::start(Plan { machines: MACHINES, relayed: true, ..Plan::default() }).await;
    let cut = async |lab: &Lab, voter: usize| lab.relays()[voter].set(Who::Client, Link::Silent);
    reaches_everybody(&lab, cut).await;
}

/// Longer than a second, shorter than any patience of the command line.
const FOR_A_PERSON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_costs_the_command_line_a_second_and_no_change_is_made_twice() {
    let lab = Lab::start(Plan::default()).await;
    // While the first voter lets the others vote, nobody can go on without it.
    let settled = async |lab: &Lab| Some(lab.get::<Value>("/v1/events").await?.to_string().contains("voters_changed"));
    lab.until("the others vote", settled, true).await;
    // The one that the command line asks first.
    lab.signal_voter(0, Signal::STOP);
    let leads = async |lab: &Lab| {
        let status = lab.get_at(1, "/v1/cluster").await?;
        status["leader"].as_str().map(|name| name != "n1")
    };
    lab.until("another one leads", leads, true).await;
    let take = r#"{"holder":"person","ttl":"10m"}"#;
    for words in [&["lease", "ls"][..], &["api", "PUT", "/v1/leases/once", take], &["config", "ls"]] {
        let began = Instant::now();
        lab.works(&[words, &["--timeout", "30s"]].concat());
        let took = began.elapsed();
        println!("{words:?} took {took:?}");
        assert!(took < FOR_A_PERSON, "{words:?} took {took:?}");
    }
    // Now it finds what it was asked, if it still looks at it.
    lab.signal_voter(0, Signal::CONT);
    let caught_up = async |lab: &Lab| {
        let status = lab.get_at(0, "/v1/cluster").await?;
        Some(status["health"] == "ok")
    };
    lab.until("it takes part again", caught_up, true).await;
    let sessions = lab.until_some("it answers", async |lab| lab.list_at(0, "/v1/sessions").await).await;
    let by_person = sessions.iter().filter(|session| session["name"] == "person").count();
    assert_eq!(by_person, 1, "{sessions:?}");
}
