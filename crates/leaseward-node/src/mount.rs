//! What is mounted here, by the kernel's own table; and who keeps a mount busy.
//!
//! Must stay true: a mount counts as gone only when neither our mount table nor, where it says so, that of another
//! process has it. Nothing is ever unmounted lazily. Before it is mounted, a file system is told from another by its
//! device, however the operator wrote it: by path, by link, by label, or as the file behind a loop device. From then on
//! by what the kernel calls it: names lead elsewhere when a path to a disk is lost, and a mount moves with the directory
//! that it stands in when that is renamed. Reading a table touches no file system that is mounted, so a dead server of a
//! remote one does not hang us here.

mod holders;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use leaseward_state::server::Mount;
use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub(crate) use holders::{holders, mounted_elsewhere};

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    pub(crate) source: String,
    /// The kernel's number of the file system, `major:minor`.
    number: String,
    mount: MountId,
    /// Whether what is mounted below it is also mounted in copies of it in other mount namespaces.
    shared: bool,
}

/// What the kernel calls a file system for as long as it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    number: String,
    source: String,
    /// None in what an agent noted that did not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mount: Option<MountId>,
}

/// Tells one mount from all others of this moment, wherever its place is moved or renamed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MountId {
    /// Given to another mount once this one is gone.
    id: u64,
    /// Which directory of the file system it shows.
    root: PathBuf,
}

impl Mounted {
    pub(crate) fn identity(&self) -> Identity {
        Identity { number: self.number.clone(), source: self.source.clone(), mount: Some(self.mount.clone()) }
    }

    /// Returns whether it is the very mount that was seen, wherever it stands now.
    pub(crate) fn is_still(&self, seen: &Identity) -> bool {
        self.has_number_of(seen) && seen.mount.as_ref() == Some(&self.mount)
    }

    /// Returns whether it may be what was seen before. One of the two is enough: btrfs changes its source when another
    /// path to its disk comes up.
    pub(crate) fn may_be(&self, seen: &Identity) -> bool {
        self.has_number_of(seen) || self.source == seen.source
    }

    fn has_number_of(&self, seen: &Identity) -> bool {
        self.number == seen.number
    }
}

/// Reads this process's mount table, in the order of mounting: of several at one place the last one is on top.
pub(crate) fn table() -> io::Result<Vec<Mounted>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(text: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let id = left.next()?.parse().ok()?;
        let number = left.nth(1)?.to_owned();
        let mount = MountId { id, root: PathBuf::from(unescape(left.next()?)) };
        let point = PathBuf::from(unescape(left.next()?));
        let shared = left.skip(1).any(|tag| tag.starts_with("shared:"));
        let source = unescape(right.split(' ').nth(1)?).to_string_lossy().into_owned();
        Some(Mounted { point, source, number, mount, shared })
    };
    text.lines().filter_map(line).collect()
}

