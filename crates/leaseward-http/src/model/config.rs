//! Config sets, their versions and their members.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Time, Wide};

/// A config set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigSet {
    /// Its name.
    #[schema(example = "app")]
    pub name: String,
    /// The number of its newest version.
    pub version: u64,
    /// Its newest version.
    pub newest: ConfigVersion,
    /// Versions that are kept.
    pub versions_kept: u64,
    /// Members whose disks have the newest version.
    pub in_sync: u64,
    /// Members that ever reported.
    pub members: u64,
    /// The entry that made it.
    pub created: Wide,
    /// The entry that changed it last.
    pub modified: Wide,
}

/// Config sets by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigSetList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The sets.
    pub items: Vec<ConfigSet>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// One version of a set. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigVersion {
    /// The set.
    pub set: String,
    /// Counts the versions of the set, from 1.
    pub version: u64,
    /// The version it was made from; 0 if none.
    pub parent: u64,
    /// The blob that holds its manifest.
    pub manifest: String,
    /// Regular files in it.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Who made it.
    pub author: String,
    /// Why.
    pub message: String,
    /// When.
    pub at: Time,
    /// The entry that committed it.
    pub revision: Wide,
}

/// Versions of a set, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigVersionList {
    /// The revision of what is listed.
    pub revision: Wide,
    /// The versions.
    pub items: Vec<ConfigVersion>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// A version with everything in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ManifestListing {
    /// The version.
    pub version: ConfigVersion,
    /// Its paths, ascending.
    pub entries: Vec<FileEntry>,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// A path of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// Relative to the top.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "644")]
    pub mode: Option<String>,
    /// Bytes of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The blake3 hash of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Publishes a version whose blobs are here already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The version it was made from; 0: the set must not exist; not given: whatever it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// The blob with the encoded manifest, in hexadecimal.
    pub manifest: String,
    /// Who publishes.
    #[serde(default)]
    pub author: String,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// Publishes an old version again, as a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The old version.
    pub to: u64,
    /// Who.
    #[serde(default)]
    pub author: String,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// What a member does with a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncPhase {
    /// It has an older version, or never reported.
    Behind,
    /// It fetches what it lacks.
    Fetching,
    /// A version is on its disk and not yet live.
    OnDisk,
    /// The newest version is live.
    Applied,
    /// It refused a version and keeps the old one.
    Rejected,
    /// Somebody changed its files by hand.
    Drifted,
    /// It leaves the load balancer before it applies.
    Draining,
    /// An operator took it out.
    Disabled,
}

/// How far a member is with a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberSync {
    /// The member.
    pub machine: String,
    /// Whether its agent's session is open.
    pub connected: bool,
    /// The version live on its disk; 0 if none.
    pub applied: u64,
    /// What it does.
    pub phase: SyncPhase,
    /// The version it fetches, has on disk, or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why it refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Which files were changed by hand, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// When it reported, if it ever did.
    pub at: Option<Time>,
}

/// Members of a set by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberSyncList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The set's newest version.
    pub version: u64,
    /// The members: every machine known to the cluster.
    pub items: Vec<MemberSync>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Names of blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MissingBlobs {
    /// blake3 hashes in hexadecimal.
    pub digests: Vec<String>,
}
