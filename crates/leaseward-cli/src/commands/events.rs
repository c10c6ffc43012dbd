//! `leaseward events`: what happened, as a time line.

use std::time::Duration;

use leaseward_http::model::{EventList, EventRecord};

use crate::args::EventsArguments;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line, note};
use crate::route::Route;
use crate::session::Session;

/// How often in a row what is to come next may be gone before it is asked for.
const TRIES: usize = 5;

pub(crate) async fn run(session: &Session, arguments: EventsArguments) -> Result<(), Diagnostic> {
    let mut after = arguments.after.unwrap_or(0);
    let window = [("since", arguments.since), ("until", arguments.until)];
    let chosen = window.into_iter().fold(Route::from("/v1/events"), |route, (key, time)| match time {
        Some(time) => route.with(key, time),
        None => route,
    });
    let (mut first, mut behind) = (true, 0);
    loop {
        let wait = if first { Duration::ZERO } else { Duration::from_secs(30) };
        let mut list = match session.api.events(chosen.clone(), after, wait).await {
            // Too far back: the oldest that are kept come next. They may be gone too by the time they are asked for.
            Err(error) if error.code == "LW0207" && behind < TRIES => {
                behind += 1;
                let oldest: EventList = session.api.get(Route::from("/v1/events").with("limit", 1)).await?;
                if after > 0 {
                    note!("what happened after revision {after} is kept only from {} on", oldest.compacted.0);
                }
                after = oldest.compacted.0;
                continue;
            }
            answer => answer?,
        };
        behind = 0;
        let full = list.items.len();
        if let Some(last) = list.items.last() {
            after = last.revision.0;
        } else if !first {
            after = after.max(list.revision.0);
        }
        list.items.retain(|event| matches(event, arguments.object.as_deref()));
        show(session, &list, first && !arguments.follow && full == 0)?;
        if full >= 1_000 {
            continue;
        }
        if !arguments.follow {
            return Ok(());
        }
        first = false;
    }
}

fn matches(event: &EventRecord, object: Option<&str>) -> bool {
    match object.map(|object| object.split_once('/').unwrap_or((object, ""))) {
        None => true,
        Some((kind, "")) => event.kind == kind,
        Some((kind, name)) => {
            (event.kind == kind && event.subject == name)
                || (event.kind == "lease" && event.subject == format!("{kind}/{name}"))
        }
    }
}

fn show(session: &Session, list: &EventList, empty: bool) -> Result<(), Diagnostic> {
    match session.output {
        Output::Table | Output::Wide => {
            if empty {
                note!("nothing happened");
            }
            for event in &list.items {
                line(&format!(
                    "{}  {:<8} {:<24} {}",
                    event.at.to_string().split('T').nth(1).unwrap_or_default().trim_end_matches('Z'),
                    event.kind,
                    event.subject,
                    event.text
                ));
            }
            Ok(())
        }
        _ => printer::list(&session.output, list, &[column("EVENT", |event| field(event, "text"))]),
    }
}
