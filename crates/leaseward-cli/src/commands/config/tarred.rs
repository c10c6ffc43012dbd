//! Extended attributes in tar files, and files out of them.
//!
//! Must stay true: nothing is unpacked outside the directory that was named, and nothing of a tar file that was cut off;
//! attributes are what GNU tar makes with
//! `--xattrs`, `SCHILY.xattr.*`, and only those that any program may set are taken.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use leaseward_state::config::Xattrs;
use leaseward_sync::write_xattrs;

use super::copies::{refused, set_mode};
use super::files::failed;
use crate::diagnostic::Diagnostic;

/// What stands before the names of extended attributes in a tar file.
const XATTR: &str = "SCHILY.xattr.";

/// A tar file is made of blocks of so many bytes; whoever writes one, by any tool, ends it with two of zeros.
const BLOCK_BYTES: usize = 512;

/// Bytes of what a tar file says about one path, besides its content: more than a version keeps, and bounded.
const EXTENSIONS_BYTES_MAX: u64 = 1 << 20;

/// Writes what the attributes of the next path are.
pub(super) fn append_xattrs(archive: &mut tar::Builder<impl Write>, xattrs: &Xattrs) -> io::Result<()> {
    let named: Vec<_> = xattrs.iter().map(|(name, value)| (keyword(name), value)).collect();
    archive.append_pax_extensions(named.iter().map(|(keyword, value)| (keyword.as_str(), value.as_slice())))
}

/// The content of a file in a tar file, as it comes.
pub(super) struct FileInside<'a, W: Write> {
    archive: &'a mut tar::Builder<W>,
    left: u64,
    padding: usize,
}

/// Begins a file of the size that its header says. The crate takes what it can read itself; here the bytes come from
/// elsewhere, so it writes the header alone.
pub(super) fn begin_file<'a, W: Write>(
    archive: &'a mut tar::Builder<W>,
    header: &mut tar::Header,
    path: &str,
) -> io::Result<FileInside<'a, W>> {
    let left = header.size()?;
    archive.append_data(header, path, io::empty())?;
    Ok(FileInside { archive, left, padding: left.next_multiple_of(BLOCK_BYTES as u64).abs_diff(left) as usize })
}

impl<W: Write> Write for FileInside<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let longer = || io::Error::other("a file of the version is longer than it was listed");
        let written = self.archive.get_mut().write(bytes)?;
        self.left = self.left.checked_sub(written as u64).ok_or_else(longer)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.archive.get_mut().flush()
    }
}

impl<W: Write> FileInside<'_, W> {
    /// Ends it.
    pub(super) fn end(self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("a file of the version is shorter than it was listed"));
        }
        self.archive.get_mut().write_all(&[0; BLOCK_BYTES][..self.padding])
    }
}

/// Unpacks a tar file into a new directory, with the extended attributes of its files if they are wanted.
pub(super) fn unpack(tar: &Path, to: &Path, xattrs: bool) -> Result<(), Diagnostic> {
    let open = || std::fs::File::open(tar).map(std::io::BufReader::new).map_err(failed(tar));
    look(open()?).map_err(failed(tar))??;
    std::fs::create_dir(to).map_err(failed(to))?;
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

/// Refuses what would be left out or made into something else: whoever publishes a tar file gets all of it, or nothing.
fn look(tar: impl Read) -> io::Result<Result<(), Diagnostic>> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let entry = entry?;
        let path = entry.path_bytes().into_owned();
        let refuse = |why: &str| {
            let path = String::from_utf8_lossy(&path);
            Ok(Err(Diagnostic::new("LW0804", format!("{path} cannot be in a config set: {why}"))))
        };
        let kind = entry.header().entry_type();
        let is_known = kind.is_file()
            || kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link()
            || kind.is_pax_global_extensions();
        if !is_known && !kind.is_contiguous() && !kind.is_gnu_sparse() {
            return refuse("it is neither a file nor a directory nor a link");
        }
        if unpacked(&path).is_none() {
            return refuse("its path leads out of the tar file, or is not UTF-8");
        }
    }
    if ends(archive.into_inner())? {
        return Ok(Ok(()));
    }
    let why = "it ends early: what ends a tar file, two blocks of zeros, is not there";
    Ok(Err(Diagnostic::new("LW0804", why).hint("write it again: a full disk or a broken pipe cut it off")))
}

/// Returns whether what ends a tar file is there. The crate goes as far as the first block of zeros, or as the file does.
fn ends(mut tar: impl Read) -> io::Result<bool> {
    let mut second = [1; BLOCK_BYTES];
    match tar.read_exact(&mut second) {
        Ok(()) => Ok(second == [0; BLOCK_BYTES]),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the extended attributes that any program may set, of all files of a tar file. The crate's own reader of such
/// lines ends a value at its first line break.
fn attributes(tar: impl Read) -> io::Result<BTreeMap<String, Xattrs>> {
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
fn extensions(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
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
            append_xattrs(&mut archive, xattrs).unwrap();
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

    #[test]
    fn a_tar_file_that_was_cut_off_is_refused_wherever_it_ends() {
        let mut archive = tar::Builder::new(Vec::new());
        for path in ["a", "b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            archive.append_data(&mut header, path, b"hi".as_slice()).unwrap();
        }
        let whole = archive.into_inner().unwrap();
        let is_taken = |bytes: &[u8]| matches!(look(bytes), Ok(Ok(())));
        assert_eq!(whole.len(), 6 * BLOCK_BYTES);
        for blocks in 0..6 {
            assert!(!is_taken(&whole[..blocks * BLOCK_BYTES]), "{blocks} blocks");
            assert!(!is_taken(&whole[..blocks * BLOCK_BYTES + 100]), "{blocks} blocks and a piece");
        }
        // Tools fill up to the size of a record.
        assert!(is_taken(&whole) && is_taken(&[whole.as_slice(), &[0; 7168]].concat()));
        let alone = [&whole[..5 * BLOCK_BYTES], &whole[..BLOCK_BYTES]].concat();
        assert!(!is_taken(&alone), "one block of zeros ends nothing");
    }

    #[test]
    fn what_would_be_left_out_or_made_into_something_else_is_refused() {
        let archive = |path: &str, kind: tar::EntryType| {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            // The crate itself would not write such paths.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            archive.append(&header, std::io::empty()).unwrap();
            archive.into_inner().unwrap()
        };
        let said = |path, kind| look(archive(path, kind).as_slice()).unwrap().map_err(|error| error.to_string());
        use tar::EntryType::{Block, Char, Directory, Fifo, Regular};
        assert_eq!((said("a/b", Regular), said("./a/", Directory)), (Ok(()), Ok(())));
        for (path, kind) in [("../a", Regular), ("a/../../b", Regular), ("a", Char), ("a", Block), ("a", Fifo)] {
            let why = said(path, kind).unwrap_err();
            assert!(why.contains(path) && why.contains("cannot be in a config set"), "{why}");
        }
    }
}
