//! Who executed when: reads what `leaseward-victim` stamped.
//!
//! Must stay true: the stamps are the only witness. They know nothing of leases, so they cannot be wrong together with
//! the cluster.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The last of so many bytes is a whole stamp.
const TAIL_BYTES: u64 = 256;

/// A file of stamps.
#[derive(Debug, Clone)]
pub struct Stamps {
    path: PathBuf,
}

/// One life of a server: from its main process' start until its last process' last stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The token it ran under.
    pub token: u64,
    /// Its first stamp, in nanoseconds of the boot clock.
    pub first: u64,
    /// Its last stamp so far.
    pub last: u64,
    /// Its processes that stamped.
    pub processes: usize,
    /// Where it ran, as [`machine_number`] says.
    pub machine: u64,
}

/// Returns a number for the name of a machine, for a stamp has room for numbers only.
#[must_use]
pub fn machine_number(name: &str) -> u64 {
    name.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(257).wrapping_add(u64::from(byte) + 1))
}

/// Returns the boot clock of the machine, in nanoseconds: one for all hosts on it, whatever their own say.
#[must_use]
pub fn boot_ns() -> u64 {
    // Nobody changes his time namespace while he runs.
    static AHEAD: LazyLock<i64> =
        LazyLock::new(|| boot_ahead(&fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default()));
    let now = clock_gettime(ClockId::Boottime);
    ((now.tv_sec * 1_000_000_000 + now.tv_nsec) - *AHEAD) as u64
}

/// Returns by how many nanoseconds the boot clock of this time namespace is ahead.
fn boot_ahead(offsets: &str) -> i64 {
    let line = offsets.lines().find_map(|line| line.trim_start().strip_prefix("boottime"));
    let fields: Vec<i64> = line.unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [seconds, nanoseconds] = fields[..] else { return 0 };
    seconds * 1_000_000_000 + nanoseconds
}

impl Stamps {
    /// Returns the stamps in this file, which need not exist yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Returns the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the lives so far, by their first stamps.
    #[must_use]
    pub fn lives(&self) -> Vec<Life> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut lives: BTreeMap<(u64, u64), (Life, Vec<u64>)> = BTreeMap::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let fields: Vec<u64> = line.split(' ').map(|field| field.parse().expect("a whole stamp")).collect();
            let [at, token, pid, life, machine] = fields[..] else { panic!("not a stamp: {line}") };
            let new = || (Life { token, first: at, last: at, processes: 0, machine }, Vec::new());
            let (life, pids) = lives.entry((life, token)).or_insert_with(new);
            (life.first, life.last) = (life.first.min(at), life.last.max(at));
            if !pids.contains(&pid) {
                pids.push(pid);
                life.processes += 1;
            }
        }
        let mut lives: Vec<Life> = lives.into_values().map(|(life, _)| life).collect();
        lives.sort_by_key(|life| life.first);
        lives
    }

    /// Returns the newest life.
    #[must_use]
    pub fn newest(&self) -> Option<Life> {
        self.lives().pop()
    }

    /// Returns the token and the life of the newest stamp, without reading the others.
    #[must_use]
    pub fn tail(&self) -> Option<(u64, u64)> {
        let mut file = File::open(&self.path).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let line = text.strip_suffix('\n').unwrap_or_default().rsplit('\n').next()?;
        let mut fields = line.split(' ').skip(1).step_by(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }

    /// Forgets the stamps so far. Who stamps goes on.
    pub fn clear(&self) {
        File::options().write(true).truncate(true).open(&self.path).ok();
    }

    /// Returns how often a life began before the one before it had ended.
    #[must_use]
    pub fn overlaps(&self) -> usize {
        self.lives().windows(2).filter(|pair| pair[0].last >= pair[1].first).count()
    }

    /// Returns the first life under a greater token.
    #[must_use]
    pub fn after(&self, token: u64) -> Option<Life> {
        self.lives().into_iter().find(|life| life.token > token)
    }

    /// Returns the lives after it is certain that no two of them overlap, and that tokens never get smaller.
    ///
    /// # Panics
    /// If two lives overlap.
    pub fn exclusive(&self) -> Vec<Life> {
        let lives = self.lives();
        for pair in lives.windows(2) {
            let [before, after] = pair else { continue };
            assert!(
                before.last < after.first,
                "two at a time, for {:?}: {before:?} and {after:?}",
                Duration::from_nanos(before.last - after.first)
            );
            assert!(before.token <= after.token, "a token got smaller: {before:?}, then {after:?}");
        }
        lives
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(lines: &str) -> (tempfile::TempDir, Stamps) {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("stamps"), lines).expect("written");
        let stamps = Stamps::at(&dir.path().join("stamps"));
        (dir, stamps)
    }

    #[test]
    fn lives_one_after_the_other_are_told_apart_by_token_and_start() {
        // The last line is still being written.
        let (_dir, stamps) = stamps("10 7 2 10 1\n11 7 3 10 1\n12 7 2 10 1\n20 7 2 20 1\n30 9 2 30 1\n31 9");
        let lives = stamps.exclusive();
        assert_eq!(lives[0], Life { token: 7, first: 10, last: 12, processes: 2, machine: 1 });
        assert_eq!(lives.iter().map(|life| (life.token, life.first)).collect::<Vec<_>>(), [(7, 10), (7, 20), (9, 30)]);
        assert_eq!(stamps.after(7), stamps.newest());
        assert_eq!(stamps.overlaps(), 0);
    }

    #[test]
    fn the_tail_is_the_newest_whole_stamp_and_what_is_cleared_is_gone() {
        let (_dir, stamps) = stamps("10 7 2 10 1\n11 9 3 11 1\n12 9 3 11 1\n");
        assert_eq!(stamps.tail(), Some((9, 11)));
        stamps.clear();
        assert_eq!((stamps.tail(), stamps.lives()), (None, Vec::new()));
    }

    #[test]
    fn a_namespace_says_how_far_its_boot_clock_is_ahead() {
        assert_eq!(
            boot_ahead("monotonic           0         0\nboottime        -7000         5\n"),
            -7_000_000_000_000 + 5
        );
        assert_eq!(boot_ahead(""), 0, "a kernel without time namespaces");
    }

    #[test]
    fn overlaps_are_counted() {
        assert_eq!(stamps("10 7 2 10 1\n20 9 2 20 1\n21 7 3 10 1\n").1.overlaps(), 1);
    }

    #[test]
    #[should_panic(expected = "two at a time")]
    fn a_single_stamp_that_comes_too_late_is_noticed() {
        stamps("10 7 2 10 1\n20 9 2 20 1\n21 7 3 10 1\n").1.exclusive();
    }

    #[test]
    #[should_panic(expected = "a token got smaller")]
    fn an_old_token_that_comes_back_is_noticed() {
        stamps("10 9 2 10 1\n20 7 2 20 1\n").1.exclusive();
    }
}
