//! How a set is kept on its members: policy, pins, rollouts, keys.

use std::path::{Path, PathBuf};

use leaseward_http::model::{ConfigSet, PinView, Problem, Resync, SetPolicy, SteerRollout, SteerWord, Unpin};
use leaseward_sync::secret::Key;
use reqwest::Method;
use toml::Value;

use super::monitor::rollout_line;
use crate::args::RolloutAction;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line, note};
use crate::route::Route;
use crate::session::{Session, person};

fn refused(what: impl Into<String>) -> Diagnostic {
    Diagnostic::new("LW0104", what).hint("leaseward config policy SET      lists the keys")
}

fn told(problem: Box<Problem>) -> Diagnostic {
    let diagnostic = Diagnostic::new(&problem.code, problem.detail);
    if problem.hint.is_empty() { diagnostic } else { diagnostic.hint(problem.hint) }
}

pub(super) async fn policy(
    session: &Session,
    set: &str,
    values: &[String],
    file: Option<PathBuf>,
) -> Result<(), Diagnostic> {
    let route = Route::set(set)?.then("policy");
    if values.is_empty() && file.is_none() {
        return session
            .show(|| async {
                let policy: SetPolicy = session.api.get(&route).await?;
                match session.output {
                    Output::Table | Output::Wide => {
                        printer::bytes(policy.to_toml().map_err(told)?.as_bytes());
                        Ok(())
                    }
                    _ => printer::object(&session.output, &policy, &[column("DRIFT", |policy| field(policy, "drift"))]),
                }
            })
            .await;
    }
    let known: Option<ConfigSet> = match session.api.get(Route::set(set)?).await {
        Ok(found) => Some(found),
        Err(error) if error.code == "LW0404" => None,
        Err(error) => return Err(error),
    };
    let version = known.as_ref().map_or(0, |set| set.policy_version);
    let text = match file {
        Some(file) => std::fs::read_to_string(&file)
            .map_err(|error| Diagnostic::new("LW0104", format!("{}: {error}", file.display())))?,
        None => {
            let policy = known.map(|set| set.policy).unwrap_or_default();
            let text = policy.to_toml().map_err(told)?;
            let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| refused(error.to_string()))?;
            for pair in values {
                assign(&mut table, pair)?;
            }
            toml::to_string(&table).map_err(|error| refused(error.to_string()))?
        }
    };
    let policy = SetPolicy::from_toml(&text).map_err(told)?;
    let condition = match version {
        0 => ("If-None-Match", "*".to_owned()),
        version => ("If-Match", format!("\"v{version}\"")),
    };
    let _: SetPolicy = session.api.send(Method::PUT, &route, Some(&policy), &[condition]).await?;
    note!("✓ policy v{} of {set}", version + 1);
    Ok(())
}

/// Sets `a.b=value`; the value is TOML, or else a word.
fn assign(table: &mut toml::Table, pair: &str) -> Result<(), Diagnostic> {
    let (key, text) = pair.split_once('=').ok_or_else(|| refused(format!("`{pair}` is not KEY=VALUE")))?;
    let value = format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut at = table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            match text {
                "" => drop(at.remove(part)),
                _ => drop(at.insert(part.to_owned(), value)),
            }
            return Ok(());
        }
        let inner = at.entry(part.to_owned()).or_insert_with(|| Value::Table(toml::Table::new()));
        at = inner.as_table_mut().ok_or_else(|| refused(format!("`{part}` of `{key}` holds no other keys")))?;
    }
    Ok(())
}

pub(super) async fn rollout(session: &Session, set: &str, action: RolloutAction) -> Result<(), Diagnostic> {
    let action = match action {
        RolloutAction::Show => {
            return session
                .show(|| async {
                    let found: ConfigSet = session.api.get(Route::set(set)?).await?;
                    match (&found.rollout, &session.output) {
                        (Some(rollout), Output::Table | Output::Wide) => {
                            line(&rollout_line(rollout));
                            Ok(())
                        }
                        (None, Output::Table | Output::Wide) => {
                            line(&format!("v{} of {set} went round", found.version));
                            Ok(())
                        }
                        (rollout, output) => {
                            printer::object(output, rollout, &[column("VERSION", |rollout| field(rollout, "version"))])
                        }
                    }
                })
                .await;
        }
        RolloutAction::Halt => SteerWord::Halt,
        RolloutAction::Resume => SteerWord::Resume,
        RolloutAction::Abort => SteerWord::Abort,
        RolloutAction::Finish => SteerWord::Finish,
    };
    let route = Route::set(set)?.then("rollout");
    if action == SteerWord::Abort {
        session.confirm(&format!("{set} goes back to what it was, on every member."))?;
    }
    let ask = SteerRollout { action, by: person() };
    let found: ConfigSet = session.api.call(Method::POST, route, Some(&ask)).await?;
    match &found.rollout {
        Some(rollout) => note!("✓ {}", rollout_line(rollout)),
        None => note!("✓ {set} v{} is for everybody", found.version),
    }
    Ok(())
}

pub(super) async fn pin(
    session: &Session,
    set: &str,
    machine: Option<String>,
    version: Option<u64>,
    why: String,
) -> Result<(), Diagnostic> {
    let who = machine.clone().unwrap_or_else(|| "every member".into());
    let ask = PinView { machine, version, by: person(), why };
    let _: ConfigSet = session.api.call(Method::POST, Route::set(set)?.then("pin"), Some(&ask)).await?;
    let place = version.map_or("what it has".to_owned(), |version| format!("v{version}"));
    note!("✓ {who} stays at {place} of {set}");
    Ok(())
}

pub(super) async fn unpin(session: &Session, set: &str, machine: Option<String>) -> Result<(), Diagnostic> {
    let who = machine.clone().unwrap_or_else(|| "every member".into());
    let _: ConfigSet = session.api.call(Method::POST, Route::set(set)?.then("unpin"), Some(&Unpin { machine })).await?;
    note!("✓ {who} goes on with {set}");
    Ok(())
}

pub(super) async fn sync(session: &Session, set: &str, machines: Vec<String>) -> Result<(), Diagnostic> {
    let who = if machines.is_empty() { "every member".to_owned() } else { machines.join(", ") };
    let _: ConfigSet =
        session.api.call(Method::POST, Route::set(set)?.then("sync"), Some(&Resync { machines })).await?;
    note!("✓ {who} looks at every file of {set}");
    Ok(())
}

pub(super) fn key(file: &Path, create: bool) -> Result<(), Diagnostic> {
    let key = if create { Key::create(file) } else { Key::read(file) };
    let key = key.map_err(|error| Diagnostic::new(error.code(), error.to_string()))?;
    line(&key.fingerprint());
    if create {
        note!("✓ put {} on every member, for its agent alone, and name it in machine.keys", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_where_it_belongs_and_an_empty_value_takes_it_away() {
        let mut table = toml::Table::new();
        for pair in
            ["drift=repair", "rollout.canaries=1", "check.command=[\"nginx\", \"-t\"]", "scan_each=5s", "key=x", "key="]
        {
            assign(&mut table, pair).unwrap();
        }
        let policy = SetPolicy::from_toml(&toml::to_string(&table).unwrap()).unwrap();
        assert_eq!(policy.rollout.canaries, 1);
        assert_eq!(policy.check.unwrap().command, ["nginx", "-t"]);
        assert_eq!(policy.key, None);
        assert!(assign(&mut table, "drift.x=1").is_err());
        assert!(assign(&mut table, "nonsense").is_err());
    }
}
