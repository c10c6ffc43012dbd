//! A connection to one shim: requests in, answers out in their order, and the word that all is over.
//!
//! Must stay true: an answer goes to the request it belongs to, also when earlier ones were given up on. A link says
//! nothing about life and death: only a process descriptor does.

use std::collections::VecDeque;
use std::io;

use leaseward_state::server::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::Result;
use crate::error::Error;
use crate::limits::{ACK_WAIT, LINE_BYTES_MAX, ORDER_BYTES_MAX, REQUESTS_WAITING_MAX};
use crate::protocol::{Reply, Request};

struct Asked {
    request: Request,
    answer: oneshot::Sender<Reply>,
}

/// A handle of the connection; the connection closes with the last one.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    server: String,
    asks: mpsc::Sender<Asked>,
}

impl Link {
    /// Takes over a connection, with what was read of it already: the end of a short command may have come together
    /// with the word that it began. The receiver hears how the server ended, if the shim lives to say it.
    pub(crate) fn over(server: &str, lines: Lines) -> (Self, oneshot::Receiver<Exit>) {
        let (asks, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
        let (over, when_over) = oneshot::channel();
        tokio::spawn(carry(lines, asked, over));
        (Self { server: server.to_owned(), asks }, when_over)
    }

    /// Asks, and waits a bounded time for the answer. Cancel safe in that the request may or may not be carried out.
    ///
    /// # Errors
    /// [`Error::Unacked`] without an answer in time: it may have been carried out all the same. [`Error::Refused`].
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply> {
        let unacked = || Error::Unacked { server: self.server.clone() };
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(Asked { request, answer }).map_err(|_| unacked())?;
        match timeout(ACK_WAIT, answered).await {
            Ok(Ok(Reply::Refused { why })) => Err(Error::Refused { server: self.server.clone(), why }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(unacked()),
        }
    }
}

async fn carry(mut lines: Lines, mut asked: mpsc::Receiver<Asked>, over: oneshot::Sender<Exit>) {
    let mut waiting: VecDeque<oneshot::Sender<Reply>> = VecDeque::new();
    let mut over = Some(over);
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(Asked { request, answer }) = ask else { return };
                if waiting.len() >= REQUESTS_WAITING_MAX || lines.write(&request).await.is_err() {
                    // Dropping `answer` tells the caller; a shim that reads nothing any more is no use. But one that
                    // ended while we wrote has said before how its server ended.
                    drop(answer);
                    while let Ok(Ok(reply)) = timeout(ACK_WAIT, lines.read()).await {
                        let Reply::Over { exit } = reply else { continue };
                        let _ = over.take().map(|over| over.send(exit));
                        return;
                    }
                    return;
                }
                waiting.push_back(answer);
            }
            reply = lines.read() => match reply {
                Ok(Reply::Over { exit }) => {
                    if let Some(over) = over.take() {
                        let _ = over.send(exit);
                    }
                }
                Ok(reply) => {
                    if let Some(answer) = waiting.pop_front() {
                        let _ = answer.send(reply);
                    }
                }
                Err(_) => return,
            },
        }
    }
}

/// JSON lines over a socket.
pub(crate) struct Lines {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Writes one value. Gives up on a socket that stays full. Not cancel safe.
    pub(crate) async fn write<T: serde::Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        if line.len() > ORDER_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        timeout(ACK_WAIT, self.stream.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Reads one reply. Cancel safe.
    pub(crate) async fn read(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.pending).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
