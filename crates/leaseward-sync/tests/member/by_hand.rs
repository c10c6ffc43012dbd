//! What somebody does to a set's directory by hand, however odd: it is shown, hides nothing else, and is put right.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};

use leaseward_state::config::SyncState;
use leaseward_state::config::spec::{DriftRule, Layout};
use leaseward_sync::member::Report;

use super::{hook, script};
use crate::world::*;

/// Returns what is said of the changes that are reported next and that `wanted` accepts.
async fn drifted(world: &mut World, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let said = |state: &SyncState| match state {
        SyncState::Drifted { paths, .. } => {
            paths.iter().map(|drift| format!("{} {}", drift.path, drift.what)).collect()
        }
        _ => Vec::new(),
    };
    let report = world.until(|report| wanted(&said(&report.state))).await;
    said(&report.state)
}

fn has(said: &[String], what: &str) -> bool {
    said.iter().any(|said| said.contains(what))
}

#[tokio::test]
async fn whatever_somebody_puts_there_hides_no_other_change() {
    let mut world = World::new();
    world.keep("app", |spec| spec.ignore = vec!["cache".into()]);
    world.want("app", world.voter.publish(1, &[("a", "1"), ("d/b", "1")]));
    world.applied("app", 1).await;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
    fs::create_dir(world.path("app/cache")).unwrap();
    fs::write(world.path("app/cache").join(odd), "a program's own").unwrap();
    fs::write(world.path("app").join(odd), "odd").unwrap();
    fs::write(world.path("app/d/b"), "by hand").unwrap();
    drifted(&mut world, |said| has(said, "d/b content") && has(said, "\u{fffd}\n extra")).await;
    let deep = (0..200).fold(world.path("app/deep"), |path, _| path.join("d"));
    fs::create_dir_all(deep).unwrap();
    drifted(&mut world, |said| has(said, "d/b content") && has(said, "deep extra")).await;
    // It stands in nobody's way, and what programs wrote is taken along under its own name.
    world.keep("app", |spec| (spec.drift, spec.ignore) = (DriftRule::Repair, vec!["cache".into()]));
    world.applied("app", 1).await;
    assert_eq!(world.read("app/d/b"), "1");
    assert!(!world.path("app").join(odd).exists() && !world.path("app/deep").exists());
    assert_eq!(fs::read_to_string(world.path("app/cache").join(odd)).unwrap(), "a program's own");
}

#[tokio::test]
async fn why_a_change_by_hand_cannot_be_everybodys_is_said_where_it_is_shown() {
    let mut world = World::new();
    world.keep("app", |spec| (spec.drift, spec.scan_each_ms) = (DriftRule::Adopt, 100));
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    fs::write(world.path("app/a"), "by hand").unwrap();
    let said = drifted(&mut world, |said| has(said, "a content")).await;
    assert!(!has(&said, "not adopted"), "{said:?}");
    symlink("/etc", world.path("app/out")).unwrap();
    let said = drifted(&mut world, |said| has(said, "out extra")).await;
    assert!(has(&said[..1], "not adopted: LW0804") && has(&said[..1], "app/out"), "{said:?}");
    fs::remove_file(world.path("app/out")).unwrap();
    drifted(&mut world, |said| has(said, "a content") && !has(said, "not adopted")).await;
}

#[tokio::test]
async fn a_target_that_became_a_link_is_drift_and_what_it_leads_to_is_left_alone() {
    let mut world = World::new();
    world.keep("app", |spec| (spec.drift, spec.scan_each_ms) = (DriftRule::Repair, 100));
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    world.at_rest("app").await;
    let elsewhere = world.temp.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("a"), "somebody else's").unwrap();
    fs::rename(world.path("app"), world.path("aside")).unwrap();
    symlink(&elsewhere, world.path("app")).unwrap();
    let said = drifted(&mut world, |said| has(said, "not put right")).await;
    assert!(has(&said, "LW0805") && has(&said, " content"), "{said:?}");
    // An operator who asks is not told that all is well, either.
    world.order("app", |wanted| wanted.attempt = 1);
    drifted(&mut world, |said| has(said, "not put right")).await;
    assert_eq!(fs::read_to_string(elsewhere.join("a")).unwrap(), "somebody else's");
    fs::remove_file(world.path("app")).unwrap();
    fs::rename(world.path("aside"), world.path("app")).unwrap();
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "1");
}

