//! A simulated host under a node: its clocks, its network, its disk, its threads. Only with the feature `simulation`.
//!
//! Must stay true: what a node asks of its machine goes through here while a host is entered, and to the kernel
//! otherwise; all that runs for one host runs on one thread, so that one seed decides everything. A build without the
//! feature has none of it. Snapshots, the identity and what a node remembers of others stay real files: they are
//! written in one go, and a simulated host finds them as they were written.

mod disk;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use disk::SimDisk;

use crate::blobs::Later;
use crate::clock::Which;
use crate::disk::Disk;
use crate::net::transport::Duplex;
use crate::store::StateStore;

/// A machine that a node runs on.
pub trait Host: Send + Sync {
    /// Reads one of its clocks.
    fn clock(&self, which: Which) -> Duration;

    /// Opens a stream to `address` (`host:port`).
    fn connect(&self, address: &str) -> Later<'static, io::Result<Box<dyn Duplex>>>;

    /// Returns a listener on `address`.
    ///
    /// # Errors
    /// What a kernel would say.
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>>;

    /// Returns the disk of the log in this directory.
    fn log_disk(&self, dir: &Path) -> Arc<dyn Disk>;

    /// Waits for as long as a write to the log takes now.
    fn log_written(&self) -> Later<'static, ()>;

    /// Returns the store of the state in this directory.
    fn state_store(&self, dir: &Path) -> Box<dyn StateStore>;
}

/// Takes connections.
pub trait Accept: Send {
    /// Returns the next one. Cancel safe.
    fn accept(&mut self) -> Later<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>>;
}

thread_local! {
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

/// Everything that runs on this thread runs on `host` until the guard is dropped.
#[must_use]
pub fn enter(host: Arc<dyn Host>) -> Entered {
    Entered { before: HOST.with(|current| current.borrow_mut().replace(host)) }
}

/// Leaves the host when it is dropped.
pub struct Entered {
    before: Option<Arc<dyn Host>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        HOST.with(|current| *current.borrow_mut() = self.before.take());
    }
}

/// Returns the host that this thread has entered.
pub(crate) fn host() -> Option<Arc<dyn Host>> {
    HOST.with(|current| current.borrow().clone())
}
