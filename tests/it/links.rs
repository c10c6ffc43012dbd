//! Links between nodes that break or fall silent, one by one or all of one node.
//!
//! Three nodes in one process, each behind a relay that knows who speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::limits::{SILENT_MAX, SNAPSHOT_PIECE_BYTES, SPEAK_EACH};
use leaseward_raft::net::frame;
use leaseward_raft::net::wire::{Ask, MemberChange, Purpose, Renewal, Renewed};
use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::command::Acquire;
use leaseward_state::propose::{NotCommitted, Propose};
use leaseward_state::server::ServerSpec;
use leaseward_state::{Command, LeaseName, Reply, Revision, ServerName, SessionId};
use leaseward_tests::relay::{Link, Relay, Who};
use leaseward_tests::{PATIENCE, eventually, free_port};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

struct Nodes {
    dir: TempDir,
    listen: Vec<SocketAddr>,
    advertised: Vec<SocketAddr>,
    relays: Vec<Relay>,
    nodes: Vec<Option<Replica>>,
    timing: Timing,
}

impl Nodes {
    async fn start() -> Self {
        Self::timed(Timing::fast()).await
    }

    async fn timed(timing: Timing) -> Self {
        let dir = TempDir::new().expect("a directory");
        let listen: Vec<_> = (0..3).map(|_| local()).collect();
        let advertised: Vec<_> = (0..3).map(|_| local()).collect();
        let mut relays = Vec::new();
        for i in 0..3 {
            relays.push(Relay::start(advertised[i], listen[i]).await);
        }
        let mut nodes = Self { dir, listen, advertised, relays, nodes: vec![None; 3], timing };
        for i in 0..3 {
            nodes.start_node(i).await;
        }
        let all = || nodes.node(0).status().membership.voters.first().map_or(0, BTreeSet::len) == 3;
        eventually("all vote", async || all()).await;
        nodes
    }

    fn settings(&self, i: usize) -> Settings {
        Settings {
            advertise: self.advertised[i].to_string(),
            timing: self.timing,
            segment_bytes: 256 << 10,
            snapshot_after_bytes: 512 << 10,
            log_bytes_kept: 64 << 10,
            free_bytes_min: 0,
            propose_within: PATIENCE,
            fatal: Arc::new(|why| panic!("{why}")),
            ..Settings::new(format!("n{i}"), self.dir.path().join(format!("n{i}")), self.listen[i])
        }
    }

    async fn start_node(&mut self, i: usize) {
        let join = || Start::Join { addresses: vec![self.advertised[0].to_string()], replace: false };
        let start = if i == 0 { Start::Bootstrap } else { join() };
        self.nodes[i] = Some(Replica::start(self.settings(i), start).await.expect("it starts"));
    }

    async fn stop_node(&mut self, i: usize) {
        self.nodes[i].take().expect("it runs").stop().await;
    }

    fn node(&self, i: usize) -> &Replica {
        self.nodes[i].as_ref().expect("it runs")
    }

    fn who(&self, i: usize) -> Who {
        Who::Node(self.node(i).node())
    }

    /// Returns the one that leads, not counting `except`.
    async fn leader(&self, except: Option<usize>) -> usize {
        let leads = |i: &usize| Some(*i) != except && self.nodes[*i].as_ref().is_some_and(|n| n.leading().is_some());
        eventually("one leads", async || (0..3).any(|i| leads(&i))).await;
        (0..3).find(leads).expect("one leads")
    }

    /// What becomes of the connections that one node opens to another one.
    fn link(&self, from: usize, to: usize, link: Link) {
        self.relays[to].set(self.who(from), link);
    }

    fn both(&self, one: usize, other: usize, link: Link) {
        self.link(one, other, link);
        self.link(other, one, link);
    }
}

async fn open_session(node: &Replica, ttl_ms: u64) -> SessionId {
    let open = Command::OpenSession { name: "links".into(), ttl_ms };
    match node.propose(open.into()).await.expect("committed").reply {
        Reply::Session(id) => id,
        other => panic!("{other:?}"),
    }
}

fn lease(name: &str) -> LeaseName {
    LeaseName::new(name).expect("a name")
}

fn acquire(session: SessionId, name: &str, wait: bool) -> Command {
    Command::Acquire(Acquire {
        lease: lease(name),
        session,
        holder: "h".into(),
        wait,
        priority: 0,
        lock_delay_ms: 0,
        meta: BTreeMap::new(),
    })
}