#[tokio::test]
async fn among_files_of_others_a_directory_that_became_something_else_is_drift_and_is_put_right() {
    let mut world = World::new();
    world.keep("app", |spec| (spec.layout, spec.scan_each_ms) = (Layout::Files, 100));
    world.want("app", world.voter.publish(1, &[("a", "1"), ("d/e/b", "1"), ("f/c", "1")]));
    world.applied("app", 1).await;
    let elsewhere = world.temp.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("e")).unwrap();
    fs::write(elsewhere.join("e/b"), "somebody else's").unwrap();
    fs::remove_dir_all(world.path("app/d")).unwrap();
    symlink(&elsewhere, world.path("app/d")).unwrap();
    fs::remove_dir_all(world.path("app/f")).unwrap();
    fs::write(world.path("app/f"), "a note").unwrap();
    let said = drifted(&mut world, |said| has(said, "d content") && has(said, "f content")).await;
    assert!(has(&said, "d/e/b missing") && has(&said, "f/c missing"), "{said:?}");
    world.order("app", |wanted| wanted.attempt = 1);
    world.applied("app", 1).await;
    assert_eq!((world.read("app/d/e/b"), world.read("app/f/c")), ("1".into(), "1".into()));
    assert_eq!(fs::read_to_string(elsewhere.join("e/b")).unwrap(), "somebody else's");
    assert_eq!(fs::read_to_string(world.temp.path().join("state/sets/app/found/f")).unwrap(), "a note");

    // A directory with somebody's files is not removed for a file of the set, nor does it stop the set for ever.
    fs::remove_file(world.path("app/a")).unwrap();
    fs::create_dir(world.path("app/a")).unwrap();
    fs::write(world.path("app/a/mine"), "mine").unwrap();
    world.keep("app", |spec| spec.drift = DriftRule::Repair);
    let said = drifted(&mut world, |said| has(said, "not put right")).await;
    assert!(has(&said, "LW0805") && has(&said, "app/a"), "{said:?}");
    assert_eq!(world.read("app/a/mine"), "mine");
    fs::remove_file(world.path("app/a/mine")).unwrap();
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "1");
}

#[tokio::test]
async fn what_was_changed_by_hand_is_drift_also_after_the_set_is_kept_in_another_way() {
    let mut world = World::new();
    let files: &[(&str, &str)] = &[("a", "1"), ("d/b", "1")];
    world.want("app", world.voter.publish(1, files));
    world.applied("app", 1).await;
    for (round, layout) in [(1, Layout::Files), (2, Layout::Tree), (3, Layout::Files)] {
        // The member hears of the policy first or of the file: it must be the same.
        fs::write(world.path("app/a"), "by hand").unwrap();
        world.keep("app", |spec| spec.layout = layout);
        drifted(&mut world, |said| has(said, "a content")).await;
        assert_eq!(world.read("app/a"), "by hand", "the rule is to report");
        world.order("app", |wanted| wanted.attempt = round);
        world.applied("app", 1).await;
        assert_eq!(world.read("app/a"), "1");
        if layout == Layout::Files {
            assert!(!world.path(".app.leaseward-prev").exists(), "a whole tree is left over");
        }
    }
    assert!(!world.story().iter().any(|word| word.contains("rejected")), "{:?}", world.story());
    // Where others have files it is not taken for a tree.
    fs::write(world.path("app/hosts"), "not ours").unwrap();
    world.keep("app", |spec| spec.layout = Layout::Tree);
    let why = world.rejected(1).await;
    assert!(why.starts_with("LW0805"), "{why}");
    assert_eq!(world.read("app/hosts"), "not ours");
}

#[tokio::test]
async fn what_was_changed_while_nobody_looked_is_seen_at_the_next_start() {
    let mut world = World::new();
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    world.stop().await;
    fs::write(world.path("app/a"), "by hand").unwrap();
    let before = world.seen.len();
    world.start();
    drifted(&mut world, |said| has(said, "a content")).await;
    assert!(!world.seen[before..].iter().any(|report| report.state == SyncState::Applied), "it said that all is well");
}

