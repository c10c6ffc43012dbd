//! A relay in front of one node's peer address: it can break or hold what passes between this node and any other.
//!
//! Must stay true: it knows who speaks by the first frame of a connection, and passes every byte on unchanged and in
//! order; a link that is held loses nothing, as TCP loses nothing that it can send again. Only where a test asks for it
//! ([`Frames`]) it says again what was said before: what passes between agents and voters it passes frame by frame.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_raft::NodeId;
use leaseward_raft::codec::{self, ENVELOPE_BYTES, Kind};
use leaseward_raft::net::frame::{self, HELLO};
use leaseward_raft::net::wire::{Answer, Ask, Hello, MachineView, Purpose};
use leaseward_state::MachineName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Who opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A node of the cluster.
    Node(NodeId),
    /// An agent, a client, or a node that has no id yet.
    Client,
}

/// What becomes of the connections that somebody opens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// Everything passes.
    #[default]
    Open,
    /// Connections break, and new ones are closed at once.
    Broken,
    /// Questions are held, answers pass.
    Deaf,
    /// Answers are held, questions pass.
    Mute,
    /// Nothing passes, and nobody is told.
    Silent,
}

impl Link {
    fn holds_questions(self) -> bool {
        matches!(self, Self::Deaf | Self::Silent)
    }

    fn holds_answers(self) -> bool {
        matches!(self, Self::Mute | Self::Silent)
    }
}

/// What becomes of the single frames of agents and clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Frames {
    /// They pass as they are.
    #[default]
    Once,
    /// Each question and each answer passes twice.
    Twice,
    /// Whoever asks for a machine's orders is told those that this relay has heard before, one after the other, as the
    /// answer to its question.
    OldOrders,
    /// Answers to renewals take their time; orders overtake them.
    LateGrants,
}

/// How late they are: less than the time after which a renewal without an answer counts as lost.
const GRANTS_AFTER: Duration = Duration::from_millis(180);

/// Between a question for orders and an old answer: what waits at a voter must not spin here.
const OLD_ORDERS_AFTER: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Rules {
    frames: Frames,
    links: BTreeMap<Who, Link>,
    /// Bulk connections break after so many bytes of questions, over all of them.
    bulk_until: Option<u64>,
    /// How often somebody's power was cut: older connections stay silent for good, and nobody is told.
    cuts: BTreeMap<Who, u64>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    rules: watch::Sender<Rules>,
    asked: Mutex<BTreeMap<(Who, Purpose), u64>>,
    open: Mutex<BTreeMap<Who, usize>>,
    heard: Mutex<BTreeMap<MachineName, Heard>>,
}

/// The orders of a machine that passed, each once, and how often an old one was told.
#[derive(Debug, Default)]
struct Heard {
    views: Vec<MachineView>,
    replayed: usize,
}

/// A relay. Its connections end with it.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Starts a relay that listens on one address and passes everything on to another one.
    ///
    /// # Panics
    /// If it cannot listen there, or if the runtime has one thread: a test that waits for a command would stop it.
    pub async fn start(listen: SocketAddr, to: SocketAddr) -> Self {
        assert_eq!(Handle::current().runtime_flavor(), RuntimeFlavor::MultiThread, "relays need their own threads");
        let listener = TcpListener::bind(listen).await.expect("the address is free");
        let (rules, asked, open) = (watch::channel(Rules::default()).0, Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { to, rules, asked, open, heard: Mutex::default() });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }

    /// Says what becomes of the connections that `who` opens, those that are open already too.
    pub fn set(&self, who: Who, link: Link) {
        self.shared.rules.send_modify(|rules| {
            rules.links.insert(who, link);
        });
    }

    /// Does as if the power of `who`, or of whom it speaks to, was cut: what it opened stays open, nothing passes on it
    /// any more, not even its end. What it opens from now on is not touched.
    pub fn cut_power(&self, who: Who) {
        self.shared.rules.send_modify(|rules| *rules.cuts.entry(who).or_default() += 1);
    }

    /// Breaks bulk connections once so many bytes of questions passed on them, counted from the relay's beginning;
    /// until then, and with `None`, they pass.
    pub fn break_bulk_after(&self, bytes: Option<u64>) {
        self.shared.rules.send_modify(|rules| rules.bulk_until = bytes);
    }

    /// Says what becomes of the frames of agents and clients from now on.
    pub fn pass_frames(&self, frames: Frames) {
        self.shared.rules.send_modify(|rules| rules.frames = frames);
    }

    /// Returns how often old orders were told to a machine.
    #[must_use]
    pub fn replayed(&self, machine: &MachineName) -> usize {
        self.shared.heard().get(machine).map_or(0, |heard| heard.replayed)
    }

    /// Returns the orders of a machine that passed, oldest first.
    #[must_use]
    pub fn heard(&self, machine: &MachineName) -> Vec<MachineView> {
        self.shared.heard().get(machine).map(|heard| heard.views.clone()).unwrap_or_default()
    }

    /// Tells it orders that other relays have heard: whom a machine asks is chance.
    pub fn hear(&self, machine: &MachineName, views: Vec<MachineView>) {
        self.shared.heard().entry(machine.clone()).or_default().views = views;
    }

    /// Returns how many connections of `who` are open.
    #[must_use]
    pub fn open(&self, who: Who) -> usize {
        self.shared.opened().get(&who).copied().unwrap_or_default()
    }

    /// Returns how many bytes of questions passed from `who`.
    #[must_use]
    pub fn asked(&self, who: Who, purpose: Purpose) -> u64 {
        self.shared.asked().get(&(who, purpose)).copied().unwrap_or_default()
    }

    /// Returns how many bytes of questions passed on all bulk connections.
    #[must_use]
    pub fn asked_in_bulk(&self) -> u64 {
        self.shared.in_bulk()
    }
}

