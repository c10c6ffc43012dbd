//! A source that fails, is slow or lies, and what is kept meanwhile of what came.

use std::sync::atomic::Ordering;
use std::time::Duration;

use leaseward_state::config::SyncState;
use leaseward_sync::member::{Blob, WantedVersion};
use leaseward_sync::{digest_of, frame};

use crate::world::*;

#[tokio::test]
async fn what_came_for_a_version_that_nobody_wants_any_more_takes_no_memory() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "1")]);
    world.want("app", one);
    world.applied("app", 1).await;
    for given_up in ["back", "out"] {
        let (came, stuck) = (format!("came, {given_up}"), format!("stuck, {given_up}"));
        let two = world.voter.publish(2, &[("a", &came), ("b", &stuck)]);
        world.voter.stuck.lock().unwrap().insert(digest_of(stuck.as_bytes()));
        world.want("app", two);
        tokio::time::timeout(BOUND, world.voter.asked_stuck.notified()).await.unwrap();
        match given_up {
            "back" => world.want("app", one),
            _ => world.order("app", |wanted| wanted.live = None),
        }
        // The manifest came before anything that is stuck. A machine that is taken out may want it when it comes back.
        match given_up {
            "back" => {
                world.holds(0).await;
                assert!(!world.is_in_a_file("app", two.manifest), "what nobody wants is on the disk");
            }
            _ => {
                world.holds(0).await;
                assert!(world.is_in_a_file("app", two.manifest));
            }
        }
    }
}

#[tokio::test]
async fn of_what_came_for_a_version_that_was_superseded_only_what_the_newer_one_needs_is_held() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    let (old, both) = ("o".repeat(50_000), "b".repeat(30_000));
    // Asked for last, as chunks go in ascending order.
    let is_last =
        |text: &String| [&old, &both].iter().all(|other| digest_of(other.as_bytes()) < digest_of(text.as_bytes()));
    let mut texts = (0..).map(|i| format!("stuck {i}")).filter(is_last);
    let stuck = [texts.next().unwrap(), texts.next().unwrap()];
    world.voter.stuck.lock().unwrap().extend(stuck.each_ref().map(|text| digest_of(text.as_bytes())));
    let two = world.voter.publish(2, &[("both", &both), ("old", &old), ("z", &stuck[0])]);
    let three = world.voter.publish(3, &[("both", &both), ("z", &stuck[1])]);
    let manifest = |version: WantedVersion| world.voter.blobs.lock().unwrap()[&version.manifest].len();
    let (second, third) = (manifest(two), manifest(three));
    world.want("app", two);
    world.holds(second + old.len() + both.len()).await;
    world.want("app", three);
    world.holds(third + both.len()).await;
    let given = world.voter.given.lock().unwrap().clone();
    assert_eq!(given[&digest_of(both.as_bytes())], 1, "what both need is fetched once");
    assert!(!world.is_in_a_file("app", two.manifest) && !world.is_in_a_file("app", digest_of(old.as_bytes())));
    // Neither does a restart leave what nobody wants.
    world.stop().await;
    assert!(world.is_in_a_file("app", three.manifest), "what came for it is put down");
    world.start();
    world.want("app", world.voter.publish(4, &[("a", "4")]));
    world.applied("app", 4).await;
    world.holds(0).await;
    assert!(!world.is_in_a_file("app", three.manifest));
}

#[tokio::test(start_paused = true)]
async fn what_came_for_a_version_whose_rest_does_not_come_takes_no_memory_for_long_and_is_not_fetched_again() {
    let mut world = World::new();
    let (came, failing) = ("c".repeat(50_000), digest_of(b"fails"));
    world.voter.failing.lock().unwrap().insert(failing, usize::MAX);
    world.want("app", world.voter.publish(1, &[("came", &came), ("z", "fails")]));
    let is_tried = || world.voter.failing.lock().unwrap()[&failing] < usize::MAX - 4;
    let tried = async {
        while !is_tried() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(BOUND, tried).await.unwrap();
    world.holds(0).await;
    world.voter.failing.lock().unwrap().clear();
    world.applied("app", 1).await;
    assert_eq!(world.voter.given.lock().unwrap()[&digest_of(came.as_bytes())], 1);
    world.holds(0).await;
}

#[tokio::test]
async fn a_newer_version_supersedes_a_fetch_under_way() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "first")]);
    world.voter.stuck.lock().unwrap().insert(digest_of(b"first"));
    world.want("app", one);
    tokio::time::timeout(BOUND, world.voter.asked_stuck.notified()).await.unwrap();
    world.until(|report| matches!(report.state, SyncState::Fetching { version: 1, done: 0, total: 5, .. })).await;
    world.want("app", world.voter.publish(2, &[("a", "second")]));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "second");
    assert!(world.seen.iter().all(|report| report.applied != 1));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_and_then_works_is_asked_again() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x"), ("b", "y")]);
    world.voter.failing.lock().unwrap().extend([(one.manifest, 3), (digest_of(b"x"), 2)]);
    let began = tokio::time::Instant::now();
    world.want("app", one);
    world.applied("app", 1).await;
    // Five waits, each twice the one before: 0.2 s to 3.2 s.
    assert!(began.elapsed() >= Duration::from_millis(6200), "{:?}", began.elapsed());
    assert_eq!(world.story(), ["1 applied"]);
    assert_eq!(world.voter.given.lock().unwrap()[&digest_of(b"y")], 1, "what was fetched stays");
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_gives_what_nobody_asked_for_is_refused_by_name_and_holds_nobody_up() {
    let mut world = World::new();
    // Three attempts of three questions each come to nothing; without a bound the first one asked for ever.
    world.voter.lies.store(9, Ordering::Relaxed);
    let began = tokio::time::Instant::now();
    world.want("app", world.voter.publish(1, &[("a", "x")]));
    world.applied("app", 1).await;
    assert!(began.elapsed() >= Duration::from_millis(1400), "it waited after each attempt: {:?}", began.elapsed());
    let refused = world.voter.refused.lock().unwrap().clone();
    assert_eq!(refused.len(), 9);
    assert!(refused.iter().all(|(who, why)| who == "voter 1" && why.contains("nothing of what it was asked for")));
    world.stop().await;
    let cache = leaseward_sync::BlobStore::open_cache(&world.temp.path().join("state/sets/app/blobs")).unwrap();
    assert!(cache.get(digest_of(b"nobody asked for it")).is_err(), "what nobody wants is kept");
}

