//! `leaseward doctor --fence`: every attack as often as asked, one round of each after the other, and what it earns.
//!
//! Must stay true: the cells grow together, so that whatever ends the attacks early leaves a result of each. What was
//! not measured says so, with its reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leaseward_node::attack::{self, Arena, Attack, Cell, Fault, MATRIX, PACKETS, SUSPENDED, Trial, Verdict, suspend};
use leaseward_node::limits::ATTACK_SERVERS_MAX;
use leaseward_node::{checkup, watchdog};
use leaseward_state::server::FenceLevel;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::broken;
use super::progress::Progress;
use crate::args::DoctorArguments;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, note};

/// The exit code of a program that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the attacks have shown.
#[derive(Debug, Serialize)]
struct Matrix {
    level: String,
    why_not_next: String,
    cells: Vec<Cell>,
    network_fence: Special,
    suspend: Special,
    watchdog: Watchdog,
}

/// What an attack has shown that not every machine allows.
#[derive(Debug, Serialize)]
struct Special {
    measured: bool,
    /// Why it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<String>,
    #[serde(flatten)]
    cell: Option<Cell>,
}

/// What is known of the watchdog.
#[derive(Debug, Serialize)]
struct Watchdog {
    measured: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// The level that it would earn beside a measured F3.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_earn: Option<String>,
    fact: String,
}

/// One attack and what it has shown so far, or why it is left out.
struct Row {
    attack: Attack,
    /// How often it is to be tried.
    trials: usize,
    result: Result<Vec<Trial>, String>,
}

impl Row {
    fn is_short(&self) -> bool {
        self.result.as_ref().is_ok_and(|done| done.len() < self.trials)
    }

    fn cell(&self) -> Option<Cell> {
        self.result.as_ref().ok().map(|trials| Cell::of(self.attack.name, trials))
    }
}

pub(super) async fn run(output: &Output, doctor: DoctorArguments) -> Result<u8, Diagnostic> {
    let allowed = leaseward_node::fence::level(true);
    let rows = match allowed {
        // No shim would start.
        FenceLevel::F0 => Vec::new(),
        _ => {
            attacks(&super::data(&doctor), plan(doctor.trials as usize, allowed, doctor.suspend), doctor.budget).await?
        }
    };
    let is_short = rows.iter().any(Row::is_short);
    if is_short {
        note!("the budget is over: not every attack was tried {} times", doctor.trials);
    }
    let matrix = Matrix::of(allowed, &rows, doctor.watchdog.as_deref());
    let fails = matrix.level == FenceLevel::F0.to_string() || is_short;
    print(output, &matrix)?;
    Ok(u8::from(fails))
}

impl Special {
    /// Returns what a row has shown; there is none where no server can be fenced.
    fn of(row: Option<&Row>) -> Self {
        let left_out =
            row.map_or(Some("no server can be fenced here"), |row| row.result.as_ref().err().map(String::as_str));
        let cell = row.and_then(Row::cell);
        Self { measured: cell.is_some(), left_out: left_out.map(str::to_owned), cell }
    }

    fn measured(&self) -> Result<&Cell, &str> {
        self.cell.as_ref().ok_or(self.left_out.as_deref().unwrap_or_default())
    }
}

impl Matrix {
    fn of(allowed: FenceLevel, rows: &[Row], device: Option<&Path>) -> Self {
        let special = |attack: Attack| Special::of(rows.iter().find(|row| row.attack == attack));
        let (network_fence, suspend) = (special(PACKETS), special(SUSPENDED));
        let usual = rows.iter().filter(|row| row.attack != PACKETS && row.attack != SUSPENDED);
        let cells: Vec<Cell> = usual.filter_map(Row::cell).collect();
        let watchdog = Watchdog::look(device);
        let whole: Vec<Cell> = cells.iter().chain(&suspend.cell).cloned().collect();
        let verdict = attack::verdict(allowed, &whole);
        let verdict = verdict.with_packets(network_fence.measured()).with_watchdog(&watchdog.fact);
        let Verdict { level, why_not_next } = verdict;
        Self { level: level.to_string(), why_not_next, cells, network_fence, suspend, watchdog }
    }
}

impl Watchdog {
    /// Looks at one, if any is named, and leaves it asleep.
    fn look(device: Option<&Path>) -> Self {
        let unknown = |fact| Self { measured: false, timeout_ms: None, would_earn: None, fact };
        let Some(device) = device else {
            return unknown("no watchdog is named: --watchdog DEVICE, or machine.watchdog of --config".into());
        };
        match watchdog::look(device) {
            Err(error) => unknown(format!("{}: {error}", device.display())),
            Ok(seen) => {
                let timeout_ms = seen.timeout.and_then(|time| u64::try_from(time.as_millis()).ok());
                let would_earn = (seen.is_device && !seen.is_taken).then(|| FenceLevel::F4.to_string());
                Self { timeout_ms, would_earn, ..unknown(checkup::watchdog_words(device, &seen)) }
            }
        }
    }
}

