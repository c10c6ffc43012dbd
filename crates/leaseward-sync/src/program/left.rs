//! A program that outlived the agent that ran it: who it is, noted while it runs, and its end.
//!
//! Must stay true: only the very process that was noted is ended, with its process group; another one that got its number since
//! is not. Whoever ends one has the set's lock: no living agent waits for it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process_group};

const NAME: &str = "program";

/// The note of a program that runs; it goes away with this.
#[derive(Debug)]
pub(super) struct Note(Option<PathBuf>);

impl Note {
    /// Notes in a set's directory that its program runs. It need not be durable: no program outlives a power cut.
    pub(super) fn write(state_dir: &Path, leader: Pid) -> Self {
        let path = state_dir.join(NAME);
        let noted = identity(leader).map(|identity| fs::write(&path, identity));
        if let Some(Err(error)) = noted {
            // A full disk is no reason not to check what may free it.
            tracing::warn!(path = %path.display(), %error, "if this agent dies now, what it runs is left to itself");
            return Self(None);
        }
        Self(Some(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that stays names a process that has ended.
            let _ = fs::remove_file(path);
        }
    }
}

/// Ends what an earlier agent left running for a set.
pub(crate) fn end_left(state_dir: &Path) {
    let path = state_dir.join(NAME);
    let Ok(noted) = fs::read_to_string(&path) else { return };
    if let Some(leader) = noted.split(' ').next().and_then(|pid| Pid::from_raw(pid.parse().ok()?))
        && identity(leader).as_ref() == Some(&noted)
    {
        tracing::info!(pid = leader.as_raw_nonzero(), "ends the program that an agent before this one left running");
        // It may end this very moment.
        let _ = kill_process_group(leader, Signal::KILL);
    }
    let _ = fs::remove_file(&path);
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
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Starts a program with a child of its own, and returns it once that runs.
    fn family(dir: &Path) -> (Child, Pid) {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & echo $! >child.new; mv child.new child; wait"]).current_dir(dir);
        let leader = command.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(leader.id() as i32).unwrap();
        assert!(soon(|| dir.join("child").exists()), "it did not start");
        (leader, pid)
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
        let (mut leader, pid) = family(temp.path());
        let child: i32 = fs::read_to_string(temp.path().join("child")).unwrap().trim().parse().unwrap();
        let note = Note::write(temp.path(), pid);
        let noted = fs::read_to_string(temp.path().join(NAME)).unwrap();

        // Somebody else has its number now.
        let other = noted.replacen(&pid.to_string(), "", 1).replacen(' ', &format!("{pid} 1"), 1);
        assert_ne!(other, noted);
        fs::write(temp.path().join(NAME), other).unwrap();
        end_left(temp.path());
        assert!(leader.try_wait().unwrap().is_none(), "another process was ended");
        assert!(!temp.path().join(NAME).exists());

        // What its agent saw to the end is noted no more.
        drop(note);
        end_left(temp.path());
        assert!(leader.try_wait().unwrap().is_none());

        std::mem::forget(Note::write(temp.path(), pid));
        end_left(temp.path());
        assert!(!leader.wait().unwrap().success(), "it was left running");
        let gone = || identity(Pid::from_raw(child).unwrap()).is_none() || is_dead(child);
        assert!(soon(gone), "its child was left running");
        assert!(!temp.path().join(NAME).exists());
    }

    /// Returns whether only its parent has yet to hear that it ended.
    fn is_dead(pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
