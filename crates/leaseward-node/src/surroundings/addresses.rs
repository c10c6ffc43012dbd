//! The place of a server's addresses in the sequence: claimed before its program is executed, released after its end.
//!
//! Must stay true: both may be repeated. A release that is not surely done is a failure: the server's end is not told
//! before it is.

use leaseward_state::name::ServerName;
use leaseward_state::server::{FenceLevel, FloatingAddress, HookStep};

use super::{Failure, Surroundings, Until};
use crate::address::AddressError;
use crate::clock::BootInstant;
use crate::hook::HookOutcome;
use crate::limits::ADDRESS_PATIENCE;

impl Surroundings {
    /// Claims the server's addresses: the hook `address_add`, or ours.
    pub(super) async fn claim_addresses(&self, until: &Until) -> Result<(), Failure> {
        if self.hook_if_any(HookStep::AddressAdd, Some(until)).await? {
            return Ok(());
        }
        let Some(server) = self.server() else { return Ok(()) };
        let begun = *until.borrow();
        for address in &self.spec.addresses {
            self.claim_address(&server, address, until).await?;
        }
        let deadline = *until.borrow();
        if deadline == begun {
            return Ok(());
        }
        // It was extended meanwhile, and some of them know the old one only.
        self.addresses
            .extend(&server, deadline)
            .await
            .map_err(|error| Failure::of(HookStep::AddressAdd, HookOutcome::Transient, error.to_string()))
    }

    /// Claims one address. While it waits for a former owner's to go, its own time may run out as it was, and be
    /// extended: then it goes on, for as long as it is patient.
    async fn claim_address(
        &self,
        server: &ServerName,
        address: &FloatingAddress,
        until: &Until,
    ) -> Result<(), Failure> {
        let address = fenced(address, self.spec.requires_fence);
        let patient_until = BootInstant::now() + ADDRESS_PATIENCE;
        loop {
            let deadline = *until.borrow();
            let patience = patient_until.saturating_since(BootInstant::now());
            let claim = self.addresses.claim(server, self.order.token, &address, deadline, patience);
            let mut until = until.clone();
            let called_off = until.wait_for(|at| *at == BootInstant(0));
            let claimed = tokio::select! {
                claimed = claim => claimed,
                _ = called_off => return Err(Failure::of(HookStep::AddressAdd, HookOutcome::TryLater, "called off")),
            };
            let Err(error) = claimed else { return Ok(()) };
            let is_patient = deadline < *until.borrow() && BootInstant::now() < patient_until;
            if is_patient && matches!(error, AddressError::Conflict { .. } | AddressError::Late { .. }) {
                continue;
            }
            let outcome = if error.is_retryable() { HookOutcome::Transient } else { HookOutcome::WrongHere };
            return Err(Failure::of(HookStep::AddressAdd, outcome, format!("{}: {error}", error.code())));
        }
    }

    /// Releases the server's addresses: the hook `address_del`, or ours.
    pub(super) async fn release_addresses(&self) -> Result<(), Failure> {
        if self.hook_if_any(HookStep::AddressDel, None).await? {
            return Ok(());
        }
        let Some(server) = self.server() else { return Ok(()) };
        let unsure = |error: AddressError| {
            Failure::of(HookStep::AddressDel, HookOutcome::Transient, format!("{}: {error}", error.code()))
        };
        self.addresses.release(&server).await.map_err(unsure)
    }

    fn server(&self) -> Option<ServerName> {
        ServerName::new(self.order.server.clone()).ok()
    }
}

/// Returns an address with the network fence that its server asks for: by the address, or by the level.
fn fenced(address: &FloatingAddress, required: FenceLevel) -> FloatingAddress {
    FloatingAddress { network_fence: address.network_fence || required >= FenceLevel::F3, ..address.clone() }
}

#[cfg(test)]
mod tests {
    use leaseward_state::server::Announce;

    use super::*;

    #[test]
    fn who_asks_for_the_level_asks_for_the_fence() {
        let address = |network_fence| FloatingAddress {
            ip: "10.0.0.1".into(),
            interface: None,
            announce: Announce::BeforeStart,
            tickle: false,
            network_fence,
        };
        for level in FenceLevel::ALL {
            assert!(fenced(&address(true), level).network_fence);
            assert_eq!(fenced(&address(false), level).network_fence, level >= FenceLevel::F3, "{level}");
        }
    }
}
