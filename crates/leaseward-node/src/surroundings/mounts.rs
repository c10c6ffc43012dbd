//! A server's mounts, in their order and back, by the system's own `mount` and `umount`.
//!
//! Must stay true: what is mounted already from the right device is done; a place where something else is mounted is
//! refused and left alone. Unmounting is done when the mount table says so, whatever a program or a hook said, and
//! whatever has become of the device's name or of the place since: it goes by what was noted of the mount, and what was
//! moved is unmounted where it stands now. Where nothing was noted, what stands at the place and cannot be told from ours
//! keeps the server from ending.

use std::path::{Path, PathBuf};

use leaseward_state::server::{HookStep, Mount};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Failure, Record, Surroundings, Until, transient};
use crate::hook::HookOutcome;
use crate::limits::MOUNTS_STACKED_MAX;
use crate::mount::{Identity, Mounted, holders, is_from, let_unmounts_spread, mounted_elsewhere, place, table};

/// A mount that may stand. While its program runs, and after an agent that died meanwhile, it is not known as what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Begun {
    /// As the server's specification has it.
    at: String,
    /// Where the mount table had it, and as what. Both outlive the names that led there.
    seen: Option<(PathBuf, Identity)>,
}

/// What is to be unmounted at one place, and how it is told from what others mounted there.
struct Leaving<'a> {
    mount: &'a Mount,
    point: PathBuf,
    seen: Option<&'a Identity>,
    /// Whatever stands there is ours.
    any: bool,
    /// What stands there and is not known may be ours.
    unsure: bool,
}

impl<'a> Leaving<'a> {
    /// `record` is what was noted of the server's mounts.
    fn of(mount: &'a Mount, record: &'a Record, any: bool) -> Self {
        let begun = record.mounts.as_ref().map(|all| all.iter().rfind(|begun| begun.at == mount.at));
        let unsure = begun.is_none_or(|begun| begun.is_some_and(|begun| begun.seen.is_none()));
        match begun.flatten().and_then(|begun| begun.seen.as_ref()) {
            Some((point, seen)) => Self { mount, point: point.clone(), seen: Some(seen), any, unsure },
            None => Self { mount, point: place(&mount.at), seen: None, any, unsure },
        }
    }

    fn is_ours(&self, found: &Mounted) -> bool {
        let is_here = || {
            found.point == self.point
                && (self.any || self.seen.is_some_and(|seen| found.may_be(seen)) || is_from(found, self.mount))
        };
        self.seen.is_some_and(|seen| found.is_still(seen)) || is_here()
    }
}

impl Surroundings {
    /// Mounts everything: the hook `mount`, or ours. Each is noted in `record` before it begins and when it stands.
    pub(super) async fn mount_all(&self, record: &mut Record, until: &Until) -> Result<(), Failure> {
        if self.hook(HookStep::Mount).is_some() {
            for mount in &self.spec.mounts {
                self.note_mount(record, mount, None)?;
            }
            self.hook_if_any(HookStep::Mount, Some(until)).await?;
            let table = table().map_err(|e| transient(HookStep::Mount, format!("read the mount table: {e}")))?;
            for mount in &self.spec.mounts {
                let at = place(&mount.at);
                if let Some(found) = table.iter().rfind(|found| found.point == at) {
                    self.note_mount(record, mount, Some(found))?;
                }
            }
            return Ok(());
        }
        for mount in &self.spec.mounts {
            self.mount(record, mount, until).await?;
        }
        Ok(())
    }

    async fn mount(&self, record: &mut Record, mount: &Mount, until: &Until) -> Result<(), Failure> {
        let failed = |outcome, why: String| Failure::of(HookStep::Mount, outcome, format!("{}: {why}", mount.at));
        let transient = |why: String| failed(HookOutcome::Transient, why);
        let read = || table().map_err(|e| transient(format!("read the mount table: {e}")));
        let at = place(&mount.at);
        if !read()?.iter().any(|found| found.point == at) {
            tokio::fs::create_dir_all(&mount.at).await.map_err(|e| transient(format!("make the directory: {e}")))?;
        }
        // Its parents may have been made just now, and be links no more.
        let at = place(&mount.at);
        let before = read()?;
        if let Some(found) = before.iter().rfind(|found| found.point == at) {
            if is_from(found, mount) {
                return self.note_mount(record, mount, Some(found));
            }
            return Err(failed(HookOutcome::WrongHere, format!("{} is mounted there", found.source)));
        }
        let_unmounts_spread(&before, &at);
        self.note_mount(record, mount, None)?;
        self.run_builtin(HookStep::Mount, mount_command(mount), Some(until)).await?;
        if let Some(found) = read()?.iter().rfind(|found| found.point == at) {
            return self.note_mount(record, mount, Some(found));
        }
        Err(failed(HookOutcome::Unknown, format!("mounted, but {} is not in the mount table", at.display())))
    }

