//! Golden bytes: every stored and sent form, byte for byte, as the files of `golden/` have it.
//!
//! A difference here means that an older log, store, snapshot or peer cannot be read any more. New variants go to the
//! end; `UPDATE_GOLDENFILES=1 cargo test -p leaseward-raft --test golden` adds their lines, and the difference must
//! show additions only.

mod golden_samples;

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use golden_samples as samples;
use leaseward_raft::codec::{self, Kind};
use leaseward_raft::disk::{Disk, RealDisk};
use leaseward_raft::identity::{DataDir, Identity};
use leaseward_raft::net::frame;
use leaseward_raft::net::wire::{Hello, PROTOCOL, Purpose};
use leaseward_raft::recall::{Memory, Remembered};
use leaseward_raft::snapshot::Snapshots;
use leaseward_raft::store::AppliedTo;
use leaseward_raft::stored::{Entry, LogPosition, Payload};
use leaseward_raft::wal::{Record as LogRecord, RecordKind, Wal, WalIdentity};
use leaseward_state::{Command, State};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a string takes it");
        out
    })
}

/// Compares named bytes with a file of `golden/`, or writes it.
fn compare(file: &str, lines: &[(String, Vec<u8>)]) {
    let path = format!("{}/tests/golden/{file}.txt", env!("CARGO_MANIFEST_DIR"));
    let found: String = lines.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, &found).expect("written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    for (line, expected) in found.lines().zip(golden.lines()) {
        assert_eq!(line, expected, "{file}: stored bytes changed");
    }
    assert_eq!(found.lines().count(), golden.lines().count(), "{file}: a form is new or gone");
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, values: &[T]) {
    let mut lines = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let bytes = codec::encode(value);
        assert_eq!(codec::encoded_len(value), bytes.len());
        assert_eq!(&codec::decode::<T>("golden", &bytes).expect("it reads what it wrote"), value);
        for cut in 0..bytes.len() {
            assert!(codec::decode::<T>("golden", &bytes[..cut]).is_err(), "{value:?} cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(codec::decode::<T>("golden", &longer).is_err(), "{value:?} with a byte behind it");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Plain bytes carry no checksum: another value is fine, a panic or a huge allocation is not.
            drop(codec::decode::<T>("golden", &flipped));
        }
        lines.push((format!("{number}"), bytes));
    }
    compare(file, &lines);
}

/// As [`check`], for an enum: each variant stands at its place, and each has a sample.
macro_rules! check_enum {
    ($file:literal, $values:expr, $type:ty: $($variant:pat),+ $(,)?) => {{
        let values: Vec<$type> = $values;
        // Every variant is named in its stored order; with a new one this does not compile until it is named, too.
        let places: &[fn(&$type) -> bool] = &[$(|value| matches!(value, $variant)),+];
        let named = |value: &$type| match value { $($variant => {})+ };
        let mut seen = std::collections::BTreeSet::new();
        for value in &values {
            named(value);
            let place = places.iter().position(|is| is(value)).expect("it is named");
            let stored = u32::from_le_bytes(codec::encode(value)[..4].try_into().expect("four bytes"));
            assert_eq!(stored as usize, place, "{value:?} moved: stored enums grow at the end only");
            seen.insert(place);
        }
        assert_eq!(seen.len(), places.len(), "{}: a variant has no sample", $file);
        check($file, &values);
    }};
}

#[test]
fn commands() {
    use Command::*;
    check_enum!("command", samples::commands(), Command:
        OpenSession { .. }, OpenMachine(_), EndSession { .. }, CloseSessions { .. }, Acquire(_), Withdraw { .. },
        Release { .. }, Revoke { .. }, EndDelay { .. }, Cordon { .. }, RemoveMachine { .. }, PutServer { .. },
        RemoveServer { .. }, SetWanted { .. }, Move { .. }, Assign(_), GiveUp { .. }, ReportServer { .. },
        Publish { .. }, RemoveSet { .. }, ReportSync { .. }, Atomic { .. }, Settle { .. },
        AcquireOpening { .. }, RaiseFeatureLevel { .. }, Restart { .. }, Pause { .. }, ConfirmDead { .. },
        PutPolicy { .. }, Relocate { .. }, Quarantine { .. }, ProveDead { .. }, EndPauses { .. },
        NoteVoters { .. }, Suspect { .. }, Prepare { .. }, ReportPrepared { .. }, PutSet { .. }, PinSet { .. }, Resync { .. },
        SteerRollout { .. }, StepRollout { .. }, ReportProgram { .. }, ChangeToken { .. });
    check("request", &samples::requests());
}

