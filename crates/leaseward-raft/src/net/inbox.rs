//! Questions of others that are read and not answered yet: bounded in bytes, for each connection, and for all clients together.
//!
//! Must stay true: whoever asks for more than there is room for waits in its own socket, unread; what has room is worked on, so that
//! room comes back. Nodes share nothing with clients: neither how many these are nor what they ask ever holds up an election or the log. Small questions of clients
//! have room of their own: no renewal waits for what somebody else uploads. Who was given room and sends nothing is cut off
//! ([`QUESTION_STALLED_MAX`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    CLIENTS_LARGE_QUESTIONS_BYTES_MAX, CLIENTS_MAX, CLIENTS_SMALL_QUESTIONS_BYTES_MAX, QUESTION_STALLED_MAX,
    QUESTIONS_BYTES_MAX, SMALL_QUESTION_BYTES_MAX,
};

/// The room that all clients of a node have together. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    seats: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for Common {
    fn default() -> Self {
        Self::of(CLIENTS_MAX)
    }
}

impl Common {
    /// Returns the room of so many clients.
    pub(crate) fn of(clients: usize) -> Self {
        Self {
            seats: Arc::new(Semaphore::new(clients)),
            small: Arc::new(Semaphore::new(CLIENTS_SMALL_QUESTIONS_BYTES_MAX)),
            large: Arc::new(Semaphore::new(CLIENTS_LARGE_QUESTIONS_BYTES_MAX)),
        }
    }

    /// Returns the place of one more client, until it is dropped; `None` if there are too many.
    pub(crate) fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seats).try_acquire_owned().ok()
    }
}

/// The room of one connection.
#[derive(Debug)]
pub(crate) struct Inbox {
    own: Arc<Semaphore>,
    /// None for a node's.
    common: Option<Common>,
}

/// Room for one question, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _own: OwnedSemaphorePermit,
    _common: Option<OwnedSemaphorePermit>,
}

impl Inbox {
    /// Returns the room of a client's connection.
    pub(crate) fn of_client(common: Common) -> Self {
        Self { common: Some(common), ..Self::of_node() }
    }

    /// Returns the room of a node's connection.
    pub(crate) fn of_node() -> Self {
        Self { own: Arc::new(Semaphore::new(QUESTIONS_BYTES_MAX)), common: None }
    }

    /// Waits for room for a question of so many bytes. One that is larger than all the room goes alone.
    pub(crate) async fn room(&self, bytes: usize) -> Room {
        let own = take(&self.own, bytes, QUESTIONS_BYTES_MAX).await;
        // Last, so that nobody who has room of all waits for its own.
        let common = match &self.common {
            Some(common) if bytes <= SMALL_QUESTION_BYTES_MAX => {
                Some(take(&common.small, bytes, CLIENTS_SMALL_QUESTIONS_BYTES_MAX).await)
            }
            Some(common) => Some(take(&common.large, bytes, CLIENTS_LARGE_QUESTIONS_BYTES_MAX).await),
            None => None,
        };
        Room { _own: own, _common: common }
    }

    /// Returns after which silence within a question its sender is cut off.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.common.is_some().then_some(QUESTION_STALLED_MAX)
    }
}

async fn take(room: &Arc<Semaphore>, bytes: usize, max: usize) -> OwnedSemaphorePermit {
    let wanted = bytes.min(max) as u32;
    Arc::clone(room).acquire_many_owned(wanted).await.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LARGE: usize = 4 << 20;

    /// Returns all the room that there is for questions of one size.
    fn fill(inbox: &Inbox, bytes: usize) -> Vec<Room> {
        std::iter::from_fn(|| inbox.room(bytes).now_or_never()).collect()
    }

    #[test]
    fn one_connection_has_a_bound_and_all_clients_have_one_and_neither_holds_up_nodes_or_what_is_small() {
        let common = Common::default();
        let first = Inbox::of_client(common.clone());
        let mut held = vec![fill(&first, LARGE)];
        assert_eq!(held[0].len(), QUESTIONS_BYTES_MAX / LARGE);
        assert!(first.room(1).now_or_never().is_none(), "its own room is taken, whatever it asks");
        // More of them than should find room.
        held.extend((0..4).map(|_| fill(&Inbox::of_client(common.clone()), LARGE)));
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), CLIENTS_LARGE_QUESTIONS_BYTES_MAX / LARGE);
        let late = Inbox::of_client(common.clone());
        assert!(late.room(SMALL_QUESTION_BYTES_MAX).now_or_never().is_some(), "a renewal waits for uploads");
        assert_eq!(fill(&Inbox::of_node(), LARGE).len(), QUESTIONS_BYTES_MAX / LARGE, "a node waits for clients");
        held.swap_remove(0);
        assert!(late.room(LARGE).now_or_never().is_some(), "room comes back");
        // One that is larger than all of it goes alone, and not never.
        drop(held);
        assert!(late.room(QUESTIONS_BYTES_MAX + 1).now_or_never().is_some());
    }

    #[test]
    fn small_questions_of_all_clients_have_a_bound_too() {
        let common = Common::default();
        // More of them than should find room.
        let of_each = |_| fill(&Inbox::of_client(common.clone()), SMALL_QUESTION_BYTES_MAX);
        let held: Vec<_> = (0..4).flat_map(of_each).collect();
        assert_eq!(held.len(), CLIENTS_SMALL_QUESTIONS_BYTES_MAX / SMALL_QUESTION_BYTES_MAX);
    }
}
