//! Stories of collection among three voters: it needs a quorum, and takes nothing that a version may name meanwhile.

use std::net::{SocketAddr, TcpListener};

use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::Command;
use leaseward_state::command::PublishSet;
use leaseward_state::propose::Propose as _;
use tempfile::TempDir;
use tokio::time::timeout;

use super::tests::{has, put};
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// Three voters that do nothing with their content by themselves.
pub(super) struct Voters {
    pub(super) replicas: Vec<Replica>,
    pub(super) contents: Vec<QuorumContent>,
    _dir: TempDir,
}

impl Voters {
    async fn three() -> Self {
        Self::some(3).await
    }

    pub(super) async fn some(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        drop(listeners);
        let (mut replicas, mut contents) = (Vec::new(), Vec::new());
        for (i, peer) in peers.iter().enumerate() {
            let data = dir.path().join(format!("n{i}"));
            let settings = Settings {
                timing: Timing::fast(),
                segment_bytes: 256 << 10,
                free_bytes_min: 0,
                ..Settings::new(format!("n{i}"), data.clone(), *peer)
            };
            let start = match i {
                0 => Start::Bootstrap,
                _ => Start::Join { addresses: vec![peers[0].to_string()], replace: false },
            };
            let replica = Replica::start(settings, start).await.unwrap();
            let store = Arc::new(BlobStore::open(&data.join("blobs")).unwrap());
            let content = QuorumContent::new(replica.clone(), store);
            replica.serve_blobs(Arc::new(content.local()));
            replicas.push(replica);
            contents.push(content);
        }
        let voting = |replica: &Replica| replica.status().membership.voters.iter().flatten().count() == count;
        let all = async {
            while !replicas.iter().all(voting) {
                sleep(Duration::from_millis(10)).await;
            }
            for replica in &replicas {
                replica.ready().await;
            }
        };
        timeout(PATIENCE, all).await.expect("all of them vote");
        Self { replicas, contents, _dir: dir }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_removed_without_a_quorum() {
    let voters = Voters::three().await;
    let content = &voters.contents[0];
    let first = put(&content.store, "nobody names it");
    assert_eq!(content.collect().await.unwrap(), 2, "with a quorum it goes");
    assert_eq!(has(&content.store, first), [false; 2]);

    let second = put(&content.store, "a version that this voter has not heard of may name it");
    for replica in &voters.replicas[1..] {
        replica.stop().await;
    }
    assert!(content.collect().await.is_err(), "it believed in what it knew");
    assert_eq!(has(&content.store, second), [true; 2]);
    voters.replicas[0].stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_version_names_that_is_committed_meanwhile_stays_on_a_quorum() {
    let voters = Voters::three().await;
    let all = |text: &str| voters.contents.iter().fold([Digest([0; 32]); 2], |_, content| put(&content.store, text));
    let (published, left) = (all("left over, and named again"), all("left over"));
    // Each of them has read the state, and sweeps only after the version was committed.
    let before = BTreeSet::new();
    let ready = voters.contents[0].ready(None, published[0]).await.unwrap();
    let set = SetName::new("app").unwrap();
    let (files, bytes) = (ready.files, ready.bytes);
    let set = PublishSet { set, parent: None, manifest: published[0], files, bytes, delta: ready.delta };
    let command = Command::Publish { sets: vec![set], author: "ann".into(), message: String::new() };
    voters.replicas[0].propose(command.into()).await.unwrap();
    let mut holders = 0;
    for content in &voters.contents {
        sweep(&content.store, &before, &content.promises).unwrap();
        holders += usize::from(has(&content.store, published) == [true; 2]);
        assert_eq!(has(&content.store, left), [false; 2]);
    }
    assert!(holders >= 2, "{holders} of three voters have what a kept version names");
    for replica in &voters.replicas {
        replica.stop().await;
    }
}