#[test]
fn parts_of_commands() {
    use leaseward_state::command::{Condition, ServerReport};
    use leaseward_state::config::{ManifestNode, SyncState};
    use leaseward_state::server::{Cause, Exit, FenceLevel, FenceProof, ManagerKind, Probe, ServerStatus, Wanted};
    check_enum!("condition", samples::conditions(), Condition:
        Condition::Fence { .. }, Condition::LeaseFree(_), Condition::Server(..), Condition::Set(..),
        Condition::Machine(..));
    check_enum!("server_report", samples::server_reports(), ServerReport:
        ServerReport::Status { .. }, ServerReport::Crashed { .. }, ServerReport::Dead { .. },
        ServerReport::NotStarted { .. }, ServerReport::Absent, ServerReport::Clients(_));
    check_enum!("server_status", samples::server_statuses(), ServerStatus:
        ServerStatus::Ordered, ServerStatus::Starting { .. }, ServerStatus::Running { .. },
        ServerStatus::Unhealthy { .. }, ServerStatus::Restarting { .. }, ServerStatus::Stopping,
        ServerStatus::Preparing { .. }, ServerStatus::Stuck { .. });
    check_enum!("fence_proof", samples::fence_proofs(), FenceProof:
        FenceProof::Certificate(_), FenceProof::Rebooted, FenceProof::Swept, FenceProof::Grace(_),
        FenceProof::Operator(_), FenceProof::Hook(_));
    check_enum!("exit", vec![Exit::Code(1), Exit::Signal(9), Exit::Unseen], Exit:
        Exit::Code(_), Exit::Signal(_), Exit::Unseen);
    check_enum!("probe", samples::probes(), Probe: Probe::Process, Probe::Tcp(_), Probe::Http(_), Probe::Command(_));
    use FenceLevel::{F0, F1, F2, F3, F4, F5};
    check_enum!("fence_level", vec![F0, F1, F2, F3, F4, F5], FenceLevel: F0, F1, F2, F3, F4, F5);
    use Cause::{Crashed, Drained, FailedBack, MachineLost, MachineRestarted, Moved, Restarted, RolledBack, Started};
    check_enum!("cause", vec![Started, MachineLost, MachineRestarted, Crashed, Moved, Restarted, Drained, FailedBack, RolledBack], Cause:
        Started, MachineLost, MachineRestarted, Crashed, Moved, Restarted, Drained, FailedBack, RolledBack);
    check_enum!("wanted", vec![Wanted::Running, Wanted::Stopped], Wanted: Wanted::Running, Wanted::Stopped);
    check_enum!("manager_kind", vec![ManagerKind::Agent, ManagerKind::Ssh], ManagerKind:
        ManagerKind::Agent, ManagerKind::Ssh);
    check_enum!("sync_state", samples::sync_states(), SyncState:
        SyncState::Behind, SyncState::Fetching { .. }, SyncState::OnDisk { .. }, SyncState::Applied,
        SyncState::Rejected { .. }, SyncState::Drifted { .. }, SyncState::Draining, SyncState::Disabled,
        SyncState::Running { .. });
    use leaseward_state::config::SetStep::{Check, Reload};
    check_enum!("set_step", vec![Check, Reload], leaseward_state::config::SetStep: Check, Reload);
    use leaseward_state::config::rollout::{RolloutStep, Steer};
    use leaseward_state::config::spec::{DrainRule, DriftRule, Layout};
    use leaseward_state::event::RolloutChange;
    check_enum!("rollout_step", samples::rollout_steps(), RolloutStep:
        RolloutStep::Release(_), RolloutStep::Halt(_), RolloutStep::RollBack(_), RolloutStep::Finish);
    check_enum!("rollout_change", samples::rollout_changes(), RolloutChange:
        RolloutChange::Begun, RolloutChange::Released(_), RolloutChange::Halted(_), RolloutChange::Resumed(_),
        RolloutChange::RolledBack(_), RolloutChange::Finished);
    check_enum!("steer", vec![Steer::Halt, Steer::Resume, Steer::Abort, Steer::Finish], Steer:
        Steer::Halt, Steer::Resume, Steer::Abort, Steer::Finish);
    check_enum!("layout", vec![Layout::Tree, Layout::Files], Layout: Layout::Tree, Layout::Files);
    check_enum!("drift_rule", vec![DriftRule::Report, DriftRule::Repair, DriftRule::Adopt], DriftRule:
        DriftRule::Report, DriftRule::Repair, DriftRule::Adopt);
    check_enum!("drain_rule", vec![DrainRule::Never, DrainRule::First, DrainRule::Always], DrainRule:
        DrainRule::Never, DrainRule::First, DrainRule::Always);
    check_enum!("manifest_node", samples::manifest_nodes(), ManifestNode:
        ManifestNode::Directory { .. }, ManifestNode::File { .. }, ManifestNode::Symlink { .. });
    check("manifest", &[samples::manifest()]);
}

