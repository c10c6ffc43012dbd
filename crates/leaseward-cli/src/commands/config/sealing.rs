//! Encrypting what is published, on the machine of whoever publishes it.
//!
//! Must stay true: nothing plain of a set with a key leaves this machine, and nothing that no member could open; memory for
//! one file. How a file is encrypted is in `leaseward_sync::secret`.

use std::os::unix::fs::symlink;
use std::path::Path;

use leaseward_http::model::{FileChange, SetPolicy};
use leaseward_sync::limits::RENDERED_BYTES_MAX;
use leaseward_sync::secret::Key;

use super::copies::{refused, write_new};
use super::files::failed;
use crate::diagnostic::Diagnostic;

/// Refuses what would stand readable on every voter, or what no member could open, before anything is sent.
pub(super) fn fits(set: &str, policy: &SetPolicy, key: Option<&Key>) -> Result<(), Diagnostic> {
    let refuse = |why: String, hint: &str| Err(Diagnostic::new("LW0101", why).hint(hint.to_owned()));
    match (&policy.key, key.map(Key::fingerprint)) {
        (Some(wanted), None) => refuse(
            format!("config/{set} is encrypted with the key {wanted}"),
            "--key FILE      publish it with that key",
        ),
        (Some(wanted), Some(given)) if *wanted != given => refuse(
            format!("config/{set} is encrypted with the key {wanted}, and this is {given}"),
            "--key FILE      the other one",
        ),
        (None, Some(given)) => refuse(
            format!("config/{set} is not encrypted: its members would have files that nobody can read"),
            &format!(
                "leaseward config policy {set} key='\"{given}\"'      then publish again: the set need not exist yet"
            ),
        ),
        _ => Ok(()),
    }
}

/// A directory that is being encrypted.
pub(super) struct Sealing<'a> {
    key: &'a Key,
    policy: &'a SetPolicy,
    /// Bytes so far.
    total: u64,
}

impl<'a> Sealing<'a> {
    /// Begins with nothing.
    pub(super) fn of(key: &'a Key, policy: &'a SetPolicy) -> Self {
        Self { key, policy, total: 0 }
    }

    /// Writes a directory with every file encrypted. `above` is its path in the set.
    pub(super) fn directory(&mut self, from: &Path, to: &Path, above: &str) -> Result<(), Diagnostic> {
        std::fs::create_dir(to).map_err(failed(to))?;
        for entry in std::fs::read_dir(from).map_err(failed(from))? {
            let entry = entry.map_err(failed(from))?;
            let name = entry.file_name().into_string().map_err(|name| {
                Diagnostic::new("LW0804", format!("{}: its name is not UTF-8", name.to_string_lossy()))
            })?;
            let path = if above.is_empty() { name.clone() } else { format!("{above}/{name}") };
            let (here, there) = (entry.path(), to.join(&name));
            let kind = entry.file_type().map_err(failed(&here))?;
            if kind.is_dir() {
                self.directory(&here, &there, &path)?;
            } else if kind.is_symlink() {
                symlink(std::fs::read_link(&here).map_err(failed(&here))?, &there).map_err(failed(&there))?;
            } else if !kind.is_file() {
                // To read a pipe would be to wait for somebody who writes.
                let why = format!("{path} cannot be in a config set: it is neither a file nor a directory nor a link");
                return Err(Diagnostic::new("LW0804", why));
            } else {
                self.count(entry.metadata().map_err(failed(&here))?.len())?;
                let sealed = self.key.seal(&path, std::fs::read(&here).map_err(failed(&here))?).map_err(refused)?;
                write_new(&there, &sealed, 0o600)?;
                if self.policy.xattrs {
                    leaseward_sync::copy_xattrs(&here, &there).map_err(refused)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses what no member would open, before it is read. Where layers differ for members, each file counts by itself.
    fn count(&mut self, bytes: u64) -> Result<(), Diagnostic> {
        self.total = if self.policy.overlays { bytes } else { self.total + bytes };
        if self.total <= RENDERED_BYTES_MAX {
            return Ok(());
        }
        let what = format!("members open at most {RENDERED_BYTES_MAX} bytes of secrets of a set, and here are more");
        Err(Diagnostic::new("LW0808", what)
            .why("they are held in memory while they are opened")
            .hint("publish what is no secret as a set of its own, without a key"))
    }
}

/// Encrypts what a file says from now on.
pub(super) fn seal_change(key: &Key, change: &mut FileChange) -> Result<(), Diagnostic> {
    use base64::Engine as _;
    let base64 = base64::prelude::BASE64_STANDARD;
    let plain = match (change.content.take(), change.base64.take()) {
        (Some(text), _) => text.into_bytes(),
        (None, Some(text)) => base64
            .decode(text)
            .map_err(|error| Diagnostic::new("LW0104", format!("`base64` of {}: {error}", change.path)))?,
        (None, None) => return Ok(()),
    };
    let sealed = key.seal(&change.path, plain).map_err(refused)?;
    change.base64 = Some(base64.encode(sealed));
    Ok(())
}
