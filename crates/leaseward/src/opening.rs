//! Opening a machine's session: asked again and again until the cluster answers.
//!
//! Must stay true (rule R1): a question without an answer may have opened the session, and the next one is answered
//! with it: its time began then. So it is believed from the first question on, however often it had to be asked.

use std::time::Duration;

use leaseward_state::command::OpenMachine;
use leaseward_state::{Command, Reply, SessionId};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::client::Client;
use crate::clock::Moment;

/// From one question to the next, at first and at most. Each is an entry of the log, and a machine whose name another one has asks for
/// ever.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// Returns the session of this run of a machine's agent, and from when on it may be believed.
pub(crate) async fn open(client: &Client, open: OpenMachine) -> (SessionId, Moment) {
    let sent = Moment::now();
    let (mut pause, mut said) = (AGAIN, String::new());
    loop {
        let why = match client.write(Command::OpenMachine(open.clone())).await {
            Ok(Reply::Session(session)) => return (session, sent),
            Ok(other) => format!("a strange answer: {other:?}"),
            Err(error) => error.to_string(),
        };
        if said == why {
            debug!(why, "still no session");
        } else {
            warn!(why, "no session yet; trying again");
            said = why;
        }
        sleep(pause).await;
        pause = (pause * 5 / 4).min(AGAIN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use leaseward_raft::net::listener::{self, Serve};
    use leaseward_raft::net::transport::Transport;
    use leaseward_raft::net::wire::{Answer, Ask, Hello, Outcome, Welcome};
    use leaseward_state::machine::MachineProfile;
    use leaseward_state::session::Incarnation;
    use leaseward_state::{MachineName, Request, Revision};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Validity;
    use crate::keeper::Keeper;

    const TTL: Duration = Duration::from_secs(10);

    /// A node that opens a session at the first question, and says so at the second one only.
    #[derive(Default)]
    struct Forgetful {
        opened: Mutex<Vec<(Incarnation, Moment)>>,
    }

    impl Serve for Forgetful {
        fn welcome(&self, _: &Hello) -> Welcome {
            Welcome::Welcome { cluster: 1, node: 1, instance: 1 }
        }

        async fn answer(self: Arc<Self>, _: Arc<Hello>, ask: Ask) -> Answer {
            let Ask::Propose(Request { command: Command::OpenMachine(open), .. }) = ask else {
                return Answer::Failed { code: "LW0501".into(), why: "nobody leads any more".into() };
            };
            let mut opened = self.opened.lock().unwrap();
            opened.push((open.incarnation, Moment::now()));
            match opened.len() {
                1 => Answer::Failed { code: "LW0607".into(), why: "the answer is lost".into() },
                _ => {
                    Answer::Proposed(Outcome::Committed { revision: Revision(1), reply: Reply::Session(SessionId(7)) })
                }
            }
        }

        fn hears(&self, _: &Hello) -> bool {
            true
        }

        fn gone(&self, _: &Hello) {}
    }

    /// Rule R1, where it is easily broken: the leader counts from the first question, which it answered in vain.
    #[tokio::test]
    async fn a_session_that_is_asked_for_twice_is_believed_from_the_first_question_on() {
        let node = Arc::new(Forgetful::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(listener::run(listener, Arc::clone(&node)));
        let client = Client::new(vec![address], Transport::PlainLoopback);
        let asked = OpenMachine {
            machine: MachineName::new("m1").unwrap(),
            incarnation: Incarnation { boot_id: "boot".into(), instance: 3 },
            profile: MachineProfile::default(),
            swept: true,
            ttl_ms: TTL.as_millis() as u64,
        };
        let (session, sent) = open(&client, asked).await;
        let believed = Keeper::start(client, session, TTL, sent).standing().borrow().validity;
        let questions = node.opened.lock().unwrap().clone();
        serving.abort();
        let [(first, heard_first), (second, heard_again)] = questions.as_slice() else { panic!("{questions:?}") };
        assert_eq!(first, second, "only the same run is answered with the same session");
        // The leader may give its leases away when this much is over, counted from when it heard the first question.
        let least = heard_first.until(heard_again);
        assert!(least >= AGAIN, "the second question came after {least:?}");
        let now = Moment::now();
        let allowed = Validity::from_send(*heard_first, TTL).remaining_at(&now);
        let remaining = believed.remaining_at(&now);
        assert!(remaining <= allowed, "believed for {remaining:?}, while the leader's patience ends in {allowed:?}");
    }
}
