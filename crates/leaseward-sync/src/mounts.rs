//! What is mounted inside the directories of a set.
//!
//! Must stay true: a tree in which another file system is mounted is not moved, as the mount would move with it, away from the
//! programs that use it and to where trees are removed. Looking touches nothing that is mounted.
//! Left out on purpose: other mount namespaces, where the kernel takes mounts off what is renamed or removed; and a mount that
//! is made between the look and the move, which is seen by the next look.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::dir::Dir;
use crate::error::{Error, Result, at};

/// # Errors
/// [`Error::OtherFileSystem`] with the first place at or below one of these names in `parent` where something is mounted.
pub(crate) fn refuse_below(parent: &Dir, names: &[&str]) -> Result<()> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read(table).map_err(at("read", table))?;
    for point in points(&String::from_utf8_lossy(&text)) {
        let Ok(relative) = point.strip_prefix(parent.path()) else { continue };
        let is_inside = names.iter().any(|name| relative.starts_with(name));
        // One that another mount hides is not there for anybody.
        if is_inside && parent.is_across(relative)? {
            return Err(Error::OtherFileSystem { path: point });
        }
    }
    Ok(())
}

/// Returns the places of a mount table, in its order.
fn points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

/// The kernel writes a space, a tab, a newline and a backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let (mut bytes, mut plain) = (field.as_bytes(), Vec::new());
    while let Some((first, rest)) = bytes.split_first() {
        let code = rest.get(..3).and_then(|code| std::str::from_utf8(code).ok()).filter(|_| *first == b'\\');
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                bytes = &rest[3..];
            }
            None => {
                plain.push(*first);
                bytes = rest;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

/// A file system of a test's own at `path`, gone when dropped; `None` for who may not mount.
#[cfg(test)]
pub(crate) mod testing {
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    pub(crate) struct Mount(PathBuf);

    impl Mount {
        pub(crate) fn at(path: &Path) -> Option<Self> {
            std::fs::create_dir_all(path).unwrap();
            match mount(Some("test"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>) {
                Ok(()) => Some(Self(path.to_owned())),
                Err(Errno::EPERM) => {
                    println!("LEFT OUT: mounts need root");
                    None
                }
                Err(error) => panic!("mount at {}: {error}", path.display()),
            }
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn places_of_a_mount_table_are_read_with_their_escapes() {
        let table = "27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n30 27 0:30 /x /a\\040b/\\134 rw - tmpfs none rw\nnonsense\n";
        let found: Vec<_> = points(table).collect();
        assert_eq!(found, [Path::new("/"), Path::new("/a b/\\")]);
    }
}
