//! What an agent does while it has a session: carries out orders, extends deadlines, reports.
//!
//! Must stay true: orders are compared with what runs, so a lost or repeated one costs nothing; a server is started
//! only after an answer to a renewal, sent after the order was seen, that names its token; deadlines are extended by
//! nothing but answered renewals, of tokens that the session holds. Before anybody hears that nothing of a copy runs
//! here, nothing is started under its token any more: a start that was ordered earlier may still be on its way. When
//! the session cannot be renewed, servers get the stop signal a stop budget before their deadline; the kernel ends what
//! is left at the deadline.

mod outcomes;
mod prepare;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use leaseward_node::address::connections;
use leaseward_node::{Adopted, BootInstant, NodeEvent, StartOrder, StopMode, Supervisor};
use leaseward_raft::net::wire::{MachineView, VersionOrder};
use leaseward_state::command::ServerReport;
use leaseward_state::config::SyncState;
use leaseward_state::limits::CLIENTS_KEPT_MAX;
use leaseward_state::order::{Action, Order};
use leaseward_state::server::{Certificate, Connection, HookStep, ServerSpec, ServerStatus};
use leaseward_state::{Command, FencingToken, Revision, ServerName, SetName};
use leaseward_sync::member::{Report, Wanted, WantedSet, WantedVersion};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::AgentConfig;
use crate::client::Client;
use crate::keeper::{Keeper, Standing};
use crate::limits::SETS_WITHIN;
use views::follow_views;

/// A grant that an order names must show up in an answer within this; else the order is stale.
const GRANT_WITHIN: Duration = Duration::from_secs(2);

/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_millis(250);

/// How often it is looked who is connected to floating addresses.
const CLIENTS_EVERY: Duration = Duration::from_secs(3);

/// How serving ended.
pub(crate) enum Ended {
    /// The agent is told to stop.
    Stopped,
    /// The session is over.
    SessionOver,
}

/// Everything that serving needs.
pub(crate) struct Serving<'a> {
    pub(crate) config: &'a AgentConfig,
    pub(crate) client: &'a Client,
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) events: &'a mut mpsc::Receiver<NodeEvent>,
    pub(crate) reports: &'a mpsc::Sender<Command>,
    pub(crate) wanted: &'a watch::Sender<Wanted>,
    pub(crate) synced: &'a mut mpsc::Receiver<Report>,
    /// What was said last of each config set, whatever became of the session in which it was.
    pub(crate) told: &'a mut BTreeMap<SetName, Report>,
    pub(crate) keeper: Keeper,
}

/// A step that was carried out in the background.
enum Step {
    Started {
        order: Order,
        outcome: Result<(), leaseward_node::Error>,
    },
    Stopped {
        server: ServerName,
        token: FencingToken,
        outcome: Result<Certificate, leaseward_node::Error>,
        report: bool,
    },
    Held,
    Prepared {
        server: ServerName,
        token: FencingToken,
        lacking: Option<String>,
    },
    /// Who is connected to a server's floating addresses.
    Looked {
        server: ServerName,
        token: FencingToken,
        clients: Vec<Connection>,
    },
}

/// What is known here of the servers.
#[derive(Default)]
struct Here {
    running: BTreeMap<ServerName, (FencingToken, ServerSpec)>,
    busy: BTreeSet<ServerName>,
    /// Those that we end ourselves: their end is no failure.
    ending: BTreeSet<(ServerName, FencingToken)>,
    /// The last token of each server whose end was reported: nothing is done under it again, whatever a view says that
    /// does not know of the report yet.
    ended: BTreeMap<ServerName, FencingToken>,
    /// Starts that are under way, with their tokens: a stop calls them off.
    starting: BTreeMap<ServerName, FencingToken>,
    /// The copies elsewhere for whose loss we make ready, or are ready.
    prepared: BTreeMap<ServerName, FencingToken>,
    /// Those whose addresses we keep an eye on; ended when it is dropped.
    watched: BTreeMap<ServerName, JoinSet<()>>,
    /// Servers that are left as they are.
    held: BTreeSet<ServerName>,
    /// What was told last of who is connected.
    clients: BTreeMap<ServerName, Vec<Connection>>,
    applied: BTreeMap<SetName, u64>,
    waiting_for_sets: BTreeMap<ServerName, Instant>,
}

