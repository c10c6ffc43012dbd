//! Making ready for a server that another machine may lose: look whether it could start here, and run its hook.
//!
//! Must stay true: nothing that belongs to a server's owner is touched: no mount, no address, no process of it. A start
//! ends the preparation first, with everything that it started.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use leaseward_state::name::ServerName;
use leaseward_state::server::{HookStep, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::task::JoinSet;

use super::{NodeConfig, Supervisor};
use crate::files::{self, Files};
use crate::hook::{Alone, end_left_over};
use crate::shim::DEFAULT_PATH;

impl Supervisor {
    /// Makes ready for a server that runs elsewhere under `token`, and may be lost there: looks for its program and
    /// for the interfaces of its addresses, and runs its hook `prepare`. Dropped half way, the hook runs on;
    /// [`Self::end_preparation`] ends it.
    ///
    /// # Errors
    /// What is missing here.
    pub async fn prepare(&self, server: &ServerName, spec: &ServerSpec, token: FencingToken) -> Result<(), String> {
        let config: &Arc<NodeConfig> = &self.config;
        let program = spec.command.first().map_or("", String::as_str);
        if !is_executable(program, spec) {
            return Err(format!("there is no program {program}"));
        }
        for address in &spec.addresses {
            self.addresses.interface_of(address).await.map_err(|error| error.to_string())?;
        }
        let Some(hook) = spec.hooks.get(&HookStep::Prepare) else { return Ok(()) };
        let words = |all: Vec<&str>| all.join(" ");
        let ours = [
            ("LEASEWARD_SERVER", server.to_string()),
            ("LEASEWARD_MACHINE", config.machine.to_string()),
            ("LEASEWARD_TOKEN", token.to_string()),
            ("LEASEWARD_STEP", HookStep::Prepare.name().to_owned()),
            ("LEASEWARD_OPERATION_ID", format!("{server}:{token}:prepare")),
            ("LEASEWARD_ADDRESSES", words(spec.addresses.iter().map(|each| each.ip.as_str()).collect())),
            ("LEASEWARD_MOUNTS", words(spec.mounts.iter().map(|each| each.at.as_str()).collect())),
        ];
        let mut environment: BTreeMap<String, String> = spec.environment.clone();
        environment.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        let log = files::log_path(&config.log_dir, server);
        let record = Files::of(&config.run_dir, server.as_str()).preparation();
        Alone { step: HookStep::Prepare, hook, environment, log, record }.run().await
    }

    /// Keeps asking whether anybody has the addresses of a server that may be lost elsewhere, until it is dropped: once
    /// its owner is silent, they can be claimed here without asking.
    pub async fn keep_an_eye_on(&self, spec: &ServerSpec) {
        let mut eyes = JoinSet::new();
        for address in spec.addresses.clone() {
            let addresses = self.addresses.clone();
            eyes.spawn(async move { addresses.keep_an_eye_on(&address).await });
        }
        while eyes.join_next().await.is_some() {}
    }

    /// Ends a preparation that may be under way, with everything that it started.
    ///
    /// # Errors
    /// Why something of it may live on.
    pub async fn end_preparation(&self, server: &ServerName) -> Result<(), String> {
        end_left_over(Files::of(&self.config.run_dir, server.as_str()).preparation()).await
    }
}

fn is_executable(program: &str, spec: &ServerSpec) -> bool {
    use rustix::fs::{Access, access};
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    let directory = Path::new(spec.directory.as_deref().unwrap_or("/"));
    if program.contains('/') {
        return runs(&directory.join(program));
    }
    let path = spec.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    path.split(':').any(|dir| runs(&directory.join(dir).join(program)))
}
