//! Servers: what they are, how they are, who has them.

use super::*;

pub(crate) fn certificate() -> Certificate {
    Certificate { token: TOKEN, boot_id: "boot".into(), proven_at_boottime_ns: 12, exit: Exit::Signal(9) }
}

pub(crate) fn spec() -> ServerSpec {
    ServerSpec {
        command: vec!["/bin/web".into(), "-v".into()],
        stop_command: vec!["stop".into()],
        environment: one("K", "V"),
        directory: Some("/srv".into()),
        user: Some("www".into()),
        candidates: vec![machine()],
        requires_fence: FenceLevel::F1,
        grace_ms: Some(7),
        check: Some(HealthCheck { probe: Probe::Tcp("h:1".into()), interval_ms: 1, timeout_ms: 2, misses: 3 }),
        start_timeout_ms: 4,
        stop_grace_ms: 5,
        restart: RestartPolicy { in_place: 1, per_ms: 2, backoff_ms: vec![3], cluster: 4, cluster_per_ms: 5 },
        priority: -1,
        addresses: vec![FloatingAddress {
            ip: "10.0.0.1".into(),
            interface: Some("eth0".into()),
            announce: Announce::AfterReady,
            tickle: true,
            network_fence: true,
        }],
        mounts: vec![Mount {
            device: "/dev/x".into(),
            at: "/mnt".into(),
            fs_type: "ext4".into(),
            options: vec!["ro".into()],
        }],
        hooks: BTreeMap::from([(HookStep::PreStart, Hook { command: vec!["/bin/true".into()], timeout_ms: 6 })]),
        limits: ResourceLimits { memory_bytes: Some(7), cpu_percent: Some(8), processes: Some(9) },
        state_file: Some("/run/web.state".into()),
        labels: one("disk", "ssd"),
        apart_from: vec![server()],
        weight: 10,
        migrates: true,
        failback: Failback::AutoAfter(11),
        manager: ManagerKind::Agent,
        needs_sets: vec!["app".into()],
    }
}

pub(crate) fn connection() -> Connection {
    let at = |text: &str| text.parse().expect("an address");
    Connection { local: at("10.0.0.1:80"), peer: at("[fe80::1]:4000") }
}

pub(crate) fn destination() -> Destination {
    Destination { machine: machine(), cause: Cause::Drained, back_to: Some(machine()) }
}

pub(crate) fn readinesses() -> Vec<Readiness> {
    vec![Readiness::Preparing, Readiness::Ready, Readiness::Lacking("w".into())]
}

pub(crate) fn server_reports() -> Vec<ServerReport> {
    vec![
        ServerReport::Status { status: ServerStatus::Running { pid: 7 }, restarts: 1 },
        ServerReport::Crashed { restarts: 2, why: "w".into() },
        ServerReport::Dead { certificate: certificate(), failure: Some("f".into()) },
        ServerReport::NotStarted { why: "w".into() },
        ServerReport::Absent,
        ServerReport::Clients(vec![connection()]),
    ]
}

pub(crate) fn server_statuses() -> Vec<ServerStatus> {
    vec![
        ServerStatus::Ordered,
        ServerStatus::Starting { pid: 1 },
        ServerStatus::Running { pid: 2 },
        ServerStatus::Unhealthy { pid: 3, why: "u".into() },
        ServerStatus::Restarting { why: "r".into() },
        ServerStatus::Stopping,
        ServerStatus::Preparing { step: "mount".into() },
        ServerStatus::Stuck { step: "unmount".into(), why: "w".into() },
    ]
}

pub(crate) fn fence_proofs() -> Vec<FenceProof> {
    vec![
        FenceProof::Certificate(certificate()),
        FenceProof::Rebooted,
        FenceProof::Swept,
        FenceProof::Grace(100),
        FenceProof::Operator("ann".into()),
        FenceProof::Hook("n1".into()),
    ]
}

pub(crate) fn probes() -> Vec<Probe> {
    vec![Probe::Process, Probe::Tcp("t".into()), Probe::Http("h".into()), Probe::Command(vec!["c".into()])]
}

pub(crate) fn placements() -> Vec<Placement> {
    vec![
        Placement::Unplaced { next: Some(destination()) },
        Placement::Assigned(Assignment {
            machine: machine(),
            session: SessionId(3),
            token: TOKEN,
            fence: FenceEarned { level: FenceLevel::F2, watchdog_ms: Some(3) },
            at: UnixMillis(4),
            cause: Cause::Started,
            status: ServerStatus::Ordered,
            restarts: 1,
            ready: true,
            moving: Some(destination()),
            back_to: Some(machine()),
        }),
        Placement::Expired(Expired {
            machine: machine(),
            token: TOKEN,
            earned: FenceEarned { level: FenceLevel::F2, watchdog_ms: None },
            wait_ms: 5,
            since: Revision(4),
            cause: Cause::MachineLost,
            fence: Some(FenceProof::Swept),
        }),
        Placement::Failed { why: "w".into() },
    ]
}
