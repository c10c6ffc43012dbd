//! A program that outlived the agent that ran it: who it is, noted while it runs, and its end.
//!
//! Must stay true: only the very process that was noted is ended, with its process group; another one that got its number since
//! is not. Whoever ends one has the set's lock: no living agent waits for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};

const NAME: &str = "program";

/// By this the very first moments of a program are found, in which its agent may die before it has noted who it is.
const RUN: &str = "LEASEWARD_RUN";

/// The note of a program that runs; it goes away with this.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    run: String,
}

impl Note {
    /// Notes in a set's directory that a program is about to run. It need not be durable: no program outlives a power cut.
    pub(super) fn write(state_dir: &Path, command: &mut Command) -> Self {
        let mut random = [0; 16];
        // Where the kernel has none yet, the set's directory alone names it.
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK).ok();
        let note = Self { path: state_dir.join(NAME), run: format!("{:032x}", u128::from_be_bytes(random)) };
        note.save(&note.run);
        command.env(RUN, &note.run);
        note
    }

    /// Notes who it is.
    pub(super) fn is(&self, leader: Pid) {
        if let Some(identity) = identity(leader) {
            self.save(&format!("{} {identity}", self.run));
        }
    }

    fn save(&self, text: &str) {
        if let Err(error) = fs::write(&self.path, text) {
            // A full disk is no reason not to check what may free it.
            tracing::warn!(path = %self.path.display(), %error, "if this agent dies now, what it runs is left to itself");
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // One that stays names a process that has ended.
        let _ = fs::remove_file(&self.path);
    }
}

/// Ends what an earlier agent left running for a set.
pub(crate) fn end_left(state_dir: &Path) {
    let path = state_dir.join(NAME);
    let Ok(noted) = fs::read_to_string(&path) else { return };
    let left = match noted.split_once(' ') {
        Some((_, noted)) => noted
            .split(' ')
            .next()
            .and_then(|pid| Pid::from_raw(pid.parse().ok()?))
            .filter(|leader| identity(*leader).is_some_and(|found| found == noted)),
        None => begun(&noted),
    };
    if let Some(leader) = left {
        tracing::info!(pid = leader.as_raw_nonzero(), "ends the program that an agent before this one left running");
        // It may end this very moment.
        let _ = kill_process_group(leader, Signal::KILL);
    }
    let _ = fs::remove_file(&path);
}

/// Returns the leader of the process group that was started for this run.
fn begun(run: &str) -> Option<Pid> {
    let word = format!("{RUN}={run}");
    let is_of = |pid: &Pid| {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    };
    // Not asked of threads of the kernel, which are in no group.
    let leads = |pid: &Pid| rustix::process::getpgid(Some(*pid)).is_ok_and(|group| group == *pid);
    let names = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Pid::from_raw(name.parse().ok()?)).find(|pid| is_of(pid) && leads(pid))
}

/// Returns what nobody else has at any time: the process's number, when it began, and since which start of the machine that is
/// counted; `None` if it has ended.
fn identity(process: Pid) -> Option<String> {
    let pid = process.as_raw_nonzero();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, which may hold anything; the 22nd is when it began (proc(5)).
    let began = stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{pid} {began} {}", boot.trim()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};
    use std::time::Duration;

    use super::*;

    /// Starts a program with a child of its own, and returns it once that runs, with its note.
    fn family(dir: &Path) -> (Child, Pid, Note) {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & echo $! >child.new; mv child.new child; wait"]).current_dir(dir);
        let note = Note::write(dir, &mut command);
        let leader = command.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(leader.id() as i32).unwrap();
        assert!(soon(|| dir.join("child").exists()), "it did not start");
        (leader, pid, note)
    }

    fn soon(is: impl Fn() -> bool) -> bool {
        (0..2_000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            is()
        })
    }

    #[test]
    fn what_was_left_running_is_ended_with_its_children_and_nobody_else_is() {
        let temp = tempfile::tempdir().unwrap();
        let noted = || fs::read_to_string(temp.path().join(NAME)).unwrap();
        let (mut leader, pid, note) = family(temp.path());
        note.is(pid);

        // Somebody else has its number now.
        let identity = noted();
        let began = identity.split(' ').nth(2).unwrap();
        fs::write(temp.path().join(NAME), identity.replace(began, "1")).unwrap();
        end_left(temp.path());
        assert!(leader.try_wait().unwrap().is_none(), "another process was ended");
        assert!(!temp.path().join(NAME).exists());

        // What its agent saw to the end is noted no more.
        note.is(pid);
        assert_eq!(noted(), identity);
        drop(note);
        end_left(temp.path());
        assert!(leader.try_wait().unwrap().is_none());
        kill_process_group(pid, Signal::KILL).unwrap();
        leader.wait().unwrap();

        // Its agent died, before it noted who it is and after.
        for is_known in [false, true] {
            let temp = tempfile::tempdir().unwrap();
            let (mut leader, pid, note) = family(temp.path());
            if is_known {
                note.is(pid);
            }
            std::mem::forget(note);
            let child: i32 = fs::read_to_string(temp.path().join("child")).unwrap().trim().parse().unwrap();
            end_left(temp.path());
            let ended = soon(|| is_dead(pid.as_raw_nonzero().get()));
            assert!(ended, "it was left running, known: {is_known}");
            leader.wait().unwrap();
            assert!(soon(|| is_dead(child)), "its child was left running, known: {is_known}");
            assert!(!temp.path().join(NAME).exists());
        }
    }

    /// Returns whether it has ended, or only its parent has yet to hear of it.
    fn is_dead(pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    }
}
