//! Copies of a version outside the cluster: a directory or a tar file that is made from it, or that it is made from.
//!
//! Must stay true: a copy has the extended attributes that the version keeps, or the command fails; nothing is written
//! outside the directory that was named. What tar files say of attributes is in `tarred.rs`, where the bytes come from in
//! `contents.rs`.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use leaseward_http::model::{FileEntry, FileKind, ManifestListing};
use leaseward_state::config::{BadPath, Manifest, ManifestEntry, ManifestNode, Xattrs};
use leaseward_sync::{digest_of, write_xattrs};

use super::contents::{Contents, key_of};
use super::files::{failed, listing, newest};
use super::tarred;
use crate::diagnostic::Diagnostic;
use crate::printer::{line, note};
use crate::session::Session;
use crate::unfinished::Unfinished;

pub(super) fn refused(error: leaseward_sync::Error) -> Diagnostic {
    Diagnostic::new(error.code(), error.to_string())
}

fn create_new(path: &Path, mode: u32) -> Result<std::fs::File, Diagnostic> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed(path))
}

pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Diagnostic> {
    create_new(path, mode)?.write_all(bytes).map_err(failed(path))?;
    set_mode(path, mode)
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), Diagnostic> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed(path))
}

/// Returns the extended attributes of a file as they were listed.
fn xattrs(entry: &FileEntry) -> Result<Xattrs, Diagnostic> {
    let decode = |(name, value): (&String, &String)| match BASE64_STANDARD.decode(value) {
        Ok(value) => Ok((name.clone(), value)),
        Err(error) => Err(Diagnostic::new("LW0701", format!("{}: attribute {name}: {error}", entry.path))),
    };
    entry.xattrs.iter().flatten().map(decode).collect()
}

pub(super) async fn pull(
    session: &Session,
    set: &str,
    to: Option<PathBuf>,
    tar: Option<PathBuf>,
    version: Option<u64>,
    key: Option<PathBuf>,
) -> Result<(), Diagnostic> {
    let (version, key) = (newest(session, set, version).await?, key_of(key)?);
    let listing = listing(session, set, version).await?;
    is_legal(&listing)?;
    let contents = Contents::of(session, (set, version), &listing, key.as_ref());
    match (to, tar) {
        (Some(to), _) => {
            into_directory(&listing, &to, contents).await?;
            note!("✓ {set} v{version} in {}", to.display());
        }
        (None, Some(tar)) => {
            into_tar(&listing, &tar, contents).await?;
            note!("✓ {set} v{version} in {}", tar.display());
        }
        (None, None) => {
            return Err(Diagnostic::new("LW0104", "nothing says where to").hint("--to DIR or --tar FILE"));
        }
    }
    Ok(())
}

/// Refuses what no member would write either: paths that lead elsewhere, also by way of a link, and modes that give away more.
fn is_legal(listing: &ManifestListing) -> Result<(), Diagnostic> {
    let node = |entry: &FileEntry| match entry.kind {
        FileKind::Directory => ManifestNode::Directory { mode: mode(entry) },
        FileKind::Symlink => ManifestNode::Symlink { target: entry.target.clone().unwrap_or_default() },
        // What it says is looked at when it comes.
        FileKind::File => ManifestNode::File { mode: mode(entry), size: 0, digest: digest_of(&[]), chunks: Vec::new() },
    };
    let listed = |entry: &FileEntry| ManifestEntry { path: entry.path.clone(), node: node(entry) };
    let tree = Manifest { entries: listing.entries.iter().map(listed).collect(), ..Manifest::default() };
    let bad = |bad: BadPath| Diagnostic::new("LW0804", bad.to_string()).hint("--addr host:port      ask another node");
    tree.check().map_err(bad)
}

/// Writes a version into a directory that is empty or not there.
async fn into_directory(listing: &ManifestListing, to: &Path, contents: Contents<'_>) -> Result<(), Diagnostic> {
    match std::fs::read_dir(to).map(|mut there| there.next().is_none()) {
        Ok(false) => Err(Diagnostic::new("LW0104", format!("{} is not empty", to.display()))),
        Ok(true) => {
            let unfinished = Unfinished::within(to);
            fill(listing, unfinished.path(), contents).await?;
            for entry in listing.entries.iter().filter(|entry| !entry.path.contains('/')) {
                let place = to.join(&entry.path);
                std::fs::rename(unfinished.path().join(&entry.path), &place).map_err(failed(&place))?;
            }
            // Only now: a directory that must not be written to cannot be moved into another one.
            set_modes(listing, to)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(above) = to.parent() {
                std::fs::create_dir_all(above).map_err(failed(above))?;
            }
            let unfinished = Unfinished::beside(to)?;
            fill(listing, unfinished.path(), contents).await?;
            set_modes(listing, unfinished.path())?;
            std::fs::rename(unfinished.path(), to).map_err(failed(to))
        }
        Err(error) => Err(failed(to)(error)),
    }
}

