//! The last steps before the server's own code: what a child of the namespace's init does until exec.
//!
//! Must stay true: the server inherits nothing of ours: no descriptor, no signal mask or disposition, no real-time
//! class, no protection from the out-of-memory killer. Only this child gives up privileges; the shim's and init's
//! credentials stay alike, or the kernel would not carry the shim's death to init.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Gid, Uid, User};
use rustix::fs::{Mode, OFlags};

use crate::kernel;
use crate::protocol::{Order, Work};

/// Where programs are looked for when the specification does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and all that it starts with, prepared before the fork.
pub(super) struct Job {
    pub(super) argv: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
    user: Option<Identity>,
    /// Its output; the shim's own if none.
    log: Option<File>,
    /// Whether it leads a session of its own.
    own_session: bool,
    /// Where it enters the cgroup of its limits.
    entrance: Option<CString>,
}

struct Identity {
    name: CString,
    uid: Uid,
    gid: Gid,
}

impl Job {
    /// Returns the server's program and its stop command, if it has one.
    pub(super) fn of(order: &Order, command_line: Vec<CString>) -> Result<(Self, Option<Self>), String> {
        match &order.work {
            Work::Command => {
                let variables = std::env::vars_os().map(|(key, value)| {
                    let mut line = key.into_encoded_bytes();
                    line.push(b'=');
                    line.extend(value.into_encoded_bytes());
                    CString::new(line).map_err(|_| "a variable holds a NUL".to_owned())
                });
                let environment = variables.collect::<Result<_, _>>()?;
                let job = Self {
                    argv: command_line,
                    environment,
                    directory: None,
                    user: None,
                    log: None,
                    own_session: false,
                    entrance: None,
                };
                Ok((job, None))
            }
            Work::Server { log, spec, cgroup, .. } => {
                let open = || {
                    crate::files::open_log(log, crate::limits::LOG_BYTES_MAX)
                        .map_err(|e| format!("open {}: {e}", log.display()))
                };
                let environment = environment(order).into_iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
                let user = spec.user.as_deref().map(identity).transpose()?.flatten();
                let directory = c_string(spec.directory.clone().unwrap_or_else(|| "/".to_owned()))?;
                let entrance =
                    cgroup.as_ref().map(|path| path.join("cgroup.procs").into_os_string().into_encoded_bytes());
                let entrance = entrance.map(CString::new).transpose().map_err(|_| "a path holds a NUL")?;
                let job = |command: &[String], user| {
                    Ok::<_, String>(Self {
                        argv: command.iter().cloned().map(c_string).collect::<Result<_, _>>()?,
                        environment: environment.clone(),
                        directory: Some(directory.clone()),
                        user,
                        log: Some(open()?),
                        own_session: true,
                        entrance: entrance.clone(),
                    })
                };
                let stop = if spec.stop_command.is_empty() {
                    None
                } else {
                    let user = spec.user.as_deref().map(identity).transpose()?.flatten();
                    Some(job(&spec.stop_command, user)?)
                };
                Ok((job(&spec.command, user)?, stop))
            }
        }
    }

    /// Starts it. `announce` runs in the child first.
    pub(super) fn start(&self, announce: impl FnOnce()) -> Result<i32, String> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
        let child = kernel::fork(|| {
            announce();
            let why = self.become_it();
            let _ = rustix::io::write(&write, why.as_bytes());
            127
        });
        let child = child.map_err(|e| format!("fork: {e}"))?;
        drop(write);
        // The pipe closes at exec: silence is success.
        let mut why = String::new();
        let _ = File::from(read).read_to_string(&mut why);
        if why.is_empty() { Ok(child) } else { Err(why) }
    }

    /// Returns only if it failed, with the reason.
    fn become_it(&self) -> String {
        match self.prepare() {
            Ok(()) => match nix::unistd::execvpe(&self.argv[0], &self.argv, &self.environment) {
                Ok(never) => match never {},
                Err(errno) => format!("exec {}: {}", self.argv[0].to_string_lossy(), errno.desc()),
            },
            Err(why) => why,
        }
    }

    fn prepare(&self) -> Result<(), String> {
        let step = |what: &'static str| move |e: nix::errno::Errno| format!("{what}: {}", e.desc());
        if self.own_session {
            nix::unistd::setsid().map_err(step("start a session"))?;
        }
        if let Some(log) = &self.log {
            silence_stdin().map_err(|e| format!("open /dev/null: {e}"))?;
            nix::unistd::dup2_stdout(log).map_err(step("redirect output"))?;
            nix::unistd::dup2_stderr(log).map_err(step("redirect output"))?;
        }
        if let Some(entrance) = &self.entrance {
            enter(entrance).map_err(|e| format!("enter {}: {e}", entrance.to_string_lossy()))?;
        }
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        kernel::schedule_ordinary().map_err(|e| format!("leave the real-time class: {e}"))?;
        if let Some(user) = &self.user {
            nix::unistd::initgroups(&user.name, user.gid).map_err(step("set groups"))?;
            nix::unistd::setgid(user.gid).map_err(step("set group"))?;
            nix::unistd::setuid(user.uid).map_err(step("set user"))?;
        }
        if let Some(directory) = &self.directory {
            nix::unistd::chdir(directory.as_c_str()).map_err(step("change to its directory"))?;
        }
        kernel::default_signals();
        nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(step("unblock signals"))
    }
}

/// Moves this process into a cgroup: `0` is whoever writes it.
fn enter(entrance: &CString) -> io::Result<()> {
    let file = rustix::fs::open(entrance.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"0")?;
    Ok(())
}

/// Puts `/dev/null` on standard input.
pub(super) fn silence_stdin() -> io::Result<()> {
    nix::unistd::dup2_stdin(null()?)?;
    Ok(())
}

/// Puts `/dev/null` on standard output.
pub(super) fn silence_stdout() -> io::Result<()> {
    nix::unistd::dup2_stdout(null()?)?;
    Ok(())
}

fn null() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null")?;
    file.as_fd().try_clone_to_owned()
}

/// Returns the variables of a server, `KEY=value`: a clean environment, the specification's, and ours.
fn environment(order: &Order) -> Vec<String> {
    let Work::Server { spec, .. } = &order.work else {
        return Vec::new();
    };
    let mut all = std::collections::BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    if let Some(user) = &spec.user {
        all.insert("USER".to_owned(), user.clone());
        all.insert("LOGNAME".to_owned(), user.clone());
    }
    all.extend(spec.environment.clone());
    // Ours last: a specification cannot pretend another token.
    all.extend(marks(order).map(|(key, value)| (key.to_owned(), value)));
    all.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// Returns what every process under a lease is told.
pub(crate) fn marks(order: &Order) -> [(&'static str, String); 4] {
    [
        ("LEASEWARD_TOKEN", order.token.to_string()),
        ("LEASEWARD_SERVER", order.server.clone()),
        ("LEASEWARD_MACHINE", order.machine.clone()),
        ("LEASEWARD_LEASE", order.lease.clone()),
    ]
}

/// Returns whose privileges the server takes; `None` if they are ours already.
fn identity(name: &str) -> Result<Option<Identity>, String> {
    let user = User::from_name(name).map_err(|e| format!("look up user `{name}`: {e}"))?;
    let user = user.ok_or_else(|| format!("there is no user `{name}`"))?;
    if user.uid == nix::unistd::geteuid() {
        return Ok(None);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(format!("only root may run a server as `{name}`"));
    }
    Ok(Some(Identity { name: c_string(user.name)?, uid: user.uid, gid: user.gid }))
}

fn c_string(text: String) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a text holds a NUL".to_owned())
}
