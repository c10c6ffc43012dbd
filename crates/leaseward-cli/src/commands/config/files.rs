//! Files of a set: reading, publishing, changing and comparing them.

use std::io::{ErrorKind, Read, stdin};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_http::limits::BLOB_BYTES_MAX;
use leaseward_http::model::{
    AdoptFiles, ChangeFiles, ConfigDiff, ConfigSet, ConfigVersion, FileChange, FileDiffKind, FileEntry, FileKind,
    ManifestListing, SetPolicy,
};
use leaseward_sync::secret::is_sealed;
use reqwest::Method;
use serde_json::{Value, json};
use similar::TextDiff;

use super::contents::{file, key_of};
use super::sealing::{Sealing, fits, seal_change};
use super::together::{self, Part};
use super::{contents, copies, spread, tarred, version_columns};
use crate::args::{PublishArguments, PutArguments};
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line, note, wide};
use crate::publish::{Prepared, Tree};
use crate::route::Route;
use crate::session::{Session, person};

/// The time to live of the lease under which a file is edited; it is renewed while the editor is open.
const EDIT_TTL: &str = "30s";
const EDIT_RENEWED_EACH: Duration = Duration::from_secs(8);

pub(super) fn failed(what: &Path) -> impl FnOnce(std::io::Error) -> Diagnostic + '_ {
    move |error| Diagnostic::new("LW0104", format!("{}: {error}", what.display()))
}

pub(super) async fn newest(session: &Session, set: &str, version: Option<u64>) -> Result<u64, Diagnostic> {
    match version {
        Some(version) => Ok(version),
        None => Ok(session.api.get::<ConfigSet>(Route::set(set)?).await?.version),
    }
}

pub(super) async fn listing(session: &Session, set: &str, version: u64) -> Result<ManifestListing, Diagnostic> {
    session.api.get(Route::set(set)?.then("versions").then(version)).await
}

pub(super) async fn get(
    session: &Session,
    set: &str,
    path: Option<String>,
    version: Option<u64>,
    key: Option<PathBuf>,
) -> Result<(), Diagnostic> {
    let version = newest(session, set, version).await?;
    match path {
        Some(path) => contents::show(session, (set, version), &path, key_of(key)?.as_ref()).await,
        None => {
            let listing = listing(session, set, version).await?;
            let columns = [
                column("PATH", |entry| field(entry, "path")),
                column("KIND", |entry| field(entry, "kind")),
                column("MODE", |entry| field(entry, "mode")),
                column("SIZE", |entry| field(entry, "size")),
                wide("DIGEST", |entry| field(entry, "digest")),
            ];
            match session.output {
                Output::Table | Output::Wide | Output::Name => {
                    printer::list(&session.output, &json!({ "items": listing.entries }), &columns)
                }
                _ => printer::object(&session.output, &listing, &columns),
            }
        }
    }
}

pub(super) async fn publish(session: &Session, arguments: PublishArguments) -> Result<(), Diagnostic> {
    let PublishArguments { set, from, tar, from_member, also, key, message, if_version } = arguments;
    let version = match (from, tar, from_member) {
        (Some(from), _, _) if !also.is_empty() => {
            return together::publish(session, Part { set, from, if_version }, &also, key, message).await;
        }
        (Some(from), _, _) => publish_dir(session, &set, &from, key, message, if_version).await?,
        (None, Some(tar), _) => {
            let temp = Temporary::new()?;
            let unpacked = temp.0.join("tree");
            tarred::unpack(&tar, &unpacked, policy(session, &set).await?.xattrs)?;
            publish_dir(session, &set, &unpacked, key, message, if_version).await?
        }
        (None, None, Some(machine)) => {
            let ask = AdoptFiles { machine, parent: if_version, author: person(), message };
            session.api.call(Method::POST, Route::set(&set)?.then("adopt"), Some(&ask)).await?
        }
        (None, None, None) => return Err(Diagnostic::new("LW0104", "nothing says what to publish")),
    };
    published(session, &set, &version).await
}

/// Says that a version is committed, and waits until it is live.
pub(super) async fn published(session: &Session, set: &str, version: &ConfigVersion) -> Result<(), Diagnostic> {
    note!("✓ {set} v{}", version.version);
    printer::object(&session.output, version, &version_columns())?;
    spread::everywhere(session, set, version.version).await
}

async fn policy(session: &Session, set: &str) -> Result<SetPolicy, Diagnostic> {
    match session.api.get(Route::set(set)?.then("policy")).await {
        Err(error) if error.code == "LW0404" => Ok(SetPolicy::default()),
        found => found,
    }
}

