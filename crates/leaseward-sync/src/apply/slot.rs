//! What the disk should look like, in a file that can be written when the disk is full.
//!
//! Must stay true: the file is allocated once, has two slots, and a write touches only the older one; so a torn write
//! leaves the state before it. The checksum decides. Stored form: golden bytes in the tests hold us to it.
//! Left out on purpose: manifests and stamps; they are in the records next to it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use leaseward_state::config::Digest;

use crate::dir::Dir;
use crate::error::{Error, Result, at};

const NAME: &str = "state";
const MAGIC: [u8; 4] = *b"LWST";
const VERSION: u8 = 1;
/// Distance of the two slots, in bytes: a block, so that no device writes both at once.
const SLOT: usize = 4096;
/// Bytes of a slot that are used. Less than a sector, which disks write whole.
const USED: usize = 4 + 4 + 8 + 1 + 1 + 3 * TREE;
const TREE: usize = 1 + 8 + 32 + 8 + 16;

/// A root directory, told from every other one that may stand at its path. A rename does not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootId {
    pub(crate) inode: u64,
    /// Birth time in seconds and nanoseconds; 0 where the file system keeps none.
    pub(crate) born: (i64, i64),
}

/// A tree that stands on the disk, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) version: u64,
    pub(crate) manifest: Digest,
    pub(crate) root: RootId,
}

/// How far an apply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is under way.
    Idle,
    /// The next tree is being built and is worth nothing yet.
    Building,
    /// The next tree is whole and durable; the switch may or may not have happened.
    Staged,
}

/// The state of one set on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) live: Option<Standing>,
    pub(crate) previous: Option<Standing>,
    pub(crate) next: Option<Standing>,
}

impl State {
    pub(crate) const EMPTY: Self = Self { phase: Phase::Idle, live: None, previous: None, next: None };
}

/// The open state file.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    path: std::path::PathBuf,
    generation: u64,
    state: State,
    /// What the file says. The state may be ahead of it, where the disk itself tells the rest.
    written: State,
}

impl Slots {
    /// Opens the state file in `dir` and makes it if it is not there. A file without a valid slot counts as no state.
    pub(crate) fn open(dir: &Dir) -> Result<Self> {
        let path = dir.path().join(NAME);
        if dir.stat(NAME)?.is_none() {
            preallocate(dir)?;
        } else {
            // Whoever made it may have died before its name was durable.
            dir.sync()?;
        }
        let file = File::options().read(true).write(true).open(&path).map_err(at("open", &path))?;
        let read = |slot: u64| {
            let mut bytes = [0; USED];
            file.read_exact_at(&mut bytes, slot * SLOT as u64).ok()?;
            decode(&bytes)
        };
        let newest = [read(0), read(1)].into_iter().flatten().max_by_key(|(generation, _)| *generation);
        if newest.is_none() {
            tracing::warn!(path = %path.display(), "no slot of the state file is valid: starting without state");
        }
        let (generation, state) = newest.unwrap_or((0, State::EMPTY));
        Ok(Self { file, path, generation, state, written: state })
    }

