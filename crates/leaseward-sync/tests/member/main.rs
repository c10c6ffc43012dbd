//! The member's loop with real directories and a source that can be made to misbehave.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod by_hand;
mod fetching;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use leaseward_state::config::SyncState;
use leaseward_state::config::spec::{DrainRule, DriftRule, Layout, SetHook};
use leaseward_sync::member::{MemberConfig, Report, WantedVersion};
use leaseward_sync::secret::{Key, Keys};
use leaseward_sync::{Facts, digest_of};

use self::world::*;

#[tokio::test]
async fn versions_arrive_one_after_the_other_and_each_step_is_reported_once() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1"), ("d/b", "1")]));
    world.applied("app", 1).await;
    assert_eq!((world.read("app/a"), world.read("app/d/b")), ("1".into(), "1".into()));
    world.want("app", world.voter.publish(2, &[("a", "2"), ("d/b", "1")]));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "2");
    // Back to an older version is a version like any other.
    world.want("app", world.voter.publish(3, &[("a", "1"), ("d/b", "1")]));
    world.applied("app", 3).await;
    assert_eq!(world.story(), ["1 applied", "2 applied", "3 applied"], "what takes no time is not spoken of");
    assert_eq!(world.voter.given.lock().unwrap()[&digest_of(b"1")], 1, "the old file was not fetched again");
    world.stop().await;
    let blobs = leaseward_sync::BlobStore::open(&world.temp.path().join("state/sets/app/blobs")).unwrap();
    assert_eq!(blobs.digests().len(), 0, "the tree holds them now");
}

#[tokio::test]
async fn a_file_that_was_changed_by_hand_right_before_a_version_is_put_right_and_refuses_nothing() {
    let mut world = World::new();
    let names: Vec<String> = (0..70).map(|i| format!("f{i:02}")).collect();
    let files = |first| -> Vec<(&str, &str)> {
        names.iter().map(|name| (name.as_str(), if name == "f00" { first } else { "stays" })).collect()
    };
    world.want("app", world.voter.publish(1, &files("1")));
    world.applied("app", 1).await;
    world.at_rest("app").await;
    fs::remove_file(world.path("app/f50")).unwrap();
    fs::write(world.path("app/f50"), "by hand").unwrap();
    world.want("app", world.voter.publish(2, &files("2")));
    world.applied("app", 2).await;
    assert_eq!((world.read("app/f00"), world.read("app/f50")), ("2".into(), "stays".into()));
    assert!(!world.story().iter().any(|word| word.contains("rejected")), "{:?}", world.story());
}

#[tokio::test]
async fn the_only_copy_of_a_file_that_was_edited_in_place_right_before_a_version_is_fetched_and_refuses_nothing() {
    let mut world = World::new();
    let names: Vec<String> = (0..70).map(|i| format!("f{i:02}")).collect();
    let files = |first| -> Vec<(&str, &str)> {
        names.iter().map(|name| (name.as_str(), if name == "f00" { first } else { name.as_str() })).collect()
    };
    world.want("app", world.voter.publish(1, &files("1")));
    world.applied("app", 1).await;
    world.at_rest("app").await;
    fs::write(world.path("app/f50"), "by hand").unwrap();
    world.want("app", world.voter.publish(2, &files("2")));
    world.applied("app", 2).await;
    assert_eq!((world.read("app/f00"), world.read("app/f50")), ("2".into(), "f50".into()));
    assert!(!world.story().iter().any(|word| word.contains("rejected")), "{:?}", world.story());
}

#[tokio::test]
async fn a_change_by_hand_is_not_forgotten_over_another_policy_that_comes_right_after_it() {
    let mut world = World::new();
    world.keep("app", |spec| spec.scan_each_ms = 3_600_000);
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    for round in 0..3 {
        fs::write(world.path("app/a"), "by hand").unwrap();
        // It is heard within a moment, and looked at a tenth of a second later: policies come in between, and until then.
        for step in 0..8 {
            tokio::time::sleep(Duration::from_millis(12)).await;
            world.keep("app", |spec| spec.drain_ms = 1_000 * (1 + round * 8 + step));
        }
        world.until(|report| matches!(report.state, SyncState::Drifted { .. })).await;
        fs::write(world.path("app/a"), "1").unwrap();
        world.applied("app", 1).await;
    }
}

