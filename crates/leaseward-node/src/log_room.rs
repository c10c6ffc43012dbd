//! Keeps the logs of servers and hooks from filling the disk while they are written.
//!
//! Must stay true: whoever writes notices nothing and loses no line it writes now; the oldest lines go. A log keeps its
//! length, and gives its blocks back: whoever reads it from its end finds what it looks for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use tokio::time::sleep;
use tracing::warn;

use crate::limits::{LOG_BYTES_MAX, LOG_LOOK_EACH};

/// Blocks are given back in multiples of this.
const BLOCK: u64 = 4096;

/// Looks at every log of a directory again and again, until it is dropped.
pub(crate) async fn keep(dir: PathBuf) {
    loop {
        sleep(LOG_LOOK_EACH).await;
        let dir = dir.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || trim_all(&dir)).await {
            warn!(%error, "a log that grows too long cannot be cut");
        }
    }
}

fn trim_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            trim(&path)?;
        }
    }
    Ok(())
}

fn trim(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => meta,
        Ok(_) => return Ok(()),
        // Set aside just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if meta.blocks() * 512 <= LOG_BYTES_MAX {
        return Ok(());
    }
    let log = File::options().write(true).open(path)?;
    let keep_from = (meta.len().saturating_sub(LOG_BYTES_MAX / 2)) / BLOCK * BLOCK;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(&log, punch, 0, keep_from) {
        Ok(()) => Ok(()),
        // No such thing on this file system: all of it goes. Whoever writes appends.
        Err(rustix::io::Errno::OPNOTSUPP) => log.set_len(0),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn the_oldest_lines_go_and_the_newest_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (long, short) = (dir.path().join("long.log"), dir.path().join("short.log"));
        let mut log = File::create(&long).unwrap();
        let line = [b'x'; 1 << 20];
        for _ in 0..(LOG_BYTES_MAX >> 20) + 4 {
            log.write_all(&line).unwrap();
        }
        log.write_all(b"the last line\n").unwrap();
        fs::write(&short, "short\n").unwrap();
        let length = log.metadata().unwrap().len();
        trim_all(dir.path()).unwrap();
        let meta = fs::metadata(&long).unwrap();
        assert!(meta.blocks() * 512 <= LOG_BYTES_MAX / 2 + (2 << 20), "{} blocks", meta.blocks());
        assert_eq!(fs::read(&short).unwrap(), b"short\n");
        if meta.len() == length {
            log.seek(SeekFrom::End(0)).unwrap();
            log.write_all(b"and on\n").unwrap();
            let text = fs::read(&long).unwrap();
            assert!(text.ends_with(b"x\x74he last line\nand on\n".as_slice()));
        }
    }
}
