//! Copies of a version outside the cluster: a directory or a tar file that is made from it, or that it is made from.
//!
//! Must stay true: a copy has the extended attributes that the version keeps, or the command fails; nothing is written
//! outside the directory that was named. In a tar file they are what GNU tar makes with `--xattrs`: `SCHILY.xattr.*`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures_util::StreamExt;
use leaseward_http::model::{FileEntry, FileKind, ManifestListing};
use leaseward_state::config::Xattrs;
use leaseward_sync::write_xattrs;

use super::files::{failed, file, key_of, newest, opened};
use crate::diagnostic::Diagnostic;
use crate::printer::line;
use crate::session::Session;

/// Files that are fetched at one time.
const FILES_AT_ONCE: usize = 16;

/// What stands before the names of extended attributes in a tar file.
const XATTR: &str = "SCHILY.xattr.";

/// Bytes of what a tar file says about one path, besides its content: more than a version keeps, and bounded.
const EXTENSIONS_BYTES_MAX: u64 = 1 << 20;

fn refused(error: leaseward_sync::Error) -> Diagnostic {
    Diagnostic::new(error.code(), error.to_string())
}

pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Diagnostic> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed(path))?;
    file.write_all(bytes).map_err(failed(path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Diagnostic> {
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
    let listing: ManifestListing = session.api.get(&format!("/v1/configs/{set}/versions/{version}")).await?;
    // In the order of the paths, some at a time.
    let files = listing.entries.iter().filter(|entry| entry.kind == FileKind::File);
    let mut contents =
        futures_util::stream::iter(files).map(|entry| file(session, set, version, &entry.path)).buffered(FILES_AT_ONCE);
    let mut next = async || match contents.next().await {
        Some(bytes) => bytes,
        None => Err(Diagnostic::new("LW0701", "a file of the version did not come")),
    };
    match (to, tar) {
        (Some(to), _) => {
            std::fs::create_dir_all(&to).map_err(failed(&to))?;
            if std::fs::read_dir(&to).map_err(failed(&to))?.next().is_some() {
                return Err(Diagnostic::new("LW0104", format!("{} is not empty", to.display())));
            }
            for entry in &listing.entries {
                let place = to.join(&entry.path);
                match entry.kind {
                    FileKind::Directory => std::fs::create_dir(&place).map_err(failed(&place))?,
                    FileKind::Symlink => {
                        symlink(entry.target.as_deref().unwrap_or_default(), &place).map_err(failed(&place))?;
                    }
                    FileKind::File => {
                        let bytes = next().await?;
                        write_new(&place, &opened(key.as_ref(), &entry.path, bytes)?, 0o600)?;
                        // While its owner may write to it.
                        let xattrs = xattrs(entry)?;
                        write_xattrs(&to, &entry.path, &xattrs).map_err(refused)?;
                        set_mode(&place, mode(entry))?;
                    }
                }
            }
            // The deepest first: a mode may forbid to go on below.
            for entry in listing.entries.iter().rev().filter(|entry| entry.kind == FileKind::Directory) {
                let place = to.join(&entry.path);
                set_mode(&place, mode(entry))?;
            }
            eprintln!("✓ {set} v{version} in {}", to.display());
        }
        (None, Some(tar)) => {
            let out = std::fs::File::create(&tar).map_err(failed(&tar))?;
            let mut archive = tar::Builder::new(std::io::BufWriter::new(out));
            for entry in &listing.entries {
                let mut header = tar::Header::new_gnu();
                header.set_mode(mode(entry));
                header.set_mtime(0);
                let bytes = match entry.kind {
                    FileKind::Directory => {
                        header.set_entry_type(tar::EntryType::Directory);
                        Vec::new()
                    }
                    FileKind::Symlink => {
                        header.set_entry_type(tar::EntryType::Symlink);
                        header.set_size(0);
                        let target = entry.target.as_deref().unwrap_or_default();
                        archive.append_link(&mut header, &entry.path, target).map_err(failed(&tar))?;
                        continue;
                    }
                    FileKind::File => opened(key.as_ref(), &entry.path, next().await?)?,
                };
                let named: Vec<_> = xattrs(entry)?.into_iter().map(|(name, value)| (keyword(&name), value)).collect();
                let named = named.iter().map(|(keyword, value)| (keyword.as_str(), value.as_slice()));
                archive.append_pax_extensions(named).map_err(failed(&tar))?;
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, &entry.path, bytes.as_slice()).map_err(failed(&tar))?;
            }
            archive.into_inner().and_then(|mut out| out.flush()).map_err(failed(&tar))?;
            eprintln!("✓ {set} v{version} in {}", tar.display());
        }
        (None, None) => {
            return Err(Diagnostic::new("LW0104", "nothing says where to").hint("--to DIR or --tar FILE"));
        }
    }
    Ok(())
}

fn mode(entry: &FileEntry) -> u32 {
    entry.mode.as_ref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o644)
}

pub(super) async fn verify(session: &Session, set: &str, dir: &Path, version: Option<u64>) -> Result<u8, Diagnostic> {
    let version = newest(session, set, version).await?;
    let listing: ManifestListing = session.api.get(&format!("/v1/configs/{set}/versions/{version}")).await?;
    let place = dir.to_owned();
    let xattrs = listing.entries.iter().any(|entry| entry.xattrs.is_some());
    let scanned = tokio::task::spawn_blocking(move || leaseward_sync::scan_some(&place, xattrs, &|_| true))
        .await
        .map_err(|error| Diagnostic::new("LW0600", error.to_string()))?
        .map_err(refused)?;
    let here: std::collections::BTreeMap<String, FileEntry> = leaseward_http::model::entries(scanned.manifest())
        .into_iter()
        .map(|entry| (entry.path.clone(), entry))
        .collect();
    let mut there: std::collections::BTreeMap<&str, &FileEntry> =
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
        0 => eprintln!("✓ {} is {set} v{version}", dir.display()),
        count => eprintln!("✖ {} differs from {set} v{version} in {count} paths", dir.display()),
    }
    Ok(u8::from(differences > 0))
}