#[tokio::test]
async fn a_target_that_is_somebody_elses_is_reported_until_it_is_moved_away() {
    let mut world = World::new();
    write(&world.temp.path().join("config/app"), &[("a", "mine")]);
    world.want("app", world.voter.publish(1, &[("a", "theirs")]));
    let report = world.until(|report| matches!(report.state, SyncState::Rejected { .. })).await;
    let SyncState::Rejected { version: 1, why } = report.state else { panic!() };
    assert!(why.starts_with("LW0805") && why.contains("config/app"), "{why}");
    assert_eq!(world.read("app/a"), "mine");
    fs::remove_file(world.temp.path().join("config/app/a")).unwrap();
    world.applied("app", 1).await;
    assert_eq!(world.story(), ["0 rejected 1: LW0805", "1 applied"]);
}

#[tokio::test]
async fn a_hostile_manifest_is_rejected_and_the_next_version_is_taken() {
    let mut world = World::new();
    let text = "leaseward manifest 1\nd 755 ../out\n";
    let bytes = format!("{text}end 1 {:08x}\n", crc32c::crc32c(text.as_bytes())).into_bytes();
    let manifest = digest_of(&bytes);
    world.voter.blobs.lock().unwrap().insert(manifest, bytes);
    world.want("app", WantedVersion { number: 1, manifest });
    world.until(|report| matches!(report.state, SyncState::Rejected { version: 1, .. })).await;
    assert!(!world.temp.path().join("config/out").exists());
    world.want("app", world.voter.publish(2, &[("a", "2")]));
    world.applied("app", 2).await;
}

#[tokio::test]
async fn sets_do_not_disturb_each_other_and_an_unwanted_one_is_left_alone() {
    let mut world = World::new();
    world.stop().await;
    let config = world.config();
    let elsewhere = world.temp.path().join("elsewhere/b");
    let inside = world.temp.path().join("config/a/inside");
    let targets = BTreeMap::from([(set("b"), elsewhere.clone()), (set("c"), inside)]);
    world.start_with(MemberConfig { targets, ..config });
    let stuck = world.voter.publish(1, &[("a", "stuck")]);
    world.want("a", world.voter.publish(1, &[("a", "1")]));
    world.applied("a", 1).await;
    world.voter.stuck.lock().unwrap().insert(digest_of(b"stuck"));
    world.want("a", stuck);
    world.want("b", world.voter.publish(7, &[("b", "7")]));
    world.applied("b", 7).await;
    assert_eq!(fs::read_to_string(elsewhere.join("b")).unwrap(), "7");
    // A target inside another set's target would be torn away with it.
    world.want("c", world.voter.publish(1, &[("c", "1")]));
    world.until(|report| report.set == set("c") && matches!(report.state, SyncState::Rejected { .. })).await;
    world.wanted.send_modify(|wanted| {
        wanted.remove(&set("b"));
    });
    world.want("d", world.voter.publish(1, &[("d", "1")]));
    world.applied("d", 1).await;
    assert_eq!(fs::read_to_string(elsewhere.join("b")).unwrap(), "7");
    world.stop().await;
}

fn hook(words: &[&str]) -> Option<SetHook> {
    Some(SetHook { command: words.iter().map(|word| (*word).to_owned()).collect(), timeout_ms: 10_000 })
}

fn script(text: &str) -> Option<SetHook> {
    hook(&["sh", "-c", text])
}

