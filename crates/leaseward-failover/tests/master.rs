//! The master's loop by itself, in a cluster that is one value in memory, with paused time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_failover::manager::NodeManager;
use leaseward_failover::master::{self, ReignClock};
use leaseward_state::command::OpenMachine;
use leaseward_state::machine::MachineProfile;
use leaseward_state::order::Order;
use leaseward_state::propose::{Committed, NotCommitted, Propose};
use leaseward_state::server::{FenceLevel, Placement, ServerSpec, Wanted};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    ClusterMillis, Command, Entry, MachineName, Reply, Request, ServerName, State, Term, UnixMillis,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// In paused time this passes as soon as nobody has anything to do before.
const LONG: Duration = Duration::from_secs(600);

/// What becomes of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is committed, and the answer comes.
    Committed,
    /// It is committed, and nobody hears of it.
    Unheard,
    /// It is never in the log.
    Lost,
    /// Somebody else's command is committed just before it.
    Overtaken,
}

/// The log, the state that it makes, and who sees it when.
#[derive(Clone)]
struct World {
    inner: Arc<Mutex<Inner>>,
    states: watch::Sender<Arc<State>>,
    reign: watch::Sender<Option<Term>>,
}

#[derive(Default)]
struct Inner {
    state: State,
    fates: VecDeque<Fate>,
    /// Everything that a master proposed, with the reply if it was committed.
    proposed: Vec<(Command, Option<Reply>)>,
    orders: Vec<(MachineName, Order)>,
    instance: u128,
}

fn machine(name: &str) -> MachineName {
    MachineName::new(name).expect("a name")
}

fn server(name: &str) -> ServerName {
    ServerName::new(name).expect("a name")
}

impl World {
    fn new() -> Self {
        Self { inner: Arc::default(), states: watch::Sender::new(Arc::default()), reign: watch::Sender::new(None) }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }

    fn apply(&self, command: Command) -> Committed {
        let mut inner = self.inner();
        let revision = inner.state.revision().next();
        let entry =
            Entry { revision, term: Term(1), at: UnixMillis(1), elapsed: ClusterMillis(0), request: command.into() };
        let reply = inner.state.apply(&entry).reply;
        inner.state.check_invariants().expect("whole");
        Committed { revision, reply }
    }

    /// Those who watch see the state as it is now.
    fn publish(&self) {
        let state = Arc::new(self.inner().state.clone());
        self.states.send_replace(state);
    }

    fn happens(&self, command: Command) {
        let reply = self.apply(command).reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        self.publish();
    }

    fn machine(&self, name: &str) {
        let instance = {
            let mut inner = self.inner();
            inner.instance += 1;
            inner.instance
        };
        self.happens(Command::OpenMachine(OpenMachine {
            machine: machine(name),
            incarnation: Incarnation { boot_id: "b".into(), instance },
            profile: MachineProfile { fence: FenceLevel::F2, ..MachineProfile::default() },
            swept: false,
            ttl_ms: 3_000,
        }));
    }

    fn server(&self, name: &str) {
        let spec = ServerSpec::new(["serve"]);
        self.happens(Command::PutServer { server: server(name), spec: Box::new(spec), if_version: None });
    }

    fn dies(&self, name: &str) {
        let session = self.inner().state.machine(&machine(name)).and_then(|machine| machine.session);
        let sessions = vec![session.expect("it lives")];
        self.happens(Command::CloseSessions { sessions, term: Term(1) });
    }

    fn next(&self, fates: impl IntoIterator<Item = Fate>) {
        self.inner().fates.extend(fates);
    }

    /// Starts the loop of this member's master.
    fn start(&self) -> JoinHandle<()> {
        let clock = SinceNow(Instant::now());
        tokio::spawn(master::run(self.clone(), self.states.subscribe(), self.reign.subscribe(), self.clone(), clock))
    }

    fn reigns(&self, term: Option<u64>) {
        self.reign.send_replace(term.map(Term));
    }