/// Makes everything of a version but the modes of its directories, in a new directory.
async fn fill(listing: &ManifestListing, to: &Path, mut contents: Contents<'_>) -> Result<(), Diagnostic> {
    std::fs::create_dir(to).map_err(failed(to))?;
    for entry in &listing.entries {
        let place = to.join(&entry.path);
        match entry.kind {
            FileKind::Directory => std::fs::create_dir(&place).map_err(failed(&place))?,
            FileKind::Symlink => {
                symlink(entry.target.as_deref().unwrap_or_default(), &place).map_err(failed(&place))?;
            }
            FileKind::File => {
                contents.write(entry, &mut create_new(&place, 0o600)?, &place).await?;
                // While its owner may write to it.
                write_xattrs(to, &entry.path, &xattrs(entry)?).map_err(refused)?;
                set_mode(&place, mode(entry))?;
            }
        }
    }
    Ok(())
}

/// Sets the modes of directories.
fn set_modes(listing: &ManifestListing, to: &Path) -> Result<(), Diagnostic> {
    // The deepest first: a mode may forbid to go on below.
    for entry in listing.entries.iter().rev().filter(|entry| entry.kind == FileKind::Directory) {
        set_mode(&to.join(&entry.path), mode(entry))?;
    }
    Ok(())
}

/// Writes a version into a tar file.
async fn into_tar(listing: &ManifestListing, to: &Path, contents: Contents<'_>) -> Result<(), Diagnostic> {
    // Where a name leads elsewhere, the file there is meant; a pipe or a device takes it as it comes.
    let place = std::fs::canonicalize(to).unwrap_or_else(|_| to.to_owned());
    if std::fs::metadata(&place).is_ok_and(|there| !there.is_file()) {
        return pack(listing, &place, contents).await;
    }
    let unfinished = Unfinished::beside(&place)?;
    pack(listing, unfinished.path(), contents).await?;
    std::fs::rename(unfinished.path(), &place).map_err(failed(to))
}

async fn pack(listing: &ManifestListing, to: &Path, mut contents: Contents<'_>) -> Result<(), Diagnostic> {
    let out = std::fs::File::create(to).map_err(failed(to))?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(out));
    for entry in &listing.entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode(entry));
        header.set_mtime(0);
        match entry.kind {
            FileKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                archive.append_data(&mut header, &entry.path, std::io::empty()).map_err(failed(to))?;
            }
            FileKind::Symlink => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                let target = entry.target.as_deref().unwrap_or_default();
                archive.append_link(&mut header, &entry.path, target).map_err(failed(to))?;
            }
            FileKind::File => {
                tarred::append_xattrs(&mut archive, &xattrs(entry)?).map_err(failed(to))?;
                header.set_size(contents.size(entry));
                let mut out = tarred::begin_file(&mut archive, &mut header, &entry.path).map_err(failed(to))?;
                contents.write(entry, &mut out, to).await?;
                out.end().map_err(failed(to))?;
            }
        }
    }
    archive.into_inner().and_then(|mut out| out.flush()).map_err(failed(to))
}

fn mode(entry: &FileEntry) -> u32 {
    entry.mode.as_ref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o644)
}

pub(super) async fn verify(session: &Session, set: &str, dir: &Path, version: Option<u64>) -> Result<u8, Diagnostic> {
    let version = newest(session, set, version).await?;
    let listing = listing(session, set, version).await?;
    let place = dir.to_owned();
    let xattrs = listing.entries.iter().any(|entry| entry.xattrs.is_some());
    let scanned = tokio::task::spawn_blocking(move || leaseward_sync::scan_some(&place, xattrs, &|_| true))
        .await
        .map_err(|error| Diagnostic::new("LW0600", error.to_string()))?
        .map_err(refused)?;
    let here: BTreeMap<String, FileEntry> = leaseward_http::model::entries(scanned.manifest())
        .into_iter()
        .map(|entry| (entry.path.clone(), entry))
        .collect();
    let mut there: BTreeMap<&str, &FileEntry> =
        listing.entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let mut differences = 0;
    let mut say = |what: &str, path: &str| {
        differences += 1;
        line(&format!("{what:<8} {path}"));
    };
    for (path, found) in &here {
        match there.remove(path.as_str()) {
            None => say("extra", path),
            Some(wanted) if wanted == found => {}
            Some(wanted) if wanted.digest != found.digest || wanted.kind != found.kind => say("content", path),
            Some(wanted) if wanted.target != found.target => say("content", path),
            Some(wanted) if wanted.mode != found.mode => say("mode", path),
            Some(_) => say("xattr", path),
        }
    }
    there.keys().for_each(|path| say("missing", path));
    match differences {
        0 => note!("✓ {} is {set} v{version}", dir.display()),
        count => note!("✖ {} differs from {set} v{version} in {count} paths", dir.display()),
    }
    Ok(u8::from(differences > 0))
}
