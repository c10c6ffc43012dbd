//! Operations from the client's side: ask, show each step as it happens, end as the operation ends.

use leaseward_http::model::{Operation, OperationPhase};
use reqwest::Method;
use serde::Serialize;

use crate::commands::whatif;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, note, wide};
use crate::route::Route;
use crate::session::Session;

fn columns() -> Vec<Column> {
    vec![
        column("OPERATION", |operation| format!("op/{}", field(operation, "id"))),
        column("ASKED FOR", |operation| field(operation, "verb")),
        column("OF", |operation| field(operation, "subject")),
        column("STATE", |operation| field(operation, "phase")),
        wide("OUTCOME", |operation| field(operation, "sentence")),
    ]
}

/// As [`ask`], of what clients will notice: says what would come of it, and asks first.
pub(crate) async fn ask_first(
    session: &Session,
    route: impl Into<Route>,
    body: Option<&(impl Serialize + Sync)>,
    what: &str,
) -> Result<(), Diagnostic> {
    let route = route.into();
    if !session.global.yes && !session.api.is_dry_run() {
        let prediction = session.api.foresee(Method::POST, &route, body, &[]).await?;
        whatif::text(&prediction).iter().for_each(|line| note!("{line}"));
    }
    session.confirm(what)?;
    ask(session, route, body).await
}

/// Asks for an operation and waits for its end. With `--no-wait` prints it instead.
pub(crate) async fn ask(
    session: &Session,
    route: impl Into<Route>,
    body: Option<&(impl Serialize + Sync)>,
) -> Result<(), Diagnostic> {
    let operation: Operation = session.api.call(Method::POST, route, body).await?;
    if session.global.no_wait {
        return printer::object(&session.output, &operation, &columns());
    }
    follow(session, operation.id.0).await
}

/// Waits for the end of an operation and shows its steps on stderr.
pub(crate) async fn follow(session: &Session, id: u64) -> Result<(), Diagnostic> {
    let (mut shown, mut last) = (0, None);
    session
        .until(&format!("op/{id} is done"), async || {
            let operation: Operation = session.api.get(Route::from("/v1/operations").then(id)).await?;
            for step in operation.steps.iter().skip(shown) {
                note!("  {}  {}", clock(&step.at.to_string()), step.text);
            }
            shown = operation.steps.len();
            let ended = operation.phase != OperationPhase::Running;
            last = Some(operation);
            Ok(ended)
        })
        .await?;
    let Some(operation) = last else { return Ok(()) };
    match operation.phase {
        OperationPhase::Done => {
            let gap = operation.out_of_service.map_or_else(String::new, |gap| format!("; out of service {gap}"));
            note!("✓ {}{gap}", operation.sentence);
            Ok(())
        }
        OperationPhase::Superseded => Err(Diagnostic::new("LW0302", operation.sentence.clone())
            .hint(format!("leaseward events --for {}      see what was asked for", operation.subject))),
        OperationPhase::Failed | OperationPhase::Running => Err(Diagnostic::new("LW0301", operation.sentence.clone())
            .hint(format!("leaseward explain {}      see why", operation.subject))),
    }
}

/// The time of day of an RFC 3339 time.
fn clock(time: &str) -> &str {
    time.split_once('T').map_or(time, |(_, clock)| clock.trim_end_matches('Z'))
}
