//! `leaseward context …`: the clusters that this user knows.

use std::path::PathBuf;

use crate::args::ContextCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field};
use crate::target::{Context, Contexts};

pub(crate) fn run(output: &Output, token_file: Option<PathBuf>, command: ContextCommand) -> Result<(), Diagnostic> {
    let bad = |error: std::io::Error| Diagnostic::new("LW0101", format!("--token-file: {error}"));
    let mut contexts = Contexts::load()?;
    match command {
        ContextCommand::Ls => {
            let items: Vec<_> = contexts
                .contexts
                .iter()
                .map(|(name, context)| {
                    let current = contexts.current.as_deref() == Some(name);
                    serde_json::json!({ "name": name, "current": current, "api": context.api })
                })
                .collect();
            let columns = [
                column("CONTEXT", |context| field(context, "name")),
                column("CURRENT", |context| field(context, "current")),
                column("API", |context| field(context, "api")),
            ];
            printer::list(output, &serde_json::json!({ "items": items }), &columns)
        }
        ContextCommand::Use { name } => {
            if !contexts.contexts.contains_key(&name) {
                return Err(Diagnostic::new("LW0404", format!("there is no context `{name}`")));
            }
            contexts.current = Some(name);
            contexts.save()
        }
        ContextCommand::Add { name, api } => {
            contexts.contexts.insert(
                name,
                Context { api, token_file: token_file.map(std::path::absolute).transpose().map_err(bad)? },
            );
            contexts.save()
        }
        ContextCommand::Rm { name } => {
            if contexts.contexts.remove(&name).is_none() {
                return Err(Diagnostic::new("LW0404", format!("there is no context `{name}`")));
            }
            if contexts.current.as_deref() == Some(name.as_str()) {
                contexts.current = None;
            }
            contexts.save()
        }
    }
}
