//! Open directories, and everything that is done below them.
//!
//! Must stay true: a path below a [`Dir`] is resolved by the kernel with `RESOLVE_BENEATH` and without symbolic links,
//! so that nobody who swaps a directory for a link can lead us out; no call here follows the last part of a path. What is
//! removed as a whole is of one mount: what is mounted below stays, and so does all that it stands in.
//! Left out on purpose: paths above the first directory. Those the operator names, and they may hold links.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use leaseward_state::config::Digest;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, at};
use crate::limits::DEPTH_MAX;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const ON_THIS_MOUNT: ResolveFlags = BENEATH.union(ResolveFlags::NO_XDEV);

/// Syncs of directories and of file systems that fail, and links that are refused, in tests: those of this thread.
#[cfg(test)]
pub(crate) mod failing {
    use std::cell::Cell;

    use super::{Errno, Error, Path, Result};

    thread_local! {
        static SYNCS: Cell<(usize, Option<usize>)> = const { Cell::new((0, None)) };
        /// Whether every hard link is refused.
        pub(crate) static LINKS: Cell<bool> = const { Cell::new(false) };
    }

    /// The sync that comes after so many fails, once.
    pub(crate) fn after(syncs: usize) {
        SYNCS.set((0, Some(syncs)));
    }

    /// Returns how many there were since then.
    pub(crate) fn count() -> usize {
        SYNCS.get().0
    }

    pub(super) fn sync(path: &Path) -> Result<()> {
        let (count, fails) = SYNCS.get();
        SYNCS.set((count + 1, fails));
        if fails == Some(count) { Err(Error::io("sync", path, Errno::IO)) } else { Ok(()) }
    }
}

/// An open directory. The path is for messages only.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One file or directory, whatever it is named. When it was made tells it from a later one with the same number, where the
/// file system keeps that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    device: (u32, u32),
    number: u64,
    born: (i64, u32),
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    Special,
}

/// Returns what a `stat` is about.
pub(crate) fn kind(stat: &Stat) -> Kind {
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => Kind::Directory,
        rustix::fs::FileType::RegularFile => Kind::File,
        rustix::fs::FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    }
}

impl Dir {
    /// Returns the directory at `path`, whose last part must not be a link.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(at("open directory", path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory at `relative`, below this one.
    pub(crate) fn child(&self, relative: impl AsRef<OsStr>) -> Result<Self> {
        self.child_within(relative.as_ref(), BENEATH)
    }

    fn child_within(&self, relative: &OsStr, within: ResolveFlags) -> Result<Self> {
        let fd = self.open_within(relative, OFlags::RDONLY | OFlags::DIRECTORY, 0, within)?;
        Ok(Self { fd, path: self.path.join(relative) })
    }

    /// Returns whether something at `relative` is on another mount than this directory, or cannot be looked at. Touches nothing
    /// that is mounted.
    pub(crate) fn is_across(&self, relative: impl AsRef<OsStr>) -> Result<bool> {
        match self.open_within(relative.as_ref(), OFlags::PATH, 0, ON_THIS_MOUNT) {
            Err(Error::OtherFileSystem { .. }) => Ok(true),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Ok(true),
            Err(error) if is_shut(&error) => Ok(false),
            found => found.map(|_| false),
        }
    }

