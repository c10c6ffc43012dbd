//! The life of one server under one token, through its control script.
//!
//! Must stay true: it is started only after its script said that nothing of it runs, after it was written down that it
//! may live, and after an answered renewal named its token; it is reported as gone only after its script said that
//! nothing of it runs. Whatever is unknown is asked again.

use std::collections::BTreeMap;
use std::time::Duration;

use leaseward_node::BootInstant;
use leaseward_state::command::ServerReport;
use leaseward_state::server::{RestartPolicy, ServerSpec, ServerStatus};
use leaseward_state::{Command, FencingToken, MachineName, ServerName};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::keeper::Standing;
use crate::remote::control::ask::{Asker, Unknown};
use crate::remote::control::memory::MayLive;
use crate::remote::control::question::{State, Verb};

/// A grant that an order names must show up in an answer within this; else the order is stale.
const GRANT_WITHIN: Duration = Duration::from_secs(2);

/// A question that should be answered at once is given up after this.
const QUICKLY: Duration = Duration::from_secs(5);

/// What should become of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    /// It runs like this.
    Run(Box<ServerSpec>),
    /// It is asked to end, and killed after this.
    Stop(Duration),
    /// It is killed.
    Kill,
}

/// One server under one token.
pub(crate) struct Tended {
    pub(crate) asker: Asker,
    pub(crate) memory: MayLive,
    pub(crate) machine: MachineName,
    pub(crate) server: ServerName,
    pub(crate) token: FencingToken,
    pub(crate) wish: watch::Receiver<Wish>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) reports: mpsc::Sender<Command>,
    pub(crate) poll: Duration,
}

/// What was told last, so that nothing is told twice.
#[derive(Default)]
struct Told {
    status: Option<(ServerStatus, u32)>,
    restarts: Vec<BootInstant>,
    count: u32,
    up_since: Option<Instant>,
    /// What it was started with, if we know.
    spec: Option<ServerSpec>,
    /// Why its start failed, if it did.
    why: Option<String>,
}

impl Tended {
    /// Runs until nothing of the server lives here. Returns whether that is reported; if not, somebody has to tend it
    /// again. Not cancel safe: nobody may drop it while the process goes on.
    pub(crate) async fn run(mut self) -> bool {
        let mut told = Told::default();
        if self.memory.token(&self.server) != Some(self.token)
            && let Some(reported) = self.begin(&mut told).await
        {
            return reported;
        }
        loop {
            let wish = self.wish.borrow_and_update().clone();
            let done = match wish {
                Wish::Run(spec) => self.keep(&spec, &mut told).await,
                Wish::Stop(grace) => {
                    self.tell(ServerStatus::Stopping, &mut told).await;
                    self.finish(Verb::Stop, grace).await
                }
                Wish::Kill => self.finish(Verb::Kill, Duration::ZERO).await,
            };
            if let Some(reported) = done {
                return reported;
            }
            self.pause(self.poll).await;
        }
    }

    /// Ends it, and reports that.
    async fn finish(&mut self, verb: Verb, grace: Duration) -> Option<bool> {
        if !self.end(verb, grace).await {
            return None;
        }
        Some(self.gone(ServerReport::Absent).await)
    }

    /// Waits, unless the wish changes. Cancel safe.
    async fn pause(&mut self, how_long: Duration) {
        tokio::select! {
            () = sleep(how_long) => {}
            changed = self.wish.changed() => if changed.is_err() { sleep(how_long).await },
        }
    }

    fn wants_to_run(&self) -> Option<Box<ServerSpec>> {
        match &*self.wish.borrow() {
            Wish::Run(spec) => Some(spec.clone()),
            _ => None,
        }
    }

    /// Starts it for the first time. What it returns ends [`Tended::run`].
    async fn begin(&mut self, told: &mut Told) -> Option<bool> {
        loop {
            let Some(spec) = self.wants_to_run() else {
                // Nothing was started under this token here, as far as we know: its script has the last word.
                return None;
            };
            match self.status(&spec.environment).await {
                Ok(State::Stopped) => return self.launch(&spec, told).await,
                Ok(state) => {
                    warn!(server = %self.server, ?state, "an earlier copy lives; it is ended first");
                    self.end(Verb::Kill, Duration::ZERO).await;
                }
                Err(Unknown::Script(why)) => {
                    // Nothing was started under this token, so nothing under it lives. What may live under an older one
                    // stays remembered, and is ended as what nobody orders.
                    self.report(ServerReport::NotStarted { why }).await;
                    return Some(true);
                }
                Err(Unknown::Unreachable(_)) => {}
            }
            self.pause(self.poll).await;
        }
    }

