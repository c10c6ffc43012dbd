//! What surrounds a server: the order of its steps, what their failures mean, and that a hook dies as a tree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use leaseward_node::{BootInstant, Error, Happened, HookOutcome, StartOrder, StopMode};
use leaseward_state::server::{Announce, Exit, FloatingAddress, HookStep, RestartPolicy};
use support::around::{Ground, at_steps, hook, lines, mounted, tmpfs};
use support::node::{TOKEN, log_line, next, order, pay, shell, supervise, words};
use support::{PATIENCE, Stage, alone_async, is_root, lives, wait_for};
use tokio::time::timeout;

const GRACEFUL: StopMode = StopMode::Graceful { grace: PATIENCE };

#[tokio::test]
async fn every_step_comes_in_its_place_and_a_restart_keeps_what_stands() {
    let _alone = alone_async().await;
    if !is_root() {
        println!("LEFT OUT: mounts need root");
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let (outer, inner) = (ground.at("outer"), ground.at("outer/inner"));
    let steps = stage.path().join("steps");
    let state = stage.path().join("pay-0.state");
    // Each writes its step, what is mounted and whether the server lives.
    let note = format!(
        "note() {{ echo $1 $(grep -c ' {outer}' /proc/self/mountinfo) \
         $(grep -qs . /proc/$(cat {dir}/pid || echo 0)/cmdline && echo alive || echo none) >> {steps}; }};",
        dir = stage.path().display(),
        steps = steps.display(),
    );
    let mut spec = shell(&format!(
        "{note} echo run $(grep -c ' {outer}' /proc/self/mountinfo) >> {steps}
         until [ -e {inner}/crash ]; do sleep 0.01; done
         rm {inner}/crash; exit 3",
        steps = steps.display(),
    ));
    spec.mounts = vec![tmpfs("first", &outer), tmpfs("second", &inner)];
    spec.state_file = state.to_str().map(str::to_owned);
    let all = [
        HookStep::AddressAdd,
        HookStep::PreStart,
        HookStep::PostStart,
        HookStep::PreStop,
        HookStep::PostStop,
        HookStep::AddressDel,
    ];
    at_steps(&mut spec, &all, &format!("{note} note $1"));
    let (supervisor, _, mut events) = supervise(&stage).await;
    let started = supervisor.start(order(spec)).await.unwrap();
    std::fs::write(stage.path().join("pid"), started.pid.to_string()).unwrap();
    assert_eq!(words(&mut events, "ready").await, ["0: started", "0: ready"]);
    let says = |line: &str| wait_for(line, PATIENCE, || (lines(&state) == [line]).then_some(()));
    says("RUNNING:Y:N");
    wait_for("the server", PATIENCE, || lines(&steps).iter().any(|line| line == "run 2").then_some(()));
    // What is there survives the restart: nothing is mounted anew.
    std::fs::write(format!("{inner}/kept"), "").unwrap();
    std::fs::write(format!("{inner}/crash"), "").unwrap();
    assert_eq!(words(&mut events, "ready").await, ["0: exit 3, again in 0", "1: started", "1: ready"]);
    assert!(std::fs::exists(format!("{inner}/kept")).unwrap());
    let pid = supervisor.status().await.unwrap()[0].pid.unwrap();
    std::fs::write(stage.path().join("pid"), pid.to_string()).unwrap();
    wait_for("the server", PATIENCE, || {
        (lines(&steps).iter().filter(|line| *line == "run 2").count() == 2).then_some(())
    });
    supervisor.stop(&pay(), TOKEN, GRACEFUL).await.unwrap();
    assert_eq!((mounted(&outer), mounted(&inner)), (vec![], vec![]));
    let mut seen = lines(&steps);
    // The server and `post_start` begin at the same time.
    for pair in [2, 5] {
        seen[pair..pair + 2].sort();
    }
    let expected = [
        "address_add 2 none",
        "pre_start 2 none",
        "post_start 2 alive",
        "run 2",
        "pre_start 2 none",
        "post_start 2 alive",
        "run 2",
        "pre_stop 2 alive",
        "post_stop 2 none",
        "address_del 2 none",
    ];
    let seen: Vec<_> = seen.iter().map(String::as_str).collect();
    let unsure = |line: &str| line.starts_with("post_start");
    for (seen, expected) in seen.iter().zip(expected) {
        assert!(*seen == expected || unsure(seen) && unsure(expected), "{seen:?} is not {expected:?}: {seen:?}");
    }
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    says("SHUTDOWN:Y:N");
}

#[tokio::test]
async fn a_hook_is_told_everything_in_its_contract() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let told = stage.path().join("told");
    let mut spec = shell("exec sleep 60");
    spec.directory = Some("/tmp".to_owned());
    spec.addresses = ["192.0.2.7", "2001:db8::7"]
        .map(|ip| FloatingAddress {
            ip: ip.to_owned(),
            interface: Some("eth7".to_owned()),
            announce: Announce::BeforeStart,
            tickle: false,
            network_fence: false,
        })
        .to_vec();
    let script = format!(
        "{{ env | grep -e COLOUR -e LEASEWARD -e SERVER -e INTERFACE -e DOMAIN | grep -v HOOK_RUN | sort -u
            pwd; wc -c; ps -o sid= -p $$ | tr -d ' ' | sed s/^$$'$'/leader/; }} > {}; echo heard",
        told.display()
    );
    at_steps(&mut spec, &[HookStep::AddressAdd, HookStep::AddressDel], "true");
    at_steps(&mut spec, &[HookStep::PreStart], &script);
    let (supervisor, _, _events) = supervise(&stage).await;
    supervisor.start(order(spec)).await.unwrap();
    let mut seen = lines(&told);
    let left = seen.iter().position(|line| line.starts_with("LEASEWARD_DEADLINE_MS=")).unwrap();
    let left: u64 = seen.remove(left).split_once('=').unwrap().1.parse().unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    let expected = [
        "COLOUR=blue",
        "DOMAIN_DIR=/tmp",
        "INTERFACE=eth7",
        "LEASEWARD_ADDRESSES=192.0.2.7 2001:db8::7",
        "LEASEWARD_ATTEMPT=0",
        "LEASEWARD_LEASE=server/pay-0",
        "LEASEWARD_MACHINE=m1",
        "LEASEWARD_MOUNTS=",
        "LEASEWARD_OPERATION_ID=pay-0:7:0:pre_start",
        "LEASEWARD_SERVER=pay-0",
        "LEASEWARD_STEP=pre_start",
        "LEASEWARD_TOKEN=7",
        "SERVER_IP=192.0.2.7",
        "SERVER_NAME=pay-0",
        "/tmp",
        "0",
        "leader",
    ];
    assert_eq!(seen, expected);
    log_line(&supervisor, "heard").await;
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_half_way_is_undone_and_says_why() {
    let _alone = alone_async().await;
    if !is_root() {
        println!("LEFT OUT: mounts need root");
        return;
    }
    let stage = Stage::new(None);
    let ground = Ground::new(stage.path());
    let at = ground.at("data");
    let steps = stage.path().join("steps");
    let state = stage.path().join("pay-0.state");
    let mut spec = shell(&format!("echo run >> {}; exec sleep 60", steps.display()));
    spec.mounts = vec![tmpfs("data", &at)];
    spec.state_file = state.to_str().map(str::to_owned);
    let fails = format!("echo $1 >> {}; echo this disk is not mine; exit 2", steps.display());
    at_steps(&mut spec, &[HookStep::PreStart], &fails);
    at_steps(&mut spec, &[HookStep::PostStop], &format!("echo $1 >> {}", steps.display()));
    let (supervisor, _, _events) = supervise(&stage).await;
    let error = supervisor.start(order(spec.clone())).await.unwrap_err();
    let Error::Hook { step: HookStep::PreStart, outcome: HookOutcome::WrongHere, why, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(why.contains("exit 2") && why.contains("this disk is not mine"), "{why}");
    assert_eq!((error.code(), error.is_retryable()), ("LW0360", false));
    assert_eq!((mounted(&at), lines(&steps)), (vec![], vec!["pre_start".to_owned(), "post_stop".to_owned()]));
    let failed = || (lines(&state) == ["FAILED_NOT_RESTARTABLE:N:Y"]).then_some(());
    wait_for("the state file", PATIENCE, failed);

    // Not even a mount that fails leaves one before it.
    spec.hooks.clear();
    spec.mounts.push(tmpfs("no", &ground.at("no")));
    spec.mounts[1].fs_type = "nosuchfs".to_owned();
    let error = supervisor.start(order(spec.clone())).await.unwrap_err();
    assert!(matches!(error, Error::Hook { step: HookStep::Mount, .. }), "{error:?}");
    assert_eq!(mounted(&at), Vec::<String>::new());

    // A program that does not exist is found out last, and undoes as much.
    spec.mounts.pop();
    spec.command = vec!["/nonexistent".to_owned()];
    let error = supervisor.start(order(spec)).await.unwrap_err();
    assert!(matches!(error, Error::Launch { .. }), "{error:?}");
    assert_eq!(mounted(&at), Vec::<String>::new());
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_with_all_that_it_started() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let pids = stage.path().join("pids");
    // A stubborn leader, a stubborn child, and a daemon that shed session, parent and environment.
    if !is_root() {
        println!("LEFT OUT: a daemon that sheds everything is held by a cgroup only, which needs root");
    }
    let script = format!(
        "trap '' TERM; echo $$ >> {pids}
         sh -c 'trap \"\" TERM; echo $$ >> {pids}; while :; do sleep 0.1; done' &
         ({bare} setsid sh -c 'trap \"\" TERM; echo $$ >> {pids}; while :; do sleep 0.1; done' &)
         while :; do sleep 0.1; done",
        pids = pids.display(),
        bare = if is_root() { "env -i" } else { "" },
    );
    let mut spec = shell("exec sleep 60");
    spec.hooks.insert(HookStep::PreStart, hook(&script, 400));
    let (supervisor, _, mut events) = supervise(&stage).await;
    let error = supervisor.start(order(spec.clone())).await.unwrap_err();
    let Error::Hook { outcome: HookOutcome::Transient, why, .. } = &error else { panic!("{error:?}") };
    assert!(why.contains("took too long"), "{why}");
    let all: Vec<u32> = lines(&pids).iter().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.iter().all(|pid| !lives(*pid)), "{all:?}");

    // The deadline of the lease ends it too, and one that moves gives it time.
    spec.hooks.insert(HookStep::PreStart, hook("sleep 0.6", 5_000));
    let soon = || BootInstant::now() + Duration::from_millis(300);
    let error = supervisor.start(StartOrder { deadline: soon(), ..order(spec.clone()) }).await.unwrap_err();
    assert!(matches!(error, Error::Hook { .. }), "{error:?}");
    let starting = supervisor.start(StartOrder { deadline: soon(), ..order(spec.clone()) });
    let (extender, name) = (supervisor.clone(), pay());
    let extend = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        extender.extend(&name, TOKEN, support::node::later()).await
    };
    let (started, extended) = tokio::join!(starting, extend);
    assert!(started.is_ok() && extended.is_ok(), "{started:?} {extended:?}");
    assert!(stage.ask_shim("pay-0").deadline > BootInstant::now() + Duration::from_secs(30));
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    words(&mut events, "signal 9").await;

    // A stop does not wait for a start's hook.
    spec.hooks.insert(HookStep::PreStart, hook("exec sleep 60", 60_000));
    let starting = supervisor.start(order(spec));
    let stop = async {
        let launching =
            async || supervisor.status().await.unwrap()[0].phase == leaseward_node::supervisor::Phase::Launching;
        while !launching().await {
            tokio::task::yield_now().await;
        }
        supervisor.stop(&pay(), TOKEN, GRACEFUL).await
    };
    let (started, stopped) = timeout(PATIENCE, async { tokio::join!(starting, stop) }).await.unwrap();
    assert!(matches!(started, Err(Error::Stopping { .. })) && stopped.is_ok(), "{started:?} {stopped:?}");
}

