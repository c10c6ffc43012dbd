//! Which addresses this machine has claimed, as a new agent finds it.
//!
//! Must stay true: a record is there before its address and goes after it, so that every address of ours has one.
//! The directory is emptied by a boot, as the addresses are.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use leaseward_state::name::ServerName;
use leaseward_state::token::FencingToken;
use serde::{Deserialize, Serialize};

use super::error::{AddressError, failed};
use crate::files;

const SUFFIX: &str = "address";

/// One claimed address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) ip: IpAddr,
    pub(super) interface: String,
    pub(super) server: ServerName,
    pub(super) token: FencingToken,
    pub(super) tickle: bool,
    pub(super) network_fence: bool,
}

/// The directory of the records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), AddressError> {
        let written = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        written.and_then(|()| files::write(&self.path(record.ip), record)).map_err(failed("record an address"))
    }

    pub(super) fn of(&self, ip: IpAddr) -> Option<Record> {
        files::read(&self.path(ip)).ok()
    }

    /// Returns all of them, by address. What is unreadable is named in the log and left alone.
    pub(super) fn all(&self) -> Result<Vec<Record>, AddressError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list the recorded addresses"))?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed("list the recorded addresses"))?.path();
            if path.extension().is_none_or(|extension| extension != SUFFIX) {
                continue;
            }
            match files::read::<Record>(&path) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a recorded address is unreadable"),
            }
        }
        records.sort_by_key(|record| record.ip);
        Ok(records)
    }

    pub(super) fn remove(&self, ip: IpAddr) -> Result<(), AddressError> {
        match fs::remove_file(self.path(ip)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("forget an address")(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(format!("{ip}.{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("addresses"));
        assert_eq!(records.all().unwrap(), []);
        let record = |ip: &str| Record {
            ip: ip.parse().unwrap(),
            interface: "eth0".to_owned(),
            server: ServerName::new("pay-1").unwrap(),
            token: FencingToken(7),
            tickle: true,
            network_fence: false,
        };
        let (four, six) = (record("10.9.0.100"), record("fd09::100"));
        records.write(&six).unwrap();
        records.write(&four).unwrap();
        fs::write(dir.path().join("addresses/10.9.0.101.address"), "{").unwrap();
        assert_eq!(records.all().unwrap(), [four.clone(), six.clone()]);
        records.remove(four.ip).unwrap();
        records.remove(four.ip).unwrap();
        assert_eq!((records.of(four.ip), records.of(six.ip)), (None, Some(six)));
    }
}
