//! An agent's view: asks for it again and again, of a voter that is heard.
//!
//! Must stay true: a voter that is dead, cut off, stopped or behind keeps orders from us for less than a time to live:
//! what follows from its death is ordered after that.

use std::time::Duration;

use leaseward_raft::net::wire::MachineView;
use leaseward_state::Revision;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::AGAIN;
use crate::agent::AgentConfig;
use crate::client::Client;
use crate::keeper::Standing;

/// Whoever does not answer for so long may only be slow.
const SILENT_MIN: Duration = Duration::from_millis(100);

/// Asks for the machine's view again and again; each question waits at the voter until something changes.
pub(super) async fn follow_views(
    client: Client,
    config: AgentConfig,
    mut standing: watch::Receiver<Standing>,
    publish: watch::Sender<MachineView>,
) {
    loop {
        let known = publish.borrow().revision;
        let answer = tokio::select! {
            answer = client.view(&config.machine, known) => answer,
            () = overdue(&mut standing, known) => {
                debug!("a voter keeps our orders from us; asking another one");
                client.rotate().await;
                continue;
            }
            () = silent(&client, config.ttl) => {
                debug!("the voter that we asked for our orders is silent; asking another one");
                continue;
            }
        };
        match answer {
            // A voter that is behind must not take us back.
            Ok(view) if view.revision > known => {
                publish.send_replace(view);
            }
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "no view");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits until the voter that we asked for our view is silent. A machine that loses its power closes no connection, and
/// orders that follow from its death must not wait for what it would have said.
async fn silent(client: &Client, ttl: Duration) {
    let look = (ttl / 4).max(SILENT_MIN);
    loop {
        sleep(look).await;
        if !client.is_heard(look).await {
            return;
        }
    }
}

/// Waits until the answers to renewals have spoken of newer orders for a while: then the voter that we asked for our
/// view is stopped, or behind.
async fn overdue(standing: &mut watch::Receiver<Standing>, known: Revision) {
    if standing.wait_for(|standing| standing.orders > known).await.is_err() {
        std::future::pending::<()>().await;
    }
    sleep(AGAIN).await;
}
