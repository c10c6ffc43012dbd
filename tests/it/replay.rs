//! Orders that come late, twice or in the wrong order: an order is a hint, and the grant is the authority.
//!
//! The relays in front of the voters say again what they have heard. The witness is `leaseward-victim`.

use std::fs;

use leaseward_state::MachineName;
use leaseward_state::order::{Action, Order};
use leaseward_tests::relay::Frames;
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, Plan};

use serde_json::Value;

use crate::story::{NAME, Story, TTL, machine_of};

const CANDIDATES: &str = "candidates = [\"m1\", \"m2\", \"m3\"]";

/// An agent forgets a grant that does not come after two seconds, and only then tries again: this is longer.
const LONG: u64 = 3_500_000_000;

async fn all_are_connected(lab: &Lab) {
    let connected = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
    lab.until("all machines are connected", connected, 3).await;
}

/// Once its server has moved away, a machine hears of nothing but its old orders, also when its agent starts anew and
/// remembers neither what it knew nor that the old copy is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_orders_start_nothing_again() {
    let Some(mut story) = Story::planned(Plan { relayed: true, ..Plan::default() }).await else { return };
    story.apply(&["--ignore-term", "--daemon"], CANDIDATES);
    let old = story.next_life(0).await;
    assert_eq!(story.machine().await, 0, "the one behind the relays");
    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m2"]), 0);
    let new = story.next_life(old.token).await;

    // Each relay repeats whatever any of them has heard that says to run it, and not that it was to be stopped then.
    let m1 = MachineName::new("m1").expect("a name");
    let mut heard: Vec<_> = story.lab.relays().iter().flat_map(|relay| relay.heard(&m1)).collect();
    heard.retain(|view| view.orders.iter().any(|order| matches!(order.action, Action::Run { .. })));
    let is_old = |order: &Order| order.token.0 == old.token;
    assert!(heard.iter().all(|view| view.orders.iter().all(is_old)), "{heard:?}");
    assert!(!heard.is_empty(), "the old order did not pass here");
    for relay in story.lab.relays() {
        relay.hear(&m1, heard.clone());
        relay.pass_frames(Frames::OldOrders);
    }
    let replayed = |lab: &Lab| lab.relays().iter().map(|relay| relay.replayed(&m1)).sum::<usize>();
    story.lab.kill_agent(0);
    // As after a boot: else its own proof that this copy is dead would be enough.
    fs::remove_dir_all(story.path("run/m1")).expect("removed");
    story.lab.start_machine(0);
    let told = boot_ns();
    let often = async |lab: &Lab| (replayed(lab) >= 3 * heard.len()).then_some(());
    story.lab.until_some("the old orders are told again and again", often).await;
    story.lives_beyond(&new, told + LONG).await;
    println!("{} old answers, of {} views", replayed(&story.lab), heard.len());
    assert_eq!(story.stamps.exclusive().len(), 2, "an old order started something");
    assert_eq!(story.machine().await, 1);

    // It hears of its orders again: it carries out the next one, and nothing of what it was told in between.
    story.lab.relays().iter().for_each(|relay| relay.pass_frames(Frames::Once));
    all_are_connected(&story.lab).await;
    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m1"]), 0);
    let third = story.next_life(new.token).await;
    assert_eq!(story.machine().await, 0);
    story.lives_beyond(&third, third.first + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 3);
}

/// Whatever an agent says is heard twice, and whatever it is told: reports count once, and orders are carried out once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_twice_is_done_once() {
    let Some(mut story) = Story::planned(Plan { relayed: true, ..Plan::default() }).await else { return };
    story.lab.relays().iter().for_each(|relay| relay.pass_frames(Frames::Twice));
    let settings = format!("{CANDIDATES}\n[restart]\nin_place = 5\nbackoff = [\"0s\"]");
    story.apply(&["--ignore-term"], &settings);
    let first = story.next_life(0).await;
    assert_eq!(story.machine().await, 0, "the one behind the relays");

    // A crash is counted once.
    let pid = story.phase("running").await["pid"].as_u64().expect("a process") as u32;
    leaseward_tests::signal(pid, rustix::process::Signal::KILL);
    let second = story.other_life(&first).await;
    let server = story.phase("running").await;
    assert_eq!(server["failures"].as_array().map(Vec::len), Some(1), "{server}");

    assert_eq!(story.operate(&["server", "restart", NAME]), 0);
    let third = story.next_life(second.token).await;
    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m2"]), 0);
    let fourth = story.next_life(third.token).await;
    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m1"]), 0);
    let fifth = story.next_life(fourth.token).await;
    story.lab.kill_agent(0);
    let sixth = story.next_life(fifth.token).await;
    story.lab.start_machine(0);
    all_are_connected(&story.lab).await;
    story.lives_beyond(&sixth, sixth.first + 2 * TTL.as_nanos() as u64).await;
    let lives = story.stamps.exclusive();
    assert_eq!(lives.len(), 6, "{lives:?}");
    let server = story.phase("running").await;
    assert_eq!(server["token"].as_str().and_then(|token| token.parse().ok()), Some(sixth.token));
}

/// A stop overtakes the grant for which a start waits: the machine says that nothing of it is there, and the grant comes then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_grant_comes_after_the_stop_starts_nothing() {
    let Some(story) = Story::planned(Plan { relayed: true, ..Plan::default() }).await else { return };
    story.apply(&["--ignore-term"], &CANDIDATES.replace("\"m1\", ", ""));
    let mut last = story.next_life(0).await;
    story.lab.relays().iter().for_each(|relay| relay.pass_frames(Frames::LateGrants));
    let mut overtaken = 0;
    for round in 1..=4 {
        let before = machine_of(&story.phase("running").await);
        story.apply(&["--ignore-term"], CANDIDATES);
        let moves = |to: &str| story.lab.cli(&["server", "move", NAME, "--to", to, "--yes", "--no-wait"]);
        assert!(moves("m1").status.success());
        let given = async |lab: &Lab| {
            let server: Value = lab.get(&format!("/v1/servers/{NAME}")).await?;
            (server["machine"] == "m1").then(|| server["token"].as_str()?.parse::<u64>().ok())?
        };
        let token = story.lab.until_some("it is given to the machine behind the relays", given).await;
        let back = format!("m{}", before + 1);
        assert!(moves(&back).status.success());
        last = story.next_life(last.token.max(token)).await;
        // Whatever was on its way arrives.
        story.lives_beyond(&last, last.first + TTL.as_nanos() as u64).await;
        let lives = story.stamps.exclusive();
        let started = lives.iter().any(|life| life.token == token);
        println!("round {round}: token {token} {}", if started { "was executed" } else { "was overtaken" });
        overtaken += u32::from(!started);
    }
    assert!(overtaken > 0, "no stop overtook a grant: this shows nothing");
}
