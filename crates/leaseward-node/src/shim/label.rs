//! What `ps` shows of a shim: its last argument is a place that is written over once it knows its server.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// Shows a name as the last argument of this process, as far as there is room.
pub(super) fn show(name: &str) -> Result<()> {
    let odd = || Error::from(ErrorKind::InvalidData);
    let line = std::fs::read("/proc/self/cmdline")?;
    let room = line.strip_suffix(&[0]).and_then(|line| line.rsplit(|byte| *byte == 0).next()).ok_or_else(odd)?.len();
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let end = end_of_arguments(&stat).ok_or_else(odd)?;
    let shown: Vec<u8> = name.bytes().chain(std::iter::repeat(b' ')).take(room).collect();
    let begin = end.checked_sub(room as u64 + 1).ok_or_else(odd)?;
    File::options().write(true).open("/proc/self/mem")?.write_all_at(&shown, begin)
}

/// Returns the 49th field of `/proc/<pid>/stat`: where the arguments end. The second one may hold anything.
fn end_of_arguments(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(46)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_arguments_is_the_49th_field() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(end_of_arguments(&format!("1 (a) b) {}", fields.join(" "))), Some(49));
        assert_eq!(end_of_arguments("1 (a) 2 3"), None);
    }
}
