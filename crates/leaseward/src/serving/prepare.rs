//! Making ready for servers that other machines may lose.
//!
//! Must stay true: each copy is made ready for once, and nothing goes on for one that nobody needs any more.

use std::collections::BTreeMap;

use leaseward_raft::net::wire::MachineView;
use leaseward_state::order::{Action, Order};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Here, Serving, Step};

impl Serving<'_> {
    /// Makes ready for servers whose machines are not heard, each copy once; ends what nobody needs any more.
    pub(super) fn prepare(&self, view: &MachineView, here: &mut Here, steps: &mut JoinSet<Step>) {
        let mut wanted = BTreeMap::new();
        for order in &view.orders {
            if let Action::Prepare { spec } = &order.action {
                wanted.insert(order.server.clone(), order.token);
                if here.prepared.insert(order.server.clone(), order.token) == Some(order.token) {
                    continue;
                }
                let (supervisor, order, spec) = (self.supervisor.clone(), order.clone(), (**spec).clone());
                if !spec.addresses.is_empty() {
                    let (supervisor, spec) = (supervisor.clone(), spec.clone());
                    let watch = here.watched.entry(order.server.clone()).or_default();
                    watch.spawn(async move { supervisor.keep_an_eye_on(&spec).await });
                }
                info!(server = %order.server, token = %order.token, "its machine is not heard: making ready here");
                steps.spawn(async move {
                    let Order { server, token, .. } = order;
                    let lacking = supervisor.prepare(&server, &spec, token).await.err();
                    Step::Prepared { server, token, lacking }
                });
            }
        }
        let over: Vec<_> = here.prepared.extract_if(.., |server, token| wanted.get(server) != Some(token)).collect();
        for (server, _) in over {
            here.watched.remove(&server);
            let supervisor = self.supervisor.clone();
            steps.spawn(async move {
                if let Err(why) = supervisor.end_preparation(&server).await {
                    warn!(%server, why, "its preparation goes on");
                }
                Step::Held
            });
        }
    }
}
