//! The materialised state: the same tests for sled and for memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use leaseward_raft::limits::STORE_BATCH_RECORDS;
use leaseward_raft::sled_store::SledStore;
use leaseward_raft::store::{AppliedTo, Change, MemoryStore, StateStore};
use leaseward_raft::stored::LogPosition;
use leaseward_state::lease::{Lease, LeaseState, Waiter};
use leaseward_state::record::{Answer, Record, RecordKey};
use leaseward_state::{
    ClusterMillis, FencingToken, LeaseName, MachineName, Reply, RequestKey, Revision, SessionId, SetName,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Model = BTreeMap<RecordKey, Record>;

fn applied(index: u64) -> AppliedTo {
    AppliedTo { position: Some(LogPosition { term: 1, node: 1, index }), ..AppliedTo::default() }
}

fn lease(waiters: usize) -> Record {
    let waiter = |number: usize| Waiter {
        session: SessionId(number as u64),
        holder: "x".repeat(40),
        priority: 0,
        queued: Revision(number as u64),
        meta: BTreeMap::new(),
        lock_delay_ms: 0,
    };
    Record::Lease(Arc::new(Lease {
        created: Revision(1),
        modified: Revision(2),
        state: LeaseState::Delayed { token: FencingToken(1), delay_ms: 1 },
        waiters: (0..waiters).map(waiter).collect(),
    }))
}

fn key(random: &mut SmallRng) -> RecordKey {
    let name = ["a", "b", "ab", "a/b"][random.gen_range(0..4)];
    let number = random.gen_range(0..4);
    match random.gen_range(0..7) {
        0 => RecordKey::Lease(LeaseName::new(name).expect("a name")),
        1 => RecordKey::Session(SessionId(number * 257)),
        2 => RecordKey::Answer(RequestKey { client: u128::from(number), sequence: number }),
        3 => RecordKey::Ledger(Revision(number), number as u32),
        4 => RecordKey::Sync(
            SetName::new(name.replace('/', "-")).expect("a name"),
            MachineName::new("m").expect("a name"),
        ),
        5 => RecordKey::Program(SessionId(number * 257)),
        _ => RecordKey::Version(SetName::new(name.replace('/', "-")).expect("a name"), number),
    }
}

fn record(random: &mut SmallRng) -> Record {
    if random.gen_bool(0.2) {
        return lease(random.gen_range(0..1_500));
    }
    let revision = Revision(random.gen_range(0..1_000));
    Record::Answer(Arc::new(Answer { reply: Reply::Done, revision, until: ClusterMillis(1) }))
}

fn check(store: &mut dyn StateStore, model: &Model, index: u64) {
    let (found, records) = store.load().expect("usable").expect("written before");
    assert_eq!(found, applied(index));
    assert!(records.into_iter().collect::<Model>() == *model, "other records");
}

/// Random changes; now and then everything is replaced, and the store is opened again.
fn random_life(mut open: impl FnMut() -> Box<dyn StateStore>) {
    let mut random = SmallRng::seed_from_u64(17);
    let mut store = open();
    assert!(store.load().expect("usable").is_none(), "a new store is empty");
    let mut model = Model::new();
    for index in 1..=150 {
        if random.gen_range(0..25) == 0 {
            model = (0..random.gen_range(0..30)).map(|_| (key(&mut random), record(&mut random))).collect();
            let records: Vec<_> = model.clone().into_iter().collect();
            store.replace(&records, &applied(index)).expect("usable");
        } else {
            let changes: BTreeMap<RecordKey, Option<Record>> = (0..random.gen_range(1..8))
                .map(|_| (key(&mut random), random.gen_bool(0.7).then(|| record(&mut random))))
                .collect();
            let changes: Vec<Change> = changes.into_iter().collect();
            store.write(&changes, &applied(index)).expect("usable");
            for (key, record) in changes {
                match record {
                    Some(record) => model.insert(key, record),
                    None => model.remove(&key),
                };
            }
        }
        if index % 10 == 0 {
            store.make_durable().expect("usable");
            drop(store);
            store = open();
            check(store.as_mut(), &model, index);
        }
    }
}

/// A record of many pieces that shrinks and goes leaves nothing behind.
fn large_values(mut open: impl FnMut() -> Box<dyn StateStore>) {
    let name = || RecordKey::Lease(LeaseName::new("large").expect("a name"));
    let mut store = open();
    for (index, waiters) in (1..).zip([4_096, 1_000, 0, 4_096, 1]) {
        let record = lease(waiters);
        store.write(&[(name(), Some(record.clone()))], &applied(index)).expect("usable");
        drop(store);
        store = open();
        check(store.as_mut(), &Model::from([(name(), record)]), index);
    }
    store.write(&[(name(), Some(lease(4_096)))], &applied(9)).expect("usable");
    store.write(&[(name(), None)], &applied(10)).expect("usable");
    drop(store);
    check(open().as_mut(), &Model::new(), 10);
}

fn sled(dir: &Path) -> Box<dyn StateStore> {
    let mut store = SledStore::open(dir).expect("it opens");
    // As a node does: what is there is read before anything is written.
    store.load().expect("usable");
    assert!(!dir.with_extension("bad-0").exists(), "a good store was set aside");
    Box::new(store)
}

#[test]
fn sled_keeps_what_it_is_given() {
    let dir = tempfile::tempdir().expect("a directory");
    random_life(|| sled(&dir.path().join("state")));
}

#[test]
fn memory_keeps_what_it_is_given() {
    let store = MemoryStore::default();
    random_life(|| Box::new(store.clone()));
}

#[test]
fn sled_splits_large_records() {
    let dir = tempfile::tempdir().expect("a directory");
    large_values(|| sled(&dir.path().join("state")));
    let store = MemoryStore::default();
    large_values(|| Box::new(store.clone()));
}

/// So many events, from this revision on.
fn events(from: u64, count: usize) -> Vec<Change> {
    let record =
        Record::Answer(Arc::new(Answer { reply: Reply::Done, revision: Revision(1), until: ClusterMillis(1) }));
    (from..).take(count).map(|n| (RecordKey::Ledger(Revision(n), 0), Some(record.clone()))).collect()
}

#[test]
fn a_large_change_is_all_there_and_nothing_of_it_if_it_was_cut_short() {
    let temp = tempfile::tempdir().expect("a directory");
    let mut store = SledStore::open(temp.path()).expect("it opens");
    let (few, many) = (3, 3 * STORE_BATCH_RECORDS + 1);
    store.write(&events(0, few), &applied(1)).expect("usable");
    store.write(&events(few as u64, many), &applied(2)).expect("usable");
    let (found, records) = store.load().expect("usable").expect("written before");
    assert_eq!((found, records.len()), (applied(2), few + many));
    // Whatever the last piece cannot hold ends the writing there, as a crash would.
    let mut cut = events(10_000, many);
    cut.push((RecordKey::Ledger(Revision(99_999), 0), Some(lease(200_000))));
    store.write(&cut, &applied(3)).expect_err("it is too large");
    drop(store);
    let mut store = SledStore::open(temp.path()).expect("it opens");
    assert_eq!(store.load().expect("usable"), None, "half of a change");
    store.write(&events(0, few), &applied(4)).expect("usable");
    let (found, records) = store.load().expect("usable").expect("written before");
    assert_eq!((found, records.len()), (applied(4), few), "nothing of what was cut short");
}

#[test]
fn a_record_beyond_all_bounds_is_refused_and_not_cut() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut store = SledStore::open(&dir.path().join("state")).expect("it opens");
    let name = RecordKey::Lease(LeaseName::new("large").expect("a name"));
    store.write(&[(name, Some(lease(80_000)))], &applied(1)).expect_err("six megabytes are too many");
}