    /// Looks whether a file can be renamed to `relative`, whose directories need not be there yet. What is not for us to look at
    /// is not looked at.
    ///
    /// # Errors
    /// [`Error::OtherFileSystem`] if something is mounted there or on the way to it.
    pub(crate) fn refuse_across(&self, relative: impl AsRef<OsStr>) -> Result<()> {
        match self.open_within(relative.as_ref(), OFlags::PATH, 0, ON_THIS_MOUNT) {
            Err(error @ Error::OtherFileSystem { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the file at `relative`, for reading. Does not wait for a pipe's other end.
    pub(crate) fn file(&self, relative: impl AsRef<OsStr>) -> Result<File> {
        Ok(self.open_raw(relative.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK, 0)?.into())
    }

    /// Creates the file `name`, which must not exist.
    pub(crate) fn create(&self, name: &str) -> Result<File> {
        Ok(self.open_raw(OsStr::new(name), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o600)?.into())
    }

    /// Puts these bytes into the file `name`, whole and durable, in place of one that is there. If it fails before the last sync,
    /// that one stands.
    pub(crate) fn write_durably(&self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let temporary = format!("{name}.tmp");
        self.unlink(&temporary)?;
        let path = self.path.join(&temporary);
        let mut file = self.create(&temporary)?;
        let written = parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_all());
        if let Err(error) = written {
            self.unlink(&temporary)?;
            return Err(Error::io("write", path, error));
        }
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).map_err(at("name", &path))?;
        self.sync()
    }

    fn open_raw(&self, relative: &OsStr, flags: OFlags, mode: u32) -> Result<OwnedFd> {
        self.open_within(relative, flags, mode, BENEATH)
    }

    fn open_within(&self, relative: &OsStr, flags: OFlags, mode: u32, within: ResolveFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(&self.fd, Path::new(relative), flags, Mode::from_raw_mode(mode), within);
        opened.map_err(|error| match error {
            Errno::XDEV if within == ON_THIS_MOUNT => Error::OtherFileSystem { path: self.path.join(relative) },
            error => Error::io("open", self.path.join(relative), error),
        })
    }

    /// Returns what stands at `name`, one part, if anything does.
    pub(crate) fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, Path::new(name.as_ref()), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("look at", self.path.join(name.as_ref()), error)),
        }
    }

    /// Returns which inode stands at `name`, one part, if any does.
    pub(crate) fn inode(&self, name: impl AsRef<OsStr>) -> Result<Option<Inode>> {
        let name = Path::new(name.as_ref());
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        match rustix::fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
            Ok(stat) => {
                let born = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
                Ok(Some(Inode { device: (stat.stx_dev_major, stat.stx_dev_minor), number: stat.stx_ino, born }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("look at", self.path.join(name), error)),
        }
    }

    /// Returns the names in this directory, in ascending order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        let list = rustix::fs::Dir::read_from(&self.fd).map_err(at("list", &self.path))?;
        for entry in list {
            let entry = entry.map_err(at("list", &self.path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        // Ascending names, so that every walk of equal trees is alike.
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn mkdir(&self, name: &str) -> Result<Self> {
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU).map_err(at("make directory", self.path.join(name)))?;
        self.child(name)
    }

    pub(crate) fn symlink(&self, target: &str, name: &str) -> Result<()> {
        rustix::fs::symlinkat(target, &self.fd, name).map_err(at("link", self.path.join(name)))
    }

    /// Makes `name` here another name of the file `from` in `other`. `false` if the file system will not.
    pub(crate) fn hard_link(&self, name: impl AsRef<OsStr>, other: &Self, from: impl AsRef<OsStr>) -> Result<bool> {
        let (name, from) = (Path::new(name.as_ref()), Path::new(from.as_ref()));
        #[cfg(test)]
        if failing::LINKS.get() {
            return Ok(false);
        }
        match rustix::fs::linkat(&other.fd, from, &self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP | Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("link", self.path.join(name), error)),
        }
    }

    /// Renames below this directory. `to` must not exist.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE)
            .map_err(at("rename", self.path.join(from)))
    }

    /// Makes `one` and `other` change places in one step.
    pub(crate) fn exchange(&self, one: &str, other: &str) -> Result<()> {
        rustix::fs::renameat_with(&self.fd, one, &self.fd, other, RenameFlags::EXCHANGE)
            .map_err(at("exchange", self.path.join(other)))
    }

    /// Makes `name` here and `theirs` in `other` change places in one step.
    pub(crate) fn exchange_with(&self, name: impl AsRef<OsStr>, other: &Self, theirs: impl AsRef<OsStr>) -> Result<()> {
        let (name, theirs) = (Path::new(name.as_ref()), Path::new(theirs.as_ref()));
        rustix::fs::renameat_with(&self.fd, name, &other.fd, theirs, RenameFlags::EXCHANGE)
            .map_err(at("exchange", self.path.join(name)))
    }

    /// Renames `name` here to `to` in `other`, where nothing may stand.
    pub(crate) fn move_to(&self, name: impl AsRef<OsStr>, other: &Self, to: impl AsRef<OsStr>) -> Result<()> {
        let (name, to) = (Path::new(name.as_ref()), Path::new(to.as_ref()));
        rustix::fs::renameat_with(&self.fd, name, &other.fd, to, RenameFlags::NOREPLACE)
            .map_err(at("rename", self.path.join(name)))
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode)).map_err(at("set the mode of", &self.path))
    }

    pub(crate) fn give_to(&self, user: u32, group: u32) -> Result<()> {
        give(&self.fd, user, group, &self.path)
    }

    pub(crate) fn own_stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.fd).map_err(at("look at", &self.path))
    }

    /// Returns whether both are on one file system.
    pub(crate) fn is_on_device_of(&self, other: &Self) -> Result<bool> {
        Ok(self.own_stat()?.st_dev == other.own_stat()?.st_dev)
    }

    /// Returns another handle on this directory.
    pub(crate) fn fd(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(at("keep open", &self.path))
    }

    /// Makes the names in this directory durable.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        failing::sync(&self.path)?;
        rustix::fs::fsync(&self.fd).map_err(at("sync", &self.path))
    }

    /// Makes everything on this file system durable, also what others wrote.
    pub(crate) fn sync_file_system(&self) -> Result<()> {
        #[cfg(test)]
        failing::sync(&self.path)?;
        rustix::fs::syncfs(&self.fd).map_err(at("sync the file system of", &self.path))
    }

    /// Removes the file or link `name`, if it is there.
    pub(crate) fn unlink(&self, name: impl AsRef<OsStr>) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, Path::new(name.as_ref()), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("remove", self.path.join(name.as_ref()), error)),
        }
    }

    /// Removes the directory `name`, if it is there and empty; returns whether it is gone.
    pub(crate) fn remove_empty(&self, name: impl AsRef<OsStr>) -> Result<bool> {
        match rustix::fs::unlinkat(&self.fd, Path::new(name.as_ref()), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(Error::io("remove", self.path.join(name.as_ref()), error)),
        }
    }

    /// Removes whatever stands at `name` with all below it, if anything is there. Follows no link, and goes into nothing that
    /// is mounted there: then what is above it stays, too.
    pub(crate) fn remove_tree(&self, name: impl AsRef<OsStr>) -> Result<()> {
        self.remove_below(name.as_ref(), 0)
    }

    fn remove_below(&self, name: &OsStr, depth: usize) -> Result<()> {
        let Some(stat) = self.stat(name)? else { return Ok(()) };
        if kind(&stat) != Kind::Directory {
            return self.unlink(name);
        }
        // One level more than a tree may have: its root.
        if depth > DEPTH_MAX + 1 {
            return Err(Error::illegal(self.path.join(name), "it is too deep to be removed"));
        }
        if stat.st_mode & 0o700 != 0o700 && !self.is_across(name)? {
            // A directory that its owner may not list or change cannot be emptied by an ordinary user.
            let _ = rustix::fs::chmodat(&self.fd, Path::new(name), Mode::RWXU, AtFlags::empty());
        }
        let child = self.child_within(name, ON_THIS_MOUNT)?;
        for inner in child.names()? {
            child.remove_below(&inner, depth + 1)?;
        }
        match rustix::fs::unlinkat(&self.fd, Path::new(name), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("remove", self.path.join(name), error)),
        }
    }

    /// Calls `visit` with the path, the directory, the name and the `stat` of everything below, parents first, whatever others
    /// do there meanwhile and whatever they put there: what goes away is passed over, and so is what is in a directory that
    /// may not be listed or is too deep for a set. A name that is not UTF-8 has no path of its own: it is shown as well as
    /// can be, and not looked into.
    pub(crate) fn roam(&self, visit: &mut impl FnMut(&str, &Self, &OsStr, &Stat) -> Result<()>) -> Result<()> {
        self.roam_below("", 1, BENEATH, visit)
    }

    /// As [`Self::roam`], and looks into nothing that is mounted there.
    pub(crate) fn roam_mount(&self, visit: &mut impl FnMut(&str, &Self, &OsStr, &Stat) -> Result<()>) -> Result<()> {
        self.roam_below("", 1, ON_THIS_MOUNT, visit)
    }

    fn roam_below(
        &self,
        above: &str,
        depth: usize,
        within: ResolveFlags,
        visit: &mut impl FnMut(&str, &Self, &OsStr, &Stat) -> Result<()>,
    ) -> Result<()> {
        for name in self.names()? {
            let Some(stat) = self.stat(&name)? else { continue };
            let part = name.to_string_lossy();
            let path = if above.is_empty() { part.into_owned() } else { format!("{above}/{part}") };
            visit(&path, self, &name, &stat)?;
            if kind(&stat) != Kind::Directory || depth >= DEPTH_MAX || name.to_str().is_none() {
                continue;
            }
            match self.child_within(&name, within) {
                Ok(child) => child.roam_below(&path, depth + 1, within, visit)?,
                Err(Error::OtherFileSystem { .. }) => {}
                Err(error) if is_shut(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// As [`Self::roam`], and refuses what may not be in a set.
    #[cfg(test)]
    pub(crate) fn walk(&self, visit: &mut impl FnMut(&str, &Self, &OsStr, &Stat) -> Result<()>) -> Result<()> {
        self.walk_below("", 1, visit)
    }

    #[cfg(test)]
    fn walk_below(
        &self,
        above: &str,
        depth: usize,
        visit: &mut impl FnMut(&str, &Self, &OsStr, &Stat) -> Result<()>,
    ) -> Result<()> {
        for name in self.names()? {
            let part = name.to_str().ok_or_else(|| Error::illegal(self.path.join(&name), "its name is not UTF-8"))?;
            let path = if above.is_empty() { part.to_owned() } else { format!("{above}/{part}") };
            let stat = self.stat(&name)?.ok_or_else(|| Error::Changed { path: self.path.join(&name) })?;
            visit(&path, self, &name, &stat)?;
            if kind(&stat) == Kind::Directory {
                if depth >= DEPTH_MAX {
                    let why = format!("it is more than {DEPTH_MAX} directories deep");
                    return Err(Error::illegal(self.path.join(&name), why));
                }
                self.child(&name)?.walk_below(&path, depth + 1, visit)?;
            }
        }
        Ok(())
    }
}

/// Returns whether a directory could not be opened because it went away, is none any more, or is not for us.
pub(crate) fn is_shut(error: &Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match error {
        // A link stands in the way.
        Error::IllegalTree { .. } => true,
        Error::Io { source, .. } => matches!(source.kind(), NotFound | NotADirectory | PermissionDenied),
        _ => false,
    }
}

/// The directory that a path of the tree lies in, opened once for a run of neighbours.
pub(crate) struct Parents<'a> {
    root: &'a Dir,
    last: Option<(String, Dir)>,
}

impl<'a> Parents<'a> {
    pub(crate) fn new(root: &'a Dir) -> Self {
        Self { root, last: None }
    }

    /// Returns the directory of `path` and the last part of it.
    pub(crate) fn of<'p>(&mut self, path: &'p str) -> Result<(&Dir, &'p str)> {
        let Some((above, name)) = path.rsplit_once('/') else { return Ok((self.root, path)) };
        if self.last.as_ref().is_none_or(|(last, _)| last != above) {
            self.last = Some((above.to_owned(), self.root.child(above)?));
        }
        let (_, dir) = self.last.as_ref().expect("it was opened above");
        Ok((dir, name))
    }
}

/// Gives an open file or directory to a user and a group.
pub(crate) fn give(file: impl AsFd, user: u32, group: u32, path: &Path) -> Result<()> {
    let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
    rustix::fs::fchown(file, Some(user), Some(group)).map_err(at("change the owner of", path))
}

/// Begins to write to the disk what stands in the file, and does not wait: there is less to be waited for in the end.
pub(crate) fn begin_to_sync(file: impl AsFd) {
    // To the kernel these pages are not needed again, so it writes them now; those that are on their way stay in memory.
    // If it does not, nothing is lost.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Returns the target of the link `name` in `dir`.
pub(crate) fn link_target(dir: &Dir, name: &OsStr) -> Result<String> {
    let path = dir.path().join(name);
    let target = rustix::fs::readlinkat(dir, Path::new(name), Vec::new()).map_err(at("read link", &path))?;
    target.into_string().map_err(|_| Error::illegal(path, "its link target is not UTF-8"))
}

/// Returns the hash of everything in `file`.
pub(crate) fn hash_file(file: &mut File, path: &Path) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(at("read", path))?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Returns `length` bytes of `file` from `offset`, or fewer if it ends before.
pub(crate) fn read_piece(file: &mut File, offset: u64, length: u32, path: &Path) -> Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset)).map_err(at("read", path))?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(u64::from(length)).read_to_end(&mut bytes).map_err(at("read", path))?;
    Ok(bytes)
}
