//! An agent on a simulated host: the real client and keeper, and a model of everything that they fence.
//!
//! Must stay true: it follows the same rules as the real one (`leaseward/src/serving.rs`): an order is a hint, a copy is
//! started only under an answered renewal that names its token, its timer is armed before it executes, and nothing is
//! started under a token of which somebody may have heard that nothing of it is here. What it forgets of that is a mutant's. Left out: crashes of servers, mounts, addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaseward::client::Client;
use leaseward::clock::Moment;
use leaseward::keeper::{Keeper, Standing};
use leaseward::{FencingToken, MachineName, ServerName};
use leaseward_raft::clock::{Which, read};
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::{MachineView, Renewal, Renewed};
use leaseward_raft::random::between;
use leaseward_state::command::{OpenMachine, ServerReport};
use leaseward_state::machine::MachineProfile;
use leaseward_state::order::Action;
use leaseward_state::server::{Certificate, Exit, FenceLevel, ServerStatus};
use leaseward_state::session::Incarnation;
use leaseward_state::{Command, Reply, Revision, SessionId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::host::{Host, Program};
use crate::judge::{Judge, Shim};
use crate::mutant::Mutant;

/// The kernel kills so late at most after a deadline: less than the grace of its level.
const LATE_MAX: Duration = Duration::from_millis(80);

/// So long at most a start is under way before it comes to the supervisor.
const START_MAX: Duration = Duration::from_millis(150);

/// What an agent does.
#[derive(Clone)]
pub struct Habits {
    /// The addresses of the voters.
    pub voters: Vec<String>,
    /// The time to live of its session.
    pub ttl: Duration,
    /// What it forgets.
    pub mutant: Option<Mutant>,
}

/// Returns the program.
#[must_use]
pub fn program(habits: Habits, judge: Judge) -> Program {
    Arc::new(move |host| Box::pin(run(host, habits.clone(), judge.clone())))
}

struct Agent {
    host: Arc<Host>,
    habits: Habits,
    judge: Judge,
    client: Client,
    machine: MachineName,
    boot_id: String,
    reports: mpsc::Sender<Command>,
    /// Servers whose copies ended here, with the token.
    ended: BTreeMap<ServerName, FencingToken>,
    /// What was started by this process or one before it, and not yet seen dead.
    running: BTreeMap<ServerName, (u64, FencingToken)>,
    /// Starts that are under way, and under which token the last one of each server is.
    starts: JoinSet<Start>,
    starting: BTreeMap<ServerName, FencingToken>,
}

/// A start that the grant allows.
struct Start {
    server: ServerName,
    token: FencingToken,
    deadline: Duration,
}

async fn run(host: Arc<Host>, habits: Habits, judge: Judge) {
    let client = Client::new(habits.voters.clone(), Transport::PlainAnywhere);
    let Ok(machine) = MachineName::new(host.name()) else { return };
    let (reports, queue) = mpsc::channel(256);
    tokio::spawn(report(client.another(), queue));
    let boot_id = format!("{}-{}", host.name(), host.boots());
    let (ended, running, starts, starting) = Default::default();
    let mut agent = Agent { host, habits, judge, client, machine, boot_id, reports, ended, running, starts, starting };
    loop {
        let keeper = agent.session().await;
        agent.serve(&keeper).await;
    }
}

async fn report(client: Client, mut queue: mpsc::Receiver<Command>) {
    while let Some(command) = queue.recv().await {
        while client.write(command.clone()).await.is_err_and(|error| error.is_retryable()) {}
    }
}

async fn follow_views(client: Client, machine: MachineName, publish: watch::Sender<MachineView>) {
    loop {
        let known = publish.borrow().revision;
        match timeout(Duration::from_secs(2), client.view(&machine, known)).await {
            Ok(Ok(view)) if view.revision > known => drop(publish.send_replace(view)),
            Ok(Ok(_)) => {}
            Ok(Err(_)) => sleep(Duration::from_millis(50)).await,
            Err(_) => client.rotate().await,
        }
    }
}

impl Agent {
    /// Returns the session of this boot, or a new one once nothing of an earlier one lives here.
    async fn session(&mut self) -> Keeper {
        let (id, boot) = (self.host.id(), self.host.boots());
        let remembered = self.judge.remembered(id, boot);
        self.running = self.living();
        if let Some(session) = remembered
            && let Some(sent) = self.resume(SessionId(session)).await
        {
            self.host.say(&format!("goes on with session {session}"));
            return Keeper::start(self.client.clone(), SessionId(session), self.habits.ttl, sent);
        }
        self.kill_all().await;
        let open = OpenMachine {
            machine: self.machine.clone(),
            incarnation: Incarnation { boot_id: self.boot_id.clone(), instance: self.judge.next_instance(id) },
            profile: MachineProfile { fence: FenceLevel::F2, ..MachineProfile::default() },
            swept: remembered.is_some(),
            ttl_ms: self.habits.ttl.as_millis() as u64,
        };
        let sent = Moment::now();
        loop {
            if let Ok(Reply::Session(session)) = self.client.write(Command::OpenMachine(open.clone())).await {
                self.judge.remember(id, boot, session.0);
                self.host.say(&format!("opens session {session}"));
                return Keeper::start(self.client.clone(), session, self.habits.ttl, sent);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn resume(&self, session: SessionId) -> Option<Moment> {
        loop {
            let sent = Moment::now();
            let renewal = Renewal { session, known: Revision(0) };
            match self.client.renew(vec![renewal], Duration::from_secs(1)).await {
                Ok(Some(answers)) => return matches!(answers.first(), Some(Renewed::Alive { .. })).then_some(sent),
                Ok(None) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn living(&self) -> BTreeMap<ServerName, (u64, FencingToken)> {
        let living = self.judge.living_on(self.host.id(), self.host.now());
        living.into_iter().map(|(number, (server, token))| (server, (number, token))).collect()
    }

    async fn kill_all(&mut self) {
        for (server, (number, token)) in std::mem::take(&mut self.running) {
            self.kill(&server, number, token).await;
        }
    }

    /// Kills a copy, and has the kernel's word for it.
    async fn kill(&mut self, server: &ServerName, number: u64, token: FencingToken) {
        self.judge.kill(number);
        self.host.say(&format!("killed {server} under {token}"));
        let certificate =
            Certificate { token, boot_id: self.boot_id.clone(), proven_at_boottime_ns: 0, exit: Exit::Signal(9) };
        self.tell_end(server, token, ServerReport::Dead { certificate, failure: None });
    }

    /// Tells what became of a copy. Nothing is started under its token from then on, by no later process of this boot either.
    fn tell_end(&mut self, server: &ServerName, token: FencingToken, report: ServerReport) {
        self.ended.insert(server.clone(), token);
        self.judge.retire(self.host.id(), self.host.boots(), server, token);
        self.reports.try_send(Command::ReportServer { server: server.clone(), token, report }).ok();
    }

    async fn serve(&mut self, keeper: &Keeper) {
        let mut helpers = JoinSet::new();
        let (publish, mut views) = watch::channel(MachineView::default());
        helpers.spawn(follow_views(self.client.another(), self.machine.clone(), publish));
        let mut standing = keeper.standing();
        loop {
            let now = standing.borrow_and_update().clone();
            if now.over {
                self.judge.session_over(self.host.now(), self.host.name());
                self.kill_all().await;
                return;
            }
            self.extend(&now);
            // Copies that their own timers killed.
            let living = self.living();
            let died: Vec<_> = self.running.extract_if(.., |server, _| !living.contains_key(server)).collect();
            for (server, (number, token)) in died {
                self.kill(&server, number, token).await;
            }
            let view = views.borrow_and_update().clone();
            self.reconcile(&view, &now, keeper).await;
            for (set, order) in &view.sets {
                if let Some(live) = order.live {
                    self.judge.member_has(self.host.now(), self.host.id(), set, live.number);
                }
            }
            tokio::select! {
                biased;
                _ = standing.changed() => {}
                _ = views.changed() => {}
                Some(Ok(start)) = self.starts.join_next() => self.execute(start).await,
                () = sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Returns until when copies may execute, on the boot clock.
    fn deadline(&self, standing: &Standing) -> Option<Duration> {
        // Read first: whoever stands still between the two readings gets less, never more.
        let now = read(Which::Boot);
        if self.habits.mutant == Some(Mutant::Sending) {
            return Some(now + self.habits.ttl);
        }
        let remaining = standing.remaining();
        (!remaining.is_zero()).then_some(now + remaining)
    }

    fn extend(&self, standing: &Standing) {
        if let Some(deadline) = self.deadline(standing).filter(|_| standing.renewals > 0) {
            self.judge.extend(self.host.id(), deadline);
        }
    }

    async fn reconcile(&mut self, view: &MachineView, standing: &Standing, keeper: &Keeper) {
        if view.revision == Revision(0) {
            return;
        }
        for order in &view.orders {
            if self.ended.get(&order.server).is_some_and(|token| *token >= order.token) {
                continue;
            }
            let runs = self.running.get(&order.server).copied();
            match (&order.action, runs) {
                (Action::Run { .. }, Some((_, token))) if token == order.token => {}
                (Action::Run { .. }, None) if self.starting.get(&order.server) == Some(&order.token) => {}
                (Action::Run { .. }, None) => {
                    let named = standing.held.get(&order.server.lease()) == Some(&order.token);
                    if named || self.habits.mutant == Some(Mutant::Grant) {
                        self.start(&order.server, order.token, standing);
                    } else {
                        keeper.renew_now();
                    }
                }
                (Action::Prepare { .. }, _) => {}
                (_, Some((number, token))) => {
                    self.running.remove(&order.server);
                    self.kill(&order.server, number, token).await;
                }
                // A start that is under way is overtaken.
                (_, None) => self.tell_end(&order.server, order.token, ServerReport::Absent),
            }
        }
        let ordered = |server: &ServerName, token| {
            view.orders.iter().any(|order| order.server == *server && order.token == token)
        };
        let surplus: Vec<_> = self
            .running
            .extract_if(.., |server, (_, token)| !ordered(server, *token) && token.revision() <= view.revision)
            .collect();
        for (server, (number, token)) in surplus {
            self.kill(&server, number, token).await;
        }
    }

    /// Orders a start. The deadline is the one of the grant that allows it.
    fn start(&mut self, server: &ServerName, token: FencingToken, standing: &Standing) {
        let deadline = match (self.deadline(standing), self.habits.mutant) {
            (Some(deadline), _) => deadline,
            (None, Some(Mutant::Grant)) => read(Which::Boot) + self.habits.ttl,
            (None, _) => return,
        };
        self.starting.insert(server.clone(), token);
        let (server, under_way) = (server.clone(), between(Duration::ZERO, START_MAX));
        self.starts.spawn(async move {
            sleep(under_way).await;
            Start { server, token, deadline }
        });
    }

    async fn execute(&mut self, Start { server, token, deadline }: Start) {
        let is_last = self.starting.get(&server) == Some(&token);
        if is_last {
            self.starting.remove(&server);
        }
        let (host, boot) = (self.host.id(), self.host.boots());
        let forgets = self.habits.mutant == Some(Mutant::Retire);
        if self.judge.retired(host, boot, &server).is_some_and(|retired| token <= retired) && !forgets {
            self.judge.count("starts that came too late");
            if is_last {
                self.tell_end(&server, token, ServerReport::Absent);
            }
            return;
        }
        if deadline <= read(Which::Boot) || self.running.contains_key(&server) {
            return;
        }
        let armed_first = self.habits.mutant != Some(Mutant::Arm);
        let shim = Shim {
            server: server.clone(),
            token,
            host: Arc::clone(&self.host),
            boot,
            deadline: armed_first.then_some(deadline),
            late: between(Duration::ZERO, LATE_MAX),
        };
        let number = self.judge.start(shim);
        self.running.insert(server.clone(), (number, token));
        if !armed_first {
            sleep(Duration::from_millis(30)).await;
            self.judge.arm(number, deadline);
        }
        let report = ServerReport::Status { status: ServerStatus::Running { pid: 1 }, restarts: 0 };
        self.reports.try_send(Command::ReportServer { server, token, report }).ok();
    }
}
