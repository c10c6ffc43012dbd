//! Keeps the session of a machine with a control script, and its servers as they are ordered.
//!
//! Must stay true: the session is renewed only while ssh answers; one process manages a machine at a time (it holds the
//! lease `remote/<machine>`); when the session runs out, everything is asked to end, as far as ssh still reaches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaseward_raft::net::wire::{MachineView, Renewal, Renewed};
use leaseward_state::command::OpenMachine;
use leaseward_state::machine::MachineProfile;
use leaseward_state::order::Action;
use leaseward_state::server::FenceLevel;
use leaseward_state::session::Incarnation;
use leaseward_state::{Command, FencingToken, Reply, Revision, ServerName};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::Client;
use crate::clock::Moment;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::keeper::{Keeper, Standing};
use crate::limits::REPORTS_WAITING_MAX;
use crate::remote::MANAGER_LABEL;
use crate::remote::control::ControlConfig;
use crate::remote::control::ask::Asker;
use crate::remote::control::memory::MayLive;
use crate::remote::control::tend::{Tended, Wish};
use crate::resume::Memory;

/// What differs from the orders is looked at again after this.
const AGAIN: Duration = Duration::from_millis(250);

/// Manages the machine until `stop` is cancelled. Servers go on then.
///
/// # Errors
/// [`Error::Start`] if its memory is not usable.
pub async fn run(config: ControlConfig, client: Client, stop: CancellationToken) -> Result<()> {
    let memory = MayLive::open(&config.data)
        .map_err(|error| Error::Start { code: "LW0600".into(), why: format!("{}: {error}", config.data.display()) })?;
    let (reports, queue) = mpsc::channel(REPORTS_WAITING_MAX);
    let reporter = tokio::spawn(crate::agent::report(client.clone(), queue));
    let asker = Asker::new(config.ssh.clone(), config.control.clone());
    let mut manager =
        Manager { asker, memory, reports, tended: BTreeMap::new(), ended: BTreeMap::new(), client, config };
    manager.serve_while_alone(&stop).await;
    reporter.abort();
    Ok(())
}

struct Manager {
    config: ControlConfig,
    client: Client,
    asker: Asker,
    memory: MayLive,
    reports: mpsc::Sender<Command>,
    tended: BTreeMap<ServerName, Tending>,
    /// The last token of each server whose end was reported: nothing is done under it again, whatever a view says that
    /// does not know of the report yet.
    ended: BTreeMap<ServerName, FencingToken>,
}

/// A server that somebody tends.
struct Tending {
    token: FencingToken,
    wish: watch::Sender<Wish>,
    /// Returns whether its end was reported.
    task: JoinHandle<bool>,
}

