//! Which cluster a command means: flags, then the environment, then the context, then this machine (by the agent's
//! socket first).
//!
//! Must stay true: a context holds several addresses, so a dead node never blinds the command line.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward::client::Client;
use leaseward_raft::net::transport::Transport;
use serde::{Deserialize, Serialize};

use crate::args::Global;
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
    /// What says who asks.
    pub(crate) token: Option<String>,
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
    /// The file with the access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
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
    pub(crate) fn resolve(global: &Global) -> Result<Self, Diagnostic> {
        let timeout = global.timeout;
        let token = |file: Option<&PathBuf>| global.token_file.as_ref().or(file).map(|file| token(file)).transpose();
        if let Some(addr) = &global.addr {
            let api = addr.split(',').map(|one| strip(one.trim()).to_owned()).collect();
            return Ok(Self { api, token: token(None)?, timeout });
        }
        let contexts = Contexts::load()?;
        let name = global.context.clone().or_else(|| contexts.current.clone());
        let (api, file) = match name {
            Some(name) => match contexts.contexts.get(&name) {
                Some(context) => (context.api.clone(), context.token_file.clone()),
                None => {
                    return Err(Diagnostic::new("LW0404", format!("there is no context `{name}`"))
                        .hint("leaseward context ls      see which there are"));
                }
            },
            None => (local(), None),
        };
        Ok(Self { api, token: token(file.as_ref())?, timeout })
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

/// Reads an access token.
fn token(file: &Path) -> Result<String, Diagnostic> {
    let failed = |why: String| {
        Diagnostic::new("LW0100", format!("cannot read the token in {}: {why}", file.display()))
            .hint("leaseward token create NAME --role ROLE --to FILE      makes one")
    };
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let token = text.trim();
    match token.starts_with(leaseward_http::access::TOKEN_PREFIX) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token.to_owned()),
        false => Err(failed("it has none".into())),
    }
}

fn strip(address: &str) -> &str {
    address.trim_start_matches("http://").trim_end_matches('/')
}
