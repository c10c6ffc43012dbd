//! A supervisor and real servers: start, stop, adopt, refuse.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::time::Duration;

use leaseward_node::limits::SPARE_SHIMS;
use leaseward_node::supervisor::Started;
use leaseward_node::{BootInstant, Error, Happened, StartOrder, StopMode, Supervisor, boot_id};
use leaseward_state::name::ServerName;
use leaseward_state::server::Exit;
use leaseward_state::token::FencingToken;
use rustix::process::Signal;
use support::node::{TOKEN, config, later, log_line, order, pay, shell, spec, supervise, words};
use support::{NOBODY, PATIENCE, Stage, alone, alone_async, is_root, lives, open, signal, wait_for, wait_for_end};
use tokio::time::timeout;

#[tokio::test]
async fn a_stopped_server_leaves_a_certificate_and_no_process() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, adopted, mut events) = supervise(&stage).await;
    assert!(adopted.is_empty());
    let stamps = stage.path().join("stamps-0");
    let stubborn = spec(&[stage.lab().to_str().unwrap(), "attack", "victim", stamps.to_str().unwrap()]);
    let started = supervisor.start(order(stubborn.clone())).await.unwrap();
    assert_eq!(words(&mut events, "ready").await, ["0: started", "0: ready"]);
    stage.stamps_of_all(0);

    // The same order again is no error and starts nothing.
    let again = supervisor.start(order(stubborn)).await.unwrap();
    assert_eq!(again, Started { already: true, ..started });

    let status = stage.ask_shim("pay-0");
    assert_eq!(status.server, started.pid);
    let before = BootInstant::now();
    let stop = StopMode::Graceful { grace: Duration::from_millis(200) };
    let certificate = timeout(PATIENCE, supervisor.stop(&pay(), TOKEN, stop)).await.unwrap().unwrap();
    assert_eq!(stage.survivors(0), 0);
    assert!(!lives(status.init) && !lives(started.pid));
    assert_eq!((certificate.token, certificate.exit), (TOKEN, Exit::Signal(9)));
    assert_eq!(certificate.boot_id, boot_id().unwrap());
    assert!(certificate.proven_at_boottime_ns > (before + Duration::from_millis(200)).0);
    assert!(certificate.proven_at_boottime_ns < BootInstant::now().0);
    wait_for("the shim's end", PATIENCE, || (!lives(status.shim)).then_some(()));
    // Asked again, the same answer; and another token's copy is not here.
    assert_eq!(supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap(), certificate);
    let other = supervisor.stop(&pay(), FencingToken(8), StopMode::Force).await;
    assert!(matches!(other, Err(Error::NotHere { .. })), "{other:?}");
    assert_eq!(words(&mut events, "signal 9").await, ["0: signal 9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_prints_without_end_does_not_fill_the_disk() {
    use std::os::unix::fs::MetadataExt;

    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    // More than it may keep, at once; then a line from time to time.
    let script = "head -c 90000000 /dev/zero | tr '\\0' x; echo; while echo last line; do sleep 0.05; done";
    supervisor.start(order(shell(script))).await.unwrap();
    words(&mut events, "ready").await;
    let log = stage.path().join("log").join("pay-0.log");
    let used = || std::fs::metadata(&log).map_or(0, |meta| meta.blocks() * 512);
    wait_for("everything is printed", PATIENCE, || (used() > 80_000_000).then_some(()));
    wait_for("the oldest of it goes", PATIENCE, || (used() <= 40_000_000).then_some(()));
    assert_eq!(supervisor.logs(&pay(), 1).unwrap(), ["last line"], "what is new is there");
    let stop = StopMode::Force;
    timeout(PATIENCE, supervisor.stop(&pay(), TOKEN, stop)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_inherits_nothing_of_ours() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    let mut spec = shell(
        "echo env $(env | sort | grep -v -e '^_=' -e ^PWD -e ^SHLVL -e ^OLDPWD)
         ls -m /proc/$$/fd
         echo signals $(grep -e SigBlk -e SigIgn /proc/$$/status)
         echo oom $(cat /proc/$$/oom_score_adj)
         echo session $(cut -d' ' -f1,5,6,41 /proc/$$/stat) $(pwd)
         echo done; exec sleep 60",
    );
    spec.directory = Some("/tmp".to_owned());
    supervisor.start(order(spec)).await.unwrap();
    log_line(&supervisor, "done").await;
    assert_eq!(
        log_line(&supervisor, "env").await,
        "env COLOUR=blue LEASEWARD_LEASE=server/pay-0 LEASEWARD_MACHINE=m1 LEASEWARD_SERVER=pay-0 LEASEWARD_TOKEN=7 \
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    assert_eq!(log_line(&supervisor, "0, 1").await, "0, 1, 2");
    let none = "0000000000000000";
    assert_eq!(log_line(&supervisor, "signals").await, format!("signals SigBlk: {none} SigIgn: {none}"));
    assert_eq!(log_line(&supervisor, "oom").await, "oom 0");
    // Its own session and group, ordinary scheduling; 2 in a namespace where 1 is init.
    assert_eq!(log_line(&supervisor, "session").await, "session 2 2 2 0 /tmp");
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn old_tokens_passed_deadlines_and_second_copies_are_refused() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    supervisor.start(order(shell("exec sleep 60"))).await.unwrap();
    let start = |token, deadline| supervisor.start(StartOrder { token, deadline, ..order(shell("exec sleep 60")) });

    let stale = start(FencingToken(6), later()).await.unwrap_err();
    assert!(matches!(stale, Error::StaleToken { seen: TOKEN, .. }), "{stale:?}");
    assert_eq!((stale.code(), stale.is_retryable()), ("LW0310", false));
    let second = start(FencingToken(8), later()).await.unwrap_err();
    assert!(matches!(second, Error::OtherTokenLives { token: TOKEN, .. }), "{second:?}");
    let passed = start(TOKEN, BootInstant::now()).await.unwrap_err();
    assert!(matches!(passed, Error::DeadlinePassed { .. }), "{passed:?}");
    for wrong in [spec(&[]), spec(&["a\0b"])] {
        let wrong = supervisor.start(StartOrder { server: ServerName::new("x").unwrap(), ..order(wrong) }).await;
        assert!(matches!(wrong, Err(Error::BadOrder { .. })), "{wrong:?}");
    }

    // Deadlines move forward only, and not beyond reason.
    let deadline = stage.ask_shim("pay-0").deadline;
    supervisor.extend(&pay(), TOKEN, BootInstant(1)).await.unwrap();
    assert_eq!(stage.ask_shim("pay-0").deadline, deadline);
    let further = deadline + Duration::from_secs(5);
    supervisor.extend(&pay(), TOKEN, further).await.unwrap();
    assert_eq!(stage.ask_shim("pay-0").deadline, further);
    let far = supervisor.extend(&pay(), TOKEN, BootInstant::now() + Duration::from_secs(1_000_000)).await;
    assert!(matches!(far, Err(Error::Refused { .. })), "{far:?}");
    let other = supervisor.extend(&pay(), FencingToken(8), further).await;
    assert!(matches!(other, Err(Error::NotHere { .. })), "{other:?}");

    // The directory has one owner, and what it has seen outlives the owner.
    assert!(matches!(Supervisor::open(config(&stage)).await, Err(Error::Busy { .. })));
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    drop(supervisor);
    let (supervisor, _, _events) = supervise(&stage).await;
    let stale = supervisor.start(StartOrder { token: FencingToken(6), ..order(shell("exec sleep 60")) }).await;
    assert!(matches!(stale, Err(Error::StaleToken { .. })), "{stale:?}");
}

/// Somebody was told, or is about to be, that nothing runs here under a token: a start that was ordered before may come after.
#[tokio::test]
async fn what_is_retired_is_started_by_nobody_again() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    let run = || shell("exec sleep 60");
    supervisor.retire(&pay(), TOKEN).await.unwrap();
    let retired = supervisor.start(order(run())).await.unwrap_err();
    assert!(matches!(retired, Error::Retired { token: TOKEN, .. }), "{retired:?}");
    assert_eq!((retired.code(), retired.is_retryable()), ("LW0310", false));
    drop(supervisor);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let retired = supervisor.start(order(run())).await;
    assert!(matches!(retired, Err(Error::Retired { .. })), "its successor does not know: {retired:?}");
    let smaller = supervisor.start(StartOrder { token: FencingToken(6), ..order(run()) }).await;
    assert!(matches!(smaller, Err(Error::StaleToken { .. })), "{smaller:?}");

    // What runs goes on until it ends, and is not begun anew then.
    let next = FencingToken(8);
    supervisor.start(StartOrder { token: next, ..order(run()) }).await.unwrap();
    let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert_eq!(event.token, next);
    supervisor.retire(&pay(), TOKEN).await.unwrap();
    supervisor.retire(&pay(), next).await.unwrap();
    assert!(lives(stage.ask_shim("pay-0").server));
    supervisor.stop(&pay(), next, StopMode::Force).await.unwrap();
    let again = supervisor.start(StartOrder { token: next, ..order(run()) }).await;
    assert!(matches!(again, Err(Error::Retired { .. })), "{again:?}");
}

#[tokio::test]
async fn what_runs_under_a_token_that_nobody_holds_is_not_extended() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let deadline = BootInstant::now() + Duration::from_secs(5);
    supervisor.start(StartOrder { deadline, ..order(shell("exec sleep 60")) }).await.unwrap();
    words(&mut events, "ready").await;
    for held in [[].into(), [(pay(), FencingToken(8))].into(), [(ServerName::new("x").unwrap(), TOKEN)].into()] {
        assert_eq!(supervisor.extend_all(held, later()).await.unwrap().len(), 0);
    }
    assert_eq!(stage.ask_shim("pay-0").deadline, deadline);
    assert_eq!(supervisor.extend_all([(pay(), TOKEN)].into(), later()).await.unwrap().len(), 1);
    assert!(stage.ask_shim("pay-0").deadline > deadline);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn a_shim_refuses_what_is_not_for_it_and_survives_nonsense() {
    use std::io::{BufRead, BufReader, Write};
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    supervisor.start(order(shell("exec sleep 60"))).await.unwrap();
    let deadline = stage.ask_shim("pay-0").deadline;
    let connect = || std::os::unix::net::UnixStream::connect(stage.path().join("run/pay-0.sock")).unwrap();
    let mut talk = BufReader::new(connect());
    let (boot, at) = (boot_id().unwrap(), (deadline + Duration::from_secs(9)).0);
    for request in [
        format!(r#"{{"extend":{{"token":8,"deadline":{at},"boot_id":"{boot}"}}}}"#),
        format!(r#"{{"extend":{{"token":7,"deadline":{at},"boot_id":"another"}}}}"#),
        r#"{"kill":{"token":6}}"#.to_owned(),
        r#"{"stop":{"token":6,"grace_ms":0}}"#.to_owned(),
        "nonsense".to_owned(),
    ] {
        writeln!(talk.get_mut(), "{request}").unwrap();
        let mut answer = String::new();
        talk.read_line(&mut answer).unwrap();
        assert!(answer.contains("refused"), "{request}: {answer}");
    }
    // Too long a line, and more clients than it keeps.
    let _ = connect().write_all(&[b'x'; 100_000]);
    let crowd: Vec<_> = (0..40).map(|_| connect()).collect();
    assert_eq!(stage.ask_shim("pay-0").deadline, deadline);
    drop(crowd);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn a_polite_server_is_asked_in_its_own_way() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    let script = "trap 'exit 5' TERM; trap 'exit 6' USR1; echo up; while :; do sleep 0.01; done";
    let stop = StopMode::Graceful { grace: PATIENCE };
    supervisor.start(order(shell(script))).await.unwrap();
    log_line(&supervisor, "up").await;
    assert_eq!(supervisor.stop(&pay(), TOKEN, stop).await.unwrap().exit, Exit::Code(5));

    let mut own_way = shell(script);
    own_way.stop_command = ["sh", "-c", "echo asked by $LEASEWARD_TOKEN; kill -USR1 2"].map(str::to_owned).to_vec();
    let token = FencingToken(8);
    supervisor.start(StartOrder { token, ..order(own_way) }).await.unwrap();
    let up = || supervisor.logs(&pay(), 100).unwrap().iter().filter(|line| *line == "up").count() == 2;
    wait_for("the second start's line", PATIENCE, || up().then_some(()));
    assert_eq!(supervisor.stop(&pay(), token, stop).await.unwrap().exit, Exit::Code(6));
    assert_eq!(log_line(&supervisor, "asked").await, "asked by 8");
}

#[tokio::test]
async fn shims_may_die_or_stop_and_the_proof_still_comes() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(shell("exec sleep 60"))).await.unwrap();
    words(&mut events, "ready").await;
    signal(stage.ask_shim("pay-0").shim, Signal::KILL);
    let expected = ["0: killed with its shim, again in 0", "1: started", "1: ready"];
    assert_eq!(words(&mut events, "ready").await, expected);

    // A stopped shim acknowledges nothing, and is not needed to stop its server.
    let status = stage.ask_shim("pay-0");
    signal(status.shim, Signal::STOP);
    let extended = supervisor.extend_all([(pay(), TOKEN)].into(), later()).await.unwrap();
    assert!(matches!(extended.as_slice(), [(_, Err(Error::Unacked { .. }))]), "{extended:?}");
    let (pay, stop) = (pay(), StopMode::Graceful { grace: PATIENCE });
    timeout(PATIENCE / 2, supervisor.stop(&pay, TOKEN, stop)).await.expect("in time").unwrap();
    assert!(!lives(status.init) && !lives(status.shim));
    // Nor is init: stopped, it asks nobody, and is killed when the grace is over.
    let again = supervisor.start(order(shell("exec sleep 60"))).await.unwrap();
    assert_eq!((again.attempt, again.already), (2, false));
    signal(stage.ask_shim("pay-0").init, Signal::STOP);
    let stop = StopMode::Graceful { grace: Duration::from_millis(50) };
    assert_eq!(supervisor.stop(&pay, TOKEN, stop).await.unwrap().exit, Exit::Signal(9));
    // Nothing is left that would refuse the next copy.
    let token = FencingToken(8);
    supervisor.start(StartOrder { token, ..order(shell("exec sleep 60")) }).await.unwrap();
    supervisor.stop(&pay, token, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn a_new_agent_adopts_what_lives_and_proves_what_does_not() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let mut agent = stage.play(&["attack", "agent", stage.path().to_str().unwrap(), "3", "5000", "5000", "full"]);
    agent.wait_until_ready();
    (0..3).for_each(|n| drop(stage.stamps_of_all(n)));
    let statuses: Vec<_> = (0..3).map(|n| stage.ask_shim(&format!("pay-{n}"))).collect();
    agent.kill();
    // While there is no agent, one shim is killed and one server ends.
    let processes = statuses.iter().map(|status| open(status.init)).collect::<Vec<_>>();
    signal(statuses[1].shim, Signal::KILL);
    signal(statuses[2].init, Signal::KILL);
    assert!(processes[1..].iter().all(|process| wait_for_end(process, PATIENCE).is_some()));

    let (supervisor, adopted, mut events) = supervise(&stage).await;
    let [adopted] = adopted.as_slice() else { panic!("{adopted:?}") };
    assert_eq!((&adopted.server, adopted.token, adopted.pid), (&pay(), TOKEN, statuses[0].server));
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        if let Happened::Exited { exit, restarts_in: None, .. } = event.what {
            ends.push((event.server.to_string(), exit));
        }
    }
    ends.sort_by(|(a, _), (b, _)| a.cmp(b));
    let [(one, Exit::Unseen), (two, Exit::Signal(9))] = ends.as_slice() else { panic!("{ends:?}") };
    assert_eq!((one.as_str(), two.as_str()), ("pay-1", "pay-2"));
    // The adopted one is extended beyond what its old agent gave it, and stopped like any other.
    supervisor.extend(&pay(), TOKEN, later()).await.unwrap();
    assert!(stage.ask_shim("pay-0").deadline > adopted.deadline);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    assert_eq!(stage.survivors(0), 0);
    assert!(!Path::new(&stage.path().join("run/pay-0.live")).exists());
}

#[tokio::test]
async fn a_server_runs_as_the_user_it_names() {
    let _alone = alone_async().await;
    if !is_root() {
        println!("LEFT OUT: running a server as another user needs root");
        return;
    }
    let stage = Stage::new(None);
    let (supervisor, _, _events) = supervise(&stage).await;
    let mut spec = shell("echo ids $(id -u) $(id -g) $(id -G); echo done; exec sleep 60");
    spec.user = Some("nobody".to_owned());
    supervisor.start(order(spec)).await.unwrap();
    log_line(&supervisor, "done").await;
    assert!(log_line(&supervisor, "ids").await.starts_with(&format!("ids {NOBODY} ")));
    // Its other credentials do not save it: init keeps ours.
    let status = stage.ask_shim("pay-0");
    let process = open(status.init);
    signal(status.shim, Signal::KILL);
    wait_for_end(&process, PATIENCE).expect("its end");
    assert!(!lives(status.server));
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[test]
fn an_ordinary_user_gets_the_same_from_a_user_namespace() {
    let _alone = alone();
    let stage = Stage::new(is_root().then_some(NOBODY));
    let level = stage.play(&["level"]).line();
    if level == "F0" {
        println!("LEFT OUT: this machine grants ordinary users no user namespaces");
        return;
    }
    let mut story = stage.play(&["story", stage.path().to_str().unwrap()]);
    assert_eq!(story.line(), "level F1");
    assert_eq!(story.line(), "certificate 7 signal 9");
    assert_eq!(stage.survivors(0), 0);
    if is_root() {
        assert_eq!(Stage::new(None).play(&["level"]).line(), "F2");
    } else {
        println!("LEFT OUT: level F2 needs root");
    }
}

/// Shims of this stage that have no order yet, by their command lines.
fn waiting_shims(stage: &Stage) -> Vec<u32> {
    let of_ours = |pid: &u32| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        exe.is_ok_and(|exe| exe == stage.lab()) && String::from_utf8_lossy(&line).contains("(waits for an order)")
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(of_ours).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_waits_before_it_is_needed_and_is_not_needed() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let spare = || waiting_shims(&stage);
    wait_for("shims that wait", PATIENCE, || (spare().len() == SPARE_SHIMS).then_some(()));

    // One of them is taken, and says whose it is.
    let before = spare();
    let server = shell("echo path $PATH; exec sleep 1000");
    let _started = supervisor.start(order(server.clone())).await.unwrap();
    let shim = stage.ask_shim("pay-0").shim;
    assert!(before.contains(&shim), "{shim} is none of {before:?}");
    let line = std::fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
    assert_eq!(line.trim_end_matches('\0').rsplit('\0').next().map(str::trim), Some("pay-0"), "{line:?}");
    wait_for("another one", PATIENCE, || (spare().len() == SPARE_SHIMS).then_some(()));
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    assert_eq!(words(&mut events, "signal 9").await.last().map(String::as_str), Some("0: signal 9"));

    // All of them are killed: a start needs none of them.
    for pid in spare() {
        signal(pid, Signal::KILL);
    }
    let _started = supervisor.start(order(server)).await.unwrap();
    wait_for("others", PATIENCE, || (spare().len() == SPARE_SHIMS).then_some(()));

    // They end with whoever would give them orders; the server does not.
    let shim = stage.ask_shim("pay-0").shim;
    drop((supervisor, events));
    wait_for("their end", PATIENCE, || spare().is_empty().then_some(()));
    assert!(lives(shim));
    signal(shim, Signal::KILL);
}