    /// Asks for a start, once a renewal has named the token. What it returns ends [`Tended::run`]: nothing was asked.
    async fn launch(&mut self, spec: &ServerSpec, told: &mut Told) -> Option<bool> {
        let lease = self.server.lease();
        let named = |standing: &Standing| standing.over || standing.held.get(&lease) == Some(&self.token);
        let mut standing = self.standing.clone();
        let granted = match tokio::time::timeout(GRANT_WITHIN, standing.wait_for(named)).await {
            Ok(Ok(standing)) => !standing.remaining().is_zero(),
            Ok(Err(_)) | Err(_) => false,
        };
        if !granted {
            return Some(false);
        }
        if let Err(error) = self.memory.add(&self.server, self.token) {
            return Some(self.gone(ServerReport::NotStarted { why: format!("LW0600: {error}") }).await);
        }
        let words: Vec<&str> =
            std::iter::once(self.server.as_str()).chain(spec.command.iter().map(String::as_str)).collect();
        let within = Duration::from_millis(spec.start_timeout_ms);
        let environment = self.environment(&spec.environment);
        told.up_since = Some(Instant::now());
        told.spec = Some(spec.clone());
        told.why = None;
        info!(server = %self.server, token = %self.token, "asking its control script to start it");
        let answer = self.asker.control(Verb::Start, &environment, &words, within).await;
        match answer {
            Ok(answer) if answer.exit == 0 => self.tell(ServerStatus::Starting { pid: 0 }, told).await,
            Ok(answer) => {
                let why = format!("start exits with {}: {}", answer.exit, last_line(&answer.text));
                warn!(server = %self.server, why, "not started");
                told.why = Some(why);
            }
            Err(why) => warn!(server = %self.server, %why, "whether it was started is unknown"),
        }
        None
    }

    /// One look at a server that should run. What it returns ends [`Tended::run`].
    async fn keep(&mut self, spec: &ServerSpec, told: &mut Told) -> Option<bool> {
        let late = Duration::from_millis(spec.start_timeout_ms);
        if told.spec.as_ref().is_some_and(|started| !started.runs_alike(spec)) {
            info!(server = %self.server, "its specification changed: it is restarted in place");
            let stopped = self.end(Verb::Stop, Duration::from_millis(spec.stop_grace_ms)).await;
            return if stopped { self.launch(spec, told).await } else { None };
        }
        match self.status(&spec.environment).await {
            Ok(State::Running) => {
                told.up_since = None;
                self.tell(ServerStatus::Running { pid: 0 }, told).await;
            }
            Ok(State::Starting) if told.up_since.is_none_or(|since| since.elapsed() < late) => {
                self.tell(ServerStatus::Starting { pid: 0 }, told).await;
            }
            Ok(State::Stopped) => return self.ended(spec, told).await,
            Ok(state) => {
                let why = format!("its status says {state:?}");
                warn!(server = %self.server, why, "ending it");
                self.tell(ServerStatus::Unhealthy { pid: 0, why }, told).await;
                self.end(Verb::Kill, Duration::ZERO).await;
            }
            Err(why @ Unknown::Script(_)) => {
                warn!(server = %self.server, %why, "how it is, is unknown");
                self.tell(ServerStatus::Unhealthy { pid: 0, why: why.to_string() }, told).await;
            }
            // The machine is looked at elsewhere.
            Err(Unknown::Unreachable(_)) => {}
        }
        None
    }

    /// It ended by itself: again in place within its budget, then somebody else decides.
    async fn ended(&mut self, spec: &ServerSpec, told: &mut Told) -> Option<bool> {
        let why = told.why.take().unwrap_or_else(|| "its control script says that it is stopped".to_owned());
        let Some(wait) = next_restart(&spec.restart, &mut told.restarts, BootInstant::now()) else {
            warn!(server = %self.server, "given up on this machine");
            return Some(self.gone(ServerReport::NotStarted { why }).await);
        };
        told.count += 1;
        told.status = None;
        warn!(server = %self.server, ?wait, "ended; it is started again in place");
        self.report(ServerReport::Crashed { restarts: told.count, why }).await;
        self.pause(wait).await;
        match self.wants_to_run() {
            // Without a grant this is over; whoever tends it next finds it stopped.
            Some(spec) => self.launch(&spec, told).await,
            None => None,
        }
    }

