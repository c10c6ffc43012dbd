//! What surrounds a server on its machine, and in which order: limits, mounts, addresses, hooks.
//!
//! Up: mounts, addresses, `pre_start`; then the shim executes the program. Down, once every process is proven dead:
//! `post_stop`, addresses, unmounts. A hook named after a built-in step replaces it.
//!
//! Must stay true: each step is on record in the run directory before it begins and off it only when it is undone, so
//! an agent that finds the record knows what may stand, whoever began it and wherever that one was killed. [`down`]
//! answers `Ok` only when nothing stands any more; it holds the server's lock meanwhile, so no shim starts beside it.
//! A restart in place finds the record, keeps what stands, and runs `pre_start` again.
//!
//! [`down`]: Surroundings::down

mod addresses;
mod mounts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::server::{Hook, HookStep, ServerSpec};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::address::Addresses;
use crate::cgroup;
use crate::clock::BootInstant;
use crate::files::{self, Files};
use crate::hook::{HookOutcome, Program, end_left_over};
use crate::protocol::{Order, Work};
use crate::shim::{DEFAULT_PATH, marks};
use mounts::Begun;

/// Until when what is done for a server may go on: its deadline, as far as it is extended; zero calls it off.
pub(crate) type Until = watch::Receiver<BootInstant>;

/// How far up a server's surroundings may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Reached {
    Mounts,
    Addresses,
    PreStart,
}

/// On disk as long as anything may stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) order: Order,
    reached: Reached,
    /// Whether `post_start` was run, or need not be.
    greeted: bool,
    /// Those of its mounts that were begun. None in a record of an agent that did not note them.
    #[serde(default)]
    mounts: Option<Vec<Begun>>,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// None if the shim or the program could not be started, or limits not be enforced.
    pub(crate) step: Option<HookStep>,
    pub(crate) outcome: HookOutcome,
    pub(crate) why: String,
}

impl Failure {
    pub(crate) fn of(step: HookStep, outcome: HookOutcome, why: impl Into<String>) -> Self {
        Self { step: Some(step), outcome, why: why.into() }
    }

    pub(crate) fn launch(why: impl Into<String>) -> Self {
        Self { step: None, outcome: HookOutcome::Transient, why: why.into() }
    }
}

/// One run of a server, and what is to stand around it.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    order: Order,
    spec: ServerSpec,
    files: Files,
    log: PathBuf,
    /// One program at a time, for each server.
    turn: Arc<Mutex<()>>,
    addresses: Addresses,
}

/// A program and how it is run.
struct Call {
    step: HookStep,
    label: String,
    argv: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: String,
    timeout: Duration,
}

impl Surroundings {
    /// Returns those of an order; `None` if it is for no server.
    pub(crate) fn of(order: Order, turn: Arc<Mutex<()>>, addresses: Addresses) -> Option<Self> {
        let Work::Server { run_dir, log, spec, .. } = &order.work else { return None };
        let (files, log, spec) = (Files::of(run_dir, &order.server), log.clone(), (**spec).clone());
        Some(Self { order, spec, files, log, turn, addresses })
    }

    /// Brings up what surrounds a server, up to and with `pre_start`; returns the cgroup of its limits. Dropped half
    /// way, everything that may stand is on record.
    pub(crate) async fn up(&self, until: &Until) -> Result<Option<PathBuf>, Failure> {
        if !is_surrounded(&self.spec) {
            return Ok(None);
        }
        let before = self.record()?;
        let stands = before
            .as_ref()
            .is_some_and(|record| record.order.token == self.order.token && record.reached == Reached::PreStart);
        let mounts = before.map_or(Some(Vec::new()), |record| record.mounts);
        let mut record = Record { order: self.order.clone(), reached: Reached::Mounts, greeted: false, mounts };
        if !stands {
            self.note(&mut record, Reached::Mounts)?;
        }
        let limited = cgroup::limit(&self.order.server, &self.spec.limits);
        let cgroup = limited.map_err(|why| Failure { outcome: HookOutcome::WrongHere, ..Failure::launch(why) })?;
        if !stands {
            self.mount_all(&mut record, until).await?;
            self.note(&mut record, Reached::Addresses)?;
            self.claim_addresses(until).await?;
        }
        self.note(&mut record, Reached::PreStart)?;
        self.hook_if_any(HookStep::PreStart, Some(until)).await?;
        Ok(cgroup)
    }

