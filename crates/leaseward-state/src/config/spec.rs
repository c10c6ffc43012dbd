//! How a config set is kept on its members: what an operator asks of it beside its content.
//!
//! Must stay true: the default asks for nothing, so that a set needs no more than a first version to be on every disk.
//! Left out on purpose: where a set lives on a machine and with which keys it is opened there. That is the machine's
//! own business (its settings).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{
    HOOK_MS_MAX, IGNORES_MAX, NAMES_MAX, SCAN_EACH_MS, SCAN_EACH_MS_MIN, SPEC_BYTES_MAX, TEXT_BYTES_MAX,
    VERSIONS_KEPT_MAX, VERSIONS_KEPT_USUAL,
};
use crate::refusal::Refusal;

/// What an operator asks of a config set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSpec {
    /// Machines that have all of these labels are its members; empty: every machine.
    pub members: BTreeMap<String, String>,
    /// How a version comes to a member's disk.
    pub layout: Layout,
    /// Runs on each member against the whole new version before it is live; a failure leaves the old one.
    pub check: Option<SetHook>,
    /// Runs on each member after a version is live; after a failure the member goes back to the old one.
    pub reload: Option<SetHook>,
    /// What becomes of files that somebody changed by hand.
    pub drift: DriftRule,
    /// Members look for such changes each so many milliseconds.
    pub scan_each_ms: u64,
    /// Paths that programs write themselves, as patterns (`*`, `?`, `**`): neither drift nor taken away.
    pub ignore: Vec<String>,
    /// Whether paths below `@label=value/` and `@machine=name/` are laid over the rest where they match.
    pub overlays: bool,
    /// Whether files whose names end in `.tmpl` are filled in from the machine's name and labels.
    pub templates: bool,
    /// The fingerprint of the key that every file is encrypted with; `None`: plain files.
    pub key: Option<String>,
    /// Whom everything belongs to, `user` or `user:group`, by each member's names; `None`: whoever its agent is.
    pub owner: Option<String>,
    /// When a member leaves its load balancer before it applies.
    pub drain: DrainRule,
    /// How long it waits for its sessions to end then, in milliseconds.
    pub drain_ms: u64,
    /// In which order members get a new version.
    pub rollout: RolloutRule,
    /// Bytes that one version may have; `None`: as many as any set. What all sets have together bounds the policy of the
    /// cluster.
    pub quota_bytes: Option<u64>,
    /// Versions that are kept; pinned ones and those of a running rollout are kept besides.
    pub keep_versions: u32,
    /// Whether publishing a directory takes along the extended attributes `user.*` of its files.
    pub xattrs: bool,
}

impl Default for SetSpec {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            layout: Layout::Tree,
            check: None,
            reload: None,
            drift: DriftRule::Report,
            scan_each_ms: SCAN_EACH_MS,
            ignore: Vec::new(),
            overlays: false,
            templates: false,
            key: None,
            owner: None,
            drain: DrainRule::Never,
            drain_ms: 30_000,
            rollout: RolloutRule::default(),
            quota_bytes: None,
            keep_versions: VERSIONS_KEPT_USUAL,
            xattrs: false,
        }
    }
}

/// How a version comes to a member's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// A whole new directory takes the place of the old one: nobody sees two versions mixed.
    Tree,
    /// Each file is replaced where it stands, from a journal: for directories that are shared with other files, and
    /// for programs that hold on to a directory.
    Files,
}

/// A program that a member runs for a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetHook {
    /// The program and its arguments. No shell.
    pub command: Vec<String>,
    /// It is killed, with everything it started, after so many milliseconds.
    pub timeout_ms: u64,
}

/// What becomes of files that somebody changed by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriftRule {
    /// They are shown and left alone until the next version.
    Report,
    /// They are put right at once. What was found is kept beside the set's state.
    Repair,
    /// They become a new version for everybody, made by the leader.
    Adopt,
}

/// When a member leaves its load balancer before it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainRule {
    /// Never: the switch disturbs nobody.
    Never,
    /// While it has no version at all.
    First,
    /// Before each version.
    Always,
}

/// In which order members get a new version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRule {
    /// So many members first, alone; 0: none.
    pub canaries: u32,
    /// They are taken from the members with these labels first.
    pub canary_labels: BTreeMap<String, String>,
    /// So many members at most are on their way to the version at one time; 0: all.
    pub max_unavailable: u32,
    /// After the canaries, and after each batch, nothing goes on for so many milliseconds.
    pub bake_ms: u64,
    /// The version is on every member's disk, checked, before any of them switches to it.
    pub staged: bool,
    /// More failed members than this stop it.
    pub max_failed: u32,
    /// When it is stopped by failures, everybody goes back by itself.
    pub roll_back: bool,
}

impl RolloutRule {
    /// Returns whether a new version is for everybody at once.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        self.canaries == 0 && self.max_unavailable == 0 && !self.staged && !self.roll_back
    }
}

impl SetSpec {
    /// Returns whether a machine with these labels is a member.
    #[must_use]
    pub fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        has_all(labels, &self.members)
    }

    /// Refuses what cannot work, with the key and what to do.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::Invalid(why));
        for (name, hook) in [("check", &self.check), ("reload", &self.reload)] {
            let Some(hook) = hook else { continue };
            if hook.command.first().is_none_or(String::is_empty) {
                return refuse(format!("`{name}.command` names no program"));
            }
            if hook.timeout_ms == 0 || hook.timeout_ms > HOOK_MS_MAX {
                return refuse(format!("`{name}.timeout` must be between 1 ms and {} s", HOOK_MS_MAX / 1000));
            }
            if hook.command.iter().map(String::len).sum::<usize>() > TEXT_BYTES_MAX {
                return refuse(format!("`{name}.command` has more than {TEXT_BYTES_MAX} bytes"));
            }
        }
        if self.scan_each_ms < SCAN_EACH_MS_MIN {
            return refuse(format!(
                "`scan_each` must be {SCAN_EACH_MS_MIN} ms at least: each scan looks at every file"
            ));
        }
        if self.ignore.len() > IGNORES_MAX || self.members.len() > NAMES_MAX {
            return refuse(format!("`ignore` takes at most {IGNORES_MAX} patterns, `members` {NAMES_MAX} labels"));
        }
        if let Some(bad) = self.ignore.iter().find(|pattern| pattern.is_empty() || pattern.starts_with('/')) {
            return refuse(format!("`ignore`: `{bad}` must be relative to the set and not empty"));
        }
        if self.drain_ms > HOOK_MS_MAX || self.rollout.bake_ms > HOOK_MS_MAX {
            return refuse(format!("`drain_wait` and `rollout.bake` are at most {} s", HOOK_MS_MAX / 1000));
        }
        if self.keep_versions < 2 || self.keep_versions as usize > VERSIONS_KEPT_MAX {
            return refuse(format!("`keep_versions` must be between 2 and {VERSIONS_KEPT_MAX}: one to go back to"));
        }
        let words = self.ignore.iter().map(String::len).sum::<usize>()
            + self.members.iter().chain(&self.rollout.canary_labels).map(|(k, v)| k.len() + v.len()).sum::<usize>()
            + self.owner.as_ref().map_or(0, String::len)
            + self.key.as_ref().map_or(0, String::len);
        if words > SPEC_BYTES_MAX {
            return refuse(format!("the policy has more than {SPEC_BYTES_MAX} bytes of text"));
        }
        Ok(())
    }
}

/// Returns whether `labels` has everything that `wanted` asks for.
pub(crate) fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
