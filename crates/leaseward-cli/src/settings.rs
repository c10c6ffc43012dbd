//! The settings file of a node: one TOML, every key with a default, unknown keys refused with a suggestion.
//!
//! Must stay true: `Settings::default()` runs; [`Settings::parse`] is the one gate, and its messages name the key and
//! the fix. Servers and config sets are not here: they are objects of the cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_raft::net::transport::Transport;
use leaseward_raft::{Standing, Start, Timing};
use serde::Deserialize;

use crate::diagnostic::Diagnostic;

/// The settings of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) node: Node,
    pub(crate) cluster: Cluster,
    pub(crate) timing: TimingSettings,
    pub(crate) machine: Machine,
    pub(crate) tls: Tls,
    pub(crate) log: Log,
    pub(crate) storage: Storage,
}

/// The least that snapshots and the log behind them may be set to, in bytes: a snapshot for each entry serves nobody.
const STORAGE_BYTES_MIN: u64 = 1 << 20;

/// The least time that content which no version names yet must stay: a small publication on a slow disk.
const CONTENT_KEPT_MIN: Duration = Duration::from_secs(30);

/// Where a node that is told nothing else keeps its data. One agent of a machine can.
const DATA: &str = "/var/lib/leaseward";

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    /// What people call it. Default: the host's name.
    pub(crate) name: String,
    /// `voter` stores the log; `witness` does, and runs no servers; `member` runs servers and keeps config sets only.
    pub(crate) role: Role,
    /// The API.
    pub(crate) listen: SocketAddr,
    /// Peers and clients of the framed protocol. Default: the API's port plus one.
    pub(crate) peer_listen: Option<SocketAddr>,
    /// Where others reach this node. Default: what it listens on.
    pub(crate) advertise: Option<String>,
    /// The API for root and this user on this machine; empty: none. Default: `/run/leaseward/agent.sock` for root, if
    /// `data` is the default too.
    pub(crate) socket: Option<PathBuf>,
    /// Everything it stores.
    pub(crate) data: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: host_name(),
            role: Role::Voter,
            listen: SocketAddr::from(([127, 0, 0, 1], 7420)),
            peer_listen: None,
            advertise: None,
            socket: None,
            data: PathBuf::from(DATA),
        }
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// It stores the log and votes, or stands by so that an odd number votes.
    Voter,
    /// It stores the log and votes where voters are too few; it runs no servers.
    Witness,
    /// It runs servers and keeps config sets.
    Member,
}

/// The cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cluster {
    /// Peer addresses of nodes to join. A voter without any begins a new cluster.
    pub(crate) join: Vec<String>,
    /// Whether a voter takes the place of the one of its name, whose disk is gone.
    pub(crate) replace: bool,
}

/// How patient everything is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TimingSettings {
    /// `default`, `fast` or `wan`.
    pub(crate) profile: Profile,
    /// Time to live of the machine's session.
    pub(crate) lease_ttl: Text,
}

impl Default for TimingSettings {
    fn default() -> Self {
        Self { profile: Profile::Default, lease_ttl: Text(Duration::from_secs(3)) }
    }
}

/// A set of timings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profile {
    /// For a local network.
    Default,
    /// For machines next to each other.
    Fast,
    /// For machines far apart.
    Wan,
}

/// The machine, if servers and config sets belong on it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Machine {
    /// Whether this node runs servers and keeps config sets.
    pub(crate) enabled: bool,
    /// Free words for placement.
    pub(crate) labels: BTreeMap<String, String>,
    /// The weight of the servers that it can run; any, if not given.
    pub(crate) capacity: Option<u32>,
    /// Servers that it may start at the same time; 0: any.
    pub(crate) start_slots: Option<u32>,
    /// Whether the kernel also stops the packets of addresses whose time is over (fence level F3).
    pub(crate) network_fence: bool,
    /// A device that resets the machine when it is not petted (fence level F4).
    pub(crate) watchdog: Option<PathBuf>,
    /// Its time-out.
    pub(crate) watchdog_timeout: Text,
    /// Interfaces of floating addresses by subnet.
    pub(crate) interfaces: BTreeMap<String, String>,
    /// Sockets and proofs of running servers; best on a tmpfs.
    pub(crate) run_dir: Option<PathBuf>,
    /// Where config sets live.
    pub(crate) config_dir: Option<PathBuf>,
    /// Where single config sets live.
    pub(crate) targets: BTreeMap<String, PathBuf>,
    /// Whether shims may use real-time priority.
    pub(crate) real_time: bool,
    /// Files with the keys of encrypted config sets that this machine may read.
    pub(crate) keys: Vec<PathBuf>,
    /// Where load balancers ask whether they should send requests here: HAProxy's agent check, and `GET /readyz`.
    pub(crate) readiness: Option<SocketAddr>,
    /// Ports of this machine whose connections are waited for before it leaves its load balancer.
    pub(crate) session_ports: Vec<u16>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            enabled: true,
            labels: BTreeMap::new(),
            capacity: None,
            start_slots: None,
            network_fence: false,
            watchdog: None,
            watchdog_timeout: Text(Duration::from_secs(10)),
            interfaces: BTreeMap::new(),
            run_dir: None,
            config_dir: None,
            targets: BTreeMap::new(),
            real_time: true,
            keys: Vec::new(),
            readiness: None,
            session_ports: Vec::new(),
        }
    }
}