#[test]
fn a_store_that_cannot_be_opened_is_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    for (round, file) in ["db", "conf", "db"].into_iter().enumerate() {
        std::fs::create_dir_all(&state).expect("made");
        std::fs::write(state.join(file), b"this is no database at all, but it is long enough to look like one")
            .expect("written");
        let mut store = SledStore::open(&state).expect("a new one is made");
        assert!(store.load().expect("usable").is_none_or(|(_, records)| records.is_empty()));
        store.write(&[], &applied(1)).expect("usable");
        drop(store);
        let aside = std::fs::read_dir(dir.path()).expect("a list").count() - 1;
        assert!(aside <= round + 1);
        std::fs::remove_dir_all(&state).expect("removed");
    }
    assert!(dir.path().join("state.bad-0").exists(), "what could not be opened is kept for a look");
}

#[test]
fn a_half_made_snapshot_of_sleds_own_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let mut store = sled(&state);
    store.write(&[], &applied(4)).expect("usable");
    store.make_durable().expect("usable");
    drop(store);
    let half = state.join("snap.0000000000000000.generating");
    std::fs::write(&half, b"half").expect("written");
    let mut store = SledStore::open(&state).expect("it opens");
    assert!(!half.exists());
    check(&mut store, &Model::new(), 4);
}
