//! Everything that reads bytes that somebody else wrote, each as a function of bytes: frames, log entries, snapshots,
//! manifests, deltas, blobs, backups, HTTP bodies, specifications.
//!
//! Must stay true: a target panics only if the product is wrong. What is read and written again must be read as the same
//! thing; what is refused must be refused with an error. Left out on purpose: the log's own files, which need a disk
//! (`leaseward-raft/tests/storage`).

use std::fmt::Debug;
use std::path::Path;

use leaseward_http::model;
use leaseward_http::model::{ServerFile, SetPolicy};
use leaseward_raft::codec;
use leaseward_raft::net::frame;
use leaseward_raft::net::wire::{Answer, Ask, Hello, Purpose, Welcome};
use leaseward_raft::snapshot::Snapshots;
use leaseward_raft::stored::Entry;
use leaseward_state::config::{Chunk, Digest, Manifest};
use leaseward_state::record::{Record, RecordKey};
use leaseward_sync::{delta, manifest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A target: its name, what it does with bytes, and bytes to begin with.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called, and its corpus.
    pub name: &'static str,
    /// Reads the bytes; returns whether they are anything.
    pub run: fn(&[u8]) -> bool,
    /// Bytes that are read as something, from which others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: frames, seeds: frame_seeds },
    Target { name: "entries", run: entries, seeds: entry_seeds },
    Target { name: "records", run: records, seeds: record_seeds },
    Target { name: "snapshots", run: snapshots, seeds: snapshot_seeds },
    Target { name: "manifests", run: manifests, seeds: manifest_seeds },
    Target { name: "deltas", run: deltas, seeds: delta_seeds },
    Target { name: "blobs", run: blobs, seeds: blob_seeds },
    Target { name: "backups", run: backups, seeds: backup_seeds },
    Target { name: "bodies", run: bodies, seeds: body_seeds },
    Target { name: "specifications", run: specifications, seeds: specification_seeds },
];

/// Runs a target by its name.
///
/// # Panics
/// If there is none, or if the product is wrong.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("it is one of them");
    let _ = (target.run)(bytes);
}

/// What is read is written and read again.
fn stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: &'static str, bytes: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T>(kind, bytes) else { return false };
    // Other bytes may mean the same, as maps are read in any order; what is written of it is what is read.
    assert_eq!(codec::decode::<T>(kind, &codec::encode(&value)).as_ref(), Ok(&value));
    true
}

fn frames(bytes: &[u8]) -> bool {
    let asked = stable::<(u64, Ask)>("message", bytes);
    let answered = stable::<(u64, Answer)>("message", bytes);
    let greeted = stable::<Hello>("hello", bytes) | stable::<Welcome>("hello", bytes);
    // As it comes from a stream, envelope and all.
    let mut framed = false;
    for purpose in [Purpose::Control, Purpose::Bulk, Purpose::Client] {
        let kind = frame::message(purpose);
        if let Ok(payload) = codec::open(kind, bytes) {
            assert_eq!(codec::seal(kind, payload), bytes, "two envelopes of one payload");
            framed = true;
        }
    }
    asked || answered || greeted || framed
}

fn entries(bytes: &[u8]) -> bool {
    stable::<Entry>("entry", bytes)
}

fn records(bytes: &[u8]) -> bool {
    stable::<RecordKey>("record key", bytes) | stable::<Record>("record", bytes)
}

fn snapshots(bytes: &[u8]) -> bool {
    in_a_file(bytes, |dir, file| {
        let snapshots = Snapshots::open(&dir.join("snapshots"), CLUSTER).expect("a directory");
        let Ok((head, state)) = snapshots.read(file) else { return false };
        assert_eq!(state.records().count() as u64, head.records, "a snapshot with more or less than it says");
        true
    })
}

fn backups(bytes: &[u8]) -> bool {
    // Changes of a file that is compressed and bears its hash seldom come past these.
    let mut packed = zstd::encode_all(bytes, 1).expect("memory compresses");
    packed.extend(leaseward_sync::digest_of(&packed).0);
    let is_one = |bytes: &[u8]| in_a_file(bytes, |_, file| leaseward::backup::verify(file).is_ok());
    is_one(bytes) | is_one(&packed)
}

