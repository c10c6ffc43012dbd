//! A backup holds what was put into it, or is refused: cut off, changed, or with something left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use leaseward_state::command::PublishSet;
use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode};
use leaseward_state::{ClusterMillis, Command, Entry, Generation, Revision, SetName, State, Term, UnixMillis};
use leaseward_sync::{digest_of, frame, manifest};
use tempfile::TempDir;

use super::format::{Head, Writer};
use super::{BackupError, verify};

fn file(path: &str, text: &[u8]) -> ManifestEntry {
    let chunk = Chunk { digest: digest_of(text), size: text.len() as u32 };
    let node =
        ManifestNode::File { mode: 0o644, size: text.len() as u64, digest: digest_of(text), chunks: vec![chunk] };
    ManifestEntry { path: path.into(), node }
}

struct Sample {
    state: State,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

fn sample() -> Sample {
    let tree = Manifest { entries: vec![file("a", b"one"), file("b", &[7; 70_000])], ..Manifest::default() };
    let encoded = manifest::encode(&tree);
    let mut state = State::default();
    let publish = PublishSet {
        set: SetName::new("app").unwrap(),
        parent: None,
        manifest: digest_of(&encoded),
        files: 2,
        bytes: 70_003,
        delta: None,
    };
    let command = Command::Publish { sets: vec![publish], author: "ann".into(), message: "m".into() };
    state.apply(&Entry {
        revision: Revision(1),
        term: Term(1),
        at: UnixMillis(1),
        elapsed: ClusterMillis(0),
        request: command.into(),
    });
    let blobs = [encoded, b"one".to_vec(), vec![7; 70_000]].map(|bytes| (digest_of(&bytes), bytes));
    Sample { state, blobs: blobs.into() }
}

impl Sample {
    fn written(&self, head: impl FnOnce(&mut Head)) -> Vec<u8> {
        let mut whole = Head {
            version: "0".into(),
            cluster: 5,
            generation: Generation(0),
            revision: self.state.revision(),
            feature_level: self.state.feature_level(),
            at: UnixMillis(1),
        };
        head(&mut whole);
        let mut writer = Writer::new(Vec::new(), &whole).unwrap();
        self.state.records().for_each(|record| writer.record(&record).unwrap());
        for (digest, bytes) in &self.blobs {
            writer.blob(*digest, &frame::pack(bytes).unwrap()).unwrap();
        }
        writer.finish().unwrap()
    }
}

fn checked(bytes: &[u8]) -> Result<super::Contents, BackupError> {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("backup");
    fs::write(&path, bytes).unwrap();
    verify(&path)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = checked(bytes).expect_err("it was taken for whole");
    assert_eq!(error.code(), "LW0615", "{error}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn what_was_written_is_found_whole() {
    let contents = checked(&sample().written(|_| {})).unwrap();
    assert_eq!((contents.sets, contents.versions, contents.blobs), (1, 1, 3));
    assert_eq!(contents.head.revision, Revision(1));
}

#[test]
fn a_backup_that_is_cut_off_anywhere_or_has_any_bit_changed_is_refused() {
    let bytes = sample().written(|_| {});
    for cut in 0..bytes.len() {
        assert!(checked(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
    }
    for at in 0..bytes.len() {
        for flip in [1, 0x10, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let error = checked(&changed).expect_err("it was taken for whole");
            assert!(matches!(error.code(), "LW0615" | "LW0601"), "byte {at}: {error}");
        }
    }
    refused(&bytes[..bytes.len() - 5], "");
}

#[test]
fn what_lacks_something_is_refused_though_its_hash_is_right() {
    let mut lacks_chunk = sample();
    lacks_chunk.blobs.remove(&digest_of(b"one"));
    refused(&lacks_chunk.written(|_| {}), "1 of 3 blobs that its versions name are missing");

    let mut lacks_manifest = sample();
    lacks_manifest.blobs.retain(|_, bytes| !bytes.starts_with(b"leaseward manifest"));
    refused(&lacks_manifest.written(|_| {}), "missing");

    let mut wrong_name = sample();
    wrong_name.blobs.insert(digest_of(b"one"), b"two".to_vec());
    refused(&wrong_name.written(|_| {}), "has another name");

    refused(&sample().written(|head| head.revision = Revision(2)), "contradict");
    refused(&sample().written(|head| head.generation = Generation(2)), "contradict");
    refused(b"something else", "");
}

/// A stored form: the head of a backup, byte for byte, behind its envelope.
#[test]
fn the_head_is_stored_as_it_was() {
    let bytes = sample().written(|_| {});
    let plain = zstd::stream::read::Decoder::new(&bytes[..bytes.len() - 32]).unwrap();
    let mut head = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(plain, 67), &mut head).unwrap();
    let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    let version = "0100000000000000" /* its length */;
    assert_eq!(
        hex,
        format!(
            "4c5000010000002f41c10573{version}30\
             05000000000000000000000000000000\
             0000010000000000000000000000\
             0100000000000000\
             4c5100010000002e"
        ),
        "envelope; program's version; cluster; generation, revision and feature level; time; the next envelope"
    );
}
