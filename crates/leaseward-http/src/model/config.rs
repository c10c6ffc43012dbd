//! Config sets, their versions and their members.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use leaseward_state::config::{Manifest, ManifestEntry, ManifestNode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, PinView, RolloutView, SetPolicy, Time, Wide};

/// A config set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigSet {
    /// Its name.
    #[schema(example = "app")]
    pub name: String,
    /// The number of its newest version.
    pub version: u64,
    /// Its newest version, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<ConfigVersion>,
    /// Versions that are kept.
    pub versions_kept: u64,
    /// Members whose disks have the newest version.
    pub in_sync: u64,
    /// Machines that it is for.
    pub members: u64,
    /// How it is kept on them.
    pub policy: SetPolicy,
    /// Counts the policies; 0 while nobody gave one.
    pub policy_version: u64,
    /// The newest version on its way to them, if it goes in steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    /// Members that are kept at a version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<PinView>,
    /// Versions that were taken back on their way, ascending, the last few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_back: Vec<TakenBack>,
    /// The entry that made it.
    pub created: Wide,
    /// The entry that changed it last.
    pub modified: Wide,
}

/// A version that went round and was taken back: the next one has what was before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakenBack {
    /// The version.
    pub version: u64,
    /// Why.
    pub why: String,
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
    /// The extended attributes of a file, in base64; given if the version keeps them, empty if the file has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!({ "user.origin": "bTE=" }))]
    pub xattrs: Option<BTreeMap<String, String>>,
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
    /// How much it is, for a dry run of what is not here yet. Otherwise the manifest says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<PublishSize>,
}

/// How much a version is that nobody has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishSize {
    /// Regular files.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
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

impl SyncPhase {
    /// Returns the phase as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::Fetching => "fetching",
            Self::OnDisk => "on_disk",
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::Drifted => "drifted",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        }
    }
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
    /// The version that it should have, if that is not what it has for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u64>,
    /// Whether an operator keeps it there.
    #[serde(default)]
    pub pinned: bool,
    /// Where, who says so and why; without a machine it is said of all members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<PinView>,
    /// What runs for the set on this member and takes its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<RunningStep>,
    /// The version it fetches, has on disk, or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Bytes that came so far, while it fetches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Bytes that it lacked when it began; 0 while it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// How long the rest takes at the pace so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Duration>,
    /// Why it refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Which files were changed by hand, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// When it reported, if it ever did.
    pub at: Option<Time>,
}

/// A program of a set that runs on a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunningStep {
    /// `check`, before the version is live, or `reload`, after.
    pub what: String,
    /// The program and its arguments.
    pub command: String,
    /// When it was started.
    pub since: Time,
    /// How long ago that is, by the clock of the node that answers.
    #[schema(value_type = String, example = "40s")]
    pub lasting: Duration,
    /// It is killed after this long.
    #[schema(value_type = String, example = "1m")]
    pub timeout: Duration,
}

/// How far a program is with a file that it follows. It is no member: nothing waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgramSync {
    /// What it calls itself.
    pub name: String,
    /// The session under which it says so: it is shown no longer than that.
    pub session: Wide,
    /// The file, by its path in the set.
    pub file: String,
    /// The version that it works with; 0 if none.
    pub applied: u64,
    /// What it does: `behind`, `applied` or `rejected`.
    pub phase: SyncPhase,
    /// The version it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why it refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it said so.
    pub at: Time,
}

/// Members of a set by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberSyncList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The set's newest version.
    pub version: u64,
    /// That version on its way, if it goes in steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    /// The members: every machine that has the labels that the set asks for.
    pub items: Vec<MemberSync>,
    /// Programs that follow files of the set, by ascending sessions; on the first page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<ProgramSync>,
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

/// Changes of single files: one new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeFiles {
    /// The version they are made upon; 0: the set must have none; not given: the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// The changes, in this order.
    pub changes: Vec<FileChange>,
    /// Who.
    #[serde(default)]
    pub author: String,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// A change of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    /// Relative to the top. Directories above it are made.
    pub path: String,
    /// What it says from now on, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The same for bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The same as a blob that was put before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobName>,
    /// It is a symbolic link to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Permission bits, octal. Not given: as before, or 644.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// It goes away, with everything below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
}

/// A blob that was put before, of 256 KiB at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobName {
    /// Its blake3 hash in hexadecimal.
    pub digest: String,
    /// Its length in bytes.
    pub size: u32,
}

/// What two versions differ in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigDiff {
    /// The set.
    pub set: String,
    /// The older version; 0: nothing.
    pub from: u64,
    /// The newer version.
    pub to: u64,
    /// The paths that differ, ascending.
    pub files: Vec<FileDiff>,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileDiffKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its content, mode or kind is another.
    Changed,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileDiff {
    /// The path.
    pub path: String,
    /// How it differs.
    pub kind: FileDiffKind,
    /// What it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<FileEntry>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<FileEntry>,
}

/// Publishes what stands on a member's disk now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptFiles {
    /// The member.
    pub machine: String,
    /// The version that must be the newest one; not given: the one that is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// Who.
    #[serde(default)]
    pub author: String,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// Returns the paths of a tree as the API shows them.
#[must_use]
pub fn entries(tree: &Manifest) -> Vec<FileEntry> {
    tree.entries.iter().map(|found| entry(tree, found)).collect()
}

/// Returns a path of a tree as the API shows it.
pub(crate) fn entry(tree: &Manifest, entry: &ManifestEntry) -> FileEntry {
    let mut out = FileEntry {
        path: entry.path.clone(),
        kind: FileKind::Directory,
        mode: None,
        size: None,
        digest: None,
        target: None,
        xattrs: None,
    };
    match &entry.node {
        ManifestNode::Directory { mode } => out.mode = Some(format!("{mode:o}")),
        ManifestNode::File { mode, size, digest, .. } => {
            out.kind = FileKind::File;
            out.mode = Some(format!("{mode:o}"));
            out.size = Some(*size);
            out.digest = Some(digest.to_string());
            let all = tree.xattrs_of(&entry.path);
            out.xattrs =
                all.map(|all| all.iter().map(|(name, value)| (name.clone(), BASE64_STANDARD.encode(value))).collect());
        }
        ManifestNode::Symlink { target } => {
            out.kind = FileKind::Symlink;
            out.target = Some(target.clone());
        }
    }
    out
}
