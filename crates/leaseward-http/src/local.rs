//! The API on a UNIX socket: for root and one other user of this machine, as the kernel names them.
//!
//! Must stay true: nobody else is answered, whatever the socket's mode.

use std::io;

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::access::Local;
use crate::api::{Api, router};

/// Serves the API to root and to the user `own` until the future is dropped.
///
/// # Errors
/// Those of the listener; none in practice, as failed connections are skipped.
pub async fn serve_local(listener: UnixListener, api: Api, own: u32) -> io::Result<()> {
    // The kernel says who they are: no token could say more.
    let router = router(api).layer(axum::Extension(Local));
    axum::serve(Guarded { listener, own }, router.into_make_service()).await
}

/// A listener that shows only those who may ask.
struct Guarded {
    listener: UnixListener,
    own: u32,
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if may_ask(peer.uid(), self.own) => return (stream, address),
                Ok(peer) => warn!(uid = peer.uid(), "refused a user on the local socket"),
                Err(error) => debug!(%error, "refused a connection whose user is unknown"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn may_ask(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_owner_may_ask() {
        assert!(may_ask(0, 107) && may_ask(107, 107) && may_ask(0, 0));
        assert!(!may_ask(1_000, 107) && !may_ask(107, 0));
    }
}
