//! People and hands at one set: who edits has it for himself, what was changed by hand is adopted once, attributes go
//! along, and all sets together stay within the cluster's bound. With real processes, the real command line, real editors.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaseward_raft::limits::PRINTED_WITHIN;
use leaseward_tests::{Lab, Plan, eventually};
use rustix::fs::XattrFlags;
use serde_json::Value;
use tokio::time::Instant;

/// What a member needs to hear of a change by hand and to put it right, with much room.
const PUT_RIGHT_WITHIN: Duration = Duration::from_secs(3);

async fn lab(machines: usize) -> Lab {
    Lab::start(Plan { machines, ..Plan::default() }).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Returns each member's phase and version.
async fn members(lab: &Lab, set: &str) -> Option<BTreeMap<String, (String, u64)>> {
    let list = lab.list_at(0, &format!("/v1/configs/{set}/members?consistency=linearizable")).await?;
    let member = |member: &Value| {
        let text = |key: &str| member[key].as_str().map(str::to_owned);
        Some((text("machine")?, (text("phase")?, member["applied"].as_u64()?)))
    };
    list.iter().map(member).collect()
}

fn all_at(version: u64, machines: usize) -> BTreeMap<String, (String, u64)> {
    (1..=machines).map(|machine| (format!("m{machine}"), ("applied".to_owned(), version))).collect()
}

fn here(lab: &Lab, machine: usize, path: &str) -> String {
    fs::read_to_string(lab.set_dir(machine, "app").join(path)).unwrap_or_default()
}

/// An editor that changes its file, says that it is open, and stays open until it is told to close or the test is over.
struct Editor {
    dir: PathBuf,
}

impl Editor {
    fn new(lab: &Lab, name: &str) -> Self {
        let dir = lab.dir().join(name);
        fs::create_dir(&dir).expect("a directory");
        let script = format!(
            "#!/bin/sh\necho 'of {name}' > \"$1\"\ntouch '{0}/open'\n\
             while [ -d '{0}' ] && [ ! -e '{0}/close' ]; do sleep 0.02; done\n",
            dir.display()
        );
        fs::write(dir.join("editor"), script).expect("written");
        fs::set_permissions(dir.join("editor"), fs::Permissions::from_mode(0o755)).expect("it may run");
        Self { dir }
    }

    /// Edits the file as this person.
    fn command(&self, lab: &Lab, person: &str) -> Command {
        let mut command = lab.command(&["config", "edit", "app", "app.conf", "-m", "by hand", "--yes"]);
        command.env_remove("VISUAL").env("EDITOR", self.dir.join("editor")).env("USER", person);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn opened(&self, lab: &Lab, person: &str) -> Child {
        let child = self.command(lab, person).spawn().expect("it starts");
        lab.until("the editor is open", async |_| Some(self.dir.join("open").exists()), true).await;
        child
    }

    fn close(&self) {
        fs::write(self.dir.join("close"), "").expect("written");
    }
}

#[tokio::test]
async fn who_edits_a_set_has_it_for_himself_until_he_ends_or_dies() {
    let lab = lab(0).await;
    lab.works(&["config", "put", "app", "app.conf", "--text", "first\n"]);
    let first = Editor::new(&lab, "first");
    let child = first.opened(&lab, "ann").await;

    // Were it opened, it would end at once.
    let second = Editor::new(&lab, "second");
    second.close();
    let refused = second.command(&lab, "bob").output().expect("it runs");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("LW0202"), "{why}");
    assert!(why.contains("lease/config-edit/app is held by ann@"), "it names who edits: {why}");
    assert!(why.contains("leaseward lease get config-edit/app"), "{why}");
    assert!(!second.dir.join("open").exists(), "no editor was opened for nothing");

    first.close();
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(lab.works(&["config", "get", "app", "app.conf"]), "of first\n");

    // He is killed: nobody renews, and after its time to live the set is free again. What he wrote is nowhere.
    let third = Editor::new(&lab, "third");
    let mut killed = third.opened(&lab, "cid").await;
    killed.kill().expect("it was alive");
    killed.wait().expect("it is dead");
    let refused = second.command(&lab, "bob").output().expect("it runs");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("is held by cid@"), "not before its time is over: {why}");
    let edited = async |lab: &Lab| Some(second.command(lab, "bob").output().expect("it runs").status.success());
    lab.until("the set is free again", edited, true).await;
    assert_eq!(lab.works(&["config", "get", "app", "app.conf"]), "of second\n");
    let set = lab.get_at(0, "/v1/configs/app?consistency=linearizable").await.expect("it is there");
    assert_eq!(set["version"], 3, "one version for each who ended: {set}");
    third.close();
}