#[tokio::test]
async fn a_check_that_says_no_keeps_the_old_version_and_is_asked_again() {
    let mut world = World::new();
    // The new version at its own place as root; at `{tree}` for everybody.
    world.keep("app", |spec| spec.check = script("! grep -q bad {tree}/a"));
    world.want("app", world.voter.publish(1, &[("a", "good")]));
    world.applied("app", 1).await;
    world.want("app", world.voter.publish(2, &[("a", "bad")]));
    let why = world.rejected(2).await;
    assert!(why.starts_with("LW0811") && why.contains("exited with 1"), "{why}");
    assert_eq!(world.read("app/a"), "good");
    assert!(!world.path(".app.leaseward-next").exists(), "what was refused is left on the disk");
    // The program was mended: the same version is taken, by itself.
    world.keep("app", |spec| spec.check = script("grep -q bad {tree}/a"));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "bad");
}

#[tokio::test]
async fn a_reload_that_fails_takes_the_version_back_and_is_not_tried_in_circles() {
    let mut world = World::new();
    let log = world.temp.path().join("reloads");
    let reload =
        format!("cat $LEASEWARD_TARGET/a >> {0}; echo >> {0}; ! grep -q bad $LEASEWARD_TARGET/a", log.display());
    world.keep("app", |spec| spec.reload = script(&reload));
    world.want("app", world.voter.publish(1, &[("a", "good")]));
    world.applied("app", 1).await;
    let bad = world.voter.publish(2, &[("a", "bad")]);
    world.want("app", bad);
    let why = world.rejected(2).await;
    assert!(why.starts_with("LW0812"), "{why}");
    assert_eq!(world.read("app/a"), "good");
    assert_eq!(fs::read_to_string(&log).unwrap(), "good\nbad\ngood\n", "the old version was loaded again");
    // Nothing is tried again by itself; an operator may ask.
    world.order("app", |wanted| wanted.attempt = 1);
    world.rejected(2).await;
    let reloads = fs::read_to_string(&log).unwrap();
    assert_eq!(reloads, "good\nbad\ngood\nbad\ngood\n", "{reloads}");
    world.want("app", world.voter.publish(3, &[("a", "better")]));
    world.applied("app", 3).await;
}

#[tokio::test]
async fn what_somebody_changed_by_hand_is_said_and_put_right_if_the_rule_says_so() {
    let mut world = World::new();
    let files: &[(&str, &str)] = &[("a", "1"), ("d/b", "2"), ("gone", "3")];
    world.keep("app", |spec| spec.ignore = vec!["*.pid".into(), "run".into()]);
    world.want("app", world.voter.publish(1, files));
    world.applied("app", 1).await;
    fs::write(world.path("app/app.pid"), "42").unwrap();
    fs::create_dir(world.path("app/run")).unwrap();
    fs::write(world.path("app/run/x"), "x").unwrap();
    fs::write(world.path("app/d/b"), "by hand").unwrap();
    fs::remove_file(world.path("app/gone")).unwrap();
    fs::write(world.path("app/extra"), "extra").unwrap();
    // Seen by watching: the next look would be a minute later.
    let all = |report: &Report| matches!(&report.state, SyncState::Drifted { all: 3, .. });
    let SyncState::Drifted { paths, .. } = world.until(all).await.state else { panic!() };
    let what: Vec<_> = paths.iter().map(|drift| (drift.path.as_str(), drift.what.as_str())).collect();
    assert_eq!(what, [("d/b", "content"), ("extra", "extra"), ("gone", "missing")]);
    assert!(paths[0].owner.is_some() && paths[0].at.is_some());
    assert_eq!(world.read("app/d/b"), "by hand", "the rule is to report");
    world.keep("app", |spec| spec.drift = DriftRule::Repair);
    fs::write(world.path("app/extra"), "again").unwrap();
    world.applied("app", 1).await;
    assert_eq!((world.read("app/d/b"), world.read("app/gone")), ("2".into(), "3".into()));
    assert!(!world.path("app/extra").exists());
    assert_eq!(
        (world.read("app/app.pid"), world.read("app/run/x")),
        ("42".into(), "x".into()),
        "a program's own files"
    );
    assert_eq!(fs::read_to_string(world.path(".app.leaseward-prev/d/b")).unwrap(), "by hand", "what was found is kept");
    // And the next version takes them along, too.
    world.want("app", world.voter.publish(2, &[("a", "2")]));
    world.applied("app", 2).await;
    assert_eq!((world.read("app/app.pid"), world.read("app/run/x")), ("42".into(), "x".into()));
}

