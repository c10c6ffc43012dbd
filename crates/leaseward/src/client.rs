//! A connection to a cluster: asks any node, and another one when that does not answer.
//!
//! Must stay true: a write that is sent again carries its key, so it counts once; a node that is silent costs one
//! attempt, not the caller's whole patience; who has met a cluster never speaks with an earlier life of it (`known.rs`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_raft::net::connection::{CallError, Connection};
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::{
    Answer, Ask, Hello, MachineView, NodeStatus, Outcome, PROTOCOL, Purpose, Question, Renewal, Renewed, Told,
};
use leaseward_raft::random;
use leaseward_state::config::Digest;
use leaseward_state::propose::{Committed, NotCommitted};
use leaseward_state::{Command, MachineName, Reply, Request, RequestKey, Revision};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::error::{Error, Result};
use crate::known::Known;
use crate::limits::{ATTEMPT, CONNECT_STAGGER, LAST_ATTEMPT_MIN, RETRY_PAUSE, WRITE_WITHIN};

/// A client of a cluster. Clones share its connection.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Transport,
    addresses: Mutex<Vec<String>>,
    next: AtomicUsize,
    connection: AsyncMutex<Option<Connection>>,
    instance: u128,
    sequence: AtomicU64,
    known: Known,
}

impl Client {
    /// Returns a client of the cluster at these peer addresses (`host:port`); connects when it is first asked.
    #[must_use]
    pub fn new(addresses: Vec<String>, transport: Transport) -> Self {
        Self::knowing(addresses, transport, Known::default())
    }

    fn knowing(addresses: Vec<String>, transport: Transport, known: Known) -> Self {
        let shared = Shared {
            transport,
            addresses: Mutex::new(addresses),
            next: AtomicUsize::new(0),
            connection: AsyncMutex::new(None),
            instance: random::unique(),
            sequence: AtomicU64::new(1),
            known,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns another client of the same cluster with a connection of its own: what is large must not stand in the
    /// way of renewals.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::knowing(self.addresses(), self.shared.transport, self.shared.known.clone())
    }

    /// Returns a client of one node of the same cluster, with a connection of its own.
    pub(crate) fn of_one(&self, address: &str) -> Self {
        Self::knowing(vec![address.to_owned()], self.shared.transport, self.shared.known.clone())
    }

    /// Returns what it knows of its cluster's life. Clients made from one another share it.
    pub(crate) fn known(&self) -> &Known {
        &self.shared.known
    }

    /// Returns the addresses it knows.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.shared.addresses.lock().expect("no holder of this lock panics").clone()
    }

