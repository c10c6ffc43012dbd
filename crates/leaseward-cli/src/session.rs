//! What every command of a person has at hand: the API, the output, the right to ask.

use std::future::Future;
use std::io::{IsTerminal, stdin, stdout};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::api::Api;
use crate::args::Global;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output};
use crate::target::Target;

/// A question for events waits so long, and is asked again.
const EVENTS_WITHIN: Duration = Duration::from_secs(30);

/// What goes on without events is shown anew after this.
const REPAINTED_EACH: Duration = Duration::from_secs(1);

/// Whether what is shown changes without an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    WithEvents,
    ByItself,
}

/// What a command has at hand.
pub(crate) struct Session {
    pub(crate) api: Api,
    pub(crate) output: Output,
    pub(crate) global: Global,
}

/// Returns who gives the command, as people know each other.
pub(crate) fn person() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "root".into());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}")
}

impl Session {
    /// Returns what the global flags say.
    pub(crate) fn new(global: Global) -> Result<Self, Diagnostic> {
        let target = Target::resolve(&global)?;
        let output = Output::parse(&global.output)?;
        let dry_run = global.dry_run.then(|| output.clone());
        let api = Api::new(&target).consistency(&global.consistency).dry_run(dry_run);
        Ok(Self { api, output, global })
    }

    /// Shows something once, or again after every change with `--watch`.
    pub(crate) async fn show<F>(&self, mut once: impl FnMut() -> F) -> Result<(), Diagnostic>
    where
        F: Future<Output = Result<(), Diagnostic>>,
    {
        self.show_moving(|| {
            let shown = once();
            async { shown.await.map(|()| Moves::WithEvents) }
        })
        .await
    }

    /// As [`Self::show`], of something that may go on without an event: `once` says whether it does now.
    pub(crate) async fn show_moving<F>(&self, mut once: impl FnMut() -> F) -> Result<(), Diagnostic>
    where
        F: Future<Output = Result<Moves, Diagnostic>>,
    {
        if !self.global.watch {
            return once().await.map(drop);
        }
        loop {
            let after = self.revision().await?;
            if stdout().is_terminal() && self.output != Output::JsonLines {
                printer::bytes(b"\x1b[H\x1b[2J");
            }
            let again = match once().await? {
                Moves::WithEvents => EVENTS_WITHIN,
                Moves::ByItself => REPAINTED_EACH,
            };
            self.changed_within(after, again).await?;
        }
    }

    /// Returns the newest revision.
    pub(crate) async fn revision(&self) -> Result<u64, Diagnostic> {
        let status: Value = self.api.get("/v1/cluster").await?;
        Ok(status["revision"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Waits until something happens after a revision, or a while.
    pub(crate) async fn changed(&self, after: u64) -> Result<(), Diagnostic> {
        self.changed_within(after, EVENTS_WITHIN).await
    }

    async fn changed_within(&self, after: u64, within: Duration) -> Result<(), Diagnostic> {
        match self.api.events_after(after, within).await {
            // So much, that not all of it is kept.
            Err(error) if error.code == "LW0207" => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Waits until `holds` says so; looks again after every event.
    pub(crate) async fn until(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> Result<bool, Diagnostic>,
    ) -> Result<(), Diagnostic> {
        let deadline = Instant::now() + self.global.timeout;
        loop {
            let after = self.revision().await?;
            if holds().await? {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Diagnostic::new("LW0504", format!("{what}: not so within {:?}", self.global.timeout))
                    .hint("--timeout 1m      wait longer"));
            }
            tokio::time::timeout(left, self.changed(after)).await.ok();
        }
    }

    /// Asks to type a name where something cannot be taken back. Elsewhere the name must have been given.
    pub(crate) fn typed(&self, what: &str, name: &str, given: Option<String>) -> Result<String, Diagnostic> {
        let typed = match given {
            Some(given) => given,
            None if stdin().is_terminal() => {
                printer::ask(&format!("{what}\nType the name to go on: "));
                let mut answer = String::new();
                stdin().read_line(&mut answer).ok();
                answer.trim().to_owned()
            }
            None => {
                return Err(Diagnostic::new("LW0104", format!("{what} Nobody can be asked here"))
                    .hint(format!("--confirm {name}      do it")));
            }
        };
        if typed == name {
            return Ok(typed);
        }
        Err(Diagnostic::new("LW0104", format!("`{typed}` is not {name}: nothing was done")))
    }

    /// Asks on a terminal, refuses elsewhere without `--yes`.
    pub(crate) fn confirm(&self, what: &str) -> Result<(), Diagnostic> {
        if self.global.yes || self.api.is_dry_run() {
            return Ok(());
        }
        if !stdin().is_terminal() {
            return Err(Diagnostic::new("LW0104", format!("{what} Nobody can be asked here")).hint("--yes      do it"));
        }
        printer::ask(&format!("{what}\nGo on? [y/N] "));
        let mut answer = String::new();
        stdin().read_line(&mut answer).ok();
        if answer.trim().eq_ignore_ascii_case("y") {
            return Ok(());
        }
        Err(Diagnostic::new("LW0104", "nothing was done"))
    }
}