#[test]
fn replies_and_refusals() {
    use leaseward_state::{Refusal, Reply};
    check_enum!("reply", samples::replies(), Reply:
        Reply::Done, Reply::Session(_), Reply::Granted { .. }, Reply::Queued { .. }, Reply::Version(_),
        Reply::Versions(_), Reply::Atomic(_), Reply::Refused(_));
    check_enum!("refusal", samples::refusals(), Refusal:
        Refusal::Invalid(_), Refusal::Ttl { .. }, Refusal::TooMany { .. }, Refusal::NotFound { .. },
        Refusal::Exists { .. }, Refusal::Held { .. }, Refusal::Delayed { .. }, Refusal::StaleToken { .. },
        Refusal::NoSession { .. }, Refusal::Version { .. }, Refusal::Outdated(_), Refusal::InUse { .. },
        Refusal::Part { .. }, Refusal::FeatureLevel { .. },
        Refusal::ConfigFull { .. });
}

#[test]
fn roles() {
    use leaseward_state::access::Role::{self, Admin, Holder, Operator, Publisher, Viewer};
    check_enum!("role", samples::roles(), Role: Viewer, Operator, Publisher(_), Holder(_), Admin);
}

#[test]
fn records_and_their_names() {
    use leaseward_state::event::Event;
    use leaseward_state::lease::{GrantEnd, LeaseState};
    use leaseward_state::record::{Record, RecordKey};
    use leaseward_state::server::{Placement, Readiness};
    use leaseward_state::session::{Owner, SessionEnd};
    check_enum!("record_key", samples::record_keys(), RecordKey:
        RecordKey::Meta, RecordKey::Machine(_), RecordKey::Session(_), RecordKey::Lease(_), RecordKey::Server(_),
        RecordKey::Set(_), RecordKey::Version(..), RecordKey::Sync(..), RecordKey::Answer(_), RecordKey::Ledger(..),
        RecordKey::Policy, RecordKey::Program(_), RecordKey::Access);
    check_enum!("record", samples::records(), Record:
        Record::Meta(_), Record::Machine(_), Record::Session(_), Record::Lease(_), Record::Server(_), Record::Set(_),
        Record::Version(_), Record::Sync(_), Record::Answer(_), Record::Ledger(_), Record::Policy(_),
        Record::Program(_), Record::Access(_));
    check_enum!("placement", samples::placements(), Placement:
        Placement::Unplaced { .. }, Placement::Assigned(_), Placement::Expired(_), Placement::Failed { .. });
    check_enum!("lease_state", samples::lease_states(), LeaseState: LeaseState::Held(_), LeaseState::Delayed { .. });
    use GrantEnd::{Expired, Released, Revoked, Superseded};
    check_enum!("grant_end", vec![Released, Expired, Revoked, Superseded], GrantEnd:
        Released, Expired, Revoked, Superseded);
    check_enum!("session_end", vec![SessionEnd::Ended, SessionEnd::Expired, SessionEnd::Superseded], SessionEnd:
        SessionEnd::Ended, SessionEnd::Expired, SessionEnd::Superseded);
    check_enum!("owner", samples::owners(), Owner: Owner::Machine(_), Owner::Client(_));
    check_enum!("event", samples::events(), Event:
        Event::SessionOpened { .. }, Event::SessionEnded { .. }, Event::LeaseGranted { .. }, Event::LeaseEnded { .. },
        Event::LeaseQueued { .. }, Event::MachineCordoned { .. }, Event::MachineRemoved { .. },
        Event::ServerDefined { .. }, Event::ServerRemoved { .. }, Event::ServerWanted { .. },
        Event::ServerAssigned { .. }, Event::ServerReported { .. }, Event::ServerExpired { .. },
        Event::ServerFenced { .. }, Event::ServerStopped { .. }, Event::ServerMoving { .. },
        Event::ServerFailed { .. }, Event::SetPublished { .. }, Event::SetRemoved { .. }, Event::SyncReported { .. },
        Event::FeatureLevelRaised { .. }, Event::ServerPaused { .. }, Event::MachineConfirmedDead { .. },
        Event::PolicyChanged { .. }, Event::VotersChanged { .. },
        Event::MachineSuspected { .. }, Event::ServerPrepared { .. }, Event::SetDefined { .. }, Event::SetPinned { .. },
        Event::RolloutChanged { .. }, Event::Restored { .. }, Event::ProgramReported { .. },
        Event::TokenChanged { .. });
    check_enum!("readiness", samples::readinesses(), Readiness:
        Readiness::Preparing, Readiness::Ready, Readiness::Lacking(_));
}

