//! What Leaseward put on the disk: a manifest, and for each file how its inode looked when it was complete.
//!
//! Must stay true: an inode that looks as its stamp says has the content that the manifest says. An edit in place
//! moves ctime, and nobody can put that back; so another ctime means "hash it", not "it changed".
//! A stamp is kept only after the file system's clock has passed it, so that a later edit cannot look the same. Until then
//! a record has none, and whoever wants to know reads the file.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leaseward_state::config::{Digest, Manifest, ManifestEntry, ManifestNode};
use rustix::fs::{Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::Owner;
use super::slot::Standing;
use crate::dir::{Dir, Kind, Parents, kind, link_target};
use crate::error::{Error, Result, at};
use crate::limits::{SETTLE_TRIES, STAMP_OLD_ENOUGH};
use crate::manifest;

const MAGIC: [u8; 8] = *b"LWREC\0\0\x01";
const STAMP: usize = 6 * 8;

/// How an inode looked. All zero for what is not a regular file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }

    /// Returns whether no later edit can look the same: the clock of the file system has passed it.
    #[expect(clippy::disallowed_methods, reason = "the kernel stamps inodes by the wall clock")]
    pub(crate) fn is_old_enough(&self) -> bool {
        let Ok(changed) = u64::try_from(self.ctime.0) else { return false };
        let changed = UNIX_EPOCH + Duration::from_secs(changed);
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > STAMP_OLD_ENOUGH)
    }

    /// Returns whether both are the same inode with the same data, though its links or mode may have changed.
    pub(crate) fn same_data(&self, other: &Self) -> bool {
        (self.inode, self.size, self.mtime) == (other.inode, other.size, other.mtime)
    }
}

/// A tree that Leaseward made.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) manifest: Arc<Manifest>,
    /// One for each entry of the manifest; the default one proves nothing.
    pub(crate) stamps: Vec<Stamp>,
}

/// Returns the file name of the record of a tree.
pub(crate) fn name(version: u64, digest: Digest) -> String {
    format!("{version}-{digest}.tree")
}

impl Record {
    /// Returns the record of a tree of which nothing is proven yet.
    pub(crate) fn unproven(manifest: Arc<Manifest>) -> Self {
        let stamps = vec![Stamp::default(); manifest.entries.len()];
        Self { manifest, stamps }
    }

    /// Returns the stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = manifest::encode(&self.manifest);
        let mut bytes = Vec::with_capacity(24 + text.len() + self.stamps.len() * STAMP);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&text);
        for stamp in &self.stamps {
            for word in [stamp.inode, stamp.size] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            for word in [stamp.mtime.0, stamp.mtime.1, stamp.ctime.0, stamp.ctime.1] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Writes the record to `dir`, in place of any that is there; durable when this returns.
    pub(crate) fn save(&self, dir: &Dir, name: &str) -> Result<()> {
        self.write(dir, name, true)?;
        dir.sync()
    }

    /// Writes the record to `dir`, and leaves it to the caller to sync the file that it returns, and the directory.
    pub(crate) fn put(&self, dir: &Dir, name: &str) -> Result<File> {
        self.write(dir, name, false)
    }

    fn write(&self, dir: &Dir, name: &str, sync: bool) -> Result<File> {
        let bytes = self.encode();
        let temporary = "record.tmp";
        dir.unlink(temporary)?;
        let path = dir.path().join(temporary);
        let written: Result<File> = (|| {
            let mut file = dir.create(temporary)?;
            file.write_all(&bytes).map_err(at("write", &path))?;
            if sync {
                file.sync_all().map_err(at("sync", &path))?;
            }
            Ok(file)
        })();
        if written.is_err() {
            dir.unlink(temporary)?;
        }
        let file = written?;
        rustix::fs::renameat(dir, temporary, dir, name).map_err(at("name", dir.path().join(name)))?;
        Ok(file)
    }

    /// Returns the record of `tree`, if it is there and whole.
    pub(crate) fn load(dir: &Dir, tree: &Standing) -> Option<Self> {
        let bytes = std::fs::read(dir.path().join(name(tree.version, tree.manifest))).ok()?;
        let (record, digest) = Self::decode(&bytes)?;
        (digest == tree.manifest).then_some(record)
    }

    /// Returns what a stored form says, with the name of its manifest, if it is whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, Digest)> {
        let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if crc != crc32c::crc32c(body).to_le_bytes() || body.get(..8)? != MAGIC {
            return None;
        }
        let length = usize::try_from(u64::from_le_bytes(body.get(8..16)?.try_into().ok()?)).ok()?;
        let (text, stamps) = body.get(16..)?.split_at_checked(length)?;
        let manifest = manifest::decode(text).ok()?;
        let stamps: Vec<Stamp> = stamps.chunks_exact(STAMP).map(decode_stamp).collect();
        let whole = stamps.len() == manifest.entries.len();
        whole.then(|| (Self { manifest: Arc::new(manifest), stamps }, crate::digest_of(text)))
    }
}

fn decode_stamp(bytes: &[u8]) -> Stamp {
    let word = |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("eight bytes"));
    let time = |i: usize| (word(i) as i64, word(i + 1) as i64);
    Stamp { inode: word(0), size: word(1), mtime: time(2), ctime: time(4) }
}