/// Unpacks a tar file into a new directory, with the extended attributes of its files if they are wanted.
pub(super) fn unpack(tar: &Path, to: &Path, xattrs: bool) -> Result<(), Diagnostic> {
    std::fs::create_dir(to).map_err(failed(to))?;
    let open = || std::fs::File::open(tar).map(std::io::BufReader::new).map_err(failed(tar));
    // Nothing is written outside: the crate refuses paths that lead out.
    tar::Archive::new(open()?).unpack(to).map_err(failed(tar))?;
    if !xattrs {
        return Ok(());
    }
    for (path, xattrs) in attributes(open()?).map_err(failed(tar))? {
        let place = to.join(&path);
        let Ok(meta) = std::fs::symlink_metadata(&place) else { continue };
        if !meta.is_file() {
            continue;
        }
        // Its owner must be allowed to write to it meanwhile.
        let mode = meta.permissions().mode() & 0o7777;
        set_mode(&place, mode | 0o600)?;
        write_xattrs(to, &path, &xattrs).map_err(refused)?;
        set_mode(&place, mode)?;
    }
    Ok(())
}

/// Returns the extended attributes that any program may set, of all files of a tar file. The crate's own reader of such
/// lines ends a value at its first line break.
fn attributes(tar: impl Read) -> std::io::Result<BTreeMap<String, Xattrs>> {
    let mut found = BTreeMap::new();
    let (mut lines, mut long_path) = (Vec::new(), None);
    for entry in tar::Archive::new(tar).entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() {
            let mut bytes = Vec::new();
            entry.by_ref().take(EXTENSIONS_BYTES_MAX).read_to_end(&mut bytes)?;
            match kind.is_gnu_longname() {
                true => long_path = Some(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
                false => lines = extensions(&bytes)?,
            }
            continue;
        }
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            continue;
        }
        let said: BTreeMap<Vec<u8>, Vec<u8>> = std::mem::take(&mut lines).into_iter().collect();
        let long_path = long_path.take();
        let path = long_path.or_else(|| said.get(b"path".as_slice()).cloned());
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let xattrs: Xattrs =
            said.into_iter().filter_map(|(keyword, value)| Some((attribute(&keyword)?, value))).collect();
        if let Some(path) = unpacked(&path)
            && kind.is_file()
        {
            // The last file of a name is the one that stays.
            found.insert(path, xattrs);
        }
    }
    Ok(found)
}

/// Returns what the lines of an extended header say.
fn extensions(mut bytes: &[u8]) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "an extended header is damaged");
    let mut said = Vec::new();
    while !bytes.is_empty() {
        // Its length, itself included; a blank; keyword=value; a line break.
        let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&bytes[..blank]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let line = bytes.get(blank + 1..length).and_then(|line| line.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        said.push((line[..equals].to_vec(), line[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(said)
}

/// Returns where a path of a tar file is unpacked, if it is at all.
fn unpacked(path: &[u8]) -> Option<String> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => return None,
        }
    }
    Some(parts.join("/"))
}

/// Returns the keyword for an extended attribute. A keyword ends at its first `=`.
fn keyword(name: &str) -> String {
    format!("{XATTR}{}", name.replace('%', "%25").replace('=', "%3D"))
}

/// Returns the extended attribute that a keyword is for, if it is one that any program may set.
fn attribute(keyword: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(keyword).ok()?.strip_prefix(XATTR)?.replace("%3D", "=").replace("%25", "%");
    name.starts_with("user.").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_from_a_tar_file_as_they_went_in() {
        let long = format!("{}/file", "deep".repeat(40));
        let want = BTreeMap::from([
            ("a".to_owned(), Xattrs::from([("user.origin".into(), b"m1".to_vec()), ("user.a=b%3D".into(), vec![])])),
            ("b".to_owned(), Xattrs::from([("user.bytes".into(), b"\n15 path=c\n\0\xff=".to_vec())])),
            ("c".to_owned(), Xattrs::new()),
            (long, Xattrs::from([("user.long".into(), vec![b'x'; 2000])])),
        ]);
        let mut archive = tar::Builder::new(Vec::new());
        for (path, xattrs) in &want {
            let named: Vec<_> = xattrs.iter().map(|(name, value)| (keyword(name), value)).collect();
            archive.append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), value.as_slice()))).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            archive.append_data(&mut header, path, b"hi".as_slice()).unwrap();
        }
        assert_eq!(attributes(archive.into_inner().unwrap().as_slice()).unwrap(), want);
    }

    #[test]
    fn attributes_of_the_system_and_damaged_headers_are_not_taken() {
        assert_eq!(attribute(b"SCHILY.xattr.security.selinux"), None);
        assert_eq!(attribute(b"SCHILY.acl.access"), None);
        assert_eq!(attribute(b"SCHILY.xattr.user.a"), Some("user.a".into()));
        assert_eq!(extensions(b"9 path=a\n").unwrap(), [(b"path".to_vec(), b"a".to_vec())]);
        for bad in [b"11 path=a\n".as_slice(), b"x path=a\n", b"9 pathaa\n", b"9 path=aa", b"0 =\n", b"1 \n"] {
            assert!(extensions(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(
            (unpacked(b"./a//b"), unpacked(b"/a"), unpacked(b"a/../b")),
            (Some("a/b".into()), Some("a".into()), None)
        );
    }
}
