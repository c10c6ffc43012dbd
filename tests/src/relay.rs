//! A relay in front of one node's peer address: it can break or hold what passes between this node and any other.
//!
//! Must stay true: it knows who speaks by the first frame of a connection, and passes every byte on unchanged and in
//! order; a link that is held loses nothing, as TCP loses nothing that it can send again.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use leaseward_raft::NodeId;
use leaseward_raft::net::frame::{self, HELLO};
use leaseward_raft::net::wire::{Hello, Purpose};
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

#[derive(Debug, Default)]
struct Rules {
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
        let shared = Arc::new(Shared { to, rules, asked, open });
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
    let questions = pass(asks, asked, shared.rules.subscribe(), questions, count);
    let back = pass(answers, answered, shared.rules.subscribe(), back, |_| true);
    tokio::select! {
        done = questions => done,
        done = back => done,
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
