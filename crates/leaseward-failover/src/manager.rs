//! Node managers as the master sees them.

use leaseward_state::MachineName;
use leaseward_state::order::Order;

/// Carries orders to machines.
///
/// An order is a hint: the machine acts only under a renewal that a quorum confirmed for exactly the order's token.
/// So an order may be lost, repeated, or arrive late; the machine's agent also finds it in its view of the state.
pub trait NodeManager: Send + Sync + 'static {
    /// Tells a machine what to do with one server. Must not block; nobody waits for an answer.
    fn order(&self, machine: &MachineName, order: &Order);
}
