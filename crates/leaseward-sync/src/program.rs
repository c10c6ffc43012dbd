//! A set's own programs: the check before a version is live, the reload after.
//!
//! Must stay true: a program that runs out of time is killed with its process group before anybody hears of it; what it
//! said last stands in the reason, unless the set is encrypted. A check sees the new version at the set's own path, though nobody else does yet: it
//! runs in a mount namespace of its own, where that path is the new tree. Where that is not permitted it must name the
//! new tree as `{tree}`, or it would check the old one. One whose agent died is ended by the next agent (`left.rs`).

mod left;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaseward_state::config::spec::SetHook;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, Signal, kill_process_group};

pub(crate) use left::end_left;

use crate::limits::OUTPUT_BYTES_MAX;

/// What stands for the new tree in a command.
const TREE: &str = "{tree}";

/// What a program is told.
pub(crate) struct Run<'a> {
    pub(crate) hook: &'a SetHook,
    pub(crate) environment: BTreeMap<&'static str, String>,
    /// Where the set lives.
    pub(crate) target: &'a Path,
    /// The tree it is about: the target, or one that is not live yet.
    pub(crate) tree: &'a Path,
    /// The set's own directory, which knows who runs.
    pub(crate) state_dir: &'a Path,
    /// Whether the set is encrypted: programs quote the lines that they refuse, and reasons are for everybody.
    pub(crate) is_secret: bool,
}

impl Run<'_> {
    /// Returns whether the command is told where the new tree is.
    pub(crate) fn names_tree(&self) -> bool {
        self.hook.command.iter().any(|word| word.contains(TREE))
    }

    /// Runs it to its end, or until its time is over. Blocks.
    ///
    /// # Errors
    /// Why it did not succeed, with the last of what it said.
    pub(crate) fn to_end(&self) -> Result<(), String> {
        let tree = self.tree.display().to_string();
        let names_tree = self.names_tree();
        let argv: Vec<String> = self.hook.command.iter().map(|word| word.replace(TREE, &tree)).collect();
        let (program, arguments) = argv.split_first().ok_or("it names no program")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LEASEWARD_TREE", &tree)
            .env("LEASEWARD_TARGET", self.target)
            .envs(&self.environment)
            .stdin(Stdio::null());
        use std::os::unix::process::CommandExt as _;
        command.process_group(0);
        let (mut output, write) = std::io::pipe().map_err(|error| error.to_string())?;
        let errors = write.try_clone().map_err(|error| error.to_string())?;
        command.stdout(write).stderr(errors);
        let note = left::Note::write(self.state_dir, &mut command);
        let is_shown = self.tree != self.target && !names_tree;
        // The first version has no place yet at which it could be shown.
        let place = (is_shown && !self.target.exists()).then(|| Place::make(self.target)).transpose()?;
        let child = if !is_shown {
            command.spawn().map_err(|error| format!("{program}: {error}"))
        } else {
            self.spawn_over(&mut command).map_err(|why| format!("{program}: {why}"))
        };
        // The ends that the program has are its own now.
        drop(command);
        let said = std::thread::spawn(move || last_of(&mut output));
        let outcome = child.and_then(|child| wait(child, Duration::from_millis(self.hook.timeout_ms), &note));
        drop(note);
        drop(place);
        // A daemon that it left running may hold the pipe: it is not waited for.
        let said = match outcome {
            Ok(()) => return Ok(()),
            Err(_) => settled(said),
        };
        outcome.map_err(|why| {
            let name = argv.join(" ");
            match (said.is_empty(), self.is_secret) {
                (true, _) => format!("{name}: {why}"),
                (false, false) => format!("{name}: {why}: {said}"),
                (false, true) => format!("{name}: {why}; what it said is not shown, as the set is encrypted"),
            }
        })
    }

    /// Starts it where the set's own path is the new tree. The thread that does it ends with its namespace; the program
    /// keeps it.
    fn spawn_over(&self, command: &mut Command) -> Result<Child, String> {
        std::thread::scope(|scope| {
            let spawned = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).map_err(|error| {
                    format!(
                        "the new version cannot be shown at {} to this program alone ({error}): run the agent as root, or name \
                         the new version as {TREE} in its command",
                        self.target.display()
                    )
                })?;
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                let none: Option<&str> = None;
                mount(none, "/", none, private, none).map_err(|error| format!("cannot make mounts private: {error}"))?;
                mount(Some(self.tree), self.target, none, MsFlags::MS_BIND, none)
                    .map_err(|error| format!("cannot show the new version at its place: {error}"))?;
                command.spawn().map_err(|error| error.to_string())
            });
            spawned.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()))
        })
    }
}

/// An empty directory at which a tree is shown to one program; it goes away with this.
struct Place<'a>(&'a Path);