    /// Asks it to end, and waits. Returns whether nothing of it runs.
    async fn end(&mut self, verb: Verb, grace: Duration) -> bool {
        let words = [self.server.as_str()];
        let environment = self.environment(&BTreeMap::new());
        let deadline = Instant::now() + grace;
        if verb == Verb::Stop {
            if let Err(why) = self.asker.control(verb, &environment, &words, grace + QUICKLY).await {
                warn!(server = %self.server, %why, "whether it was asked to stop is unknown");
            }
            while Instant::now() < deadline && *self.wish.borrow() != Wish::Kill {
                if self.status(&BTreeMap::new()).await == Ok(State::Stopped) {
                    return true;
                }
                sleep(self.poll.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        if let Err(why) = self.asker.control(Verb::Kill, &environment, &words, QUICKLY).await {
            warn!(server = %self.server, %why, "whether it was killed is unknown");
        }
        self.status(&BTreeMap::new()).await == Ok(State::Stopped)
    }

    async fn status(&self, environment: &BTreeMap<String, String>) -> Result<State, Unknown> {
        self.asker.status(&self.environment(environment), self.server.as_str(), QUICKLY).await
    }

    fn environment(&self, more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut environment = more.clone();
        environment.insert("LEASEWARD_SERVER".into(), self.server.to_string());
        environment.insert("LEASEWARD_MACHINE".into(), self.machine.to_string());
        environment.insert("LEASEWARD_TOKEN".into(), self.token.to_string());
        environment.insert("LEASEWARD_LEASE".into(), self.server.lease().to_string());
        environment
    }

    async fn tell(&self, status: ServerStatus, told: &mut Told) {
        let news = (status, told.count);
        if told.status.as_ref() != Some(&news) {
            self.report(ServerReport::Status { status: news.0.clone(), restarts: news.1 }).await;
            told.status = Some(news);
        }
    }

    /// Nothing of it runs: that is reported, and said with the answer.
    async fn gone(&self, report: ServerReport) -> bool {
        self.memory.remove(&self.server);
        self.report(report).await;
        true
    }

    async fn report(&self, report: ServerReport) {
        let (server, token) = (self.server.clone(), self.token);
        self.reports.send(Command::ReportServer { server, token, report }).await.ok();
    }
}

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().chars().take(200).collect()
}

/// Returns how long to wait before the next restart in place; `None` if there were enough within the window.
fn next_restart(policy: &RestartPolicy, restarts: &mut Vec<BootInstant>, now: BootInstant) -> Option<Duration> {
    let window = Duration::from_millis(policy.per_ms);
    restarts.retain(|at| now.saturating_since(*at) < window);
    if restarts.len() >= policy.in_place as usize {
        return None;
    }
    let wait = policy.backoff_ms.get(restarts.len()).or(policy.backoff_ms.last()).copied().unwrap_or(0);
    restarts.push(now);
    Some(Duration::from_millis(wait))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;

    use leaseward_state::Revision;

    use super::*;
    use crate::clock::{Moment, Validity};
    use crate::remote::ssh::Ssh;

    fn executable(path: &Path, text: &str) -> String {
        std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        path.to_str().expect("UTF-8").to_owned()
    }

    #[tokio::test]
    async fn a_script_that_says_nothing_does_not_make_an_older_copy_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let ssh =
            Ssh { program: executable(&at("ssh"), "exec sh -s").into(), destination: "m1".into(), options: Vec::new() };
        let asker = Asker::new(ssh, executable(&at("control"), "exit 3"));
        let server = ServerName::new("pay").expect("a name");
        let memory = MayLive::open(&at("memory")).expect("opened");
        memory.add(&server, FencingToken(1)).expect("remembered");
        let standing = Standing {
            validity: Validity::from_send(Moment::now(), Duration::from_secs(60)),
            over: false,
            held: Arc::default(),
            held_revision: Revision(0),
            orders: Revision(0),
            renewals: 0,
        };
        let (_wish, wish) = watch::channel(Wish::Run(Box::new(ServerSpec::new(["x"]))));
        let (_standing, standing) = watch::channel(standing);
        let (reports, mut reported) = mpsc::channel(8);
        let tended = Tended {
            asker,
            memory: memory.clone(),
            machine: MachineName::new("m1").expect("a name"),
            server: server.clone(),
            token: FencingToken(2),
            wish,
            standing,
            reports,
            poll: Duration::from_millis(1),
        };
        let done = tokio::time::timeout(Duration::from_secs(60), tended.run()).await.expect("it is given up");
        assert!(done, "nothing is reported");
        let told = reported.recv().await;
        let Some(Command::ReportServer { token, report: ServerReport::NotStarted { why }, .. }) = told else {
            panic!("{told:?}")
        };
        assert!(token == FencingToken(2) && why.contains("exits with 3"), "{why}");
        assert_eq!(memory.token(&server), Some(FencingToken(1)), "nobody ends the older copy any more");
    }
}
