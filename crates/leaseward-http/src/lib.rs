//! The HTTP API of Leaseward's voters, and the objects that it speaks of.
//!
//! Must stay true: every voter answers everything (a follower asks the leader, one hop); reads are linearizable unless
//! the caller asks for less; every answer says which revision it reflects; an error is a [`model::Problem`] with a
//! stable code; a route of the API that is not in the OpenAPI document cannot be served.
//! Left out on purpose: TLS.
//!
//! To find your way: `model/` has what goes over the wire, `view.rs` makes it from the state, `ask.rs` reads what a
//! request says besides its body, `answer.rs` puts the headers on every answer, and each noun has a file in `routes/`.
//! `console.rs` serves the pages in `console/`.

pub mod access;
mod answer;
mod api;
mod ask;
mod console;
mod describe;
mod explain;
mod foreseen;
mod history;
pub mod limits;
mod local;
pub mod model;
mod openapi;
mod operation;
mod page;
pub mod problem;
mod routes;
pub mod suggest;
mod view;

pub use api::{Api, Backup, Base, Content, ContentError, Ready, router, serve};
pub use ask::can_be_tried;
pub use describe::describe;
pub use local::serve_local;
pub use openapi::document;
pub use view::{Remaining, lease, machine, phase, server, session};
