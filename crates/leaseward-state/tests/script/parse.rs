//! Lines of a script, read into commands.

use std::collections::BTreeMap;
use std::error::Error;

use leaseward_state::command::{Acquire, Assign, Condition, OpenMachine, PublishSet, ServerReport};
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::machine::{Cordon, MachineProfile};
use leaseward_state::policy::{Pause, Policy};
use leaseward_state::server::{
    Cause, Certificate, Connection, Destination, Exit, FenceLevel, FenceProof, ServerSpec, ServerStatus, Wanted,
};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    Command, FencingToken, LeaseName, MachineName, Revision, ServerName, SessionId, SetName, State, Term, UnixMillis,
};

use super::token_of;

type Read<T> = Result<T, Box<dyn Error>>;

/// The words of a line: those with a key, and those without, in order.
pub(crate) struct Words {
    name: String,
    plain: Vec<String>,
    keyed: Vec<(String, String)>,
}

impl Words {
    pub(crate) fn new(name: String, words: impl Iterator<Item = (Option<String>, String)>) -> Self {
        let mut this = Self { name, plain: Vec::new(), keyed: Vec::new() };
        for (key, value) in words {
            match key {
                Some(key) => this.keyed.push((key, value)),
                None => this.plain.push(value),
            }
        }
        this
    }

    fn of(line: &str) -> Self {
        let mut parts = line.split_whitespace().map(str::to_owned);
        let name = parts.next().unwrap_or_default();
        let words = parts.map(|part| match part.split_once('=') {
            Some((key, value)) => (Some(key.to_owned()), value.to_owned()),
            None => (None, part),
        });
        Self::new(name, words)
    }

    pub(crate) fn key(&mut self, key: &str) -> Option<String> {
        let at = self.keyed.iter().position(|(found, _)| found == key)?;
        Some(self.keyed.remove(at).1)
    }

    fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(&mut self, key: &str) -> Read<Option<T>> {
        Ok(self.key(key).map(|text| text.parse()).transpose()?)
    }

    fn time(&mut self, key: &str, default: u64) -> Read<u64> {
        self.key(key).map_or(Ok(default), |text| millis(&text))
    }

    pub(crate) fn flag(&mut self, word: &str) -> bool {
        let at = self.plain.iter().position(|found| found == word);
        at.map(|at| self.plain.remove(at)).is_some()
    }

    pub(crate) fn next(&mut self, what: &str) -> Read<String> {
        if self.plain.is_empty() {
            Err(format!("{}: which {what}?", self.name).into())
        } else {
            Ok(self.plain.remove(0))
        }
    }

    pub(crate) fn next_number(&mut self, what: &str) -> Read<u64> {
        Ok(self.next(what)?.parse()?)
    }

    pub(crate) fn rest(&mut self) -> Vec<String> {
        std::mem::take(&mut self.plain)
    }

    pub(crate) fn finish(&self) -> Read<()> {
        if self.plain.is_empty() && self.keyed.is_empty() {
            return Ok(());
        }
        Err(format!("{}: what are {:?} {:?}?", self.name, self.plain, self.keyed).into())
    }
}

/// Returns milliseconds: `250ms`, `3s`, `2h`, or a plain number of them.
pub(crate) fn millis(text: &str) -> Read<u64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "" | "ms" => 1,
        "s" => 1000,
        "h" => 3_600_000,
        other => return Err(format!("no unit of time: {other}").into()),
    };
    Ok(digits.parse::<u64>()? * unit)
}

pub(crate) fn client(name: &str, ttl_ms: u64) -> Command {
    Command::OpenSession { name: name.into(), ttl_ms }
}

