//! How a config set is kept on its members: the form that operators write, and what they see of it.
//!
//! Must stay true: what is not written keeps its default, and every default is written out when it is shown.

use std::collections::BTreeMap;

use leaseward_state::config::spec::{DrainRule, DriftRule, Layout, RolloutRule, SetHook, SetSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Problem, Time};
use crate::problem::Code;
use crate::suggest;

/// How a config set is kept on its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetPolicy {
    /// Machines that have all of these labels are its members; empty: every machine.
    pub members: BTreeMap<String, String>,
    /// How a version comes to a member's disk.
    pub layout: LayoutWord,
    /// Runs on each member against the whole new version before it is live; a failure leaves the old one. It sees the new
    /// version at the set's own path (as root), or at `{tree}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<SetHookFile>,
    /// Runs on each member after a version is live; after a failure the member goes back to the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<SetHookFile>,
    /// What becomes of files that somebody changed by hand.
    pub drift: DriftWord,
    /// Members look for such changes this often.
    #[schema(value_type = String, example = "1m")]
    pub scan_each: Duration,
    /// Paths that programs write themselves, as patterns (`*`, `?`, `**`): neither drift nor taken away.
    pub ignore: Vec<String>,
    /// Whether paths below `@label=value/` and `@machine=name/` are laid over the rest where they match.
    pub overlays: bool,
    /// Whether publishing a directory takes along the extended attributes `user.*` of its files.
    pub xattrs: bool,
    /// Whether files whose names end in `.tmpl` are filled in from the machine's name and labels.
    pub templates: bool,
    /// The fingerprint of the key that every file is encrypted with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whom everything belongs to, `user` or `user:group`, by each member's own names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When a member leaves its load balancer before it applies.
    pub drain: DrainWord,
    /// How long it waits for its sessions to end then.
    #[schema(value_type = String, example = "30s")]
    pub drain_wait: Duration,
    /// In which order members get a new version.
    pub rollout: RolloutFile,
    /// Bytes that one version may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// Versions that are kept.
    pub keep_versions: u32,
}

/// A program that members run for a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a program as { command = [\"nginx\", \"-t\"], timeout = \"10s\" }")]
pub struct SetHookFile {
    /// The program and its arguments. No shell.
    pub command: Vec<String>,
    /// It is killed, with everything it started, after this long.
    #[serde(default = "hook_timeout")]
    #[schema(value_type = String, example = "30s")]
    pub timeout: Duration,
}

fn hook_timeout() -> Duration {
    Duration::from_millis(30_000)
}

/// How a version comes to a member's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayoutWord {
    /// A whole new directory takes the place of the old one.
    #[default]
    Tree,
    /// Each file is replaced where it stands.
    Files,
}

/// What becomes of files that somebody changed by hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriftWord {
    /// They are shown and left alone until the next version.
    #[default]
    Report,
    /// They are put right at once.
    Repair,
    /// They become a new version for everybody.
    Adopt,
}

/// When a member leaves its load balancer before it applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainWord {
    /// Never.
    #[default]
    Never,
    /// While it has no version at all.
    First,
    /// Before each version.
    Always,
}

/// In which order members get a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, expecting = "a table as { canaries = 1, roll_back = true }")]
pub struct RolloutFile {
    /// So many members first, alone.
    pub canaries: u32,
    /// They are taken from the members with these labels first.
    pub canary_labels: BTreeMap<String, String>,
    /// So many members at most are on their way at one time; 0: all.
    pub max_unavailable: u32,
    /// After the canaries and after each batch nothing goes on for this long.
    #[schema(value_type = String, example = "10s")]
    pub bake: Duration,
    /// The version is on every member's disk, checked, before any of them switches to it.
    pub staged: bool,
    /// More failed members than this stop it.
    pub max_failed: u32,
    /// When it is stopped by failures, everybody goes back by itself.
    pub roll_back: bool,
}

impl Default for RolloutFile {
    fn default() -> Self {
        Self::from(&RolloutRule::default())
    }
}

impl From<&RolloutRule> for RolloutFile {
    fn from(rule: &RolloutRule) -> Self {
        Self {
            canaries: rule.canaries,
            canary_labels: rule.canary_labels.clone(),
            max_unavailable: rule.max_unavailable,
            bake: Duration::from_millis(rule.bake_ms),
            staged: rule.staged,
            max_failed: rule.max_failed,
            roll_back: rule.roll_back,
        }
    }
}

impl Default for SetPolicy {
    fn default() -> Self {
        Self::from(&SetSpec::default())
    }
}

impl From<&SetSpec> for SetPolicy {
    fn from(spec: &SetSpec) -> Self {
        let hook = |hook: &SetHook| SetHookFile {
            command: hook.command.clone(),
            timeout: Duration::from_millis(hook.timeout_ms),
        };
        Self {
            members: spec.members.clone(),
            layout: match spec.layout {
                Layout::Tree => LayoutWord::Tree,
                Layout::Files => LayoutWord::Files,
            },
            check: spec.check.as_ref().map(hook),
            reload: spec.reload.as_ref().map(hook),
            drift: match spec.drift {
                DriftRule::Report => DriftWord::Report,
                DriftRule::Repair => DriftWord::Repair,
                DriftRule::Adopt => DriftWord::Adopt,
            },
            scan_each: Duration::from_millis(spec.scan_each_ms),
            ignore: spec.ignore.clone(),
            overlays: spec.overlays,
            templates: spec.templates,
            key: spec.key.clone(),
            owner: spec.owner.clone(),
            drain: match spec.drain {
                DrainRule::Never => DrainWord::Never,
                DrainRule::First => DrainWord::First,
                DrainRule::Always => DrainWord::Always,
            },
            drain_wait: Duration::from_millis(spec.drain_ms),
            rollout: RolloutFile::from(&spec.rollout),
            quota: spec.quota_bytes,
            keep_versions: spec.keep_versions,
            xattrs: spec.xattrs,
        }
    }
}

