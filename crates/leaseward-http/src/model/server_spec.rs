//! Between the form that operators write and what the state keeps.
//!
//! Must stay true: every default is here, and written out when a specification is shown; a message names the key and
//! the fix.

use leaseward_state::limits::{START_TIMEOUT_MS, STOP_GRACE_MS};
use leaseward_state::server::{Failback, FenceLevel, HealthCheck, ManagerKind, Probe, RestartPolicy, ServerSpec};
use leaseward_state::{MachineName, ServerName};

use super::{
    CheckFile, CheckKind, Duration, Fence, LimitsFile, ManagerFile, MountFile, Problem, RestartFile, ServerFile,
    VipFile, surroundings,
};
use crate::problem::{self, Code};
use crate::suggest;

const START_TIMEOUT: Duration = Duration::from_millis(START_TIMEOUT_MS);
const STOP_GRACE: Duration = Duration::from_millis(STOP_GRACE_MS);
const CHECK_INTERVAL: Duration = Duration::from_millis(2_000);
const CHECK_TIMEOUT: Duration = Duration::from_millis(1_000);
const CHECK_MISSES: u32 = 3;

pub(super) fn invalid(detail: impl Into<String>) -> Box<Problem> {
    Box::new(problem::of(Code::Invalid, detail))
}