fn large_server(number: usize) -> Command {
    let spec = ServerSpec {
        environment: BTreeMap::from([("LONG".to_owned(), "x".repeat(60_000))]),
        ..ServerSpec::new(["true"])
    };
    let server = ServerName::new(format!("s{number}")).expect("a name");
    Command::PutServer { server, spec: Box::new(spec), if_version: None }
}

/// Returns the size of the newest snapshot of a node, in bytes.
fn snapshot_bytes(nodes: &Nodes, i: usize) -> u64 {
    let entries = fs::read_dir(nodes.settings(i).data.join("snapshots")).expect("readable").flatten();
    let whole = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".lws"));
    let newest = whole.max_by_key(fs::DirEntry::file_name).expect("there is one");
    newest.metadata().expect("readable").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_interrupted_goes_on_from_where_it_was() {
    let mut nodes = Nodes::start().await;
    let leader = nodes.leader(None).await;
    let behind = (leader + 1) % 3;
    nodes.stop_node(behind).await;
    // The last snapshot is made before it is sent, and nothing is added then, so that there is one transfer only.
    let (mut servers, mut last) = (0, u64::MAX);
    eventually("a snapshot covers nearly all", async || {
        let status = nodes.node(leader).status();
        if servers >= 130 && status.snapshot_index + 8 > status.last_index {
            last = status.last_index;
            return true;
        }
        let reply = nodes.node(leader).propose(large_server(servers).into()).await.expect("committed").reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        servers += 1;
        false
    })
    .await;
    let size = snapshot_bytes(&nodes, leader);
    assert!(size > 6 * SNAPSHOT_PIECE_BYTES as u64, "{size} bytes are too few to interrupt");

    let relay = |nodes: &Nodes| nodes.relays[behind].asked_in_bulk();
    let before = relay(&nodes);
    nodes.relays[behind].break_bulk_after(Some(before + size / 3));
    nodes.start_node(behind).await;
    eventually("it is cut in its first third", async || relay(&nodes) >= before + size / 3).await;
    nodes.relays[behind].break_bulk_after(Some(before + 2 * size / 3));
    eventually("it is cut in its second third", async || relay(&nodes) >= before + 2 * size / 3).await;
    // Now the receiver is started again, too.
    nodes.stop_node(behind).await;
    nodes.relays[behind].break_bulk_after(None);
    nodes.start_node(behind).await;
    eventually("it has everything", async || nodes.node(behind).status().applied_index >= last).await;

    let sent = relay(&nodes) - before;
    println!("a snapshot of {size} bytes, cut twice: {sent} bytes were sent");
    // At each cut a piece may be lost on its way, and the connection had room for another one.
    let most = size + 2 * SNAPSHOT_PIECE_BYTES as u64 + (64 << 10);
    assert!(sent >= size && sent <= most, "{sent} bytes were sent for {size}");
    let state = nodes.node(behind).read().await.expect("readable").state;
    assert_eq!(state.servers().count(), servers);
    state.check_invariants().expect("whole");

    // What came is a snapshot of its own by now: the log before it is gone, and the materialised state may be lost too.
    nodes.stop_node(behind).await;
    fs::remove_dir_all(nodes.settings(behind).data.join("state")).expect("it can always be made anew");
    nodes.start_node(behind).await;
    eventually("it has everything from its own disk", async || nodes.node(behind).status().applied_index >= last).await;
    // Only that the sender lives.
    let again = relay(&nodes) - before - sent;
    assert!(again < SNAPSHOT_PIECE_BYTES as u64 / 4, "{again} bytes were sent again");
}

/// Returns the size of a word that only says that somebody lives.
fn word_bytes() -> u64 {
    frame::bytes(frame::message(Purpose::Control), &(0_u64, Ask::Ping)).expect("it fits").len() as u64
}

