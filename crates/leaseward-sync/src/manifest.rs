//! The stored text form of a manifest: one line for each path, so that a person can read and compare two versions.
//!
//! Must stay true: equal trees have equal bytes, [`decode`] accepts only what [`encode`] writes, and no input makes
//! it panic or allocate beyond its own length. Stored form: golden bytes in the tests hold us to it.
//!
//! ```text
//! leaseward manifest 1
//! d 755 conf.d
//! f 644 12 DIGEST = conf.d/base.conf            one chunk, which is the whole file
//! f 644 0 DIGEST - empty
//! f 644 524288 DIGEST DIGEST:262144,DIGEST:262144 large
//! l current<TAB>conf.d/base.conf
//! end 4 CRC32C
//! ```
//!
//! Where a set keeps extended attributes, `xattrs` is the second line, and those of a file follow its line:
//!
//! ```text
//! x 6e67696e78 user.origin                      the value in hexadecimal, `-` for none, and the name
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode};
use leaseward_state::limits::{FILES_MAX, SET_BYTES_MAX};

use crate::digest_of;
use crate::error::{Error, Result};
use crate::limits::{BLOB_BYTES_MAX, CHUNK_BYTES_MAX, DEPTH_MAX, ENTRIES_MAX};
use crate::xattr;

const HEADER: &str = "leaseward manifest 1";
/// Says that files have the attributes that stand here and no others.
const XATTRS: &str = "xattrs";

/// Returns the bytes of a manifest. They are deterministic: equal manifests have equal bytes.
#[must_use]
pub fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut text = String::with_capacity(64 + manifest.entries.len() * 128);
    text.push_str(HEADER);
    text.push('\n');
    if manifest.xattrs.is_some() {
        text.push_str(XATTRS);
        text.push('\n');
    }
    for entry in &manifest.entries {
        encode_entry(&mut text, entry);
        for (name, value) in manifest.xattrs_of(&entry.path).into_iter().flatten() {
            encode_xattr(&mut text, name, value);
        }
    }
    let crc = crc32c::crc32c(text.as_bytes());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "end {} {crc:08x}", manifest.entries.len());
    text.into_bytes()
}

fn encode_entry(text: &mut String, entry: &ManifestEntry) {
    let mut digits = itoa::Buffer::new();
    match &entry.node {
        ManifestNode::Directory { mode } => {
            text.push_str("d ");
            octal(text, *mode);
            text.push(' ');
        }
        ManifestNode::File { mode, size, digest, chunks } => {
            text.push_str("f ");
            octal(text, *mode);
            text.push(' ');
            text.push_str(digits.format(*size));
            text.push(' ');
            text.push_str(digest.hex().as_str());
            text.push(' ');
            match chunks.as_slice() {
                [] => text.push('-'),
                [_] => text.push('='),
                chunks => {
                    for (i, chunk) in chunks.iter().enumerate() {
                        text.push_str(if i == 0 { "" } else { "," });
                        text.push_str(chunk.digest.hex().as_str());
                        text.push(':');
                        text.push_str(digits.format(chunk.size));
                    }
                }
            }
            text.push(' ');
        }
        ManifestNode::Symlink { .. } => text.push_str("l "),
    }
    escape(text, &entry.path);
    if let ManifestNode::Symlink { target } = &entry.node {
        text.push('\t');
        escape(text, target);
    }
    text.push('\n');
}

/// Writes a mode, as `{:o}` does and without its machinery: every path has one.
fn octal(text: &mut String, mode: u32) {
    let digits = (32 - mode.leading_zeros()).div_ceil(3).max(1);
    for digit in (0..digits).rev() {
        text.push((b'0' + (mode >> (3 * digit) & 7) as u8).into());
    }
}

fn encode_xattr(text: &mut String, name: &str, value: &[u8]) {
    text.push_str("x ");
    if value.is_empty() {
        text.push('-');
    }
    for byte in value {
        let _ = write!(text, "{byte:02x}");
    }
    text.push(' ');
    escape(text, name);
    text.push('\n');
}

