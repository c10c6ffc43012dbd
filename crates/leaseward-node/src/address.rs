//! Floating addresses: they exist only where their server runs.
//!
//! An address is probed, recorded, added with a lifetime, and announced. When the agent dies, the kernel removes it
//! by itself, within about a second of its time, and with a network fence stops its packets within milliseconds.
//!
//! Must stay true:
//! - an address that somebody answers for, or that this machine has without our record, is neither claimed nor
//!   removed: we never win by being the louder one;
//! - a record is written before its address is added and goes after it (`record.rs`), so a new agent finds all;
//! - a lifetime never reaches beyond the server's time by more than the kernel's second;
//! - nothing is announced after the server's time or its release (`herald.rs`).
//!
//! Left out on purpose: clouds that ignore announcements (a hook does it there); the carrier of the link, whose
//! absence makes a probe find nobody; two machines that probe at the same moment, which the lease rules out.

mod claim;
mod connections;
mod error;
mod frame;
mod herald;
mod link;
mod netlink;
mod nft;
mod record;
mod segment;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use leaseward_state::name::ServerName;
use leaseward_state::server::FloatingAddress;
use tokio::task::{AbortHandle, spawn_blocking};

pub use connections::{Connection, connections};
pub use error::AddressError;
use error::failed;
pub use frame::Mac;
use herald::Gate;
use link::{Link, Links, Subnet};
use record::{Record, Records};

use tokio::time::sleep;

use crate::clock::BootInstant;
use crate::limits::{ADDRESS_CONFLICT_PAUSE, ADDRESS_FREE_FOR, TICKLES_MAX};

/// The floating addresses of this machine. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Addresses {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    records: Records,
    subnets: Vec<Subnet>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holdings: BTreeMap<IpAddr, Holding>,
    /// One operation at a time for each address.
    turns: BTreeMap<IpAddr, Arc<tokio::sync::Mutex<()>>>,
    /// How often a server's addresses were released: a claim that began before goes no further.
    releases: BTreeMap<ServerName, u64>,
    connections: BTreeMap<ServerName, Vec<Connection>>,
    /// When nobody answered to an address last, of those that are kept an eye on.
    free: BTreeMap<IpAddr, BootInstant>,
}

/// An address that is ours.
#[derive(Debug, Clone)]
struct Holding {
    record: Record,
    gate: Arc<Gate>,
    herald: Option<AbortHandle>,
}

/// Finds out whether this machine has a network fence, by setting it up with nothing to guard. Cancel safe.
///
/// # Errors
/// [`AddressError::NoNft`]; [`AddressError::Nft`] with what it said.
pub async fn check_network_fence() -> Result<(), AddressError> {
    nft::check().await
}

