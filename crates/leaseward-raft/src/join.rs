//! A new data directory asks to be let in.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::net::connection::{CallError, Connection};
use crate::net::wire::{Answer, Ask, Hello, PROTOCOL, Purpose};
use crate::replica::StartError;
use crate::settings::Settings;
use crate::types::{NodeId, NodeInfo};

/// Where it was let in, and as whom.
pub(crate) struct Joined {
    pub(crate) cluster: u128,
    pub(crate) node: NodeId,
}

/// Asks the addresses in turn until one of them lets us in. Patient: the cluster may be starting too.
pub(crate) async fn ask(
    settings: &Settings,
    addresses: &[String],
    replace: bool,
    instance: u128,
) -> Result<Joined, StartError> {
    let info = NodeInfo {
        name: settings.name.clone(),
        peer_address: settings.advertise.clone(),
        api_address: settings.api_address.clone(),
        standing: settings.standing,
        replaces: None,
    };
    let hello = Hello { protocol: PROTOCOL, cluster: None, node: None, instance, purpose: Purpose::Client };
    let question = Ask::Join { info, replace, feature_level: settings.feature_level };
    let mut told = false;
    loop {
        for address in addresses {
            match exchange(settings, address, &hello, &question).await {
                Ok(Answer::Joined { cluster, node }) => {
                    info!(node, cluster = format!("{cluster:032x}"), "joined");
                    return Ok(Joined { cluster, node });
                }
                Ok(Answer::Failed { code, why }) if code != "LW0501" => {
                    return Err(StartError::Refused { code, why });
                }
                Err(CallError::Refused { code, why }) => return Err(StartError::Refused { code, why }),
                Ok(_) | Err(_) => {}
            }
        }
        if !told {
            told = true;
            warn!(?addresses, "nobody lets us in yet; asking again");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn exchange(settings: &Settings, address: &str, hello: &Hello, ask: &Ask) -> Result<Answer, CallError> {
    let connection = Connection::open(settings.transport, address, hello).await?;
    connection.call(ask, Duration::from_secs(10)).await
}