#[tokio::test]
async fn a_change_that_no_watch_sees_is_found_by_looking() {
    let mut world = World::new();
    world.keep("app", |spec| spec.scan_each_ms = 100);
    world.want("app", world.voter.publish(1, &[("a", "1234")]));
    world.applied("app", 1).await;
    // Through another name of the inode, with the old size and time put back.
    let (path, other) = (world.path("app/a"), world.temp.path().join("other"));
    fs::hard_link(&path, &other).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&other, "4321").unwrap();
    fs::File::options().write(true).open(&other).unwrap().set_modified(before).unwrap();
    let report = world.until(|report| matches!(report.state, SyncState::Drifted { .. })).await;
    let SyncState::Drifted { paths, .. } = report.state else { panic!() };
    assert_eq!(paths[0].path, "a");
    // Somebody puts it back: that is said, too.
    fs::write(&other, "1234").unwrap();
    world.applied("app", 1).await;
}

#[tokio::test]
async fn an_operator_who_asks_has_everything_put_right() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    fs::write(world.path("app/a"), "by hand").unwrap();
    world.until(|report| matches!(report.state, SyncState::Drifted { .. })).await;
    world.order("app", |wanted| wanted.attempt = 1);
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "1");
}

#[tokio::test]
async fn a_staged_version_waits_beside_the_live_one_until_it_is_its_turn() {
    let mut world = World::new();
    world.keep("app", |spec| spec.check = hook(&["test", "-e", "{tree}/a"]));
    let (one, two) = (world.voter.publish(1, &[("a", "1")]), world.voter.publish(2, &[("a", "2")]));
    world.want("app", one);
    world.applied("app", 1).await;
    world.order("app", |wanted| wanted.staged = Some(two));
    world.until(|report| report.applied == 1 && report.state == SyncState::OnDisk { version: 2 }).await;
    assert_eq!(world.read("app/a"), "1");
    assert_eq!(fs::read_to_string(world.path(".app.leaseward-next/a")).unwrap(), "2");
    let given = world.voter.given.lock().unwrap().clone();
    world.want("app", two);
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "2");
    assert_eq!(*world.voter.given.lock().unwrap(), given, "nothing was fetched for the switch");
    // One that is given up leaves nothing behind.
    let three = world.voter.publish(3, &[("a", "3")]);
    world.order("app", |wanted| wanted.staged = Some(three));
    world.until(|report| report.state == SyncState::OnDisk { version: 3 }).await;
    world.order("app", |wanted| wanted.staged = None);
    world.applied("app", 2).await;
    assert!(!world.path(".app.leaseward-next").exists());
}

#[tokio::test]
async fn a_machine_leaves_its_load_balancer_when_the_set_asks_for_it() {
    let mut world = World::new();
    world.keep("app", |spec| spec.drain = DrainRule::Always);
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    world.want("app", world.voter.publish(2, &[("a", "2")]));
    world.applied("app", 2).await;
    let door = world.gate.0.lock().unwrap().clone();
    assert_eq!(door, ["leave", "leave", "come back", "leave", "come back"], "first it has no version at all");
    assert!(world.seen.iter().any(|report| report.state == SyncState::Draining && report.applied == 1));
    world.keep("app", |spec| spec.drain = DrainRule::First);
    world.want("app", world.voter.publish(3, &[("a", "3")]));
    world.applied("app", 3).await;
    assert!(world.gate.0.lock().unwrap().iter().filter(|word| **word == "leave").count() == 3, "it was disturbed");
}

