//! What a node asks of the store of content beside it, and serves to peers and clients.
//!
//! Must stay true: what is said to be here is here durably. Left out on purpose: the store itself (`leaseward-sync`), and
//! what must be on a quorum before it is named (`leaseward/content.rs`).

use std::future::Future;
use std::pin::Pin;

use leaseward_state::SetName;
use leaseward_state::config::Digest;
use leaseward_state::config::delta::SharedBytes;

/// A boxed answer, so that blob stores can be traded at run time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Blobs in their stored form, each with its name.
pub type Frames = Vec<(Digest, SharedBytes)>;

/// The content store of this node, for peers and clients that ask.
pub trait Blobs: Send + Sync + 'static {
    /// Returns those that are not here durably; makes durable what is here.
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, Vec<Digest>>;

    /// Returns a blob's plain bytes, verified.
    fn get(&self, digest: Digest) -> Later<'_, Option<Vec<u8>>>;

    /// Keeps blobs; durable when it returns.
    ///
    /// # Errors
    /// A stable code and a reason.
    fn put(&self, blobs: Vec<(Digest, Vec<u8>)>) -> Later<'_, Result<(), (String, String)>>;

    /// Returns blobs in their stored form, as many of the first ones as fit one answer, and those that are not here.
    fn frames<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, (Frames, Vec<Digest>)>;

    /// Keeps blobs that come in their stored form from a node that has verified them; [`Blobs::missing`] makes them durable.
    ///
    /// # Errors
    /// A stable code and a reason.
    fn put_frames(&self, frames: Frames) -> Later<'_, Result<(), (String, String)>>;

    /// Returns what makes the manifest `next` and its chunks out of `base`, if that is known or soon made.
    fn delta<'a>(&'a self, set: &'a SetName, base: Digest, next: Digest) -> Later<'a, Option<SharedBytes>>;
}