/// One follower and the leader do not hear each other, or only one hears the other; the third one hears both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cut_link_deposes_nobody() {
    let nodes = Nodes::start().await;
    let leader = nodes.leader(None).await;
    let (lonely, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let session = open_session(nodes.node(leader), 3_600_000).await;
    let term = nodes.node(leader).status().term;
    let cases = [
        ("broken both ways", Link::Broken, Link::Broken, true),
        ("silent both ways", Link::Silent, Link::Silent, true),
        ("the leader is not heard", Link::Silent, Link::Open, true),
        ("the leader hears no answer", Link::Mute, Link::Open, false),
        ("the leader does not hear", Link::Open, Link::Silent, false),
        ("the leader refuses connections", Link::Open, Link::Broken, false),
    ];
    for (what, from_leader, to_leader, asks) in cases {
        let before = nodes.relays[third].asked(nodes.who(lonely), Purpose::Control);
        nodes.link(leader, lonely, from_leader);
        nodes.link(lonely, leader, to_leader);
        // Work goes on for several election timeouts. First reads only: the lonely one's log is as good as any, so only
        // its peers' knowledge of a living leader speaks against it.
        let (began, mut reads) = (Instant::now(), 0);
        while began.elapsed() < 3 * Timing::fast().election_max {
            let read = timeout(Timing::fast().election_min, nodes.node(leader).read()).await.expect("without a pause");
            read.expect("it leads");
            reads += 1;
            let at = [leader, third, lonely].map(|i| nodes.node(i).status().term);
            assert_eq!(at, [term; 3], "{what}: somebody campaigned");
        }
        let write = nodes.node(leader).propose(acquire(session, &what.replace(' ', "-"), false).into());
        let committed = timeout(Timing::fast().election_min, write).await.expect("without a pause");
        assert!(matches!(committed.expect("committed").reply, Reply::Granted { .. }));
        let asked = nodes.relays[third].asked(nodes.who(lonely), Purpose::Control) - before;
        // It also says that it lives.
        let words = 1 + began.elapsed().as_millis() / SPEAK_EACH.as_millis();
        let asked = asked.saturating_sub(word_bytes() * words as u64);
        println!("{what}: {reads} reads, {asked} bytes of questions to the third one");
        assert!(!asks || asked > 0, "{what}: the lonely one never even asked, so this shows nothing");

        nodes.both(leader, lonely, Link::Open);
        let last = nodes.node(leader).status().last_index;
        eventually("it follows", async || {
            let status = nodes.node(lonely).status();
            status.applied_index >= last && status.leader == Some(nodes.node(leader).node())
        })
        .await;
        assert_eq!(nodes.node(lonely).status().term, term, "{what}: healing deposed the leader");
        assert_eq!(nodes.node(leader).leading().map(|term| term.0), Some(term));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_grants_nothing_while_the_others_go_on() {
    const TTL: Duration = Duration::from_secs(1);
    for link in [Link::Silent, Link::Broken] {
        let nodes = Nodes::start().await;
        let old = nodes.leader(None).await;
        let session = open_session(nodes.node(old), TTL.as_millis() as u64).await;
        let reply = nodes.node(old).propose(acquire(session, "x", false).into()).await.expect("committed").reply;
        let Reply::Granted { grant: first, .. } = reply else { panic!("{reply:?}") };
        let renewals = vec![Renewal { session, known: Revision(0) }];
        let renewed_at = Instant::now();
        let renewed = nodes.node(old).renew(renewals.clone()).await.expect("it leads");
        assert!(matches!(renewed[0], Renewed::Alive { .. }));
        for other in (0..3).filter(|i| *i != old) {
            nodes.both(old, other, link);
        }

        // It never acknowledges a renewal, and commits nothing.
        let cut_off = nodes.node(old).clone();
        let renewing = tokio::spawn(async move {
            for attempt in 0.. {
                assert_eq!(cut_off.renew(renewals.clone()).await.map(|all| all.len()), None, "renewal {attempt}");
                tokio::task::yield_now().await;
            }
        });
        let alone = nodes.node(old).clone();
        let grant = async move { alone.propose_internal(acquire(session, "y", false).into()).await };
        let grant = tokio::spawn(grant);
        let new = nodes.leader(Some(old)).await;
        let elected_after = renewed_at.elapsed();
        let waiting = open_session(nodes.node(new), 3_600_000).await;
        let reply = nodes.node(new).propose(acquire(waiting, "x", true).into()).await.expect("committed").reply;
        assert!(matches!(reply, Reply::Queued { .. }), "its holder may still believe in it: {reply:?}");
        let mut published = nodes.node(new).published();
        let token = |state: &leaseward_state::State| state.token(&lease("x"));
        let granted = published.wait_for(|now| token(&now.state).is_some_and(|token| token != first.token));
        let second = timeout(PATIENCE, granted).await.expect("in time").expect("it goes on").state.clone();
        let granted_after = renewed_at.elapsed();
        println!("{link:?}: elected {elected_after:?}, granted {granted_after:?} after the last renewal");
        assert!(granted_after >= TTL, "granted {granted_after:?} after the last renewal: its holder has {TTL:?}");
        assert!(token(&second) > Some(first.token));
        let grant = grant.await.expect("no panic");
        assert!(grant.is_err(), "a leader without a quorum granted a lease");
        assert!(!renewing.is_finished(), "a leader without a quorum acknowledged a renewal");
        renewing.abort();

        for other in (0..3).filter(|i| *i != old) {
            nodes.both(old, other, Link::Open);
        }
        let last = nodes.node(new).status().last_index;
        eventually("the old one follows", async || {
            let status = nodes.node(old).status();
            status.applied_index >= last && status.leader == Some(nodes.node(new).node())
        })
        .await;
        assert_eq!(nodes.node(old).leading(), None);
        let state = nodes.node(old).read().await.expect("readable").state;
        assert_eq!((token(&state), state.token(&lease("y"))), (token(&second), None), "what was never granted is gone");
    }
}

/// Rule R4: its voters remember when they heard the old leader last, so a long election costs nobody anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_with_the_leader_is_ended_no_later_than_if_it_had_lived() {
    const TTL: Duration = Duration::from_secs(3);
    const SILENCE: Duration = Duration::from_millis(1_000);
    let slow = Timing { election_min: SILENCE, election_max: SILENCE * 6 / 5, ..Timing::default() };
    let nodes = Nodes::timed(slow).await;
    let old = nodes.leader(None).await;
    let session = open_session(nodes.node(old), TTL.as_millis() as u64).await;
    let sent = Instant::now();
    let renewed = nodes.node(old).renew(vec![Renewal { session, known: Revision(0) }]).await.expect("it leads");
    assert!(matches!(renewed[0], Renewed::Alive { .. }));
    for other in (0..3).filter(|i| *i != old) {
        nodes.both(old, other, Link::Silent);
    }
    let new = nodes.leader(Some(old)).await;
    let elected = sent.elapsed();
    assert!(elected >= SILENCE * 9 / 10, "elected after {elected:?}: too soon to tell anything");
    let mut published = nodes.node(new).published();
    let over = published.wait_for(|now| now.state.session(session).is_none());
    drop(timeout(PATIENCE, over).await.expect("in time").expect("it goes on"));
    let ended = sent.elapsed();
    println!("elected {elected:?}, ended {ended:?} after its last renewal");
    assert!(ended >= TTL.mul_f64(0.999 / 1.001), "it ended {ended:?} after its last renewal: its holder has {TTL:?}");
    assert!(ended < TTL + elected / 2, "it ended {ended:?} after its last renewal, counted from the election");
}

/// Rule R4: the old leader's own yes may be the only one that the new leader's voters know of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_leader_that_votes_for_the_new_one_says_what_it_answered_itself() {
    const TTL: Duration = Duration::from_secs(1);
    let mut nodes = Nodes::start().await;
    let old = nodes.leader(None).await;
    let (new, dies) = ((old + 1) % 3, (old + 2) % 3);
    let session = open_session(nodes.node(old), TTL.as_millis() as u64).await;
    let last = nodes.node(old).status().last_index;
    eventually("everybody has it", async || (0..3).all(|i| nodes.node(i).status().applied_index >= last)).await;
    let opened = Instant::now();
    // Time in which nobody says anything.
    tokio::time::sleep(TTL * 4 / 10).await;
    nodes.link(old, new, Link::Broken);
    let sent = Instant::now();
    let renewed = nodes.node(old).renew(vec![Renewal { session, known: Revision(0) }]).await.expect("it leads");
    assert!(matches!(renewed[0], Renewed::Alive { .. }));
    nodes.stop_node(dies).await;
    nodes.link(old, new, Link::Open);
    eventually("the other one leads", async || {
        let transfer = MemberChange::Transfer(Some(nodes.node(new).node()));
        nodes.node(old).ask_self(Ask::Members(transfer)).await;
        nodes.node(new).leading().is_some()
    })
    .await;
    let elected = sent.elapsed();
    let mut published = nodes.node(new).published();
    let over = published.wait_for(|now| now.state.session(session).is_none());
    drop(timeout(PATIENCE, over).await.expect("in time").expect("it goes on"));
    let ended = sent.elapsed();
    println!("opened {:?} before, elected {elected:?}, ended {ended:?} after its renewal", sent - opened);
    assert!(ended >= TTL.mul_f64(0.999 / 1.001), "it ended {ended:?} after its renewal: its holder has {TTL:?}");
}