#[tokio::test]
async fn a_machine_waits_for_no_version_of_a_set_that_it_is_not_to_have_any_more() {
    let mut world = World::new();
    let refused = |world: &World| {
        world.keep("app", |spec| (spec.drain, spec.check) = (DrainRule::First, hook(&["false"])));
        world.want("app", world.voter.publish(1, &[("a", "1")]));
    };
    refused(&world);
    world.rejected(1).await;
    assert!(world.gate.is_shut(), "a machine without a version is in");
    world.wanted.send_modify(BTreeMap::clear);
    world.gate.opens().await;
    refused(&world);
    world.rejected(1).await;
    assert!(world.gate.is_shut(), "it came back before the set was wanted again");
    // As a pin without a version makes it.
    world.order("app", |wanted| wanted.live = None);
    world.gate.opens().await;
}

#[tokio::test]
async fn a_member_that_is_taken_out_is_left_as_it_is() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    world.order("app", |wanted| wanted.live = None);
    world.until(|report| report.state == SyncState::Disabled && report.applied == 1).await;
    fs::write(world.path("app/a"), "maintenance").unwrap();
    world.want("app", world.voter.publish(2, &[("a", "2")]));
    world.applied("app", 2).await;
    assert_eq!(world.read("app/a"), "2");
}

#[tokio::test]
async fn a_set_may_live_among_files_of_others_and_goes_back_from_there() {
    let mut world = World::new();
    fs::create_dir_all(world.path("app")).unwrap();
    fs::write(world.path("app/hosts"), "not ours").unwrap();
    world.keep("app", |spec| {
        spec.layout = Layout::Files;
        spec.reload = script("! grep -q bad $LEASEWARD_TARGET/a");
    });
    world.want("app", world.voter.publish(1, &[("a", "1"), ("b", "b")]));
    world.applied("app", 1).await;
    assert_eq!((world.read("app/a"), world.read("app/hosts")), ("1".into(), "not ours".into()));
    world.want("app", world.voter.publish(2, &[("a", "bad")]));
    world.rejected(2).await;
    assert_eq!(
        (world.read("app/a"), world.read("app/b")),
        ("1".into(), "b".into()),
        "taken back, from this disk alone"
    );
    world.want("app", world.voter.publish(3, &[("a", "3")]));
    world.applied("app", 3).await;
    assert!(!world.path("app/b").exists());
    fs::write(world.path("app/a"), "by hand").unwrap();
    world.until(|report| matches!(report.state, SyncState::Drifted { .. })).await;
    assert_eq!(world.read("app/hosts"), "not ours");
    world.stop().await;
    world.start();
    world.until(|report| report.applied == 3).await;
}

#[tokio::test]
async fn a_version_among_files_of_others_wins_over_a_change_by_hand_while_it_waited_and_the_change_is_kept() {
    // As with a whole tree: a rule is for what lies between two versions, and a newer one wins whatever it says.
    for rule in [DriftRule::Report, DriftRule::Repair, DriftRule::Adopt] {
        let mut world = World::new();
        world.keep("app", |spec| (spec.layout, spec.drift) = (Layout::Files, rule));
        let one = world.voter.publish(1, &[("a", "1"), ("gone", "1"), ("stays", "s")]);
        let two = world.voter.publish(2, &[("a", "2"), ("stays", "s")]);
        world.want("app", one);
        world.applied("app", 1).await;
        // What is heard of a change is looked at a moment later: the version that waits comes first.
        world.order("app", |wanted| wanted.staged = Some(two));
        world.until(|report| report.state == SyncState::OnDisk { version: 2 }).await;
        world.change_and_want("app", two, |app| {
            for path in ["a", "gone", "stays"] {
                fs::write(app.join(path), format!("{path} by hand")).unwrap();
            }
        });
        world.applied("app", 2).await;
        assert_eq!((world.read("app/a"), world.read("app/stays")), ("2".into(), "s".into()), "{rule:?}");
        assert_eq!(world.read("app/gone"), "gone by hand", "{rule:?}: no longer in the set, and somebody's own");
        let found = |path: &str| fs::read_to_string(world.temp.path().join("state/sets/app/found").join(path)).unwrap();
        assert_eq!((found("a"), found("stays")), ("a by hand".into(), "stays by hand".into()), "{rule:?}");
        assert!(!world.story().iter().any(|word| word.contains("rejected")), "{:?}", world.story());
        world.stop().await;
    }
}