#[tokio::test]
async fn what_is_no_delta_is_refused_by_name_and_blobs_are_fetched() {
    let mut world = World::new();
    *world.voter.delta.lock().unwrap() = Some(b"no delta".to_vec());
    world.want("app", world.voter.publish(1, &[("a", "x")]));
    world.applied("app", 1).await;
    let refused = world.voter.refused.lock().unwrap().clone();
    assert_eq!(refused.iter().map(|(who, _)| who.as_str()).collect::<Vec<_>>(), ["voter 2"], "{refused:?}");
}

#[tokio::test]
async fn a_corrupt_chunk_is_refused_and_fetched_again() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x")]);
    world.voter.corrupt.lock().unwrap().extend([(one.manifest, 1), (digest_of(b"x"), 4)]);
    world.want("app", one);
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "x");
    let refused = world.voter.refused.lock().unwrap().len();
    assert_eq!(refused, 5, "whoever gave it hears of it each time");
}

#[tokio::test]
async fn what_the_voter_on_this_machine_holds_is_not_fetched() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x"), ("b", "y"), ("c", "z")]);
    let frame = Blob::Frame(frame::pack(b"x").unwrap().into());
    let here = [(digest_of(b"x"), Some(frame)), (digest_of(b"y"), Some(Blob::Plain(b"y".to_vec())))];
    world.voter.here.lock().unwrap().extend(here);
    world.want("app", one);
    world.applied("app", 1).await;
    assert_eq!(["app/a", "app/b", "app/c"].map(|path| world.read(path)), ["x", "y", "z"]);
    let given: Vec<_> = world.voter.given.lock().unwrap().keys().copied().collect();
    let mut fetched = vec![one.manifest, digest_of(b"z")];
    fetched.sort_unstable();
    assert_eq!(given, fetched);
}

#[tokio::test]
async fn what_is_said_to_be_on_this_machine_and_is_not_or_not_so_is_fetched_by_the_next_attempt() {
    let mut world = World::new();
    let wrong = Blob::Plain(b"wrong".to_vec());
    let damaged = Blob::Frame(frame::pack(b"other").unwrap().into());
    for (version, bad) in [(1, None), (2, Some(wrong)), (3, Some(damaged))] {
        let text = format!("text {version}");
        let wanted = world.voter.publish(version, &[("a", &text)]);
        world.voter.here.lock().unwrap().insert(digest_of(text.as_bytes()), bad);
        world.want("app", wanted);
        world.applied("app", version).await;
        assert_eq!(world.read("app/a"), text);
        assert_eq!(world.voter.given.lock().unwrap().get(&digest_of(text.as_bytes())), Some(&1));
    }
    let said = world.story();
    assert_eq!(said.iter().filter(|word| word.contains("rejected") || word.contains("failed")).count(), 3, "{said:?}");
}

#[tokio::test]
async fn what_was_changed_by_hand_is_put_right_though_the_copy_on_this_machine_is_gone() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "x"), ("b", "y")]);
    world.want("app", one);
    world.applied("app", 1).await;
    world.at_rest("app").await;
    world.voter.here.lock().unwrap().insert(digest_of(b"x"), None);
    std::fs::write(world.path("app/a"), "by hand").unwrap();
    // The same version is asked for again, and everything is looked at.
    world.order("app", |wanted| wanted.attempt += 1);
    let right = async {
        while world.read("app/a") != "x" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, right).await.expect("others are asked");
}

#[tokio::test]
async fn a_restart_in_the_middle_resumes() {
    let mut world = World::new();
    let files: Vec<(String, String)> = (0..20).map(|i| (format!("f{i}"), format!("content {i}"))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let one = world.voter.publish(1, &files);
    // The last one that is asked for, as chunks go in ascending order.
    let last = files.iter().map(|(_, text)| digest_of(text.as_bytes())).max().unwrap();
    world.voter.stuck.lock().unwrap().insert(last);
    world.want("app", one);
    tokio::time::timeout(BOUND, world.voter.asked_stuck.notified()).await.unwrap();
    world.stop().await;
    assert_eq!(world.read("app/f0"), "");
    world.voter.stuck.lock().unwrap().clear();
    world.start();
    world.applied("app", 1).await;
    assert_eq!(world.read("app/f19"), "content 19");
    let given = world.voter.given.lock().unwrap().clone();
    let again = given.values().filter(|count| **count > 1).count();
    assert!(again <= 2, "{again} blobs were fetched twice; only those under way may be");
    // And once more: nothing is fetched, and the version is reported.
    world.stop().await;
    world.start();
    world.applied("app", 1).await;
    assert_eq!(*world.voter.given.lock().unwrap(), given);
}
