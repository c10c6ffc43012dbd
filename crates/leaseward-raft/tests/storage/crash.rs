//! The log over a disk that loses power at every operation, again and again.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_raft::codec;
use leaseward_raft::disk::Disk;
use leaseward_raft::stored::{Entry, LogPosition, Membership, Payload, Vote};
use leaseward_raft::wal::{Record, RecordKind, Recovered, Wal, WalIdentity};
use leaseward_state::{ClusterMillis, Command, Request, SessionId, UnixMillis};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use leaseward_raft::simulation::SimDisk;

const SEGMENT: u64 = 4096;
pub(crate) const WHOSE: WalIdentity = WalIdentity { cluster: 7, node: 3 };

/// What the log should hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    purged: Option<LogPosition>,
}

enum Act {
    Append(Vec<Entry>),
    Vote(Vote),
    Committed(LogPosition),
    Truncate(u64),
    Purge(LogPosition),
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.map(|purged| purged.index)).map_or(1, |last| last + 1)
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.position.index, entry.clone())));
            }
            Act::Vote(vote) => self.vote = Some(*vote),
            Act::Committed(position) => self.committed = Some(*position),
            Act::Truncate(from) => drop(self.entries.split_off(from)),
            Act::Purge(position) => {
                self.purged = Some(*position);
                self.entries = self.entries.split_off(&(position.index + 1));
            }
        }
    }

    fn choose(&self, random: &mut SmallRng) -> Act {
        let term = self.vote.map_or(1, |vote| vote.term);
        match random.gen_range(0..12) {
            0 => Act::Vote(Vote { term: term + 1, node: random.gen_range(1..4), committed: random.gen_bool(0.5) }),
            1 if self.entries.len() > 3 => {
                let (first, last) = (self.entries.keys().next(), self.entries.keys().next_back());
                Act::Truncate(random.gen_range(*first.expect("some") + 1..=*last.expect("some")))
            }
            2 | 3 if self.entries.len() > 6 => {
                let index = self.entries.keys().nth(random.gen_range(0..self.entries.len() / 2)).expect("some");
                Act::Purge(self.entries[index].position)
            }
            4 if !self.entries.is_empty() => Act::Committed(self.entries.values().next_back().expect("some").position),
            _ => {
                let first = self.next();
                let count = random.gen_range(1..4);
                Act::Append((first..first + count).map(|index| entry(term, index, random)).collect())
            }
        }
    }
}

fn entry(term: u64, index: u64, random: &mut SmallRng) -> Entry {
    let payload = match random.gen_range(0..10) {
        0 => Payload::Blank,
        1 => Payload::Membership(Membership { voters: vec![[index].into()], nodes: BTreeMap::new() }),
        _ => {
            let command = Command::EndSession { session: SessionId(index) };
            let requests = vec![Request::from(command); random.gen_range(1..30)];
            Payload::Commands { at: UnixMillis(index), requests, elapsed: ClusterMillis(index) }
        }
    };
    Entry { position: LogPosition { term, node: 1, index }, payload }
}

fn records(act: &Act) -> Vec<Record> {
    match act {
        Act::Append(entries) => {
            entries.iter().map(|entry| Record::new(RecordKind::Entry, codec::encode(entry))).collect()
        }
        Act::Vote(vote) => vec![Record::new(RecordKind::Vote, codec::encode(vote))],
        Act::Committed(position) => vec![Record::new(RecordKind::Committed, codec::encode(&Some(*position)))],
        Act::Truncate(from) => vec![Record::new(RecordKind::TruncateFrom, codec::encode(from))],
        Act::Purge(position) => vec![Record::new(RecordKind::PurgeTo, codec::encode(position))],
    }
}

fn read(disk: &SimDisk, wal: &Wal, recovered: &Recovered) -> Model {
    let files = wal.files();
    let mut model = Model {
        entries: BTreeMap::new(),
        vote: recovered.vote,
        committed: recovered.committed,
        purged: recovered.purged,
    };
    for (index, (position, place)) in &recovered.entries {
        let mut bytes = vec![0; place.length as usize];
        files[&place.segment].read_at(&mut bytes, place.offset).expect("readable");
        let entry: Entry = codec::decode("entry", &bytes).expect("whole");
        assert_eq!((entry.position, entry.position.index), (*position, *index));
        model.entries.insert(*index, entry);
    }
    assert!(disk.operations() < u64::MAX);
    model
}

fn members(model: &Model) -> BTreeMap<u64, Membership> {
    let named = model.entries.iter().filter_map(|(index, entry)| match &entry.payload {
        Payload::Membership(membership) => Some((*index, membership.clone())),
        _ => None,
    });
    named.collect()
}