/// Returns the command that a line asks for. What a leader would look up is looked up in the state.
pub(crate) fn command(words: &mut Words, state: &State, present: Term) -> Read<Command> {
    let term = Term(words.number("term")?.unwrap_or(present.0));
    Ok(match words.name.clone().as_str() {
        "open" => client(&words.next("name")?, words.time("ttl", 3000)?),
        "machine" => Command::OpenMachine(machine(words)?),
        "end" => Command::EndSession { session: SessionId(words.next_number("session")?) },
        "close" => {
            let ids: Result<_, _> = words.rest().iter().map(|id| id.parse().map(SessionId)).collect();
            Command::CloseSessions { sessions: ids?, term }
        }
        "acquire" => Command::Acquire(acquire(words)?),
        "withdraw" => Command::Withdraw {
            lease: LeaseName::new(words.next("lease")?)?,
            session: SessionId(words.number("session")?.ok_or("session=")?),
            holder: words.key("holder").unwrap_or_default(),
        },
        "release" => Command::Release {
            lease: LeaseName::new(words.next("lease")?)?,
            token: FencingToken(words.number("token")?.ok_or("token=")?),
        },
        "revoke" => Command::Revoke {
            lease: LeaseName::new(words.next("lease")?)?,
            token: words.number("token")?.map(FencingToken),
        },
        "end-delay" => Command::EndDelay {
            lease: LeaseName::new(words.next("lease")?)?,
            token: FencingToken(words.number("token")?.ok_or("token=")?),
            term,
        },
        "cordon" | "drain" => {
            let drains = words.name == "drain";
            let machine = MachineName::new(words.next("machine")?)?;
            let until = words.number("until")?.map(UnixMillis);
            let cordon = words.key("why").map(|why| Cordon { why, drains, quarantine: false, until });
            Command::Cordon { machine, cordon }
        }
        "quarantine" => {
            let machine = MachineName::new(words.next("machine")?)?;
            let until = words.number("until")?.map(UnixMillis);
            let cordon = Cordon { why: "lost too often".into(), drains: false, quarantine: true, until };
            Command::Quarantine { machine, cordon, term }
        }
        "restart-server" => Command::Restart { server: ServerName::new(words.next("server")?)? },
        "pause" => {
            let server = ServerName::new(words.next("server")?)?;
            let until = words.number("until")?.map(UnixMillis);
            Command::Pause { server, pause: words.key("why").map(|why| Pause { why, until }) }
        }
        "confirm-dead" => Command::ConfirmDead {
            machine: MachineName::new(words.next("machine")?)?,
            by: words.key("by").unwrap_or_default(),
        },
        "policy" => {
            let until = words.number("until")?.map(UnixMillis);
            let maintenance = words.key("maintenance").map(|why| Pause { why, until });
            let if_version = words.number("if")?;
            let config_bytes_max = words.number("config-bytes-max")?.unwrap_or(0);
            let policy = Policy { maintenance, config_bytes_max, ..Policy::default() };
            Command::PutPolicy { policy: Box::new(policy), if_version }
        }
        "relocate" => {
            let server = ServerName::new(words.next("server")?)?;
            let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
            let machine = MachineName::new(words.next("machine")?)?;
            let to = Destination { machine, cause: Cause::Drained, back_to: None };
            Command::Relocate { server, token, to, term }
        }
        "suspect" | "trust" => {
            let suspected = words.name == "suspect";
            let machine = MachineName::new(words.next("machine")?)?;
            let known = state.machine(&machine).and_then(|machine| machine.session).unwrap_or_default();
            let session = words.number("session")?.map_or(known, SessionId);
            Command::Suspect { machine, session, suspected, term: words.number("term")?.map_or(term, Term) }
        }
        "prepare" => {
            let server = ServerName::new(words.next("server")?)?;
            let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
            Command::Prepare { server, token, machine: MachineName::new(words.next("machine")?)?, term }
        }
        "prepared" => {
            let server = ServerName::new(words.next("server")?)?;
            let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
            let machine = MachineName::new(words.next("machine")?)?;
            Command::ReportPrepared { machine, server, token, lacking: words.key("lacking") }
        }
        "note-voters" => {
            Command::NoteVoters { voters: vec![words.next("voter")?], why: "no word from n3".into(), term }
        }
        "feature-level" => Command::RaiseFeatureLevel { to: words.next_number("level")? as u32, term },
        "end-pauses" => Command::EndPauses { term },
        "prove-dead" => {
            let server = ServerName::new(words.next("server")?)?;
            let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
            Command::ProveDead { server, token, proof: FenceProof::Hook("n1".into()), term }
        }
        "remove-machine" => Command::RemoveMachine { machine: MachineName::new(words.next("machine")?)? },
        "server" => Command::PutServer {
            server: ServerName::new(words.next("server")?)?,
            if_version: words.number("if")?,
            spec: Box::new(spec(words)?),
        },
        "remove-server" => {
            Command::RemoveServer { server: ServerName::new(words.next("server")?)?, if_version: words.number("if")? }
        }
        "start" => Command::SetWanted { server: ServerName::new(words.next("server")?)?, wanted: Wanted::Running },
        "stop" => Command::SetWanted { server: ServerName::new(words.next("server")?)?, wanted: Wanted::Stopped },
        "move" => Command::Move {
            server: ServerName::new(words.next("server")?)?,
            to: MachineName::new(words.next("machine")?)?,
            rollback: words.flag("rollback"),
        },
        "assign" => Command::Assign(assign(words, state, term)?),
        "give-up" => {
            Command::GiveUp { server: ServerName::new(words.next("server")?)?, why: words.next("reason")?, term }
        }
        "report" => report(words, state)?,
        "publish" => Command::Publish {
            author: words.key("author").unwrap_or_else(|| "ann".into()),
            message: words.key("message").unwrap_or_default(),
            sets: words.rest().iter().map(|text| publish(text)).collect::<Read<_>>()?,
        },
        "remove-set" => Command::RemoveSet { set: SetName::new(words.next("set")?)? },
        "sync" => Command::ReportSync {
            machine: MachineName::new(words.next("machine")?)?,
            sets: words.rest().iter().map(|text| sync(text)).collect::<Read<_>>()?,
        },
        "atomic" => {
            let mut conditions = Vec::new();
            while let Some(text) = words.key("if") {
                conditions.push(condition(&text)?);
            }
            let parse = |line: &String| {
                let mut words = Words::of(line);
                let command = command(&mut words, state, present)?;
                words.finish()?;
                Ok(command)
            };
            Command::Atomic { conditions, commands: words.rest().iter().map(parse).collect::<Read<_>>()? }
        }
        "settle" => {
            let server = ServerName::new(words.next("server")?)?;
            let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
            Command::Settle { server, token, fence: proof(words)?, term }
        }
        other => match super::sets::command(other, words, term)? {
            Some(command) => command,
            None => return Err(format!("nobody knows how to {other}").into()),
        },
    })
}