    /// Takes down what stands by the record, in reverse order. Every process of the server must be proven dead.
    /// Repeated after a failure it goes on where that happened.
    pub(crate) async fn down(&self) -> Result<(), Failure> {
        let Some(mut record) = self.record()? else { return Ok(()) };
        let lock = files::lock(&self.files.lock()).map_err(|error| {
            let why = format!("its shim still holds {}: {error}", self.files.lock().display());
            Failure::of(HookStep::PostStop, HookOutcome::Transient, why)
        })?;
        // One that an agent left running when it was killed.
        let ended = end_left_over(self.files.hook()).await;
        ended.map_err(|why| transient(HookStep::PostStop, format!("an earlier hook {why}")))?;
        if record.reached == Reached::PreStart {
            self.hook_if_any(HookStep::PostStop, None).await?;
            self.lower(&mut record, Reached::Addresses)?;
        }
        if record.reached == Reached::Addresses {
            self.release_addresses().await?;
            self.lower(&mut record, Reached::Mounts)?;
        }
        self.unmount_all(&record).await?;
        cgroup::remove(&self.order.server).await;
        let path = self.files.around();
        let gone = std::fs::remove_file(&path);
        gone.map_err(|e| transient(HookStep::Unmount, format!("remove {}: {e}", path.display())))?;
        drop(lock);
        Ok(())
    }

    /// Runs `post_start`, unless it was run for this run of the server.
    pub(crate) async fn greet(&self, until: &Until) -> Result<(), Failure> {
        let Some(mut record) = self.record()?.filter(|record| !record.greeted) else { return Ok(()) };
        self.hook_if_any(HookStep::PostStart, Some(until)).await?;
        record.greeted = true;
        let path = self.files.around();
        files::write(&path, &record)
            .map_err(|e| transient(HookStep::PostStart, format!("write {}: {e}", path.display())))
    }

    /// Runs `pre_stop` if this is the `first` time, and waits for whatever hook still runs.
    pub(crate) async fn take_leave(&self, first: bool, until: &Until) -> Result<(), Failure> {
        if first {
            self.hook_if_any(HookStep::PreStop, Some(until)).await?;
        }
        drop(self.turn.lock().await);
        Ok(())
    }

    fn note(&self, record: &mut Record, reached: Reached) -> Result<(), Failure> {
        record.reached = reached;
        self.write(record).map_err(Failure::launch)
    }

    fn lower(&self, record: &mut Record, reached: Reached) -> Result<(), Failure> {
        record.reached = reached;
        self.write(record).map_err(|why| transient(HookStep::PostStop, why))
    }

    fn write(&self, record: &Record) -> Result<(), String> {
        let path = self.files.around();
        files::write(&path, record).map_err(|e| format!("write {}: {e}", path.display()))
    }

    fn record(&self) -> Result<Option<Record>, Failure> {
        record(&self.files).map_err(|why| transient(HookStep::PostStop, why))
    }

    fn hook(&self, step: HookStep) -> Option<&Hook> {
        self.spec.hooks.get(&step)
    }

    /// Runs the hook of a step; returns whether there is one.
    async fn hook_if_any(&self, step: HookStep, until: Option<&Until>) -> Result<bool, Failure> {
        let Some(hook) = self.hook(step) else { return Ok(false) };
        let mut argv = hook.command.clone();
        argv.push(step.name().to_owned());
        let label = argv.first().cloned().unwrap_or_default();
        let moves = matches!(step, HookStep::Mount | HookStep::Unmount);
        // From inside a mount nobody can unmount it; and before the mount nobody is inside.
        let inside = |dir: &String| self.spec.mounts.iter().any(|mount| Path::new(dir).starts_with(&mount.at));
        let directory = self.spec.directory.clone().filter(|dir| !(moves && inside(dir)));
        let directory = directory.unwrap_or_else(|| "/".to_owned());
        let (timeout, environment) = (Duration::from_millis(hook.timeout_ms), self.environment(step, until));
        self.run(Call { step, label, argv, environment, directory, timeout }, until).await?;
        Ok(true)
    }

    /// Runs a program of the system's as if it were the hook of a step.
    async fn run_builtin(&self, step: HookStep, argv: Vec<String>, until: Option<&Until>) -> Result<(), Failure> {
        let mut environment = self.environment(step, until);
        // The server's own path may lead to others.
        environment.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
        let (label, directory) = (argv.join(" "), "/".to_owned());
        let timeout = Duration::from_millis(step.timeout_ms());
        self.run(Call { step, label, argv, environment, directory, timeout }, until).await
    }

