//! What the master proposes, on values only.

mod care;
mod sane;
mod stories;
mod world;