fn machine(words: &mut Words) -> Read<OpenMachine> {
    let profile = MachineProfile {
        fence: level(words.key("fence").as_deref().unwrap_or("F2"))?,
        address: "127.0.0.1".into(),
        version: "1".into(),
        labels: words.key("label").map(|value| ("label".into(), value)).into_iter().collect(),
        capacity: None,
        start_slots: 0,
        watchdog_ms: None,
    };
    Ok(OpenMachine {
        machine: MachineName::new(words.next("machine")?)?,
        incarnation: Incarnation {
            boot_id: words.key("boot").unwrap_or_else(|| "b1".into()),
            instance: instance(words.key("run").as_deref().unwrap_or("1"))?,
        },
        profile,
        swept: words.flag("swept"),
        ttl_ms: words.time("ttl", 3000)?,
    })
}

/// Returns what an agent calls itself: `2` is the second run of one that has no name, `a.2` of the agent `a`.
fn instance(text: &str) -> Read<u128> {
    let (agent, count) = text.split_once('.').unwrap_or(("", text));
    let agent = agent.bytes().fold(0, |agent, letter| agent << 8 | u128::from(letter));
    Ok(agent << 64 | count.parse::<u128>()?)
}

fn level(text: &str) -> Read<FenceLevel> {
    Ok(match text {
        "F0" => FenceLevel::F0,
        "F1" => FenceLevel::F1,
        "F2" => FenceLevel::F2,
        other => return Err(format!("no level: {other}").into()),
    })
}

fn acquire(words: &mut Words) -> Read<Acquire> {
    let mut meta = BTreeMap::new();
    if let Some(bytes) = words.number::<usize>("meta")? {
        meta.insert("k".to_owned(), "v".repeat(bytes - 1));
    }
    Ok(Acquire {
        lease: LeaseName::new(words.next("lease")?)?,
        session: SessionId(words.number("session")?.ok_or("session=")?),
        holder: words.key("holder").unwrap_or_default(),
        wait: words.flag("wait"),
        priority: words.number("priority")?.unwrap_or(0),
        lock_delay_ms: words.time("delay", 0)?,
        meta,
    })
}

fn spec(words: &mut Words) -> Read<ServerSpec> {
    let candidates = words.key("candidates").unwrap_or_default();
    let names = candidates.split(',').filter(|name| !name.is_empty()).map(MachineName::new);
    let command = words.key("command").unwrap_or_else(|| "/bin/serve".into());
    Ok(ServerSpec {
        environment: words
            .number::<usize>("environment")?
            .map(|bytes| ("E".to_owned(), "x".repeat(bytes - 1)))
            .into_iter()
            .collect(),
        candidates: names.collect::<Result<_, _>>()?,
        start_timeout_ms: 30_000,
        stop_grace_ms: 10_000,
        priority: words.number("priority")?.unwrap_or(0),
        ..ServerSpec::new(command.split(' '))
    })
}

fn proof(words: &mut Words) -> Read<Option<FenceProof>> {
    let Some(text) = words.key("proof") else { return Ok(None) };
    Ok(Some(match text.split_once(':') {
        None if text == "rebooted" => FenceProof::Rebooted,
        Some(("grace", time)) => FenceProof::Grace(millis(time)?),
        Some(("operator", name)) => FenceProof::Operator(name.into()),
        _ => return Err(format!("no proof: {text}").into()),
    }))
}