async fn publish_dir(
    session: &Session,
    set: &str,
    from: &Path,
    key: Option<PathBuf>,
    message: String,
    if_version: Option<u64>,
) -> Result<ConfigVersion, Diagnostic> {
    let (mut prepared, sealed) = prepared(session, set, from, key).await?;
    prepared.send(&session.api).await?;
    let version = prepared.commit(&session.api, set, if_version, person(), message).await?;
    if sealed.is_none() && !session.api.is_dry_run() {
        prepared.remember().await;
    }
    Ok(version)
}

/// Reads a directory as it is to be published, and asks what of it the cluster lacks. What was encrypted for it lasts as long as
/// the second one.
pub(super) async fn prepared(
    session: &Session,
    set: &str,
    from: &Path,
    key: Option<PathBuf>,
) -> Result<(Prepared, Option<Temporary>), Diagnostic> {
    let asked = policy(session, set);
    let (tree, sealed) = match key_of(key)? {
        None => {
            // Few sets keep attributes, so reading need not wait for the answer.
            let (policy, tree) = tokio::join!(asked, Tree::of(from, false));
            let policy = policy?;
            fits(set, &policy, None)?;
            let tree = if policy.xattrs { Tree::of(from, true).await? } else { tree? };
            (tree, None)
        }
        Some(key) => {
            let temp = Temporary::new()?;
            let policy = asked.await?;
            fits(set, &policy, Some(&key))?;
            let to = temp.0.join("tree");
            Sealing::of(&key, &policy).directory(from, &to, "")?;
            (Tree::of(&to, policy.xattrs).await?, Some(temp))
        }
    };
    let prepared = Prepared::of(&session.api, tree).await?;
    note!("{set}: {}", prepared.summary());
    if prepared.is_empty() {
        confirm_empty(session, set).await?;
    }
    Ok((prepared, sealed))
}

/// Asks whether nothing is to take the place of something: a directory that was not mounted looks so.
async fn confirm_empty(session: &Session, set: &str) -> Result<(), Diagnostic> {
    let newest = match session.api.get::<ConfigSet>(Route::set(set)?).await {
        Ok(found) => found.newest,
        Err(error) if error.code == "LW0404" => None,
        Err(error) => return Err(error),
    };
    match newest.filter(|newest| newest.files > 0) {
        Some(newest) => session.confirm(&format!(
            "There is no file in what is published, and every member of {set} loses the {} of v{}.",
            newest.files, newest.version
        )),
        None => Ok(()),
    }
}

pub(super) async fn put(session: &Session, arguments: PutArguments) -> Result<(), Diagnostic> {
    let PutArguments { set, path, from, text, remove, mode, batch, key, message, if_version } = arguments;
    let mut changes = match (batch, path) {
        (Some(batch), _) => read_batch(&batch)?,
        (None, Some(path)) => {
            let bytes = match (from, text) {
                (Some(from), _) if from == Path::new("-") => {
                    let mut bytes = Vec::new();
                    stdin().read_to_end(&mut bytes).map_err(failed(Path::new("standard input")))?;
                    Some(bytes)
                }
                (Some(from), _) => Some(std::fs::read(&from).map_err(failed(&from))?),
                (None, text) => text.map(String::into_bytes),
            };
            if bytes.is_none() && !remove && mode.is_none() {
                return Err(Diagnostic::new("LW0104", format!("nothing says what becomes of {path}"))
                    .hint("--from FILE, --text TEXT, --mode MODE or --remove"));
            }
            vec![change_of(path, bytes, mode, remove)]
        }
        (None, None) => return Err(Diagnostic::new("LW0104", "nothing says which file")),
    };
    if let Some(key) = key_of(key)? {
        fits(&set, &policy(session, &set).await?, Some(&key))?;
        for change in &mut changes {
            seal_change(&key, change)?;
        }
    }
    let ask = ChangeFiles { parent: if_version, changes, author: person(), message };
    small_enough(&ask)?;
    let version: ConfigVersion = session.api.call(Method::POST, Route::set(&set)?.then("changes"), Some(&ask)).await?;
    published(session, &set, &version).await
}

/// Refuses what no node would read to its end: who stops reading cannot say why.
fn small_enough(ask: &ChangeFiles) -> Result<(), Diagnostic> {
    let bytes = serde_json::to_vec(ask).map_or(0, |text| text.len());
    if bytes <= BLOB_BYTES_MAX {
        return Ok(());
    }
    let what = format!("the changes have {bytes} bytes as they are sent, and at most {BLOB_BYTES_MAX} go at once");
    Err(Diagnostic::new("LW0110", what)
        .why("bytes that are no text are sent as base64, a third longer")
        .hint("leaseward config publish SET --from DIR      sends files in pieces, however large they are"))
}

