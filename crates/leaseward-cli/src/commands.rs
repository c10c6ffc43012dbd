//! The commands, one file each.

pub(crate) mod agent;
pub(crate) mod backup;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod lease;
pub(crate) mod machine;
pub(crate) mod manual;
pub(crate) mod node;
pub(crate) mod operation;
pub(crate) mod policy;
pub(crate) mod remote;
pub(crate) mod run;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod whatif;