fn assign(words: &mut Words, state: &State, term: Term) -> Read<Assign> {
    let server = ServerName::new(words.next("server")?)?;
    let machine = MachineName::new(words.next("machine")?)?;
    let seen = state.machine(&machine).and_then(|machine| machine.session).unwrap_or_default();
    let last = state.server(&server).and_then(|server| server.last_token);
    Ok(Assign {
        server,
        machine,
        session: words.number("session")?.map_or(seen, SessionId),
        after: words.number("after")?.map_or(last, |token| Some(FencingToken(token))),
        fence: proof(words)?,
        cause: match words.key("cause").as_deref() {
            None | Some("started") => Cause::Started,
            Some("lost") => Cause::MachineLost,
            Some("moved") => Cause::Moved,
            Some(other) => return Err(format!("no cause: {other}").into()),
        },
        term,
    })
}

fn report(words: &mut Words, state: &State) -> Read<Command> {
    let server = ServerName::new(words.next("server")?)?;
    let token = words.number("token")?.map_or_else(|| token_of(state, &server), FencingToken);
    let restarts = words.number("restarts")?.unwrap_or(0);
    let why = words.key("why");
    let text = why.clone().unwrap_or_else(|| "exit 1".into());
    let status = |status| ServerReport::Status { status, restarts };
    let report = match words.next("status")?.as_str() {
        "starting" => status(ServerStatus::Starting { pid: 7 }),
        "running" => status(ServerStatus::Running { pid: 7 }),
        "unhealthy" => status(ServerStatus::Unhealthy { pid: 7, why: text }),
        "stopping" => status(ServerStatus::Stopping),
        "crashed" => ServerReport::Crashed { restarts, why: text },
        "absent" => ServerReport::Absent,
        "clients" => {
            let connection = |text: &String| -> Read<Connection> {
                let (local, peer) = text.split_once('<').ok_or("local<peer")?;
                Ok(Connection { local: local.parse()?, peer: peer.parse()? })
            };
            ServerReport::Clients(words.rest().iter().map(connection).collect::<Read<_>>()?)
        }
        "not-started" => ServerReport::NotStarted { why: text },
        "dead" => {
            let certificate = Certificate {
                token: words.number("certificate")?.map_or(token, FencingToken),
                boot_id: "b1".into(),
                proven_at_boottime_ns: 99,
                exit: Exit::Signal(9),
            };
            ServerReport::Dead { certificate, failure: why }
        }
        other => return Err(format!("no status: {other}").into()),
    };
    Ok(Command::ReportServer { server, token, report })
}

/// `app@0`: from parent 0; `app`: from whatever it is; `app@0:files:bytes`; `app:1:10:3/500`: with a delta of 500
/// bytes upon version 3.
fn publish(text: &str) -> Read<PublishSet> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let (name, parent) = name.split_once('@').map_or((name, None), |(name, parent)| (name, Some(parent)));
    Ok(PublishSet {
        set: SetName::new(name)?,
        parent: parent.map(str::parse).transpose()?,
        manifest: Digest([7; 32]),
        files: parts.next().map_or(Ok(1), str::parse)?,
        bytes: parts.next().map_or(Ok(10), str::parse)?,
        delta: parts.next().map(delta).transpose()?,
    })
}

fn delta(text: &str) -> Read<InlineDelta> {
    let (base, size) = text.split_once('/').ok_or("BASE/BYTES")?;
    Ok(InlineDelta { base: base.parse()?, bytes: vec![5; size.parse()?].into() })
}

/// `app:3:applied`.
fn sync(text: &str) -> Read<(SetName, u64, SyncState)> {
    let mut parts = text.split(':');
    let set = SetName::new(parts.next().unwrap_or_default())?;
    let applied = parts.next().ok_or("SET:VERSION:STATE")?.parse()?;
    let state = match parts.next() {
        None | Some("applied") => SyncState::Applied,
        Some("behind") => SyncState::Behind,
        Some("rejected") => SyncState::Rejected { version: applied + 1, why: "the check said no".into() },
        Some(other) => return Err(format!("no state: {other}").into()),
    };
    Ok((set, applied, state))
}

fn condition(text: &str) -> Read<Condition> {
    let words: Vec<_> = text.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["fence", lease, token] => {
            Condition::Fence { lease: LeaseName::new(*lease)?, token: FencingToken(token.parse()?) }
        }
        ["free", lease] => Condition::LeaseFree(LeaseName::new(*lease)?),
        ["server", name, version] => Condition::Server(ServerName::new(*name)?, version.parse()?),
        ["set", name, version] => Condition::Set(SetName::new(*name)?, version.parse()?),
        ["machine", name, revision] => Condition::Machine(MachineName::new(*name)?, Revision(revision.parse()?)),
        _ => return Err(format!("no condition: {text}").into()),
    })
}
