//! `leaseward doctor`: whether this machine has what a server needs, and whether its fence holds under attack.
//!
//! Must stay true: no cluster is asked; nothing is left behind, no file and no process, also after an interruption. A
//! watchdog is never opened: from then on it would count.

mod fence;
mod progress;

use std::path::PathBuf;

use leaseward_node::checkup::{self, Finding, State};
use serde::Serialize;

use crate::args::DoctorArguments;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field};
use crate::settings::Settings;

/// What the checks have found.
#[derive(Debug, Serialize)]
struct Checkup {
    healthy: bool,
    items: Vec<Finding>,
}

/// Returns 0 if nothing failed, nothing survived and every trial was done, otherwise 1.
pub(crate) async fn run(output: &Output, mut doctor: DoctorArguments) -> Result<u8, Diagnostic> {
    if let Some(path) = &doctor.config {
        let settings = Settings::read(path)?;
        doctor.watchdog = doctor.watchdog.or(settings.machine.watchdog);
        doctor.data = doctor.data.or(Some(settings.node.data));
    }
    if doctor.fence { fence::run(output, doctor).await } else { checks(output, doctor).await }
}

fn data(doctor: &DoctorArguments) -> PathBuf {
    doctor.data.clone().unwrap_or_else(std::env::temp_dir)
}

async fn checks(output: &Output, doctor: DoctorArguments) -> Result<u8, Diagnostic> {
    let look = move || checkup::look(&data(&doctor), doctor.watchdog.as_deref());
    let looked = tokio::task::spawn_blocking(look).await;
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

fn broken(why: impl Into<String>) -> Diagnostic {
    Diagnostic::new("LW0340", "the attacks could not be carried out")
        .why(why)
        .hint("leaseward doctor      see what this machine lacks")
}