#[tokio::test]
async fn what_was_changed_by_hand_is_adopted_once_though_the_leader_dies() {
    let mut lab = lab(2).await;
    lab.works(&["config", "policy", "app", "drift=adopt", "scan_each=200ms"]);
    lab.works(&["config", "put", "app", "app.conf", "--text", "first"]);
    let mut version = 1;
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at(1, 2)).await;
    for round in 0..4 {
        let text = format!("by hand {round}");
        let leader = lab.leader().await;
        fs::write(lab.set_dir(round % 2, "app").join("app.conf"), &text).expect("written");
        if round >= 2 {
            // Not at once: the change is known to all, and the leader at work on it, or just done.
            let known = async |lab: &Lab| {
                let set = lab.get_at((leader + 1) % 3, "/v1/configs/app?consistency=stale").await?;
                let list = lab.list_at((leader + 1) % 3, "/v1/configs/app/members?consistency=stale").await?;
                let drifted = list.iter().any(|member| member["phase"] == "drifted");
                (drifted || set["version"].as_u64()? > version).then_some(())
            };
            lab.until_some("it is known", known).await;
        }
        lab.kill_voter(leader);
        version += 1;
        let all = async |lab: &Lab| {
            let other = (leader + 1) % 3;
            let list = lab.list_at(other, "/v1/configs/app/members?consistency=linearizable").await?;
            let at = |member: &Value| member["phase"] == "applied" && member["applied"] == version;
            let same = (0..2).all(|machine| here(lab, machine, "app.conf") == text);
            (same && list.iter().all(at)).then_some(())
        };
        lab.until_some("it is everybody's", all).await;
        lab.start_voter(leader);
        lab.until("all voters are back", async |lab| members(lab, "app").await, all_at(version, 2)).await;
    }
    // The next number shows that nothing came in between.
    lab.works(&["config", "put", "app", "app.conf", "--text", "last"]);
    version += 1;
    lab.until("everybody has the last", async |lab| members(lab, "app").await, all_at(version, 2)).await;
    let versions = lab.list_at(0, "/v1/configs/app/versions?consistency=linearizable").await.expect("they are listed");
    let mut versions: Vec<(u64, &str)> = versions
        .iter()
        .map(|version| (version["version"].as_u64().expect("a number"), version["message"].as_str().expect("text")))
        .collect();
    versions.sort_unstable();
    let numbers: Vec<u64> = versions.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6], "{versions:?}");
    assert!(versions[1..5].iter().all(|(_, message)| message.starts_with("changed by hand on m")), "{versions:?}");
}

#[tokio::test]
async fn what_cannot_be_adopted_keeps_nobody_elses_change_away() {
    let lab = lab(2).await;
    lab.works(&["config", "policy", "app", "drift=adopt", "scan_each=200ms"]);
    lab.works(&["config", "put", "app", "app.conf", "--text", "first"]);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at(1, 2)).await;
    // No version can have such a name, and m1 comes first.
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
    fs::write(lab.set_dir(0, "app").join(odd), "odd").expect("written");
    let phase = async |lab: &Lab| Some(members(lab, "app").await?["m1"].0.clone());
    lab.until("it is seen", phase, "drifted".into()).await;
    for (round, text) in [(2, "second"), (3, "third")] {
        fs::write(lab.set_dir(1, "app").join("app.conf"), text).expect("written");
        lab.until("it is everybody's", async |lab| members(lab, "app").await, all_at(round, 2)).await;
        assert_eq!((here(&lab, 0, "app.conf"), here(&lab, 1, "app.conf")), (text.into(), text.into()));
        fs::write(lab.set_dir(0, "app").join(odd), "odd").expect("written");
        lab.until("it is seen again", phase, "drifted".into()).await;
    }
}

#[tokio::test]
async fn a_member_that_cannot_give_its_files_says_why_whichever_node_is_asked() {
    let lab = lab(1).await;
    lab.works(&["config", "put", "app", "app.conf", "--text", "first"]);
    lab.until("it has the first", async |lab| members(lab, "app").await, all_at(1, 1)).await;
    std::os::unix::fs::symlink("/etc", lab.set_dir(0, "app").join("out")).expect("linked");
    let begun = Instant::now();
    let (_, _, why) = lab.run(&["config", "publish", "app", "--from-member", "m1"]);
    assert!(why.contains("LW0804") && why.contains("app/out"), "{why}");
    assert!(begun.elapsed() < PRINTED_WITHIN, "it was heard at once, and not when everybody's time was over");
}

