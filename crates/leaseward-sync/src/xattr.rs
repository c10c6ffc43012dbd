//! Extended attributes of files, where a set keeps them: those that any program may set (`user.*`).
//!
//! Must stay true: they are set on a fresh inode only, before it has its name, and never on one that another version
//! shares; a file system that does not keep them is an error and no silence.
//! Left out on purpose: attributes of the system (`security.*`, `trusted.*`, lists of access rights), which belong to the
//! machine; those of directories and links.

use std::fs::File;
use std::path::Path;

use leaseward_state::config::Xattrs;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use crate::dir::Dir;
use crate::error::{Error, Result, at};
use crate::limits::{XATTR_BYTES_MAX, XATTR_LIST_BYTES_MAX, XATTRS_MAX};

/// What every name begins with.
const USER: &str = "user.";

/// Returns the attributes of a file; none where the file system keeps none.
pub(crate) fn read(file: &File, path: &Path) -> Result<Xattrs> {
    let mut list = Vec::with_capacity(XATTR_LIST_BYTES_MAX);
    match flistxattr(file, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        Err(error) => return Err(at("list the attributes of", path)(error)),
    }
    let mut found = Xattrs::new();
    for name in list.split(|byte| *byte == 0).filter(|name| name.starts_with(USER.as_bytes())) {
        let name = std::str::from_utf8(name)
            .map_err(|_| Error::illegal(path, "the name of one of its attributes is not UTF-8"))?;
        let mut value = Vec::with_capacity(XATTR_BYTES_MAX + 1);
        match fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => found.insert(name.to_owned(), value),
            // It went away meanwhile.
            Err(Errno::NODATA) => continue,
            Err(Errno::RANGE) => return Err(too_much(path)),
            Err(error) => return Err(at("read an attribute of", path)(error)),
        };
    }
    Ok(found)
}

/// Gives a fresh file its attributes.
pub(crate) fn write(file: &File, xattrs: &Xattrs, path: &Path) -> Result<()> {
    for (name, value) in xattrs {
        match fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP) => return Err(Error::NoXattrs { path: path.to_owned() }),
            Err(error) => return Err(at("set an attribute of", path)(error)),
        }
    }
    Ok(())
}

/// Gives the file at `to` the attributes of the one at `from`.
///
/// # Errors
/// [`Error::NoXattrs`] if it has some and the file system of `to` keeps none, [`Error::Io`].
pub fn copy_xattrs(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).map_err(at("open", path));
    write(&open(to)?, &read(&open(from)?, from)?, to)
}

/// Gives the file at `path` below `root` these attributes. Nothing is reached through a link.
///
/// # Errors
/// [`Error::IllegalTree`] for what no version keeps, [`Error::NoXattrs`] if the file system keeps none, [`Error::Io`].
pub fn write_xattrs(root: &Path, path: &str, xattrs: &Xattrs) -> Result<()> {
    if xattrs.is_empty() {
        return Ok(());
    }
    check(path, xattrs)?;
    write(&Dir::open(root)?.file(path)?, xattrs, &root.join(path))
}

/// Returns whether a version may name these attributes of a file.
pub(crate) fn check(path: &str, xattrs: &Xattrs) -> Result<()> {
    if xattrs.is_empty() || xattrs.keys().any(|name| name.len() <= USER.len() || !name.starts_with(USER)) {
        return Err(Error::illegal(path, "only attributes whose names begin with `user.` are kept"));
    }
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if xattrs.len() > XATTRS_MAX || bytes > XATTR_BYTES_MAX || xattrs.keys().any(|name| name.contains('\0')) {
        return Err(too_much(Path::new(path)));
    }
    Ok(())
}

fn too_much(path: &Path) -> Error {
    let why = format!("its attributes are more than {XATTRS_MAX}, or have more than {XATTR_BYTES_MAX} bytes together");
    Error::illegal(path, why)
}

#[cfg(test)]
#[path = "xattr_tests.rs"]
mod tests;
