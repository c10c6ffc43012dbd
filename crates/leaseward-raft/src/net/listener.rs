//! Connections that others opened: says who we are, reads questions for which there is room, answers each as soon as it can.

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
use crate::net::inbox::{Common, Inbox};
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
    let common = Common::default();
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
        let (serve, open, common) = (Arc::clone(&serve), Arc::clone(&open), common.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, serve, common).await {
                match error {
                    FrameError::Io(error) => debug!(%peer, %error, "connection ended"),
                    FrameError::Codec(_) => warn!(%peer, code = error.code(), %error, "closed a connection"),
                }
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn connection<S: Serve>(mut stream: Box<dyn Duplex>, serve: Arc<S>, common: Common) -> Result<(), FrameError> {
    let hello: Hello =
        timeout(HELLO_TIMEOUT, frame::read(&mut stream, frame::HELLO)).await.map_err(std::io::Error::from)??;
    let seat = if hello.node.is_none() { common.seat() } else { None };
    if hello.node.is_none() && seat.is_none() {
        warn!("refused a client: there are too many");
        return Ok(());
    }
    let welcome = serve.welcome(&hello);
    let hello = Arc::new(hello);
    // Before anything can fail: it was counted when it was welcome.
    let _guest = matches!(welcome, Welcome::Welcome { .. }).then(|| Guest(Arc::clone(&serve), Arc::clone(&hello)));
    frame::write(&mut stream, frame::HELLO, &welcome).await?;
    if let Welcome::Refused { .. } = welcome {
        stream.flush().await?;
        return Ok(());
    }
    let inbox = if hello.node.is_some() { Inbox::of_node() } else { Inbox::of_client(common) };
    exchange(stream, Arc::clone(&serve), hello, inbox).await
}

/// Somebody who was welcome, until he is gone.
struct Guest<S: Serve>(Arc<S>, Arc<Hello>);

impl<S: Serve> Drop for Guest<S> {
    fn drop(&mut self) {
        self.0.gone(&self.1);
    }
}

async fn exchange<S: Serve>(
    stream: Box<dyn Duplex>,
    serve: Arc<S>,
    hello: Arc<Hello>,
    inbox: Inbox,
) -> Result<(), FrameError> {
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
        let head = frame::head(&mut read, kind).await?;
        let room = inbox.room(head.size).await;
        let (id, ask): (u64, Ask) = frame::body(&mut read, kind, head, inbox.patience()).await?;
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
            drop((permit, room));
        });
    }
}

#[cfg(test)]
mod tests {
    use leaseward_state::config::Digest;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::limits::{FRAMES_WAITING_BYTES_MAX, QUESTION_STALLED_MAX, QUESTIONS_BYTES_MAX};
    use crate::net::wire::{PROTOCOL, Purpose};

    const BLOB: usize = 4 << 20;

    const ASKED: u64 = 40;

    /// More of them than one connection has room for.
    const PUT: u64 = 12;

    /// Has a blob for everybody, and counts who asks.
    #[derive(Default)]
    struct Blobs {
        begun: AtomicUsize,
        gone: AtomicUsize,
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

