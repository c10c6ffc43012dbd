//! Who votes: nodes come, are lost for good, come back, and the number of voters is odd all the while.
//!
//! The judge is what a client was told is committed, and the stamps of a server that goes on through it all.

use std::collections::BTreeSet;
use std::time::Duration;

use leaseward_tests::relay::{Link, Who};
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, Plan};
use reqwest::Method;
use serde_json::{Value, json};

use crate::story::{GRACE_AND_START, NAME, Story, TTL, after};
use crate::sync::Blocked;

/// The shortest silence after which a voter is lost.
const SILENCE: &str = "voter_silence=1s";

/// Returns the names of a list of nodes in the cluster's status.
fn names(status: &Value, what: &str) -> BTreeSet<String> {
    let nodes = status[what].as_array().into_iter().flatten();
    nodes.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect()
}

/// Waits until so many nodes vote, all of them are up, and nobody in `lost` is one of them. Returns their indices.
async fn voters(lab: &Lab, count: usize, lost: &BTreeSet<usize>) -> BTreeSet<usize> {
    let look = async |lab: &Lab| {
        let status = lab.status().await?;
        let all_up = status["voters"].as_array()?.iter().all(|node| node["up"] == true);
        let voters: BTreeSet<usize> = names(&status, "voters")
            .iter()
            .map(|name| name.trim_start_matches('n').parse::<usize>().expect("a number") - 1)
            .collect();
        (all_up && voters.len() == count && voters.is_disjoint(lost)).then_some(voters)
    };
    lab.until_some(&format!("{count} vote, without {lost:?}"), look).await
}

/// Takes a lease for good, and returns its token: something that a client was told is committed.
async fn commit(lab: &Lab, name: &str) -> u64 {
    let body = json!({ "holder": "somebody", "ttl": "10m" });
    let path = format!("/v1/leases/{name}");
    let granted = lab.until_some("a lease is granted", async |lab| {
        let (status, body) = lab.call(Method::PUT, &path, Some(&body)).await?;
        (status / 100 == 2).then_some(body)
    });
    let granted = granted.await;
    granted["token"].as_str().and_then(|token| token.parse().ok()).unwrap_or_else(|| panic!("{granted}"))
}

async fn token(lab: &Lab, name: &str) -> Option<u64> {
    let lease: Value = lab.get(&format!("/v1/leases/{name}")).await?;
    lease["token"].as_str()?.parse().ok()
}

