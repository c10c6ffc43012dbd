//! The part of the script language that speaks of how config sets are kept and go round.

use std::error::Error;

use leaseward_state::config::program::{ProgramReport, RejectedVersion};
use leaseward_state::config::rollout::{Pin, RolloutStep, Steer};
use leaseward_state::config::spec::{SetHook, SetSpec};
use leaseward_state::{Command, MachineName, SessionId, SetName, State, Term};

use super::parse::Words;

type Read<T> = Result<T, Box<dyn Error>>;

/// Returns the command that a line asks for, if it is one about sets.
pub(super) fn command(name: &str, words: &mut Words, term: Term) -> Read<Option<Command>> {
    Ok(Some(match name {
        "put-set" => put(words)?,
        "program" => program(words)?,
        "pin" => {
            let set = SetName::new(words.next("set")?)?;
            let machine = match words.next("machine")?.as_str() {
                "all" => None,
                name => Some(MachineName::new(name)?),
            };
            let version = words.rest().first().map(|version| version.parse().ok());
            let pin = version.map(|version| Pin { version, by: "ann".into(), why: "a test".into() });
            Command::PinSet { set, machine, pin }
        }
        "resync" => Command::Resync { set: SetName::new(words.next("set")?)?, machines: machines(words)? },
        "roll-release" | "roll-halt" | "roll-back" | "roll-finish" => {
            let (set, version) = (SetName::new(words.next("set")?)?, words.next_number("version")?);
            let step = match name {
                "roll-release" => RolloutStep::Release(machines(words)?),
                "roll-halt" => RolloutStep::Halt(words.next("reason")?),
                "roll-back" => RolloutStep::RollBack(words.next("reason")?),
                _ => RolloutStep::Finish,
            };
            Command::StepRollout { set, version, step, term }
        }
        "steer" => {
            let (set, version) = (SetName::new(words.next("set")?)?, words.next_number("version")?);
            let steer = match words.next("action")?.as_str() {
                "halt" => Steer::Halt,
                "resume" => Steer::Resume,
                "abort" => Steer::Abort,
                _ => Steer::Finish,
            };
            Command::SteerRollout { set, version, steer, by: "ann".into() }
        }
        _ => return Ok(None),
    }))
}

fn machines(words: &mut Words) -> Read<Vec<MachineName>> {
    words.rest().iter().map(|name| Ok(MachineName::new(name.as_str())?)).collect()
}

/// `program SESSION SET:FILE APPLIED step=2 rejected=3 why=…`.
fn program(words: &mut Words) -> Read<Command> {
    let session = SessionId(words.next_number("session")?);
    let follows = words.next("SET:FILE")?;
    let (set, file) = follows.split_once(':').ok_or("SET:FILE")?;
    let applied = words.next_number("version")?;
    let step = words.key("step").map_or(Ok(1), |step| step.parse())?;
    let why = words.key("why").unwrap_or_default();
    let rejected = words.key("rejected").map(|version| version.parse()).transpose()?;
    let rejected = rejected.map(|version| RejectedVersion { version, why });
    let report = ProgramReport { set: SetName::new(set)?, file: file.to_owned(), applied, rejected };
    Ok(Command::ReportProgram { session, step, report })
}

fn put(words: &mut Words) -> Read<Command> {
    let name = words.next("set")?;
    let (name, if_version) = match name.split_once('@') {
        Some((name, version)) => (name.to_owned(), Some(version.parse()?)),
        None => (name, None),
    };
    let mut spec = SetSpec::default();
    spec.rollout.staged = words.flag("staged");
    if let Some(count) = words.key("canaries") {
        spec.rollout.canaries = count.parse()?;
    }
    if let Some(count) = words.key("max-unavailable") {
        spec.rollout.max_unavailable = count.parse()?;
    }
    if let Some(keep) = words.key("keep") {
        spec.keep_versions = keep.parse()?;
    }
    if let Some(millis) = words.key("scan") {
        spec.scan_each_ms = millis.parse()?;
    }
    spec.check = words.key("check").map(|program| SetHook { command: vec![program], timeout_ms: 1000 });
    spec.ignore = words.key("ignore").into_iter().collect();
    spec.members = words.key("label").map(|value| ("label".into(), value)).into_iter().collect();
    spec.quota_bytes = words.key("quota").map(|bytes| bytes.parse()).transpose()?;
    Ok(Command::PutSet { set: SetName::new(name)?, spec: Box::new(spec), if_version })
}

/// Shows what each machine should have of a set.
pub(super) fn wanted(state: &State, set_name: &SetName) -> String {
    let Some(set) = state.set(set_name) else { return "no such set\n".into() };
    let mut out = String::new();
    for (name, machine) in state.machines() {
        let words = match state.wanted_version(set_name, set, name, machine) {
            None => "nothing".to_owned(),
            Some(wanted) => {
                let live = wanted.live.map_or("what it has".to_owned(), |version| format!("v{}", version.number));
                let staged = wanted.staged.map_or_else(String::new, |version| format!(", v{} ready", version.number));
                let attempt = if wanted.attempt > 0 { format!(", attempt {}", wanted.attempt) } else { String::new() };
                format!("{live}{staged}{attempt}")
            }
        };
        out += &format!("{name}: {words}\n");
    }
    out
}

/// Shows what programs should have of a set.
pub(super) fn for_programs(state: &State, set: &SetName) -> String {
    let version = state.set(set).and_then(|set| set.for_programs());
    version.map_or("nothing\n".to_owned(), |version| format!("v{}\n", version.number))
}