impl Shared {
    fn asked(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Who, Purpose), u64>> {
        self.asked.lock().expect("no holder of this lock panics")
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, BTreeMap<Who, usize>> {
        self.open.lock().expect("no holder of this lock panics")
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<MachineName, Heard>> {
        self.heard.lock().expect("no holder of this lock panics")
    }

    fn in_bulk(&self) -> u64 {
        self.asked().iter().filter(|((_, purpose), _)| *purpose == Purpose::Bulk).map(|(_, bytes)| bytes).sum()
    }

    /// Returns whether a connection must end.
    fn is_over(&self, rules: &Rules, who: Who, purpose: Purpose) -> bool {
        rules.link(who) == Link::Broken
            || (purpose == Purpose::Bulk && rules.bulk_until.is_some_and(|most| self.in_bulk() >= most))
    }
}

impl Rules {
    fn link(&self, who: Who) -> Link {
        self.links.get(&who).copied().unwrap_or_default()
    }

    fn cuts(&self, who: Who) -> u64 {
        self.cuts.get(&who).copied().unwrap_or_default()
    }
}

/// An open connection.
struct Open<'a> {
    shared: &'a Shared,
    who: Who,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *self.shared.opened().entry(self.who).or_default() -= 1;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A connection that ends tells both sides; nobody else wants to know why.
            connection(stream, &shared).await.ok();
        });
    }
}

async fn connection(mut from: TcpStream, shared: &Shared) -> io::Result<()> {
    let hello: Hello = frame::read(&mut from, HELLO).await.map_err(io::Error::other)?;
    let (who, purpose) = (hello.node.map_or(Who::Client, Who::Node), hello.purpose);
    let mut rules = shared.rules.subscribe();
    let cuts = rules.borrow().cuts(who);
    if shared.is_over(&rules.borrow(), who, purpose) {
        return Ok(());
    }
    *shared.opened().entry(who).or_default() += 1;
    let _open = Open { shared, who };
    let passes = rules.wait_for(|rules| !rules.link(who).holds_questions()).await;
    drop(passes.map_err(io::Error::other)?);
    let mut to = TcpStream::connect(shared.to).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    to.write_all(&frame::bytes(HELLO, &hello).map_err(io::Error::other)?).await?;
    let ((asks, answered), (answers, asked)) = (from.split(), to.split());
    let count = |bytes: usize| {
        *shared.asked().entry((who, purpose)).or_default() += bytes as u64;
        !shared.is_over(&shared.rules.borrow(), who, purpose)
    };
    let questions = |rules: &Rules| rules.cuts(who) > cuts || rules.link(who).holds_questions();
    let back = |rules: &Rules| rules.cuts(who) > cuts || rules.link(who).holds_answers();
    let who_asked = Mutex::default();
    let to_node = Way { shared, who_asked: &who_asked, purpose };
    let to_asker = Way { shared, who_asked: &who_asked, purpose };
    let (count, all) = (&count, &|_| true);
    let carried = async {
        if purpose == Purpose::Client {
            tokio::select! {
                done = to_node.pass(asks, asked, questions, count, Way::question) => done,
                done = to_asker.pass(answers, answered, back, all, Way::answer) => done,
            }
        } else {
            tokio::select! {
                done = pass(asks, asked, shared.rules.subscribe(), questions, count) => done,
                done = pass(answers, answered, shared.rules.subscribe(), back, all) => done,
            }
        }
    };
    tokio::select! {
        done = carried => done,
        _ = rules.wait_for(|rules| shared.is_over(rules, who, purpose)) => Ok(()),
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut rules: watch::Receiver<Rules>,
    held: impl Fn(&Rules) -> bool,
    goes_on: impl Fn(usize) -> bool,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        // An end passes as the bytes before it do.
        let read = from.read(&mut bytes).await;
        drop(rules.wait_for(|rules| !held(rules)).await.map_err(io::Error::other)?);
        let length = read?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..length]).await?;
        if !goes_on(length) {
            return Ok(());
        }
    }
}

