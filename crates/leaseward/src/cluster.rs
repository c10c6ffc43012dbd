//! What a program holds: a cluster, the same way whether it is embedded or far away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::net::transport::Transport;
use leaseward_raft::random;
use leaseward_raft::{Settings, Start};
use leaseward_state::command::Acquire;
use leaseward_state::{Command, LeaseName, Reply, SessionId};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::clock::Moment;
use crate::config_watch::ConfigWatch;
use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::lease::Lease;
use crate::limits::TTL;
use crate::voter::Voter;

/// A cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// The voter inside this program, if there is one.
    voter: Option<Arc<Voter>>,
    name: String,
}

impl Cluster {
    /// Returns the cluster at these peer addresses, `host:port` separated by commas. Connects when first asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no node answers there.
    pub async fn connect(addresses: &str) -> Result<Self> {
        let addresses = addresses.split(',').map(|address| address.trim().to_owned()).collect();
        let client = Client::new(addresses, Transport::PlainLoopback);
        client.learn().await?;
        Ok(Self { client, voter: None, name: program_name() })
    }

    /// Returns a builder of a cluster node inside this program.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the cluster behind a client.
    #[must_use]
    pub fn with_client(client: Client) -> Self {
        Self { client, voter: None, name: program_name() }
    }

    /// Returns a request for a lease.
    ///
    /// # Errors
    /// [`Error::Name`] if it cannot be a lease's name.
    pub fn lease(&self, name: impl Into<String>) -> Result<LeaseRequest> {
        Ok(LeaseRequest {
            client: self.client.clone(),
            lease: LeaseName::new(name)?,
            ttl: TTL,
            stop_budget: None,
            priority: 0,
            lock_delay: Duration::ZERO,
            meta: Default::default(),
            owner: self.name.clone(),
        })
    }

    /// Returns a config file that this program follows, typed. The ending of its name says how it is read: `.toml` or
    /// `.json`. Its newest version counts as applied, unless the program says otherwise; from then on the program stands in
    /// `leaseward config monitor`.
    ///
    /// A program is no machine: it gets the file as it was published for all, and the version that everybody has. While a
    /// rollout is under way that is the one before; a pin of a machine is not about programs, one of all members is.
    ///
    /// ```no_run
    /// # #[derive(Debug, serde::Deserialize)] struct Limits { max: u32 }
    /// # fn apply(_: &Limits) -> Result<(), String> { Ok(()) }
    /// # async fn program() -> leaseward::Result<()> {
    /// let cluster = leaseward::Cluster::connect("127.0.0.1:7421,127.0.0.1:7422,127.0.0.1:7423").await?;
    /// let mut limits = cluster.config::<Limits>("app", "limits.toml").await?;
    /// println!("{:?}", limits.current());
    /// loop {
    ///     let new = limits.changed().await?; // only versions that parse arrive here
    ///     match apply(&new.value) {
    ///         Ok(()) => limits.applied(new.version).await?,         // green in the sync monitor
    ///         Err(why) => limits.rejected(new.version, why).await?, // red, with this text
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// Cancel safe: nothing is followed then.
    ///
    /// # Errors
    /// [`Error::Config`]: LW0101 if nobody knows how to read such a file, LW0404 if the set, a version for everybody or the
    /// file does not exist, LW0815 if the newest version does not parse, LW0808 if the file is too large, LW0814 for a set
    /// with templates or a key. A version that is refused so stands in the monitor for ten seconds, in the ledger for
    /// longer. [`Error::Name`]; [`Error::Unavailable`] and others if the cluster does not answer.
    pub async fn config<T: DeserializeOwned>(&self, set: &str, file: &str) -> Result<ConfigWatch<T>> {
        ConfigWatch::start(&self.client, &self.name, set, file).await
    }

    /// Returns the client of the framed protocol.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the voter inside this program, if there is one.
    #[must_use]
    pub fn voter(&self) -> Option<&Arc<Voter>> {
        self.voter.as_ref()
    }
}

/// What this program calls itself in `lease ls`.
fn program_name() -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    format!("{} (pid {})", name.unwrap_or_else(|| "program".into()), std::process::id())
}

/// Builds a node inside this program.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    name: Option<String>,
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    peers: Vec<String>,
    fast: bool,
}

impl Builder {
    /// Names the node.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Says where its data lives.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data = Some(path.into());
        self
    }

    /// Says where it listens for peers.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Names nodes of the cluster to join; without any it begins a new one.
    #[must_use]
    pub fn peers<S: Into<String>>(mut self, peers: impl IntoIterator<Item = S>) -> Self {
        self.peers = peers.into_iter().map(Into::into).collect();
        self
    }

    /// Uses short timeouts, for nodes next to each other and for tests.
    #[must_use]
    pub fn fast(mut self) -> Self {
        self.fast = true;
        self
    }

    /// Starts the node and waits until it takes part.
    ///
    /// # Errors
    /// [`Error::Start`], with a stable code.
    pub async fn start(self) -> Result<Cluster> {
        let missing = |what: &str| Error::Start { code: "LW0104".into(), why: format!("the builder needs {what}") };
        let listen = self.listen.ok_or_else(|| missing("listen()"))?;
        let data = self.data.ok_or_else(|| missing("data_dir()"))?;
        let name = self.name.unwrap_or_else(program_name);
        let mut settings = Settings::new(name.clone(), data, listen);
        if self.fast {
            settings.timing = leaseward_raft::Timing::fast();
        }
        let start = if self.peers.is_empty() {
            Start::Bootstrap
        } else {
            Start::Join { addresses: self.peers.clone(), replace: false }
        };
        let address = settings.advertise.clone();
        let voter = Voter::start(settings, start).await?;
        voter.replica().ready().await;
        let mut addresses = vec![address];
        addresses.extend(self.peers);
        let client = Client::new(addresses, Transport::PlainLoopback);
        Ok(Cluster { client, voter: Some(Arc::new(voter)), name })
    }
}

