//! Claiming an address and keeping it: the steps, in their order.
//!
//! Must stay true: probe, record, fence, address, announcement. Whatever ends us between two of them, the record leads
//! a new agent to what is there, and the kernel ends it anyway.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Announce, FloatingAddress};
use leaseward_state::token::FencingToken;
use tokio::time::sleep;

use super::error::failed;
use super::link::Link;
use super::record::Record;
use super::{AddressError, Addresses, Holding, blocking, netlink, nft, parse, read_links, remove_and_prove};
use crate::clock::BootInstant;
use crate::limits::{ADDRESS_CONFLICT_PAUSE, ADDRESS_HANDOVER_MAX};

impl Addresses {
    /// Claims an address for a server until `until`: probes, records, sets the network fence if asked, adds, and
    /// announces unless that waits for the server to be ready. Takes 90 ms where nobody has it. A conflict that goes
    /// away within `patience` is none: a former owner's address may outlive its time by a second. Idempotent for
    /// the server that has it: then it is extended and announced.
    ///
    /// When dropped midway the address may be here, recorded and with its lifetime; [`Addresses::release`] removes
    /// it.
    ///
    /// # Errors
    /// [`AddressError::Conflict`] and [`AddressError::Late`]: it is not here. Otherwise what failed; what was done is
    /// undone as far as the machine lets us.
    pub async fn claim(
        &self,
        server: &ServerName,
        token: FencingToken,
        address: &FloatingAddress,
        until: BootInstant,
        patience: Duration,
    ) -> Result<(), AddressError> {
        let ip = parse(address)?;
        let releases = self.releases(server);
        let turn = self.turn(ip);
        let _turn = turn.lock().await;
        let former = self.inner.records.of(ip);
        let here = match &former {
            Some(record) if record.server == *server => read_links().await?.with_alone(ip).first().copied().cloned(),
            _ => None,
        };
        let is_new = here.is_none();
        let link = match here {
            Some(link) => link,
            None => self.look_patiently(address, ip, until, patience).await?,
        };
        let record = Record {
            ip,
            interface: link.name.clone(),
            server: server.clone(),
            token,
            tickle: address.tickle,
            // Once guarded it stays so until it is released.
            network_fence: address.network_fence || former.is_some_and(|record| record.network_fence),
        };
        self.record(&record, releases)?;
        let fenced: Vec<IpAddr> = record.network_fence.then_some(ip).into_iter().collect();
        if let Err(error) = lend(&[Loan { ip, interface: link.index, is_new }], &fenced, until).await {
            let is_foreign = is_new && errno(&error) == Some(libc::EEXIST);
            if is_new {
                self.undo(&record, is_foreign).await;
            }
            let conflict = AddressError::Conflict { ip, mac: link.mac_or_zero(), interface: link.name };
            return Err(if is_foreign { conflict } else { error });
        }
        self.hold(record).open_until(until);
        if is_new {
            tracing::info!(%ip, %server, %token, interface = link.name, "address claimed");
        }
        if address.announce == Announce::BeforeStart {
            self.announce_one(ip);
        }
        Ok(())
    }

    /// Moves the lifetime of all addresses of a server to `until`, and that of their network fences. One that has
    /// gone (IPv6 addresses go with their link) is probed and added again. Tries all before it reports the first
    /// failure. When dropped midway, some are extended.
    ///
    /// # Errors
    /// What failed; the address then ends at its former time, or has ended.
    pub async fn extend(&self, server: &ServerName, until: BootInstant) -> Result<(), AddressError> {
        let mut result = Ok(());
        // Ascending, so that two callers wait for one another in the same order.
        let mut turns = BTreeMap::new();
        for Holding { record, .. } in self.holdings_of(server) {
            turns.insert(record.ip, self.turn(record.ip).lock_owned().await);
        }
        // Some may have been released meanwhile; what was claimed meanwhile is fresh.
        let mut held = self.holdings_of(server);
        held.retain(|holding| turns.contains_key(&holding.record.ip));
        if held.is_empty() {
            return Ok(());
        }
        let links = read_links().await?;
        let (mut loans, mut fenced) = (Vec::new(), Vec::new());
        for Holding { record, .. } in &held {
            let ip = record.ip;
            let loan = match links.with_alone(ip).first() {
                Some(link) => Loan { ip, interface: link.index, is_new: false },
                None => match self.look(&as_claimed(record), ip).await {
                    Ok(link) => Loan { ip, interface: link.index, is_new: true },
                    Err(error) => {
                        result = result.and(Err(error));
                        continue;
                    }
                },
            };
            loans.push(loan);
            if record.network_fence {
                fenced.push(ip);
            }
        }
        lend(&loans, &fenced, until).await?;
        for loan in &loans {
            let Some(holding) = held.iter().find(|holding| holding.record.ip == loan.ip) else { continue };
            holding.gate.open_until(until);
            if loan.is_new && holding.herald.is_some() {
                self.announce_one(loan.ip);
            }
        }
        result
    }

