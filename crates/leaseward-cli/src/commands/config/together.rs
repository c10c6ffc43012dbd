//! Directories of several sets, published under one revision: all of them, or none.
//!
//! Must stay true: what was asked for is asked for once, however often content has to be sent again.

use std::path::PathBuf;

use leaseward_http::model::{Change, Transaction, TransactionResult};
use reqwest::Method;
use serde_json::json;

use super::files::prepared;
use super::spread;
use crate::api::Key;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, column, field, note};
use crate::publish::TRIES;
use crate::session::{Session, person};

/// A directory that becomes the next version of a set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) set: String,
    pub(super) from: PathBuf,
    pub(super) if_version: Option<u64>,
}

/// Reads `SET=DIR` or `SET@VERSION=DIR`.
fn part(text: &str) -> Result<Part, Diagnostic> {
    let bad = || Diagnostic::new("LW0104", format!("--also {text}: it must be SET=DIR or SET@VERSION=DIR"));
    let (set, from) = text.split_once('=').filter(|(set, from)| !set.is_empty() && !from.is_empty()).ok_or_else(bad)?;
    let (set, if_version) = match set.split_once('@') {
        Some((set, version)) => (set, Some(version.parse().map_err(|_| bad())?)),
        None => (set, None),
    };
    Ok(Part { set: set.to_owned(), from: from.into(), if_version })
}

pub(super) async fn publish(
    session: &Session,
    first: Part,
    also: &[String],
    key: Option<PathBuf>,
    message: String,
) -> Result<(), Diagnostic> {
    if session.api.is_dry_run() {
        return Err(Diagnostic::new("LW0104", "--dry-run is for one set at a time").hint("leave --also away"));
    }
    let mut parts = vec![first];
    for text in also {
        let part = part(text)?;
        if parts.iter().any(|other| other.set == part.set) {
            return Err(Diagnostic::new("LW0104", format!("--also {text}: {} is published already", part.set))
                .hint("name each set once"));
        }
        parts.push(part);
    }
    let mut ready = Vec::new();
    for part in &parts {
        ready.push(prepared(session, &part.set, &part.from, key.clone()).await?);
    }
    let publish = |(part, (prepared, _)): (&Part, &(crate::publish::Prepared, _))| Change::Publish {
        set: part.set.clone(),
        parent: part.if_version,
        manifest: prepared.manifest().to_string(),
        author: person(),
        message: message.clone(),
    };
    let ask = Transaction { conditions: Vec::new(), operations: parts.iter().zip(&ready).map(publish).collect() };
    for (prepared, _) in &ready {
        prepared.send(&session.api).await?;
    }
    // A node that is gone may have committed it before the next one said that it lacks the content.
    let key = Key::new();
    let mut tries = 1;
    let done: TransactionResult = loop {
        match session.api.call_again(&key, Method::POST, "/v1/transaction", Some(&ask)).await {
            Err(diagnostic) if diagnostic.code == "LW0801" && tries < TRIES => {
                for (prepared, _) in &mut ready {
                    prepared.send_again(&session.api).await?;
                }
                tries += 1;
            }
            done => break done?,
        }
    };
    let versions: Vec<_> = parts
        .iter()
        .zip(&done.outcomes)
        .map(|(part, done)| json!({ "set": part.set, "version": done.version }))
        .collect();
    for version in &versions {
        note!("✓ {} v{}", field(version, "set"), field(version, "version"));
    }
    let columns =
        [column("SET", |version| field(version, "set")), column("VERSION", |version| field(version, "version"))];
    printer::list(&session.output, &json!({ "items": versions }), &columns)?;
    for (part, done) in parts.iter().zip(&done.outcomes) {
        if let Some(version) = done.version {
            spread::everywhere(session, &part.set, version).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_stands_with_its_directory_and_the_version_that_it_must_have() {
        let read = |text: &str| part(text).ok().map(|part| (part.set, part.from, part.if_version));
        assert_eq!(read("db=./etc/db"), Some(("db".into(), "./etc/db".into(), None)));
        assert_eq!(read("db@0=a=b@2"), Some(("db".into(), "a=b@2".into(), Some(0))));
        for bad in ["db", "=a", "db=", "db@=a", "db@x=a", "db@-1=a"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
