//! Says in the sync monitor how far a program is: under a session that it keeps, in the background.
//!
//! Must stay true: what was said last is what is shown, however long the cluster was away; a session that ended is
//! followed by another one; what is no longer followed is shown no longer.

use leaseward_state::config::program::ProgramReport;
use leaseward_state::{Command, Refusal, Reply, SessionId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::client::Client;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::limits::{CONFIG_RETRY, PROGRAM_TTL, WRITE_WITHIN};

/// What is to be said, counted from 1.
#[derive(Debug, Clone)]
struct Said {
    step: u64,
    report: ProgramReport,
}

/// What became of what was said last.
#[derive(Debug, Clone)]
struct Heard {
    step: u64,
    refused: Option<Refusal>,
}

/// Says how far a program is, until it is dropped.
pub(crate) struct Reporter {
    said: watch::Sender<Said>,
    heard: watch::Receiver<Heard>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts to say it.
    pub(crate) fn start(client: Client, name: String, report: ProgramReport) -> Self {
        let (said, to_say) = watch::channel(Said { step: 1, report });
        let (tell, heard) = watch::channel(Heard { step: 0, refused: None });
        let task = tokio::spawn(keep_saying(client, name, to_say, tell));
        Self { said, heard, task }
    }

    /// Says this from now on: if it is something else, or `again`.
    pub(crate) fn say(&self, report: ProgramReport, again: bool) {
        self.said.send_if_modified(|said| {
            let is_new = again || said.report != report;
            if is_new {
                *said = Said { step: said.step + 1, report };
            }
            is_new
        });
    }

    /// Waits until the cluster has heard what was said last. Cancel safe: it is said whether or not somebody waits.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is not heard; [`Error::Unavailable`] if it is not heard yet.
    pub(crate) async fn heard(&self) -> Result<()> {
        let (step, mut heard) = (self.said.borrow().step, self.heard.clone());
        let late = || Error::Unavailable("the word is not heard yet; it is said again".into());
        match timeout(WRITE_WITHIN, heard.wait_for(|heard| heard.step >= step)).await {
            Ok(Ok(heard)) => heard.refused.clone().map_or(Ok(()), |refusal| Err(refusal.into())),
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    /// Says no more, and waits until the cluster knows, for ten seconds at most. Cancel safe.
    pub(crate) async fn close(self) {
        drop(self.said);
        self.task.await.ok();
    }
}

/// Says something once, for a program that cannot go on: it is shown until the session has run out.
pub(crate) async fn leave_word(client: &Client, name: &str, report: ProgramReport) -> Result<()> {
    let session = open(client, name).await?;
    client.write(Command::ReportProgram { session, step: 1, report }).await.map(drop)
}

async fn open(client: &Client, name: &str) -> Result<SessionId> {
    let ttl_ms = PROGRAM_TTL.as_millis() as u64;
    match client.write(Command::OpenSession { name: name.to_owned(), ttl_ms }).await? {
        Reply::Session(session) => Ok(session),
        other => Err(Error::Failed { code: "LW0701".into(), why: format!("a strange answer: {other:?}") }),
    }
}

/// Why nothing more is said under a session.
enum Ended {
    /// Nobody is there any more who would say something.
    Gone,
    /// The session is over.
    Over,
}

async fn keep_saying(client: Client, name: String, mut said: watch::Receiver<Said>, tell: watch::Sender<Heard>) {
    loop {
        let sent = Moment::now();
        let opened = tokio::select! {
            opened = open(&client, &name) => opened,
            () = gone(&mut said) => return,
        };
        match opened {
            Ok(session) => {
                let keeper = Keeper::start(client.clone(), session, PROGRAM_TTL, sent);
                if matches!(under(&client, &keeper, &mut said, &tell).await, Ended::Gone) {
                    drop(keeper);
                    client.write(Command::EndSession { session }).await.ok();
                    return;
                }
                debug!(%session, "the session of a watch is over: opening another one");
            }
            Err(error) => {
                warn!(%error, "the monitor does not hear of this program yet");
                tokio::select! {
                    () = sleep(CONFIG_RETRY.1) => {}
                    () = gone(&mut said) => return,
                }
            }
        }
    }
}

/// Waits until nobody is there any more who would say something.
async fn gone(said: &mut watch::Receiver<Said>) {
    while said.changed().await.is_ok() {}
}

/// Says what is to be said under one session.
async fn under(
    client: &Client,
    keeper: &Keeper,
    said: &mut watch::Receiver<Said>,
    tell: &watch::Sender<Heard>,
) -> Ended {
    let (session, mut standing) = (keeper.session(), keeper.standing());
    loop {
        let Said { step, report } = said.borrow_and_update().clone();
        match client.write(Command::ReportProgram { session, step, report }).await {
            Ok(_) => drop(tell.send_replace(Heard { step, refused: None })),
            Err(Error::Refused(Refusal::NoSession { .. })) => return Ended::Over,
            Err(Error::Refused(refusal)) => {
                // Said again it would be refused again, each time with an entry of the log: the next word is awaited.
                debug!(%session, %refusal, "what a program says is refused");
                tell.send_replace(Heard { step, refused: Some(refusal) });
            }
            Err(error) => {
                debug!(%session, %error, "what a program says is not heard yet");
                if said.has_changed().is_err() {
                    return Ended::Gone;
                }
                sleep(CONFIG_RETRY.0).await;
                continue;
            }
        }
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return Ended::Gone },
            _ = standing.wait_for(|standing| standing.over) => return Ended::Over,
        }
    }
}