    /// Returns whether there is a state file.
    pub(crate) fn are_in(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes `state` durable. Writes nothing if it is the state already.
    pub(crate) fn write(&mut self, state: State) -> Result<()> {
        if state == self.written {
            self.state = state;
            return Ok(());
        }
        let generation = self.generation + 1;
        let offset = (generation % 2) * SLOT as u64;
        self.file.write_all_at(&encode(generation, &state), offset).map_err(at("write", &self.path))?;
        self.file.sync_data().map_err(at("sync", &self.path))?;
        self.generation = generation;
        self.state = state;
        self.written = state;
        Ok(())
    }

    /// Takes `state` for the state, and leaves it to a later [`Slots::write`] to make it durable.
    pub(crate) fn note(&mut self, state: State) {
        self.state = state;
    }
}

fn preallocate(dir: &Dir) -> Result<()> {
    let temporary = "state.tmp";
    dir.unlink(temporary)?;
    let path = dir.path().join(temporary);
    let mut file = dir.create(temporary)?;
    let mut bytes = vec![0; 2 * SLOT];
    bytes[..USED].copy_from_slice(&encode(0, &State::EMPTY));
    file.write_all(&bytes).map_err(at("write", &path))?;
    file.sync_all().map_err(at("sync", &path))?;
    dir.rename(temporary, NAME)?;
    dir.sync().inspect_err(|_| {
        // It is made again: another sync of the same name proves nothing.
        let _ = dir.unlink(NAME);
    })
}

fn encode(generation: u64, state: &State) -> [u8; USED] {
    let mut bytes = Vec::with_capacity(USED);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&generation.to_le_bytes());
    let phase = match state.phase {
        Phase::Idle => 0,
        Phase::Building => 1,
        Phase::Staged => 2,
    };
    bytes.extend_from_slice(&[VERSION, phase]);
    for tree in [&state.live, &state.previous, &state.next] {
        let Some(tree) = tree else {
            bytes.extend_from_slice(&[0; TREE]);
            continue;
        };
        bytes.push(1);
        bytes.extend_from_slice(&tree.version.to_le_bytes());
        bytes.extend_from_slice(&tree.manifest.0);
        bytes.extend_from_slice(&tree.root.inode.to_le_bytes());
        bytes.extend_from_slice(&tree.root.born.0.to_le_bytes());
        bytes.extend_from_slice(&tree.root.born.1.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes.try_into().expect("the sizes above add up")
}

fn decode(bytes: &[u8; USED]) -> Option<(u64, State)> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if bytes[..4] != MAGIC || bytes[4..8] != crc32c::crc32c(&bytes[8..]).to_le_bytes() || bytes[16] != VERSION {
        return None;
    }
    let phase = match bytes[17] {
        0 => Phase::Idle,
        1 => Phase::Building,
        2 => Phase::Staged,
        _ => return None,
    };
    let tree = |i: usize| {
        let at = 18 + i * TREE;
        (bytes[at] == 1).then(|| Standing {
            version: word(at + 1),
            manifest: Digest(bytes[at + 9..at + 41].try_into().expect("32 bytes")),
            root: RootId { inode: word(at + 41), born: (word(at + 49) as i64, word(at + 57) as i64) },
        })
    };
    Some((word(8), State { phase, live: tree(0), previous: tree(1), next: tree(2) }))
}

/// Returns what stands at `name` in `dir` if it is a directory.
pub(crate) fn root_id(dir: &Dir, name: &str) -> Result<Option<RootId>> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let flags = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::BTIME;
    let found = match statx(dir, Path::new(name), AtFlags::SYMLINK_NOFOLLOW, flags) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io("look at", dir.path().join(name), error)),
    };
    if rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) != rustix::fs::FileType::Directory {
        return Err(Error::TargetNotOurs { path: dir.path().join(name) });
    }
    let born = if found.stx_mask & StatxFlags::BTIME.bits() == 0 {
        (0, 0)
    } else {
        (found.stx_btime.tv_sec, found.stx_btime.tv_nsec.into())
    };
    Ok(Some(RootId { inode: found.stx_ino, born }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(n: u8) -> Standing {
        let root = RootId { inode: n.into(), born: (7, n.into()) };
        Standing { version: n.into(), manifest: Digest([n; 32]), root }
    }

    fn state(n: u8) -> State {
        State { phase: Phase::Staged, live: Some(tree(n)), previous: None, next: Some(tree(n + 1)) }
    }

    #[test]
    fn the_newest_valid_slot_counts_whatever_a_torn_write_left() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mut slots = Slots::open(&dir).unwrap();
        assert_eq!(*slots.state(), State::EMPTY);
        slots.write(state(1)).unwrap();
        let before = std::fs::read(temp.path().join(NAME)).unwrap();
        slots.write(state(2)).unwrap();
        let after = std::fs::read(temp.path().join(NAME)).unwrap();
        assert_eq!(before.len(), after.len(), "the file never grows");
        for cut in 0..=USED {
            // Generation 2 lies in the first slot.
            let mut torn = before.clone();
            torn[..cut].copy_from_slice(&after[..cut]);
            std::fs::write(temp.path().join(NAME), &torn).unwrap();
            let found = *Slots::open(&dir).unwrap().state();
            assert!(found == state(1) || (cut >= USED - TREE && found == state(2)), "cut at {cut}: {found:?}");
        }
        assert_eq!(*Slots::open(&dir).unwrap().state(), state(2));
    }

    #[test]
    fn the_stored_form_stays() {
        let hex: String = encode(3, &state(1)).iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["4c5753546648800803000000000000000102010100000000000000010101010101010101010101010101010101010101010101010101010101010101000000000000000700000000000000010000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000102000000000000000202020202020202020202020202020202020202020202020202020202020202020000000000000007000000000000000200000000000000"].assert_eq(&hex);
    }
}
