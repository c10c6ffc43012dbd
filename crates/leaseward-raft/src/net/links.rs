//! Our connections to the other nodes: opened when needed, forgotten when broken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::net::connection::{CallError, Connection};
use crate::net::transport::Transport;
use crate::net::wire::{Answer, Ask, Hello, PROTOCOL, Purpose};
use crate::types::NodeId;

/// After a failed attempt to connect, the next one waits this long: a dead peer must not cost a timeout per call.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Connections to other nodes.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Transport,
    cluster: u128,
    node: NodeId,
    instance: u128,
    links: Mutex<BTreeMap<(NodeId, Purpose), Arc<Link>>>,
}

#[derive(Default)]
struct Link {
    open: AsyncMutex<Slot>,
}

#[derive(Default)]
struct Slot {
    address: String,
    connection: Option<Connection>,
    failed_at: Option<Instant>,
}

impl Links {
    /// Returns no connections yet.
    #[must_use]
    pub fn new(transport: Transport, cluster: u128, node: NodeId, instance: u128) -> Self {
        let shared = Shared { transport, cluster, node, instance, links: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the connection to a node, opened if need be.
    ///
    /// # Errors
    /// [`CallError`] if nobody answers there, we are refused, or another node answers.
    pub async fn connection(&self, node: NodeId, address: &str, purpose: Purpose) -> Result<Connection, CallError> {
        let link = {
            let mut links = self.shared.links.lock().expect("no holder of this lock panics");
            Arc::clone(links.entry((node, purpose)).or_default())
        };
        let mut slot = link.open.lock().await;
        if slot.address != address {
            *slot = Slot { address: address.to_owned(), ..Slot::default() };
        }
        if let Some(connection) = &slot.connection
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        if slot.failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(CallError::Broken(format!("{address} did not answer a moment ago")));
        }
        let hello = Hello {
            protocol: PROTOCOL,
            cluster: Some(self.shared.cluster),
            node: Some(self.shared.node),
            instance: self.shared.instance,
            purpose,
        };
        let opened = Connection::open(self.shared.transport, address, &hello).await.and_then(|connection| {
            if connection.node() == node {
                return Ok(connection);
            }
            Err(CallError::Broken(format!("{address} is node {}, not {node}", connection.node())))
        });
        match opened {
            Ok(connection) => {
                slot.connection = Some(connection.clone());
                slot.failed_at = None;
                Ok(connection)
            }
            Err(error) => {
                slot.connection = None;
                slot.failed_at = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Closes the connections to a process of a node that another one has followed. They may be open for long: a
    /// machine that lost power closes none.
    pub fn retire(&self, node: NodeId, instance: u128) {
        let links = self.shared.links.lock().expect("no holder of this lock panics");
        let of_node: Vec<_> = links.range((node, Purpose::Control)..=(node, Purpose::Client)).collect();
        for link in of_node.into_iter().map(|(_, link)| Arc::clone(link)) {
            tokio::spawn(async move {
                let mut slot = link.open.lock().await;
                if let Some(connection) = slot.connection.take_if(|connection| connection.instance() == instance) {
                    connection.close();
                }
            });
        }
    }

    /// Closes all connections. Whoever asks again opens new ones.
    pub async fn close(&self) {
        let links: Vec<_> = {
            let links = self.shared.links.lock().expect("no holder of this lock panics");
            links.values().map(Arc::clone).collect()
        };
        for link in links {
            if let Some(connection) = link.open.lock().await.connection.take() {
                connection.close();
            }
        }
    }

    /// Returns a node's answer. A node that is silent is not waited for when content is fetched: another one may have it.
    ///
    /// # Errors
    /// [`CallError`]; the question may have been heard.
    pub async fn call(
        &self,
        node: NodeId,
        address: &str,
        purpose: Purpose,
        ask: &Ask,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let exchange = async {
            let connection = self.connection(node, address, purpose).await?;
            match ask {
                Ask::GetFrames(_) => connection.call_heard(ask, within).await,
                _ => connection.call(ask, within).await,
            }
        };
        tokio::time::timeout(within, exchange).await.map_err(|_| CallError::Timeout)?
    }
}
