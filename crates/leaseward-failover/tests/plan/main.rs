//! What the master proposes, on values only.

mod care;
mod stories;
mod world;