impl Serving<'_> {
    pub(crate) async fn run(mut self, adopted: &[Adopted], stop: &CancellationToken) -> Ended {
        let mut here = Here::default();
        self.tell_again(&mut here).await;
        for server in adopted {
            here.running.insert(server.server.clone(), (server.token, server.spec.clone()));
        }
        let mut helpers = JoinSet::new();
        let (publish, mut views) = watch::channel(MachineView::default());
        helpers.spawn(follow_views(self.client.another(), self.config.clone(), self.keeper.standing(), publish));
        let mut looks = interval(CLIENTS_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        helpers.spawn(extend_deadlines(self.supervisor.clone(), self.keeper.standing()));
        let mut steps: JoinSet<Step> = JoinSet::new();
        let mut standing = self.keeper.standing();
        let budget = (self.config.ttl / 3).min(Duration::from_secs(1));
        let mut gave_warning = false;
        let mut tick = Instant::now() + AGAIN;
        loop {
            let left = standing.borrow_and_update().remaining();
            if standing.borrow().over {
                self.end_everything().await;
                return Ended::SessionOver;
            }
            if left > budget {
                gave_warning = false;
            } else if !gave_warning {
                gave_warning = true;
                self.stop_in_time(&mut here, &mut steps, left);
            }
            if left.is_zero() && self.everything_is_dead().await {
                // Nobody answers; the leader ends the session meanwhile, or is heard again.
                here.running.clear();
            }
            let warning = Instant::now() + left.saturating_sub(budget).max(Duration::from_millis(5));
            tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                changed = standing.changed() => if changed.is_err() { return Ended::SessionOver },
                changed = views.changed() => {
                    if changed.is_ok() {
                        let view = views.borrow_and_update().clone();
                        self.want_sets(&view);
                        self.reconcile(&view, &mut here, &mut steps);
                    }
                }
                Some(event) = self.events.recv() => self.happened(event, &mut here).await,
                Some(report) = self.synced.recv() => {
                    self.synced(report, &mut here).await;
                    let view = views.borrow().clone();
                    self.reconcile(&view, &mut here, &mut steps);
                }
                Some(done) = steps.join_next() => {
                    if let Ok(step) = done {
                        self.step_done(step, &mut here).await;
                    }
                    let view = views.borrow().clone();
                    self.reconcile(&view, &mut here, &mut steps);
                }
                () = sleep_until(warning), if !gave_warning => {}
                _ = looks.tick() => self.look_for_clients(&mut here, &mut steps),
                () = sleep_until(tick) => {
                    tick = Instant::now() + AGAIN;
                    let view = views.borrow().clone();
                    self.reconcile(&view, &mut here, &mut steps);
                }
            }
        }
    }

    fn want_sets(&self, view: &MachineView) {
        let wanted: Wanted = view
            .sets
            .iter()
            .map(|(set, order)| {
                let version = |order: VersionOrder| WantedVersion { number: order.number, manifest: order.manifest };
                let (live, staged) = (order.live.map(version), order.staged.map(version));
                let wanted = WantedSet { live, staged, attempt: order.attempt, spec: Arc::clone(&order.spec) };
                (set.clone(), wanted)
            })
            .collect();
        self.config.readiness.has(wanted.keys());
        self.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    /// Compares what is ordered with what runs, and closes the gap in the background.
    fn reconcile(&self, view: &MachineView, here: &mut Here, steps: &mut JoinSet<Step>) {
        if view.revision == Revision(0) {
            return;
        }
        self.hold(view, here, steps);
        self.prepare(view, here, steps);
        for order in &view.orders {
            // What is being brought up may take long: a stop calls it off.
            let overtakes = !matches!(order.action, Action::Run { .. } | Action::Prepare { .. })
                && here.starting.get(&order.server) == Some(&order.token);
            if overtakes {
                here.starting.remove(&order.server);
                here.busy.remove(&order.server);
            }
            let ended = here.ended.get(&order.server).is_some_and(|token| *token >= order.token);
            if ended || here.busy.contains(&order.server) {
                continue;
            }
            let running = here.running.get(&order.server);
            match &order.action {
                Action::Run { spec, .. } => match running {
                    Some((token, runs)) if *token == order.token && runs.runs_alike(spec) => {}
                    Some((token, _)) if *token == order.token => {
                        info!(server = %order.server, "its specification changed: it is restarted in place");
                        let mode = StopMode::Graceful { grace: Duration::from_millis(spec.stop_grace_ms) };
                        self.stop(here, steps, &order.server, *token, mode, false);
                    }
                    Some((token, _)) => {
                        let token = *token;
                        self.stop(here, steps, &order.server, token, StopMode::Force, true);
                    }
                    None => self.start(view, here, steps, order),
                },
                Action::Stop { grace_ms } => {
                    let mode = StopMode::Graceful { grace: Duration::from_millis(*grace_ms) };
                    self.stop(here, steps, &order.server, order.token, mode, true);
                }
                Action::Kill => self.stop(here, steps, &order.server, order.token, StopMode::Force, true),
                // What runs here is of an older placement: below.
                Action::Prepare { .. } => {}
            }
        }
        // What runs and is ordered by nobody: its server was moved or forgotten while we did not look.
        let ours = view.orders.iter().filter(|order| !matches!(order.action, Action::Prepare { .. }));
        let ordered: BTreeSet<_> = ours.map(|order| (&order.server, order.token)).collect();
        let surplus: Vec<_> = here
            .running
            .iter()
            .filter(|(server, (token, _))| {
                !ordered.contains(&(*server, *token))
                    && token.revision() <= view.revision
                    && !here.busy.contains(*server)
            })
            .map(|(server, (token, _))| (server.clone(), *token))
            .collect();
        for (server, token) in surplus {
            self.stop(here, steps, &server, token, StopMode::Force, true);
        }
    }

    /// Looks who is connected to floating addresses, so that their next owner can wake them.
    fn look_for_clients(&self, here: &mut Here, steps: &mut JoinSet<Step>) {
        let Here { running, clients, .. } = here;
        clients.retain(|server, _| running.contains_key(server));
        for (server, (token, spec)) in running {
            let wakes = spec.addresses.iter().filter(|address| address.tickle);
            let ips: Vec<IpAddr> = wakes.filter_map(|address| address.ip.parse().ok()).collect();
            if ips.is_empty() {
                continue;
            }
            let (server, token) = (server.clone(), *token);
            steps.spawn_blocking(move || {
                let found = ips.into_iter().filter_map(|ip| connections(ip).ok()).flatten();
                let mut clients: Vec<_> = found.map(|(local, peer)| Connection { local, peer }).collect();
                clients.sort_unstable();
                clients.truncate(CLIENTS_KEPT_MAX);
                Step::Looked { server, token, clients }
            });
        }
    }

    /// Has the supervisor leave alone what an operator paused, and nothing else.
    fn hold(&self, view: &MachineView, here: &mut Here, steps: &mut JoinSet<Step>) {
        let paused = |order: &&Order| matches!(order.action, Action::Run { paused: true, .. });
        let held: BTreeSet<_> = view.orders.iter().filter(paused).map(|order| order.server.clone()).collect();
        if here.held == held {
            return;
        }
        let changed: Vec<_> = here.held.symmetric_difference(&held).cloned().collect();
        for server in changed {
            let (supervisor, is_held) = (self.supervisor.clone(), held.contains(&server));
            steps.spawn(async move {
                supervisor.hold(&server, is_held).await.ok();
                Step::Held
            });
        }
        here.held = held;
    }

    fn start(&self, view: &MachineView, here: &mut Here, steps: &mut JoinSet<Step>, order: &Order) {
        let Action::Run { spec, clients, .. } = &order.action else { return };
        if !sets_are_here(view, here, &order.server, spec) {
            return;
        }
        here.busy.insert(order.server.clone());
        here.starting.insert(order.server.clone(), order.token);
        let status = preparing(spec).map(|step| ServerStatus::Preparing { step });
        if let Some(status) = status {
            let report = ServerReport::Status { status, restarts: 0 };
            let command = Command::ReportServer { server: order.server.clone(), token: order.token, report };
            self.reports.try_send(command).ok();
        }
        let (supervisor, standing) = (self.supervisor.clone(), self.keeper.standing());
        self.keeper.renew_now();
        let (order, spec, clients) = (order.clone(), (**spec).clone(), clients.clone());
        steps.spawn(async move {
            let outcome = start_granted(&supervisor, standing, &order, spec, clients).await;
            Step::Started { order, outcome }
        });
    }

    fn stop(
        &self,
        here: &mut Here,
        steps: &mut JoinSet<Step>,
        server: &ServerName,
        token: FencingToken,
        mode: StopMode,
        report: bool,
    ) {
        if !here.busy.insert(server.clone()) {
            return;
        }
        here.ending.insert((server.clone(), token));
        if report {
            let status = ServerReport::Status { status: ServerStatus::Stopping, restarts: 0 };
            let command = Command::ReportServer { server: server.clone(), token, report: status };
            self.reports.try_send(command).ok();
        }
        let (supervisor, server) = (self.supervisor.clone(), server.clone());
        steps.spawn(async move {
            if report {
                retire(&supervisor, &server, token).await;
            }
            let outcome = supervisor.stop(&server, token, mode).await;
            Step::Stopped { server, token, outcome, report }
        });
    }

    /// Says once more how config sets are: a session is new because the machine was away, and perhaps forgotten meanwhile.
    async fn tell_again(&self, here: &mut Here) {
        let reports: Vec<Report> = self.told.values().cloned().collect();
        for report in reports {
            self.tell(report, here).await;
        }
    }

    async fn synced(&mut self, report: Report, here: &mut Here) {
        info!(set = %report.set, applied = report.applied, state = ?report.state, "config set");
        self.told.insert(report.set.clone(), report.clone());
        self.tell(report, here).await;
    }

    async fn tell(&self, report: Report, here: &mut Here) {
        if report.state == SyncState::Applied {
            here.applied.insert(report.set.clone(), report.applied);
        }
        let machine = self.config.machine.clone();
        let sets = vec![(report.set, report.applied, report.state)];
        self.reports.send(Command::ReportSync { machine, sets }).await.ok();
    }

    /// The session could not be renewed: servers hear of it while there is time to end well.
    fn stop_in_time(&self, here: &mut Here, steps: &mut JoinSet<Step>, left: Duration) {
        let running: Vec<_> = here.running.iter().map(|(server, (token, _))| (server.clone(), *token)).collect();
        for (server, token) in running {
            warn!(%server, left_ms = left.as_millis() as u64, "the session is not renewed: stopping in time");
            let mode = StopMode::InTime { grace: left.mul_f64(0.8) };
            self.stop(here, steps, &server, token, mode, true);
        }
    }

    async fn everything_is_dead(&self) -> bool {
        let status = self.supervisor.status().await;
        status.is_ok_and(|servers| servers.iter().all(|server| server.certificate.is_some()))
    }

    /// The session is over, and with it every right to run anything.
    async fn end_everything(&self) {
        let Ok(servers) = self.supervisor.status().await else { return };
        let mut ends = JoinSet::new();
        for server in servers.into_iter().filter(|server| server.certificate.is_none()) {
            let supervisor = self.supervisor.clone();
            ends.spawn(async move { supervisor.stop(&server.server, server.token, StopMode::Force).await });
        }
        timeout(Duration::from_secs(10), async { while ends.join_next().await.is_some() {} }).await.ok();
    }
}