impl Nodes {
    /// Has the machine of a node lose power: nobody is told that its connections are over.
    async fn cut_power(&mut self, i: usize) {
        for other in (0..3).filter(|other| *other != i) {
            self.relays[other].cut_power(self.who(i));
            self.relays[i].cut_power(self.who(other));
        }
        self.stop_node(i).await;
    }

    /// Waits until a node takes part. Returns how long that took.
    async fn takes_part(&self, i: usize) -> Duration {
        let began = Instant::now();
        let node = self.node(i);
        let part = async {
            tokio::select! {
                () = node.ready() => {}
                why = quarantined(node) => panic!("n{i} is out: {why}"),
            }
        };
        timeout(PATIENCE, part).await.expect("it takes part");
        began.elapsed()
    }
}

async fn quarantined(node: &Replica) -> String {
    loop {
        match node.status().quarantined {
            Some(why) => return why,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Its peers still have its open connections, and hear nothing on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_power_takes_part_again_each_time() {
    let mut nodes = Nodes::start().await;
    let session = open_session(nodes.node(0), 3_600_000).await;
    for round in 0..3 {
        let leader = nodes.leader(None).await;
        let victim = if round == 1 { leader } else { (leader + 1) % 3 };
        nodes.cut_power(victim).await;
        nodes.start_node(victim).await;
        let after = nodes.takes_part(victim).await;
        println!("round {round}: n{victim} takes part after {after:?}");
        assert!(after < SILENT_MAX + Duration::from_secs(2), "it takes part after {after:?}");
        let new = nodes.leader(None).await;
        let write = nodes.node(new).propose(acquire(session, &format!("round-{round}"), false).into());
        assert!(matches!(write.await.expect("committed").reply, Reply::Granted { .. }));
        let last = nodes.node(new).status().last_index;
        eventually("it has everything", async || nodes.node(victim).status().applied_index >= last).await;
    }
}

/// The first one has nothing to ask anybody: only that it says so tells it from one whose machine lost power.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_its_original_is_recognised_and_the_original_goes_on() {
    let mut nodes = Nodes::start().await;
    let leader = nodes.leader(None).await;
    let victim = (leader + 1) % 3;
    nodes.stop_node(victim).await;
    let copied = nodes.dir.path().join("copy");
    copy_tree(&nodes.settings(victim).data, &copied);
    nodes.start_node(victim).await;
    nodes.takes_part(victim).await;
    let last = nodes.node(leader).status().last_index;
    eventually("it follows", async || nodes.node(victim).status().applied_index >= last).await;

    // The third one has no connection of it: there the copy comes first.
    let third = (leader + 2) % 3;
    nodes.link(victim, third, Link::Broken);
    eventually("it is gone there", async || nodes.relays[third].open(nodes.who(victim)) == 0).await;
    nodes.link(victim, third, Link::Open);
    let listen = local();
    let settings = Settings { data: copied, listen, advertise: listen.to_string(), ..nodes.settings(victim) };
    let copy = Replica::start(settings, Start::Bootstrap).await.expect("it starts");
    assert_eq!(copy.node(), nodes.node(victim).node());
    let why = tokio::select! {
        () = copy.ready() => panic!("a copy takes part beside its original"),
        why = timeout(PATIENCE, quarantined(&copy)) => why.expect("it is refused"),
    };
    println!("refused: {why}");
    assert!(why.contains("another process is node"), "{why}");
    // Nobody waits for it.
    let told = Instant::now();
    let code = |error: NotCommitted| error.to_string().contains("LW0603");
    assert!(copy.read().await.is_err_and(code));
    assert!(copy.propose(Command::EndSession { session: SessionId(1) }.into()).await.is_err_and(code));
    assert!(told.elapsed() < Duration::from_secs(1), "after {:?}", told.elapsed());
    // While the copy still runs, the original and the third one have to do without the leader.
    nodes.stop_node(leader).await;
    nodes.leader(None).await;
    let session = open_session(nodes.node(victim), 60_000).await;
    let reply = nodes.node(victim).propose(acquire(session, "original", false).into()).await.expect("committed").reply;
    assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    copy.stop().await;
}

/// Whoever asked for it hangs up while the next leader cannot be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_that_nobody_waits_for_does_not_silence_the_leader() {
    let nodes = Nodes::start().await;
    let leader = nodes.leader(None).await;
    let target = (leader + 1) % 3;
    open_session(nodes.node(leader), 60_000).await;
    let (heir, term) = (nodes.node(target).node(), nodes.node(leader).status().term);
    eventually("it follows", async || nodes.node(target).status().last_index >= nodes.node(leader).status().last_index)
        .await;
    nodes.link(leader, target, Link::Broken);
    let asked = nodes.node(leader).ask_self(Ask::Members(MemberChange::Transfer(Some(heir))));
    assert!(timeout(Duration::from_millis(100), asked).await.is_err(), "it was handed over");
    nodes.link(leader, target, Link::Open);
    let hung_up = Instant::now();
    let follower = (leader + 2) % 3;
    eventually("some elections could have been", async || {
        let status = nodes.node(follower).status();
        assert_eq!((status.term, status.leader), (term, Some(nodes.node(leader).node())), "{:?}", hung_up.elapsed());
        hung_up.elapsed() > Duration::from_secs(4)
    })
    .await;
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("typed").is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}