    /// Learns addresses from the members that a node knows, so that the loss of the first ones blinds nobody.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn learn(&self) -> Result<()> {
        let status = self.status().await?;
        let mut addresses = self.shared.addresses.lock().expect("no holder of this lock panics");
        for node in status.membership.nodes.values() {
            if !addresses.contains(&node.peer_address) {
                addresses.push(node.peer_address.clone());
            }
        }
        Ok(())
    }

    async fn connection(&self) -> Result<Connection, CallError> {
        let mut slot = self.shared.connection.lock().await;
        // Another client of the same program may have met a later life meanwhile.
        if let Some(connection) = slot.as_ref()
            && !connection.is_closed()
            && self.shared.known.is_of(connection.cluster())
        {
            return Ok(connection.clone());
        }
        *slot = None;
        let connection = self.open_any().await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// Connects to the next node, and to the one after it if that takes long: whoever lost its power says nothing.
    async fn open_any(&self) -> Result<Connection, CallError> {
        let addresses = self.addresses();
        let turn = self.shared.next.load(Ordering::Relaxed);
        let mut last = CallError::Broken("no address is known".into());
        let mut opening = JoinSet::new();
        let mut waiting = (0..addresses.len()).map(|i| (turn + i, addresses[(turn + i) % addresses.len()].clone()));
        let mut next = waiting.next();
        while next.is_some() || !opening.is_empty() {
            if let Some((turn, address)) = next.take() {
                let (transport, instance) = (self.shared.transport, self.shared.instance);
                let known = self.shared.known.clone();
                opening.spawn(async move {
                    let hello =
                        Hello { protocol: PROTOCOL, cluster: None, node: None, instance, purpose: Purpose::Client };
                    let opened = Connection::open(transport, &address, &hello).await;
                    (turn, opened.and_then(|connection| known.meet(connection.cluster()).map(|()| connection)))
                });
            }
            tokio::select! {
                Some(opened) = opening.join_next() => match opened {
                    Ok((turn, Ok(connection))) => {
                        self.shared.next.store(turn, Ordering::Relaxed);
                        return Ok(connection);
                    }
                    Ok((turn, Err(error))) => {
                        debug!(turn, %error, "cannot connect");
                        last = error;
                        next = waiting.next();
                    }
                    Err(_) => next = waiting.next(),
                },
                () = sleep(CONNECT_STAGGER) => next = waiting.next(),
            }
        }
        Err(last)
    }

    /// Gives the connection up: the next question goes to another node.
    pub async fn rotate(&self) {
        self.shared.connection.lock().await.take();
        self.shared.next.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks one node, once. After a silence or a break the next question goes to another node. Cancel safe.
    pub(crate) async fn ask_once(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let connection = self.connection().await?;
        let answer = connection.call(ask, within).await;
        if answer.is_err() {
            self.rotate().await;
        }
        answer
    }

    /// As [`Client::ask_once`], and a node that is silent costs about a second, however much patience there is for one that
    /// answers slowly. Not for questions that wait at a node. Cancel safe.
    pub(crate) async fn ask_heard(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let connection = match timeout(ATTEMPT.min(within), self.connection()).await {
            Ok(connection) => connection?,
            Err(_) => return Err(CallError::Silent),
        };
        let answer = connection.call_heard(ask, within).await;
        if answer.is_err() {
            self.rotate().await;
        }
        answer
    }

    /// Returns whose turn it is to be asked: another number once another node is asked.
    pub(crate) fn turn(&self) -> usize {
        self.shared.next.load(Ordering::Relaxed)
    }

    /// Asks until some node answers that can: one that knows no leader cannot, nor one that takes no part.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Unknown`] when the time is over; [`Error::Failed`] if a node says no.
    pub async fn ask(&self, ask: &Ask, within: Duration) -> Result<Answer> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match timeout(left, self.ask_once(ask, left.min(ATTEMPT.max(within / 4)))).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::Timeout),
            };
            let error = match answer {
                Ok(Answer::Failed { code, why }) if is_of_one_node(&code) => {
                    // This node may be cut off, or kept out; another one may not be.
                    self.rotate().await;
                    no_use(code, why)
                }
                Ok(Answer::Failed { code, why }) => return Err(Error::Failed { code, why }),
                Ok(answer) => return Ok(answer),
                Err(error @ CallError::Refused { .. }) => return Err(error.into()),
                Err(error) => error.into(),
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(error);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Returns the answer of a command, applied exactly once however often it has to be sent.
    ///
    /// # Errors
    /// [`Error::Refused`] if the cluster says no; [`Error::Unavailable`] if nothing was done; [`Error::Unknown`].
    pub async fn write(&self, command: Command) -> Result<Reply> {
        Ok(self.write_within(command, WRITE_WITHIN).await?.reply)
    }

    /// As [`Client::write`], with the caller's patience and the revision of the entry.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_within(&self, command: Command, within: Duration) -> Result<Committed> {
        let key =
            RequestKey { client: self.shared.instance, sequence: self.shared.sequence.fetch_add(1, Ordering::Relaxed) };
        let ask = Ask::Propose(Request { key: Some(key), named: false, command });
        let deadline = Instant::now() + within;
        let mut maybe_applied = false;
        let mut nothing_done = Error::Unavailable("nobody leads".into());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask_heard(&ask, left).await {
                Ok(Answer::Proposed(outcome)) => match Outcome::into(outcome) {
                    Ok(committed) => return refused_or(committed),
                    Err(NotCommitted::Unknown) => {
                        // This node cannot find out; another one may.
                        maybe_applied = true;
                        self.rotate().await;
                    }
                    Err(NotCommitted::NoLeader) => {
                        self.rotate().await;
                    }
                    Err(error @ NotCommitted::Overloaded(_)) if !maybe_applied => return Err(error.into()),
                    Err(NotCommitted::Overloaded(_)) => {}
                },
                Ok(Answer::Failed { code, why }) if is_of_one_node(&code) => {
                    self.rotate().await;
                    nothing_done = no_use(code, why);
                }
                Ok(Answer::Failed { code, why }) => return Err(Error::Failed { code, why }),
                Ok(other) => return Err(strange(&other)),
                Err(CallError::Refused { code, why }) => return Err(Error::Failed { code, why }),
                Err(CallError::Broken(_) | CallError::Timeout | CallError::Silent) => maybe_applied = true,
            }
            if Instant::now() + RETRY_PAUSE + LAST_ATTEMPT_MIN >= deadline {
                return Err(if maybe_applied { Error::Unknown } else { nothing_done });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Renews sessions; `None` if no leader could prove itself. Asks one node, once: the caller's next renewal is
    /// the second attempt.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn renew(&self, renewals: Vec<Renewal>, within: Duration) -> Result<Option<Vec<Renewed>>, CallError> {
        match self.ask_once(&Ask::Renew(renewals), within).await? {
            Answer::Renewed(renewed) => {
                if renewed.is_none() {
                    self.rotate().await;
                }
                Ok(renewed)
            }
            other => {
                // It is not started yet, or kept out: it may be so for longer than any session lives.
                self.rotate().await;
                Err(CallError::Broken(format!("a strange answer: {other:?}")))
            }
        }
    }

    /// Returns what a machine should do, once it differs from what the machine knows, or after ten seconds.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn view(&self, machine: &MachineName, known: Revision) -> Result<MachineView, CallError> {
        let ask = Ask::View { machine: machine.clone(), known };
        match self.ask_once(&ask, Duration::from_secs(12)).await? {
            Answer::View(view) => Ok(*view),
            Answer::Failed { code, why } => {
                self.rotate().await;
                Err(CallError::Broken(format!("{code}: {why}")))
            }
            other => Err(CallError::Broken(format!("a strange answer: {other:?}"))),
        }
    }

    /// Returns a question to a machine that waits at the connected node, once there is one; `None` after a while.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn question(
        &self,
        machine: &MachineName,
        within: Duration,
    ) -> Result<Option<Question>, CallError> {
        match self.ask_once(&Ask::Questions { machine: machine.clone() }, within).await? {
            Answer::Question(question) => Ok(question),
            other => {
                self.rotate().await;
                Err(CallError::Broken(format!("a strange answer: {other:?}")))
            }
        }
    }

    /// Answers a question of the connected node.
    ///
    /// # Errors
    /// [`CallError`].
    pub(crate) async fn answered(&self, id: u128, told: Told) -> Result<(), CallError> {
        self.ask_once(&Ask::Answered { id, told }, ATTEMPT).await.map(drop)
    }

    /// Returns whether the connected node answers within this. If not, the next question goes to another one.
    pub(crate) async fn is_heard(&self, within: Duration) -> bool {
        self.ask_once(&Ask::Status, within).await.is_ok()
    }

    /// Returns how the connected node is.
    ///
    /// # Errors
    /// [`Error`], if no node answers.
    pub async fn status(&self) -> Result<NodeStatus> {
        match self.ask(&Ask::Status, ATTEMPT * 2).await? {
            Answer::Status(status) => Ok(*status),
            other => Err(strange(&other)),
        }
    }

    /// Returns a blob from whichever node has it, in two rounds at most.
    ///
    /// # Errors
    /// [`Error::Failed`] with `LW0801` if nobody has it.
    pub async fn blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let mut last = Error::Failed { code: "LW0801".into(), why: format!("no node has blob {digest}") };
        for _ in 0..2 * self.addresses().len().max(1) {
            match self.ask_heard(&Ask::GetBlob(digest), Duration::from_secs(10)).await {
                Ok(Answer::Blob(Some(bytes))) => return Ok(bytes),
                Ok(_) => {
                    self.rotate().await;
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}

/// Returns whether this says something of the node that was asked, and nothing of the others: it knows no leader, or its data
/// directory went back in time and it takes no part until somebody replaces it.
fn is_of_one_node(code: &str) -> bool {
    matches!(code, "LW0501" | "LW0603")
}

/// Returns what it means if no node is of more use.
fn no_use(code: String, why: String) -> Error {
    if code == "LW0501" { Error::Unavailable("nobody leads".into()) } else { Error::Failed { code, why } }
}

fn refused_or(committed: Committed) -> Result<Committed> {
    match committed.reply {
        Reply::Refused(refusal) => Err(Error::Refused(refusal)),
        _ => Ok(committed),
    }
}

fn strange(answer: &Answer) -> Error {
    Error::Failed { code: "LW0701".into(), why: format!("an answer to another question: {answer:?}") }
}

#[cfg(test)]
mod tests {
    use leaseward_raft::net::listener::{self, Serve};
    use leaseward_raft::net::wire::Welcome;
    use leaseward_state::{LeaseName, SessionId};
    use tokio::net::TcpListener;

    use super::*;

    /// A node that takes part, or is kept out.
    struct Node {
        is_kept_out: bool,
    }

    impl Serve for Node {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 1, instance: 1 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            if self.is_kept_out {
                return Answer::Failed { code: "LW0603".into(), why: "its log ends too early".into() };
            }
            match ask {
                Ask::Renew(_) => Answer::Renewed(Some(Vec::new())),
                Ask::Propose(_) => {
                    Answer::Proposed(Outcome::Committed { revision: Revision(1), reply: Reply::Session(SessionId(7)) })
                }
                _ => Answer::Done,
            }
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    async fn node(is_kept_out: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(listener::run(listener, Arc::new(Node { is_kept_out })));
        address
    }

    /// It is connected, answers quickly, and is of no use until an operator comes.
    #[tokio::test]
    async fn a_node_that_is_kept_out_keeps_nobody_from_the_others() {
        let (kept_out, well) = (node(true).await, node(false).await);
        let client = || Client::new(vec![kept_out.clone(), well.clone()], Transport::PlainLoopback);
        let lease = LeaseName::new("l").unwrap();
        let command = || Command::Revoke { lease: lease.clone(), token: None };
        client().write(command()).await.expect("the other one takes it");
        let asked = client().ask(&Ask::ReadPoint, Duration::from_secs(5)).await;
        assert_eq!(asked.expect("the other one answers"), Answer::Done);
        let renews = client();
        renews.renew(Vec::new(), Duration::from_secs(5)).await.expect_err("of the first one");
        assert_eq!(renews.renew(Vec::new(), Duration::from_secs(5)).await.expect("of the next one"), Some(Vec::new()));
        // Where there is no other one, it is said why.
        let alone = Client::new(vec![kept_out.clone()], Transport::PlainLoopback);
        let error = alone.write_within(command(), Duration::from_millis(300)).await.expect_err("nobody takes it");
        assert_eq!(error.code(), "LW0603");
    }
}