/// The kernel writes a space, a tab, a newline and a backslash as three octal digits.
fn unescape(field: &str) -> OsString {
    let (bytes, mut plain) = (field.as_bytes(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let code = field.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Returns a place as the mount table names it. Looks at its parents only.
pub(crate) fn place(at: &str) -> PathBuf {
    let at = Path::new(at);
    let resolved =
        at.parent().zip(at.file_name()).and_then(|(parent, name)| Some(parent.canonicalize().ok()?.join(name)));
    resolved.unwrap_or_else(|| at.to_owned())
}

/// Returns whether a line of a table is what `mount` asks for.
pub(crate) fn is_from(found: &Mounted, mount: &Mount) -> bool {
    if mount.options.iter().any(|option| option == "bind" || option == "rbind") {
        let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        return inode(Path::new(&mount.device)).is_some_and(|wanted| inode(&found.point) == Some(wanted));
    }
    if found.source == mount.device || found.source.trim_end_matches('/') == mount.device.trim_end_matches('/') {
        return true;
    }
    let Ok(wanted) = device(&mount.device).canonicalize() else { return false };
    let source = Path::new(&found.source);
    source.canonicalize().is_ok_and(|source| source == wanted)
        || backing_file(source).is_some_and(|file| file == wanted)
}

/// Returns the path of a device that is named by a label or an id.
fn device(name: &str) -> PathBuf {
    for (tag, dir) in
        [("UUID=", "by-uuid"), ("LABEL=", "by-label"), ("PARTUUID=", "by-partuuid"), ("PARTLABEL=", "by-partlabel")]
    {
        if let Some(value) = name.strip_prefix(tag) {
            return Path::new("/dev/disk").join(dir).join(value.trim_matches('"'));
        }
    }
    PathBuf::from(name)
}

/// Returns the file behind a loop device.
fn backing_file(source: &Path) -> Option<PathBuf> {
    let name = source.strip_prefix("/dev").ok()?.to_str().filter(|name| name.starts_with("loop"))?;
    let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(file.trim_end_matches('\n')))
}

/// Sees to it that what is unmounted here is also unmounted in the mount namespaces of servers that start later: they
/// copy the table, and a copy that stays keeps the device in use. systemd does this for the whole machine; where
/// nobody did, the file system that `point` lies in is made shared.
pub(crate) fn let_unmounts_spread(table: &[Mounted], point: &Path) {
    let around = table.iter().filter(|found| point.starts_with(&found.point));
    let Some(around) = around.max_by_key(|found| found.point.as_os_str().len()) else { return };
    if around.shared {
        return;
    }
    let none = None::<&str>;
    match nix::mount::mount(none, &around.point, none, MsFlags::MS_SHARED, none) {
        Ok(()) => info!(at = %around.point.display(), "made shared, so that unmounts reach every server's namespace"),
        Err(errno) => warn!(at = %around.point.display(), why = errno.desc(), "cannot be made shared"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_its_escapes_and_tags() {
        let text = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    30 27 0:30 /x /a\\040b rw - tmpfs none rw\n\
                    31 27 0:31 / /c rw shared:2 master:1 - nfs host:/e rw\nnonsense\n";
        let line = |id, root: &str, point: &str, source: &str, number: &str, shared| Mounted {
            point: point.into(),
            source: source.into(),
            number: number.into(),
            mount: MountId { id, root: root.into() },
            shared,
        };
        let [root, plain, remote] = [
            line(27, "/", "/", "/dev/vda", "254:0", true),
            line(30, "/x", "/a b", "none", "0:30", false),
            line(31, "/", "/c", "host:/e", "0:31", true),
        ];
        assert_eq!(parse(text), [root, plain, remote]);
    }

    #[test]
    fn a_mount_is_known_wherever_it_is_moved_and_its_id_alone_is_no_proof() {
        let one = |line: &str| parse(line).remove(0);
        let seen = one("30 27 8:1 / /a/data rw - ext4 /dev/sdb1 rw").identity();
        assert!(one("30 27 8:1 / /b/data ro - ext4 /dev/sdb1 rw").is_still(&seen));
        for other in [
            "31 27 8:1 / /b/data rw - ext4 /dev/sdb1 rw",
            "30 27 8:2 / /b/data rw - ext4 /dev/sdb1 rw",
            "30 27 8:1 /part /b/data rw - ext4 /dev/sdb1 rw",
        ] {
            assert!(!one(other).is_still(&seen), "{other}");
        }
        // What an earlier release noted.
        let old: Identity = serde_json::from_str(r#"{"number":"8:1","source":"/dev/sdb1"}"#).unwrap();
        let found = one("30 27 8:1 / /a/data rw - ext4 /dev/sdb1 rw");
        assert!(found.may_be(&old) && !found.is_still(&old));
        let noted = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&noted).unwrap(), seen);
    }

    #[test]
    fn a_device_is_known_by_each_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, link) = (dir.path().join("disk"), dir.path().join("link"));
        fs::write(&disk, "").unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let found = |source: &str| parse(&format!("30 27 8:1 / /x rw - ext4 {source} rw")).remove(0);
        let mount = |device: &str| Mount {
            device: device.into(),
            at: "/x".into(),
            fs_type: "ext4".into(),
            options: Vec::new(),
        };
        assert!(is_from(&found(disk.to_str().unwrap()), &mount(link.to_str().unwrap())));
        assert!(is_from(&found("host:/export"), &mount("host:/export/")));
        assert!(!is_from(&found("host:/export"), &mount("host:/other")));
        assert!(!is_from(&found("/dev/sdb1"), &mount(disk.to_str().unwrap())));
        assert_eq!(device("LABEL=\"data\""), Path::new("/dev/disk/by-label/data"));
    }
}