fn set_policy(lab: &Lab, pairs: &[&str]) {
    let output = lab.cli(&[&["policy", "set"], pairs].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn five_nodes_that_are_lost_one_after_another_shrink_to_one_and_grow_again() {
    let Some(mut story) = Story::planned(Plan { voters: 5, ..Plan::default() }).await else { return };
    set_policy(&story.lab, &[SILENCE]);
    story.apply(&[], "");
    let server = story.next_life(0).await;
    let mut tokens = vec![commit(&story.lab, "lease-0").await];

    let mut lost = BTreeSet::new();
    let mut left = voters(&story.lab, 5, &lost).await;
    for expected in [3, 3, 1, 1] {
        // First the leader itself, again and again. With two left one votes, and without that one nobody could go on:
        // then it is the other one's turn.
        let leader = story.lab.leader().await;
        let victim = match left.len() {
            1 => (0..5).find(|node| !lost.contains(node) && !left.contains(node)).expect("one stands by"),
            _ => leader,
        };
        story.lab.kill_voter(victim);
        lost.insert(victim);
        left = voters(&story.lab, expected, &lost).await;
        tokens.push(commit(&story.lab, &format!("lease-{}", lost.len())).await);
        println!("without {lost:?}: {left:?} vote");
    }
    assert!(tokens.is_sorted() && tokens.len() == 5, "tokens only grow: {tokens:?}");

    for node in lost {
        story.lab.start_voter(node);
    }
    voters(&story.lab, 5, &BTreeSet::new()).await;
    for (i, granted) in tokens.iter().enumerate() {
        assert_eq!(token(&story.lab, &format!("lease-{i}")).await, Some(*granted), "acknowledged, and lost");
    }
    // Nobody who runs something noticed.
    story.lives_beyond(&server, boot_ns()).await;
    assert_eq!(story.stamps.exclusive().len(), 1, "the server was moved");
    let events = story.lab.cli(&["events", "--for", "cluster"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("no word from"), "the ledger says why: {events}");
    assert!(events.contains("and nobody to replace it"), "{events}");
}

#[tokio::test]
async fn a_standby_takes_the_place_of_a_lost_voter_once_it_has_all_the_content() {
    let mut lab = Lab::start(Plan { voters: 4, ..Plan::default() }).await;
    let from = lab.dir().join("app");
    std::fs::create_dir(&from).expect("a directory");
    let text = "greeting = \"hello\"\n".repeat(20_000);
    let publish = |lab: &Lab, message: &str| {
        std::fs::write(from.join("app.conf"), format!("# {message}\n{text}")).expect("written");
        let output = lab.cli(&["config", "publish", "app", "--from", from.to_str().expect("text"), "-m", message]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let before = voters(&lab, 3, &BTreeSet::new()).await;
    let standby = (0..4).find(|node| !before.contains(node)).expect("one stands by");
    let leader = lab.leader().await;
    let victim = before.iter().copied().find(|node| *node != leader).expect("one follows");

    // Its store takes nothing: it has the log, and could give nobody this version's files.
    let blocked = Blocked::voter(&lab, standby);
    publish(&lab, "first");
    set_policy(&lab, &[SILENCE]);
    lab.kill_voter(victim);
    let mut lost = BTreeSet::from([victim]);
    let alone = voters(&lab, 1, &lost).await;
    assert!(!alone.contains(&standby), "it votes, and lacks what a quorum is to hold: {alone:?}");
    blocked.free();
    let after = voters(&lab, 3, &lost).await;
    assert!(after.contains(&standby), "{after:?}");

    // A restart is no loss, unless somebody stands by. Here it is that nothing listens any more that tells.
    lab.start_voter(victim);
    let stands_by = async |lab: &Lab| {
        let status = lab.status().await?;
        let up = status["learners"].as_array()?.iter().all(|node| node["up"] == true);
        (up && names(&status, "learners").len() == 1).then_some(())
    };
    lab.until_some("it is back", stands_by).await;
    set_policy(&lab, &["voter_silence=15s"]);
    lab.kill_voter(leader);
    lost = BTreeSet::from([leader]);
    let now = voters(&lab, 3, &lost).await;
    assert!(now.contains(&victim), "{now:?}");
    let output = lab.cli(&["config", "get", "app", "app.conf"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("# first\n{text}"));
    publish(&lab, "second");
}

#[tokio::test]
async fn two_machines_and_a_witness_are_three_voters() {
    let mut lab = Lab::start(Plan { voters: 3, witnesses: 1, ..Plan::default() }).await;
    let nodes = lab.cli(&["node", "ls"]);
    let nodes = String::from_utf8_lossy(&nodes.stdout).into_owned();
    assert!(nodes.contains("(witness)"), "{nodes}");
    lab.kill_voter(0);
    commit(&lab, "still").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_even_split_one_side_goes_on_and_the_others_servers_are_dead_before() {
    let plan = Plan { voters: 4, relayed: true, ..Plan::default() };
    let Some(story) = Story::planned(plan).await else { return };
    let lab = &story.lab;
    story.apply(&["--ignore-term", "--daemon"], "candidates = [\"m1\", \"m2\", \"m3\"]");
    let old = story.next_life(0).await;
    assert_eq!(story.machine().await, 0, "the one behind the relays");

    // The leader and the one that stands by on one side, with the machine of the server; two voters on the other.
    let voting = voters(lab, 3, &BTreeSet::new()).await;
    let leader = lab.leader().await;
    let minority = BTreeSet::from([leader, (0..4).find(|node| !voting.contains(node)).expect("one stands by")]);
    let status = lab.status().await.expect("it answers");
    let id = |i: usize| {
        let mut nodes = status["voters"].as_array().into_iter().chain(status["learners"].as_array()).flatten();
        let node = nodes.find(|node| node["name"] == format!("n{}", i + 1)).expect("it is a node");
        Who::Node(node["id"].as_u64().expect("a number"))
    };
    let split = |link: Link| {
        for (to, relay) in lab.relays().iter().enumerate() {
            for from in (0..4).filter(|from| minority.contains(from) != minority.contains(&to)) {
                relay.set(id(from), link);
            }
            if !minority.contains(&to) {
                relay.set(Who::Client, link);
            }
        }
    };
    let cut = boot_ns();
    split(Link::Silent);
    let new = story.next_life(old.token).await;
    after("an even split", cut, &new, 2 * TTL + GRACE_AND_START);
    let lives = story.stamps.exclusive();
    assert!(lives[0].last > cut && lives[0].processes == 2, "it ran on for a while, daemon included: {lives:?}");

    // The other side commits nothing.
    let body = json!({ "holder": "somebody", "ttl": "10s" });
    let url = format!("http://{}/v1/leases/nobodys", lab.api(leader));
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client");
    let refused = client.put(url).json(&body).timeout(Duration::from_secs(12)).send().await;
    let status = refused.map(|answer| answer.status().as_u16());
    assert!(status.as_ref().is_err() || status.as_ref().is_ok_and(|status| *status >= 500), "granted: {status:?}");
    assert_eq!(token(lab, "nobodys").await, None);

    split(Link::Open);
    voters(lab, 3, &BTreeSet::new()).await;
    let healed = boot_ns();
    story.lives_beyond(&new, healed + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 2, "the ones that came back moved {NAME}");
    assert!(Duration::from_nanos(healed - cut) > TTL);
}

/// What openraft says of a dead peer is eighty lines a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_is_one_line_of_the_leaders_log_when_it_goes_and_one_when_it_is_back() {
    let mut lab = Lab::start(Plan { profile: "default", ..Plan::default() }).await;
    // What is said of the change of voters at the beginning does not count.
    let settled = async |lab: &Lab| Some(lab.get::<Value>("/v1/events").await?.to_string().contains("voters_changed"));
    lab.until("the others vote", settled, true).await;
    let leader = lab.leader().await;
    let dead = (leader + 1) % 3;
    let log = lab.dir().join("log").join(format!("n{}.log", leader + 1));
    let said = move |what: &str| {
        let text = std::fs::read_to_string(&log).expect("it is there");
        text.lines().filter(|line| line.contains(what)).count()
    };
    let before = said("");
    lab.kill_voter(dead);
    lab.until("it is missed", async |_| Some(said("a node is not heard")), 1).await;
    // The log goes on meanwhile, and each entry is one more to be sent there.
    for round in 0..50 {
        commit(&lab, &format!("meanwhile/{round}")).await;
    }
    lab.start_voter(dead);
    lab.until("it is heard", async |_| Some(said("a node is heard again")), 1).await;
    assert_eq!(said("a node is not heard"), 1);
    let lines = said("") - before;
    assert!(lines <= 6, "{lines} lines");
}