#[test]
fn the_log() {
    check_enum!("payload", samples::payloads(), Payload:
        Payload::Blank, Payload::Commands { .. }, Payload::Membership(_));
    check("entry", &samples::entries());
    check("vote", &samples::votes());
    check("membership", &[samples::membership()]);
    check("stored_membership", &[samples::stored_membership()]);
    check("log_position", &[Some(samples::position()), None]);
    check("applied_to", &[AppliedTo::default(), samples::applied_to()]);
}

#[test]
fn the_wire() {
    use leaseward_raft::net::wire::{About, Answer, Appended, Ask, MemberChange, Outcome, Renewed, Told, Welcome};
    use leaseward_state::order::Action;
    check_enum!("purpose", vec![Purpose::Control, Purpose::Bulk, Purpose::Client], Purpose:
        Purpose::Control, Purpose::Bulk, Purpose::Client);
    check("hello", &samples::hellos());
    check_enum!("welcome", samples::welcomes(), Welcome: Welcome::Welcome { .. }, Welcome::Refused { .. });
    check_enum!("ask", samples::asks(), Ask:
        Ask::Append { .. }, Ask::Vote { .. }, Ask::PreVote { .. }, Ask::Confirm { .. }, Ask::Recall { .. },
        Ask::SnapshotBegin { .. }, Ask::SnapshotPiece { .. }, Ask::SnapshotEnd { .. }, Ask::TakeOver { .. },
        Ask::Propose(_), Ask::Renew(_), Ask::ReadPoint, Ask::View { .. }, Ask::Join { .. }, Ask::Members(_),
        Ask::Status, Ask::MissingBlobs(_), Ask::GetBlob(_), Ask::PutBlobs(_), Ask::Ping,
        Ask::Questions { .. }, Ask::Answered { .. }, Ask::Told { .. }, Ask::GetFrames(_), Ask::PutFrames(_),
        Ask::Delta { .. }, Ask::Set { .. });
    check_enum!("answer", samples::answers(), Answer:
        Answer::Appended(_), Answer::Voted { .. }, Answer::Yes(_), Answer::Recalled { .. }, Answer::SnapshotAt(_),
        Answer::Done, Answer::SnapshotInstalled { .. }, Answer::Proposed(_), Answer::Renewed(_), Answer::ReadPoint(_),
        Answer::View(_), Answer::Joined { .. }, Answer::Status(_), Answer::Missing(_), Answer::Blob(_),
        Answer::Failed { .. }, Answer::Question(_), Answer::Told(_), Answer::Frames { .. }, Answer::Delta(_),
        Answer::Set(_));
    check_enum!("about", samples::about(), About: About::Printed { .. }, About::Tree { .. }, About::Pieces { .. });
    check_enum!("told", samples::told(), Told: Told::Lines(_), Told::NotHere, Told::Failed { .. }, Told::Tree(_),
        Told::Pieces(_));
    check_enum!("outcome", samples::outcomes(), Outcome:
        Outcome::Committed { .. }, Outcome::NotLeader, Outcome::Unknown, Outcome::Overloaded(_));
    check_enum!("appended", samples::appended(), Appended:
        Appended::Success, Appended::Partial(_), Appended::Conflict, Appended::HigherVote(_));
    check_enum!("renewed", samples::renewed(), Renewed: Renewed::Alive { .. }, Renewed::Over);
    check_enum!("member_change", samples::member_changes(), MemberChange:
        MemberChange::Promote(_), MemberChange::Demote(_), MemberChange::Remove(_), MemberChange::Transfer(_),
        MemberChange::FinishUpgrade);
    check_enum!("action", samples::actions(), Action: Action::Run { .. }, Action::Stop { .. }, Action::Kill,
        Action::Prepare { .. });

    let hello = Hello { protocol: PROTOCOL, ..samples::hellos().remove(0) };
    let message = frame::bytes(frame::message(Purpose::Control), &(7_u64, Ask::ReadPoint)).expect("it fits");
    let frames =
        [("hello".to_owned(), frame::bytes(frame::HELLO, &hello).expect("it fits")), ("message".to_owned(), message)];
    compare("frame", &frames);
}