fn in_a_file(bytes: &[u8], look: impl FnOnce(&Path, &Path) -> bool) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, bytes).expect("written");
    look(dir.path(), &file)
}

fn manifests(bytes: &[u8]) -> bool {
    let Ok(tree) = manifest::decode(bytes) else { return false };
    assert!(manifest::check(&tree).is_ok(), "what is read may be in a set");
    assert_eq!(manifest::encode(&tree), bytes, "two texts of one tree");
    true
}

fn deltas(bytes: &[u8]) -> bool {
    let Ok(delta) = delta::Delta::open(bytes) else { return false };
    let mut nothing = |_: Chunk| Err(leaseward_sync::Error::BadDelta { why: "nothing to build upon".to_owned() });
    let Ok(made) = delta.decode(&Manifest::default(), &mut nothing) else { return false };
    assert_eq!(leaseward_sync::digest_of(&made.encoded), delta.next(), "it makes what it says");
    true
}

fn blobs(bytes: &[u8]) -> bool {
    let origin = Path::new("fuzzed");
    let _ = leaseward_sync::frame::check(Digest([0; 32]), bytes, origin);
    let Some(frames) = leaseward_sync::frame::split(bytes) else { return false };
    let mut found = false;
    for (digest, frame) in &frames {
        if let Ok(plain) = leaseward_sync::frame::unpack(*digest, frame, origin) {
            assert_eq!(leaseward_sync::digest_of(&plain), *digest, "it bears its name");
            found = true;
        }
    }
    found
}

fn bodies(bytes: &[u8]) -> bool {
    fn is_body<T: DeserializeOwned>(bytes: &[u8]) -> bool {
        serde_json::from_slice::<T>(bytes).is_ok()
    }
    let mut is_one = is_body::<model::AcquireLease>(bytes)
        | is_body::<model::Transaction>(bytes)
        | is_body::<model::Publish>(bytes)
        | is_body::<model::ChangeFiles>(bytes)
        | is_body::<model::Cordon>(bytes)
        | is_body::<model::BeginPause>(bytes)
        | is_body::<model::Policy>(bytes);
    if let Ok(file) = serde_json::from_slice::<ServerFile>(bytes) {
        is_one |= file.to_spec().is_ok();
    }
    if let Ok(policy) = serde_json::from_slice::<SetPolicy>(bytes) {
        is_one |= policy.to_toml().is_ok();
    }
    is_one
}

fn specifications(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let server = ServerFile::from_toml(text);
    if let Ok(file) = &server {
        let written = file.to_toml().expect("what was read can be written");
        let again = ServerFile::from_toml(&written).expect("what was written can be read");
        assert_eq!(again.to_spec().ok(), file.to_spec().ok(), "written and read again it means the same");
    }
    let policy = SetPolicy::from_toml(text);
    if let Ok(policy) = &policy {
        let written = policy.to_toml().expect("what was read can be written");
        assert_eq!(SetPolicy::from_toml(&written).as_ref().ok(), Some(policy), "written and read again it is the same");
    }
    server.is_ok() || policy.is_ok()
}

/// Of the golden snapshot.
const CLUSTER: u128 = 0x2222;

/// Returns the bytes of golden files: a name and hexadecimal digits on each line.
fn golden(text: &str) -> Vec<Vec<u8>> {
    let hex = |digits: &str| {
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
        pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
    };
    text.lines().filter_map(|line| line.split_once(' ')).map(|(_, digits)| hex(digits)).collect()
}

macro_rules! golden {
    ($name:literal) => {
        golden(include_str!(concat!("../../../crates/leaseward-raft/tests/golden/", $name, ".txt")))
    };
}

