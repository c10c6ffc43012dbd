//! `leaseward doctor`: whether this machine has what a server needs, and whether its fence holds under attack.
//!
//! Must stay true: no cluster is asked; nothing is left behind, no file and no process, also after an interruption.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use leaseward_node::attack::{self, Arena, Cell, Fault, MATRIX, Verdict};
use leaseward_node::checkup::{self, Finding, State};
use leaseward_state::server::FenceLevel;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::DoctorArguments;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field};

/// The exit code of a program that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the checks have found.
#[derive(Debug, Serialize)]
struct Checkup {
    healthy: bool,
    items: Vec<Finding>,
}

/// What the attacks have shown.
#[derive(Debug, Serialize)]
struct Matrix {
    level: String,
    cells: Vec<Cell>,
}

/// Returns 0 if nothing failed and nothing survived, otherwise 1.
pub(crate) async fn run(output: &Output, doctor: DoctorArguments) -> Result<u8, Diagnostic> {
    let data = doctor.data.unwrap_or_else(std::env::temp_dir);
    if doctor.fence { fence(output, &data, doctor.trials as usize).await } else { checks(output, data).await }
}

async fn checks(output: &Output, data: PathBuf) -> Result<u8, Diagnostic> {
    let looked = tokio::task::spawn_blocking(move || checkup::look(&data)).await;
    let items = looked.map_err(|error| broken(error.to_string()))?;
    let healthy = items.iter().all(|finding| finding.state < State::Failed);
    let columns = [
        column("CHECK", |of| field(of, "name")),
        column("STATE", |of| field(of, "state")),
        column("FACT", |of| field(of, "fact")),
        column("DO", |of| field(of, "advice")),
    ];
    printer::list(output, &Checkup { healthy, items }, &columns)?;
    Ok(u8::from(!healthy))
}

async fn fence(output: &Output, data: &Path, trials: usize) -> Result<u8, Diagnostic> {
    let allowed = leaseward_node::fence::level(true);
    let cells = match allowed {
        // No shim would start.
        FenceLevel::F0 => Vec::new(),
        _ => attacks(data, trials).await?,
    };
    let Verdict { level, why_not_next } = attack::verdict(allowed, &cells);
    let fails = level == FenceLevel::F0;
    let matrix = Matrix { level: level.to_string(), cells };
    match output {
        Output::Table | Output::Wide => {
            let columns = [
                column("ATTACK", |of| field(of, "attack")),
                column("TRIALS", |of| field(of, "trials")),
                column("SURVIVORS", |of| field(of, "survivors")),
                column("EPSILON P50 MS", |of| field(of, "epsilon_p50_ms")),
                column("MAX", |of| field(of, "epsilon_max_ms")),
            ];
            printer::list(output, &json!({ "items": matrix.cells }), &columns)?;
            printer::line(&format!("This machine earns {level}. Not the next level: {why_not_next}."));
        }
        Output::Name => matrix.cells.iter().for_each(|cell| printer::line(&cell.attack)),
        _ => printer::object(output, &matrix, &[])?,
    }
    Ok(u8::from(fails))
}

/// Carries out every attack, on a thread of its own; an interruption calls it off and waits until all is cleaned up.
async fn attacks(data: &Path, trials: usize) -> Result<Vec<Cell>, Diagnostic> {
    let exe = std::env::current_exe().map_err(|error| broken(format!("find this program: {error}")))?;
    let corner = Corner::of(data)?;
    let mut interrupts = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        interrupts.push(signal(kind).map_err(|error| broken(error.to_string()))?);
    }
    let abandon = Arc::new(AtomicBool::new(false));
    let (seen, dir) = (abandon.clone(), corner.0.clone());
    // The agent under attack dies with the thread that started it.
    let mut attacking = tokio::task::spawn_blocking(move || matrix(exe, dir, trials, &seen));
    let [int, term, hup] = interrupts.as_mut_slice() else { return Err(broken("no signals")) };
    loop {
        let attacked = tokio::select! {
            attacked = &mut attacking => attacked,
            _ = int.recv() => { abandon.store(true, Ordering::Relaxed); continue }
            _ = term.recv() => { abandon.store(true, Ordering::Relaxed); continue }
            _ = hup.recv() => { abandon.store(true, Ordering::Relaxed); continue }
        };
        return attacked.map_err(|error| broken(error.to_string()))?.map_err(|fault| match fault {
            Fault::Abandoned => Diagnostic::new("LW0341", "interrupted; every process was ended").exit(INTERRUPTED),
            fault => broken(fault.to_string()),
        });
    }
}

fn matrix(exe: PathBuf, dir: PathBuf, trials: usize, abandon: &AtomicBool) -> Result<Vec<Cell>, Fault> {
    let arena = Arena::new(exe, dir, None).map_err(|error| Fault::Broken(error.to_string()))?;
    let mut cells = Vec::new();
    for attack in &MATRIX {
        match arena.cell(attack, trials, abandon) {
            Ok(trials) => cells.push(Cell::of(attack.name, &trials)),
            Err(Fault::LeftOut(why)) => eprintln!("left out: {}: {why}", attack.name),
            Err(fault) => return Err(fault),
        }
    }
    Ok(cells)
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

fn broken(why: impl Into<String>) -> Diagnostic {
    Diagnostic::new("LW0340", "the attacks could not be carried out")
        .why(why)
        .hint("leaseward doctor      see what this machine lacks")
}
