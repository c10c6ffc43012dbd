//! Bounds of what programs may say: how many of a set, and how long a reason.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use leaseward_state::command::PublishSet;
use leaseward_state::config::Digest;
use leaseward_state::config::program::{ProgramReport, RejectedVersion};
use leaseward_state::limits::{PROGRAMS_MAX, TEXT_BYTES_MAX};
use leaseward_state::{ClusterMillis, Command, Entry, Refusal, Reply, SessionId, SetName, State, Term, UnixMillis};

fn apply(state: &mut State, command: Command) -> Reply {
    let revision = state.revision().next();
    state
        .apply(&Entry {
            revision,
            term: Term(1),
            at: UnixMillis(5),
            elapsed: ClusterMillis(0),
            request: command.into(),
        })
        .reply
}

fn open(state: &mut State) -> SessionId {
    match apply(state, Command::OpenSession { name: "p".into(), ttl_ms: 1_000 }) {
        Reply::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

fn report(set: &str, rejected: Option<RejectedVersion>) -> ProgramReport {
    ProgramReport { set: SetName::new(set).unwrap(), file: "f".into(), applied: 1, rejected }
}

#[test]
fn a_set_has_so_many_programs_and_no_more() {
    let mut state = State::default();
    let set = |name: &str| PublishSet {
        set: SetName::new(name).unwrap(),
        parent: None,
        manifest: Digest([1; 32]),
        files: 1,
        bytes: 1,
        delta: None,
    };
    let sets = vec![set("app"), set("other")];
    apply(&mut state, Command::Publish { sets, author: String::new(), message: String::new() });
    let sessions: Vec<SessionId> = (0..=PROGRAMS_MAX).map(|_| open(&mut state)).collect();
    let mut say = |session: SessionId, step: u64, set: &str| {
        apply(&mut state, Command::ReportProgram { session, step, report: report(set, None) })
    };
    for session in &sessions[..PROGRAMS_MAX] {
        assert_eq!(say(*session, 1, "app"), Reply::Done);
    }
    let last = sessions[PROGRAMS_MAX];
    let refused = say(last, 1, "app");
    assert!(matches!(&refused, Reply::Refused(Refusal::TooMany { max: 256, .. })), "{refused:?}");
    assert_eq!(say(sessions[3], 2, "app"), Reply::Done, "who is known goes on");
    assert_eq!(say(last, 2, "other"), Reply::Done, "another set has its own");
    let refused = say(last, 3, "app");
    assert!(matches!(&refused, Reply::Refused(Refusal::TooMany { .. })), "nor does one come over: {refused:?}");
    apply(&mut state, Command::EndSession { session: sessions[0] });
    let again = Command::ReportProgram { session: last, step: 4, report: report("app", None) };
    assert_eq!(apply(&mut state, again), Reply::Done, "there is room again");
}

#[test]
fn a_reason_is_no_novel_and_a_machine_no_program() {
    use leaseward_state::MachineName;
    use leaseward_state::command::OpenMachine;
    use leaseward_state::machine::MachineProfile;
    use leaseward_state::session::Incarnation;
    let mut state = State::default();
    let session = open(&mut state);
    let why = "x".repeat(TEXT_BYTES_MAX + 1);
    let long = report("app", Some(RejectedVersion { version: 1, why }));
    let refused = apply(&mut state, Command::ReportProgram { session, step: 1, report: long });
    assert!(matches!(&refused, Reply::Refused(Refusal::Invalid(why)) if why.contains("4096")), "{refused:?}");
    let machine = OpenMachine {
        machine: MachineName::new("m1").unwrap(),
        incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
        profile: MachineProfile::default(),
        swept: false,
        ttl_ms: 1_000,
    };
    let Reply::Session(session) = apply(&mut state, Command::OpenMachine(machine)) else { panic!("no session") };
    let refused = apply(&mut state, Command::ReportProgram { session, step: 1, report: report("app", None) });
    assert!(matches!(&refused, Reply::Refused(Refusal::Invalid(why)) if why.contains("machine/m1")), "{refused:?}");
}