#[tokio::test]
async fn a_set_or_machine_that_was_forgotten_and_is_there_again_is_spoken_of_again() {
    let lab = lab(2).await;
    lab.works(&["config", "put", "app", "app.conf", "--text", "first"]);
    lab.until("everybody has it", async |lab| members(lab, "app").await, all_at(1, 2)).await;
    lab.works(&["config", "rm", "app"]);
    lab.works(&["config", "put", "app", "app.conf", "--text", "another first"]);
    lab.until("everybody has the other one", async |lab| members(lab, "app").await, all_at(1, 2)).await;
    assert_eq!(here(&lab, 0, "app.conf"), "another first");
    lab.works(&["wait", "config/app=synced", "--timeout", "30s"]);

    // A machine stands still until it is lost and forgotten, and goes on: it is a new one, with what it had.
    lab.signal_agent(1, rustix::process::Signal::STOP);
    let gone = async |lab: &Lab| Some(lab.run(&["machine", "rm", "m2"]).0 == Some(0));
    lab.until("it is forgotten", gone, true).await;
    lab.until("nobody knows it", async |lab| members(lab, "app").await, all_at(1, 1)).await;
    lab.signal_agent(1, rustix::process::Signal::CONT);
    lab.until("it is there again", async |lab| members(lab, "app").await, all_at(1, 2)).await;
}

#[tokio::test]
async fn the_files_of_a_set_that_was_removed_are_put_right_by_nobody() {
    let lab = lab(1).await;
    lab.works(&["config", "policy", "app", "drift=repair"]);
    lab.works(&["config", "put", "app", "app.conf", "--text", "published"]);
    lab.until("it has it", async |lab| members(lab, "app").await, all_at(1, 1)).await;
    let file = lab.set_dir(0, "app").join("app.conf");
    fs::write(&file, "by hand").expect("written");
    lab.until("it is put right", async |lab| Some(here(lab, 0, "app.conf")), "published".to_owned()).await;
    lab.works(&["config", "rm", "app"]);
    // Nothing else changes, by which it could hear of it.
    let mut round = 0;
    let is_left_alone = async || {
        round += 1;
        let mine = format!("by hand {round}");
        fs::write(&file, &mine).expect("written");
        let put_right = Instant::now() + PUT_RIGHT_WITHIN;
        while Instant::now() < put_right && here(&lab, 0, "app.conf") == mine {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        here(&lab, 0, "app.conf") == mine
    };
    eventually("its files are nobody's", is_left_alone).await;
}

#[tokio::test]
async fn a_link_that_leads_out_by_way_of_another_is_refused_when_it_is_published() {
    let lab = lab(0).await;
    let from = lab.dir().join("from");
    fs::create_dir_all(from.join("sub")).expect("directories");
    std::os::unix::fs::symlink(".", from.join("sub/d")).expect("a link");
    std::os::unix::fs::symlink("d/../../outside", from.join("sub/l")).expect("a link");
    let (code, _, why) = lab.run(&["config", "publish", "app", "--from", text(&from)]);
    assert!(code != Some(0) && why.contains("LW0804") && why.contains("sub/l"), "{why}");
    assert!(!lab.works(&["config", "ls", "-o", "json"]).contains("\"newest\""), "it was published");
}

fn xattr(path: &Path) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(64);
    rustix::fs::getxattr(path, "user.origin", rustix::buffer::spare_capacity(&mut value)).ok()?;
    Some(value)
}