fn print(output: &Output, matrix: &Matrix) -> Result<(), Diagnostic> {
    match output {
        Output::Table | Output::Wide => {
            let columns = [
                column("ATTACK", |of| field(of, "attack")),
                column("TRIALS", |of| field(of, "trials")),
                column("SURVIVORS", |of| field(of, "survivors")),
                column("EPSILON P50 MS", |of| field(of, "epsilon_p50_ms")),
                column("MAX", |of| field(of, "epsilon_max_ms")),
            ];
            let rows: Vec<&Cell> =
                matrix.cells.iter().chain(&matrix.network_fence.cell).chain(&matrix.suspend.cell).collect();
            printer::list(output, &json!({ "items": rows }), &columns)?;
            if let Some(why) = &matrix.network_fence.left_out {
                printer::line(&format!("Network fence: not measured: {why}."));
            }
            if let Some(why) = &matrix.suspend.left_out {
                printer::line(&format!("Suspend: not measured: {why}."));
            }
            printer::line(&format!("Watchdog: {}.", matrix.watchdog.fact));
            let set = if matrix.level == "F3" { ", if its agent has `machine.network_fence = true`" } else { "" };
            printer::line(&format!("This machine earns {}{set}.", matrix.level));
            printer::line(&format!("Not the next level: {}.", matrix.why_not_next));
        }
        Output::Name => matrix.cells.iter().for_each(|cell| printer::line(&cell.attack)),
        _ => printer::object(output, matrix, &[])?,
    }
    Ok(())
}

/// Carries out every attack, on a thread of its own; an interruption calls it off and waits until all is cleaned up.
async fn attacks(data: &Path, rows: Vec<Row>, budget: Option<Duration>) -> Result<Vec<Row>, Diagnostic> {
    let exe = std::env::current_exe().map_err(|error| broken(format!("find this program: {error}")))?;
    let corner = Corner::of(data)?;
    let (interrupted, mut interrupts) = mpsc::channel(1);
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    for kind in kinds.into_iter().filter(|kind| *kind != SignalKind::hangup() || !hangup_is_ignored()) {
        let mut signals = signal(kind).map_err(|error| broken(error.to_string()))?;
        let interrupted = interrupted.clone();
        tokio::spawn(async move { while signals.recv().await.is_some() && interrupted.send(()).await.is_ok() {} });
    }
    let abandon = Arc::new(AtomicBool::new(false));
    let (seen, dir) = (abandon.clone(), corner.0.clone());
    // The agent under attack dies with the thread that started it.
    let mut attacking = tokio::task::spawn_blocking(move || {
        let until = budget.and_then(|budget| Instant::now().checked_add(budget));
        Arena::new(exe, dir, None)
            .map_err(|error| Fault::Broken(error.to_string()))
            .and_then(|arena| rounds(&arena, rows, until, &seen))
    });
    loop {
        let attacked = tokio::select! {
            attacked = &mut attacking => attacked,
            Some(()) = interrupts.recv() => { abandon.store(true, Ordering::Relaxed); continue }
        };
        return attacked.map_err(|error| broken(error.to_string()))?.map_err(|fault| match fault {
            Fault::Abandoned => Diagnostic::new("LW0341", "interrupted; every process was ended").exit(INTERRUPTED),
            fault => broken(fault.to_string()),
        });
    }
}

/// Returns whether whoever started this wants it to go on when the terminal is closed, as `nohup` does.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The first signal is the lowest bit.
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 == 1)
}

/// Returns what is to be tried, and how often; or why it is not.
fn plan(trials: usize, allowed: FenceLevel, suspends: bool) -> Vec<Row> {
    let row = |attack: &Attack| Row { attack: *attack, trials, result: Ok(Vec::new()) };
    let left_out = |attack: Attack, why| Row { attack, trials, result: Err(why) };
    let mut rows: Vec<Row> = MATRIX.iter().map(row).collect();
    rows.push(match allowed {
        FenceLevel::F2 => row(&PACKETS),
        lesser => left_out(PACKETS, format!("F3 is F2 and more, and this user gets {lesser}: run as root")),
    });
    rows.push(match (suspend::look(), suspends) {
        (Err(why), _) => left_out(SUSPENDED, why),
        (Ok(_), false) => left_out(SUSPENDED, "it puts this machine to sleep: only with --suspend".into()),
        // Once is enough to see what the clocks do, and takes several seconds.
        (Ok(_), true) => Row { trials: trials.min(ATTACK_SERVERS_MAX), ..row(&SUSPENDED) },
    });
    rows
}

/// A round of each attack after the other, until all are done or time is up.
fn rounds(arena: &Arena, mut rows: Vec<Row>, until: Option<Instant>, abandon: &AtomicBool) -> Result<Vec<Row>, Fault> {
    let is_over = || until.is_some_and(|until| Instant::now() >= until);
    let trials = rows.first().map_or(0, |row| row.trials);
    let tried = || rows.iter().filter(|row| row.result.is_ok());
    let mut progress = Progress::start(tried().count(), trials);
    progress.leave_out(tried().map(|row| trials - row.trials).sum());
    while rows.iter().any(Row::is_short) && !is_over() {
        for row in rows.iter_mut().filter(|row| row.is_short()) {
            if is_over() {
                break;
            }
            let Ok(done) = &mut row.result else { continue };
            match arena.some(&row.attack, row.trials - done.len(), abandon) {
                Ok(more) => {
                    progress.advance(more.len());
                    done.extend(more);
                }
                Err(Fault::LeftOut(why)) => {
                    progress.say(&format!("left out: {}: {why}", row.attack.name));
                    progress.leave_out(row.trials - done.len());
                    row.result = Err(why);
                }
                Err(fault) => return Err(fault),
            }
        }
    }
    Ok(rows)
}

/// A directory for the attacks; removed when dropped.
struct Corner(PathBuf);

impl Corner {
    fn of(data: &Path) -> Result<Self, Diagnostic> {
        let path = data.join(format!("leaseward-fence-{}", std::process::id()));
        let made = std::fs::create_dir_all(data).and_then(|()| std::fs::create_dir(&path));
        made.map_err(|error| broken(format!("make {}: {error}", path.display())))?;
        // Shims and victims have another working directory.
        let whole = path.canonicalize().map_err(|error| broken(format!("find {}: {error}", path.display())))?;
        Ok(Self(whole))
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
