//! A directory like a site's configuration, and what people do to it.
//!
//! Must stay true: the same seed makes the same bytes. Texts are of a small vocabulary, so that they compress as such
//! files do (about one to three).

use std::fs;
use std::path::{Path, PathBuf};

/// What is done to a directory between two versions.
pub(crate) const EDITS: [&str; 6] = ["one", "edit1", "inserthead", "append", "rename", "dbswap"];

/// Bytes of a record of the database.
const RECORD: usize = 64;

/// A generator of numbers.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }

    fn text(&mut self, size: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "timeout",
            "listen",
            "upstream",
            "max_connections",
            "server_name",
            "ssl_certificate",
            "log_level",
            "worker",
            "enabled",
            "interval",
            "retry",
            "cache",
            "path",
            "database",
            "cluster",
            "replica",
        ];
        let mut text = Vec::with_capacity(size + 64);
        while text.len() < size {
            let (one, other) = (WORDS[self.roll(16)], WORDS[self.roll(16)]);
            let line = match self.roll(4) {
                0 => format!("[{one}.{other}]\n"),
                1 => format!("{one} = \"{other}-{:x}\"\n", self.roll(1 << 20)),
                2 => format!("{one}_{other} = {}\n", self.roll(100_000)),
                _ => format!("# {one} of the {other} {}\n", self.roll(1 << 28)),
            };
            text.extend_from_slice(line.as_bytes());
        }
        text.truncate(size);
        text
    }
}

/// A directory that changes.
pub(crate) struct Site {
    root: PathBuf,
    dice: Dice,
    files: Vec<PathBuf>,
    renamed: usize,
}

impl Site {
    /// Makes a directory of so many files and about so many bytes, with one database of a sixteenth of them.
    pub(crate) fn make(root: &Path, seed: u64, files: usize, bytes: usize) -> Self {
        let mut dice = Dice::new(seed);
        let mut paths = Vec::new();
        let usual = bytes * 15 / 16 / files;
        for i in 0..files {
            let path = root.join(format!("dir{:03}/{}-{i:05}.conf", i % (files / 40).max(1), ["a", "b", "c"][i % 3]));
            let size = match dice.roll(10) {
                0..=5 => usual / 4,
                6..=8 => usual,
                _ => usual * 11 / 2,
            };
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            let size = size / 2 + dice.roll(size + 1);
            fs::write(&path, dice.text(size)).expect("written");
            paths.push(path);
        }
        let records = bytes / 16 / RECORD;
        let mut database = Vec::with_capacity(records * RECORD);
        for i in 0..records {
            let mut record = format!("{i:08} {:016x} ", dice.roll(1 << 50)).into_bytes();
            record.extend_from_slice(&dice.text(RECORD - record.len()));
            database.extend_from_slice(&record);
        }
        fs::write(root.join("records.db"), database).expect("written");
        Self { root: root.to_owned(), dice, files: paths, renamed: 0 }
    }

    /// Writes which version this is, where everybody sees it.
    pub(crate) fn mark(&self, mark: &str) {
        fs::write(self.root.join("VERSION"), mark).expect("written");
    }

    /// Changes the directory.
    pub(crate) fn edit(&mut self, edit: &str) {
        let hundredth = (self.files.len() / 100).max(1);
        match edit {
            "one" => self.change(1, overwrite),
            "edit1" => self.change(hundredth, overwrite),
            "inserthead" => self.change(hundredth, |dice, bytes| {
                let head = dice.text(80);
                bytes.splice(0..0, head).for_each(drop);
            }),
            "append" => self.change(hundredth, |dice, bytes| bytes.extend_from_slice(&dice.text(4_000))),
            "rename" => {
                // A tenth of the directories.
                let mut dirs: Vec<_> = self.files.iter().filter_map(|path| Some(path.parent()?.to_owned())).collect();
                dirs.sort();
                dirs.dedup();
                let first = self.dice.roll(dirs.len());
                for i in 0..(dirs.len() / 10).max(1) {
                    let from = &dirs[(first + i) % dirs.len()];
                    self.renamed += 1;
                    let to = self.root.join(format!("moved{:05}", self.renamed));
                    fs::rename(from, &to).expect("renamed");
                    for path in &mut self.files {
                        if let Ok(rest) = path.strip_prefix(from) {
                            *path = to.join(rest);
                        }
                    }
                }
            }
            "dbswap" => {
                // One record of a hundred changes where it stands, and a few are put between.
                let path = self.root.join("records.db");
                let mut bytes = fs::read(&path).expect("it is there");
                let records = bytes.len() / RECORD;
                for _ in 0..records / 100 {
                    let at = self.dice.roll(records) * RECORD + 9;
                    let new = format!("{:016x}", self.dice.roll(1 << 50));
                    bytes[at..at + 16].copy_from_slice(new.as_bytes());
                }
                for _ in 0..records / 1_000 {
                    let at = self.dice.roll(records) * RECORD;
                    let record = self.dice.text(RECORD);
                    bytes.splice(at..at, record).for_each(drop);
                }
                fs::write(&path, bytes).expect("written");
            }
            other => unreachable!("{other} is no edit"),
        }
    }

    fn change(&mut self, count: usize, how: impl Fn(&mut Dice, &mut Vec<u8>)) {
        for _ in 0..count {
            let path = &self.files[self.dice.roll(self.files.len())];
            let mut bytes = fs::read(path).expect("it is there");
            how(&mut self.dice, &mut bytes);
            fs::write(path, bytes).expect("written");
        }
    }
}

fn overwrite(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let at = dice.roll(bytes.len());
    let new = dice.text(60);
    let end = (at + 40).min(bytes.len());
    bytes.splice(at..end, new).for_each(drop);
}
