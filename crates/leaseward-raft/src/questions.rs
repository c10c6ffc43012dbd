//! What people want to know of a machine and only its agent can say: what a server printed
//! there, and what stands in the directory of a config set.
//!
//! An agent opens connections and nobody opens one to it. So it asks a node again and again whether anybody has a
//! question, and says the answer on the same connection. Nobody knows which node that is: whoever is asked by a person
//! asks all of them.
//!
//! Must stay true: nothing of it goes through the log; a question is handed out until it is answered or its time is
//! over, so an agent that breaks off, or moves to another node, still gets it; questions, answers and waiting are bounded.

use std::collections::BTreeMap;
use std::sync::Mutex;

use leaseward_state::MachineName;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::limits::{ASKED_ABOUT_WITHIN, PRINTED_WITHIN, QUESTIONS_WAITING_MAX};
use crate::net::wire::{About, Answer, Ask, Purpose, Question, Told};
use crate::random;
use crate::replica::Replica;

/// What a node says that has no room for a question.
const FULL: &str = "LW0503";

/// The questions that wait at this node.
pub(crate) struct Questions {
    waiting: Mutex<BTreeMap<u128, Waiting>>,
    changed: watch::Sender<()>,
}

struct Waiting {
    machine: MachineName,
    question: Question,
    answer: Option<oneshot::Sender<Told>>,
}

impl Default for Questions {
    fn default() -> Self {
        Self { waiting: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Questions {
    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u128, Waiting>> {
        self.waiting.lock().expect("no holder of this lock panics")
    }

    /// Returns what a machine's agent says; `None` if it does not come for the question, or does not answer in time.
    /// Dropping the future withdraws the question.
    pub(crate) async fn ask(&self, machine: MachineName, about: About) -> Option<Told> {
        let id = random::unique();
        let (send, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= QUESTIONS_WAITING_MAX {
                let why = format!("{QUESTIONS_WAITING_MAX} questions to machines wait at this node");
                return Some(Told::Failed { code: FULL.into(), why });
            }
            let question = Question { id, about };
            waiting.insert(id, Waiting { machine, question, answer: Some(send) });
        }
        let _withdraw = Withdraw { questions: self, id };
        self.changed.send_replace(());
        timeout(PRINTED_WITHIN, answer).await.ok()?.ok()
    }

    /// Returns a question to a machine as soon as there is one; `None` after a while without. Cancel safe.
    pub(crate) async fn next(&self, machine: &MachineName) -> Option<Question> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                let found =
                    self.waiting().values().find(|waiting| waiting.machine == *machine).map(|of| of.question.clone());
                if found.is_some() || changed.changed().await.is_err() {
                    return found;
                }
            }
        };
        timeout(ASKED_ABOUT_WITHIN, found).await.ok()?
    }

    /// Gives an answer to whoever waits for it, if anybody still does.
    pub(crate) fn answered(&self, id: u128, told: Told) {
        if let Some(waiting) = self.waiting().remove(&id)
            && let Some(answer) = waiting.answer
        {
            answer.send(told).ok();
        }
    }
}

struct Withdraw<'a> {
    questions: &'a Questions,
    id: u128,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.questions.waiting().remove(&self.id);
    }
}

impl Replica {
    /// Returns what a machine's agent says; `None` if it does not answer in time. Lines are at most the last
    /// [`crate::limits::PRINTED_BYTES_MAX`] of them.
    pub async fn told(&self, machine: MachineName, about: About) -> Option<Told> {
        let mut asked = JoinSet::new();
        for node in self.status().membership.nodes.into_keys().filter(|node| *node != self.node()) {
            let replica = self.clone();
            let ask = Ask::Told { machine: machine.clone(), about: about.clone() };
            asked.spawn(async move {
                // Not on the connection of the consensus: a node of an older release closes it when it is asked this.
                match replica.ask(node, Purpose::Bulk, &ask, PRINTED_WITHIN).await {
                    Ok(Answer::Told(told)) => told,
                    Ok(_) | Err(_) => None,
                }
            });
        }
        let here = self.clone();
        asked.spawn(async move { here.shared.questions.ask(machine, about).await });
        first(asked).await
    }
}