#[tokio::test]
async fn a_check_of_single_files_sees_the_whole_new_version_before_any_is_replaced() {
    for told in [true, false] {
        let mut world = World::new();
        let path = if told { "{tree}" } else { "$LEASEWARD_TARGET" };
        let check = format!("cat {path}/a {path}/d/b >> {}; ! grep -q bad {path}/a", world.path("seen").display());
        world.keep("app", |spec| (spec.layout, spec.check) = (Layout::Files, script(&check)));
        fs::create_dir_all(world.path("app")).unwrap();
        fs::write(world.path("app/hosts"), "not ours").unwrap();
        world.want("app", world.voter.publish(1, &[("a", "1"), ("d/b", "b")]));
        if !told {
            let why = world.rejected(1).await;
            assert!(why.starts_with("LW0811") && why.contains("{tree}"), "it would pass for nothing: {why}");
            continue;
        }
        world.applied("app", 1).await;
        world.want("app", world.voter.publish(2, &[("a", "bad"), ("d/b", "b")]));
        let why = world.rejected(2).await;
        assert!(why.starts_with("LW0811"), "{why}");
        assert_eq!((world.read("app/a"), world.read("seen")), ("1".into(), "1bbadb".into()));
        assert!(!world.path("app/.leaseward-stage").exists(), "what was refused is left on the disk");
        world.want("app", world.voter.publish(3, &[("a", "3"), ("d/b", "b")]));
        world.applied("app", 3).await;
        assert_eq!(world.read("app/a"), "3");
        assert_eq!(fs::metadata(world.path("app/a")).unwrap().nlink(), 1);
    }
}

#[tokio::test]
async fn a_reload_that_a_death_interrupted_is_done_by_the_next_start() {
    let mut world = World::new();
    let reload =
        format!("cat $LEASEWARD_TARGET/a >> {0}; ! grep -q bad $LEASEWARD_TARGET/a", world.path("loaded").display());
    world.keep("app", |spec| spec.reload = script(&reload));
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.applied("app", 1).await;
    let note = world.temp.path().join("state/sets/app/reload-due");
    assert!(!note.exists(), "it was done");
    world.stop().await;
    // As a death leaves it that came after the switch.
    fs::write(&note, "").unwrap();
    world.start();
    world.applied("app", 1).await;
    assert_eq!(world.read("loaded"), "11");
    assert!(!note.exists());
    world.stop().await;
    world.start();
    world.applied("app", 1).await;
    assert_eq!(world.read("loaded"), "11", "once is enough");
    world.stop().await;

    // A first version has no way back: its reload stays due, and another start or policy does not make it good.
    let mut world = World::new();
    world.keep("app", |spec| spec.reload = hook(&["false"]));
    world.want("app", world.voter.publish(1, &[("a", "1")]));
    world.rejected(1).await;
    world.keep("app", |spec| spec.scan_each_ms = 50_000);
    world.stop().await;
    world.start();
    world.rejected(1).await;
    assert!(!world.story().iter().any(|word| word == "1 applied"), "{:?}", world.story());
    world.keep("app", |spec| spec.reload = hook(&["true"]));
    world.applied("app", 1).await;
}

#[tokio::test]
async fn who_owns_the_files_is_as_true_as_what_they_say() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("LEFT OUT: only root gives files away");
        return;
    }
    for layout in [Layout::Tree, Layout::Files] {
        let mut world = World::new();
        world.keep("app", |spec| (spec.layout, spec.scan_each_ms) = (layout, 100));
        world.want("app", world.voter.publish(1, &[("a", "1"), ("d/b", "1")]));
        world.applied("app", 1).await;
        let owner =
            |world: &World, path: &str| fs::metadata(world.path(path)).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!(owner(&world, "app/a"), (0, 0));
        // The policy alone changes it, without a version, whatever is done about changes by hand.
        world.keep("app", |spec| spec.owner = Some("1:2".into()));
        let given = async {
            while [owner(&world, "app/a"), owner(&world, "app/d"), owner(&world, "app/d/b")] != [(1, 2); 3] {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(BOUND, given).await.expect("they are given away");
        assert!(!world.story().iter().any(|word| word.contains("Drifted")), "{:?}", world.story());
        // And somebody who changes it by hand is seen.
        std::os::unix::fs::chown(world.path("app/d/b"), Some(3), None).unwrap();
        drifted(&mut world, |said| has(said, "d/b owner")).await;
        world.keep("app", |spec| spec.drift = DriftRule::Repair);
        world.applied("app", 1).await;
        assert_eq!(owner(&world, "app/d/b"), (1, 2));
    }
}

#[tokio::test]
async fn a_set_that_names_no_owner_leaves_that_to_others() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("LEFT OUT: only root gives files away");
        return;
    }
    for layout in [Layout::Tree, Layout::Files] {
        let mut world = World::new();
        world.keep("app", |spec| (spec.layout, spec.scan_each_ms) = (layout, 100));
        world.want("app", world.voter.publish(1, &[("a", "1"), ("b", "1")]));
        world.applied("app", 1).await;
        std::os::unix::fs::chown(world.path("app/a"), Some(5), Some(6)).unwrap();
        fs::write(world.path("app/b"), "x").unwrap();
        let said = drifted(&mut world, |said| has(said, "b content")).await;
        assert!(!has(&said, "a owner"), "{said:?}");
        world.keep("app", |spec| spec.drift = DriftRule::Repair);
        world.applied("app", 1).await;
        assert_eq!(fs::metadata(world.path("app/a")).unwrap().uid(), 5, "it stays with whom it was given to");
    }
}