impl From<&SetPolicy> for SetSpec {
    fn from(file: &SetPolicy) -> Self {
        let hook = |hook: &SetHookFile| SetHook { command: hook.command.clone(), timeout_ms: hook.timeout.millis() };
        Self {
            members: file.members.clone(),
            layout: match file.layout {
                LayoutWord::Tree => Layout::Tree,
                LayoutWord::Files => Layout::Files,
            },
            check: file.check.as_ref().map(hook),
            reload: file.reload.as_ref().map(hook),
            drift: match file.drift {
                DriftWord::Report => DriftRule::Report,
                DriftWord::Repair => DriftRule::Repair,
                DriftWord::Adopt => DriftRule::Adopt,
            },
            scan_each_ms: file.scan_each.millis(),
            ignore: file.ignore.clone(),
            overlays: file.overlays,
            templates: file.templates,
            key: file.key.clone(),
            owner: file.owner.clone(),
            drain: match file.drain {
                DrainWord::Never => DrainRule::Never,
                DrainWord::First => DrainRule::First,
                DrainWord::Always => DrainRule::Always,
            },
            drain_ms: file.drain_wait.millis(),
            rollout: RolloutRule {
                canaries: file.rollout.canaries,
                canary_labels: file.rollout.canary_labels.clone(),
                max_unavailable: file.rollout.max_unavailable,
                bake_ms: file.rollout.bake.millis(),
                staged: file.rollout.staged,
                max_failed: file.rollout.max_failed,
                roll_back: file.rollout.roll_back,
            },
            quota_bytes: file.quota,
            keep_versions: file.keep_versions,
            xattrs: file.xattrs,
        }
    }
}

impl SetPolicy {
    /// Reads the TOML form.
    ///
    /// # Errors
    /// A [`Problem`]: LW0103 with a suggestion for an unknown key, LW0101 for a wrong value. The detail names the line.
    pub fn from_toml(text: &str) -> Result<Self, Box<Problem>> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            let mut problem = suggest::problem(error.message(), Code::Invalid);
            problem.detail = format!("{place}{}", problem.detail);
            Box::new(problem)
        })
    }

    /// Writes the TOML form.
    ///
    /// # Errors
    /// A [`Problem`] for values that TOML cannot hold; none of ours is one.
    pub fn to_toml(&self) -> Result<String, Box<Problem>> {
        toml::to_string_pretty(self).map_err(|error| super::server_spec::invalid(error.to_string()))
    }
}

/// A version on its way to the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// The version.
    pub version: u64,
    /// What members keep until it is their turn.
    pub base: u64,
    /// Members whose turn it was, ascending.
    pub released: Vec<String>,
    /// Members that refused it, ascending, without those that were passed over.
    pub failed: Vec<String>,
    /// All members.
    pub members: u64,
    /// Why it stands still, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// When the last step was taken.
    pub stepped: Time,
}

/// What becomes of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SteerWord {
    /// It stands still.
    Halt,
    /// It goes on; members that failed so far are passed over.
    Resume,
    /// Everybody goes back to what was before, as a new version.
    Abort,
    /// Everybody gets the version now.
    Finish,
}

/// Says what becomes of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SteerRollout {
    /// What.
    pub action: SteerWord,
    /// Who says so.
    #[serde(default)]
    pub by: String,
}

/// Keeps a member of a set, or all of them, at a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinView {
    /// The member; not given: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The version; not given: what is there, untouched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Who says so.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default)]
    pub why: String,
}

/// Lets a member of a set, or all of them, go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unpin {
    /// The member; not given: what was said of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Asks members of a set to begin anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resync {
    /// The members; empty: all of them.
    #[serde(default)]
    pub machines: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_what_it_writes_and_says_which_word_is_wrong() {
        let policy = SetPolicy::from_toml("drift = \"repair\"\nscan_each = \"5s\"\n[rollout]\ncanaries = 2\n").unwrap();
        assert_eq!(SetPolicy::from_toml(&policy.to_toml().unwrap()).unwrap(), policy);
        assert_eq!(SetPolicy::from(&SetSpec::from(&policy)), policy);
        let wrong = SetPolicy::from_toml("drift = \"report\"\nscan_eech = \"5s\"\n").unwrap_err();
        assert_eq!(wrong.code, "LW0103");
        assert!(wrong.detail.contains("line 2") && wrong.detail.contains("scan_eech"), "{}", wrong.detail);
    }

    #[test]
    fn the_policy_in_the_manual_is_one() {
        let manual = include_str!("../../../../docs/how-to/config.md");
        let (_, rest) = manual.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let policy = SetPolicy::from_toml(example).unwrap();
        assert_eq!((policy.rollout.canaries, policy.drift), (1, DriftWord::Repair));
        for word in ["staged", "overlays", "templates", "layout", "drain_wait", "scan_each", "xattrs"] {
            assert!(SetPolicy::default().to_toml().unwrap().contains(word), "{word} is in the manual");
        }
    }
}
