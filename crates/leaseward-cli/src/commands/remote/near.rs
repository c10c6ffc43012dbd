//! The near end: keeps machines in the cluster, until it is interrupted.

use std::time::Duration;

use leaseward::client::Client;
use leaseward::remote::control;
use leaseward_raft::net::transport::Transport;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::args::RemoteRun;
use crate::commands::agent::{learn_addresses, stopped};
use crate::commands::remote::settings::{Managed, RemoteSettings};
use crate::diagnostic::Diagnostic;
use crate::telemetry;

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
                let client = client.another();
                tasks.spawn(async move {
                    if let Err(why) = control::run(*config, client, stop).await {
                        error!(%why, "this machine is not managed");
                    }
                });
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