fn change_of(path: String, bytes: Option<Vec<u8>>, mode: Option<String>, remove: bool) -> FileChange {
    let mut change = FileChange { path, mode, remove, ..FileChange::default() };
    match bytes.map(String::from_utf8) {
        Some(Ok(text)) => change.content = Some(text),
        Some(Err(bytes)) => {
            use base64::Engine as _;
            change.base64 = Some(base64::prelude::BASE64_STANDARD.encode(bytes.as_bytes()));
        }
        None => {}
    }
    change
}

fn read_batch(path: &Path) -> Result<Vec<FileChange>, Diagnostic> {
    let text = std::fs::read_to_string(path).map_err(failed(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line)
                .map_err(|error| Diagnostic::new("LW0104", format!("{}:{}: {error}", path.display(), number + 1)))
        })
        .collect()
}

pub(super) async fn edit(session: &Session, set: &str, path: &str, message: String) -> Result<(), Diagnostic> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "vi".into());
    let api = &session.api;
    let lease = format!("config-edit/{set}");
    let (lease_route, _) = (Route::lease(&lease)?, Route::file(set, 0, path)?);
    let opened: Value =
        api.call(Method::POST, "/v1/sessions", Some(&json!({ "name": person(), "ttl": EDIT_TTL }))).await?;
    let id = opened["id"].as_str().or_else(|| opened["session"].as_str()).unwrap_or_default().to_owned();
    let ask = json!({ "session": id, "holder": person() });
    let held: Result<Value, Diagnostic> = api.call(Method::PUT, lease_route, Some(&ask)).await;
    let outcome = match held {
        Ok(held) => {
            let token = field(&held, "token");
            let renewing = api.clone();
            let renewed = id.clone();
            let renew = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(EDIT_RENEWED_EACH).await;
                    let ask = json!({ "sessions": [{ "session": renewed }] });
                    let _: Result<Value, _> = renewing.call(Method::POST, "/v1/leases:renew", Some(&ask)).await;
                }
            });
            let done = edit_held(session, set, path, message, &editor, (&lease, &token)).await;
            renew.abort();
            done
        }
        Err(error) if error.code == "LW0202" => {
            Err(error.hint(format!("leaseward lease get {lease}      see who edits this set now")))
        }
        Err(error) => Err(error),
    };
    let _: Result<Value, _> = api.call(Method::DELETE, Route::from("/v1/sessions").then(&id), None::<&()>).await;
    match outcome? {
        // Others may edit meanwhile.
        Some(version) => spread::everywhere(session, set, version).await,
        None => Ok(()),
    }
}

/// Returns what a file of a version says; nothing if the version has no such file.
async fn now(session: &Session, set: &str, version: u64, path: &str) -> Result<Vec<u8>, Diagnostic> {
    if version == 0 {
        return Ok(Vec::new());
    }
    // That something does not exist may be said of the set, of the version or of the route too: the listing tells.
    let listing = listing(session, set, version).await?;
    match listing.entries.iter().find(|entry| entry.path == path) {
        None => Ok(Vec::new()),
        Some(entry) if entry.kind == FileKind::File => file(session, set, version, entry).await,
        Some(_) => Err(Diagnostic::new("LW0104", format!("{path} of {set} v{version} is no file"))
            .hint(format!("leaseward config get {set}      lists its files"))),
    }
}

/// Returns the version that was published, if anything was changed.
async fn edit_held(
    session: &Session,
    set: &str,
    path: &str,
    message: String,
    editor: &str,
    fence: (&str, &str),
) -> Result<Option<u64>, Diagnostic> {
    let version = newest(session, set, None).await?;
    let before = now(session, set, version, path).await?;
    if is_sealed(&before) {
        return Err(Diagnostic::new("LW0804", format!("{path} is encrypted"))
            .hint("edit the plain directory and publish it with --key"));
    }
    let temp = Temporary::new()?;
    let draft = temp.0.join(Path::new(path).file_name().unwrap_or_default());
    copies::write_new(&draft, &before, 0o600)?;
    let done = edit_draft(session, (set, version), path, message, editor, (&draft, &before), fence).await;
    let is_written = match std::fs::read(&draft) {
        Ok(now) => now != before,
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    match done {
        // It is nowhere else.
        Err(error) if is_written => {
            temp.keep();
            Err(error.hint(format!("what you wrote is kept in {}", draft.display())))
        }
        done => done,
    }
}

/// Opens a draft in an editor and publishes what was written.
async fn edit_draft(
    session: &Session,
    (set, version): (&str, u64),
    path: &str,
    message: String,
    editor: &str,
    (draft, before): (&Path, &[u8]),
    (lease, token): (&str, &str),
) -> Result<Option<u64>, Diagnostic> {
    let script = format!("{editor} \"$1\"");
    let status = tokio::process::Command::new("sh").args(["-c", &script, "sh"]).arg(draft).status().await;
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(Diagnostic::new("LW0104", format!("{editor}: {status}; nothing was published"))),
        Err(error) => return Err(Diagnostic::new("LW0104", format!("{editor}: {error}; nothing was published"))),
    }
    let after = std::fs::read(draft).map_err(failed(draft))?;
    if after == before {
        note!("nothing was changed");
        return Ok(None);
    }
    let shown = printer::try_content(text_diff(path, before, &after).as_bytes());
    shown.map_err(|error| printer::unwritten(&error).why("nothing was published: nobody saw what changes"))?;
    let changes = vec![change_of(path.to_owned(), Some(after), None, false)];
    let ask = ChangeFiles { parent: Some(version), changes, author: person(), message };
    small_enough(&ask)?;
    let fence = [("Leaseward-Fence", format!("{lease};{token}"))];
    let made: ConfigVersion =
        session.api.send(Method::POST, Route::set(set)?.then("changes"), Some(&ask), &fence).await?;
    note!("✓ {set} v{}", made.version);
    Ok(Some(made.version))
}

