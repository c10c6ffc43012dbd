//! The wire: framed requests and answers over TCP, to peers and from clients.
//!
//! Must stay true: who speaks is known before anything is allocated for it; every frame is bounded, and so are all that wait; a slow reader
//! slows its own connection only. A peer has two connections: `control` for consensus and `bulk` for what is large,
//! so that a snapshot never delays a heartbeat. Left out on purpose: TLS, which wraps the stream in `transport.rs`.

pub mod connection;
pub mod frame;
mod heard;
mod inbox;
pub mod links;
pub mod listener;
mod outbox;
pub mod transport;
pub mod wire;
