//! What the disk under the benches can do at best: a 4 KiB write into a zero-filled file, made durable.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::figures::micros;

/// Measures `fdatasync`.
pub(crate) fn fdatasync() -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file =
        File::options().create(true).truncate(true).read(true).write(true).open(dir.path().join("f")).expect("a file");
    file.write_all(&vec![0; 4 << 20]).expect("zeros");
    file.sync_all().expect("durable");
    let block = [1; 4096];
    let mut took = Vec::new();
    for i in 0..500_u64 {
        let began = Instant::now();
        file.write_all_at(&block, i * 4096).expect("written");
        file.sync_data().expect("durable");
        took.push(began.elapsed());
    }
    json!({ "fdatasync_us": micros(took) })
}
