//! What follows a crash, a hang and a deadline.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use leaseward_node::supervisor::Phase;
use leaseward_node::{BootInstant, Error, Happened, StartOrder, StopMode};
use leaseward_state::server::{HealthCheck, Probe};
use leaseward_state::token::FencingToken;
use support::node::{TOKEN, next, order, pay, shell, spec, supervise, words};
use support::{PATIENCE, Stage, alone_async, lives, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_crashing_server_is_restarted_within_its_budget_and_then_given_up() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    supervisor.start(order(shell("exit 3"))).await.unwrap();
    assert_eq!(
        words(&mut events, "gave up").await,
        [
            "0: started",
            "0: ready",
            "0: exit 3, again in 0",
            "1: started",
            "1: ready",
            "1: exit 3, again in 20",
            "2: started",
            "2: ready",
            "2: exit 3",
            "2: gave up",
        ]
    );
    // What cannot even be executed is told to whoever ordered it.
    let start = supervisor.start(StartOrder { token: FencingToken(8), ..order(spec(&["/no/such/program"])) }).await;
    assert!(matches!(&start, Err(Error::Launch { why, .. }) if why.contains("/no/such/program")), "{start:?}");
    let mut foreign = shell("exec sleep 60");
    foreign.user = Some("no-such-user".to_owned());
    let start = supervisor.start(StartOrder { token: FencingToken(9), ..order(foreign) }).await;
    assert!(matches!(&start, Err(Error::Launch { why, .. }) if why.contains("no-such-user")), "{start:?}");
}

#[tokio::test]
async fn a_hung_server_is_killed_and_restarted_in_place() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Stands for the server's port: 200, then 503 until the next attempt asks, which it learns from the log.
    let (set, status) = tokio::sync::watch::channel("503 Busy");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", *status.borrow());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let mut spec = shell("exec sleep 60");
    let probe = Probe::Http(format!("http://{address}/health"));
    spec.check = Some(HealthCheck { probe, interval_ms: 10, timeout_ms: 1_000, misses: 3 });
    supervisor.start(order(spec)).await.unwrap();
    assert_eq!(words(&mut events, "started").await, ["0: started"]);
    assert_eq!(supervisor.status().await.unwrap()[0].phase, Phase::Starting);
    set.send_replace("200 OK");
    assert_eq!(words(&mut events, "ready").await, ["0: ready"]);
    assert_eq!(supervisor.status().await.unwrap()[0].last_check, Some(Ok(())));
    set.send_replace("503 Busy");
    // Ailing, then hung, then again.
    let expected = ["0: unhealthy", "0: unhealthy", "0: signal 9, again in 0", "1: started"];
    assert_eq!(words(&mut events, "started").await, expected);
    set.send_replace("302 Found");
    assert_eq!(words(&mut events, "ready").await, ["1: ready"]);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
}

#[tokio::test]
async fn other_checks_tcp_and_a_command_that_hangs() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tcp = shell("exec sleep 60");
    let probe = Probe::Tcp(listener.local_addr().unwrap().to_string());
    tcp.check = Some(HealthCheck { probe, interval_ms: 10, timeout_ms: 1_000, misses: 1 });
    supervisor.start(order(tcp)).await.unwrap();
    assert_eq!(words(&mut events, "ready").await, ["0: started", "0: ready"]);
    drop(listener);
    let expected = ["0: unhealthy", "0: signal 9, again in 0", "1: started"];
    assert_eq!(words(&mut events, "started").await, expected);
    supervisor.stop(&pay(), TOKEN, StopMode::Force).await.unwrap();
    words(&mut events, "signal 9").await;

    // Under the same token the attempts go on. A check that hangs is killed with what it started.
    let mark = stage.path().join("check-pid");
    let script = format!("sleep 77 & echo $! > {}; wait", mark.display());
    let mut hanging = shell("exec sleep 60");
    hanging.start_timeout_ms = 1;
    hanging.restart.in_place = 0;
    let probe = Probe::Command(["sh", "-c", &script].map(str::to_owned).to_vec());
    hanging.check = Some(HealthCheck { probe, interval_ms: 10, timeout_ms: 300, misses: 1 });
    let started = supervisor.start(order(hanging)).await.unwrap();
    assert!(started.attempt >= 1);
    let words = words(&mut events, "gave up").await;
    assert!(words.iter().any(|word| word.ends_with("unhealthy")), "{words:?}");
    let pid: u32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
    wait_for("the check's child to die", PATIENCE, || (!lives(pid)).then_some(()));
}

#[tokio::test]
async fn a_server_that_nobody_extends_ends_at_its_deadline() {
    let _alone = alone_async().await;
    let stage = Stage::new(None);
    let (supervisor, _, mut events) = supervise(&stage).await;
    let deadline = BootInstant::now() + Duration::from_millis(300);
    supervisor.start(StartOrder { deadline, ..order(shell("exec sleep 60")) }).await.unwrap();
    words(&mut events, "ready").await;
    let (_, Happened::Exited { certificate, restarts_in: None, .. }) = next(&mut events).await else { panic!() };
    let late = BootInstant(certificate.proven_at_boottime_ns).saturating_since(deadline);
    assert!(late > Duration::ZERO && late < Duration::from_secs(2), "{late:?}");
    assert_eq!(next(&mut events).await.1, Happened::DeadlinePassed { certificate });
}
