//! `leaseward run --lease NAME -- CMD`: a command that runs only while a lease is held.
//!
//! Must stay true: the command's whole process tree is dead before anybody else can get the lease, also when this
//! process is killed or stopped: the command runs under a shim whose kernel timer is set to the lease's end.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use leaseward::{Cluster, Error, Lease, LeaseName};
use leaseward_node::{BootInstant, GuardOrder, Guarded};
use leaseward_state::server::{Certificate, Exit};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::RunArguments;
use crate::diagnostic::Diagnostic;
use crate::printer::note;
use crate::target::Target;

/// The lease was lost and the command stopped (EX_TEMPFAIL, so that queues and systemd try again).
const LOST: u8 = 75;

/// The lease was not to be had within `--wait`.
const NOT_ACQUIRED: u8 = 76;

/// Something of ours went wrong.
pub(crate) const OWN_ERROR: u8 = 125;

/// Returns the command's exit code, or one of ours.
pub(crate) async fn run(target: &Target, arguments: RunArguments) -> Result<ExitCode, Diagnostic> {
    let own = |error: Diagnostic| error.exit(OWN_ERROR);
    let name =
        LeaseName::new(arguments.lease.clone()).map_err(|error| own(Diagnostic::new("LW0101", error.to_string())))?;
    let client = target.client().await.map_err(own)?;
    let budget = arguments.grace.unwrap_or(arguments.ttl / 4);
    if budget * 2 > arguments.ttl {
        return Err(own(Diagnostic::new("LW0104", "--grace must be at most half of --ttl")
            .hint("the lease has to be renewed before its stop budget begins")));
    }
    let request = Cluster::with_client(client)
        .lease(name.as_str())
        .map_err(|error| own(error.into()))?
        .ttl(arguments.ttl)
        .stop_budget(budget);
    let acquired = if arguments.wait.is_zero() {
        request.try_acquire().await
    } else {
        note!("leaseward: waiting for {name} …");
        request.acquire_timeout(arguments.wait).await.map(Some)
    };
    let lease = match acquired {
        Ok(Some(lease)) => lease,
        Ok(None) | Err(Error::NotGranted) => {
            let diagnostic = Diagnostic::new("LW0202", format!("{name} is held by somebody else"))
                .hint(format!("leaseward lease get {name}      see who"))
                .hint("--wait 5m      wait for it");
            return Err(diagnostic.exit(NOT_ACQUIRED));
        }
        Err(error) => return Err(own(error.into())),
    };
    note!("leaseward: got {name}, token {}", lease.token());
    let order = guard_order(&lease, arguments.command);
    let guarded = match Guarded::spawn(order).await {
        Ok(guarded) => guarded,
        Err(error) => {
            let text = error.to_string();
            lease.release().await.ok();
            let exit = if text.contains("No such file") || text.contains("ENOENT") {
                127
            } else if text.contains("Permission denied") || text.contains("EACCES") {
                126
            } else {
                OWN_ERROR
            };
            return Err(Diagnostic::new(error.code(), text).exit(exit));
        }
    };
    let outcome = guard(&lease, &guarded, budget).await;
    match outcome {
        Outcome::Ended(certificate) => {
            lease.release().await.ok();
            Ok(ExitCode::from(code(certificate.exit)))
        }
        Outcome::Lost(why) => {
            note!("leaseward: error LW0201 {why}; the command is stopped, before anybody else can get the lease");
            Ok(ExitCode::from(LOST))
        }
    }
}

enum Outcome {
    Ended(Certificate),
    Lost(String),
}

/// Passes every answered renewal on to the shim until the command ends or the lease is lost.
async fn guard(lease: &Lease, guarded: &Guarded, budget: Duration) -> Outcome {
    let mut standing = lease.standing();
    let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
    let mut int = signal(SignalKind::interrupt()).expect("signals can be listened to");
    let ended = guarded.wait();
    tokio::pin!(ended);
    let mut not_extended = false;
    loop {
        tokio::select! {
            biased;
            end = &mut ended => {
                return match end {
                    // Ended by its deadline: the lease was over, whatever the timers here say.
                    Ok(certificate) if lease.check().is_err() => Outcome::Lost(format!("{} was lost ({})", lease.name(), certificate.exit)),
                    Ok(certificate) => Outcome::Ended(certificate),
                    Err(error) => Outcome::Lost(error.to_string()),
                };
            }
            lost = lease.lost() => {
                note!("leaseward: {lost}: SIGTERM to the command now, SIGKILL in {budget:?} at the latest");
                guarded.stop(budget.mul_f64(0.8)).await.ok();
                (&mut ended).await.ok();
                return Outcome::Lost(lost.to_string());
            }
            changed = standing.changed() => {
                if changed.is_err() {
                    return Outcome::Lost("its keeper ended".into());
                }
                let standing = standing.borrow_and_update().clone();
                if standing.remaining().is_zero() {
                    continue;
                }
                match guarded.extend(BootInstant::after(|| standing.remaining())).await {
                    Ok(()) => not_extended = false,
                    // Once is no news: the command may have ended just now.
                    Err(error) if std::mem::replace(&mut not_extended, true) => {
                        note!("leaseward: the deadline was not extended: {error}");
                    }
                    Err(_) => {}
                }
            }
            _ = term.recv() => { guarded.stop(Duration::from_secs(30)).await.ok(); }
            _ = int.recv() => { guarded.stop(Duration::from_secs(30)).await.ok(); }
        }
    }
}

fn guard_order(lease: &Lease, command: Vec<OsString>) -> GuardOrder {
    GuardOrder {
        shim_exe: std::env::current_exe().unwrap_or_else(|_| "leaseward".into()),
        shim_arguments: vec!["shim".into()],
        command,
        environment: std::env::vars_os().collect(),
        machine: None,
        lease: lease.name().clone(),
        token: lease.token(),
        deadline: BootInstant::after(|| lease.remaining()),
        real_time: true,
    }
}

fn code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code & 0xff).unwrap_or(OWN_ERROR),
        Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(OWN_ERROR),
        Exit::Unseen => 137,
    }
}
