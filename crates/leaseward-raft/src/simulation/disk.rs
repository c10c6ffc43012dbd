//! A disk that loses power: unsynced sectors survive at random, names survive as a prefix of what was done to them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

#[derive(Default, Clone)]
struct Content {
    durable: Vec<u8>,
    /// What was written and not synced, oldest first.
    pending: Vec<(u64, Vec<u8>)>,
    /// What a sync failed for: readers see it, and nobody will write it any more.
    forgotten: Vec<(u64, Vec<u8>)>,
}

impl Content {
    fn durable(bytes: Vec<u8>) -> Self {
        Self { durable: bytes, ..Self::default() }
    }

    fn volatile(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, written) in self.forgotten.iter().chain(&self.pending) {
            lay_over(&mut bytes, 0, *offset, written);
        }
        bytes
    }
}

/// Lays what was written at `offset` over those bytes of a file that begin at `from`.
fn lay_over(bytes: &mut [u8], from: usize, offset: u64, written: &[u8]) {
    let start = (offset as usize).max(from);
    let end = (offset as usize + written.len()).min(from + bytes.len());
    if start < end {
        bytes[start - from..end - from].copy_from_slice(&written[start - offset as usize..end - offset as usize]);
    }
}

type Shared = Arc<Mutex<Content>>;

#[derive(Clone)]
enum NameChange {
    Create(String, Shared),
    Rename(String, String),
    Remove(String),
}