/// Returns the first word of the machine, also if it refuses; that a node has no room, once nobody can say more.
async fn first(mut asked: JoinSet<Option<Told>>) -> Option<Told> {
    let until = Instant::now() + PRINTED_WITHIN;
    let mut full = None;
    while let Ok(Some(answer)) = timeout_at(until, asked.join_next()).await {
        match answer {
            // Another node may have more room.
            Ok(Some(told)) if is_of_node(&told) => full = Some(told),
            Ok(Some(told)) => return Some(told),
            Ok(None) | Err(_) => {}
        }
    }
    full
}

/// Returns whether a node said this itself, as it has no room for a question.
fn is_of_node(told: &Told) -> bool {
    matches!(told, Told::Failed { code, .. } if code == FULL)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    fn names() -> (MachineName, About) {
        let server = leaseward_state::ServerName::new("pay").unwrap();
        (MachineName::new("m1").unwrap(), About::Printed { server, lines: 2 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_handed_out_until_it_is_answered() {
        let questions = Arc::new(Questions::default());
        let (machine, about) = names();
        let asking = Arc::clone(&questions);
        let asked = tokio::spawn({
            let (machine, about) = (machine.clone(), about.clone());
            async move { asking.ask(machine, about).await }
        });
        let first = questions.next(&machine).await.expect("a question");
        assert_eq!(first.about, about);
        // The agent broke off, and comes again.
        assert_eq!(questions.next(&machine).await.as_ref(), Some(&first));
        assert_eq!(questions.next(&MachineName::new("m2").unwrap()).await, None, "it is no question to m2");
        questions.answered(first.id + 1, Told::NotHere);
        questions.answered(first.id, Told::Lines(vec!["hello".into()]));
        assert_eq!(asked.await.unwrap(), Some(Told::Lines(vec!["hello".into()])));
        assert!(questions.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_nothing_is_left() {
        let questions = Questions::default();
        let (machine, about) = names();
        assert_eq!(questions.ask(machine.clone(), about.clone()).await, None);
        assert_eq!(questions.next(&machine).await, None, "its time is over");
        let asks = (0..=QUESTIONS_WAITING_MAX).map(|_| questions.ask(machine.clone(), about.clone()));
        let answers = futures_of(asks).await;
        let refused = |answer: &Option<Told>| matches!(answer, Some(Told::Failed { code, .. }) if code == "LW0503");
        assert_eq!(answers.iter().filter(|answer| refused(answer)).count(), 1);
        assert!(questions.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_machine_refuses_is_its_answer_and_a_full_node_is_heard_last() {
        let failed = |code: &str| Some(Told::Failed { code: code.into(), why: "w".into() });
        let asked = |answers: Vec<Option<Told>>| {
            let mut asked = JoinSet::new();
            for (seconds, answer) in answers.into_iter().enumerate() {
                asked.spawn(async move {
                    sleep(Duration::from_secs(seconds as u64)).await;
                    answer
                });
            }
            // A node where nobody comes for the question.
            asked.spawn(std::future::pending());
            asked
        };
        let begun = Instant::now();
        assert_eq!(first(asked(vec![failed(FULL), failed("LW0804")])).await, failed("LW0804"));
        assert_eq!(begun.elapsed(), Duration::from_secs(1), "nobody else is waited for");
        assert_eq!(first(asked(vec![failed(FULL), None])).await, failed(FULL));
        assert_eq!(first(asked(vec![None])).await, None);
    }

    async fn futures_of<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
        let mut all: Vec<_> = all.map(Box::pin).collect();
        let mut answers = Vec::new();
        std::future::poll_fn(move |context| {
            all.retain_mut(|one| match one.as_mut().poll(context) {
                std::task::Poll::Ready(answer) => {
                    answers.push(answer);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if all.is_empty() { std::task::Poll::Ready(std::mem::take(&mut answers)) } else { std::task::Poll::Pending }
        })
        .await
    }
}
