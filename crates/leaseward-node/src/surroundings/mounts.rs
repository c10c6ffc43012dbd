//! A server's mounts, in their order and back, by the system's own `mount` and `umount`.
//!
//! Must stay true: what is mounted already from the right device is done; a place where something else is mounted is
//! refused and left alone. Unmounting is done when the mount table says so, whatever a program or a hook said.

use leaseward_state::server::{HookStep, Mount};

use super::{Failure, Surroundings, Until};
use crate::hook::HookOutcome;
use crate::limits::MOUNTS_STACKED_MAX;
use crate::mount::{Mounted, holders, is_from, let_unmounts_spread, mounted_elsewhere, place, table};

impl Surroundings {
    /// Mounts everything: the hook `mount`, or ours.
    pub(super) async fn mount_all(&self, until: &Until) -> Result<(), Failure> {
        if self.hook_if_any(HookStep::Mount, Some(until)).await? {
            return Ok(());
        }
        for mount in &self.spec.mounts {
            self.mount(mount, until).await?;
        }
        Ok(())
    }

    async fn mount(&self, mount: &Mount, until: &Until) -> Result<(), Failure> {
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
                return Ok(());
            }
            return Err(failed(HookOutcome::WrongHere, format!("{} is mounted there", found.source)));
        }
        let_unmounts_spread(&before, &at);
        self.run_builtin(HookStep::Mount, mount_command(mount), Some(until)).await?;
        if read()?.iter().any(|found| found.point == at) {
            return Ok(());
        }
        Err(failed(HookOutcome::Unknown, format!("mounted, but {} is not in the mount table", at.display())))
    }

    /// Unmounts everything, in reverse order: the hook `unmount`, or ours. Waits until the mount table proves it.
    pub(super) async fn unmount_all(&self) -> Result<(), Failure> {
        let by_hook = self.hook_if_any(HookStep::Unmount, None).await?;
        for mount in self.spec.mounts.iter().rev() {
            self.unmount(mount, by_hook).await?;
        }
        Ok(())
    }

    async fn unmount(&self, mount: &Mount, by_hook: bool) -> Result<(), Failure> {
        let at = place(&mount.at);
        let stuck =
            |why: String| Failure::of(HookStep::Unmount, HookOutcome::NeedsFence, format!("{}: {why}", at.display()));
        // A hook that mounts may do so from any device.
        let any = by_hook || self.hook(HookStep::Mount).is_some();
        let ours = |found: &Mounted| found.point == at && (any || is_from(found, mount));
        let mut left = MOUNTS_STACKED_MAX;
        loop {
            let found = table().map_err(|e| stuck(format!("read the mount table: {e}")))?;
            let Some(mounted) = found.iter().rfind(|found| ours(found)) else { break };
            let top = found.iter().rfind(|found| found.point == at).unwrap_or(mounted);
            if top != mounted {
                return Err(stuck(format!("{} is mounted over it", top.source)));
            }
            if by_hook || left == 0 {
                return Err(stuck(format!("{} is still mounted; {}", mounted.source, self.holders(mount).await)));
            }
            left -= 1;
            let command = vec!["umount".to_owned(), at.to_string_lossy().into_owned()];
            if let Err(failure) = self.run_builtin(HookStep::Unmount, command, None).await {
                return Err(stuck(format!("{}; {}", failure.why, self.holders(mount).await)));
            }
        }
        let (mount, point) = (mount.clone(), at.clone());
        let elsewhere = tokio::task::spawn_blocking(move || mounted_elsewhere(&mount, &point)).await;
        match elsewhere {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(stuck(why)),
            Err(error) => Err(stuck(error.to_string())),
        }
    }

    async fn holders(&self, mount: &Mount) -> String {
        let at = place(&mount.at);
        let said = tokio::task::spawn_blocking(move || holders(&at)).await.unwrap_or_default();
        if said.is_empty() { "nobody is seen to hold it".to_owned() } else { said }
    }
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
