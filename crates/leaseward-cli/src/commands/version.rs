//! `leaseward version --check-cluster`: whether all nodes run what this program is.

use leaseward_http::model::NodeList;

use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field};
use crate::session::Session;

/// Shows the version of every node. Exits with 1 if one does not answer or has another version.
pub(crate) async fn run(session: &Session) -> Result<u8, Diagnostic> {
    let own = env!("CARGO_PKG_VERSION");
    let nodes: NodeList = session.api.list("/v1/nodes").await?;
    let alike = nodes.items.iter().all(|node| node.version.as_deref() == Some(own));
    if matches!(session.output, Output::Table | Output::Wide) {
        printer::line(&format!("leaseward {own}"));
    }
    let columns = [column("NODE", |node| field(node, "name")), column("VERSION", |node| field(node, "version"))];
    printer::list(&session.output, &nodes, &columns)?;
    Ok(u8::from(!alike))
}
