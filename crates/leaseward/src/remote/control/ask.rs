//! Asks a control script, by one ssh for each question.
//!
//! Must stay true: a question that has no answer in time is unknown; it may have been heard. Questions to one machine
//! are bounded in number and time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_raft::random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::limits::CONTROL_QUESTIONS_MAX;
use crate::remote::control::question::{Answer, Question, Reading, SHELL, State, Verb, state};
use crate::remote::near::exit_words;
use crate::remote::sentinel::last_words;
use crate::remote::ssh::Ssh;

/// Asks the scripts of one machine. Clones share what they know.
#[derive(Clone)]
pub(crate) struct Asker {
    ssh: Ssh,
    control: String,
    turns: Arc<Semaphore>,
    /// When the newest answered question was asked.
    answered: Arc<Mutex<Option<Instant>>>,
}

/// Why nothing is known, with a code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
    /// The script cannot be asked so, or says nothing that is understood.
    #[error("{0}")]
    Script(String),
}

impl Asker {
    pub(crate) fn new(ssh: Ssh, control: String) -> Self {
        Self { ssh, control, turns: Arc::new(Semaphore::new(CONTROL_QUESTIONS_MAX)), answered: Arc::default() }
    }

    /// Returns when the newest answered question was asked.
    pub(crate) fn answered(&self) -> Option<Instant> {
        *self.answered.lock().expect("no holder of this lock panics")
    }

    /// Returns the far machine's boot, if it answers.
    ///
    /// # Errors
    /// [`Unknown::Unreachable`].
    pub(crate) async fn boot_id(&self, within: Duration) -> Result<String, Unknown> {
        let environment = BTreeMap::new();
        // Takes no turn: a long start must not make the machine look dead.
        self.ask(&Question { words: Vec::new(), environment: &environment }, within).await.map(|answer| answer.boot_id)
    }

    /// Asks the script about a server.
    ///
    /// # Errors
    /// [`Unknown`]. Whether it was heard is unknown too.
    pub(crate) async fn control(
        &self,
        verb: Verb,
        environment: &BTreeMap<String, String>,
        words: &[&str],
        within: Duration,
    ) -> Result<Answer, Unknown> {
        let words = [&[self.control.as_str(), verb.name()], words].concat();
        let _turn = self.turns.acquire().await;
        self.ask(&Question { words, environment }, within).await
    }

    /// Returns how a server is.
    ///
    /// # Errors
    /// [`Unknown`].
    pub(crate) async fn status(
        &self,
        environment: &BTreeMap<String, String>,
        server: &str,
        within: Duration,
    ) -> Result<State, Unknown> {
        let answer = self.control(Verb::Status, environment, &[server], within).await?;
        state(&answer).map_err(Unknown::Script)
    }

    async fn ask(&self, question: &Question<'_>, within: Duration) -> Result<Answer, Unknown> {
        let nonce = format!("{:032x}", random::unique());
        let script = question.script(&nonce).map_err(|error| Unknown::Script(error.to_string()))?;
        let asked = Instant::now();
        match timeout(within, self.exchange(&script, &nonce)).await {
            Ok(Ok(answer)) => {
                let mut answered = self.answered.lock().expect("no holder of this lock panics");
                *answered = Some(answered.map_or(asked, |known| known.max(asked)));
                Ok(answer)
            }
            Ok(Err(why)) => Err(Unknown::Unreachable(why)),
            Err(_) => Err(Unknown::Unreachable(format!("LW0375: no answer within {} ms", within.as_millis()))),
        }
    }

    async fn exchange(&self, script: &str, nonce: &str) -> Result<Answer, String> {
        let broken = |error: std::io::Error| format!("LW0373: ssh: {error}");
        let mut child = self.ssh.command(SHELL).spawn().map_err(broken)?;
        let (Some(mut write), Some(mut read), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("LW0373: ssh has no pipes".to_owned());
        };
        let mut complaints = Vec::new();
        let mut reading = Reading::new(nonce);
        let answer = async {
            // A login that fails never reads it: what follows says why.
            write.write_all(script.as_bytes()).await.ok();
            write.flush().await.ok();
            let mut piece = vec![0; 4_096];
            loop {
                match read.read(&mut piece).await.map_err(broken)? {
                    0 => return Ok(None),
                    count => {
                        if let Some(answer) = reading.feed(&piece[..count])? {
                            return Ok(Some(answer));
                        }
                    }
                }
            }
        };
        let complain = async {
            let mut piece = [0; 512];
            while let Ok(count) = errors.read(&mut piece).await
                && count > 0
            {
                complaints.extend_from_slice(&piece[..count]);
                complaints.drain(..complaints.len().saturating_sub(4_096));
            }
            std::future::pending::<()>().await;
        };
        let answer: Result<Option<Answer>, String> = tokio::select! {
            answer = answer => answer,
            () = complain => Ok(None),
        };
        if let Some(answer) = answer? {
            return Ok(answer);
        }
        let exit = timeout(Duration::from_millis(200), child.wait()).await;
        let exit = exit.ok().and_then(Result::ok).map_or_else(String::new, exit_words);
        let (noise, said) = (reading.noise(), last_words(&complaints));
        Err(format!("LW0375: no answer{exit}; ssh said {said:?}; the login said {noise:?}"))
    }
}
