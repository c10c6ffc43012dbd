//! Mounts that follow a server: proven gone before its end is told, whoever died meanwhile.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaseward_node::{BootInstant, Error, Happened, HookOutcome, NodeEvent, StartOrder, StopMode};
use leaseward_state::name::ServerName;
use leaseward_state::server::{Exit, HookStep, Mount, ServerSpec};
use rustix::process::Signal;
use support::around::{Ground, at_steps, hook, lines, mounted, run, tmpfs};
use support::node::{TOKEN, next, order, pay, shell, supervise, words};
use support::{PATIENCE, Stage, alone_async, is_root, lives, open, signal, wait_for, wait_for_end};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// A process that stands in a directory; gone when dropped.
struct Squatter(Child);

impl Squatter {
    fn at(dir: &str) -> Self {
        let squatter = Command::new("sleep").arg("60").current_dir(dir).stdin(Stdio::null()).spawn().unwrap();
        Self(squatter)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A disk with a file system, behind a loop device; detached when dropped.
struct Loop(String);

impl Loop {
    fn new(stage: &Stage) -> Option<Self> {
        let image = stage.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", image]);
        let attached = Command::new("losetup").args(["-f", "--show", image]).output();
        let Some(attached) = attached.ok().filter(|attached| attached.status.success()) else {
            println!("LEFT OUT: this machine has no loop devices");
            return None;
        };
        Some(Self(String::from_utf8(attached.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

fn needs_root() -> bool {
    if !is_root() {
        println!("LEFT OUT: mounts need root");
    }
    !is_root()
}

fn sleeper(at: &str) -> ServerSpec {
    ServerSpec { mounts: vec![tmpfs("data", at)], ..shell("exec sleep 60") }
}

async fn exited(events: &mut Receiver<NodeEvent>) -> Exit {
    loop {
        if let (_, Happened::Exited { exit, .. }) = next(events).await {
            return exit;
        }
    }
}

#[tokio::test]
async fn a_busy_mount_keeps_the_stop_waiting_and_its_holder_is_named() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let at = ground.at("data");
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(sleeper(&at))).await.unwrap();
    words(&mut events, "ready").await;
    let squatter = Squatter::at(&at);
    let name = pay();
    let stop = supervisor.stop(&name, TOKEN, StopMode::Force);
    tokio::pin!(stop);
    assert!(timeout(Duration::from_millis(700), &mut stop).await.is_err(), "told while it was mounted");
    let (_, Happened::Stuck { step: HookStep::Unmount, why }) = next(&mut events).await else { panic!("not stuck") };
    assert!(why.contains(&format!("{} (sleep)", squatter.0.id())) && why.contains(&at), "{why}");
    let [status] = supervisor.status().await.unwrap().try_into().unwrap();
    assert!(status.certificate.is_none() && mounted(&at).len() == 1, "{status:?}");
    drop(squatter);
    timeout(PATIENCE, stop).await.unwrap().unwrap();
    assert_eq!(mounted(&at), Vec::<String>::new());
    assert_eq!(exited(&mut events).await, Exit::Signal(9));
}

#[tokio::test]
async fn the_deadline_leads_to_the_same_way_down() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let at = ground.at("data");
    let mut spec = sleeper(&at);
    let steps = stage.path().join("steps");
    at_steps(&mut spec, &[HookStep::PreStop, HookStep::PostStop], &format!("echo $1 >> {}", steps.display()));
    let (supervisor, _, mut events) = supervise(&stage).await;
    let deadline = BootInstant::now() + Duration::from_millis(500);
    supervisor.start(StartOrder { deadline, ..order(spec) }).await.unwrap();
    words(&mut events, "ready").await;
    // The kernel ended its shim with it.
    assert_eq!(exited(&mut events).await, Exit::Unseen);
    assert_eq!((mounted(&at), lines(&steps)), (vec![], vec!["post_stop".to_owned()]));
    assert_eq!(words(&mut events, "deadline passed").await.len(), 1);
}

#[tokio::test]
async fn a_disk_goes_with_its_server_although_later_servers_copied_its_mount() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let (at, image) = (ground.at("made/data"), stage.path().join("disk"));
    let image = image.to_str().unwrap();
    std::fs::File::create(image).unwrap().set_len(4 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image]);
    if !Command::new("losetup").args(["-f"]).output().is_ok_and(|found| found.status.success()) {
        println!("LEFT OUT: this machine has no loop devices");
        return;
    }
    let disk = Mount { device: image.into(), at: at.clone(), fs_type: "ext4".into(), options: vec!["loop".into()] };
    let script = |script: &str| ServerSpec { mounts: vec![disk.clone()], ..shell(script) };
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(script(&format!("echo kept > {at}/file; echo up; exec sleep 60")))).await.unwrap();
    words(&mut events, "ready").await;
    wait_for("its file", PATIENCE, || (lines(format!("{at}/file").as_ref()) == ["kept"]).then_some(()));
    // Its mount namespace is a copy that is made now.
    let other = ServerName::new("other").unwrap();
    supervisor.start(StartOrder { server: other.clone(), ..order(shell("exec sleep 60")) }).await.unwrap();
    timeout(PATIENCE, supervisor.stop(&pay(), TOKEN, StopMode::Force)).await.unwrap().unwrap();
    let table = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let status = supervisor.status().await.unwrap();
    let pid = status.iter().find(|status| status.server == other).unwrap().pid.unwrap();
    assert!(lives(pid) && !table(pid).contains(&at) && mounted(&at).is_empty(), "{}", table(pid));
    wait_for("its loop device", PATIENCE, || {
        let attached = run("losetup", &["-j", image]);
        attached.is_empty().then_some(())
    });

    // What is there already from the same disk is taken as it is; anything else there is left alone.
    run("mount", &["-o", "loop", image, &at]);
    let read = format!("[ $(cat {at}/file) = kept ] || exit 9; exec sleep 60");
    supervisor.start(order(script(&read))).await.unwrap();
    assert_eq!(mounted(&at).len(), 1);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    run("mount", &["-t", "tmpfs", "foreign", &at]);
    let error = supervisor.start(order(script(&read))).await.unwrap_err();
    let Error::Hook { step: HookStep::Mount, outcome: HookOutcome::WrongHere, why, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(why.contains("foreign is mounted there"), "{why}");
    assert_eq!(mounted(&at).len(), 1);
    supervisor.stop(&other, TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn a_mount_whose_device_lost_its_name_is_unmounted_all_the_same() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    std::fs::create_dir(stage.path().join("ground/origin")).unwrap();
    let (at, origin, moved) = (ground.at("data"), ground.at("origin"), ground.at("moved"));
    let (supervisor, _, mut events) = supervise(&stage).await;
    let mut story = async |device: &str, options: &[&str], lose: &dyn Fn()| {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mount = Mount { device: device.to_owned(), at: at.clone(), fs_type: String::new(), options };
        let spec = ServerSpec { mounts: vec![mount], ..shell("exec sleep 60") };
        supervisor.start(order(spec)).await.unwrap();
        assert_eq!(mounted(&at).len(), 1);
        lose();
        timeout(PATIENCE, supervisor.stop(&pay(), TOKEN, StopMode::Force)).await.unwrap().unwrap();
        assert_eq!((mounted(&at), exited(&mut events).await), (vec![], Exit::Signal(9)), "{device}");
    };
    story(&origin, &["bind"], &|| std::fs::rename(&origin, &moved).unwrap()).await;

    let Some(disk) = Loop::new(&stage) else { return };
    let link = stage.path().join("by-id");
    let device = link.to_str().unwrap();
    std::os::unix::fs::symlink(&disk.0, &link).unwrap();
    story(device, &[], &|| std::fs::remove_file(&link).unwrap()).await;
    std::os::unix::fs::symlink(&disk.0, &link).unwrap();
    story(device, &[], &|| {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_mount_that_was_moved_with_its_directory_is_unmounted_where_it_stands() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let (above, at, moved) = (ground.at("above"), ground.at("above/data"), ground.at("moved"));
    let now_at = format!("{moved}/data");
    let (supervisor, _, mut events) = supervise(&stage).await;
    let name = pay();
    for foreign in [false, true] {
        supervisor.start(order(sleeper(&at))).await.unwrap();
        words(&mut events, "ready").await;
        std::fs::rename(&above, &moved).unwrap();
        if foreign {
            std::fs::create_dir_all(&at).unwrap();
            run("mount", &["-t", "tmpfs", "foreign", &at]);
        }
        assert_eq!(mounted(&now_at).len(), 1);
        let squatter = Squatter::at(&now_at);
        let stop = supervisor.stop(&name, TOKEN, StopMode::Force);
        tokio::pin!(stop);
        assert!(timeout(Duration::from_millis(700), &mut stop).await.is_err(), "told while it was mounted");
        let (_, Happened::Stuck { step: HookStep::Unmount, why }) = next(&mut events).await else {
            panic!("not stuck")
        };
        assert!(why.contains(&now_at), "{why}");
        drop(squatter);
        timeout(PATIENCE, stop).await.unwrap().unwrap();
        assert_eq!((mounted(&now_at), mounted(&at).len()), (vec![], usize::from(foreign)));
        exited(&mut events).await;
        std::fs::remove_dir_all(&moved).unwrap();
    }
}

#[tokio::test]
async fn what_may_be_a_mount_that_nobody_noted_keeps_the_stop_waiting() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let (at, origin, moved) = (ground.at("data"), ground.at("origin"), ground.at("moved"));
    let mount =
        Mount { device: origin.clone(), at: at.clone(), fs_type: String::new(), options: vec!["bind".to_owned()] };
    let (supervisor, _, mut events) = supervise(&stage).await;
    let record = stage.path().join("run/pay-0.around");
    // As an agent of an earlier release left it; and one that died while the mount was made.
    let old = |record: &mut serde_json::Value| drop(record.as_object_mut().unwrap().remove("mounts").unwrap());
    let died = |record: &mut serde_json::Value| record["mounts"][0]["seen"] = serde_json::Value::Null;
    for forget in [&old as &dyn Fn(&mut serde_json::Value), &died] {
        std::fs::create_dir(&origin).unwrap();
        supervisor.start(order(ServerSpec { mounts: vec![mount.clone()], ..shell("exec sleep 60") })).await.unwrap();
        words(&mut events, "ready").await;
        let mut noted = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        forget(&mut noted);
        std::fs::write(&record, serde_json::to_vec(&noted).unwrap()).unwrap();
        std::fs::rename(&origin, &moved).unwrap();
        let name = pay();
        let stop = supervisor.stop(&name, TOKEN, StopMode::Force);
        tokio::pin!(stop);
        assert!(timeout(Duration::from_millis(400), &mut stop).await.is_err(), "told while it was mounted");
        let (_, Happened::Stuck { step: HookStep::Unmount, why }) = next(&mut events).await else {
            panic!("not stuck")
        };
        assert!(why.contains(&format!("may be {origin}")) && mounted(&at).len() == 1, "{why}");
        run("umount", &[&at]);
        timeout(PATIENCE, stop).await.unwrap().unwrap();
        exited(&mut events).await;
        std::fs::remove_dir(&moved).unwrap();
    }
}

#[tokio::test]
async fn hooks_that_mount_are_not_believed_but_looked_after() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let (at, lazy) = (ground.at("data"), stage.path().join("lazy"));
    let mut spec = sleeper(&at);
    // From inside the mount it could not be unmounted.
    spec.directory = Some(at.clone());
    at_steps(&mut spec, &[HookStep::Mount], "mkdir $LEASEWARD_MOUNTS; mount -t tmpfs mine $LEASEWARD_MOUNTS");
    std::fs::write(&lazy, "").unwrap();
    let unmount = format!("[ -e {} ] || umount $LEASEWARD_MOUNTS", lazy.display());
    at_steps(&mut spec, &[HookStep::Unmount], &unmount);
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(spec)).await.unwrap();
    assert_eq!(mounted(&at).len(), 1);
    let name = pay();
    let stop = supervisor.stop(&name, TOKEN, StopMode::Force);
    tokio::pin!(stop);
    assert!(timeout(Duration::from_millis(400), &mut stop).await.is_err(), "the hook was believed");
    assert_eq!(words(&mut events, "stuck at unmount").await.len(), 3);
    std::fs::remove_file(&lazy).unwrap();
    timeout(PATIENCE, stop).await.unwrap().unwrap();
    assert_eq!(mounted(&at), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_killed_at_any_time_leaves_its_successor_the_way_down() {
    let _alone = alone_async().await;
    if needs_root() {
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let at = ground.at("data");
    let (steps, pids) = (stage.path().join("steps"), stage.path().join("pids"));
    let mut spec = sleeper(&at);
    at_steps(&mut spec, &[HookStep::PostStart, HookStep::PostStop], &format!("echo $1 >> {}", steps.display()));
    let play = |spec: &ServerSpec| {
        std::fs::write(stage.path().join("spec.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        stage.play(&["serve", stage.path().to_str().unwrap()])
    };
    let count = |step: &str| lines(&steps).iter().filter(|line| *line == step).count();

    // While the server runs: it is adopted with what stands around it, and greeted no second time.
    let mut agent = play(&spec);
    agent.wait_until_ready();
    wait_for("post_start", PATIENCE, || (count("post_start") == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(50));
    agent.kill();
    let (supervisor, adopted, mut events) = supervise(&stage).await;
    assert!(adopted.len() == 1 && mounted(&at).len() == 1);
    words(&mut events, "ready").await;
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    assert_eq!((mounted(&at), count("post_start"), count("post_stop")), (vec![], 1, 1));
    drop(supervisor);
    // Until it has let go of its directory.
    while events.recv().await.is_some() {}

    // Nobody saw the end of the server: it is told after the way down, and not before.
    let mut agent = play(&spec);
    agent.wait_until_ready();
    let shim = stage.ask_shim("pay-0");
    let init = open(shim.init);
    agent.kill();
    signal(shim.shim, Signal::KILL);
    wait_for_end(&init, PATIENCE).expect("its end");
    let squatter = Squatter::at(&at);
    let (supervisor, adopted, mut events) = supervise(&stage).await;
    assert!(adopted.is_empty());
    assert_eq!(words(&mut events, "stuck at unmount").await, ["1: stuck at unmount"]);
    drop(squatter);
    assert_eq!(exited(&mut events).await, Exit::Unseen);
    assert_eq!((mounted(&at), count("post_stop")), (vec![], 2));
    drop(supervisor);
    // Until it has let go of its directory.
    while events.recv().await.is_some() {}

    // In the middle of a start: the hook that still runs is killed, and the mount goes.
    let hang = format!("echo $$ > {pids}.new; mv {pids}.new {pids}; exec sleep 60", pids = pids.display());
    for (step, script, post_stops) in [
        (HookStep::PreStart, hang.clone(), 3),
        (HookStep::Mount, format!("mount -t tmpfs mine $LEASEWARD_MOUNTS; {hang}"), 3),
    ] {
        let _ = std::fs::remove_file(&pids);
        spec.hooks.insert(step, hook(&script, 60_000));
        let mut agent = play(&spec);
        let pid = wait_for("the hook", PATIENCE, || lines(&pids).first().map(|pid| pid.parse().unwrap()));
        wait_for("its record", PATIENCE, || stage.path().join("run/pay-0.hook").exists().then_some(()));
        agent.kill();
        assert!(lives(pid) && mounted(&at).len() == 1);
        let (supervisor, adopted, mut events) = supervise(&stage).await;
        assert!(adopted.is_empty());
        assert_eq!(exited(&mut events).await, Exit::Unseen);
        assert!(!lives(pid) && mounted(&at).is_empty() && count("post_stop") == post_stops, "{step:?}");
        drop(supervisor);
        while events.recv().await.is_some() {}
    }
    let left: Vec<_> = std::fs::read_dir(stage.path().join("run")).unwrap().flatten().map(|f| f.file_name()).collect();
    assert!(!left.iter().any(|name| ["pay-0.around", "pay-0.hook"].contains(&name.to_str().unwrap())), "{left:?}");
}
