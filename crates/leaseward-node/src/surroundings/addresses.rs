//! The place of a server's addresses in the sequence: claimed before its program is executed, released after its end.
//!
//! Must stay true: both may be repeated. A release that is not surely done is a failure: the server's end is not told
//! before it is.

use leaseward_state::server::HookStep;

use super::{Failure, Surroundings, Until};

impl Surroundings {
    /// Claims the server's addresses: the hook `address_add`, or ours.
    pub(super) async fn claim_addresses(&self, until: &Until) -> Result<(), Failure> {
        if self.hook_if_any(HookStep::AddressAdd, Some(until)).await? {
            return Ok(());
        }
        // PLACE OF THE BUILT-IN CLAIM: `self.spec.addresses`, under `self.order.token`, while `until` lies ahead.
        Ok(())
    }

    /// Releases the server's addresses: the hook `address_del`, or ours.
    pub(super) async fn release_addresses(&self) -> Result<(), Failure> {
        if self.hook_if_any(HookStep::AddressDel, None).await? {
            return Ok(());
        }
        // PLACE OF THE BUILT-IN RELEASE: `self.spec.addresses`.
        Ok(())
    }
}
