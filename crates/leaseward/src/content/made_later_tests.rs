//! Versions whose deltas are in the log, and whose content a voter has yet to make.

use leaseward_raft::Blobs as _;
use leaseward_state::command::PublishSet;
use leaseward_state::config::spec::SetSpec;
use leaseward_state::propose::Propose as _;
use leaseward_state::{Command, Revision};
use tokio::time::timeout;

use super::collect_tests::Voters;
use super::*;

/// One voter with one set.
struct World {
    voters: Voters,
    head: Option<(u64, Digest)>,
}

impl World {
    async fn new() -> Self {
        Self { voters: Voters::some(1).await, head: None }
    }

    fn content(&self) -> &QuorumContent {
        &self.voters.contents[0]
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.content().replica.published().borrow().state)
    }

    /// Returns what `seen` says of the versions up to this number.
    fn seen(&self, most: u64) -> Seen {
        let state = self.state();
        let versions = state.set(&set()).unwrap().versions.values();
        versions.filter(|v| v.number <= most).map(|v| (set(), v.number, v.manifest)).collect()
    }

    /// Publishes two files, as a delta upon the newest version or whole. Returns the names of the manifest and of both.
    async fn publish(&mut self, files: [&str; 2], is_whole: bool) -> [Digest; 3] {
        let temp = tempfile::tempdir().unwrap();
        for (name, text) in ["a", "b"].iter().zip(files) {
            std::fs::write(temp.path().join(name), text).unwrap();
        }
        let scanned = leaseward_sync::scan(temp.path()).unwrap();
        let encoded = manifest::encode(scanned.manifest());
        let tree = leaseward_sync::digest_of(&encoded);
        let [a, b] = files.map(|text| leaseward_sync::digest_of(text.as_bytes()));
        let blobs = [(tree, encoded), (a, files[0].into()), (b, files[1].into())];
        self.content().store.put_many(&blobs).unwrap();
        let ready = self.content().ready((!is_whole).then_some(self.head), tree).await.unwrap();
        assert_eq!(ready.delta.is_none(), is_whole);
        let (files, bytes) = (ready.files, ready.bytes);
        let publish = PublishSet { set: set(), parent: None, manifest: tree, files, bytes, delta: ready.delta };
        let command = Command::Publish { sets: vec![publish], author: "ann".into(), message: String::new() };
        self.voters.replicas[0].propose(command.into()).await.unwrap();
        let number = self.head.map_or(1, |(head, _)| head + 1);
        let mut published = self.content().replica.published();
        let here = published.wait_for(|published| published.state.set(&set()).is_some_and(|set| set.head == number));
        timeout(Duration::from_secs(30), here).await.expect("it is applied").unwrap();
        self.head = Some((number, tree));
        // It was put there above: a set that keeps few versions is built upon.
        self.content().replica.has_content_of(self.state().revision());
        [tree, a, b]
    }

    fn forget(&self, digests: &[Digest]) {
        digests.iter().for_each(|digest| self.content().store.remove(*digest).unwrap());
    }

    /// Returns whether the voter would wait now, if it has the versions up to this number.
    async fn waits(&self, most: u64) -> bool {
        let (mut published, seen) = (self.content().replica.published(), self.seen(most));
        timeout(Duration::ZERO, self.content().let_members_go_first(&mut published, &seen)).await.is_err()
    }

    async fn stop(self) {
        self.voters.replicas[0].stop().await;
    }
}

