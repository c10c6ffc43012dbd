//! The far side: gives an agent the voters through standard input and output.
//!
//! Must stay true: the agent's connections go to listeners of this process, on loopback, that take connections of this
//! user only; each is carried to a voter. When the stream ends or is silent, this process ends: the shims end the
//! servers at their deadlines, neither earlier nor later, unless another agent comes before that and adopts them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use leaseward_raft::net::transport::{Duplex, Transport};
use leaseward_state::MachineName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::limits::SENTINEL_WITHIN;
use crate::remote::frame::Decoder;
use crate::remote::mux::{Accepted, Dial, Stream, carry};
use crate::remote::near::{FarHello, NearHello};
use crate::remote::sentinel::STREAM;

/// Listeners: as many as there may be voters. The near side knows them by number, however many there are.
const VOTERS: u8 = 9;

/// A stream to the near side.
pub struct Far<R, W> {
    stream: Stream<R, W>,
    machine: MachineName,
}

/// A far side opens nothing for others.
#[derive(Clone)]
struct Nobody;

impl Dial for Nobody {
    type Connection = Box<dyn Duplex>;

    async fn dial(&self, _voter: u8) -> io::Result<Box<dyn Duplex>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl<R, W> Far<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    /// Says the sentinel, and learns which machine this is. Nothing else may write to `write`.
    ///
    /// # Errors
    /// [`Error::Start`] with `LW0371` or `LW0372` if nobody answers, or somebody else.
    pub async fn greet(read: R, mut write: W) -> Result<Self> {
        let failed = |why: String| match why.split_once(": ") {
            Some((code, why)) if code.starts_with("LW") => Error::Start { code: code.into(), why: why.into() },
            _ => Error::Start { code: "LW0371".into(), why },
        };
        let sentinel = async {
            write.write_all(STREAM).await?;
            write.flush().await
        };
        sentinel.await.map_err(|error| failed(error.to_string()))?;
        let mut stream = Stream { read, write, decoder: Decoder::default() };
        let hello = FarHello { version: env!("CARGO_PKG_VERSION").to_owned() };
        let hello = serde_json::to_vec(&hello).unwrap_or_default();
        let near = stream.greet(hello, SENTINEL_WITHIN).await.map_err(|over| failed(over.to_string()))?;
        let near: NearHello =
            serde_json::from_slice(&near).map_err(|error| failed(format!("LW0372: its greeting: {error}")))?;
        Ok(Self { stream, machine: MachineName::new(near.machine)? })
    }

    /// Returns the machine that the near side says this is.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// Returns a client that reaches the voters through the stream, and what carries it: to be polled until the stream
    /// is over, or silent for `silence`. Its output says why, with a code.
    ///
    /// # Errors
    /// [`Error::Start`] if this process may not listen on loopback.
    pub async fn client(self, silence: Duration) -> Result<(Client, impl Future<Output = String>)> {
        let failed = |error: io::Error| Error::Start { code: "LW0600".into(), why: format!("loopback: {error}") };
        let (accept, accepted) = mpsc::channel(usize::from(VOTERS));
        let mut listeners = JoinSet::new();
        let mut addresses = Vec::new();
        for voter in 0..VOTERS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?.to_string());
            listeners.spawn(listen(listener, voter, accept.clone()));
        }
        let client = Client::new(addresses, Transport::PlainLoopback);
        let carried = async move {
            let _listeners = listeners;
            carry(self.stream, accepted, None::<Nobody>, silence).await.to_string()
        };
        Ok((client, carried))
    }
}

async fn listen(listener: TcpListener, voter: u8, accept: mpsc::Sender<Accepted<TcpStream>>) {
    loop {
        match listener.accept().await {
            Ok((connection, from)) if is_ours(from, listener.local_addr().ok()) => {
                connection.set_nodelay(true).ok();
                if accept.send(Accepted { voter, connection }).await.is_err() {
                    return;
                }
            }
            Ok((_, from)) => warn!(%from, "another user's connection is refused"),
            Err(error) => {
                debug!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Returns whether a connection to us was made by a process of our own user: loopback belongs to everybody here.
fn is_ours(from: SocketAddr, to: Option<SocketAddr>) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let own = rustix::process::geteuid().as_raw();
    to.is_some_and(|to| owner(&table, from, to) == Some(own))
}

/// Returns the user of the socket from `from` to `to`, by the kernel's table of TCP sockets.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let (from, to) = (hexadecimal(from)?, hexadecimal(to)?);
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let found = fields.next()? == from && fields.next()? == to;
        // Between them and the user: state, queues, timer, retransmissions.
        if found { fields.nth(4)?.parse().ok() } else { None }
    })
}

/// Returns an address as that table writes it: the four bytes as the machine's own number.
fn hexadecimal(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whose_connection_it_is_says_the_kernel() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let to = listener.local_addr().expect("an address");
        let ours = TcpStream::connect(to).await.expect("connected");
        let (_theirs, from) = listener.accept().await.expect("accepted");
        assert!(is_ours(from, Some(to)));
        drop(ours);
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0100007F:1F91 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n";
        let (from, to): (SocketAddr, SocketAddr) =
            ("127.0.0.1:8080".parse().expect("good"), "127.0.0.1:8081".parse().expect("good"));
        if cfg!(target_endian = "little") {
            assert_eq!(owner(table, from, to), Some(1_000));
        }
        assert_eq!(owner(table, to, from), None);
    }
}