#[tokio::test]
async fn extended_attributes_go_to_every_member_and_are_drift_when_changed() {
    let lab = lab(2).await;
    let from = lab.dir().join("from");
    fs::create_dir(&from).expect("a directory");
    fs::write(from.join("app.conf"), "same").expect("written");
    let set = |path: &Path, value: &[u8]| rustix::fs::setxattr(path, "user.origin", value, XattrFlags::empty());
    if let Err(error) = set(&from.join("app.conf"), b"one") {
        eprintln!("left out: {} keeps no extended attributes: {error}", from.display());
        return;
    }
    lab.works(&["config", "policy", "app", "xattrs=true", "drift=repair", "scan_each=200ms"]);
    lab.works(&["config", "publish", "app", "--from", text(&from)]);
    lab.until("everybody has the first", async |lab| members(lab, "app").await, all_at(1, 2)).await;
    let on = |machine: usize| lab.set_dir(machine, "app").join("app.conf");
    assert_eq!((xattr(&on(0)), xattr(&on(1))), (Some(b"one".to_vec()), Some(b"one".to_vec())));

    // A changed attribute alone is a version.
    set(&from.join("app.conf"), b"two").expect("set");
    lab.works(&["config", "publish", "app", "--from", text(&from)]);
    lab.until("everybody has the second", async |lab| members(lab, "app").await, all_at(2, 2)).await;
    assert_eq!((xattr(&on(0)), xattr(&on(1))), (Some(b"two".to_vec()), Some(b"two".to_vec())));
    let (code, diff, _) = lab.run(&["config", "diff", "app", "1", "2"]);
    assert!(code == Some(1) && diff.contains("app.conf"), "{code:?} {diff}");

    set(&on(0), b"by hand").expect("set");
    lab.until("it is put right", async |_| Some(xattr(&on(0))), Some(b"two".to_vec())).await;
    lab.works(&["config", "policy", "app", "drift=report"]);
    set(&on(0), b"by hand").expect("set");
    let shown = async |lab: &Lab| {
        let list = lab.list_at(0, "/v1/configs/app/members?consistency=linearizable").await?;
        let drifted = list.iter().find(|member| member["phase"] == "drifted")?.to_string();
        // The machine may not have heard of the policy yet, and have put this one right.
        // Whose file it is and when it changed stand there, too.
        ["app.conf (xattr, of user ", ") at 20"].iter().all(|part| drifted.contains(part)).then_some(())
    };
    let again = async |lab: &Lab| {
        if xattr(&on(0)).as_deref() == Some(b"two") {
            set(&on(0), b"by hand").expect("set");
        }
        shown(lab).await
    };
    lab.until_some("it is shown as drift", again).await;
}

#[tokio::test]
async fn who_publishes_beyond_what_the_cluster_keeps_is_told_and_nothing_is_published() {
    let lab = lab(0).await;
    lab.works(&["policy", "set", "config_bytes_max=20"]);
    lab.works(&["config", "put", "app", "a", "--text", "0123456789"]);
    lab.works(&["config", "put", "other", "a", "--text", "0123456789"]);
    let from = lab.dir().join("from");
    fs::create_dir(&from).expect("a directory");
    fs::write(from.join("a"), "9876543210").expect("written");
    for dry in [&["--dry-run"][..], &[]] {
        let (code, _, why) = lab.run(&[&["config", "publish", "app", "--from", text(&from)], dry].concat());
        assert!(code != Some(0) && why.contains("LW0112") && why.contains("would have 30 bytes"), "{dry:?}: {why}");
    }
    lab.works(&["config", "rm", "other"]);
    lab.works(&["config", "publish", "app", "--from", text(&from), "--dry-run"]);
    lab.works(&["config", "publish", "app", "--from", text(&from)]);
    assert_eq!(lab.works(&["config", "get", "app", "a"]), "9876543210");
}

#[tokio::test]
async fn several_sets_are_published_together_or_not_at_all() {
    let lab = lab(1).await;
    let [web, db] = ["web", "db"].map(|name| lab.dir().join(name));
    let put = |limit: u32| {
        for dir in [&web, &db] {
            fs::create_dir_all(dir).expect("a directory");
            fs::write(dir.join("limit"), limit.to_string()).expect("written");
        }
    };
    let version = async |set: &str| {
        let found = lab.get_at(0, &format!("/v1/configs/{set}?consistency=linearizable")).await;
        found.and_then(|found| found["version"].as_u64())
    };
    put(1);
    lab.works(&["config", "publish", "web", "--from", text(&web), "--also", &format!("db@0={}", text(&db))]);
    lab.works(&["config", "put", "db", "other", "--text", "somebody was faster"]);
    put(2);
    let both = |version: u64| format!("db@{version}={}", text(&db));
    let (code, _, why) = lab.run(&["config", "publish", "web", "--from", text(&web), "--also", &both(1)]);
    assert!(code == Some(5) && why.contains("LW0412"), "{code:?} {why}");
    assert_eq!(version("web").await, Some(1), "half of it was published");
    lab.works(&["config", "publish", "web", "--from", text(&web), "--also", &both(2), "--if-version", "1"]);
    let [web, db] = ["web", "db"].map(|set| format!("/v1/configs/{set}/versions?consistency=linearizable"));
    let newest = async |path: &str| {
        let versions = lab.list_at(0, path).await.expect("they are listed");
        let newest = versions.into_iter().max_by_key(|version| version["version"].as_u64()).expect("there is one");
        (newest["version"].as_u64().expect("a number"), newest["revision"].clone())
    };
    let (web, db) = (newest(&web).await, newest(&db).await);
    assert_eq!((web.0, db.0), (2, 3));
    assert_eq!(web.1, db.1, "one entry");
}