/// Returns what has to be made ready around a server before it is executed, in words.
fn preparing(spec: &ServerSpec) -> Option<String> {
    let words = [
        (!spec.mounts.is_empty(), "mount"),
        (!spec.addresses.is_empty(), "address"),
        (spec.hooks.contains_key(&HookStep::PreStart), "pre_start"),
    ];
    let words: Vec<_> = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// M18: a server starts with its config sets on disk; with the copy that is there if no newer one comes.
fn sets_are_here(view: &MachineView, here: &mut Here, server: &ServerName, spec: &ServerSpec) -> bool {
    let lacking = spec.needs_sets.iter().filter_map(|name| SetName::new(name.clone()).ok()).find(|set| {
        view.sets
            .get(set)
            .is_some_and(|order| order.live.is_some_and(|live| here.applied.get(set) != Some(&live.number)))
    });
    let Some(set) = lacking else {
        here.waiting_for_sets.remove(server);
        return true;
    };
    let since = *here.waiting_for_sets.entry(server.clone()).or_insert_with(Instant::now);
    if since.elapsed() < SETS_WITHIN || !here.applied.contains_key(&set) {
        return false;
    }
    warn!(%server, %set, "started with an older copy of its config set");
    true
}

/// Starts a server once an answered renewal names its token.
async fn start_granted(
    supervisor: &Supervisor,
    mut standing: watch::Receiver<Standing>,
    order: &Order,
    spec: ServerSpec,
    clients: Vec<Connection>,
) -> Result<(), leaseward_node::Error> {
    let lease = order.server.lease();
    let granted = standing.wait_for(|standing| standing.over || standing.held.get(&lease) == Some(&order.token));
    // Before anything else is waited for: what remains is less afterwards.
    let deadline = match timeout(GRANT_WITHIN, granted).await {
        Ok(Ok(standing)) => BootInstant::after(|| standing.remaining()),
        Ok(Err(_)) | Err(_) => BootInstant::now(),
    };
    if let Err(why) = supervisor.end_preparation(&order.server).await {
        warn!(server = %order.server, why, "its preparation goes on");
    }
    let (server, token) = (order.server.clone(), order.token);
    supervisor.start(StartOrder { server, spec, token, deadline, clients }).await.map(drop)
}

/// Has nothing started under a token any more, before somebody hears so. What an agent before this one began counts, too.
async fn retire(supervisor: &Supervisor, server: &ServerName, token: FencingToken) {
    if let Err(error) = supervisor.retire(server, token).await {
        warn!(%server, %token, %error, "only this agent knows that nothing is started under it any more");
    }
}

/// Extends the deadlines of everything that runs under a token that the session holds, by answered renewals only.
async fn extend_deadlines(supervisor: Supervisor, mut standing: watch::Receiver<Standing>) {
    while standing.changed().await.is_ok() {
        let (held, deadline) = {
            let standing = standing.borrow_and_update();
            if standing.remaining().is_zero() {
                continue;
            }
            let held = standing.held.iter().filter_map(|(lease, token)| Some((lease.server()?, *token))).collect();
            (held, BootInstant::after(|| standing.remaining()))
        };
        match supervisor.extend_all(held, deadline).await {
            Ok(outcomes) => {
                for (server, outcome) in outcomes {
                    if let Err(error) = outcome {
                        debug!(%server, %error, "its deadline was not extended");
                    }
                }
            }
            Err(error) => warn!(%error, "deadlines cannot be extended"),
        }
    }
}
