//! How everything stood in a directory when single files were staged beside it, and whether it still does. What somebody
//! changed by hand in a set is put aside before a version takes its place.
//!
//! Must stay true: a file that was touched between the look and now does not look the same, however well that is hidden;
//! what only its owner may read, as secrets are, is put into no other file.
//! Left out on purpose: what others have in the same directories, and paths that programs write themselves.

use std::collections::BTreeMap;
use std::path::Path;

use leaseward_state::config::Digest;

use crate::apply::Stamp;
use crate::dir::{Dir, Kind, Parents, hash_file, is_shut, kind};
use crate::error::{Error, Result, at};
use crate::limits::FOUND_BYTES_MAX;

/// What stands at a path; `None`: nothing does.
type Look = Option<Stands>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stands {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    /// The same for every directory: others write in it.
    stamp: Stamp,
    /// Of a file that was changed so lately that another change may bear the same stamp.
    digest: Option<Digest>,
}

/// How some paths stood.
#[derive(Debug, Default)]
pub(super) struct Stood(BTreeMap<String, Look>);

impl Stood {
    /// Looks at some paths. To be done before anything is concluded from what stands there.
    pub(super) fn look<'a>(root: &Dir, paths: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut parents = Parents::new(root);
        paths.map(|path| Ok((path.to_owned(), look(&mut parents, path, is_young)?))).collect::<Result<_>>().map(Self)
    }

    /// # Errors
    /// [`Error::Changed`] with the first path at which something else stands now.
    pub(super) fn check(&self, root: &Dir) -> Result<()> {
        let mut parents = Parents::new(root);
        for (path, then) in &self.0 {
            let was_young = then.as_ref().is_some_and(|then| then.digest.is_some());
            // What cannot be looked at is not as it was, either.
            if !look(&mut parents, path, |_| was_young).is_ok_and(|now| now == *then) {
                return Err(Error::Changed { path: root.path().join(path) });
            }
        }
        Ok(())
    }
}

fn is_young(stamp: &Stamp) -> bool {
    !stamp.is_old_enough()
}

/// Looks at a path. `reads`: whether a file that looks so is read besides.
fn look(parents: &mut Parents<'_>, path: &str, reads: impl Fn(&Stamp) -> bool) -> Result<Look> {
    let (dir, name) = match parents.of(path) {
        // Nothing of ours stands below what is no directory.
        Err(error) if is_shut(&error) => return Ok(None),
        found => found?,
    };
    let Some(stat) = dir.stat(name)? else { return Ok(None) };
    let kind = kind(&stat);
    let stamp = if kind == Kind::Directory { Stamp::default() } else { Stamp::of(&stat) };
    let digest = match kind {
        Kind::File if reads(&stamp) => Some(hash_file(&mut dir.file(name)?, &dir.path().join(name))?),
        _ => None,
    };
    Ok(Some(Stands { kind, mode: stat.st_mode & 0o7777, owner: (stat.st_uid, stat.st_gid), stamp, digest }))
}

/// Copies files that somebody changed by hand to `into`, in place of what was put aside there before. Those that are or were
/// for their owner alone (`true`), and what is beyond the bound, are said and not kept.
pub(super) fn put_aside(root: &Dir, paths: &[(String, bool)], state_dir: &Dir, into: &str) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    state_dir.remove_tree(into)?;
    let aside = state_dir.mkdir(into)?;
    let mut left = FOUND_BYTES_MAX;
    for (path, is_private) in paths {
        let kept = if *is_private { None } else { copy(root, path, &aside, &mut left)? };
        let path = root.path().join(path);
        tracing::warn!(path = %path.display(), kept = kept.map(|kept| kept.display().to_string()),
            "changed by hand: the version takes its place");
    }
    aside.sync()?;
    state_dir.sync()
}

/// Copies one file, and returns where to, if it may be kept.
fn copy(root: &Dir, path: &str, aside: &Dir, left: &mut u64) -> Result<Option<std::path::PathBuf>> {
    let (mut parents, flat) = (Parents::new(root), path.replace('%', "%25").replace('/', "%2F"));
    let Ok((dir, name)) = parents.of(path) else { return Ok(None) };
    let Some(stat) = dir.stat(name)? else { return Ok(None) };
    let size = stat.st_size as u64;
    let name_fits = flat.len() <= 255;
    if kind(&stat) != Kind::File || stat.st_mode & 0o077 == 0 || size > *left || !name_fits {
        return Ok(None);
    }
    let to = aside.path().join(&flat);
    let mut from = dir.file(name)?;
    // For nobody but whoever this is.
    let mut file = aside.create(&flat)?;
    // One that grows meanwhile is kept as far as it fits.
    let bytes = std::io::copy(&mut std::io::Read::take(&mut from, *left), &mut file).map_err(at("copy", &to))?;
    *left -= bytes;
    file.sync_all().map_err(at("sync", Path::new(&to)))?;
    Ok(Some(to))
}
