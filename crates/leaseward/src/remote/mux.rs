//! Many connections over one stream.
//!
//! Must stay true: whoever reads the stream never waits for a slow connection, so a large transfer does not hold
//! renewals up; each connection has a window, so nothing piles up; frames of a connection that is over are late, not
//! wrong. A stream that breaks the rules, ends or falls silent ends everything that it carries, and nothing else.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval, sleep_until};
use tracing::debug;

use crate::limits::{CARRIED_MAX, FRAMES_TO_SSH_MAX, PIECE_BYTES_MAX, PING_EVERY, WINDOW_BYTES};
use crate::remote::frame::{Broken, Decoder, Frame};

/// Why a stream is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Over {
    #[error("LW0371: the other side ended it")]
    Ended,
    #[error("LW0371: silent for {0:?}")]
    Silent(Duration),
    #[error("LW0371: {0}")]
    Lost(String),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// A stream whose first words are behind it.
pub(crate) struct Stream<R, W> {
    pub(crate) read: R,
    pub(crate) write: W,
    /// What was read already.
    pub(crate) decoder: Decoder,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Stream<R, W> {
    /// Tells who we are and returns who is there, as JSON.
    ///
    /// # Errors
    /// [`Over`], if something else comes, or nothing.
    pub(crate) async fn greet(&mut self, hello: Vec<u8>, within: Duration) -> Result<Vec<u8>, Over> {
        let exchange = async {
            self.write.write_all(&Frame::Hello(hello).encode()).await.map_err(lost)?;
            self.write.flush().await.map_err(lost)?;
            let mut piece = vec![0; PIECE_BYTES_MAX];
            loop {
                match self.decoder.next()? {
                    Some(Frame::Hello(hello)) => return Ok(hello),
                    Some(_) => return Err(Over::Broken(Broken::Rules(0))),
                    None => {}
                }
                match self.read.read(&mut piece).await.map_err(lost)? {
                    0 => return Err(Over::Ended),
                    read => self.decoder.feed(&piece[..read]),
                }
            }
        };
        tokio::time::timeout(within, exchange).await.unwrap_or(Err(Over::Silent(within)))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn lost(error: io::Error) -> Over {
    Over::Lost(error.to_string())
}

/// What becomes of a wish for a connection to the voter of a number.
pub(crate) trait Dial: Clone + Send + Sync + 'static {
    /// A connection.
    type Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Connects.
    ///
    /// # Errors
    /// If there is no such voter, or it does not answer.
    fn dial(&self, voter: u8) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

/// A connection of this side that the other side should have.
pub(crate) struct Accepted<C> {
    pub(crate) voter: u8,
    pub(crate) connection: C,
}

/// What this side knows of a carried connection.
struct Channel {
    /// To its socket. Bounded by the window.
    inward: mpsc::UnboundedSender<Inward>,
    /// Bytes received and not passed on yet.
    unpaid: Arc<AtomicUsize>,
    /// What may still be sent.
    window: Arc<Semaphore>,
    task: AbortHandle,
}

enum Inward {
    Data(Vec<u8>),
    End,
}

/// Carries connections until the stream is over. Everything that it carries is closed then.
pub(crate) async fn carry<R, W, C, D>(
    stream: Stream<R, W>,
    mut accepted: mpsc::Receiver<Accepted<C>>,
    dial: Option<D>,
    silence: Duration,
) -> Over
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    D: Dial,
{
    let Stream { mut read, write, mut decoder } = stream;
    let (outward, queue) = mpsc::channel(FRAMES_TO_SSH_MAX);
    let mut writer = tokio::spawn(write_frames(write, queue));
    let _writer_ends_with_us = AbortOnDrop(writer.abort_handle());
    // Dropped with this function, and with it everything that is carried.
    let mut tasks: JoinSet<u32> = JoinSet::new();
    let mut channels: BTreeMap<u32, Channel> = BTreeMap::new();
    let mut next = 0_u32;
    let mut pings = interval(PING_EVERY);
    let mut heard = Instant::now();
    let mut piece = vec![0; 4 * PIECE_BYTES_MAX];
    loop {
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if let Err(broken) = take(frame, &mut channels, &mut tasks, dial.as_ref(), &outward) {
                        return broken.into();
                    }
                }
                Err(broken) => return broken.into(),
            }
        }
        tokio::select! {
            read = read.read(&mut piece) => match read {
                Ok(0) => return Over::Ended,
                Ok(read) => {
                    heard = Instant::now();
                    decoder.feed(&piece[..read]);
                }
                Err(error) => return lost(error),
            },
            Some(Accepted { voter, connection }) = accepted.recv(), if channels.len() < CARRIED_MAX => {
                next = next.wrapping_add(1);
                let open = Some(Frame::Open { channel: next, voter });
                let connect = std::future::ready(Ok(connection));
                channels.insert(next, start(&mut tasks, next, open, connect, &outward));
            }
            Some(done) = tasks.join_next() => if let Ok(channel) = done {
                channels.remove(&channel);
            },
            // A full queue is a sign of life too, if it gets through.
            _ = pings.tick() => drop(outward.try_send(Frame::Ping)),
            written = &mut writer => {
                return Over::Lost(written.map_or_else(|error| error.to_string(), |error| error.to_string()));
            }
            () = sleep_until(heard + silence) => return Over::Silent(silence),
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes until it fails. Returns why.
async fn write_frames(mut write: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Frame>) -> io::Error {
    while let Some(frame) = queue.recv().await {
        let written = async {
            write.write_all(&frame.encode()).await?;
            write.flush().await
        };
        if let Err(error) = written.await {
            return error;
        }
    }
    io::ErrorKind::BrokenPipe.into()
}

/// Never waits: whatever takes time is a task's.
fn take<D: Dial>(
    frame: Frame,
    channels: &mut BTreeMap<u32, Channel>,
    tasks: &mut JoinSet<u32>,
    dial: Option<&D>,
    outward: &mpsc::Sender<Frame>,
) -> Result<(), Broken> {
    match frame {
        Frame::Ping => {}
        Frame::Hello(_) => return Err(Broken::Rules(0)),
        Frame::Open { channel, voter } => {
            let Some(dial) = dial else { return Err(Broken::Rules(channel)) };
            if channels.contains_key(&channel) || channels.len() >= CARRIED_MAX {
                return Err(Broken::Rules(channel));
            }
            let dial = dial.clone();
            let connect = async move { dial.dial(voter).await };
            channels.insert(channel, start(tasks, channel, None, connect, outward));
        }
        Frame::Data { channel, bytes } => {
            if let Some(known) = channels.get(&channel) {
                let unpaid = known.unpaid.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
                if unpaid > WINDOW_BYTES {
                    return Err(Broken::Rules(channel));
                }
                known.inward.send(Inward::Data(bytes)).ok();
            }
        }
        Frame::End { channel } => {
            if let Some(known) = channels.get(&channel) {
                known.inward.send(Inward::End).ok();
            }
        }
        Frame::Close { channel } => {
            if let Some(known) = channels.remove(&channel) {
                known.task.abort();
            }
        }
        Frame::Credit { channel, bytes } => {
            if let Some(known) = channels.get(&channel) {
                if known.window.available_permits() + bytes as usize > WINDOW_BYTES {
                    return Err(Broken::Rules(channel));
                }
                known.window.add_permits(bytes as usize);
            }
        }
    }
    Ok(())
}

fn start<C: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    tasks: &mut JoinSet<u32>,
    channel: u32,
    first: Option<Frame>,
    connect: impl Future<Output = io::Result<C>> + Send + 'static,
    outward: &mpsc::Sender<Frame>,
) -> Channel {
    let (inward, queue) = mpsc::unbounded_channel();
    let unpaid = Arc::new(AtomicUsize::new(0));
    let window = Arc::new(Semaphore::new(WINDOW_BYTES));
    let (paid, permits, outward) = (Arc::clone(&unpaid), Arc::clone(&window), outward.clone());
    let task = tasks.spawn(async move {
        if let Some(first) = first {
            outward.send(first).await.ok();
        }
        let outcome = async {
            let (read, write) = split(connect.await?);
            let outgoing = send_bytes(read, channel, &permits, &outward);
            let incoming = receive_bytes(write, queue, channel, &paid, &outward);
            tokio::try_join!(outgoing, incoming)
        };
        if let Err(error) = outcome.await {
            debug!(channel, %error, "a carried connection broke");
            // Never after two ends: the other side may have bytes to pass on, which this would cut off.
            outward.send(Frame::Close { channel }).await.ok();
        }
        channel
    });
    Channel { inward, unpaid, window, task }
}

/// From the socket to the stream, until the socket has no more.
async fn send_bytes(
    mut read: impl AsyncRead + Unpin,
    channel: u32,
    window: &Semaphore,
    outward: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut piece = vec![0; PIECE_BYTES_MAX];
    loop {
        // One byte is enough to read; how many more there may be is seen then.
        let first = window.acquire().await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let more = window.available_permits().min(PIECE_BYTES_MAX - 1);
        let count = read.read(&mut piece[..=more]).await?;
        if count == 0 {
            return outward.send(Frame::End { channel }).await.map_err(closed);
        }
        first.forget();
        // We alone take from this window, so they are still there.
        window.forget_permits(count - 1);
        outward.send(Frame::Data { channel, bytes: piece[..count].to_vec() }).await.map_err(closed)?;
    }
}

/// From the stream to the socket, until the other side has no more.
async fn receive_bytes(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Inward>,
    channel: u32,
    unpaid: &AtomicUsize,
    outward: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    while let Some(Inward::Data(bytes)) = queue.recv().await {
        write.write_all(&bytes).await?;
        unpaid.fetch_sub(bytes.len(), Ordering::Relaxed);
        let count = u32::try_from(bytes.len()).expect("pieces are short");
        outward.send(Frame::Credit { channel, bytes: count }).await.ok();
    }
    write.shutdown().await
}

#[cfg(test)]
#[path = "mux_tests.rs"]
mod tests;