#[tokio::test]
async fn what_became_of_a_path_while_a_version_among_files_of_others_waited_is_not_overwritten() {
    let mut world = World::new();
    world.keep("app", |spec| spec.layout = Layout::Files);
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    let two = world.voter.publish(2, &[("a", "2"), ("b", "2")]);
    world.order("app", |wanted| wanted.staged = Some(two));
    world.until(|report| report.state == SyncState::OnDisk { version: 2 }).await;
    world.change_and_want("app", two, |app| fs::write(app.join("b"), "somebody else's").unwrap());
    let why = world.rejected(2).await;
    assert!(why.starts_with("LW0805") && why.contains("app/b"), "{why}");
    assert_eq!((world.read("app/a"), world.read("app/b")), ("1".into(), "somebody else's".into()));
}

#[tokio::test]
async fn layers_templates_and_secrets_are_made_for_this_member_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut world = World::new();
    world.stop().await;
    let key = Key::create(&world.temp.path().join("key")).unwrap();
    let facts = Facts { machine: "m1".into(), labels: BTreeMap::from([("zone".into(), "a".into())]) };
    let config = || MemberConfig { facts: facts.clone(), keys: Keys::new([key.clone()]), ..world.config() };
    let (first, again) = (config(), config());
    world.start_with(first);
    world.keep("app", |spec| (spec.overlays, spec.templates) = (true, true));
    let files: &[(&str, &str)] = &[("a.tmpl", "on {{ machine }}"), ("b", "base"), ("@zone=a/b", "zone a")];
    world.want("app", world.voter.publish(1, files));
    world.applied("app", 1).await;
    assert_eq!((world.read("app/a"), world.read("app/b")), ("on m1".into(), "zone a".into()));
    // After a restart it knows that it has it.
    world.stop().await;
    let given = world.voter.given.lock().unwrap().clone();
    world.start_with(again);
    world.applied("app", 1).await;
    assert_eq!(*world.voter.given.lock().unwrap(), given, "something was fetched again");

    let sealed = String::from_utf8_lossy(&key.seal("p", b"secret".to_vec()).unwrap()).into_owned();
    assert!(sealed.starts_with("LWSEC"));
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("p"), key.seal("p", b"secret".to_vec()).unwrap()).unwrap();
    let two = world.voter.publish_dir(2, temp.path());
    world.keep("keys", |spec| spec.key = Some(key.fingerprint()));
    world.want("keys", two);
    world.applied("keys", 2).await;
    assert_eq!(world.read("keys/p"), "secret");
    assert_eq!(fs::metadata(world.path("keys/p")).unwrap().permissions().mode() & 0o777, 0o600);
    // Nothing that Leaseward keeps besides holds it, nor what waits for its turn.
    fs::write(temp.path().join("p"), key.seal("p", b"next secret".to_vec()).unwrap()).unwrap();
    let next = world.voter.publish_dir(9, temp.path());
    world.order("keys", |wanted| wanted.staged = Some(next));
    world.until(|report| report.state == SyncState::OnDisk { version: 9 }).await;
    world.stop().await;
    let state = leaseward_sync::BlobStore::open_cache(&world.temp.path().join("state/sets/keys/blobs")).unwrap();
    assert!(state.get(next.manifest).is_ok(), "what came is put down");
    for secret in ["secret", "next secret"] {
        assert!(state.get(digest_of(secret.as_bytes())).is_err(), "the plain text is in the cache");
    }
    drop(state);
    let config = MemberConfig { keys: Keys::new([key.clone()]), ..world.config() };
    world.start_with(config);
    world.want("keys", world.voter.publish(3, &[("p", "plain")]));
    assert!(world.rejected(3).await.contains("not encrypted"));
    assert_eq!(world.read("keys/p"), "secret");
}