/// A segment with its head and one batch of every kind of record.
#[test]
fn a_segment_of_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("a directory"));
    let whose = WalIdentity { cluster: 0x1111, node: 3 };
    let (mut wal, _) = Wal::open(Arc::clone(&disk), whose, 8192).expect("a log");
    let record = |kind, payload| LogRecord::new(kind, payload);
    wal.commit(&[
        record(RecordKind::Entry, codec::encode(&samples::entries()[0])),
        record(RecordKind::Vote, codec::encode(&samples::votes()[0])),
    ])
    .expect("written");
    wal.commit(&[
        record(RecordKind::Committed, codec::encode(&Some(samples::position()))),
        record(RecordKind::TruncateFrom, codec::encode(&9_u64)),
        record(RecordKind::PurgeTo, codec::encode(&LogPosition { term: 0, node: 0, index: 0 })),
    ])
    .expect("written");
    let mut bytes = std::fs::read(dir.path().join("wal-00000000000000000001.log")).expect("readable");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
    // The last payload ends in zeros.
    bytes.truncate(end + 64);
    compare("segment", &[("segment".to_owned(), bytes)]);
}

#[test]
fn a_snapshot() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = Snapshots::open(dir.path(), 0x2222).expect("a directory");
    let mut state = State::default();
    for command in [Command::OpenSession { name: "c".into(), ttl_ms: 1_000 }, samples::commands().remove(11)] {
        let entry = leaseward_state::Entry {
            revision: state.revision().next(),
            term: leaseward_state::Term(1),
            at: leaseward_state::UnixMillis(5),
            elapsed: leaseward_state::ClusterMillis(4),
            request: command.into(),
        };
        state.apply(&entry);
    }
    let file = snapshots.write(&state, &samples::applied_to()).expect("written");
    assert_eq!(file.path.file_name().expect("a name"), "snapshot-00000000000000000009-00000000000000000002.lws");
    let bytes = std::fs::read(&file.path).expect("readable");
    compare("snapshot", &[("snapshot".to_owned(), bytes)]);
    let (head, read) = snapshots.read(&file.path).expect("whole");
    assert_eq!(head.applied, samples::applied_to());
    assert!(read.records().eq(state.records()));
}

#[test]
fn the_identity_of_a_directory() {
    let identity = Identity { cluster: 0xabcd, node: 7, generation: 1, anchor: (11, 22) };
    check("identity", std::slice::from_ref(&identity));
    let dir = tempfile::tempdir().expect("a directory");
    let claimed = DataDir::open(dir.path()).expect("free").claim(0xabcd, 7, 1).expect("claimed");
    let bytes = std::fs::read(dir.path().join("identity")).expect("readable");
    let kind = Kind { name: "identity", code: 0x10, version: 1, max: 4 << 10 };
    let found: Identity = codec::decode("identity", codec::open(kind, &bytes).expect("sealed")).expect("whole");
    assert_eq!(found, claimed);
    assert_eq!(std::fs::read_to_string(dir.path().join("VERSION")).expect("readable"), "1\n");
}

#[test]
fn what_a_directory_remembers_of_other_nodes() {
    let remembered = Remembered { cluster: 0xabcd, acknowledged: [(1, 10), (7, 300)].into() };
    check("remembered", std::slice::from_ref(&remembered));
    let dir = tempfile::tempdir().expect("a directory");
    let memory = Memory::open(dir.path(), 0xabcd);
    memory.learn(&[(1, 10), (7, 300)]);
    memory.close();
    let bytes = std::fs::read(dir.path().join("recall")).expect("readable");
    let kind = Kind { name: "recall", code: 0x11, version: 1, max: 64 << 10 };
    let found: Remembered = codec::decode("recall", codec::open(kind, &bytes).expect("sealed")).expect("whole");
    assert_eq!(found, remembered);
}

#[test]
fn an_entry_is_what_its_position_begins_with() {
    // The log reads the position of an entry off its first 24 bytes.
    let entry = Entry { position: samples::position(), payload: Payload::Blank };
    let bytes = codec::encode(&entry);
    assert_eq!(codec::decode::<LogPosition>("position", &bytes[..24]), Ok(entry.position));
}