impl Addresses {
    /// Returns the addresses recorded under `record_dir`, a directory that a boot empties, made if missing.
    /// `interfaces` maps subnets (`10.0.0.0/24`) to interfaces; what is no subnet is named in the log and not used.
    #[must_use]
    pub fn new(record_dir: PathBuf, interfaces: BTreeMap<String, String>) -> Self {
        let subnet = |(text, interface): (&String, &String)| {
            let subnet = Subnet::parse(text, interface);
            if subnet.is_none() {
                tracing::warn!(subnet = text, interface, "not a subnet");
            }
            subnet
        };
        let subnets = interfaces.iter().filter_map(subnet).collect();
        let inner = Inner { records: Records::new(record_dir), subnets, state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Asks whether anybody has the address: three probes in 90 ms. Changes nothing. Cancel safe.
    ///
    /// # Errors
    /// [`AddressError::Conflict`] with the holder, which is this machine where the address is on it; otherwise why
    /// it could not be asked.
    pub async fn probe(&self, address: &FloatingAddress) -> Result<(), AddressError> {
        self.look(address, parse(address)?).await.map(drop)
    }

    /// Returns the name of the interface that an address would go to here. Changes nothing.
    ///
    /// # Errors
    /// [`AddressError::NoInterface`], or why this machine's interfaces cannot be read.
    pub async fn interface_of(&self, address: &FloatingAddress) -> Result<String, AddressError> {
        let ip = parse(address)?;
        let links = read_links().await?;
        links.choose(ip, address.interface.as_deref(), &self.inner.subnets).map(|link| link.name.clone())
    }

    /// Asks again and again whether anybody has an address, until it is dropped: a claim that follows soon after need
    /// not ask. For addresses of a server that may be lost elsewhere.
    pub async fn keep_an_eye_on(&self, address: &FloatingAddress) {
        let Ok(ip) = parse(address) else { return };
        loop {
            let free = self.look(address, ip).await.is_ok();
            {
                let mut state = self.state();
                match free {
                    true => drop(state.free.insert(ip, BootInstant::now())),
                    false => drop(state.free.remove(&ip)),
                }
            }
            sleep(ADDRESS_CONFLICT_PAUSE).await;
        }
    }

    /// Returns whether nobody answered to an address a moment ago, and forgets it.
    fn was_free(&self, ip: IpAddr) -> bool {
        let asked = self.state().free.remove(&ip);
        asked.is_some_and(|at| BootInstant::now().saturating_since(at) <= ADDRESS_FREE_FOR)
    }

    /// Starts to tell the neighbours that a server's addresses are here, at 0, 100, 300, 700 and 1500 ms and then
    /// every minute while they are ours, and wakes the connections of the former owner where that is asked for.
    /// Returns at once; must be called within a runtime. What the network does not take is logged.
    pub fn announce(&self, server: &ServerName) {
        for holding in self.holdings_of(server) {
            self.announce_one(holding.record.ip);
        }
    }

    /// Tells which connections the former owner of a server's addresses had. The next announcement wakes them, at
    /// most [`TICKLES_MAX`].
    pub fn set_connections(&self, server: &ServerName, mut connections: Vec<Connection>) {
        connections.truncate(TICKLES_MAX);
        self.state().connections.insert(server.clone(), connections);
    }

    /// Removes all addresses of a server, proves that they are gone, and forgets them. Idempotent; a claim of this
    /// server that is under way ends with [`AddressError::Late`] or is undone here. Tries all before it reports the
    /// first failure. When dropped midway, some are gone; ask again.
    ///
    /// # Errors
    /// When an address may still be here: what the kernel said.
    pub async fn release(&self, server: &ServerName) -> Result<(), AddressError> {
        *self.state().releases.entry(server.clone()).or_default() += 1;
        let mut result = Ok(());
        for record in self.inner.records.all()? {
            if record.server == *server {
                result = result.and(self.take_off(record.ip, server).await.map(drop));
            }
        }
        self.state().connections.remove(server);
        result
    }

    /// Removes every recorded address whose server is not in `keep`, and takes over the others, whose
    /// lifetimes run on: extend and announce them. Returns the addresses that were removed. For the start of an agent.
    ///
    /// # Errors
    /// When one could not be removed, after all were tried.
    pub async fn sweep(&self, keep: &BTreeSet<ServerName>) -> Result<Vec<String>, AddressError> {
        let (mut removed, mut result) = (Vec::new(), Ok(()));
        for record in self.inner.records.all()? {
            if keep.contains(&record.server) {
                self.hold(record);
                continue;
            }
            match self.take_off(record.ip, &record.server).await {
                Ok(true) => removed.push(record.ip.to_string()),
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| removed)
    }

    /// Returns where an address belongs, which must not be here yet.
    async fn place(&self, address: &FloatingAddress, ip: IpAddr) -> Result<Link, AddressError> {
        let links = read_links().await?;
        if let Some(link) = links.with(ip).first() {
            return Err(AddressError::Conflict { ip, mac: link.mac_or_zero(), interface: link.name.clone() });
        }
        links.choose(ip, address.interface.as_deref(), &self.inner.subnets).cloned()
    }

    /// Looks for a conflict. Returns where the address belongs if there is none.
    async fn look(&self, address: &FloatingAddress, ip: IpAddr) -> Result<Link, AddressError> {
        let link = self.place(address, ip).await?;
        match wire::holder(&link, ip).await.map_err(failed(format!("probe {ip} on {}", link.name)))? {
            Some(mac) => Err(AddressError::Conflict { ip, mac, interface: link.name.clone() }),
            None => Ok(link),
        }
    }

    /// Removes an address that is recorded for `server`. Returns whether it was here.
    async fn take_off(&self, ip: IpAddr, server: &ServerName) -> Result<bool, AddressError> {
        let turn = self.turn(ip);
        let _turn = turn.lock().await;
        let Some(record) = self.inner.records.of(ip).filter(|record| record.server == *server) else {
            return Ok(false);
        };
        self.let_go(ip);
        if record.network_fence
            && let Err(error) = nft::close(ip).await
        {
            tracing::warn!(%ip, %error, "the network fence could not be closed");
        }
        let was_here = remove_and_prove(ip).await?;
        if record.network_fence
            && let Err(error) = nft::forget(ip).await
        {
            tracing::warn!(%ip, %error, "the network fence could not be forgotten");
        }
        self.inner.records.remove(ip)?;
        tracing::info!(%ip, %server, token = %record.token, "address released");
        Ok(was_here)
    }

    fn announce_one(&self, ip: IpAddr) {
        let mut state = self.state();
        if let Some(holding) = state.holdings.get_mut(&ip) {
            let herald = herald::start(&self.inner, ip, Arc::clone(&holding.gate));
            if let Some(former) = holding.herald.replace(herald) {
                former.abort();
            }
        }
    }

    /// Counts an address as ours. Its gate stays as it was, closed at first.
    fn hold(&self, record: Record) -> Arc<Gate> {
        let mut state = self.state();
        let new = Holding { record: record.clone(), gate: Arc::new(Gate::closed()), herald: None };
        let holding = state.holdings.entry(record.ip).or_insert(new);
        holding.record = record;
        Arc::clone(&holding.gate)
    }

    fn let_go(&self, ip: IpAddr) {
        let holding = self.state().holdings.remove(&ip);
        if let Some(holding) = holding {
            holding.gate.close();
            if let Some(herald) = holding.herald {
                herald.abort();
            }
        }
    }

    /// Returns what a server holds, by address.
    fn holdings_of(&self, server: &ServerName) -> Vec<Holding> {
        let state = self.state();
        state.holdings.values().filter(|holding| holding.record.server == *server).cloned().collect()
    }

    fn turn(&self, ip: IpAddr) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.state().turns.entry(ip).or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Returns the connections to be woken when `ip` has moved here.
    fn to_wake(&self, ip: IpAddr) -> Vec<Connection> {
        let state = self.state();
        let Some(holding) = state.holdings.get(&ip).filter(|holding| holding.record.tickle) else {
            return Vec::new();
        };
        let known = state.connections.get(&holding.record.server).into_iter().flatten();
        known.filter(|(local, _)| local.ip() == ip).copied().collect()
    }
}

fn parse(address: &FloatingAddress) -> Result<IpAddr, AddressError> {
    let ip = address.ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast());
    ip.ok_or_else(|| AddressError::NotAnAddress { ip: address.ip.clone() })
}

/// Runs what may block for a moment.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn read_links() -> Result<Links, AddressError> {
    blocking(Links::read).await.map_err(failed("list the machine's addresses"))
}

/// Removes `ip` wherever we could have added it. Returns whether it was here.
async fn remove_and_prove(ip: IpAddr) -> Result<bool, AddressError> {
    let remove = move || {
        let before = Links::read()?;
        let before = before.with_alone(ip);
        for link in &before {
            netlink::remove(ip, link.index)?;
        }
        if Links::read()?.with_alone(ip).is_empty() {
            return Ok(!before.is_empty());
        }
        Err(io::Error::other("it is still there"))
    };
    blocking(remove).await.map_err(failed(format!("remove {ip}")))
}
