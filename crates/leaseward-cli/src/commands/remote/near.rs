//! The near end: keeps machines in the cluster, until it is interrupted.

use std::time::Duration;

use leaseward::client::Client;
use leaseward::remote::control::{self, ControlConfig};
use leaseward_raft::net::transport::Transport;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::args::RemoteRun;
use crate::commands::agent::{learn_addresses, stopped};
use crate::commands::remote::settings::{Managed, RemoteSettings};
use crate::diagnostic::Diagnostic;
use crate::telemetry;

/// A machine whose memory another process has is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// How long an orderly end may take.
const END_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn run(arguments: RemoteRun) -> Result<(), Diagnostic> {
    let settings = RemoteSettings::of(&arguments)?;
    let machines = settings.machines()?;
    if arguments.check {
        crate::printer::line(&format!("{} machines, valid", machines.len()));
        return Ok(());
    }
    telemetry::init(&settings.log);
    let transport = if settings.tls.plain { Transport::PlainAnywhere } else { Transport::PlainLoopback };
    let client = Client::new(settings.join.clone(), transport);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let learning = tokio::spawn(learn_addresses(client.clone()));
    for machine in machines {
        let stop = stop.clone();
        match machine {
            Managed::Carried(carried) => {
                info!(machine = %carried.machine, destination = carried.ssh.destination, "managed by ssh");
                // The same client, so that voters that are learned are used; nothing else is asked through it.
                tasks.spawn(carried.run(client.clone(), transport, stop));
            }
            Managed::Control(config) => {
                info!(machine = %config.machine, destination = config.ssh.destination, "managed by a control script");
                tasks.spawn(manage(*config, client.clone(), stop));
            }
        }
    }
    stopped().await;
    info!("stopping; servers go on");
    stop.cancel();
    learning.abort();
    tokio::time::timeout(END_WITHIN, async { while tasks.join_next().await.is_some() {} }).await.ok();
    Ok(())
}

/// Manages a machine by its control script, as soon as nobody else here does.
async fn manage(config: ControlConfig, client: Client, stop: CancellationToken) {
    let mut told = false;
    loop {
        match control::run(config.clone(), client.another(), stop.clone()).await {
            Ok(()) => return,
            Err(why) if told => debug!(%why, "still not managed"),
            Err(why) => {
                told = true;
                error!(machine = %config.machine, %why, "this machine is not managed here; trying again and again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