        fn gone(&self, _: &Hello) {
            self.gone.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins what it is asked, and ends nothing until it may.
    struct Slow {
        begun: AtomicUsize,
        may: Semaphore,
    }

    impl Serve for Slow {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 1, instance: 1 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            if let Ask::PutBlobs(_) = ask {
                self.begun.fetch_add(1, Ordering::Relaxed);
                self.may.acquire().await.expect("never closed").forget();
            }
            Answer::Done
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    const HELLO: Hello = Hello { protocol: PROTOCOL, cluster: None, node: None, instance: 9, purpose: Purpose::Client };

    /// Connects a client. Returns its end, and what becomes of the other one.
    async fn client<S: Serve>(serve: &Arc<S>, common: &Common) -> (DuplexStream, JoinHandle<Result<(), FrameError>>) {
        let (mut ours, theirs) = duplex(64 << 10);
        let served = tokio::spawn(connection(Box::new(theirs), Arc::clone(serve), common.clone()));
        frame::write(&mut ours, frame::HELLO, &HELLO).await.expect("sent");
        frame::read::<Welcome>(&mut ours, frame::HELLO).await.expect("welcome");
        (ours, served)
    }

    #[tokio::test(start_paused = true)]
    async fn clients_leave_room_for_nodes() {
        let (serve, common) = (Arc::new(Blobs::default()), Common::of(1));
        let (_first, served) = client(&serve, &common).await;
        let visit = async |hello: &Hello| {
            let (mut ours, theirs) = duplex(64 << 10);
            let served = tokio::spawn(connection(Box::new(theirs), Arc::clone(&serve), common.clone()));
            frame::write(&mut ours, frame::HELLO, hello).await.expect("sent");
            let welcome = frame::read::<Welcome>(&mut ours, frame::HELLO).await;
            drop(ours);
            served.await.expect("it does not panic").ok();
            welcome
        };
        visit(&HELLO).await.expect_err("one too many");
        visit(&Hello { node: Some(2), ..HELLO }).await.expect("a node is always welcome");
        served.abort();
        served.await.expect_err("ended");
        visit(&HELLO).await.expect("there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_welcome_and_never_heard_it_is_gone() {
        let serve = Arc::new(Blobs::default());
        // There is room for what it says, and none for the answer: it hangs up on that.
        let (mut ours, theirs) = duplex(1);
        let served = tokio::spawn(connection(Box::new(theirs), Arc::clone(&serve), Common::default()));
        frame::write(&mut ours, frame::HELLO, &HELLO).await.expect("sent");
        drop(ours);
        served.await.expect("it does not panic").expect_err("nobody hears the welcome");
        assert_eq!(serve.gone.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_much_waits_in_its_own_socket_and_nobody_else_does() {
        let serve = Arc::new(Slow { begun: AtomicUsize::new(0), may: Semaphore::new(0) });
        let (kind, common) = (frame::message(HELLO.purpose), Common::default());
        let (asks, _served) = client(&serve, &common).await;
        let (mut answers, mut questions) = split(asks);
        let asking = tokio::spawn(async move {
            for id in 0..PUT {
                frame::write(&mut questions, kind, &(id, Ask::PutBlobs(vec![(Digest([1; 32]), vec![7; BLOB])])))
                    .await
                    .expect("sent");
            }
        });
        sleep(Duration::from_secs(1)).await;
        let begun = serve.begun.load(Ordering::Relaxed);
        assert!((1..=QUESTIONS_BYTES_MAX / BLOB).contains(&begun), "{begun} questions of {BLOB} bytes are held");
        let (mut other, _also) = client(&serve, &common).await;
        frame::write(&mut other, kind, &(1_u64, Ask::Ping)).await.expect("sent");
        assert_eq!(frame::read::<(u64, Answer)>(&mut other, kind).await.expect("an answer"), (1, Answer::Done));
        serve.may.add_permits(PUT as usize);
        for _ in 0..PUT {
            frame::read::<(u64, Answer)>(&mut answers, kind).await.expect("all are answered once there is room");
        }
        asking.await.expect("all was asked");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_begins_a_question_and_falls_silent_is_cut_off_and_whoever_is_slow_is_not() {
        let serve = Arc::new(Slow { begun: AtomicUsize::new(0), may: Semaphore::new(1) });
        let (kind, common) = (frame::message(HELLO.purpose), Common::default());
        let question =
            frame::bytes(kind, &(1_u64, Ask::PutBlobs(vec![(Digest([1; 32]), vec![7; 100])]))).expect("small");
        let (mut slow, _served) = client(&serve, &common).await;
        for byte in &question {
            sleep(QUESTION_STALLED_MAX / 2).await;
            slow.write_all(&[*byte]).await.expect("read");
        }
        assert_eq!(frame::read::<(u64, Answer)>(&mut slow, kind).await.expect("an answer"), (1, Answer::Done));
        let (mut silent, cut_off) = client(&serve, &common).await;
        // Before it asks, it may be silent for as long as it likes.
        sleep(QUESTION_STALLED_MAX * 3).await;
        silent.write_all(&question[..question.len() - 1]).await.expect("read");
        sleep(QUESTION_STALLED_MAX * 2).await;
        assert!(cut_off.is_finished(), "it keeps its room");
        cut_off.await.expect("it does not panic").expect_err("in the middle of a question");
    }

    /// Time stands still until nobody has anything to do.
    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_much_and_reads_nothing_costs_a_bound_in_bytes() {
        let serve = Arc::new(Blobs::default());
        let kind = frame::message(HELLO.purpose);
        let (mut ours, served) = client(&serve, &Common::default()).await;
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