#[tokio::test]
async fn a_stop_is_not_over_before_its_hook_is_done() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (mended, done) = (stage.path().join("mended"), stage.path().join("done"));
    let mut spec = shell("exec sleep 60");
    at_steps(&mut spec, &[HookStep::PreStop], "echo cannot drain; exit 1");
    let script =
        format!("[ -e {} ] || {{ echo still locked; exit 1; }}; echo x >> {}", mended.display(), done.display());
    at_steps(&mut spec, &[HookStep::PostStop], &script);
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(spec.clone())).await.unwrap();
    let name = pay();
    let stop = supervisor.stop(&name, TOKEN, GRACEFUL);
    tokio::pin!(stop);
    assert!(timeout(Duration::from_millis(500), &mut stop).await.is_err(), "told too early");
    let expected = ["0: started", "0: ready", "0: stuck at pre_stop", "0: stuck at post_stop"];
    assert_eq!(words(&mut events, "stuck at post_stop").await, expected);
    let [status] = supervisor.status().await.unwrap().try_into().unwrap();
    assert_eq!((status.certificate, status.pid), (None, None));
    let again = supervisor.start(order(spec)).await;
    assert!(matches!(again, Err(Error::Stopping { .. })), "{again:?}");
    std::fs::write(&mended, "").unwrap();
    let certificate = timeout(PATIENCE, stop).await.unwrap().unwrap();
    assert_eq!((certificate.exit, lines(&done).len()), (Exit::Signal(15), 1));
    assert_eq!(words(&mut events, "signal 15").await, ["0: signal 15"]);
}