/// One life: open, check, write until the power fails. Returns what may be on disk now.
fn live(disk: &SimDisk, allowed: &[Model], fuel: u64, random: &mut SmallRng) -> Vec<Model> {
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut wal, recovered) = Wal::open(Arc::clone(&handle), WHOSE, SEGMENT).expect("a log always opens");
    let mut model = read(disk, &wal, &recovered);
    assert!(allowed.contains(&model), "after the crash: {model:#?}\nallowed: {allowed:#?}");
    let kept: BTreeMap<_, _> = recovered.memberships.into_iter().filter(|(index, _)| *index >= 1).collect();
    assert!(members(&model).iter().all(|(index, membership)| kept.get(index) == Some(membership)));
    disk.fail_after(fuel);
    loop {
        let act = model.choose(random);
        let mut after = model.clone();
        after.act(&act);
        if random.gen_bool(0.2) {
            Wal::prepare_segment(handle.as_ref(), SEGMENT);
        }
        if wal.commit(&records(&act)).is_err() {
            // Not acknowledged: it may be there, whole, or not at all.
            return vec![model, after];
        }
        model = after;
        if matches!(act, Act::Purge(_)) && wal.remove_purged().is_err() {
            return vec![model];
        }
    }
}

#[test]
fn whatever_was_acknowledged_is_there_after_any_number_of_power_cuts() {
    for seed in 0..150 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut disk = SimDisk::default();
        let mut allowed = vec![Model::default()];
        for life in 0..12 {
            let fuel = random.gen_range(0..120);
            println!("seed {seed} life {life} fuel {fuel}");
            // The power may fail while the log is opened, too.
            if random.gen_bool(0.3) {
                disk.fail_after(random.gen_range(0..4));
                Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).ok();
                disk = disk.after_power_cut(random.r#gen());
            }
            allowed = live(&disk, &allowed, fuel, &mut random);
            disk = disk.after_power_cut(random.r#gen());
        }
    }
}

#[test]
fn a_power_cut_at_each_single_operation_loses_nothing() {
    for cut in 0..200 {
        for seed in 0..4 {
            let mut random = SmallRng::seed_from_u64(99);
            let disk = SimDisk::default();
            Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
            let allowed = live(&disk, &[Model::default()], cut, &mut random);
            let disk = disk.after_power_cut(seed);
            live(&disk, &allowed, 10, &mut random);
        }
    }
}

/// A process that died leaves what it wrote to the next one, which counts on all of it, and says so to others.
#[test]
fn what_a_process_that_died_left_is_durable_before_the_next_one_believes_it() {
    for death in 0..200 {
        let mut random = SmallRng::seed_from_u64(99);
        let disk = SimDisk::default();
        Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
        live(&disk, &[Model::default()], death, &mut random);
        disk.only_the_process_died();
        let (wal, recovered) = Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
        let believed = read(&disk, &wal, &recovered);
        for seed in 0..8 {
            let disk = disk.after_power_cut(seed);
            let (wal, recovered) = Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
            assert_eq!(read(&disk, &wal, &recovered), believed, "death {death}, seed {seed}");
        }
    }
}

#[test]
fn segments_rotate_and_purged_ones_go() {
    let disk = SimDisk::default();
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut wal, _) = Wal::open(Arc::clone(&handle), WHOSE, SEGMENT).expect("a log");
    let mut random = SmallRng::seed_from_u64(1);
    let mut model = Model::default();
    let vote = Act::Vote(Vote { term: 5, node: 2, committed: true });
    wal.commit(&records(&vote)).expect("written");
    model.act(&vote);
    while wal.segment_count() < 6 {
        let act = Act::Append(vec![entry(5, model.next(), &mut random)]);
        wal.commit(&records(&act)).expect("written");
        model.act(&act);
    }
    let act = Act::Purge(model.entries.values().nth_back(1).expect("some").position);
    wal.commit(&records(&act)).expect("written");
    model.act(&act);
    assert!(wal.remove_purged().expect("removed").len() >= 4);
    assert!(wal.segment_count() <= 2);
    let names = disk.list().expect("a list");
    assert!(names.iter().filter(|name| name.ends_with(".log")).count() <= 2, "{names:?}");
    drop(wal);
    let (wal, recovered) = Wal::open(handle, WHOSE, SEGMENT).expect("a log");
    assert_eq!(read(&disk, &wal, &recovered), model, "the vote stood in the first segment and is still known");
}

#[test]
fn an_entry_larger_than_a_segment_has_a_segment_of_its_size() {
    let disk = SimDisk::default();
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut wal, _) = Wal::open(Arc::clone(&handle), WHOSE, SEGMENT).expect("a log");
    let requests = vec![Request::from(Command::EndSession { session: SessionId(1) }); 1_000];
    let payload = Payload::Commands { at: UnixMillis(1), requests, elapsed: ClusterMillis(1) };
    let large = Entry { position: LogPosition { term: 1, node: 1, index: 1 }, payload };
    let acts = [Act::Append(vec![large]), Act::Append(vec![entry(1, 2, &mut SmallRng::seed_from_u64(1))])];
    let mut model = Model::default();
    for act in &acts {
        wal.commit(&records(act)).expect("written");
        model.act(act);
    }
    drop(wal);
    let (wal, recovered) = Wal::open(handle, WHOSE, SEGMENT).expect("a log");
    assert_eq!(read(&disk, &wal, &recovered), model);
}