    async fn look_patiently(
        &self,
        address: &FloatingAddress,
        ip: IpAddr,
        until: BootInstant,
        patience: Duration,
    ) -> Result<Link, AddressError> {
        let patient_until = until.min(BootInstant::now() + patience);
        loop {
            if self.was_free(ip) {
                return self.place(address, ip).await;
            }
            match self.look(address, ip).await {
                Err(AddressError::Conflict { .. }) if BootInstant::now() < patient_until => {
                    sleep(ADDRESS_CONFLICT_PAUSE).await;
                }
                seen => return seen,
            }
        }
    }

    fn releases(&self, server: &ServerName) -> u64 {
        self.state().releases.get(server).copied().unwrap_or_default()
    }

    /// Writes a record, unless its server was released since. A release that begins later finds it.
    fn record(&self, record: &Record, releases: u64) -> Result<(), AddressError> {
        let state = self.state();
        if state.releases.get(&record.server).copied().unwrap_or_default() != releases {
            return Err(AddressError::Late { ip: record.ip });
        }
        self.inner.records.write(record)
    }

    /// Takes back what a failed claim has done. Where that fails too, the record stays for the release.
    async fn undo(&self, record: &Record, is_foreign: bool) {
        let ip = record.ip;
        let undone = async {
            if !is_foreign {
                remove_and_prove(ip).await?;
            }
            if record.network_fence {
                // What refused to guard it has nothing to forget.
                let _ = nft::forget(ip).await;
            }
            self.inner.records.remove(ip)
        };
        if let Err(error) = undone.await {
            tracing::warn!(%ip, %error, "a failed claim could not be undone");
        }
        self.let_go(ip);
    }
}

/// An address that gets a lifetime.
#[derive(Debug, Clone, Copy)]
struct Loan {
    ip: IpAddr,
    interface: u32,
    is_new: bool,
}

/// Gives addresses their lifetimes, the fence first. The kernel counts from their arrival, so they are shorter by what
/// the way may take, and what took longer is handed over again, shorter still.
async fn lend(loans: &[Loan], fenced: &[IpAddr], until: BootInstant) -> Result<(), AddressError> {
    let (mut loans, mut allowance) = (loans.to_vec(), ADDRESS_HANDOVER_MAX);
    while let Some(first) = loans.first() {
        let asked = BootInstant::now();
        let left = until.saturating_since(asked).saturating_sub(allowance);
        if left.is_zero() {
            return Err(AddressError::Late { ip: first.ip });
        }
        if !fenced.is_empty() {
            nft::allow(fenced, left).await?;
        }
        let round = loans.clone();
        let lent = blocking(move || hand_over_all(&round, left)).await;
        lent.map_err(failed(format!("give {} its lifetime", names(&loans))))?;
        let taken = BootInstant::now().saturating_since(asked);
        if taken <= allowance {
            break;
        }
        allowance = taken + ADDRESS_HANDOVER_MAX;
        loans.iter_mut().for_each(|loan| loan.is_new = false);
    }
    Ok(())
}

/// Tries all. Returns the first failure.
fn hand_over_all(loans: &[Loan], left: Duration) -> io::Result<()> {
    let mut result = Ok(());
    for loan in loans {
        result = result.and(hand_over(loan, left));
    }
    result
}

fn hand_over(loan: &Loan, left: Duration) -> io::Result<()> {
    let seconds = u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX - 1);
    let hand_over = if loan.is_new { netlink::add } else { netlink::extend };
    hand_over(loan.ip, loan.interface, seconds)
}

fn names(loans: &[Loan]) -> String {
    loans.iter().map(|loan| loan.ip.to_string()).collect::<Vec<_>>().join(", ")
}

fn errno(error: &AddressError) -> Option<i32> {
    match error {
        AddressError::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

fn as_claimed(record: &Record) -> FloatingAddress {
    FloatingAddress {
        ip: record.ip.to_string(),
        interface: Some(record.interface.clone()),
        announce: Announce::AfterReady,
        tickle: record.tickle,
        network_fence: record.network_fence,
    }
}
