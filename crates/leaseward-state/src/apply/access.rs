//! Tokens of people and programs.

use std::sync::Arc;

use super::Outcome;
use crate::access::{Access, AccessToken};
use crate::command::Reply;
use crate::event::Event;
use crate::name::TokenName;
use crate::record::RecordKey;
use crate::state::State;

impl State {
    /// Returns who may ask what.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(super) fn change_token(
        &mut self,
        name: &TokenName,
        token: Option<&AccessToken>,
        by: &str,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let token = token.map(|token| AccessToken { made: self.now, ..token.clone() });
        self.access = Arc::new(self.access.with(name, token.as_ref())?);
        self.touched.insert(RecordKey::Access);
        let roles = token.map(|token| token.roles).unwrap_or_default();
        events.push(Event::TokenChanged { token: name.clone(), roles, by: by.to_owned() });
        Ok(Reply::Done)
    }
}