    /// Returns where a server is, once it is anywhere.
    async fn placed(&self, name: &str) -> MachineName {
        let mut states = self.states.subscribe();
        let on = |state: &State| match &state.server(&server(name))?.placement {
            Placement::Assigned(assignment) => Some(assignment.machine.clone()),
            _ => None,
        };
        let state = states.wait_for(|state| on(state).is_some());
        let state = timeout(LONG, state).await.expect("it is placed").expect("the world goes on").clone();
        on(&state).expect("as waited for")
    }

    fn proposals(&self) -> Vec<&'static str> {
        self.inner().proposed.iter().map(|(command, _)| command.name()).collect()
    }

    fn refused(&self) -> usize {
        self.inner().proposed.iter().filter(|(_, reply)| matches!(reply, Some(Reply::Refused(_)))).count()
    }
}

impl Propose for World {
    async fn propose(&self, _: Request) -> Result<Committed, NotCommitted> {
        panic!("a master proposes for itself only: nothing of it is forwarded");
    }

    async fn propose_internal(&self, request: Request) -> Result<Committed, NotCommitted> {
        sleep(Duration::from_millis(1)).await;
        let command = request.command;
        let fate = self.inner().fates.pop_front().unwrap_or(Fate::Committed);
        if fate == Fate::Overtaken {
            let Command::Assign(assign) = &command else { panic!("{command:?}") };
            self.happens(Command::SetWanted { server: assign.server.clone(), wanted: Wanted::Stopped });
        }
        let committed = (fate != Fate::Lost).then(|| self.apply(command.clone()));
        self.inner().proposed.push((command, committed.as_ref().map(|committed| committed.reply.clone())));
        if committed.is_some() {
            // The others see it a little later than who proposed it. What is lost, nobody sees.
            let world = self.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(3)).await;
                world.publish();
            });
        }
        match fate {
            Fate::Unheard => Err(NotCommitted::Unknown),
            _ => committed.ok_or(NotCommitted::NoLeader),
        }
    }

    fn leading(&self) -> Option<Term> {
        *self.reign.borrow()
    }
}

impl NodeManager for World {
    fn order(&self, machine: &MachineName, order: &Order) {
        self.inner().orders.push((machine.clone(), order.clone()));
    }
}

struct SinceNow(Instant);

impl ReignClock for SinceNow {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(0)
    }
}

#[tokio::test(start_paused = true)]
async fn it_follows_the_state_and_proposes_each_thing_once() {
    let world = World::new();
    let master = world.start();
    world.machine("m1");
    world.machine("m2");
    world.server("a");
    world.server("b");
    sleep(LONG).await;
    assert_eq!(world.proposals(), [""; 0], "it does not reign");

    world.reigns(Some(1));
    world.placed("a").await;
    let here = world.placed("b").await;
    sleep(LONG).await;
    assert_eq!(world.proposals(), ["assign", "assign"], "and then nothing more");

    // A machine dies: the grace of its fence passes, and what ran there is placed elsewhere, once.
    let in_all = 3 + usize::from(world.placed("a").await == here);
    let died = Instant::now();
    world.dies(here.as_str());
    let there = world.placed("b").await;
    assert_ne!(there, here);
    let grace = FenceLevel::F2.grace_ms().map(Duration::from_millis).expect("it has one");
    assert!(died.elapsed() >= grace, "placed again after {:?}", died.elapsed());
    sleep(LONG).await;
    assert_eq!((world.proposals().len(), world.refused()), (in_all, 0), "{:?}", world.proposals());
    assert!(!master.is_finished());
}

