//! The objects that the API speaks of: what goes over the wire, and what the command line prints.
//!
//! Must stay true: snake_case; tokens, revisions and sessions are strings, because JavaScript loses bits above 2^53;
//! durations are strings (`"3s"`); times are RFC 3339 in UTC. Clients ignore fields they do not know; the server
//! refuses them. Left out on purpose: how an object is made from the state (`view.rs`).

mod access;
mod cluster;
mod config;
mod event;
mod explain;
mod history;
mod lease;
mod machine;
mod operation;
mod policy;
mod problem;
mod server;
mod server_file;
mod server_spec;
mod set_policy;
mod surroundings;
mod text;
mod transaction;

pub use access::{CreateToken, RevokeToken, Token, TokenList};
pub use cluster::{ClusterStatus, Count, Health, Node, NodeList, NodeRole, Transfer};
pub(crate) use config::entry;
pub use config::{
    AdoptFiles, BlobName, ChangeFiles, ConfigDiff, ConfigSet, ConfigSetList, ConfigVersion, ConfigVersionList,
    FileChange, FileDiff, FileDiffKind, FileEntry, FileKind, ManifestListing, MemberSync, MemberSyncList, MissingBlobs,
    ProgramSync, Publish, PublishSize, Rollback, RunningStep, SyncPhase, TakenBack, entries,
};
pub use event::{Compacted, EventList, EventRecord, Snapshot};
pub use explain::{Explanation, Fact, Hint};
pub use history::{History, Incident, Phase, Predicted, Prediction};
pub use lease::{
    AcquireLease, HeldLease, Lease, LeaseList, LeaseState, OpenSession, Renew, RenewOne, Renewed, RenewedOne, Revoke,
    Session, SessionList, SessionOwner, Waiter,
};
pub use machine::{ConfirmDead, Cordon, CordonShown, Machine, MachineList};
pub use operation::{Operation, OperationList, OperationPhase, OperationStep};
pub use policy::{BeginPause, Pause, Policy};
pub use problem::Problem;
pub use server::{Heir, Server, ServerFailure, ServerHealth, ServerList, ServerOutput, ServerPhase, Wanted};
pub use server_file::{CheckFile, CheckKind, Fence, ManagerFile, RestartFile, ServerFile};
pub use set_policy::{
    DrainWord, DriftWord, LayoutWord, PinView, Resync, RolloutFile, RolloutView, SetHookFile, SetPolicy, SteerRollout,
    SteerWord, Unpin,
};
pub use surroundings::{AnnounceFile, HookFile, LimitsFile, MountFile, VipFile};
pub use text::{BadDuration, Duration, Time, Wide};
pub use transaction::{Change, Condition, Outcome, Transaction, TransactionResult};