impl ServerFile {
    /// Reads the TOML form, and checks it as a request would be checked.
    ///
    /// # Errors
    /// A [`Problem`]: LW0103 with a suggestion for an unknown key, LW0101 for a wrong value, LW0107 for a key that
    /// this version does not support yet. The detail names the line.
    pub fn from_toml(text: &str) -> Result<Self, Box<Problem>> {
        let file: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            let mut problem = suggest::problem(error.message(), Code::Invalid);
            problem.detail = format!("{place}{}", problem.detail);
            Box::new(problem)
        })?;
        file.to_spec()?;
        Ok(file)
    }

    /// Writes the TOML form.
    ///
    /// # Errors
    /// A [`Problem`] for values that TOML cannot hold; none of ours is one.
    pub fn to_toml(&self) -> Result<String, Box<Problem>> {
        toml::to_string_pretty(self).map_err(|error| invalid(error.to_string()))
    }

    /// Returns what the state keeps, with every default filled in.
    ///
    /// # Errors
    /// A [`Problem`] that names the key: LW0101, or LW0107 for what is not supported yet.
    pub fn to_spec(&self) -> Result<ServerSpec, Box<Problem>> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(invalid("`command` needs a program, such as [\"/usr/bin/pay\", \"--port\", \"80\"]"));
        }
        let candidates = self
            .candidates
            .iter()
            .map(|name| MachineName::new(name.as_str()).map_err(|error| invalid(format!("`candidates`: {error}"))));
        let apart_from = self
            .anti_affinity
            .iter()
            .map(|name| ServerName::new(name.as_str()).map_err(|error| invalid(format!("`anti_affinity`: {error}"))));
        let has_hook = self.hooks.contains_key("fence");
        if !self.mounts.is_empty() && self.grace.is_none() && !has_hook && self.requires_fence < Some(Fence::F4) {
            return Err(invalid(
                "`grace` is needed with `mounts`, or `hooks.fence`, or `requires_fence = \"F4\"`: a kernel may write to a file system after \
                 every process is dead, and only you, or a watchdog, can say when a lost machine stops doing so",
            ));
        }
        if self.state_file.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(invalid("`state_file` is an absolute path"));
        }
        let requires_fence = FenceLevel::from(self.requires_fence.unwrap_or(Fence::F1));
        // The grace of F4 is that of the machine's watchdog.
        if matches!(requires_fence, FenceLevel::F0 | FenceLevel::F5) && self.grace.is_none() && !has_hook {
            return Err(invalid(format!(
                "`grace` is needed with `requires_fence = \"{requires_fence}\"`: only you know how long a copy may \
                 outlive its lease there"
            )));
        }
        for set in &self.config {
            leaseward_state::SetName::new(set.as_str()).map_err(|error| invalid(format!("`config`: {error}")))?;
        }
        Ok(ServerSpec {
            command: self.command.clone(),
            stop_command: self.stop.clone(),
            environment: self.env.clone(),
            directory: self.cwd.clone(),
            user: self.user.clone(),
            candidates: candidates.collect::<Result<_, _>>()?,
            labels: self.labels.clone(),
            apart_from: apart_from.collect::<Result<_, _>>()?,
            weight: self.weight.unwrap_or(1),
            migrates: self.auto_migrate.unwrap_or(true),
            failback: self.failback.as_deref().map(failback).transpose()?.unwrap_or_default(),
            requires_fence,
            grace_ms: self.grace.map(Duration::millis),
            check: self.check.as_ref().map(CheckFile::to_check).transpose()?,
            start_timeout_ms: self.start_timeout.unwrap_or(START_TIMEOUT).millis(),
            stop_grace_ms: self.stop_grace.unwrap_or(STOP_GRACE).millis(),
            restart: self.restart.as_ref().map(RestartFile::to_policy).transpose()?.unwrap_or_default(),
            priority: self.priority,
            addresses: self.vips.iter().map(VipFile::to_address).collect::<Result<_, _>>()?,
            mounts: self.mounts.iter().map(MountFile::to_mount).collect::<Result<_, _>>()?,
            hooks: surroundings::to_hooks(
                &self.hooks,
                self.start_timeout.unwrap_or(START_TIMEOUT),
                self.stop_grace.unwrap_or(STOP_GRACE),
            )?,
            limits: self.limits.map(LimitsFile::to_limits).transpose()?.unwrap_or_default(),
            state_file: self.state_file.clone(),
            manager: match self.manager.unwrap_or_default() {
                ManagerFile::Agent => ManagerKind::Agent,
                ManagerFile::Ssh => ManagerKind::Ssh,
            },
            needs_sets: self.config.clone(),
        })
    }

    /// Returns the form of what the state keeps: every default is written out.
    #[must_use]
    pub fn from_spec(name: &str, spec: &ServerSpec) -> Self {
        Self {
            name: Some(name.to_owned()),
            command: spec.command.clone(),
            stop: spec.stop_command.clone(),
            env: spec.environment.clone(),
            cwd: spec.directory.clone(),
            user: spec.user.clone(),
            candidates: spec.candidates.iter().map(ToString::to_string).collect(),
            labels: spec.labels.clone(),
            anti_affinity: spec.apart_from.iter().map(ToString::to_string).collect(),
            weight: Some(spec.weight),
            auto_migrate: Some(spec.migrates),
            failback: Some(match spec.failback {
                Failback::Manual => "manual".to_owned(),
                Failback::AutoAfter(ms) => format!("auto-after {}", Duration::from_millis(ms)),
            }),
            requires_fence: Some(spec.requires_fence.into()),
            grace: spec.grace_ms.map(Duration::from_millis),
            check: spec.check.as_ref().map(CheckFile::from_check),
            start_timeout: Some(Duration::from_millis(spec.start_timeout_ms)),
            stop_grace: Some(Duration::from_millis(spec.stop_grace_ms)),
            restart: Some(RestartFile::from_policy(&spec.restart)),
            priority: spec.priority,
            config: spec.needs_sets.clone(),
            vips: spec.addresses.iter().map(VipFile::from_address).collect(),
            mounts: spec.mounts.iter().map(MountFile::from_mount).collect(),
            hooks: surroundings::from_hooks(&spec.hooks),
            limits: LimitsFile::from_limits(spec.limits),
            state_file: spec.state_file.clone(),
            manager: (spec.manager == ManagerKind::Ssh).then_some(ManagerFile::Ssh),
        }
    }
}

