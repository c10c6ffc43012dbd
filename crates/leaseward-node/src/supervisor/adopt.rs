//! Taking over a run directory: who lives, who is dying, who is gone.
//!
//! Must stay true: nothing is started here; a file is removed only with proof that what it speaks of is over; a shim
//! that lives but does not answer is ended, since nobody could extend it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Certificate, Exit};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::owner::Owner;
use super::{Adopted, NodeConfig, NodeEvent};
use crate::Result;
use crate::clock::{BootInstant, boot_id};
use crate::error::{Error, io_error};
use crate::files::{self, ExitRecord, Files, Live};
use crate::launch;
use crate::process::Pidfd;
use crate::protocol::{Order, Work};
use crate::surroundings;

impl Owner {
    /// Takes over the run directory.
    pub(super) async fn open(mut config: NodeConfig, events: mpsc::Sender<NodeEvent>) -> Result<(Self, Vec<Adopted>)> {
        config.run_dir = make_dir(&config.run_dir, 0o700)?;
        config.log_dir = make_dir(&config.log_dir, 0o750)?;
        let run_dir = config.run_dir.clone();
        for dir in [&config.run_dir, &config.log_dir] {
            let why = match dir.to_str() {
                None => "must be UTF-8",
                Some(path) if dir == &run_dir && path.len() > files::run_dir_bytes_max() => "is too long for sockets",
                Some(_) => continue,
            };
            return Err(Error::BadOrder { server: "*".to_owned(), why: format!("{} {why}", dir.display()) });
        }
        let lock = lock(&run_dir)?;
        let boot_id = boot_id().map_err(io_error("read", "/proc/sys/kernel/random/boot_id"))?;
        let mut owner = Self::new(config, boot_id, events, lock);
        let mut adopted = Vec::new();
        for server in servers(&run_dir)? {
            adopted.extend(owner.take_over(&Files::of(&run_dir, &server), &server).await?);
        }
        owner.sweep_addresses().await;
        Ok((owner, adopted))
    }