#[tokio::test]
async fn extended_attributes_survive_copies_and_tar_files_and_are_verified_there() {
    let lab = lab(1).await;
    let [from, pulled, again] = ["from", "pulled", "again"].map(|name| lab.dir().join(name));
    fs::create_dir(&from).expect("a directory");
    let value = b"two\nlines \xff and a \0";
    for (path, mode) in [("app.conf", 0o644), ("locked.conf", 0o444)] {
        fs::write(from.join(path), path).expect("written");
        let set = rustix::fs::setxattr(from.join(path), "user.origin", value, XattrFlags::empty());
        if let Err(error) = set {
            eprintln!("left out: {} keeps no extended attributes: {error}", from.display());
            return;
        }
        fs::set_permissions(from.join(path), fs::Permissions::from_mode(mode)).expect("permitted");
    }
    lab.works(&["config", "policy", "app", "xattrs=true"]);
    lab.works(&["config", "publish", "app", "--from", text(&from)]);
    let tar = lab.dir().join("app.tar");
    lab.works(&["config", "pull", "app", "--to", text(&pulled)]);
    lab.works(&["config", "pull", "app", "--tar", text(&tar)]);
    for path in ["app.conf", "locked.conf"] {
        assert_eq!(xattr(&pulled.join(path)).as_deref(), Some(value.as_slice()), "{path}");
    }
    // A tar file makes the same version again.
    lab.works(&["config", "publish", "app", "--tar", text(&tar)]);
    assert_eq!(lab.run(&["config", "diff", "app", "1", "2"]).0, Some(0), "nothing is lost on the way");
    lab.works(&["config", "pull", "app", "--to", text(&again)]);
    assert_eq!(xattr(&again.join("locked.conf")).as_deref(), Some(value.as_slice()));

    // And so does GNU tar, of what it is given and for what it gives.
    let unpacked = lab.dir().join("unpacked");
    fs::create_dir(&unpacked).expect("a directory");
    let gnu = |words: &[&str], dir: &Path| {
        std::process::Command::new("tar")
            .args(["--xattrs", "--xattrs-include=user.*", "-C", text(dir)])
            .args(words)
            .status()
    };
    match gnu(&["-xf", text(&tar)], &unpacked) {
        Ok(status) if status.success() => {
            assert_eq!(xattr(&unpacked.join("app.conf")).as_deref(), Some(value.as_slice()));
            let theirs = lab.dir().join("theirs.tar");
            assert!(
                gnu(&["--format=posix", "-cf", text(&theirs), "."], &unpacked).is_ok_and(|status| status.success())
            );
            lab.works(&["config", "publish", "app", "--tar", text(&theirs)]);
            assert_eq!(lab.run(&["config", "diff", "app", "1", "3"]).0, Some(0), "GNU tar keeps them too");
        }
        other => eprintln!("left out: GNU tar does not set them here, or for this user: {other:?}"),
    }

    let verified = |dir: &Path| lab.run(&["config", "verify", "app", "--dir", text(dir), "--version", "1"]);
    assert_eq!(verified(&pulled).0, Some(0));
    rustix::fs::setxattr(pulled.join("app.conf"), "user.origin", b"by hand", XattrFlags::empty()).expect("set");
    let (code, said, _) = verified(&pulled);
    assert!(
        code == Some(1) && said.contains("xattr") && said.contains("app.conf") && !said.contains("locked"),
        "{said}"
    );

    // A set that keeps none has none, whatever the tar file says.
    lab.works(&["config", "policy", "app", "xattrs=false"]);
    lab.works(&["config", "publish", "app", "--tar", text(&tar)]);
    let bare = lab.dir().join("bare");
    lab.works(&["config", "pull", "app", "--to", text(&bare)]);
    assert_eq!(xattr(&bare.join("app.conf")), None);
}