#[tokio::test(start_paused = true)]
async fn its_proposals_carry_the_term_of_its_reign() {
    let world = World::new();
    let _master = world.start();
    world.machine("m1");
    world.reigns(Some(1));
    world.server("a");
    world.placed("a").await;
    // The log says term 1; this reign is another one, so nothing that it proposes counts.
    world.reigns(Some(7));
    world.server("b");
    timeout(LONG, async {
        while world.refused() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it proposes in its new reign");
    let Command::Assign(assign) = world.inner().proposed[1].0.clone() else { panic!("{:?}", world.proposals()) };
    assert_eq!((assign.server, assign.term), (server("b"), Term(7)));
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_is_refused_or_lost_is_planned_again_on_what_is_so_now() {
    let world = World::new();
    let _master = world.start();
    world.machine("m1");
    world.reigns(Some(1));

    world.next([Fate::Lost, Fate::Lost]);
    world.server("lost");
    world.placed("lost").await;
    sleep(LONG).await;
    assert_eq!(world.proposals(), ["assign"; 3], "two were lost, the third one counts");

    // It is committed, and nobody hears of it: the state tells.
    world.next([Fate::Unheard]);
    world.server("unheard");
    world.placed("unheard").await;
    sleep(LONG).await;
    assert_eq!(world.proposals().len(), 4, "it is there already");

    // An operator is quicker: the proposal is refused, and the loop does what is wanted now.
    world.next([Fate::Overtaken]);
    world.server("overtaken");
    sleep(LONG).await;
    assert_eq!((world.proposals().len(), world.refused()), (5, 1));
    world.happens(Command::SetWanted { server: server("overtaken"), wanted: Wanted::Running });
    world.placed("overtaken").await;
    sleep(LONG).await;
    assert_eq!((world.proposals().len(), world.refused()), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn it_stops_with_its_reign_and_another_one_goes_on_anywhere() {
    let world = World::new();
    let first = world.start();
    world.machine("m1");
    world.machine("m2");
    world.server("a");
    world.reigns(Some(1));
    let here = world.placed("a").await;
    // In the middle of a grace, its reign is over: it does nothing more, however long that lasts.
    world.dies(here.as_str());
    sleep(Duration::from_millis(1)).await;
    world.reigns(None);
    sleep(LONG).await;
    assert_eq!(world.proposals(), ["assign"], "it acted after its reign");

    // It reigns again: it counts the grace anew, since nobody knows what it missed.
    let again = Instant::now();
    world.reigns(Some(1));
    assert_ne!(world.placed("a").await, here);
    let grace = FenceLevel::F2.grace_ms().map(Duration::from_millis).expect("it has one");
    assert!(again.elapsed() >= grace, "placed {:?} after its reign began", again.elapsed());

    // Its process ends while its proposal is under way, and is committed all the same: the next one finds it done.
    world.next([Fate::Unheard]);
    world.server("b");
    sleep(Duration::from_millis(1)).await;
    first.abort();
    assert!(first.await.expect_err("it was ended").is_cancelled());
    world.placed("b").await;
    let before = world.proposals().len();
    let second = world.start();
    world.server("c");
    world.placed("c").await;
    sleep(LONG).await;
    assert_eq!((world.proposals().len(), world.refused()), (before + 1, 0), "{:?}", world.proposals());
    assert!(!second.is_finished());
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_states() {
    let (states, seen) = watch::channel(Arc::new(State::default()));
    let (_reign, reign) = watch::channel(None);
    let world = World::new();
    let master = tokio::spawn(master::run(world.clone(), seen, reign, world, SinceNow(Instant::now())));
    drop(states);
    timeout(LONG, master).await.expect("it ends").expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn it_invokes_the_node_manager_with_what_was_committed() {
    let world = World::new();
    let _master = world.start();
    world.machine("m1");
    world.reigns(Some(1));
    world.next([Fate::Lost]);
    world.server("a");
    world.placed("a").await;
    sleep(LONG).await;
    let inner = world.inner();
    let token = inner.state.server(&server("a")).and_then(|server| server.last_token).expect("it is placed");
    let orders: Vec<_> = inner.orders.iter().map(|(machine, order)| (machine.as_str(), order.token)).collect();
    assert_eq!(orders, [("m1", token)], "once, and only for what was committed");
}
