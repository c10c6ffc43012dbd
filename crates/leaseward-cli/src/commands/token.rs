//! `leaseward token …`: who may ask what.
//!
//! Must stay true: a secret is made here, goes to standard output or into a file for its owner alone, and the cluster is told
//! its hash. The file with the only copy of one goes away only if the cluster never took its hash.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use leaseward_http::access::{hash, spell};
use leaseward_http::model::{CreateToken, RevokeToken, Token};
use leaseward_state::TokenName;
use reqwest::Method;
use serde_json::Value;

use crate::args::TokenCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, column, field, line, note};
use crate::route::Route;
use crate::session::{Session, person};

pub(crate) async fn run(session: &Session, command: TokenCommand) -> Result<(), Diagnostic> {
    match command {
        TokenCommand::Ls => {
            let columns = [
                column("TOKEN", |token| field(token, "name")),
                column("ROLES", |token| field(token, "roles")),
                column("UNTIL", |token| match token["over"].as_bool() {
                    Some(true) => format!("over since {}", field(token, "until")),
                    _ => field(token, "until"),
                }),
                column("BY", |token| field(token, "by")),
            ];
            session
                .show(|| async {
                    let tokens: Value = session.api.list("/v1/tokens").await?;
                    if tokens["on"] == false {
                        note!("there is no token: everybody who reaches the API may ask everything");
                    }
                    printer::list(&session.output, &tokens, &columns)
                })
                .await
        }
        TokenCommand::Create { name, role, ttl, to } => create(session, &name, role, ttl, to.as_deref()).await,
        TokenCommand::Revoke { name } => {
            let route = Route::token(&name)?;
            session.confirm(&format!("Whoever has the token {name} is not answered any more. Revoke it?"))?;
            let ask = RevokeToken { by: person() };
            session.api.call::<Value>(Method::DELETE, route, Some(&ask)).await?;
            note!("✓ token {name} is revoked");
            Ok(())
        }
    }
}

async fn create(
    session: &Session,
    name: &str,
    roles: Vec<String>,
    ttl: Option<std::time::Duration>,
    to: Option<&Path>,
) -> Result<(), Diagnostic> {
    let named = TokenName::new(name).map_err(|bad| Diagnostic::new("LW0101", bad.to_string()))?;
    let secret = format!("{:032x}{:032x}", leaseward_raft::random::unique(), leaseward_raft::random::unique());
    let token = spell(&named, &secret);
    let failed = |path: &Path, error: std::io::Error| {
        Diagnostic::new("LW0100", format!("cannot write {}: {error}", path.display()))
    };
    // The file first: a token that nobody has is of no use, and the first one closes the door.
    let file = match to.filter(|_| !session.api.is_dry_run()) {
        Some(path) => {
            let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let mut file = open.map_err(|error| failed(path, error))?;
            let written = file.write_all(format!("{token}\n").as_bytes()).and_then(|()| file.sync_all());
            written.map_err(|error| failed(path, error))?;
            Some(path)
        }
        None => None,
    };
    let ask = CreateToken { secret_hash: hash(&secret).to_string(), roles, ttl: ttl.map(Into::into), by: person() };
    let made = session.api.call::<Token>(Method::PUT, Route::token(name)?, Some(&ask)).await;
    let made = match (made, file) {
        (Ok(made), _) => made,
        (Err(error), file) => {
            let Some(path) = file else { return Err(error) };
            if was_not_made(&error.code) {
                std::fs::remove_file(path).ok();
                return Err(error);
            }
            return Err(error.hint(format!(
                "leaseward token ls      see whether {name} was made: it is in {}, and may be valid",
                path.display()
            )));
        }
    };
    note!("✓ token {} may do as {}", made.name, made.roles.join(", "));
    match file {
        Some(path) => note!("  it is in {}; use it with --token-file or LEASEWARD_TOKEN_FILE", path.display()),
        None => {
            note!("  it is shown this once:");
            line(&token);
        }
    }
    Ok(())
}

/// Returns whether a refusal with this code says that nothing came into the log.
fn was_not_made(code: &str) -> bool {
    let never_came_there = matches!(code, "LW0501" | "LW0503" | "LW0505" | "LW0603" | "LW0614");
    never_came_there || code.starts_with("LW01") || code.starts_with("LW04")
}