impl Manager {
    async fn serve_while_alone(&mut self, stop: &CancellationToken) {
        // Shorter than the session's, so that whoever takes over after a crash can still go on with that.
        let ttl = self.config.ttl / 2;
        while !stop.is_cancelled() {
            let name = format!("remote/{}", self.config.machine);
            let acquired = async { Cluster::with_client(self.client.another()).lease(name)?.ttl(ttl).acquire().await };
            let lease = tokio::select! {
                lease = acquired => lease,
                () = stop.cancelled() => return,
            };
            match lease {
                Ok(lease) => {
                    tokio::select! {
                        lost = lease.lost() => {
                            warn!(machine = %self.config.machine, %lost, "no longer its manager");
                            self.wish_all(&Wish::Kill);
                        }
                        () = self.serve() => {}
                        () = stop.cancelled() => {}
                    }
                    if let Err(error) = lease.release().await {
                        debug!(%error, "the manager's lease runs out by itself");
                    }
                }
                Err(error) => warn!(machine = %self.config.machine, %error, "not its manager yet"),
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn wish_all(&self, wish: &Wish) {
        for tending in self.tended.values() {
            tending.wish.send_if_modified(|known| {
                let changes = *known != *wish && *known != Wish::Kill;
                if changes {
                    known.clone_from(wish);
                }
                changes
            });
        }
    }

    /// One session after the other.
    async fn serve(&mut self) {
        loop {
            let boot_id = match self.asker.boot_id(self.patience()).await {
                Ok(boot_id) => boot_id,
                Err(why) => {
                    warn!(machine = %self.config.machine, %why, "not reached");
                    sleep(self.config.poll).await;
                    continue;
                }
            };
            let keeper = self.session(boot_id).await;
            self.follow(keeper).await;
        }
    }

    /// How long one look at the machine may take.
    fn patience(&self) -> Duration {
        self.config.ttl.max(Duration::from_secs(1))
    }

    async fn session(&self, boot_id: String) -> Keeper {
        // Without a boot to tell apart, nothing may be concluded from another one.
        let boot_id = if boot_id == "-" { format!("unknown:{}", self.config.machine) } else { boot_id };
        let path = self.config.data.join("session.json");
        let ttl_ms = u64::try_from(self.config.ttl.as_millis()).unwrap_or(u64::MAX);
        let memory = Memory::load(&path, &boot_id);
        if let Some(memory) = memory.as_ref().filter(|memory| memory.ttl_ms == ttl_ms) {
            let session = memory.session();
            let sent = Moment::now();
            let renewal = Renewal { session, known: Revision(0) };
            if let Ok(Some(answers)) = self.client.renew(vec![renewal], Duration::from_secs(1)).await
                && matches!(answers.first(), Some(Renewed::Alive { .. }))
            {
                info!(machine = %self.config.machine, %session, "session goes on");
                return Keeper::start(self.client.clone(), session, self.config.ttl, sent);
            }
        }
        // Every right of the session before is over; the next one's orders ask for the proofs.
        self.wish_all(&Wish::Kill);
        let incarnation = Incarnation { boot_id, instance: Memory::next_instance(memory.as_ref()) };
        let mut labels = self.config.labels.clone();
        labels.insert(MANAGER_LABEL.0.into(), MANAGER_LABEL.1.into());
        let profile = MachineProfile {
            labels,
            fence: FenceLevel::F0,
            address: self.config.ssh.destination.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: self.config.capacity,
            start_slots: self.config.start_slots,
            watchdog_ms: None,
        };
        // R1: the session may be the one that the first question opened.
        let sent = Moment::now();
        loop {
            let (machine, incarnation, profile) = (self.config.machine.clone(), incarnation.clone(), profile.clone());
            // What lives there is found by orders to kill it, one by one.
            let open = OpenMachine { machine, incarnation: incarnation.clone(), profile, swept: false, ttl_ms };
            match self.client.write(Command::OpenMachine(open)).await {
                Ok(Reply::Session(session)) => {
                    let instance = format!("{:032x}", incarnation.instance);
                    let (boot_id, run_dir) = (incarnation.boot_id, self.config.data.clone());
                    let memory = Memory { session: session.0, boot_id, instance, ttl_ms, run_dir, run_mark: None };
                    if let Err(error) = memory.save(&path) {
                        warn!(%error, "cannot remember the session; a restart of this process will end it");
                    }
                    warn!(
                        machine = %self.config.machine, %session,
                        "session opened at level F0: nothing ends servers there at their deadline; only their `grace`, or \
                         somebody who knows, frees them when this machine is lost (LW0377)"
                    );
                    return Keeper::start(self.client.clone(), session, self.config.ttl, sent);
                }
                Ok(other) => warn!(?other, "a strange answer to opening a session"),
                Err(error) => warn!(%error, "no session yet; trying again"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Does what is ordered, until the session is over or ssh has not answered for too long.
    async fn follow(&mut self, keeper: Keeper) {
        let mut helpers = JoinSet::new();
        let (publish, mut views) = watch::channel(MachineView::default());
        helpers.spawn(follow_views(self.client.another(), self.config.machine.clone(), publish));
        helpers.spawn(look(self.asker.clone(), self.config.poll.min(self.config.ttl / 3), self.patience()));
        let mut standing = keeper.standing();
        let budget = self.config.ttl / 3;
        let began = Instant::now();
        let mut unwilling = false;
        loop {
            let left = standing.borrow_and_update().remaining();
            let heard = self.asker.answered().map_or(began, |answered| answered.max(began));
            if standing.borrow().over || left.is_zero() {
                warn!(machine = %self.config.machine, "the session is over");
                return;
            }
            if heard.elapsed() > self.config.ttl {
                warn!(machine = %self.config.machine, "ssh does not answer: the session is given up");
                return;
            }
            if left > budget {
                unwilling = false;
                let view = views.borrow_and_update().clone();
                self.reconcile(&view, &keeper).await;
            } else if !unwilling {
                unwilling = true;
                warn!(machine = %self.config.machine, "the session is not renewed: everything is asked to end");
                self.wish_all(&Wish::Stop(left.mul_f64(0.8)));
            }
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                changed = views.changed() => if changed.is_err() { return },
                () = sleep_until(Instant::now() + AGAIN) => {}
            }
        }
    }

    /// Compares what is ordered with what is tended.
    async fn reconcile(&mut self, view: &MachineView, keeper: &Keeper) {
        if view.revision == Revision(0) {
            return;
        }
        let done: Vec<_> = self.tended.extract_if(.., |_, tending| tending.task.is_finished()).collect();
        for (server, tending) in done {
            if tending.task.await.unwrap_or(false) {
                self.ended.insert(server, tending.token);
            }
        }
        for order in &view.orders {
            if self.ended.get(&order.server).is_some_and(|token| *token >= order.token) {
                continue;
            }
            let wish = match &order.action {
                Action::Run { spec, .. } => Wish::Run(spec.clone()),
                Action::Stop { grace_ms } => Wish::Stop(Duration::from_millis(*grace_ms)),
                Action::Kill => Wish::Kill,
                // A control script knows nothing of that.
                Action::Prepare { .. } => continue,
            };
            match self.tended.get(&order.server) {
                Some(tending) if tending.token == order.token => {
                    // What was given up is not wanted again under the same token.
                    tending.wish.send_if_modified(|known| {
                        let changes = *known != wish && *known != Wish::Kill;
                        if changes {
                            *known = wish;
                        }
                        changes
                    });
                }
                Some(older) => drop(older.wish.send_replace(Wish::Kill)),
                None => self.tend(order.server.clone(), order.token, wish, keeper.standing()),
            }
        }
        self.end_surplus(view, keeper);
    }

    /// What may live here and is ordered by nobody: its server was moved or forgotten while we did not look.
    fn end_surplus(&mut self, view: &MachineView, keeper: &Keeper) {
        let ordered: BTreeSet<_> = view.orders.iter().map(|order| &order.server).collect();
        for (server, token) in self.memory.all() {
            if ordered.contains(&server) || token.revision() > view.revision {
                continue;
            }
            match self.tended.get(&server) {
                Some(tending) if *tending.wish.borrow() == Wish::Kill => {}
                Some(tending) => drop(tending.wish.send_replace(Wish::Kill)),
                None => self.tend(server, token, Wish::Kill, keeper.standing()),
            }
        }
    }

    fn tend(&mut self, server: ServerName, token: FencingToken, wish: Wish, standing: watch::Receiver<Standing>) {
        debug!(%server, %token, ?wish, "tended");
        let (wish, wished) = watch::channel(wish);
        let tended = Tended {
            asker: self.asker.clone(),
            memory: self.memory.clone(),
            machine: self.config.machine.clone(),
            server: server.clone(),
            token,
            wish: wished,
            standing,
            reports: self.reports.clone(),
            poll: self.config.poll,
        };
        let task = tokio::spawn(tended.run());
        self.tended.insert(server, Tending { token, wish, task });
    }
}

/// Asks the machine for a sign of life, again and again.
async fn look(asker: Asker, poll: Duration, patience: Duration) {
    loop {
        if let Err(why) = asker.boot_id(patience).await {
            warn!(%why, "the machine does not answer");
        }
        sleep(poll).await;
    }
}

/// Asks for the machine's view again and again; each question waits at the voter until something changes.
async fn follow_views(client: Client, machine: leaseward_state::MachineName, publish: watch::Sender<MachineView>) {
    loop {
        let known = publish.borrow().revision;
        match client.view(&machine, known).await {
            // A voter that is behind must not take us back.
            Ok(view) if view.revision > known => drop(publish.send_replace(view)),
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "no view");
                sleep(AGAIN).await;
            }
        }
    }
}
