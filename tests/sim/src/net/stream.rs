//! A program's side of the network: streams and listeners.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use leaseward_raft::Later;
use leaseward_raft::net::transport::Duplex;
use leaseward_raft::simulation::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Backlog, End, Event, Opening, Pair};
use crate::host::Host;

/// One end of a stream.
pub struct Stream {
    host: Arc<Host>,
    id: u64,
    side: usize,
}

/// Opens a stream from this host.
///
/// # Errors
/// What a kernel would say. Who is not there says nothing.
pub fn connect(host: &Arc<Host>, address: &str) -> impl Future<Output = io::Result<Stream>> + Send + 'static {
    let to = address.parse::<SocketAddr>().ok();
    let stream = {
        let now = host.now();
        let mut net = host.net().lock();
        let found = net.nodes.iter().position(|node| Some(node.address) == to);
        found.map(|to| {
            let id = net.sequence + 1;
            let ends = [End { host: host.id(), ..End::default() }, End { host: to, ..End::default() }];
            net.streams.insert(id, Pair { opening: Opening::Waits, ends, silent: None });
            let at = now + net.delay(host.id(), to);
            net.push(at, Event::Open(id));
            Stream { host: Arc::clone(host), id, side: 0 }
        })
    };
    async move {
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        poll_fn(|context| {
            let mut net = stream.host.net().lock();
            let Some(pair) = net.streams.get_mut(&stream.id) else {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
            };
            match pair.opening {
                Opening::Open => Poll::Ready(Ok(())),
                Opening::Refused => Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionRefused))),
                Opening::Waits => {
                    pair.ends[0].waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        Ok(stream)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut net = self.host.net().lock();
        let Some(end) = net.streams.get_mut(&self.id).map(|pair| &mut pair.ends[self.side]) else {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
        };
        if end.arrived.is_empty() {
            if end.broken {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
            }
            if end.ended {
                return Poll::Ready(Ok(()));
            }
            end.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = buffer.remaining().min(end.arrived.len());
        for byte in end.arrived.drain(..count) {
            buffer.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Whoever is dead says nothing more, though its tasks still run to the end of the step.
        if !self.host.is_alive() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let now = self.host.now();
        let mut net = self.host.net().lock();
        let end = net.streams.get(&self.id).map(|pair| &pair.ends[self.side]);
        if end.is_none_or(|end| end.broken) {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset)));
        }
        net.send(self.id, self.side, now, Some(bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.host.now();
        self.host.net().lock().send(self.id, self.side, now, None);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = self.host.now();
        let mut net = self.host.net().lock();
        let Some(pair) = net.streams.get_mut(&self.id) else { return };
        let end = &mut pair.ends[self.side];
        end.dropped = true;
        // The kernel closes what a process leaves behind; without power nobody does.
        if !end.lost {
            net.send(self.id, self.side, now, None);
        }
    }
}

/// Takes connections to a host.
pub struct Listener {
    host: Arc<Host>,
    id: u64,
}

/// Returns a listener of this host.
///
/// # Errors
/// If there is one already.
pub fn listen(host: &Arc<Host>) -> io::Result<Listener> {
    let mut net = host.net().lock();
    if net.nodes[host.id()].listening.is_some() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    net.sequence += 1;
    let id = net.sequence;
    net.nodes[host.id()].listening = Some(Backlog { id, ..Backlog::default() });
    Ok(Listener { host: Arc::clone(host), id })
}

impl Accept for Listener {
    fn accept(&mut self) -> Later<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>> {
        Box::pin(poll_fn(|context| {
            let mut net = self.host.net().lock();
            let Some(backlog) = net.nodes[self.host.id()].listening.as_mut() else { return Poll::Pending };
            match backlog.arrived.pop_front() {
                Some(id) => {
                    let from = net.streams.get(&id).map_or(self.host.id(), |pair| pair.ends[0].host);
                    let peer = net.nodes[from].address;
                    drop(net);
                    let stream: Box<dyn Duplex> = Box::new(Stream { host: Arc::clone(&self.host), id, side: 1 });
                    Poll::Ready(Ok((stream, peer)))
                }
                None => {
                    backlog.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = self.host.now();
        let mut net = self.host.net().lock();
        let listening = &mut net.nodes[self.host.id()].listening;
        let Some(backlog) = listening.take_if(|backlog| backlog.id == self.id) else { return };
        // Whoever waited to be taken is turned away.
        for id in backlog.arrived {
            if let Some(pair) = net.streams.get_mut(&id) {
                pair.ends[1].dropped = true;
                net.push(now, Event::Broken(id, 0));
            }
        }
    }
}