fn failback(text: &str) -> Result<Failback, Box<Problem>> {
    let bad = || invalid(format!("`failback` is \"manual\" or such as \"auto-after 10m\", not \"{text}\""));
    match text.split_once(' ') {
        None if text == "manual" => Ok(Failback::Manual),
        Some(("auto-after", time)) => {
            time.trim().parse::<Duration>().map(|time| Failback::AutoAfter(time.millis())).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}

impl CheckFile {
    fn to_check(&self) -> Result<HealthCheck, Box<Problem>> {
        let given = [
            ("address", self.address.is_some(), CheckKind::Tcp),
            ("url", self.url.is_some(), CheckKind::Http),
            ("command", self.command.is_some(), CheckKind::Command),
        ];
        for (key, given, kind) in given {
            if given && kind != self.kind {
                return Err(invalid(format!("`check.{key}` does not belong to this type of check")));
            }
            if !given && kind == self.kind {
                return Err(invalid(format!("`check.{key}` is missing for this type of check")));
            }
        }
        let probe = match (&self.address, &self.url, &self.command) {
            (Some(address), ..) => Probe::Tcp(address.clone()),
            (_, Some(url), _) => Probe::Http(url.clone()),
            (.., Some(command)) => Probe::Command(command.clone()),
            _ => Probe::Process,
        };
        match &probe {
            Probe::Tcp(address) if !address.contains(':') => {
                return Err(invalid("`check.address` needs a port, such as 127.0.0.1:80"));
            }
            Probe::Http(url) if !url.starts_with("http://") => {
                return Err(invalid("`check.url` begins with http://"));
            }
            Probe::Command(command) if command.is_empty() => {
                return Err(invalid("`check.command` needs a program"));
            }
            _ => {}
        }
        let interval = self.interval.unwrap_or(CHECK_INTERVAL);
        if interval.millis() == 0 {
            return Err(invalid("`check.interval` must be longer than 0s"));
        }
        Ok(HealthCheck {
            probe,
            interval_ms: interval.millis(),
            timeout_ms: self.timeout.unwrap_or(CHECK_TIMEOUT).millis(),
            misses: self.misses.unwrap_or(CHECK_MISSES).max(1),
        })
    }

    fn from_check(check: &HealthCheck) -> Self {
        let (kind, address, url, command) = match &check.probe {
            Probe::Process => (CheckKind::Process, None, None, None),
            Probe::Tcp(address) => (CheckKind::Tcp, Some(address.clone()), None, None),
            Probe::Http(url) => (CheckKind::Http, None, Some(url.clone()), None),
            Probe::Command(command) => (CheckKind::Command, None, None, Some(command.clone())),
        };
        Self {
            kind,
            address,
            url,
            command,
            interval: Some(Duration::from_millis(check.interval_ms)),
            timeout: Some(Duration::from_millis(check.timeout_ms)),
            misses: Some(check.misses),
        }
    }
}

impl RestartFile {
    fn to_policy(&self) -> Result<RestartPolicy, Box<Problem>> {
        let usual = RestartPolicy::default();
        let backoff_ms = match &self.backoff {
            Some(waits) if waits.is_empty() => return Err(invalid("`restart.backoff` needs at least one wait")),
            Some(waits) => waits.iter().map(|wait| wait.millis()).collect(),
            None => usual.backoff_ms,
        };
        Ok(RestartPolicy {
            in_place: self.in_place.unwrap_or(usual.in_place),
            per_ms: self.per.map_or(usual.per_ms, Duration::millis),
            backoff_ms,
            cluster: self.cluster.unwrap_or(usual.cluster),
            cluster_per_ms: self.cluster_per.map_or(usual.cluster_per_ms, Duration::millis),
        })
    }

    fn from_policy(policy: &RestartPolicy) -> Self {
        Self {
            in_place: Some(policy.in_place),
            per: Some(Duration::from_millis(policy.per_ms)),
            cluster: Some(policy.cluster),
            cluster_per: Some(Duration::from_millis(policy.cluster_per_ms)),
            backoff: Some(policy.backoff_ms.iter().copied().map(Duration::from_millis).collect()),
        }
    }
}

#[cfg(test)]
#[path = "server_spec_tests.rs"]
mod tests;
