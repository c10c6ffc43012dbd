//! `leaseward agent`: the daemon. A voter, a machine, or both, as the settings say.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leaseward::agent::{Agent, AgentConfig};
use leaseward::client::Client;
use leaseward::readiness::Readiness;
use leaseward::voter::Voter;
use leaseward::{MachineName, SetName};
use leaseward_http::Api;
use leaseward_sync::secret::{Key, Keys};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::diagnostic::Diagnostic;
use crate::settings::{Role, Settings};
use crate::telemetry;

/// Runs until SIGTERM or SIGINT. Servers go on then; their shims end them when their lease runs out.
pub(crate) async fn run(settings: Settings) -> Result<(), Diagnostic> {
    telemetry::init(&settings.log);
    raise_file_limit();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let voter = match settings.node.role {
        Role::Voter | Role::Witness => Some(start_voter(&settings, &mut tasks).await?),
        Role::Member => None,
    };
    if settings.is_machine() {
        let mut config = agent_config(&settings)?;
        config.blobs = voter.as_ref().map(|voter| Arc::clone(voter.content().store()));
        answer_load_balancers(&settings, &config, &mut tasks).await?;
        let mut addresses = settings.cluster.join.clone();
        if voter.is_some() {
            addresses.insert(0, settings.peer_listen().to_string());
        }
        let client = Client::new(addresses, settings.transport());
        let (agent, adopted) = Agent::open(config, client.clone()).await?;
        tasks.spawn(learn_addresses(client));
        let stop = stop.clone();
        tasks.spawn(async move { agent.run(adopted, stop).await });
    }
    stopped().await;
    info!("stopping; servers go on until their deadlines");
    stop.cancel();
    if let Some(voter) = voter {
        voter.stop().await;
    }
    tasks.abort_all();
    Ok(())
}

async fn start_voter(settings: &Settings, tasks: &mut JoinSet<()>) -> Result<Arc<Voter>, Diagnostic> {
    let listener = tokio::net::TcpListener::bind(settings.node.listen).await.map_err(|error| {
        Diagnostic::new("LW0600", format!("cannot listen on {}: {error}", settings.node.listen))
            .hint("another process may have the port; set node.listen")
    })?;
    let (replica, start) = settings.replica();
    let voter = Arc::new(Voter::start_keeping(replica, start, settings.storage.content_kept.0).await?);
    let api = Api::new(voter.replica().clone(), Arc::new(crate::content::FromVoter(voter.content().clone())));
    info!(api = %settings.node.listen, peers = %settings.peer_listen(), node = voter.replica().node(), "voter is open");
    if let Some(path) = settings.socket() {
        serve_locally(&path, api.clone(), tasks);
    }
    tasks.spawn(async move {
        if let Err(error) = leaseward_http::serve(listener, api).await {
            error!(%error, "the API stopped");
        }
    });
    Ok(voter)
}

/// Serves the API on a UNIX socket too, if that can be done: nothing else depends on it.
fn serve_locally(path: &Path, api: Api, tasks: &mut JoinSet<()>) {
    match bind(path) {
        Ok(Some(listener)) => {
            let own = rustix::process::geteuid().as_raw();
            info!(socket = %path.display(), "the API is open on this machine");
            tasks.spawn(async move {
                if let Err(error) = leaseward_http::serve_local(listener, api, own).await {
                    error!(%error, "the API on the local socket stopped");
                }
            });
        }
        Ok(None) => warn!(socket = %path.display(), "another agent has the local socket; going on without it"),
        Err(error) => warn!(socket = %path.display(), %error, "no local socket; going on without it"),
    }
}

/// Returns the listener, unless somebody listens there already. What a dead agent left there is replaced.
fn bind(path: &Path) -> std::io::Result<Option<UnixListener>> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Ok(None);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Some(listener))
}

pub(crate) fn agent_config(settings: &Settings) -> Result<AgentConfig, Diagnostic> {
    let name = MachineName::new(settings.node.name.clone())
        .map_err(|error| Diagnostic::new("LW0101", format!("node.name: {error}")))?;
    let shim = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("leaseward"));
    let mut config = AgentConfig::new(name, settings.node.data.join("agent"), shim);
    if let Some(dir) = &settings.machine.run_dir {
        config.run_dir.clone_from(dir);
    }
    if let Some(dir) = &settings.machine.config_dir {
        config.config_dir.clone_from(dir);
    }
    for (set, path) in &settings.machine.targets {
        let set = SetName::new(set.clone()).map_err(|error| Diagnostic::new("LW0101", error.to_string()))?;
        config.targets.insert(set, path.clone());
    }
    let keys = settings.machine.keys.iter().map(|path| Key::read(path)).collect::<Result<Vec<_>, _>>();
    config.keys = Keys::new(keys.map_err(|error| Diagnostic::new(error.code(), error.to_string()))?);
    let asked = settings.machine.readiness.is_some();
    config.readiness = Readiness::new(settings.machine.session_ports.clone(), asked);
    config.real_time = settings.machine.real_time;
    config.ttl = settings.timing.lease_ttl.0;
    config.labels.clone_from(&settings.machine.labels);
    config.interfaces.clone_from(&settings.machine.interfaces);
    config.network_fence = settings.machine.network_fence;
    let timeout = settings.machine.watchdog_timeout.0;
    config.watchdog = settings.machine.watchdog.clone().map(|device| (device, timeout));
    config.capacity = settings.machine.capacity;
    config.start_slots = settings.machine.start_slots.unwrap_or(config.start_slots);
    config.address = settings.node.advertise.clone().unwrap_or_else(|| settings.node.listen.ip().to_string());
    Ok(config)
}

/// Tells load balancers whether this machine should get requests, where the settings ask for it.
async fn answer_load_balancers(
    settings: &Settings,
    config: &AgentConfig,
    tasks: &mut JoinSet<()>,
) -> Result<(), Diagnostic> {
    let Some(address) = settings.machine.readiness else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Diagnostic::new("LW0600", format!("cannot listen on {address}: {error}"))
            .hint("another process may have the port; set machine.readiness")
    })?;
    info!(%address, "load balancers may ask here");
    tasks.spawn(Arc::clone(&config.readiness).serve(listener));
    Ok(())
}

/// Keeps the agent's address book up to date, so that it finds voters that joined later.
pub(crate) async fn learn_addresses(client: Client) {
    loop {
        client.learn().await.ok();
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
}

pub(crate) async fn stopped() {
    let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
    let mut int = signal(SignalKind::interrupt()).expect("signals can be listened to");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Ends this process when its parent ends. For clusters that somebody plays with.
pub(crate) fn die_with_parent() {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
}

/// Sessions and watchers are sockets: as many as we are permitted.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).ok();
}
