//! The script language: one line, one entry. `parse.rs` reads it, `show.rs` writes what came of it.

mod parse;
mod sets;
mod show;

use std::error::Error;

use goldenscript::{Argument, Context, Runner};
use leaseward_state::{
    ClusterMillis, Entry, FencingToken, Generation, MachineName, Request, RequestKey, Revision, State, Term,
};
use leaseward_state::{ServerName, SetName, UnixMillis};

use parse::Words;

/// A state, and the leader and the clock that its entries come from.
#[derive(Default)]
pub(crate) struct Story {
    state: State,
    term: Term,
    /// Cluster time.
    clock: u64,
    /// How far the leader's wall clock is ahead of it.
    wall_ahead: i64,
}

type Outcome = Result<String, Box<dyn Error>>;

impl Runner for Story {
    type Command = goldenscript::Command;

    fn start_script(&mut self) -> Result<(), Box<dyn Error>> {
        self.term = Term(1);
        Ok(())
    }

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Outcome {
        let mut words = Words::new(command.name.clone(), command.args.iter().map(word));
        let output = match command.name.as_str() {
            "clock" => self.set_clock(&mut words)?,
            "wall" => self.set_wall(&mut words)?,
            "term" => self.set_term(&mut words)?,
            "generation" => {
                self.state = State::new(Generation(words.next_number("generation")? as u16));
                String::new()
            }
            "restart" => self.restart()?,
            "state" => show::state(&self.state),
            "ledger" => self.ledger(&mut words)?,
            "orders" => show::orders(&self.state.orders(&MachineName::new(words.next("machine")?)?)),
            "wanted" => sets::wanted(&self.state, &SetName::new(words.next("set")?)?),
            "config-bytes" => format!("{} bytes\n", self.state.config_bytes()),
            "for-programs" => sets::for_programs(&self.state, &SetName::new(words.next("set")?)?),
            "flood" => self.flood(&mut words)?,
            _ => self.entry(&mut words)?,
        };
        words.finish()?;
        self.state.check_invariants()?;
        Ok(output)
    }
}

fn word(argument: &Argument) -> (Option<String>, String) {
    match argument {
        Argument::KeyValue(key, value) => (Some(key.clone()), value.clone()),
        Argument::Positional(value) => (None, value.clone()),
        other => panic!("{other:?}"),
    }
}

impl Story {
    fn entry(&mut self, words: &mut Words) -> Outcome {
        let key = words.key("key").map(|text| request_key(&text)).transpose()?;
        let named = words.flag("named");
        let command = parse::command(words, &self.state, self.term)?;
        let applied = self.apply(Request { key, named, command });
        Ok(show::applied(self.state.revision(), &applied))
    }

    fn apply(&mut self, request: Request) -> leaseward_state::Applied {
        let revision = self.state.revision().next();
        let at = UnixMillis(self.clock.saturating_add_signed(self.wall_ahead));
        let elapsed = ClusterMillis(self.clock);
        self.state.apply(&Entry { revision, term: self.term, at, elapsed, request })
    }

    fn set_clock(&mut self, words: &mut Words) -> Outcome {
        self.clock = parse::millis(&words.next("time")?)?;
        Ok(String::new())
    }

    /// The leader's wall clock is so far ahead, or behind.
    fn set_wall(&mut self, words: &mut Words) -> Outcome {
        let (way, far) = (words.next("ahead or behind")?, parse::millis(&words.next("time")?)? as i64);
        self.wall_ahead = match way.as_str() {
            "ahead" => far,
            "behind" => -far,
            _ => return Err("wall ahead|behind TIME".into()),
        };
        Ok(String::new())
    }

    fn set_term(&mut self, words: &mut Words) -> Outcome {
        self.term = Term(words.next_number("term")?);
        Ok(String::new())
    }

    /// What a process that starts again knows: the records, and nothing else.
    fn restart(&mut self) -> Outcome {
        let records: Vec<_> = self.state.records().collect();
        self.state = State::restore(records.clone())?;
        assert!(self.state.records().eq(records), "the same records");
        Ok(String::new())
    }

    fn ledger(&mut self, words: &mut Words) -> Outcome {
        let after = words.key("after").map(|text| text.parse()).transpose()?.unwrap_or(0);
        let count = words.flag("count");
        let Some(events) = self.state.events_after(Revision(after)) else {
            return Ok(format!("not all kept: compacted at {}\n", self.state.compacted()));
        };
        if count {
            return Ok(format!("{} events\n", events.count()));
        }
        Ok(events
            .map(|recorded| {
                let (event, at) = (&recorded.event, recorded.at);
                let place = format!("@{}.{} {at}ms", recorded.revision, recorded.part);
                format!("{place} {}/{}: {}\n", event.kind(), event.subject(), show::plain(event))
            })
            .collect())
    }

    /// Many entries that nobody wants to read.
    fn flood(&mut self, words: &mut Words) -> Outcome {
        for _ in 0..words.next_number("count")? {
            self.apply(parse::client("flood", 1000).into());
            let session = leaseward_state::SessionId(self.state.revision().0);
            self.apply(leaseward_state::Command::EndSession { session }.into());
        }
        Ok(format!("@{}\n", self.state.revision()))
    }
}

fn request_key(text: &str) -> Result<RequestKey, Box<dyn Error>> {
    let (client, sequence) = text.split_once('/').ok_or("key=CLIENT/SEQUENCE")?;
    Ok(RequestKey { client: client.parse()?, sequence: sequence.parse()? })
}

/// The token a server's present or last machine would name.
fn token_of(state: &State, server: &ServerName) -> FencingToken {
    state.server(server).and_then(|server| server.last_token).unwrap_or(FencingToken(0))
}
