//! Connections that others opened: says who we are, reads questions, answers each as soon as it can.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncWriteExt, BufReader, split};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep, timeout};
use tracing::{debug, warn};

use crate::limits::{CONNECTIONS_MAX, CONTENT_ANSWERS_MAX, HELLO_TIMEOUT, REQUESTS_PER_CONNECTION_MAX};
use crate::net::frame::{self, FrameError};
use crate::net::outbox::outbox;
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
    let (read, write) = split(stream);
    // There may be thousands of clients, who ask little; what is larger goes around the buffer.
    let capacity = if hello.node.is_some() { 64 << 10 } else { 4 << 10 };
    let mut read = BufReader::with_capacity(capacity, read);
    let (answers, queue) = outbox();
    let mut tasks = JoinSet::new();
    tasks.spawn(queue.write_to(write));
    let room = Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX));
    let content = Arc::new(Semaphore::new(CONTENT_ANSWERS_MAX));
    loop {
        // Whoever asks faster than we answer waits in its own socket.
        let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        let (id, ask): (u64, Ask) = frame::read(&mut read, kind).await?;
        if !serve.hears(&hello) {
            return Ok(());
        }
        while tasks.try_join_next().is_some() {}
        let (serve, hello, answers) = (Arc::clone(&serve), Arc::clone(&hello), answers.clone());
        let content = ask.is_for_content().then(|| Arc::clone(&content));
        tasks.spawn(async move {
            // Until the answer has its room among those that wait: what is not begun costs nothing.
            let _content = match content {
                Some(content) => Some(content.acquire_owned().await.expect("the semaphore is never closed")),
                None => None,
            };
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

#[cfg(test)]
mod tests {
    use leaseward_state::config::Digest;
    use tokio::io::duplex;

    use super::*;
    use crate::limits::FRAMES_WAITING_BYTES_MAX;
    use crate::net::wire::{PROTOCOL, Purpose};

    const BLOB: usize = 4 << 20;

    const ASKED: u64 = 40;

    /// Has a blob for everybody, and counts who asks.
    #[derive(Default)]
    struct Blobs {
        begun: AtomicUsize,
    }

    impl Serve for Blobs {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 1, instance: 1 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            if !ask.is_for_content() {
                return Answer::Done;
            }
            self.begun.fetch_add(1, Ordering::Relaxed);
            Answer::Delta(Some(vec![7; BLOB].into()))
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    /// Time stands still until nobody has anything to do.
    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_much_and_reads_nothing_costs_a_bound_in_bytes() {
        let (mut ours, theirs) = duplex(64 << 10);
        let serve = Arc::new(Blobs::default());
        let hello = Hello { protocol: PROTOCOL, cluster: None, node: None, instance: 9, purpose: Purpose::Client };
        let kind = frame::message(hello.purpose);
        let served = tokio::spawn(connection(Box::new(theirs), Arc::clone(&serve)));
        frame::write(&mut ours, frame::HELLO, &hello).await.expect("sent");
        frame::read::<Welcome>(&mut ours, frame::HELLO).await.expect("welcome");
        for id in 0..ASKED {
            frame::write(&mut ours, kind, &(id, Ask::GetBlob(Digest([1; 32])))).await.expect("sent");
        }
        sleep(Duration::from_secs(1)).await;
        let begun = serve.begun.load(Ordering::Relaxed);
        let bound = FRAMES_WAITING_BYTES_MAX / BLOB + CONTENT_ANSWERS_MAX;
        assert!(
            (1..=bound).contains(&begun),
            "{begun} answers of {BLOB} bytes are held for somebody who does not read"
        );
        // Once he reads, he gets all of it; and what is small is not held up by content that was not begun.
        frame::write(&mut ours, kind, &(ASKED, Ask::Ping)).await.expect("sent");
        let mut blobs = 0;
        let mut before_word = None;
        while blobs < ASKED {
            match frame::read(&mut ours, kind).await.expect("an answer") {
                (_, Answer::Delta(Some(blob))) if blob.as_slice().len() == BLOB => blobs += 1,
                (ASKED, Answer::Done) => before_word = Some(blobs),
                (id, answer) => panic!("{id}: {answer:?}"),
            }
        }
        assert!(before_word.is_some_and(|blobs| blobs <= 2 * bound as u64), "{before_word:?}");
        drop(ours);
        served.await.expect("it does not panic").expect_err("the connection ended");
    }
}