    async fn run(&self, call: Call, until: Option<&Until>) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let Call { step, label, argv, mut environment, directory, timeout } = call;
        let (log, record) = (self.log.clone(), self.files.hook());
        let mark = ("LEASEWARD_HOOK_RUN".to_owned(), format!("{}:{}", record.display(), self.operation(step)));
        environment.extend([mark.clone()]);
        let mark = format!("{}={}", mark.0, mark.1);
        let program = Program { step, label, argv, environment, directory, timeout, log, record, mark };
        program.run(until.cloned()).await.map_err(|failed| Failure::of(step, failed.outcome, failed.why))
    }

    /// The same for each try of the same thing.
    fn operation(&self, step: HookStep) -> String {
        let Order { server, token, attempt, .. } = &self.order;
        format!("{server}:{token}:{attempt}:{}", step.name())
    }

    fn environment(&self, step: HookStep, until: Option<&Until>) -> BTreeMap<String, String> {
        let (order, spec) = (&self.order, &self.spec);
        let words = |all: Vec<&str>| all.join(" ");
        let deadline = until.map_or(order.deadline, |until| *until.borrow());
        let left = deadline.saturating_since(BootInstant::now());
        let first = spec.addresses.first();
        let mut all = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        all.extend(spec.environment.clone());
        all.extend(marks(order).map(|(key, value)| (key.to_owned(), value)));
        let ours = [
            ("LEASEWARD_STEP", step.name().to_owned()),
            ("LEASEWARD_OPERATION_ID", self.operation(step)),
            ("LEASEWARD_ATTEMPT", order.attempt.to_string()),
            ("LEASEWARD_DEADLINE_MS", left.as_millis().to_string()),
            ("LEASEWARD_ADDRESSES", words(spec.addresses.iter().map(|each| each.ip.as_str()).collect())),
            ("LEASEWARD_MOUNTS", words(spec.mounts.iter().map(|each| each.at.as_str()).collect())),
            ("SERVER_NAME", order.server.clone()),
            ("SERVER_IP", first.map(|each| each.ip.clone()).unwrap_or_default()),
            ("INTERFACE", first.and_then(|each| each.interface.clone()).unwrap_or_default()),
            ("DOMAIN_DIR", spec.directory.clone().unwrap_or_default()),
        ];
        all.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        all
    }
}

fn transient(step: HookStep, why: String) -> Failure {
    Failure::of(step, HookOutcome::Transient, why)
}

/// Returns the record of a server, if anything may stand.
///
/// # Errors
/// Why it cannot be read: then something may stand.
pub(crate) fn record(files: &Files) -> Result<Option<Record>, String> {
    let path = files.around();
    match files::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|e| format!("read {}: {e}", path.display())),
    }
}

/// Returns whether anything is asked for beside the program.
pub(crate) fn is_surrounded(spec: &ServerSpec) -> bool {
    let limited = spec.limits != leaseward_state::server::ResourceLimits::default();
    // With a state file alone an end that nobody saw is still told in it.
    let around = spec.state_file.is_some() || !spec.mounts.is_empty() || !spec.addresses.is_empty();
    limited || around || !spec.hooks.is_empty()
}

/// Returns why what is asked for can never be had as it is written.
pub(crate) fn check(spec: &ServerSpec) -> Result<(), String> {
    for (step, hook) in &spec.hooks {
        if hook.command.first().is_none_or(String::is_empty) {
            return Err(format!("the command of its hook {} is empty", step.name()));
        }
    }
    let absolute = |path: &str| path.starts_with('/') && path.len() > 1;
    for mount in &spec.mounts {
        if !absolute(&mount.at) || mount.device.is_empty() {
            return Err(format!("its mount `{}` at `{}` needs a device and an absolute path", mount.device, mount.at));
        }
    }
    if spec.state_file.as_deref().is_some_and(|path| !absolute(path)) {
        return Err("its state file needs an absolute path".to_owned());
    }
    let hooks = spec.hooks.values().flat_map(|hook| &hook.command);
    let mounts = spec.mounts.iter().flat_map(|mount| [&mount.device, &mount.at, &mount.fs_type]);
    let options = spec.mounts.iter().flat_map(|mount| &mount.options);
    if hooks.chain(mounts).chain(options).chain(&spec.state_file).any(|text| text.contains('\0')) {
        return Err("a text holds a NUL".to_owned());
    }
    Ok(())
}
