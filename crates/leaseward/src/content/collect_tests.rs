//! Stories of content among three voters: collection needs a quorum, and takes nothing that a version may name meanwhile;
//! what few versions keep is enough to make the newest one of.

use std::net::{SocketAddr, TcpListener};

use leaseward_raft::{Blobs, Frames, Later, Replica, Settings, Start, Timing};
use leaseward_state::Command;
use leaseward_state::command::PublishSet;
use leaseward_state::config::delta::SharedBytes;
use leaseward_state::config::spec::SetSpec;
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
    pub(super) dir: TempDir,
}

impl Voters {
    async fn three() -> Self {
        Self::some(3).await
    }

    pub(super) async fn some(count: usize) -> Self {
        Self::serving(count, |_, content| Arc::new(content.local())).await
    }

    /// Starts some voters that answer questions for blobs each in its own way.
    async fn serving(count: usize, blobs: impl Fn(usize, &QuorumContent) -> Arc<dyn Blobs>) -> Self {
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
            replica.serve_blobs(blobs(i, &content));
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
        Self { replicas, contents, dir }
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

/// A voter that gives what nobody asked for.
struct Liar;

impl Blobs for Liar {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, Vec<Digest>> {
        Box::pin(async { digests.to_vec() })
    }

    fn get(&self, _: Digest) -> Later<'_, Option<Vec<u8>>> {
        Box::pin(async { None })
    }

    fn put(&self, _: Vec<(Digest, Vec<u8>)>) -> Later<'_, Result<(), (String, String)>> {
        Box::pin(async { Ok(()) })
    }

    fn frames<'a>(&'a self, _: &'a [Digest]) -> Later<'a, (Frames, Vec<Digest>)> {
        let plain = b"nobody asked for it";
        let frame = leaseward_sync::frame::pack(plain).expect("it is short");
        Box::pin(async { (vec![(leaseward_sync::digest_of(plain), frame.into())], Vec::new()) })
    }

    fn put_frames(&self, _: Frames) -> Later<'_, Result<(), (String, String)>> {
        Box::pin(async { Ok(()) })
    }

    fn delta<'a>(&'a self, _: &'a SetName, _: Digest, _: Digest) -> Later<'a, Option<SharedBytes>> {
        Box::pin(async { None })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_gives_what_nobody_asked_for_holds_up_no_voter() {
    let serving = |i: usize, content: &QuorumContent| -> Arc<dyn Blobs> {
        if i == 1 { Arc::new(Liar) } else { Arc::new(content.local()) }
    };
    let voters = Voters::serving(3, serving).await;
    let wanted = put(&voters.contents[2].store, "only the third one has it");
    let content = &voters.contents[0];
    // Either of the others is asked first, in turn.
    let left = timeout(PATIENCE, content.fetch(wanted.to_vec())).await.expect("it asks for ever").unwrap();
    assert_eq!(left, []);
    let nowhere = Digest([9; 32]);
    let left = timeout(PATIENCE, content.fetch(vec![nowhere])).await.expect("it asks for ever").unwrap();
    assert_eq!(left, [nowhere]);
    let other = leaseward_sync::digest_of(b"nobody asked for it");
    assert_eq!(content.lacking(&[other]).await, [other], "what nobody asked for is kept");
    for replica in &voters.replicas {
        replica.stop().await;
    }
}

/// Publishes a text as the next version of a set through the first voter. Returns whether it is a delta in its entry.
async fn publish(voters: &Voters, text: &str) -> bool {
    let (replica, content) = (&voters.replicas[0], &voters.contents[0]);
    let set = SetName::new("app").unwrap();
    let manifest = put(&content.store, text)[0];
    let state = replica.read().await.unwrap().state;
    let base = state.set(&set).and_then(|set| set.newest()).map(|newest| (newest.number, newest.manifest));
    let ready = content.ready(Some(base), manifest).await.unwrap();
    let is_delta = ready.delta.is_some();
    let set = PublishSet { set, parent: None, manifest, files: ready.files, bytes: ready.bytes, delta: ready.delta };
    let command = Command::Publish { sets: vec![set], author: "ann".into(), message: String::new() };
    replica.propose(command.into()).await.unwrap();
    is_delta
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_keeps_few_versions_never_builds_on_what_a_quorum_could_not_make() {
    let voters = Voters::three().await;
    let set = SetName::new("app").unwrap();
    let spec = Box::new(SetSpec { keep_versions: 2, ..SetSpec::default() });
    voters.replicas[0].propose(Command::PutSet { set: set.clone(), spec, if_version: None }.into()).await.unwrap();
    // Nobody makes anything of what is committed: the first is in the log, and the second on top of it.
    let mut deltas = Vec::new();
    for text in ["1", "2", "3", "4"] {
        deltas.push(publish(&voters, text).await);
    }
    // The third one makes the log forget the first: so it goes to a quorum, and the fourth can build on it.
    assert_eq!(deltas, [true, true, false, true]);
    let third = put(&voters.contents[0].store, "3");
    let holders = voters.contents.iter().filter(|content| has(&content.store, third) == [true; 2]).count();
    assert!(holders >= 2, "{holders} of three voters hold what the newest version is made of");
    // Once a quorum says that it has made and synced everything, deltas go on, one upon another.
    let catching: Vec<_> =
        voters.contents[..2].iter().map(|content| tokio::spawn(content.clone().catch_up())).collect();
    for text in ["5", "6"] {
        let newest = voters.replicas[0].read().await.unwrap().state.set(&set).unwrap().newest().unwrap().revision;
        let held = async {
            while voters.replicas[..2].iter().any(|replica| replica.status().content_complete < newest) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, held).await.expect("two of three hold everything");
        assert!(publish(&voters, text).await, "v{text}");
    }
    catching.iter().for_each(tokio::task::JoinHandle::abort);
    for replica in &voters.replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_is_to_keep_fewer_versions_has_a_quorum_hold_what_stays_first() {
    let voters = Voters::three().await;
    let (set, content) = (SetName::new("app").unwrap(), &voters.contents[0]);
    for text in ["1", "2", "3", "4"] {
        assert!(publish(&voters, text).await, "v{text} is a delta upon the one before");
    }
    let holders = || {
        let newest = put(&content.store, "4");
        voters.contents.iter().filter(|content| has(&content.store, newest) == [true; 2]).count()
    };
    // Nobody makes anything of what is committed, and all of it follows from the first one, which the log has whole.
    assert_eq!(content.may_keep(&set, 5).await.unwrap(), 4);
    assert_eq!(holders(), 1, "with so many versions that one stays");
    assert_eq!(content.may_keep(&set, 2).await.unwrap(), 4);
    assert!(holders() >= 2, "deltas upon nothing would stay");
    for replica in &voters.replicas {
        replica.stop().await;
    }
}
