//! What surrounds a server on its machine, as operators write it: addresses, mounts, hooks, limits.
//!
//! Must stay true: every default is here, and written out when a specification is shown; a message names the key and
//! the fix.

use std::collections::BTreeMap;
use std::net::IpAddr;

use leaseward_state::server::{Announce, FloatingAddress, Hook, HookStep, Mount, ResourceLimits};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::server_spec::invalid;
use super::{Duration, Problem};
use crate::suggest;

const MIB: u64 = 1 << 20;

/// An address that exists only where the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VipFile {
    /// IPv4 or IPv6, without a prefix.
    #[schema(example = "10.0.0.51")]
    pub ip: String,
    /// The interface; the one whose subnet has the address, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// When the neighbours are told. `before_start` if not given.
    #[serde(default)]
    pub announce: AnnounceFile,
    /// Whether connections of the former owner are woken, so that their clients notice at once. True if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tickle: Option<bool>,
    /// `nft`: the kernel also stops its packets when the server's time is over (fence level F3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<String>,
}

/// When an address is announced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnnounceFile {
    /// Before the program is executed.
    #[default]
    BeforeStart,
    /// After its first good check.
    AfterReady,
}

/// A file system that is mounted only where the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MountFile {
    /// The device or remote path.
    #[schema(example = "/dev/mapper/pay")]
    pub device: String,
    /// Where it is mounted: an absolute path.
    #[schema(example = "/srv/pay")]
    pub at: String,
    /// Its type, as `mount -t` takes it.
    #[serde(rename = "type")]
    #[schema(example = "xfs")]
    pub fs_type: String,
    /// Its options, as `mount -o` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A program around the life of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a program as { command = [\"/usr/bin/mount-data\"], timeout = \"10s\" }")]
pub struct HookFile {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It may take this long; then its process tree is killed. 30 s if not given, 5 s around addresses, 60 s to fence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// What a server may use at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Processor time, in hundredths of one processor: 150 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
}

impl VipFile {
    pub(super) fn to_address(&self) -> Result<FloatingAddress, Box<Problem>> {
        let ip: IpAddr = self
            .ip
            .parse()
            .map_err(|_| invalid(format!("`vips.ip` is an address without a prefix, not \"{}\"", self.ip)))?;
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() && matches!(ip, IpAddr::V6(_)) {
            return Err(invalid(format!("`vips.ip`: {ip} cannot belong to one machine")));
        }
        let network_fence = match self.fence.as_deref() {
            None => false,
            Some("nft") => true,
            Some(other) => return Err(Box::new(suggest::unknown_word("fence of an address", other, &["nft"]))),
        };
        Ok(FloatingAddress {
            ip: ip.to_string(),
            interface: self.interface.clone(),
            announce: match self.announce {
                AnnounceFile::BeforeStart => Announce::BeforeStart,
                AnnounceFile::AfterReady => Announce::AfterReady,
            },
            tickle: self.tickle.unwrap_or(true),
            network_fence,
        })
    }

    pub(super) fn from_address(address: &FloatingAddress) -> Self {
        Self {
            ip: address.ip.clone(),
            interface: address.interface.clone(),
            announce: match address.announce {
                Announce::BeforeStart => AnnounceFile::BeforeStart,
                Announce::AfterReady => AnnounceFile::AfterReady,
            },
            tickle: Some(address.tickle),
            fence: address.network_fence.then(|| "nft".to_owned()),
        }
    }
}

impl MountFile {
    pub(super) fn to_mount(&self) -> Result<Mount, Box<Problem>> {
        if !self.at.starts_with('/') || self.at.split('/').any(|part| part == "..") || self.at == "/" {
            return Err(invalid(format!("`mounts.at` is an absolute path of its own, not \"{}\"", self.at)));
        }
        if self.device.is_empty() || self.fs_type.is_empty() {
            return Err(invalid("`mounts` needs a `device` and a `type`"));
        }
        let (device, at, fs_type) = (self.device.clone(), self.at.clone(), self.fs_type.clone());
        Ok(Mount { device, at, fs_type, options: self.options.clone() })
    }

    pub(super) fn from_mount(mount: &Mount) -> Self {
        let Mount { device, at, fs_type, options } = mount.clone();
        Self { device, at, fs_type, options }
    }
}

impl LimitsFile {
    pub(super) fn to_limits(self) -> Result<ResourceLimits, Box<Problem>> {
        if self.memory_mib == Some(0) || self.cpu_percent == Some(0) || self.processes == Some(0) {
            return Err(invalid("`limits` of 0 leave nothing to run with: leave the key out for no limit"));
        }
        Ok(ResourceLimits {
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            cpu_percent: self.cpu_percent,
            processes: self.processes,
        })
    }

    pub(super) fn from_limits(limits: ResourceLimits) -> Option<Self> {
        let shown = Self {
            memory_mib: limits.memory_bytes.map(|bytes| bytes / MIB),
            cpu_percent: limits.cpu_percent,
            processes: limits.processes,
        };
        (shown != Self::default()).then_some(shown)
    }
}

/// `start` and `stop` are the budgets that hooks must keep to: `start_timeout` and `stop_grace`.
pub(super) fn to_hooks(
    files: &BTreeMap<String, HookFile>,
    start: Duration,
    stop: Duration,
) -> Result<BTreeMap<HookStep, Hook>, Box<Problem>> {
    let names: Vec<_> = HookStep::ALL.iter().map(|step| step.name()).collect();
    let mut hooks = BTreeMap::new();
    for (name, file) in files {
        let Some(step) = HookStep::ALL.into_iter().find(|step| step.name() == name) else {
            return Err(Box::new(suggest::unknown_word("hook", name, &names)));
        };
        if file.command.first().is_none_or(|program| !program.starts_with('/')) {
            return Err(invalid(format!("`hooks.{name}.command` begins with the absolute path of a program")));
        }
        let (budget, key) = match step {
            HookStep::Mount | HookStep::AddressAdd | HookStep::PreStart => (start.millis(), "start_timeout"),
            HookStep::PreStop => (stop.millis(), "stop_grace"),
            _ => (u64::MAX, ""),
        };
        let timeout_ms = file.timeout.map_or(step.timeout_ms().min(budget.max(1)), Duration::millis);
        if timeout_ms > budget {
            let may = Duration::from_millis(budget);
            return Err(invalid(format!(
                "`hooks.{name}.timeout` is longer than `{key}` ({may}): raise that, or lower it"
            )));
        }
        if timeout_ms == 0 {
            return Err(invalid(format!("`hooks.{name}.timeout` must be longer than 0s")));
        }
        hooks.insert(step, Hook { command: file.command.clone(), timeout_ms });
    }
    Ok(hooks)
}

pub(super) fn from_hooks(hooks: &BTreeMap<HookStep, Hook>) -> BTreeMap<String, HookFile> {
    let file =
        |hook: &Hook| HookFile { command: hook.command.clone(), timeout: Some(Duration::from_millis(hook.timeout_ms)) };
    hooks.iter().map(|(step, hook)| (step.name().to_owned(), file(hook))).collect()
}