/// How a tree should look just before it becomes live, however long ago it was built.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// How each file looked when its content, mode and attributes were known. Nothing of ours moves it any more, so any other
    /// look is somebody's doing.
    pub(crate) stamps: Vec<Stamp>,
    /// What was not made for this tree, but stood there or was linked: it must still bear the mode and the owner.
    pub(crate) stood: Vec<bool>,
}

/// Returns the stamps of the tree at `root`, or an error unless everything in it is what was put there: every file the same
/// inode and touched by nobody, every link with its target, and what stood before with its mode and owner.
pub(crate) fn check_tree(root: &Dir, tree: &Manifest, expected: &Expected, owner: Option<Owner>) -> Result<Vec<Stamp>> {
    let mut parents = Parents::new(root);
    let mut stamps = Vec::with_capacity(tree.entries.len());
    for (i, entry) in tree.entries.iter().enumerate() {
        let mut stamp = Stamp::default();
        let mut look = || -> Result<bool> {
            let (dir, name) = parents.of(&entry.path)?;
            if let ManifestNode::Symlink { target } = &entry.node {
                return Ok(link_target(dir, name.as_ref())? == *target);
            }
            let Some(stat) = dir.stat(name)? else { return Ok(false) };
            let is_ours = |mode| {
                stat.st_mode & 0o7777 == mode
                    && owner.is_none_or(|owner| (stat.st_uid, stat.st_gid) == (owner.user, owner.group))
            };
            let (mode, same) = match entry.node {
                ManifestNode::Directory { mode } => (mode, kind(&stat) == Kind::Directory),
                ManifestNode::File { mode, .. } => {
                    stamp = Stamp::of(&stat);
                    (mode, kind(&stat) == Kind::File && stamp == expected.stamps[i])
                }
                ManifestNode::Symlink { .. } => unreachable!("it was looked at above"),
            };
            Ok(same && (!expected.stood[i] || is_ours(mode)))
        };
        // What cannot be looked at is not as it was, either.
        if !look().unwrap_or(false) {
            return Err(Error::Changed { path: root.path().join(&entry.path) });
        }
        stamps.push(stamp);
    }
    Ok(stamps)
}

/// Removes the files that `gone` shares with `root`, path by path, and notes in `stamps` how each looks then. A file that
/// looked otherwise just before was touched by somebody else, and gets none.
pub(crate) fn unlink_shared(root: &Dir, gone: Option<&Dir>, tree: &Manifest, stamps: &mut [Stamp]) -> Result<()> {
    let mut here = Parents::new(root);
    let mut there = gone.map(Parents::new);
    for (entry, stamp) in tree.entries.iter().zip(stamps) {
        if !matches!(entry.node, ManifestNode::File { .. }) {
            continue;
        }
        if look(&mut here, &entry.path) != *stamp {
            *stamp = Stamp::default();
            continue;
        }
        let Some(Ok((dir, name))) = there.as_mut().map(|there| there.of(&entry.path)) else { continue };
        if dir.stat(name)?.is_some_and(|found| found.st_ino == stamp.inode) {
            dir.unlink(name)?;
            let after = look(&mut here, &entry.path);
            *stamp = if after.same_data(stamp) { after } else { Stamp::default() };
        }
    }
    Ok(())
}

/// Takes those of `stamps` away that are not the look of the tree at `root` any more, once the clock has passed them.
/// `probe` is a directory beside it.
pub(crate) fn settle_stamps(root: &Dir, tree: &Manifest, stamps: &mut [Stamp], probe: &Dir) -> Result<()> {
    settle(probe, stamps)?;
    for (stamp, now) in stamps.iter_mut().zip(read_stamps(root, tree)) {
        if *stamp != now {
            *stamp = Stamp::default();
        }
    }
    Ok(())
}

fn read_stamps(root: &Dir, tree: &Manifest) -> Vec<Stamp> {
    let mut parents = Parents::new(root);
    let file = |node: &ManifestNode| matches!(node, ManifestNode::File { .. });
    let look =
        |entry: &ManifestEntry| if file(&entry.node) { look(&mut parents, &entry.path) } else { Stamp::default() };
    tree.entries.iter().map(look).collect()
}

/// Returns how a file looks; as nothing does if it cannot be looked at.
pub(crate) fn look(parents: &mut Parents<'_>, path: &str) -> Stamp {
    let found = parents.of(path).and_then(|(dir, name)| dir.stat(name));
    found.ok().flatten().as_ref().map_or_else(Stamp::default, Stamp::of)
}

/// Waits until the file system stamps changes with a later time than the newest of `stamps`.
fn settle(probe: &Dir, stamps: &[Stamp]) -> Result<()> {
    let newest = stamps.iter().map(|stamp| stamp.ctime).max().unwrap_or_default();
    for _ in 0..SETTLE_TRIES {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let same = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: same, last_modification: now };
        rustix::fs::futimens(probe, &times).map_err(at("touch", probe.path()))?;
        if Stamp::of(&probe.own_stat()?).ctime > newest {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // A clock that was set back. Such stamps are no proof, so say that the tree must be looked at again.
    Err(Error::Changed { path: probe.path().to_owned() })
}