fn change(names: &mut BTreeMap<String, Shared>, change: &NameChange) {
    match change {
        NameChange::Create(name, content) => drop(names.insert(name.clone(), Arc::clone(content))),
        NameChange::Rename(from, to) => {
            if let Some(content) = names.remove(from) {
                names.insert(to.clone(), content);
            }
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

#[derive(Default)]
struct Inner {
    names: BTreeMap<String, Shared>,
    durable_names: BTreeMap<String, Shared>,
    pending_names: Vec<NameChange>,
    /// Operations until the power fails.
    fuel: Option<u64>,
    dead: bool,
    operations: u64,
    room: Option<u64>,
    sync_error: Option<i32>,
    dir_sync_error: Option<i32>,
    lies: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// The power fails after this many more operations.
    pub fn fail_after(&self, operations: u64) {
        self.lock().fuel = Some(operations);
    }

    /// The power does not fail any more.
    pub fn keep_power(&self) {
        self.lock().fuel = None;
    }

    /// Only so many bytes are left for new files.
    pub fn leave_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Every sync fails with this number of the kernel's, until told otherwise.
    pub fn break_syncs(&self, errno: Option<i32>) {
        self.lock().sync_error = errno;
    }

    /// Every sync of the directory fails with this number of the kernel's, until told otherwise. Names that it should have made durable
    /// never are, though they are seen until the power fails.
    pub fn break_dir_syncs(&self, errno: Option<i32>) {
        self.lock().dir_sync_error = errno;
    }

    /// What failed was not the power, but the process: what it wrote is seen by the next one, and not durable yet.
    pub fn only_the_process_died(&self) {
        let mut inner = self.lock();
        (inner.dead, inner.fuel) = (false, None);
    }

    /// Every sync says that it is done, and nothing is, until the power fails.
    pub fn lie_about_syncs(&self) {
        self.lock().lies = true;
    }

    /// Returns how many operations there were so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Returns what a machine finds that boots again after the power failed now.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let inner = self.lock();
        let mut names = inner.durable_names.clone();
        let kept = random.gen_range(0..=inner.pending_names.len());
        inner.pending_names[..kept].iter().for_each(|done| change(&mut names, done));
        let mut survivors = BTreeMap::new();
        for (name, content) in &names {
            let content = content.lock().expect("no holder of this lock panics");
            let mut bytes = content.durable.clone();
            for (offset, written) in &content.pending {
                keep_some(&mut bytes, *offset as usize, written, &mut random);
            }
            let content = Arc::new(Mutex::new(Content::durable(bytes)));
            survivors.insert(name.clone(), content);
        }
        let inner = Inner { names: survivors.clone(), durable_names: survivors, ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Returns a copy of all that it holds, durable: what a backup of the disk holds.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.lock();
        let names: BTreeMap<_, _> = inner
            .names
            .iter()
            .map(|(name, content)| {
                let bytes = content.lock().expect("no holder of this lock panics").volatile();
                (name.clone(), Arc::new(Mutex::new(Content::durable(bytes))))
            })
            .collect();
        let inner = Inner { names: names.clone(), durable_names: names, ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Returns whether the power has failed, as [`SimDisk::fail_after`] asked.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Changes a byte behind everybody's back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip(&self, name: &str, at: usize, mask: u8) {
        let content = Arc::clone(&self.lock().names[name]);
        content.lock().expect("no holder of this lock panics").durable[at] ^= mask;
    }

    /// Returns a file as a reader sees it.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let content = Arc::clone(&self.lock().names[name]);
        let content = content.lock().expect("no holder of this lock panics");
        content.volatile()
    }

    /// Puts a file there, durable.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let content = Arc::new(Mutex::new(Content::durable(bytes)));
        let mut inner = self.lock();
        inner.names.insert(name.to_owned(), Arc::clone(&content));
        inner.durable_names.insert(name.to_owned(), content);
    }

    /// Burns fuel. The operation at which the power fails may still have begun.
    fn step(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.dead {
            return Err(io::Error::other("the power is gone"));
        }
        inner.operations += 1;
        if let Some(fuel) = &mut inner.fuel {
            if *fuel == 0 {
                inner.dead = true;
            } else {
                *fuel -= 1;
            }
        }
        Ok(())
    }

    fn outcome(&self) -> io::Result<()> {
        if self.lock().dead { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn rename_or_so(&self, done: NameChange) -> io::Result<()> {
        self.step()?;
        let mut inner = self.lock();
        change(&mut inner.names, &done);
        inner.pending_names.push(done);
        drop(inner);
        self.outcome()
    }
}

/// Each sector of a write survives whole, in part, or not at all.
fn keep_some(bytes: &mut [u8], offset: usize, written: &[u8], random: &mut SmallRng) {
    let mut at = 0;
    while at < written.len() {
        let end = (at + SECTOR - (offset + at) % SECTOR).min(written.len());
        let kept = match random.gen_range(0..8) {
            0..=3 => end - at,
            4 => random.gen_range(0..=end - at),
            _ => 0,
        };
        bytes[offset + at..offset + at + kept].copy_from_slice(&written[at..at + kept]);
        at = end;
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn create_zeroed(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
        {
            let mut inner = self.lock();
            if let Some(room) = &mut inner.room {
                if *room < size {
                    return Err(io::Error::from_raw_os_error(28));
                }
                *room -= size;
            }
        }
        let content = Arc::new(Mutex::new(Content::durable(vec![0; size as usize])));
        self.rename_or_so(NameChange::Create(name.to_owned(), Arc::clone(&content)))?;
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let found = self.lock().names.get(name).cloned();
        let content = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_or_so(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.rename_or_so(NameChange::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.step()?;
        self.outcome()?;
        let mut inner = self.lock();
        let done = std::mem::take(&mut inner.pending_names);
        if let Some(errno) = inner.dir_sync_error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        done.iter().for_each(|done| change(&mut inner.durable_names, done));
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().room.unwrap_or(u64::MAX))
    }
}

struct SimFile {
    disk: SimDisk,
    content: Shared,
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no holder of this lock panics")
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().durable.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.lock();
        let found = content.durable.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        for (at, written) in content.forgotten.iter().chain(&content.pending) {
            lay_over(buffer, offset as usize, *at, written);
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.step()?;
        assert!(offset as usize + bytes.len() <= self.lock().durable.len(), "a write beyond what was allocated");
        self.lock().pending.push((offset, bytes.to_vec()));
        self.disk.outcome()
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step()?;
        if let Some(errno) = self.disk.lock().sync_error {
            // As the kernel does it: the pages count as clean.
            let mut content = self.lock();
            let lost = std::mem::take(&mut content.pending);
            content.forgotten.extend(lost);
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.disk.outcome()?;
        if self.disk.lock().lies {
            return Ok(());
        }
        let mut content = self.lock();
        for (offset, written) in std::mem::take(&mut content.pending) {
            lay_over(&mut content.durable, 0, offset, &written);
            // Whoever wrote there again has made good for it.
            let end = offset + written.len() as u64;
            content.forgotten.retain(|(at, lost)| *at < offset || at + lost.len() as u64 > end);
        }
        Ok(())
    }
}
