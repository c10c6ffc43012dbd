//! `leaseward policy …` and `leaseward maintenance …`

use leaseward_http::model::{BeginPause, Policy};
use reqwest::Method;
use serde_json::Value;

use crate::args::{MaintenanceCommand, PolicyCommand};
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line, note};
use crate::session::Session;

pub(crate) async fn run(session: &Session, command: PolicyCommand) -> Result<(), Diagnostic> {
    match command {
        PolicyCommand::Get => {
            session
                .show(|| async {
                    let policy: Value = session.api.get("/v1/policy").await?;
                    show(session, &policy)
                })
                .await
        }
        PolicyCommand::Set { values } => {
            let mut policy: Value = session.api.get("/v1/policy").await?;
            let version = policy["version"].as_u64().unwrap_or(0);
            for pair in &values {
                set(&mut policy, pair)?;
            }
            let condition = match version {
                0 => ("If-None-Match", "*".to_owned()),
                version => ("If-Match", format!("\"v{version}\"")),
            };
            let policy: Policy = session.api.send(Method::PUT, "/v1/policy", Some(&policy), &[condition]).await?;
            note!("✓ policy version {}", policy.version);
            Ok(())
        }
    }
}

fn show(session: &Session, policy: &Value) -> Result<(), Diagnostic> {
    match session.output {
        Output::Table | Output::Wide => {
            for (key, _) in policy.as_object().into_iter().flatten() {
                line(&format!("{key:<20} {}", field(policy, key)));
            }
            Ok(())
        }
        _ => printer::object(&session.output, policy, &[column("VERSION", |policy| field(policy, "version"))]),
    }
}

/// Sets one key, keeping the kind of value that it has.
fn set(policy: &mut Value, pair: &str) -> Result<(), Diagnostic> {
    let bad = |what: String| Diagnostic::new("LW0104", what).hint("leaseward policy get      lists the keys");
    let (key, text) = pair.split_once('=').ok_or_else(|| bad(format!("`{pair}` is not KEY=VALUE")))?;
    let known = policy.get_mut(key).filter(|_| !matches!(key, "version" | "maintenance"));
    let known = known.ok_or_else(|| bad(format!("there is no key `{key}` to set")))?;
    *known = match known {
        Value::Number(_) => text.parse::<u64>().map_err(|_| bad(format!("`{key}` is a whole number")))?.into(),
        Value::Array(_) => text.split(',').filter(|name| !name.is_empty()).collect::<Vec<_>>().into(),
        _ => text.into(),
    };
    Ok(())
}

pub(crate) async fn maintenance(session: &Session, command: MaintenanceCommand) -> Result<(), Diagnostic> {
    let policy: Policy = match command {
        MaintenanceCommand::On { message, lasting } => {
            let ask = BeginPause { reason: message, lasting: lasting.map(Into::into) };
            session.api.call(Method::POST, "/v1/maintenance", Some(&ask)).await?
        }
        MaintenanceCommand::Off => session.api.call(Method::DELETE, "/v1/maintenance", None::<&()>).await?,
    };
    match policy.maintenance {
        None => note!("✓ the master moves and restarts servers again"),
        Some(pause) => {
            let end = pause.until.map_or_else(|| "until it is ended".to_owned(), |until| format!("until {until}"));
            note!("✓ nothing is moved or restarted {end}");
        }
    }
    Ok(())
}