fn set() -> SetName {
    SetName::new("app").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_upon_what_is_not_complete_here_makes_nothing_complete() {
    let mut world = World::new().await;
    let [one, shared, first] = world.publish(["shared", "first"], true).await;
    let two = world.publish(["shared", "second"], false).await;
    let three = world.publish(["shared", "third"], false).await;
    let state = world.state();
    let (content, all) = (world.content(), world.seen(3));
    // This voter was away: it has the first version but for one blob, and of the others what the log says.
    world.forget(&[two[0], two[2], three[0], three[2], shared]);
    let mut seen = Seen::new();
    assert!(!content.complete(&state, &mut seen).await);
    assert_eq!(seen, Seen::new(), "what builds upon it lacks the same blob");
    assert!(content.store.get(three[2]).is_ok(), "though what is new was made");
    content.store.put_many(&[(shared, b"shared".to_vec())]).unwrap();
    assert!(content.complete(&state, &mut seen).await);
    assert_eq!(seen, all);

    // What is known but was lost is made again: to have read a manifest is not to have it.
    world.forget(&[three[0], three[2]]);
    seen.retain(|(_, number, _)| *number < 3);
    assert!(content.complete(&state, &mut seen).await);
    assert!([three[0], three[2], first].iter().all(|digest| content.store.get(*digest).is_ok()));
    content.manifest(one).await.unwrap();
    world.forget(&[one]);
    assert!(!content.complete(&state, &mut Seen::new()).await, "nobody can make this one");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_lost_is_made_again_though_it_was_complete() {
    let mut world = World::new().await;
    let first = world.publish(["first", "shared"], false).await;
    let (content, until) = (world.content().clone(), Duration::from_secs(30));
    content.replica.has_content_of(Revision(0));
    let following = tokio::spawn(content.clone().catch_up());
    let complete = async |least: Revision| {
        while content.replica.status().content_complete < least {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(until, complete(world.state().revision())).await.expect("it is complete");
    let blobs = world.voters.dir.path().join("n0/blobs");
    std::fs::read_dir(&blobs).unwrap().for_each(|pack| std::fs::remove_file(pack.unwrap().path()).unwrap());
    // One that was read last may still be open; then nothing is lost yet.
    let is_lost = || first.iter().any(|digest| content.store.get(*digest).is_err());
    content.store.put_many(&[(leaseward_sync::digest_of(b"other"), b"other")]).unwrap();
    content.store.get(leaseward_sync::digest_of(b"other")).unwrap();
    assert!(is_lost() && content.store.losses() > 0);
    let spec = Box::new(SetSpec { keep_versions: 6, ..SetSpec::default() });
    world.voters.replicas[0].propose(Command::PutSet { set: set(), spec, if_version: None }.into()).await.unwrap();
    timeout(until, complete(world.state().revision())).await.expect("it is complete again");
    assert_eq!(content.store.missing(&first), []);
    following.abort();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_can_be_made_of_what_is_here_waits_and_never_so_much_that_it_is_forgotten() {
    let mut world = World::new().await;
    world.publish(["0", "shared"], true).await;
    assert!(!world.waits(0).await, "others must give it");
    assert!(!world.waits(1).await, "nothing is new");
    let spec = Box::new(SetSpec { keep_versions: 6, ..SetSpec::default() });
    let command = Command::PutSet { set: set(), spec, if_version: None };
    world.voters.replicas[0].propose(command.into()).await.unwrap();
    let most = 3;
    for number in 2..=most + 2 {
        world.publish([&number.to_string(), "shared"], false).await;
        assert_eq!(world.waits(1).await, number - 1 <= most, "v{number}");
        assert!(!world.waits(0).await && !world.waits(number).await);
    }
    // A version whose base was forgotten before it was made is not one that can wait.
    let far = most * 2 + 4;
    for number in most + 3..=far {
        world.publish([&number.to_string(), "shared"], false).await;
    }
    assert!(world.state().set(&set()).unwrap().versions.keys().next().is_some_and(|first| *first > 2));
    assert!(world.waits(far - 1).await);
    let mut seen = world.seen(far);
    let first = seen.first().cloned().unwrap();
    seen.remove(&first);
    assert!(!can_wait(&world.state(), &seen));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_what_is_yet_to_be_made_ends_the_wait() {
    let mut world = World::new().await;
    let one = world.publish(["1", "shared"], true).await;
    let two = world.publish(["2", "shared"], false).await;
    world.forget(&two[..2]);
    let (content, local, other) = (world.content(), world.content().local(), Digest([9; 32]));
    assert!(local.get(two[1]).await.is_none());
    assert!(!world.waits(1).await, "a blob");
    assert!(world.waits(1).await, "and once");
    assert_eq!(local.frames(&[one[1], two[1]]).await.1, [two[1]]);
    assert!(!world.waits(1).await, "several");
    assert!(local.delta(&set(), other, two[0]).await.is_none());
    assert!(!world.waits(1).await, "a delta upon something else");
    assert_eq!(content.get(two[1]).await.unwrap_err().code(), "LW0801");
    assert!(!world.waits(1).await, "this voter itself");
    // What is here ends nothing.
    assert!(local.get(one[1]).await.is_some() && local.frames(&one).await.1.is_empty());
    assert!(content.get(one[1]).await.is_ok() && world.waits(1).await);

    tokio::spawn(content.clone().catch_up());
    let made = async {
        while local.get(two[1]).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), made).await.expect("it is made");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_and_is_yet_to_be_made_is_not_said_to_be_missing() {
    let mut world = World::new().await;
    world.publish(["1", "shared"], true).await;
    tokio::spawn(world.content().clone().catch_up());
    for (number, read) in [(2, "a blob"), (3, "a manifest"), (4, "all of it")] {
        // The voter that had all of it is gone: what is left is the entry.
        let names = world.publish([&number.to_string(), "shared"], false).await;
        world.forget(&names[..2]);
        let content = world.content();
        let done = match read {
            "a blob" => content.get(names[1]).await.map(drop),
            "a manifest" => content.manifest(names[0]).await.map(drop),
            // Its publisher asks again, and is answered by another voter.
            _ => content.ready(Some(world.head), names[0]).await.map(drop),
        };
        assert!(done.is_ok(), "{read}: {done:?}");
    }
    let nowhere = Digest([9; 32]);
    let began = tokio::time::Instant::now();
    // Made anew first, so that nothing is left to be made.
    world.content().manifest(world.head.expect("four were published").1).await.unwrap();
    assert_eq!(world.content().get(nowhere).await.unwrap_err().code(), "LW0801");
    assert!(began.elapsed() < crate::limits::MADE_WITHIN, "nothing was waited for");
    world.stop().await;
}