/// Returns the manifest that these bytes hold.
///
/// # Errors
/// [`Error::BadManifest`] for bytes that [`encode`] would not write; [`Error::IllegalTree`] for a path, mode or chunk
/// that may not be in a set; [`Error::TooLarge`] for too many paths or bytes.
pub fn decode(bytes: &[u8]) -> Result<Manifest> {
    let whole = |why: &str| Error::BadManifest { line: 0, why: why.to_owned() };
    if bytes.len() > BLOB_BYTES_MAX {
        return Err(Error::TooLarge {
            what: "bytes of a manifest",
            size: bytes.len() as u64,
            limit: BLOB_BYTES_MAX as u64,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| whole("it is not UTF-8"))?;
    let body = text.strip_suffix('\n').ok_or_else(|| whole("it is cut off"))?;
    let (body, end) = body.rsplit_once('\n').ok_or_else(|| whole("it is cut off"))?;
    let signed = &text[..=body.len()];
    let mut manifest = Manifest::default();
    for (i, line) in body.split('\n').enumerate() {
        if i == 0 {
            if line != HEADER {
                return Err(Error::BadManifest { line: 1, why: format!("it does not begin with `{HEADER}`") });
            }
            continue;
        }
        let bad = |why: &str| Error::BadManifest { line: i + 1, why: why.to_owned() };
        if i == 1 && line == XATTRS {
            manifest.xattrs = Some(BTreeMap::new());
        } else if let Some(xattr) = line.strip_prefix("x ") {
            let (Some(all), Some(entry)) = (&mut manifest.xattrs, manifest.entries.last()) else {
                return Err(bad("an attribute belongs to no file"));
            };
            let (name, value) = decode_xattr(xattr).map_err(bad)?;
            all.entry(entry.path.clone()).or_default().insert(name, value);
        } else {
            manifest.entries.push(decode_entry(line).map_err(bad)?);
        }
    }
    let crc = crc32c::crc32c(signed.as_bytes());
    if end != format!("end {} {crc:08x}", manifest.entries.len()) {
        return Err(whole("its last line does not match the rest"));
    }
    check(&manifest)?;
    // One tree, one spelling: leading zeros, needless escapes and long forms are refused.
    if encode(&manifest) != bytes {
        return Err(whole("it is not spelled as Leaseward spells it"));
    }
    Ok(manifest)
}

fn decode_entry(line: &str) -> Result<ManifestEntry, &'static str> {
    let (kind, rest) = line.split_once(' ').ok_or("a field is missing")?;
    let mode = |text| u32::from_str_radix(text, 8).map_err(|_| "the mode is not octal");
    match kind {
        "d" => {
            let (bits, path) = rest.split_once(' ').ok_or("a field is missing")?;
            Ok(ManifestEntry { path: unescape(path)?, node: ManifestNode::Directory { mode: mode(bits)? } })
        }
        "l" => {
            let (path, target) = rest.split_once('\t').ok_or("a field is missing")?;
            Ok(ManifestEntry { path: unescape(path)?, node: ManifestNode::Symlink { target: unescape(target)? } })
        }
        "f" => {
            let mut fields = rest.splitn(5, ' ');
            let mut field = || fields.next().ok_or("a field is missing");
            let bits = mode(field()?)?;
            let size: u64 = field()?.parse().map_err(|_| "the size is not a number")?;
            let digest = Digest::parse(field()?).ok_or("the digest is not one")?;
            let chunks = decode_chunks(field()?, size, digest)?;
            Ok(ManifestEntry {
                path: unescape(field()?)?,
                node: ManifestNode::File { mode: bits, size, digest, chunks },
            })
        }
        _ => Err("the line begins with none of d, f, l"),
    }
}

fn decode_xattr(text: &str) -> Result<(String, Vec<u8>), &'static str> {
    let (value, name) = text.split_once(' ').ok_or("a field is missing")?;
    let digits = if value == "-" { "" } else { value };
    let byte = |pair: &[u8]| {
        let digit = |at: usize| (*pair.get(at)? as char).to_digit(16);
        Some((digit(0)? * 16 + digit(1)?) as u8)
    };
    let value = digits.as_bytes().chunks(2).map(byte).collect::<Option<_>>();
    Ok((unescape(name)?, value.ok_or("the value of an attribute is not hexadecimal")?))
}

fn decode_chunks(text: &str, size: u64, digest: Digest) -> Result<Vec<Chunk>, &'static str> {
    match text {
        "-" => Ok(Vec::new()),
        "=" => Ok(vec![Chunk { digest, size: u32::try_from(size).map_err(|_| "the chunk is too large")? }]),
        list => list
            .split(',')
            .map(|item| {
                let (digest, size) = item.split_once(':').ok_or("a chunk lacks its size")?;
                Ok(Chunk {
                    digest: Digest::parse(digest).ok_or("a chunk's digest is not one")?,
                    size: size.parse().map_err(|_| "a chunk's size is not a number")?,
                })
            })
            .collect(),
    }
}