#[tokio::test]
async fn what_a_failed_hook_means_decides_what_follows() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let tries = stage.path().join("tries");
    let mut spec = shell("sleep 0.1; exit 1");
    spec.restart = RestartPolicy { in_place: 1, backoff_ms: vec![0], ..RestartPolicy::default() };
    // At its restart: later, then never here.
    let script = format!(
        "echo x >> {tries}; case $(wc -l < {tries}) in 1) exit 0 ;; 2) exit 75 ;; *) exit 3 ;; esac",
        tries = tries.display()
    );
    at_steps(&mut spec, &[HookStep::PreStart], &script);
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(spec)).await.unwrap();
    let expected = [
        "0: started",
        "0: ready",
        "0: exit 1, again in 0",
        "1: pre_start asks to be tried later",
        "1: exit 127, again in 1000",
        "2: pre_start cannot succeed anywhere",
        "2: exit 127",
        "2: gave up",
    ];
    assert_eq!(words(&mut events, "gave up").await, expected);

    // A `post_start` that fails ends a server that runs.
    let mut spec = shell("exec sleep 60");
    at_steps(&mut spec, &[HookStep::PostStart], "echo not registered; exit 2");
    supervisor.start(order(spec)).await.unwrap();
    let expected = ["3: started", "3: post_start cannot succeed on this machine", "3: signal 9"];
    assert_eq!(words(&mut events, "signal 9").await, expected);
    let (_, Happened::GaveUp { why, .. }) = next(&mut events).await else { panic!("not given up") };
    assert!(why.contains("post_start") && why.contains("not registered"), "{why}");
}

