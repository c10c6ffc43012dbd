//! Programs say how far they are with the files that they follow.
//!
//! Must stay true: what a program said later is never overwritten by what it said before, however late that comes.

use std::sync::Arc;

use super::Outcome;
use super::config::no_set;
use crate::command::Reply;
use crate::config::check_path;
use crate::config::program::{ProgramReport, ProgramSync};
use crate::event::Event;
use crate::limits::{PROGRAMS_MAX, TEXT_BYTES_MAX};
use crate::name::SetName;
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::session::Owner;
use crate::state::State;
use crate::token::SessionId;

impl State {
    pub(super) fn report_program(
        &mut self,
        session: SessionId,
        step: u64,
        report: &ProgramReport,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let name = match self.sessions.get(&session).map(|session| &session.owner) {
            None => return Err(Refusal::NoSession { session }),
            Some(Owner::Machine(machine)) => {
                return Err(Refusal::Invalid(format!("session {session} is machine/{machine}'s, and no program's")));
            }
            Some(Owner::Client(name)) => name.clone(),
        };
        let known = self.programs.get(&session);
        if known.is_some_and(|known| known.step >= step) {
            return Ok(Reply::Done);
        }
        check_path(&report.file).map_err(|bad| Refusal::Invalid(bad.to_string()))?;
        if report.rejected.as_ref().is_some_and(|rejected| rejected.why.len() > TEXT_BYTES_MAX) {
            return Err(Refusal::Invalid(format!("a reason has at most {TEXT_BYTES_MAX} bytes")));
        }
        let set = self.sets.get(&report.set).ok_or_else(|| no_set(&report.set))?;
        let newest = report.rejected.as_ref().map_or(0, |rejected| rejected.version).max(report.applied);
        if newest > set.head {
            // The set was forgotten and made anew meanwhile.
            return Err(Refusal::Outdated(format!("config/{} has no v{newest}", report.set)));
        }
        let is_new = known.is_none_or(|known| known.report.set != report.set);
        if is_new && self.programs_of(&report.set).count() >= PROGRAMS_MAX {
            let what = format!("programs that follow config/{}", report.set);
            return Err(Refusal::TooMany { what, max: PROGRAMS_MAX as u64 });
        }
        let is_news = known.is_none_or(|known| known.report != *report);
        let sync = ProgramSync { report: report.clone(), step, reported: self.revision, at: self.now };
        self.programs.insert(session, Arc::new(sync));
        self.touched.insert(RecordKey::Program(session));
        if is_news {
            events.push(Event::ProgramReported { session, name, report: report.clone() });
        }
        Ok(Reply::Done)
    }

    pub(super) fn forget_program(&mut self, session: SessionId) {
        if self.programs.remove(&session).is_some() {
            self.touched.insert(RecordKey::Program(session));
        }
    }

    pub(super) fn forget_programs_of(&mut self, set: &SetName) {
        let all: Vec<SessionId> = self.programs_of(set).map(|(session, _)| session).collect();
        all.into_iter().for_each(|session| self.forget_program(session));
    }
}
