//! Storage: what is acknowledged is there after any crash, and what is damaged is named, not guessed.

mod crash;
mod damage;
mod data_dir;
mod snapshots;
mod store;
mod suite;
mod writer;
