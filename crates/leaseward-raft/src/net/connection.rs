//! A connection that we opened: many questions at once, each with its own deadline.
//!
//! Must stay true: a node says something on it again and again, also when it has nothing to ask: whoever is silent may
//! be taken for dead (`recall.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{BufReader, split};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::limits::{HELLO_TIMEOUT, SPEAK_EACH};
use crate::net::frame::{self, FrameError};
use crate::net::heard::{Heard, Listening};
use crate::net::outbox::{Outbox, outbox};
use crate::net::transport::Transport;
use crate::net::wire::{Answer, Ask, Hello, Welcome};
use crate::types::NodeId;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection, or it broke before the answer. The question may have been heard.
    #[error("no connection: {0}")]
    Broken(String),
    /// The answer did not come in time. The question may have been heard.
    #[error("no answer in time")]
    Timeout,
    /// The other side said nothing at all, not even when it was asked for a word. The question may have been heard.
    #[error("it is silent")]
    Silent,
    /// The other side wants nothing to do with us.
    #[error("{code}: {why}")]
    Refused {
        /// The stable code.
        code: String,
        /// The reason.
        why: String,
    },
}

impl From<FrameError> for CallError {
    fn from(error: FrameError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<std::io::Error> for CallError {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>>;

/// An open connection. Clones share it; it closes when the last clone is dropped.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    frames: Outbox,
    waiting: Waiting,
    next: AtomicU64,
    closed: watch::Sender<bool>,
    heard: Heard,
    tasks: Vec<AbortHandle>,
    kind: crate::codec::Kind,
    node: NodeId,
    instance: u128,
    cluster: u128,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    /// Connects, and says who we are.
    ///
    /// # Errors
    /// [`CallError`] if nobody answers there or we are refused.
    pub async fn open(transport: Transport, address: &str, hello: &Hello) -> Result<Self, CallError> {
        let mut stream = transport.connect(address).await?;
        let welcome = async {
            frame::write(&mut stream, frame::HELLO, hello).await?;
            frame::read::<Welcome>(&mut stream, frame::HELLO).await
        };
        let (cluster, node, instance) =
            match timeout(HELLO_TIMEOUT, welcome).await.map_err(|_| CallError::Timeout)?? {
                Welcome::Welcome { cluster, node, instance } => (cluster, node, instance),
                Welcome::Refused { code, why } => return Err(CallError::Refused { code, why }),
            };
        let kind = frame::message(hello.purpose);
        let (read, write) = split(stream);
        let (frames, queue) = outbox();
        let close = watch::Sender::new(false);
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));

        let heard = Heard::default();
        let read = Listening::to(read, heard.clone());
        let (pending, close_reader) = (Arc::clone(&waiting), close.clone());
        let reader = tokio::spawn(async move {
            let mut read = BufReader::with_capacity(64 << 10, read);
            while let Ok((id, answer)) = frame::read::<(u64, Answer)>(&mut read, kind).await {
                let waiter =
                    pending.lock().expect("no holder of this lock panics").as_mut().and_then(|map| map.remove(&id));
                if let Some(waiter) = waiter {
                    waiter.send(answer).ok();
                }
            }
            // Everybody who still waits learns that no answer will come.
            pending.lock().expect("no holder of this lock panics").take();
            close_reader.send_replace(true);
        });
        let (pending, close_writer) = (Arc::clone(&waiting), close.clone());
        let writer = tokio::spawn(async move {
            queue.write_to(write).await;
            pending.lock().expect("no holder of this lock panics").take();
            close_writer.send_replace(true);
        });
        let mut tasks = vec![reader.abort_handle(), writer.abort_handle()];
        if hello.node.is_some() {
            tasks.push(tokio::spawn(speak(frames.clone(), kind)).abort_handle());
        }
        let next = AtomicU64::new(1);
        let shared = Shared { frames, waiting, next, closed: close, heard, tasks, kind, node, instance, cluster };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the node on the other side.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Returns which run of its process it is.
    #[must_use]
    pub fn instance(&self) -> u128 {
        self.shared.instance
    }

    /// Returns the cluster on the other side.
    #[must_use]
    pub fn cluster(&self) -> u128 {
        self.shared.cluster
    }

    /// Returns the answer. Dropping the future forgets the question; it may still be heard.
    ///
    /// # Errors
    /// [`CallError::Broken`] or [`CallError::Timeout`]; whether the question was heard is unknown then.
    pub async fn call(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let (id, bytes) = self.question(ask)?;
        self.exchange(id, bytes, within).await
    }

    /// As [`Connection::call`], and gives up sooner if the other side is silent: if it says nothing at all for about a
    /// second. Not for questions that wait there, which would be asked about again and again.
    ///
    /// # Errors
    /// As [`Connection::call`], and [`CallError::Silent`].
    pub async fn call_heard(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let (id, bytes) = self.question(ask)?;
        let sent = bytes.len();
        // Any word will do.
        let word = |patience| async move { drop(self.call(&Ask::Ping, patience).await) };
        tokio::select! {
            biased;
            answer = self.exchange(id, bytes, within) => answer,
            () = self.shared.heard.silence(sent, word) => Err(CallError::Silent),
        }
    }

    fn question(&self, ask: &Ask) -> Result<(u64, Vec<u8>), CallError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let bytes = frame::bytes(self.shared.kind, &(id, ask)).map_err(|error| CallError::Broken(error.to_string()))?;
        Ok((id, bytes))
    }

    async fn exchange(&self, id: u64, bytes: Vec<u8>, within: Duration) -> Result<Answer, CallError> {
        let (send, answer) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting.lock().expect("no holder of this lock panics");
            let Some(waiting) = waiting.as_mut() else { return Err(closed()) };
            waiting.insert(id, send);
        }
        // Forgets the question also when this future is dropped.
        let _forget = Forget { waiting: &self.shared.waiting, id };
        let exchange = async {
            self.shared.frames.send(bytes).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())
        };
        timeout(within, exchange).await.map_err(|_| CallError::Timeout)?
    }

    /// Returns whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Closes it: everybody who waits learns that no answer will come.
    pub fn close(&self) {
        for task in &self.shared.tasks {
            task.abort();
        }
        self.shared.waiting.lock().expect("no holder of this lock panics").take();
        self.shared.closed.send_replace(true);
    }

    /// Waits until it is closed. Cancel safe.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        closed.wait_for(|closed| *closed).await.ok();
    }
}

/// The number of a question whose answer nobody waits for; the others begin at one.
const NOBODY_WAITS: u64 = 0;

/// Says again and again that this node lives.
async fn speak(frames: Outbox, kind: crate::codec::Kind) {
    let word = frame::bytes(kind, &(NOBODY_WAITS, Ask::Ping)).expect("a short question fits");
    let mut each = interval(SPEAK_EACH);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        each.tick().await;
        if frames.send(word.clone()).await.is_err() {
            return;
        }
    }
}

fn closed() -> CallError {
    CallError::Broken("the connection is closed".into())
}

struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.lock().expect("no holder of this lock panics").as_mut() {
            waiting.remove(&self.id);
        }
    }
}