/// A request for a lease.
#[derive(Clone)]
pub struct LeaseRequest {
    client: Client,
    lease: LeaseName,
    ttl: Duration,
    stop_budget: Option<Duration>,
    priority: i32,
    lock_delay: Duration,
    meta: std::collections::BTreeMap<String, String>,
    owner: String,
}

impl LeaseRequest {
    /// Sets the time to live: after a crash, others wait this long. Default 3 s, floor 200 ms.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how much time stopping takes: `lost` fires this long before the lease can be granted again. Default: a
    /// quarter of the time to live.
    #[must_use]
    pub fn stop_budget(mut self, budget: Duration) -> Self {
        self.stop_budget = Some(budget);
        self
    }

    /// Sets the place in the queue: higher goes first.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how long nobody gets the lease after it expired, for effects that may still be on their way.
    #[must_use]
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.lock_delay = delay;
        self
    }

    /// Adds a note for people who look at the lease.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// Sets what the holder calls itself. Default: the program and its process id.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// Waits for the lease, however long it takes. Dropping the future leaves the queue when the session ends.
    ///
    /// # Errors
    /// [`Error`], if the cluster does not answer or says no.
    pub async fn acquire(self) -> Result<Lease> {
        match self.acquire_until(None).await? {
            Some(lease) => Ok(lease),
            None => Err(Error::NotGranted),
        }
    }

    /// Waits for the lease at most this long.
    ///
    /// # Errors
    /// [`Error::NotGranted`] when the time is over; otherwise as [`LeaseRequest::acquire`].
    pub async fn acquire_timeout(self, within: Duration) -> Result<Lease> {
        self.acquire_until(Some(Instant::now() + within)).await?.ok_or(Error::NotGranted)
    }

    /// Takes the lease if nobody has it.
    ///
    /// # Errors
    /// [`Error`], if the cluster does not answer or says no.
    pub async fn try_acquire(self) -> Result<Option<Lease>> {
        match self.acquire_until(Some(Instant::now())).await {
            Err(Error::Refused(leaseward_state::Refusal::Held { .. } | leaseward_state::Refusal::Delayed { .. })) => {
                Ok(None)
            }
            other => other,
        }
    }

    async fn acquire_until(self, deadline: Option<Instant>) -> Result<Option<Lease>> {
        let ttl_ms = self.ttl.as_millis() as u64;
        let holder = format!("{:016x}", random::unique() as u64);
        let acquire = Acquire {
            lease: self.lease.clone(),
            session: SessionId(0),
            holder: format!("{}#{holder}", self.owner.chars().take(96).collect::<String>()),
            wait: deadline.is_none_or(|deadline| deadline > Instant::now()),
            priority: self.priority,
            lock_delay_ms: self.lock_delay.as_millis() as u64,
            meta: self.meta.clone(),
        };
        // Rule R1 holds for the opening too: the clock is read before it is sent.
        let sent = Moment::now();
        let command = Command::AcquireOpening { name: self.owner.clone(), ttl_ms, acquire };
        let strange = || Error::Failed { code: "LW0701".into(), why: "a strange answer".into() };
        let Reply::Atomic(replies) = self.client.write(command).await? else { return Err(strange()) };
        let (Some(Reply::Session(session)), Some(reply)) = (replies.first(), replies.get(1)) else {
            return Err(strange());
        };
        let session = *session;
        let keeper = Keeper::start(self.client.clone(), session, self.ttl, sent);
        let token = match reply {
            Reply::Granted { grant, .. } => Some(grant.token),
            _ => self.wait_for_grant(&keeper, deadline).await?,
        };
        let Some(token) = token else {
            self.client.write(Command::EndSession { session }).await.ok();
            return Ok(None);
        };
        let budget = self.stop_budget.unwrap_or(self.ttl / 4);
        Ok(Some(Lease::new(self.client, keeper, self.lease, token, budget)))
    }

    /// The answers to renewals say what the session holds; the grant shows up there.
    async fn wait_for_grant(
        &self,
        keeper: &Keeper,
        deadline: Option<Instant>,
    ) -> Result<Option<leaseward_state::FencingToken>> {
        let mut standing = keeper.standing();
        // Often enough that a waiter's turn is not wasted, seldom enough that waiting costs the leader nothing.
        let look = (keeper.ttl() / 16).clamp(Duration::from_millis(20), Duration::from_millis(250));
        loop {
            {
                let now = standing.borrow_and_update();
                if let Some(token) = now.held.get(&self.lease) {
                    return Ok(Some(*token));
                }
                if now.over {
                    return Err(Error::Unavailable("the session ended while it waited".into()));
                }
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(None);
            }
            let wake = Instant::now() + look;
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return Err(Error::Unknown) },
                () = sleep_until(deadline.map_or(wake, |deadline| wake.min(deadline))) => keeper.renew_now(),
            }
        }
    }
}
