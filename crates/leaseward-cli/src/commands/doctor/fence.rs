//! `leaseward doctor --fence`: every attack as often as asked, one round of each after the other, and what it earns.
//!
//! Must stay true: the cells grow together, so that whatever ends the attacks early leaves a result of each. What was
//! not measured says so, with its reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leaseward_node::attack::{self, Arena, Attack, Cell, Fault, MATRIX, PACKETS, Trial, Verdict};
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
use crate::printer::{self, Output, column, field};

/// The exit code of a program that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the attacks have shown.
#[derive(Debug, Serialize)]
struct Matrix {
    level: String,
    why_not_next: String,
    cells: Vec<Cell>,
    network_fence: NetworkFence,
    watchdog: Watchdog,
}

/// What the attack on the network fence has shown.
#[derive(Debug, Serialize)]
struct NetworkFence {
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
    result: Result<Vec<Trial>, String>,
}

impl Row {
    fn is_short_of(&self, trials: usize) -> bool {
        self.result.as_ref().is_ok_and(|done| done.len() < trials)
    }

    fn cell(&self) -> Option<Cell> {
        self.result.as_ref().ok().map(|trials| Cell::of(self.attack.name, trials))
    }
}

pub(super) async fn run(output: &Output, doctor: DoctorArguments) -> Result<u8, Diagnostic> {
    let (trials, allowed) = (doctor.trials as usize, leaseward_node::fence::level(true));
    let rows = match allowed {
        // No shim would start.
        FenceLevel::F0 => Vec::new(),
        _ => attacks(&super::data(&doctor), trials, doctor.budget, allowed).await?,
    };
    let is_short = rows.iter().any(|row| row.is_short_of(trials));
    if is_short {
        eprintln!("the budget is over: not every attack was tried {trials} times");
    }
    let matrix = Matrix::of(allowed, &rows, doctor.watchdog.as_deref());
    let fails = matrix.level == FenceLevel::F0.to_string() || is_short;
    print(output, &matrix)?;
    Ok(u8::from(fails))
}

impl Matrix {
    fn of(allowed: FenceLevel, rows: &[Row], device: Option<&Path>) -> Self {
        let (packets, attacks): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.attack == PACKETS);
        let cells: Vec<Cell> = attacks.iter().filter_map(|row| row.cell()).collect();
        let left_out = packets
            .first()
            .map_or(Some("no server can be fenced here"), |row| row.result.as_ref().err().map(String::as_str));
        let cell = packets.first().and_then(|row| row.cell());
        let measured = cell.as_ref().ok_or(left_out.unwrap_or_default());
        let watchdog = Watchdog::look(device);
        let verdict = attack::verdict(allowed, &cells).with_packets(measured).with_watchdog(&watchdog.fact);
        let Verdict { level, why_not_next } = verdict;
        let left_out = left_out.map(str::to_owned);
        let network_fence = NetworkFence { measured: cell.is_some(), left_out, cell };
        Self { level: level.to_string(), why_not_next, cells, network_fence, watchdog }
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
            let rows: Vec<&Cell> = matrix.cells.iter().chain(&matrix.network_fence.cell).collect();
            printer::list(output, &json!({ "items": rows }), &columns)?;
            if let Some(why) = &matrix.network_fence.left_out {
                printer::line(&format!("Network fence: not measured: {why}."));
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
async fn attacks(
    data: &Path,
    trials: usize,
    budget: Option<Duration>,
    allowed: FenceLevel,
) -> Result<Vec<Row>, Diagnostic> {
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
            .and_then(|arena| rounds(&arena, trials, until, allowed, &seen))
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

/// A round of each attack after the other, until all are done or time is up.
fn rounds(
    arena: &Arena,
    trials: usize,
    until: Option<Instant>,
    allowed: FenceLevel,
    abandon: &AtomicBool,
) -> Result<Vec<Row>, Fault> {
    let row = |attack: &Attack| Row { attack: *attack, result: Ok(Vec::new()) };
    let mut rows: Vec<Row> = MATRIX.iter().map(row).collect();
    rows.push(match allowed {
        FenceLevel::F2 => row(&PACKETS),
        lesser => {
            Row { attack: PACKETS, result: Err(format!("F3 is F2 and more, and this user gets {lesser}: run as root")) }
        }
    });
    let is_over = || until.is_some_and(|until| Instant::now() >= until);
    let mut progress = Progress::start(rows.iter().filter(|row| row.result.is_ok()).count(), trials);
    while rows.iter().any(|row| row.is_short_of(trials)) && !is_over() {
        for row in rows.iter_mut().filter(|row| row.is_short_of(trials)) {
            if is_over() {
                break;
            }
            let Ok(done) = &mut row.result else { continue };
            match arena.some(&row.attack, trials - done.len(), abandon) {
                Ok(more) => {
                    progress.advance(more.len());
                    done.extend(more);
                }
                Err(Fault::LeftOut(why)) => {
                    progress.say(&format!("left out: {}: {why}", row.attack.name));
                    progress.leave_out(trials - done.len());
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