/// Links that a path may lead through, as kernels have it.
const LINKS_FOLLOWED_MAX: usize = 40;

/// Returns whether no link of the tree leads out of it, also by way of others: each by itself may stay inside and both
/// together not. Asked of what is published; members take what was published before this was asked.
///
/// # Errors
/// [`Error::IllegalTree`] with the first one that does.
pub fn check_links(manifest: &Manifest) -> Result<()> {
    let links = manifest.entries.iter().filter_map(|entry| match &entry.node {
        ManifestNode::Symlink { target } => Some((entry.path.as_str(), target.as_str())),
        _ => None,
    });
    let links: BTreeMap<&str, &str> = links.collect();
    links.iter().try_for_each(|(path, target)| {
        follow(&links, path, target)
            .map_err(|why| Error::illegal(path, format!("it is a link to `{target}`, and {why}")))
    })
}

/// Goes where a link leads, as far as that is in the tree.
fn follow(links: &BTreeMap<&str, &str>, path: &str, target: &str) -> Result<(), &'static str> {
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    let mut left: Vec<&str> = target.split('/').rev().collect();
    let mut followed = 0;
    while let Some(part) = left.pop() {
        match part {
            "" | "." => {}
            ".." => drop(at.pop().ok_or("that leads out of the tree")?),
            name => {
                at.push(name);
                let Some(target) = links.get(at.join("/").as_str()) else { continue };
                followed += 1;
                if followed > LINKS_FOLLOWED_MAX {
                    // In a circle: nobody gets anywhere by it.
                    return Ok(());
                }
                at.pop();
                left.extend(target.split('/').rev());
            }
        }
    }
    Ok(())
}

/// Returns whether this machine would put `manifest` on its disk.
///
/// # Errors
/// [`Error::IllegalTree`] for an illegal path, mode, depth or chunk list; [`Error::TooLarge`] above the limits.
pub fn check(manifest: &Manifest) -> Result<()> {
    let bounded = |what, size, limit| if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) };
    bounded("paths of a set", manifest.entries.len() as u64, ENTRIES_MAX as u64)?;
    manifest.check()?;
    let (files, bytes) = manifest.totals();
    bounded("files of a set", files, FILES_MAX)?;
    bounded("bytes of a set", bytes, SET_BYTES_MAX)?;
    let is_file = |path: &str| {
        let at = manifest.entries.binary_search_by(|entry| entry.path.as_str().cmp(path));
        at.is_ok_and(|at| matches!(manifest.entries[at].node, ManifestNode::File { .. }))
    };
    for (path, xattrs) in manifest.xattrs.iter().flatten() {
        if !is_file(path) {
            return Err(Error::illegal(path, "it has attributes and is no file of the set"));
        }
        xattr::check(path, xattrs)?;
    }
    for entry in &manifest.entries {
        if entry.path.split('/').count() > DEPTH_MAX {
            return Err(Error::illegal(&entry.path, format!("it is more than {DEPTH_MAX} directories deep")));
        }
        let ManifestNode::File { size, digest, chunks, .. } = &entry.node else { continue };
        let whole = match chunks.as_slice() {
            [] => *digest == digest_of(&[]),
            [one] => one.digest == *digest && u64::from(one.size) == *size,
            _ => true,
        };
        if !whole {
            return Err(Error::illegal(&entry.path, "its only chunk is not the file"));
        }
        if chunks.iter().any(|chunk| chunk.size == 0 || chunk.size as usize > CHUNK_BYTES_MAX) {
            return Err(Error::illegal(&entry.path, format!("a chunk is not of 1 to {CHUNK_BYTES_MAX} bytes")));
        }
    }
    Ok(())
}

/// Control characters and the backslash are written as `\` and two hexadecimal digits.
fn escape(text: &mut String, path: &str) {
    let is_odd = |byte: u8| byte.is_ascii_control() || byte == b'\\';
    if !path.bytes().any(is_odd) {
        return text.push_str(path);
    }
    for c in path.chars() {
        if c.is_ascii_control() || c == '\\' {
            let _ = write!(text, "\\{:02x}", c as u32);
        } else {
            text.push(c);
        }
    }
}

fn unescape(text: &str) -> Result<String, &'static str> {
    let mut path = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        path.push_str(plain);
        let code = escaped.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        path.push(code.filter(u8::is_ascii).ok_or("an escape is not two hexadecimal digits")?.into());
        rest = &escaped[2..];
    }
    path.push_str(rest);
    Ok(path)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
