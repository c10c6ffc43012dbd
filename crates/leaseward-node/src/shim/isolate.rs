//! A PID namespace for the server: as root directly, otherwise inside a user namespace of its own.
//!
//! Must stay true: [`enter`] allocates nothing, so that it may also run in a child forked off a process with many
//! threads.

use std::ffi::CStr;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};

/// How the namespace was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// By privilege.
    Privileged,
    /// By a user namespace.
    User,
}

/// What [`enter`] writes, made beforehand.
pub(crate) struct Maps {
    uid: String,
    gid: String,
}

impl Maps {
    /// Returns maps in which the caller keeps its own ids and nobody else has one.
    pub(crate) fn of_this_process() -> Self {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Self { uid: format!("{uid} {uid} 1\n"), gid: format!("{gid} {gid} 1\n") }
    }
}

/// Makes the caller's next child the init of a new PID namespace, with mounts of its own.
pub(crate) fn enter(maps: &Maps) -> Result<Isolation, Errno> {
    let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    match unshare(namespaces) {
        Ok(()) => return Ok(Isolation::Privileged),
        Err(Errno::EPERM) => {}
        Err(other) => return Err(other),
    }
    unshare(namespaces | CloneFlags::CLONE_NEWUSER)?;
    put(c"/proc/self/setgroups", b"deny")?;
    put(c"/proc/self/uid_map", maps.uid.as_bytes())?;
    put(c"/proc/self/gid_map", maps.gid.as_bytes())?;
    Ok(Isolation::User)
}

fn put(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let errno = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?;
    rustix::io::write(&file, text).map_err(errno)?;
    Ok(())
}

/// Gives the namespace's init, which calls this, a `/proc` that shows its own processes. Mounts that appear on the
/// machine later still arrive; ours never leave. Best effort: a container may forbid it, and no proof rests on it.
pub(super) fn mount_proc() -> Result<(), Errno> {
    let none = None::<&str>;
    // Unless this succeeds, mounting would change the machine's own /proc.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
}
