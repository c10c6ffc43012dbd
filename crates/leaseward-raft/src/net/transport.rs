//! Byte streams between nodes. Plain TCP today; TLS will wrap the stream here, and nowhere else.
//!
//! Must stay true: plain streams leave the machine only if the operator said so; a stream to a machine that lost power
//! ends by itself within seconds.

use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::timeout;

use crate::limits::{CONNECT_TIMEOUT, KEEPALIVE_EACH, KEEPALIVE_LOOKS, UNACKNOWLEDGED_MAX};
#[cfg(feature = "simulation")]
use crate::simulation;

/// A stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// How streams are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP, on loopback only.
    #[default]
    PlainLoopback,
    /// Plain TCP to anywhere: the operator answers for the network.
    PlainAnywhere,
}

impl Transport {
    /// Returns a stream to `address` (`host:port`).
    ///
    /// # Errors
    /// What the operating system says, a timeout, or that a plain stream may not go there.
    pub async fn connect(self, address: &str) -> io::Result<Box<dyn Duplex>> {
        #[cfg(feature = "simulation")]
        if let Some(host) = simulation::host() {
            return timeout(CONNECT_TIMEOUT, host.connect(address)).await?;
        }
        let connect = async {
            let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
            for address in lookup_host(address).await? {
                self.check(address)?;
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let stream = timeout(CONNECT_TIMEOUT, connect).await??;
        prepare(&stream)?;
        Ok(Box::new(stream))
    }

    /// Returns a listener on `address`.
    ///
    /// # Errors
    /// What the operating system says, or that a plain listener may not be there.
    pub async fn listen(self, address: SocketAddr) -> io::Result<Listener> {
        #[cfg(feature = "simulation")]
        if let Some(host) = simulation::host() {
            return host.listen(address).map(Listener::Simulated);
        }
        self.check(address)?;
        TcpListener::bind(address).await.map(Listener::Plain)
    }

    fn check(self, address: SocketAddr) -> io::Result<()> {
        if self == Self::PlainAnywhere || address.ip().is_loopback() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{address} is not on loopback and this connection is not encrypted; set `tls.plain = true` only on \
                 a network that you trust"
            ),
        ))
    }
}

/// Takes connections.
pub enum Listener {
    /// Plain TCP.
    Plain(TcpListener),
    /// Of a simulated host.
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn simulation::Accept>),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Plain(listener)
    }
}

impl Listener {
    /// Returns the next stream and where it comes from. Cancel safe.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn accept(&mut self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Self::Plain(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Plain(stream), peer))
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Simulated(stream), peer))
            }
        }
    }
}

/// A stream that has come in.
pub enum Accepted {
    /// Plain TCP.
    Plain(TcpStream),
    /// Of a simulated host.
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn Duplex>),
}

impl Accepted {
    /// Returns the stream, ready for the first frame.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn ready(self) -> io::Result<Box<dyn Duplex>> {
        match self {
            Self::Plain(stream) => {
                prepare(&stream)?;
                Ok(Box::new(stream))
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(stream) => Ok(stream),
        }
    }
}

/// Has the kernel send at once, and end the stream when the other machine is gone without a word.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_EACH)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EACH)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_LOOKS)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
    Ok(())
}
