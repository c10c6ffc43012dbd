//! Connections that others opened: says who we are, reads questions, answers each as soon as it can.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncWriteExt, BufReader, split};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep, timeout};
use tracing::{debug, warn};

use crate::limits::{CONNECTIONS_MAX, FRAMES_WAITING_MAX, HELLO_TIMEOUT, REQUESTS_PER_CONNECTION_MAX};
use crate::net::frame::{self, FrameError};
use crate::net::transport::{Duplex, Listener};
use crate::net::wire::{Answer, Ask, Hello, Welcome};

/// Who answers.
pub trait Serve: Send + Sync + 'static {
    /// Returns whether we talk to whoever says this.
    fn welcome(&self, hello: &Hello) -> Welcome;

    /// Returns the answer. Dropped when the connection closes.
    fn answer(self: Arc<Self>, from: Arc<Hello>, ask: Ask) -> impl Future<Output = Answer> + Send;

    /// Learns that something was said. Returns whether we still talk to whoever said it.
    fn hears(&self, hello: &Hello) -> bool;

    /// Learns that a connection is over.
    fn gone(&self, hello: &Hello);
}

/// Serves connections until dropped.
pub async fn run<S: Serve>(listener: impl Into<Listener>, serve: Arc<S>) {
    let mut listener = listener.into();
    let open = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            warn!(%peer, "refused a connection: there are too many");
            continue;
        }
        let Ok(stream) = stream.ready() else { continue };
        open.fetch_add(1, Ordering::Relaxed);
        let (serve, open) = (Arc::clone(&serve), Arc::clone(&open));
        connections.spawn(async move {
            if let Err(error) = connection(stream, serve).await {
                match error {
                    FrameError::Io(error) => debug!(%peer, %error, "connection ended"),
                    FrameError::Codec(_) => warn!(%peer, code = error.code(), %error, "closed a connection"),
                }
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn connection<S: Serve>(mut stream: Box<dyn Duplex>, serve: Arc<S>) -> Result<(), FrameError> {
    let hello: Hello =
        timeout(HELLO_TIMEOUT, frame::read(&mut stream, frame::HELLO)).await.map_err(std::io::Error::from)??;
    let welcome = serve.welcome(&hello);
    frame::write(&mut stream, frame::HELLO, &welcome).await?;
    if let Welcome::Refused { .. } = welcome {
        stream.flush().await?;
        return Ok(());
    }
    let hello = Arc::new(hello);
    let outcome = exchange(stream, Arc::clone(&serve), Arc::clone(&hello)).await;
    serve.gone(&hello);
    outcome
}

async fn exchange<S: Serve>(stream: Box<dyn Duplex>, serve: Arc<S>, hello: Arc<Hello>) -> Result<(), FrameError> {
    let kind = frame::message(hello.purpose);
    let (read, mut write) = split(stream);
    // There may be thousands of clients, who ask little; what is larger goes around the buffer.
    let capacity = if hello.node.is_some() { 64 << 10 } else { 4 << 10 };
    let mut read = BufReader::with_capacity(capacity, read);
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(FRAMES_WAITING_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let room = Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX));
    loop {
        // Whoever asks faster than we answer waits in its own socket.
        let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        let (id, ask): (u64, Ask) = frame::read(&mut read, kind).await?;
        if !serve.hears(&hello) {
            return Ok(());
        }
        while tasks.try_join_next().is_some() {}
        let (serve, hello, answers) = (Arc::clone(&serve), Arc::clone(&hello), answers.clone());
        tasks.spawn(async move {
            let answer = serve.answer(hello, ask).await;
            let bytes = frame::bytes(kind, &(id, answer)).unwrap_or_else(|error| {
                let failed = Answer::Failed { code: "LW0702".into(), why: error.to_string() };
                frame::bytes(kind, &(id, failed)).expect("a short answer fits")
            });
            answers.send(bytes).await.ok();
            drop(permit);
        });
    }
}