/// Encryption.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    /// Whether unencrypted connections may leave this machine. Only on a network that you trust.
    pub(crate) plain: bool,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// `auto`, `text` or `json`.
    pub(crate) format: Format,
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,leaseward_raft=debug`.
    pub(crate) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Format::Auto, level: "info".into() }
    }
}

/// What a voter keeps on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Storage {
    /// Log bytes after which a snapshot is made.
    pub(crate) snapshot_after_bytes: u64,
    /// Log bytes kept behind a snapshot. Less: a voter that was away briefly needs the whole snapshot.
    pub(crate) log_bytes_kept: u64,
    /// Content that no version names stays for so long, in case that a publication still builds on it.
    pub(crate) content_kept: Text,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            snapshot_after_bytes: leaseward_raft::limits::SNAPSHOT_AFTER_BYTES,
            log_bytes_kept: leaseward_raft::limits::LOG_BYTES_KEPT,
            content_kept: Text(leaseward::limits::PROMISED_FOR),
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Text(pub(crate) Duration);

impl TryFrom<String> for Text {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        crate::duration::parse(&text).map(Self)
    }
}

impl Settings {
    /// Reads a settings file.
    pub(crate) fn read(path: &Path) -> Result<Self, Diagnostic> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Diagnostic::new("LW0100", format!("cannot read {}: {error}", path.display()))
                .hint("name another file with --config, or make this one")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Returns the settings that `text` says; everything else at its default.
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self, Diagnostic> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            let code = if error.message().starts_with("unknown field") { "LW0103" } else { "LW0104" };
            let place = error.span().map_or_else(String::new, |span| {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                format!(" line {line}")
            });
            let diagnostic = Diagnostic::new(code, format!("{origin}{place}: {}", error.message()));
            match suggestion(error.message()) {
                Some(known) => diagnostic.hint(format!("did you mean `{known}`?")),
                None => diagnostic.hint("config/leaseward.toml in the sources shows every key"),
            }
        })?;
        settings.validate()?;
        Ok(settings)
    }

    fn validate(&self) -> Result<(), Diagnostic> {
        let bad = |key: &str, why: String, fix: &str| {
            Err(Diagnostic::new("LW0104", format!("{key}: {why}")).hint(fix.to_owned()))
        };
        if let Err(error) = leaseward::MachineName::new(self.node.name.clone()) {
            return bad("node.name", error.to_string(), "set node.name to a plain name such as \"n1\"");
        }
        let ttl = self.timing.lease_ttl.0;
        if ttl < Duration::from_millis(leaseward_state::limits::TTL_MS_MIN) {
            return Err(Diagnostic::new("LW0102", format!("timing.lease_ttl: {ttl:?} is below the floor of 200 ms"))
                .hint("a shorter one would end leases by mistake on a busy machine"));
        }
        if self.node.role == Role::Witness && self.cluster.join.is_empty() {
            return bad("cluster.join", "a witness begins no cluster".into(), "name at least one voter, host:port");
        }
        if self.node.role == Role::Member && self.cluster.join.is_empty() {
            return bad("cluster.join", "a member needs nodes to join".into(), "name at least one voter, host:port");
        }
        let storage = &self.storage;
        for (key, bytes) in
            [("snapshot_after_bytes", storage.snapshot_after_bytes), ("log_bytes_kept", storage.log_bytes_kept)]
        {
            if bytes < STORAGE_BYTES_MIN {
                let fix = format!("set storage.{key} to {STORAGE_BYTES_MIN} or more");
                return bad(&format!("storage.{key}"), format!("{bytes} bytes are less than one large entry"), &fix);
            }
        }
        if storage.content_kept.0 < CONTENT_KEPT_MIN {
            let why = format!("{:?} is less than a publication may take", storage.content_kept.0);
            return bad("storage.content_kept", why, "set it to \"30s\" or more; \"1h\" is usual");
        }
        for set in self.machine.targets.keys() {
            if let Err(error) = leaseward::SetName::new(set.clone()) {
                return bad("machine.targets", error.to_string(), "use the config set's name as the key");
            }
        }
        Ok(())
    }

    /// Where this node listens for peers.
    pub(crate) fn peer_listen(&self) -> SocketAddr {
        self.node.peer_listen.unwrap_or_else(|| {
            let mut address = self.node.listen;
            address.set_port(address.port().saturating_add(1));
            address
        })
    }

    /// Where the local socket is, if there should be one.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.node.socket {
            Some(path) => Some(path.clone()).filter(|path| !path.as_os_str().is_empty()),
            // Other agents of this machine, such as those of a test, leave the well-known place alone.
            None => {
                let is_the_one = rustix::process::geteuid().is_root() && self.node.data == Path::new(DATA);
                is_the_one.then(|| PathBuf::from(crate::target::SOCKET))
            }
        }
    }

    /// How the replica of this node runs.
    pub(crate) fn replica(&self) -> (leaseward_raft::Settings, Start) {
        let listen = self.peer_listen();
        let mut settings = leaseward_raft::Settings::new(self.node.name.clone(), &self.node.data, listen);
        if let Some(advertise) = &self.node.advertise {
            settings.advertise = format!("{advertise}:{}", listen.port());
        }
        settings.api_address = match &self.node.advertise {
            Some(advertise) => format!("{advertise}:{}", self.node.listen.port()),
            None => self.node.listen.to_string(),
        };
        if self.node.role == Role::Witness {
            settings.standing = Standing::Witness;
        }
        settings.timing = self.timing.profile.timing();
        settings.snapshot_after_bytes = self.storage.snapshot_after_bytes;
        settings.log_bytes_kept = self.storage.log_bytes_kept;
        settings.transport = self.transport();
        let start = if self.cluster.join.is_empty() {
            Start::Bootstrap
        } else {
            Start::Join { addresses: self.cluster.join.clone(), replace: self.cluster.replace }
        };
        (settings, start)
    }

    /// Whether this node runs servers and keeps config sets.
    pub(crate) fn is_machine(&self) -> bool {
        self.machine.enabled && self.node.role != Role::Witness
    }

    /// Whether connections may leave the machine.
    pub(crate) fn transport(&self) -> Transport {
        if self.tls.plain { Transport::PlainAnywhere } else { Transport::PlainLoopback }
    }
}

impl Profile {
    fn timing(self) -> Timing {
        match self {
            Self::Default => Timing::default(),
            Self::Fast => Timing::fast(),
            Self::Wan => Timing::wan(),
        }
    }
}

/// Returns the expected key that is nearest to the unknown one in a message of the TOML reader.
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let nearest = quoted.min_by_key(|known| distance(unknown, known))?;
    (distance(unknown, nearest) <= 3).then(|| nearest.to_owned())
}

/// Returns how many letters must change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if leaseward::MachineName::new(name.clone()).is_ok() { name } else { "node".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_says_the_defaults() {
        let text = include_str!("../../../config/leaseward.toml");
        let mut shown = Settings::parse(text, "config/leaseward.toml").expect("it parses");
        shown.node.name = Settings::default().node.name;
        assert_eq!(shown, Settings::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_key_that_was_meant() {
        let refused = Settings::parse("[node]\nlsten = \"127.0.0.1:1\"\n", "x.toml").expect_err("refused");
        assert_eq!(refused.code, "LW0103");
        assert!(refused.to_string().contains("did you mean `listen`"), "{refused}");
        assert!(refused.to_string().contains("x.toml line 2"), "{refused}");
    }

    #[test]
    fn storage_settings_are_taken_on_and_have_a_floor() {
        let some = "[storage]\nsnapshot_after_bytes = 2097152\nlog_bytes_kept = 1048576\ncontent_kept = \"30s\"\n";
        let (replica, _) = Settings::parse(some, "x.toml").expect("it parses").replica();
        assert_eq!((replica.snapshot_after_bytes, replica.log_bytes_kept), (2 << 20, 1 << 20));
        for (low, key) in [
            ("snapshot_after_bytes = 1048575", "storage.snapshot_after_bytes"),
            ("log_bytes_kept = 0", "storage.log_bytes_kept"),
            ("content_kept = \"29s\"", "storage.content_kept"),
        ] {
            let refused = Settings::parse(&format!("[storage]\n{low}\n"), "x.toml").expect_err("refused");
            assert_eq!(refused.code, "LW0104");
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }

    #[test]
    fn a_ttl_below_the_floor_is_refused() {
        let refused = Settings::parse("[timing]\nlease_ttl = \"100ms\"\n", "x.toml").expect_err("refused");
        assert_eq!(refused.code, "LW0102");
    }
}