pub(super) async fn diff(session: &Session, set: &str, from: u64, to: Option<u64>) -> Result<u8, Diagnostic> {
    let to = newest(session, set, to).await?;
    let diff: ConfigDiff = session.api.get(Route::set(set)?.then("diff").with("from", from).with("to", to)).await?;
    match session.output {
        Output::Table | Output::Wide => {
            for changed in &diff.files {
                let letter = match changed.kind {
                    FileDiffKind::Added => 'A',
                    FileDiffKind::Removed => 'D',
                    FileDiffKind::Changed => 'M',
                };
                let modes = match (&changed.old, &changed.new) {
                    (Some(old), Some(new)) if old.mode != new.mode => {
                        format!("  {} → {}", old.mode.as_deref().unwrap_or("-"), new.mode.as_deref().unwrap_or("-"))
                    }
                    _ => String::new(),
                };
                line(&format!("{letter} {}{modes}", changed.path));
                let text = async |entry: &Option<FileEntry>, version: u64| match entry {
                    Some(entry) if entry.kind == FileKind::File => file(session, set, version, entry).await,
                    _ => Ok(Vec::new()),
                };
                let is_file =
                    |entry: &Option<FileEntry>| entry.as_ref().is_some_and(|entry| entry.kind == FileKind::File);
                let digest = |entry: &Option<FileEntry>| entry.as_ref().and_then(|entry| entry.digest.clone());
                if (is_file(&changed.old) || is_file(&changed.new)) && digest(&changed.old) != digest(&changed.new) {
                    let (old, new) = (text(&changed.old, from).await?, text(&changed.new, to).await?);
                    printer::content(text_diff(&changed.path, &old, &new).as_bytes());
                }
            }
        }
        _ => printer::object(&session.output, &diff, &[column("PATH", |diff| field(diff, "files.path"))])?,
    }
    Ok(u8::from(!diff.files.is_empty()))
}

/// Returns how two texts differ; of secrets and other bytes only that they do.
fn text_diff(path: &str, old: &[u8], new: &[u8]) -> String {
    if is_sealed(old) || is_sealed(new) {
        return format!("  {path} is encrypted: changed\n");
    }
    match (std::str::from_utf8(old), std::str::from_utf8(new)) {
        (Ok(old), Ok(new)) => {
            TextDiff::from_lines(old, new).unified_diff().context_radius(2).missing_newline_hint(false).to_string()
        }
        _ => format!("  {path} is not text: {} bytes, {} bytes before\n", new.len(), old.len()),
    }
}

/// A directory that goes away with this value.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, Diagnostic> {
        let base = std::env::temp_dir();
        for attempt in 0..1000u32 {
            let path = base.join(format!("leaseward-{}-{attempt}", std::process::id()));
            let made = std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path);
            match made {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        Err(Diagnostic::new("LW0600", format!("no directory can be made in {}", base.display())))
    }
}

impl Temporary {
    /// Leaves it where it is.
    fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What cannot be removed is the system's to clean.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_node_would_read_is_not_sent() {
        let ask = |bytes: Vec<u8>| ChangeFiles {
            parent: None,
            changes: vec![change_of("a".into(), Some(bytes), None, false)],
            author: String::new(),
            message: String::new(),
        };
        assert!(small_enough(&ask(vec![b'x'; BLOB_BYTES_MAX - 1_000])).is_ok());
        // As base64 it is larger than the bound.
        let refused = small_enough(&ask(vec![0xff; BLOB_BYTES_MAX - 1_000])).unwrap_err().to_string();
        assert!(refused.contains("LW0110") && refused.contains(&BLOB_BYTES_MAX.to_string()), "{refused}");
        assert!(refused.contains("leaseward config publish"), "{refused}");
    }
}
