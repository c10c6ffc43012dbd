//! A tree that is published again and again, each time under a key of its own until it is known to be done; and readers
//! who open it on each member's disk, as a program would.
//!
//! Must stay true: every file of a version says which version's it is, on its first line; a reader opens the tree once and
//! every file from there.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use leaseward_sync::manifest::encode;
use leaseward_sync::{digest_of, scan};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use rustix::fs::{Mode, OFlags, openat};
use serde_json::json;
use tokio::time::sleep;

use super::Scene;
use super::clients::Answer;
use crate::history::{History, Record, op};
use crate::hosts::Hosts;
use crate::stamps::boot_ns;

/// The set.
pub(super) const SET: &str = "app";

/// Its files.
const FILES: [&str; 6] = ["a", "b", "dir/c", "dir/d", "e", "f"];

/// So often a publish is tried under one key.
const TRIES: usize = 40;

/// Publishes until the run is over.
pub(super) async fn publish(scene: Scene, host: &'static str, first: usize) {
    let client = scene.next_client();
    let mut random = SmallRng::seed_from_u64(scene.seed ^ (u64::from(client) << 32));
    let mut api = scene.api(first);
    let mut count = 0;
    while !scene.is_over() {
        count += 1;
        let value = format!("p{client}-{count}");
        let dir = tree(&value, &mut random);
        let scanned = scan(dir.path()).expect("our own files");
        let manifest = encode(scanned.manifest());
        let name = digest_of(&manifest).to_string();
        let record = Record::begun(op::ONCE, client, host, SET, boot_ns());
        let record = record.asking(json!({ "sets": [{ "set": SET }], "value": value }));
        let body = json!({ "manifest": name, "author": host, "message": value });
        let path = format!("/v1/configs/{SET}/publish");
        let mut ended = None;
        let mut maybe_done = false;
        for _ in 0..TRIES {
            match api.call(Method::POST, &path, Some(&body), Some(&value)).await {
                Answer::Ok { body, revision } => {
                    let done = json!({ "versions": [body["version"]] });
                    ended = Some(record.clone().done(boot_ns(), done).at(revision));
                    break;
                }
                Answer::Refused { code, .. } if code == "LW0801" => {
                    api.put_blob(&name, manifest.clone()).await;
                    for digest in scanned.digests() {
                        let bytes = scanned.read(digest).expect("our own files");
                        api.put_blob(&digest.to_string(), bytes).await;
                    }
                }
                Answer::Refused { .. } => {}
                Answer::Unknown { .. } => maybe_done = true,
            }
            if scene.is_over() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        // Given up: for certain nothing came of it only if no try was ever in doubt.
        let given_up = if maybe_done { record } else { record.failed(boot_ns(), json!({ "given_up": true })) };
        scene.history.add(ended.unwrap_or(given_up));
        sleep(Duration::from_millis(random.gen_range(300..1_500))).await;
    }
}

/// Writes a tree whose files all say that they are of this version.
fn tree(value: &str, random: &mut SmallRng) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("dir")).expect("a directory");
    for file in FILES {
        let padding: String =
            (0..random.gen_range(0..8_000)).map(|_| char::from(random.gen_range(b'a'..=b'z'))).collect();
        fs::write(dir.path().join(file), format!("{value}\n{padding}\n")).expect("written");
    }
    dir
}

/// Reads the members' disks until it is stopped.
pub(super) struct Readers {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to read.
pub(super) fn readers(scene: &Scene, hosts: &Hosts) -> Readers {
    let is_over = Arc::<AtomicBool>::default();
    let (over, history) = (Arc::clone(&is_over), scene.history.clone());
    let trees: Vec<(&'static str, PathBuf)> =
        hosts.names().iter().map(|name| (*name, hosts.dir().join(name).join("sets").join(SET))).collect();
    let thread = std::thread::spawn(move || {
        let mut last: Vec<Option<Record>> = vec![None; trees.len()];
        while !over.load(Ordering::Relaxed) {
            for ((member, tree), last) in trees.iter().zip(&mut last) {
                look(member, tree, last, &history);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Whatever was seen last was seen until now.
        for ((member, tree), last) in trees.iter().zip(&mut last) {
            *last = None;
            look(member, tree, last, &history);
        }
    });
    Readers { is_over, thread: Some(thread) }
}

/// Reads a member's tree, and writes down what differs from what was seen before.
fn look(member: &str, tree: &Path, last: &mut Option<Record>, history: &History) {
    let at = boot_ns();
    let Some(values) = read(tree) else { return };
    let seen = Record::begun(op::DISK, 0, member, SET, at).done(boot_ns(), json!({ "values": values }));
    if last.as_ref().is_none_or(|last| last.output != seen.output) {
        history.add(seen.clone());
        *last = Some(seen);
    }
}

/// Returns what the files say that they belong to, each value once; `None` if there is no tree yet.
fn read(tree: &Path) -> Option<Vec<String>> {
    let dir = File::open(tree).ok()?;
    let mut values: Vec<String> = Vec::new();
    for (i, file) in FILES.into_iter().enumerate() {
        let opened = openat(dir.as_fd(), file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut text = String::new();
        let value = match opened.map(File::from) {
            Ok(mut file) => {
                file.read_to_string(&mut text).ok()?;
                text.lines().next().unwrap_or("nothing").to_owned()
            }
            // An empty tree is there before the first version.
            Err(_) if i == 0 => return None,
            Err(error) => format!("no file {file}: {error}"),
        };
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Some(values)
}

impl Readers {
    /// Reads once more, and then no more.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.end();
    }
}