impl<'a> Place<'a> {
    fn make(target: &'a Path) -> Result<Self, String> {
        let made = std::fs::create_dir(target);
        made.map(|()| Self(target)).map_err(|error| format!("make directory {}: {error}", target.display()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // If somebody put something there meanwhile, the switch refuses and says so.
        let _ = std::fs::remove_dir(self.0);
    }
}

fn wait(mut child: Child, within: Duration, note: &left::Note) -> Result<(), String> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(leader) = group {
        note.is(leader);
    }
    let (ended, waiting) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        // Nobody listens any more if it was killed for its time.
        ended.send(()).ok();
        status
    });
    let in_time = waiting.recv_timeout(within).is_ok();
    if !in_time && let Some(group) = group {
        // It may have ended this very moment.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = waiter.join().map_err(|_| "its waiter panicked".to_owned())?.map_err(|error| error.to_string())?;
    match (in_time, status.code()) {
        (false, _) => Err(format!("it took longer than {} ms and was killed", within.as_millis())),
        (true, Some(0)) => Ok(()),
        (true, Some(code)) => Err(format!("it exited with {code}")),
        (true, None) => Err(format!("it was ended: {status}")),
    }
}

/// Returns what came last, on one line.
fn last_of(output: &mut impl std::io::Read) -> String {
    let mut tail = Vec::new();
    let mut some = [0; 4096];
    while let Ok(count) = output.read(&mut some)
        && count > 0
    {
        tail.extend_from_slice(&some[..count]);
        let surplus = tail.len().saturating_sub(OUTPUT_BYTES_MAX);
        tail.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&tail);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

/// Returns what a reader found, if it ends soon.
fn settled(reader: std::thread::JoinHandle<String>) -> String {
    for _ in 0..50 {
        if reader.is_finished() {
            return reader.join().unwrap_or_default();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &[&str], timeout_ms: u64, target: &Path, tree: &Path) -> Result<(), String> {
        let hook = SetHook { command: command.iter().map(|word| (*word).to_owned()).collect(), timeout_ms };
        let environment = BTreeMap::from([("LEASEWARD_SET", "app".to_owned())]);
        let state = tempfile::tempdir().unwrap();
        Run { hook: &hook, environment, target, tree, state_dir: state.path(), is_secret: false }.to_end()
    }

    #[test]
    fn a_program_says_why_it_failed_and_does_not_run_for_ever() {
        let here = Path::new("/");
        assert_eq!(run(&["true"], 5_000, here, here), Ok(()));
        let why = run(&["sh", "-c", "echo one; echo $LEASEWARD_SET two >&2; exit 3"], 5_000, here, here).unwrap_err();
        assert!(why.contains("exited with 3: one | app two"), "{why}");
        let begun = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
        let why = run(&["sh", "-c", "sleep 60 & sleep 60"], 200, here, here).unwrap_err();
        assert!(why.contains("longer than 200 ms"), "{why}");
        let ended = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
        assert!(ended - begun < 20, "its child was waited for");
        assert!(run(&["/nonexistent"], 200, here, here).is_err());
        // What it quotes of an encrypted set is for nobody.
        let words = ["sh", "-c", "printf 'line %s: hunter2' 1; exit 1"];
        let hook = SetHook { command: words.map(str::to_owned).into(), timeout_ms: 5_000 };
        let state = tempfile::tempdir().unwrap();
        let state_dir = state.path();
        let secret =
            Run { hook: &hook, environment: BTreeMap::new(), target: here, tree: here, state_dir, is_secret: true };
        let why = secret.to_end().unwrap_err();
        assert!(why.contains("exited with 1") && why.contains("not shown") && !why.contains("line 1"), "{why}");
        // A daemon that holds the output is not waited for.
        assert_eq!(run(&["sh", "-c", "sleep 5 &"], 5_000, here, here), Ok(()));
    }

    #[test]
    fn a_check_sees_the_new_tree_at_the_live_path_and_nobody_else_does() {
        let temp = tempfile::tempdir().unwrap();
        let (live, next) = (temp.path().join("app"), temp.path().join("next"));
        for (dir, text) in [(&live, "old"), (&next, "new")] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("f"), text).unwrap();
        }
        let script = format!("grep -q new {0}/f", live.display());
        let seen = run(&["sh", "-c", &script], 5_000, &live, &next);
        if rustix::process::geteuid().is_root() {
            assert_eq!(seen, Ok(()));
        } else {
            eprintln!("left out: a mount namespace needs root");
            assert!(seen.unwrap_err().contains("{tree}"), "an ordinary user is told what to do");
        }
        assert_eq!(run(&["grep", "-q", "new", "{tree}/f"], 5_000, &live, &next), Ok(()));
        assert_eq!(std::fs::read_to_string(live.join("f")).unwrap(), "old");
        // The first version has no place yet, and its check sees it there all the same.
        std::fs::remove_dir_all(&live).unwrap();
        let seen = run(&["sh", "-c", &script], 5_000, &live, &next);
        assert_eq!(seen.is_ok(), rustix::process::geteuid().is_root(), "{seen:?}");
        assert!(!live.exists(), "something is left where the first version will be");
    }
}