#[tokio::test]
async fn a_secret_among_files_of_others_goes_back_and_stands_nowhere_else() {
    let mut world = World::new();
    world.stop().await;
    let key = Key::create(&world.temp.path().join("key")).unwrap();
    let config = MemberConfig { keys: Keys::new([key.clone()]), ..world.config() };
    world.start_with(config);
    world.keep("keys", |spec| {
        (spec.layout, spec.key) = (Layout::Files, Some(key.fingerprint()));
        spec.reload = script("! grep -q bad $LEASEWARD_TARGET/p");
    });
    let publish = |world: &World, number, secret: &str| {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("p"), key.seal("p", secret.as_bytes().to_vec()).unwrap()).unwrap();
        world.voter.publish_dir(number, temp.path())
    };
    world.want("keys", publish(&world, 1, "first"));
    world.applied("keys", 1).await;
    world.want("keys", publish(&world, 2, "bad"));
    world.rejected(2).await;
    assert_eq!(world.read("keys/p"), "first", "taken back, from this machine alone");
    world.want("keys", publish(&world, 3, "third"));
    world.applied("keys", 3).await;
    world.stop().await;
    let cache = leaseward_sync::BlobStore::open_cache(&world.temp.path().join("state/sets/keys/blobs")).unwrap();
    for secret in ["first", "bad", "third"] {
        assert!(cache.get(digest_of(secret.as_bytes())).is_err(), "{secret} is in the cache");
    }
}

#[tokio::test]
async fn who_refused_what_is_to_be_ready_says_nothing_else_until_that_is_over() {
    let mut world = World::new();
    let tries = world.path("tries");
    let check =
        format!("echo x >>{0}; ! grep -q bad {{tree}}/a || test -e {1}", tries.display(), world.path("ok").display());
    world.keep("app", |spec| spec.check = script(&check));
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    let two = world.voter.publish(2, &[("a", "bad")]);
    world.order("app", |wanted| wanted.staged = Some(two));
    world.rejected(2).await;
    let before = world.seen.len();
    let tried = async {
        while fs::read_to_string(&tries).unwrap().lines().count() < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, tried).await.expect("it is tried again");
    fs::write(world.path("ok"), "").unwrap();
    world.until(|report| report.state == SyncState::OnDisk { version: 2 }).await;
    let said: Vec<_> = world.seen[before..].iter().map(|report| &report.state).collect();
    assert_eq!(said, [&SyncState::OnDisk { version: 2 }], "it is one refusal however often it is tried");
    // Nobody wants it any more: all is well.
    fs::remove_file(world.path("ok")).unwrap();
    let three = world.voter.publish(3, &[("a", "bad again")]);
    world.order("app", |wanted| wanted.staged = Some(three));
    world.rejected(3).await;
    world.order("app", |wanted| wanted.staged = None);
    world.applied("app", 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_switch_left_to_be_done_is_not_waited_for_when_a_newer_version_comes() {
    let mut world = World::new();
    let versions: Vec<_> = (1..=5).map(|number| world.voter.publish(number, &[("a", &number.to_string())])).collect();
    world.want("app", versions[0]);
    world.applied("app", 1).await;
    // By a clock that goes on only when nobody has anything to do but to wait for it.
    let began = tokio::time::Instant::now();
    for version in &versions[1..] {
        world.want("app", *version);
        world.applied("app", version.number).await;
    }
    assert!(began.elapsed() < leaseward_sync::limits::FINISH_AFTER, "{:?}", began.elapsed());
    world.stop().await;
    assert_eq!(world.read("app/a"), "5");
}