    /// Takes away the addresses of servers that are not here, and takes over those of servers that are.
    async fn sweep_addresses(&self) {
        let here = self.entries.keys().cloned().collect();
        match self.addresses.sweep(&here).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => info!(?gone, "removed the addresses of servers that are not here"),
            Err(error) => error!(%error, "addresses of an earlier agent may still be here"),
        }
        for (server, entry) in &self.entries {
            if entry.spec.addresses.is_empty() || entry.deadline == BootInstant(0) {
                continue;
            }
            if let Err(error) = self.addresses.extend(server, entry.deadline).await {
                warn!(%server, %error, "could not extend its addresses");
            }
            self.addresses.announce(server);
        }
    }

    async fn take_over(&mut self, files: &Files, server: &str) -> Result<Option<Adopted>> {
        let running = launch::find(files, &self.boot_id).await;
        // After the shim has answered, or is known not to: it writes this before it answers.
        let live: Option<Live> = files::read(&files.live()).ok().filter(|live: &Live| {
            // After a boot nothing lives, and process ids mean others.
            live.order.boot_id == self.boot_id
        });
        let Some(live) = live else {
            self.take_over_end(files)?;
            return Ok(None);
        };
        let Work::Server { spec, .. } = &live.order.work else {
            return Ok(None);
        };
        let Ok(name) = ServerName::new(live.order.server.clone()) else {
            return Ok(None);
        };
        match running {
            Ok(running) if running.status.init == live.init && running.status.token == live.order.token => {
                let status = &running.status;
                info!(%server, token = %status.token, deadline = %status.deadline, "server adopted");
                let adopted = Adopted {
                    server: name.clone(),
                    token: status.token,
                    pid: status.server_pid,
                    deadline: status.deadline,
                    attempt: status.attempt,
                    spec: (**spec).clone(),
                };
                self.adopt(&name, &live.order, (**spec).clone(), running);
                return Ok(Some(adopted));
            }
            Ok(_) => {
                warn!(%server, "another shim answers than the one on record; ending the one on record");
            }
            Err(why) => info!(%server, why, "no shim answers; proving its server's end"),
        }
        let open = |process: crate::process::ProcessId| process.open().map_err(io_error("open", "/proc"));
        let (init, shim) = (open(live.init)?, open(live.shim)?);
        for process in [&shim, &init] {
            process.iter().for_each(Pidfd::kill);
        }
        for process in [&init, &shim].into_iter().flatten() {
            process.ended().await.map_err(io_error("watch", "/proc"))?;
        }
        let exit = files.exit_of(live.init, &self.boot_id).map_or(Exit::Unseen, |record| record.exit);
        files.forget_live();
        let certificate = Certificate {
            token: live.order.token,
            boot_id: self.boot_id.clone(),
            proven_at_boottime_ns: BootInstant::now().0,
            exit,
        };
        self.adopt_end(&name, (**spec).clone(), live.order.attempt, certificate);
        Ok(None)
    }

    /// Takes in the record of an end, if it is of this boot; removes what is not.
    fn take_over_end(&mut self, files: &Files) -> Result<()> {
        files.forget_live();
        let ended = files::read::<ExitRecord>(&files.exit()).ok();
        let stands = surroundings::record(files).unwrap_or_else(|why| {
            error!(why, "nobody knows what stands around a server: look for its mounts and addresses by hand");
            None
        });
        if let Some(stands) = stands {
            if stands.order.boot_id != self.boot_id {
                // A boot leaves no mount, no address and no process.
                for path in [files.around(), files.hook()] {
                    let _ = fs::remove_file(path);
                }
            } else if !ended.as_ref().is_some_and(|ended| ended.order.is_same_run(&stands.order)) {
                // Its agent was killed before its shim let it run: without a record no shim did, and none will while
                // the way down holds the server's lock.
                self.take_over_beginning(stands.order);
                return Ok(());
            }
        }
        let Some(ExitRecord { order, at, exit, .. }) = ended else {
            return Ok(());
        };
        if order.boot_id != self.boot_id {
            return fs::remove_file(files.exit()).map_err(io_error("remove", files.exit()));
        }
        let (Work::Server { spec, .. }, Ok(name)) = (order.work, ServerName::new(order.server)) else {
            return Ok(());
        };
        let (token, boot_id) = (order.token, order.boot_id);
        let certificate = Certificate { token, boot_id, proven_at_boottime_ns: at.0, exit };
        self.adopt_end(&name, *spec, order.attempt, certificate);
        Ok(())
    }
}

impl Owner {
    /// Takes in a server that never ran, but whose surroundings may stand.
    fn take_over_beginning(&mut self, order: Order) {
        let (Work::Server { spec, .. }, Ok(name)) = (order.work, ServerName::new(order.server)) else {
            return;
        };
        let (token, boot_id, now) = (order.token, order.boot_id, BootInstant::now());
        let certificate = Certificate { token, boot_id, proven_at_boottime_ns: now.0, exit: Exit::Unseen };
        self.adopt_end(&name, *spec, order.attempt, certificate);
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<std::path::PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io_error("make", path))?;
    fs::canonicalize(path).map_err(io_error("resolve", path))
}

fn lock(run_dir: &Path) -> Result<File> {
    let path = run_dir.join("agent-lock");
    let file = File::options().create(true).append(true).open(&path).map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy { path: run_dir.to_owned() }),
        Err(error) => Err(io_error("lock", path)(error.into())),
    }
}

/// Returns the stems that something is on record for, ascending.
fn servers(run_dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in fs::read_dir(run_dir).map_err(io_error("list", run_dir))? {
        let path = file.map_err(io_error("list", run_dir))?.path();
        let known =
            path.extension().is_some_and(|e| ["sock", "live", "exit", "around"].iter().any(|known| e == *known));
        if let (true, Some(stem)) = (known, path.file_stem().and_then(|stem| stem.to_str())) {
            found.insert(stem.to_owned());
        }
    }
    Ok(found)
}