fn frame_seeds() -> Vec<Vec<u8>> {
    // Who waits for the answer stands before it.
    let waited_for = |bytes: Vec<u8>| [7_u64.to_le_bytes().to_vec(), bytes].concat();
    let messages = golden!("ask").into_iter().chain(golden!("answer")).map(waited_for);
    messages.chain(golden!("hello")).chain(golden!("welcome")).chain(golden!("frame")).collect()
}

fn entry_seeds() -> Vec<Vec<u8>> {
    golden!("entry")
}

fn record_seeds() -> Vec<Vec<u8>> {
    [golden!("record"), golden!("record_key")].concat()
}

fn snapshot_seeds() -> Vec<Vec<u8>> {
    golden!("snapshot")
}

/// Made by `leaseward backup create` of a cluster with one config set. After a change of the form, it is made anew.
fn backup_seeds() -> Vec<Vec<u8>> {
    let whole = include_bytes!("../seeds/small.lwb");
    let (packed, _) = whole.split_at(whole.len() - size_of::<Digest>());
    vec![whole.to_vec(), zstd::decode_all(packed).expect("a backup is compressed")]
}

fn tree() -> Manifest {
    codec::decode("manifest", &golden!("manifest")[0]).expect("golden")
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    vec![manifest::encode(&Manifest::default()), manifest::encode(&tree())]
}

fn delta_seeds() -> Vec<Vec<u8>> {
    let empty = Manifest::default();
    let mut zeroes = |chunk: Chunk| Ok(vec![0; chunk.size as usize]);
    let make = |next: &Manifest| delta::encode(&empty, next, &mut zeroes, 1 << 20);
    [&empty, &tree()].map(make).into_iter().filter_map(|made| made.ok().flatten()).collect()
}

fn blob_seeds() -> Vec<Vec<u8>> {
    let plain = [&b"a"[..], &[7; 3_000], b"user = \"pay\"\n"];
    let packed = plain.map(|bytes| (leaseward_sync::digest_of(bytes), leaseward_sync::frame::pack(bytes)));
    let frames: Vec<_> = packed.into_iter().map(|(digest, frame)| (digest, frame.expect("packed"))).collect();
    vec![leaseward_sync::frame::join(&frames), leaseward_sync::frame::join(&frames[..1]), frames[0].1.clone()]
}

fn body_seeds() -> Vec<Vec<u8>> {
    let document = serde_json::to_vec(&leaseward_http::document()).unwrap_or_default();
    let server = ServerFile::from_toml(SPECIFICATIONS[0]).ok().and_then(|file| serde_json::to_vec(&file).ok());
    let texts = [
        r#"{"holder":"me","ttl":"3s","wait":"10s","priority":5,"meta":{"a":"b"}}"#,
        r#"{"session":"7","holder":"me"}"#,
        r#"{"if":[{"lease_free":"a"}],"do":[{"release":{"lease":"a","token":"7"}}]}"#,
        r#"{"sets":[{"set":"app","manifest":"00","parent":1}],"author":"me","message":"why"}"#,
        r#"{"reason":"disk","for":"10m"}"#,
        r#"{"policy":"rolling","max_unavailable":1,"check":["true"],"ignore":["*.log"]}"#,
    ];
    let texts = texts.iter().map(|text| text.as_bytes().to_vec());
    texts.chain(server).chain(document.get(..2_000).map(<[u8]>::to_vec)).collect()
}

const SPECIFICATIONS: [&str; 4] = [
    include_str!("../../../config/examples/hello.toml"),
    include_str!("../../../config/examples/database.toml"),
    "command = [\"/bin/true\"]\nvips = [{ ip = \"10.0.0.1\", announce = \"after-ready\" }]\n[restart]\nbackoff = [\"0s\", \"1m\"]\n",
    "policy = \"canary\"\ncanary = 1\ncheck = [\"nginx\", \"-t\"]\nreload = [\"true\"]\nkeep_versions = 5\n",
];

fn specification_seeds() -> Vec<Vec<u8>> {
    SPECIFICATIONS.iter().map(|text| text.as_bytes().to_vec()).collect()
}
