//! `leaseward backup …`: into a file, and out of it again.
//!
//! Must stay true: under its name a backup is whole and durable, or it is not there; nobody but its owner reads it, for
//! config sets may hold secrets.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leaseward::backup::{BackupError, Contents, restore, verify};
use leaseward_http::model::Time;
use serde_json::{Value, json};

use crate::api::Api;
use crate::args::BackupCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, note};
use crate::unfinished::Unfinished;

/// Writes a backup of the cluster.
pub(crate) async fn create(api: &Api, output: &Output, file: &Path, force: bool) -> Result<(), Diagnostic> {
    let io = |error: std::io::Error| of_disk(&error, file);
    if !force && fs::symlink_metadata(file).is_ok() {
        return Err(Diagnostic::new("LW0616", format!("{} is there already", file.display()))
            .hint("--force      replace it, once the new one is whole"));
    }
    if api.is_dry_run() {
        printer::line(&format!("would write a backup to {}", file.display()));
        return Ok(());
    }
    let unfinished = Unfinished::beside(file)?;
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished.path()).map_err(io)?;
    let mut bytes = 0;
    api.download("/v1/backup", &mut |piece| {
        bytes += piece.len() as u64;
        out.write_all(piece).map_err(io)
    })
    .await?;
    out.sync_all().map_err(io)?;
    // What the disk has is read, not what was sent.
    let contents = check(unfinished.path().to_owned()).await?;
    fs::rename(unfinished.path(), file).map_err(io)?;
    if let Some(dir) = file.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
    }
    let mut shown = shown(&contents);
    shown["file"] = json!(file);
    shown["file_bytes"] = json!(bytes);
    show(output, &shown)
}

/// Runs what needs no cluster.
pub(crate) async fn offline(output: &Output, command: BackupCommand) -> Result<(), Diagnostic> {
    match command {
        BackupCommand::Create { .. } => Ok(()),
        BackupCommand::Verify { file } => show(output, &shown(&check(file).await?)),
        BackupCommand::Restore { file, to, wait } => {
            note!("reading {}; then waiting until no server of the old cluster can run any more", file.display());
            let restored = restore(file, to.clone(), wait).await.map_err(of_backup)?;
            let mut shown = shown(&restored.contents);
            shown["cluster"] = json!(format!("{:032x}", restored.cluster));
            shown["generation"] = json!(restored.generation.0);
            shown["revision"] = json!(restored.revision.0.to_string());
            shown["data"] = json!(to);
            show(output, &shown)?;
            note!(
                "next: start the agent whose `node.data` is {}; the other voters join it with empty directories",
                to.display()
            );
            Ok(())
        }
    }
}

async fn check(file: PathBuf) -> Result<Contents, Diagnostic> {
    let reading = tokio::task::spawn_blocking(move || verify(&file)).await;
    let read = reading.map_err(|error| Diagnostic::new("LW0600", error.to_string()))?;
    read.map_err(of_backup)
}

fn of_backup(error: BackupError) -> Diagnostic {
    let diagnostic = Diagnostic::new(error.code(), error.to_string());
    match error {
        BackupError::NotWhole(_) => diagnostic.hint("leaseward backup create FILE      make another one"),
        BackupError::Newer(_) => diagnostic.hint("use the release that wrote it, or a later one"),
        BackupError::Directory { .. } => diagnostic.hint("--to DIR      name an empty directory"),
        BackupError::Io(_) => diagnostic,
    }
}

fn of_disk(error: &std::io::Error, file: &Path) -> Diagnostic {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    Diagnostic::new(if full { "LW0605" } else { "LW0600" }, format!("{}: {error}", file.display()))
}

fn shown(contents: &Contents) -> Value {
    let head = &contents.head;
    json!({
        "cluster": format!("{:032x}", head.cluster),
        "generation": head.generation.0,
        "revision": head.revision.0.to_string(),
        "made_at": Time::from(head.at),
        "made_by": head.version,
        "feature_level": head.feature_level,
        "records": contents.records,
        "servers": contents.servers,
        "leases_held": contents.leases,
        "sets": contents.sets,
        "versions": contents.versions,
        "blobs": contents.blobs,
        "bytes": contents.bytes,
    })
}

fn show(output: &Output, object: &Value) -> Result<(), Diagnostic> {
    if !matches!(output, Output::Table | Output::Wide) {
        return printer::object(output, object, &[]);
    }
    for (key, value) in object.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        printer::line(&format!("{:<14} {text}", key.replace('_', " ")));
    }
    Ok(())
}