    fn note_mount(&self, record: &mut Record, mount: &Mount, found: Option<&Mounted>) -> Result<(), Failure> {
        if let Some(mounts) = &mut record.mounts {
            mounts.retain(|begun| begun.at != mount.at);
            let seen = found.map(|found| (found.point.clone(), found.identity()));
            mounts.push(Begun { at: mount.at.clone(), seen });
        }
        self.write(record).map_err(|why| transient(HookStep::Mount, format!("{}: {why}", mount.at)))
    }

    /// Unmounts everything, in reverse order: the hook `unmount`, or ours. Waits until the mount table proves it.
    pub(super) async fn unmount_all(&self, record: &Record) -> Result<(), Failure> {
        let by_hook = self.hook_if_any(HookStep::Unmount, None).await?;
        // A hook that mounts may do so from any device.
        let any = by_hook || self.hook(HookStep::Mount).is_some();
        for mount in self.spec.mounts.iter().rev() {
            self.unmount(&Leaving::of(mount, record, any), by_hook).await?;
        }
        Ok(())
    }

    async fn unmount(&self, leaving: &Leaving<'_>, by_hook: bool) -> Result<(), Failure> {
        let stuck_at = |at: &Path, why: String| {
            Failure::of(HookStep::Unmount, HookOutcome::NeedsFence, format!("{}: {why}", at.display()))
        };
        let stuck = |why: String| stuck_at(&leaving.point, why);
        let mut points = vec![leaving.point.clone()];
        let mut left = MOUNTS_STACKED_MAX;
        loop {
            let found = table().map_err(|e| stuck(format!("read the mount table: {e}")))?;
            let top_at = |at: &Path| found.iter().rfind(|found| found.point == at);
            let Some(mounted) = found.iter().rfind(|found| leaving.is_ours(found)) else {
                let Some(top) = top_at(&leaving.point).filter(|_| leaving.unsure) else { break };
                let why =
                    format!("{} is mounted there and may be {}; unmount it by hand", top.source, leaving.mount.device);
                return Err(stuck(why));
            };
            let at = &mounted.point;
            let stuck = |why: String| stuck_at(at, why);
            if !points.contains(at) {
                warn!(server = %self.order.server, at = %at.display(), was = %leaving.point.display(), "its mount was moved");
                points.push(at.clone());
            }
            let top = top_at(at).unwrap_or(mounted);
            if top != mounted {
                return Err(stuck(format!("{} is mounted over it", top.source)));
            }
            if by_hook || left == 0 {
                return Err(stuck(format!("{} is still mounted; {}", mounted.source, holders_of(at).await)));
            }
            left -= 1;
            let command = vec!["umount".to_owned(), at.to_string_lossy().into_owned()];
            if let Err(failure) = self.run_builtin(HookStep::Unmount, command, None).await {
                return Err(stuck(format!("{}; {}", failure.why, holders_of(at).await)));
            }
        }
        let (mount, seen) = (leaving.mount.clone(), leaving.seen.cloned());
        let elsewhere = tokio::task::spawn_blocking(move || mounted_elsewhere(&mount, seen.as_ref(), &points)).await;
        match elsewhere {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(stuck(why)),
            Err(error) => Err(stuck(error.to_string())),
        }
    }
}

async fn holders_of(point: &Path) -> String {
    let point = point.to_owned();
    let said = tokio::task::spawn_blocking(move || holders(&point)).await.unwrap_or_default();
    if said.is_empty() { "nobody is seen to hold it".to_owned() } else { said }
}

fn mount_command(mount: &Mount) -> Vec<String> {
    let mut argv = vec!["mount".to_owned()];
    if !mount.fs_type.is_empty() {
        argv.extend(["-t".to_owned(), mount.fs_type.clone()]);
    }
    if !mount.options.is_empty() {
        argv.extend(["-o".to_owned(), mount.options.join(",")]);
    }
    argv.extend([mount.device.clone(), mount.at.clone()]);
    argv
}
