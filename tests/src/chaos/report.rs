//! What a run came to, for people and as one line of JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Plan;
use crate::history::judge::{Anomaly, CHECKERS, Counts, counts};
use crate::history::{Record, op};

/// So many anomalies of each checker are shown; the history has them all.
const SHOWN: usize = 5;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Operations by kind: ended well, failed, unknown.
    pub operations: Counts,
    /// Faults by kind.
    pub faults: BTreeMap<String, usize>,
    /// What cannot have been.
    pub anomalies: Vec<Anomaly>,
    /// What was not well again in time.
    pub sick: Vec<String>,
    /// How long it took to be well again.
    pub healed_after: Duration,
    /// Agents that ended without having been told to, for a reason that is expected.
    pub ended_by_themselves: BTreeMap<String, usize>,
    /// Agents that were seen to go by the wall clock that was set for them.
    pub clocks_seen: usize,
    /// Where the history is.
    pub history: PathBuf,
    /// Where the logs are, of a run that is not well.
    pub logs: Option<PathBuf>,
    command: String,
    seed: u64,
}

impl Report {
    /// Returns the report of a history.
    #[must_use]
    pub fn of(plan: &Plan, records: &[Record], anomalies: Vec<Anomaly>) -> Self {
        let mut faults = BTreeMap::new();
        for fault in records.iter().filter(|record| record.op == op::FAULT) {
            *faults.entry(fault.object.clone()).or_default() += 1;
        }
        Self {
            operations: counts(records),
            faults,
            anomalies,
            sick: Vec::new(),
            healed_after: Duration::ZERO,
            ended_by_themselves: BTreeMap::new(),
            clocks_seen: 0,
            history: PathBuf::new(),
            logs: None,
            command: plan.command.clone(),
            seed: plan.seed,
        }
    }

    /// Returns whether nothing is wrong.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.anomalies.is_empty() && self.sick.is_empty()
    }

    /// Returns the same as one line.
    #[must_use]
    pub fn line(&self) -> Value {
        let operations: BTreeMap<_, _> = self
            .operations
            .iter()
            .map(|(kind, [ok, failed, unknown])| (kind, json!({ "ok": ok, "failed": failed, "unknown": unknown })))
            .collect();
        json!({
            "chaos": self.seed,
            "operations": operations,
            "faults": self.faults,
            "anomalies": self.by_checker(),
            "not_well": self.sick,
            "well_after_ms": u64::try_from(self.healed_after.as_millis()).unwrap_or(u64::MAX),
            "ended_by_themselves": self.ended_by_themselves,
            "clocks_seen": self.clocks_seen,
            "history": self.history,
            "logs": self.logs,
            "again": self.command,
        })
    }

    fn by_checker(&self) -> BTreeMap<&'static str, usize> {
        let count = |checker| self.anomalies.iter().filter(|anomaly| anomaly.checker == checker).count();
        CHECKERS.into_iter().map(|checker| (checker, count(checker))).collect()
    }

    /// Copies the logs beside the history, before their directory goes.
    pub fn keep_logs(&mut self, from: &Path) {
        let to = self.history.with_extension("logs");
        fs::create_dir_all(&to).ok();
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).ok();
        }
        self.logs = Some(to);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14}{:>8}{:>8}{:>8}", "operations", "ok", "failed", "unknown")?;
        for (kind, [ok, failed, unknown]) in &self.operations {
            writeln!(f, "  {kind:<12}{ok:>8}{failed:>8}{unknown:>8}")?;
        }
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "faults        {}", faults.join(", "))?;
        let found: Vec<String> =
            self.by_checker().iter().map(|(checker, count)| format!("{checker} {count}")).collect();
        writeln!(f, "anomalies     {}", found.join(", "))?;
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for anomaly in &self.anomalies {
            let before = shown.entry(anomaly.checker).or_default();
            *before += 1;
            if *before <= SHOWN {
                writeln!(f, "  {}: {}", anomaly.checker, anomaly.what)?;
            }
        }
        match &self.sick[..] {
            [] => writeln!(f, "well again    {:.1} s after clients ended", self.healed_after.as_secs_f64())?,
            sick => writeln!(f, "NOT WELL      {}", sick.join("; "))?,
        }
        for (why, count) in &self.ended_by_themselves {
            writeln!(f, "ended         {count} agents by themselves, and were started again: {why}")?;
        }
        if self.clocks_seen > 0 {
            writeln!(f, "clocks seen   {} agents went by the wall clock that was set for them", self.clocks_seen)?;
        }
        writeln!(f, "history       {}", self.history.display())?;
        if let Some(logs) = &self.logs {
            writeln!(f, "logs          {}", logs.display())?;
        }
        writeln!(f, "again         {}", self.command)
    }
}
