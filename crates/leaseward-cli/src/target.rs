//! Which cluster a command means: flags, then the environment, then the context, then this machine (by the agent's
//! socket first).
//!
//! Must stay true: a context holds several addresses, so a dead node never blinds the command line.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use leaseward::client::Client;
use leaseward_raft::net::transport::Transport;
use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;

/// The API of a node on this machine.
const DEFAULT_API: &str = "127.0.0.1:7420";

/// Where the agent of this machine serves root and its own user.
pub(crate) const SOCKET: &str = "/run/leaseward/agent.sock";

/// Which cluster is meant.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Addresses of APIs, `host:port` or `unix:/path`, nearest first.
    pub(crate) api: Vec<String>,
    /// How long an answer may take.
    pub(crate) timeout: Duration,
}

/// The contexts file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that is used if none is named.
    pub(crate) current: Option<String>,
    /// By name.
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Context {
    /// Addresses of APIs, `host:port`.
    pub(crate) api: Vec<String>,
}

impl Contexts {
    /// Where the file is.
    pub(crate) fn path() -> PathBuf {
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
            .unwrap_or_else(|| PathBuf::from("/etc"));
        base.join("leaseward").join("contexts.toml")
    }

    /// Reads the file; none is as good as an empty one.
    pub(crate) fn load() -> Result<Self, Diagnostic> {
        let path = Self::path();
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Diagnostic::new("LW0104", format!("{}: {}", path.display(), error.message()))
                    .hint("mend the file, or remove it")
            }),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Writes the file.
    pub(crate) fn save(&self) -> Result<(), Diagnostic> {
        let path = Self::path();
        let failed = |error: String| Diagnostic::new("LW0100", format!("cannot write {}: {error}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        }
        let text = toml::to_string_pretty(self).map_err(|error| failed(error.to_string()))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|error| failed(error.to_string()))
    }
}

impl Target {
    /// Returns the cluster that the flags, the environment and the contexts file mean.
    pub(crate) fn resolve(addr: Option<&str>, context: Option<&str>, timeout: Duration) -> Result<Self, Diagnostic> {
        if let Some(addr) = addr {
            let api = addr.split(',').map(|one| strip(one.trim()).to_owned()).collect();
            return Ok(Self { api, timeout });
        }
        let contexts = Contexts::load()?;
        let name = context.map(str::to_owned).or_else(|| contexts.current.clone());
        let api = match name {
            Some(name) => match contexts.contexts.get(&name) {
                Some(context) => context.api.clone(),
                None => {
                    return Err(Diagnostic::new("LW0404", format!("there is no context `{name}`"))
                        .hint("leaseward context ls      see which there are"));
                }
            },
            None => local(),
        };
        Ok(Self { api, timeout })
    }

    /// Returns a client of the framed protocol of the cluster.
    pub(crate) async fn client(&self) -> Result<Client, Diagnostic> {
        let nodes = crate::api::Api::new(self).nodes().await?;
        let addresses: Vec<String> = nodes.into_iter().map(|node| node.peer_address).collect();
        let client = Client::new(addresses, Transport::PlainAnywhere);
        Ok(client)
    }
}

/// The agent of this machine: by its socket if there is one, then by its port.
fn local() -> Vec<String> {
    let socket = std::env::var_os("LEASEWARD_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let there = std::fs::metadata(&socket).is_ok_and(|found| found.file_type().is_socket());
    let socket = there.then(|| format!("unix:{}", socket.display()));
    socket.into_iter().chain([DEFAULT_API.to_owned()]).collect()
}

fn strip(address: &str) -> &str {
    address.trim_start_matches("http://").trim_end_matches('/')
}
