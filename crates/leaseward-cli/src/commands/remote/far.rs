//! The far end: an agent whose connections to the voters go through standard input and output.
//!
//! Must stay true: nothing but frames is written to standard output; the end of the stream is the end of this process,
//! and of nothing else: its shims go on to their deadlines.

use std::os::fd::AsFd;
use std::time::Duration;

use leaseward::agent::Agent;
use leaseward::remote::MANAGER_LABEL;
use leaseward::remote::far::Far;
use tokio::fs::File;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::RemoteAgent;
use crate::commands::agent::{agent_config, stopped};
use crate::diagnostic::Diagnostic;
use crate::settings::Settings;
use crate::telemetry;

/// How long an orderly end may take.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The near side sends a sign of life every 300 ms: with a short time to live, four may be late.
const SILENCE_MIN: Duration = Duration::from_millis(1_200);

pub(super) async fn run(arguments: RemoteAgent) -> Result<(), Diagnostic> {
    let mut settings = if arguments.config.exists() { Settings::read(&arguments.config)? } else { Settings::default() };
    if arguments.check {
        agent_config(&settings)?;
        crate::printer::line(&format!("{} is valid", arguments.config.display()));
        return Ok(());
    }
    telemetry::init(&settings.log);
    let lost = |error: std::io::Error| Diagnostic::new("LW0371", format!("standard input or output: {error}"));
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(lost)?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(lost)?;
    let far = Far::greet(File::from_std(input.into()), File::from_std(output.into())).await?;
    settings.node.name = far.machine().to_string();
    let mut config = agent_config(&settings)?;
    config.labels.insert(MANAGER_LABEL.0.into(), MANAGER_LABEL.1.into());
    // Sooner than the servers' deadline, so that the next agent can still adopt them.
    let silence = (config.ttl * 2 / 3).max(SILENCE_MIN);
    let (client, carried) = far.client(silence).await?;
    // Carried from now on: opening the machine takes a while, and the near side must hear of us.
    let carried = tokio::spawn(carried);
    let (agent, adopted) = Agent::open(config, client).await?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(agent.run(adopted, stop.clone()));
    tokio::select! {
        why = carried => warn!(
            why = why.unwrap_or_else(|error| error.to_string()),
            "the near side is gone; servers go on until their deadlines"
        ),
        () = stopped() => info!("stopping; servers go on until their deadlines"),
    }
    stop.cancel();
    tokio::time::timeout(END_WITHIN, running).await.ok();
    Ok(())
}