#[tokio::test]
async fn limits_are_enforced_or_the_server_is_not_started() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let mut spec = shell("for i in $(seq 20); do sleep 60 & done; echo forked all; exec sleep 60");
    spec.limits.processes = Some(5);
    spec.restart.in_place = 0;
    let refused = match supervisor.start(order(spec)).await {
        Ok(_) => None,
        Err(Error::Launch { why, .. }) => Some(why),
        Err(other) => panic!("{other:?}"),
    };
    if let Some(why) = refused {
        assert!(why.contains("cannot enforce resource limits") && why.contains("Delegate=yes"), "{why}");
        println!("LEFT OUT: limits in force: {why}");
        return;
    }
    let fork =
        || supervisor.logs(&pay(), 100).unwrap_or_default().iter().any(|line| line.contains("fork")).then_some(());
    wait_for("the fork that is refused", PATIENCE, fork);
    assert!(!supervisor.logs(&pay(), 100).unwrap().contains(&"forked all".to_owned()));
    // A shell that cannot fork ends.
    words(&mut events, "exit 2").await;
    let mut spec = shell("exec tail /dev/zero");
    spec.limits.memory_bytes = Some(32 << 20);
    spec.restart.in_place = 0;
    supervisor.start(order(spec)).await.unwrap();
    words(&mut events, "signal 9").await;
}
