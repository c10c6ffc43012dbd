//! What a committed entry means.
//!
//! [`State`] is a value: entries in, replies and events out.

pub mod config;
pub mod limits;
pub mod name;
pub mod server;
pub mod token;
