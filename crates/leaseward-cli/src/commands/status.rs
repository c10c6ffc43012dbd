//! `leaseward status`: the cluster on one screen.

use leaseward_http::model::{ClusterStatus, Health};

use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line};
use crate::session::Session;

/// Shows the cluster. Exits with 1 if it is degraded, with 6 if it is down.
pub(crate) async fn run(session: &Session) -> Result<u8, Diagnostic> {
    let mut exit = 0;
    let shown = std::cell::Cell::new(0);
    session
        .show(|| async {
            let status: ClusterStatus = session.api.get("/v1/cluster").await?;
            shown.set(match status.health {
                Health::Ok => 0,
                Health::Degraded => 1,
                Health::Down => 6,
            });
            match session.output {
                Output::Table | Output::Wide => screen(session, &status),
                _ => printer::object(&session.output, &status, &[column("HEALTH", |status| field(status, "health"))]),
            }
        })
        .await?;
    exit += shown.get();
    Ok(exit)
}

fn screen(session: &Session, status: &ClusterStatus) -> Result<(), Diagnostic> {
    let sign = match status.health {
        Health::Ok => "●",
        Health::Degraded => "◐",
        Health::Down => "✖",
    };
    let leader = status.leader.as_deref().unwrap_or("nobody");
    line(&format!("{sign} {}            leader {leader} · term {}", status.sentence, status.term));
    line("");
    let nodes: Vec<_> = status.voters.iter().chain(&status.learners).collect();
    printer::list(&session.output, &serde_json::json!({ "items": nodes }), &super::node::columns())?;
    line("");
    let counts = |map: &std::collections::BTreeMap<String, u64>| {
        let all: Vec<_> = map.iter().map(|(state, count)| format!("{count} {state}")).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    line(&format!(
        "leases {}   servers {}   machines {}   config {} sets, {}/{} in sync",
        counts(&status.leases),
        counts(&status.servers),
        counts(&status.machines),
        status.sets,
        status.in_sync.of,
        status.in_sync.all
    ));
    for warning in &status.warnings {
        line(&format!("⚠ {warning}"));
    }
    Ok(())
}
