//! What lies between: a cable that is cut, two near ends for one machine, and a near end that has lost its memory.

use std::time::Duration;

use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, eventually};

use super::host::{Host, TTL_MS};
use super::{FOR_EVER, GRACE_AND_START, MS, Story};

#[tokio::test]
async fn the_cable_is_cut_and_the_server_is_dead_before_it_runs_elsewhere() {
    let Some(host) = Host::with_a_cable().await else { return };
    let Some(story) = Story::with_our_program_on(host).await else { return };
    story.apply(&["--ignore-term", "--daemon"], "");
    story.runs_on("far").await;
    let old = story.life_after(0).await;
    let cut = boot_ns();
    story.host.set_cable(false);
    let new = story.life_after(old.token).await;
    let took = Duration::from_nanos(new.first - cut);
    println!("cable cut: back after {took:?}");
    assert!(took < Duration::from_millis(TTL_MS) + GRACE_AND_START, "back only after {took:?}");
    story.runs_on("m1").await;
    let lives = story.stamps.exclusive();
    assert!(lives[0].last < cut + TTL_MS * MS, "it outlived its deadline: {lives:?}, cut at {cut}");
    assert!(lives[0].last > cut + TTL_MS / 3 * MS, "it ended early: {lives:?}, cut at {cut}");
    assert_eq!(lives[0].processes, 2, "its daemon never stamped: {lives:?}");

    // Plugged in again, it is reached and starts nothing by itself.
    story.host.set_cable(true);
    story.connected(2).await;
    story.lives_beyond(&new, boot_ns() + TTL_MS * MS).await;
    assert_eq!(story.stamps.exclusive().len(), 2, "the one that came back moved something");
}

#[tokio::test]
async fn two_near_ends_of_one_machine_carry_it_one_after_the_other() {
    let Some(mut story) = Story::with_our_program().await else { return };
    story.apply(&[], "");
    let before = story.runs_on("far").await;
    let life = story.life_after(0).await;
    story.host.manage_as("second", &story.lab, "");
    eventually("the second finds it in use", async || story.host.said_by("second").contains("LW0319")).await;
    story.lives_beyond(&life, boot_ns() + TTL_MS * MS).await;
    assert_eq!(story.host.said_by("near").matches("connected by ssh").count(), 1, "the first was disturbed");

    // The first one's host dies: the second is in time.
    story.host.kill_near();
    story.lives_beyond(&life, boot_ns() + 2 * TTL_MS * MS).await;
    let now = story.runs_on("far").await;
    assert_eq!((&now["pid"], &now["token"]), (&before["pid"], &before["token"]));
    assert_eq!(story.stamps.exclusive().len(), 1, "it was started again");
}

#[tokio::test]
async fn two_near_ends_with_a_control_script_make_no_two_copies() {
    let Some(mut story) = Story::with_control_script().await else { return };
    story.apply(&[], FOR_EVER);
    let before = story.runs_on("far").await;
    let life = story.life_after(0).await;
    story.manage_by_script_as("second");
    eventually("the second waits", async || story.host.said_by("second").contains("managed by a control script")).await;
    story.lives_beyond(&life, boot_ns() + 2 * TTL_MS * MS).await;
    assert_eq!(story.runs_on("far").await["token"], before["token"]);
    assert_eq!(story.stamps.exclusive().len(), 1, "the second did something");

    // The second knows nothing of what the first one started, and has to find out before it starts anything.
    story.host.kill_near();
    story.life_after(life.token).await;
    let running = async |lab: &Lab| {
        let server: serde_json::Value = lab.get("/v1/servers/pay").await?;
        (server["phase"] == "running").then_some(())
    };
    story.lab.until_some("it runs", running).await;
    assert_eq!(story.stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn a_near_end_whose_memory_another_one_has_takes_over_when_that_is_gone() {
    let Some(mut story) = Story::with_control_script().await else { return };
    story.apply(&[], FOR_EVER);
    story.runs_on("far").await;
    let life = story.life_after(0).await;
    std::os::unix::fs::symlink(story.host.path("near"), story.host.path("second")).expect("linked");
    story.manage_by_script_as("second");
    eventually("the second says so", async || story.host.said_by("second").contains("not managed here")).await;
    story.host.kill_near();
    let killed = boot_ns();
    story.lives_beyond(&life, killed + 3 * TTL_MS * MS).await;
    story.runs_on("far").await;
    assert_eq!(story.stamps.exclusive().len(), 1, "it knew what ran, and left it");
}

#[tokio::test]
async fn a_near_end_without_its_memory_makes_no_two_copies() {
    for lost in ["near/far/may-live.json", "near/far"] {
        let Some(mut story) = Story::with_control_script().await else { return };
        story.apply(&["--ignore-term"], FOR_EVER);
        story.runs_on("far").await;
        let old = story.life_after(0).await;
        story.host.kill_near();
        let path = story.host.path(lost);
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.expect("it was there");
        story.lives_beyond(&old, boot_ns()).await;

        // It goes by the script: what runs there is ended before anything is started.
        story.manage_by_script();
        let again = async |_: &Lab| story.stamps.newest().filter(|life| life.first > old.first);
        let new = story.lab.until_some("it lives again", again).await;
        story.lives_beyond(&new, new.first + TTL_MS * MS).await;
        let lives = story.stamps.exclusive();
        assert_eq!(lives.len(), 2, "{lost}: {lives:?}");
        println!("{lost} lost: started again after {} ms", (new.first - lives[0].last) / MS);
    }
}