/// One way of a connection of an agent or a client, frame by frame.
struct Way<'a> {
    shared: &'a Shared,
    /// Which machine's orders a question of this connection was for, by its number.
    who_asked: &'a Mutex<BTreeMap<u64, MachineName>>,
    purpose: Purpose,
}

impl Way<'_> {
    async fn pass(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        held: impl Fn(&Rules) -> bool,
        goes_on: &impl Fn(usize) -> bool,
        seen: impl Fn(&Self, &[u8]) -> Option<Vec<u8>>,
    ) -> io::Result<()> {
        let mut rules = self.shared.rules.subscribe();
        loop {
            let frame = self.read(&mut from).await;
            drop(rules.wait_for(|rules| !held(rules)).await.map_err(io::Error::other)?);
            let Some(frame) = frame? else { return Ok(()) };
            let replaced = seen(self, &frame);
            if replaced.is_some() {
                tokio::time::sleep(OLD_ORDERS_AFTER).await;
            }
            if rules.borrow().frames == Frames::LateGrants && self.is_renewed(&frame) {
                tokio::time::sleep(GRANTS_AFTER).await;
            }
            let frame = replaced.unwrap_or(frame);
            // Whoever is greeted twice takes the second time for something else.
            let is_greeting = head(HELLO, &frame).is_ok();
            let times = if rules.borrow().frames == Frames::Twice && !is_greeting { 2 } else { 1 };
            for _ in 0..times {
                to.write_all(&frame).await?;
            }
            if !goes_on(frame.len()) {
                return Ok(());
            }
        }
    }

    /// Returns the next frame with its head; `None` at the end.
    async fn read(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; ENVELOPE_BYTES];
        if let Err(error) = from.read_exact(&mut bytes).await {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        let size = head(HELLO, &bytes).or_else(|_| head(self.kind(), &bytes))?;
        bytes.resize(ENVELOPE_BYTES + size, 0);
        from.read_exact(&mut bytes[ENVELOPE_BYTES..]).await?;
        Ok(Some(bytes))
    }

    fn is_renewed(&self, frame: &[u8]) -> bool {
        let answer = codec::decode::<(u64, Answer)>("message", &frame[ENVELOPE_BYTES..]);
        matches!(answer, Ok((_, Answer::Renewed(_))))
    }

    fn kind(&self) -> Kind {
        frame::message(self.purpose)
    }

    /// Notes whose orders are asked for.
    fn question(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if let Ok((id, Ask::View { machine, .. })) = codec::decode::<(u64, Ask)>("message", &frame[ENVELOPE_BYTES..]) {
            self.who_asked().insert(id, machine);
        }
        None
    }

    /// Notes a machine's orders, or returns old ones in their place.
    fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (id, answer) = codec::decode::<(u64, Answer)>("message", &frame[ENVELOPE_BYTES..]).ok()?;
        let Answer::View(view) = answer else { return None };
        let machine = self.who_asked().remove(&id)?;
        let mut heard = self.shared.heard();
        let heard = heard.entry(machine).or_default();
        if self.shared.rules.borrow().frames != Frames::OldOrders {
            if heard.views.last() != Some(&*view) {
                heard.views.push(*view);
            }
            return None;
        }
        let old = heard.views.get(heard.replayed % heard.views.len().max(1))?.clone();
        heard.replayed += 1;
        Some(frame::bytes(self.kind(), &(id, Answer::View(Box::new(old)))).expect("it fitted before"))
    }

    fn who_asked(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, MachineName>> {
        self.who_asked.lock().expect("no holder of this lock panics")
    }
}

/// Returns how many bytes follow the head of a frame of this kind.
fn head(kind: Kind, frame: &[u8]) -> io::Result<usize> {
    let (head, _) = frame.split_first_chunk::<ENVELOPE_BYTES>().ok_or(io::ErrorKind::UnexpectedEof)?;
    codec::open_head(kind, head).map_err(io::Error::other)
}
