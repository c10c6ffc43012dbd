//! Three nodes in one process, with real disks and real sockets.

mod agree;
mod disks;
mod nodes;
mod restored;
mod upgrade;