#[tokio::test]
async fn a_set_that_was_forgotten_and_made_anew_is_spoken_of_again() {
    let mut world = World::new();
    let one = world.voter.publish(1, &[("a", "1")]);
    world.want("app", one);
    world.applied("app", 1).await;
    // Nobody knows any more what was said.
    let forget = async |world: &World| {
        // While it is busy it does not look: what is forgotten and wanted again meanwhile was never forgotten.
        world.at_rest("app").await;
        world.wanted.send_modify(|wanted| drop(wanted.remove(&set("app"))));
    };
    forget(&world).await;
    world.want("other", one);
    world.applied("other", 1).await;
    world.want("app", one);
    world.applied("app", 1).await;
    // What was changed meanwhile is no part of it.
    forget(&world).await;
    world.want("other", world.voter.publish(2, &[("a", "2")]));
    world.applied("other", 2).await;
    fs::write(world.path("app/a"), "by hand").unwrap();
    world.want("app", one);
    drifted(&mut world, |said| has(said, "a content")).await;
    // The member may hear of both at once: another version of the same number.
    world.want("app", world.voter.publish(1, &[("a", "another")]));
    world.applied("app", 1).await;
    world.want("app", one);
    world.applied("app", 1).await;
    assert_eq!(world.read("app/a"), "1");
}

#[tokio::test]
async fn what_was_put_right_stays_though_its_reload_fails_and_is_loaded_once_that_works() {
    for layout in [Layout::Tree, Layout::Files] {
        let mut world = World::new();
        let broken = world.temp.path().join("broken");
        let reload = script(&format!("! test -e {} || {{ echo it is broken; exit 1; }}", broken.display()));
        world.keep("app", |spec| (spec.layout, spec.reload, spec.scan_each_ms) = (layout, reload.clone(), 100));
        world.want("app", world.voter.publish(1, &[("a", "1"), ("b", "same")]));
        world.applied("app", 1).await;
        world.want("app", world.voter.publish(2, &[("a", "2"), ("b", "same")]));
        world.applied("app", 2).await;

        fs::write(&broken, "").unwrap();
        fs::write(world.path("app/a"), "by hand").unwrap();
        world.keep("app", |spec| spec.drift = DriftRule::Repair);
        let is_said = |report: &Report| matches!(&report.state, SyncState::Rejected { version: 2, why } if why.contains("it is broken"));
        let report = world.until(is_said).await;
        assert_eq!((report.applied, world.read("app/a")), (2, "2".into()), "{layout:?}: an older version came back");
        // Also for whoever comes after a death.
        world.stop().await;
        world.start();
        let report = world.until(is_said).await;
        assert_eq!((report.applied, world.read("app/a")), (2, "2".into()), "{layout:?}: an older version came back");
        fs::remove_file(&broken).unwrap();
        world.applied("app", 2).await;

        // A version that is refused goes back to what was live, and not beyond.
        world.keep("app", |spec| spec.reload = script("! grep -q bad $LEASEWARD_TARGET/a"));
        world.want("app", world.voter.publish(3, &[("a", "bad"), ("b", "same")]));
        let report = world.until(|report| matches!(&report.state, SyncState::Rejected { version: 3, .. })).await;
        assert_eq!((report.applied, world.read("app/a")), (2, "2".into()), "{layout:?}");
    }
}
