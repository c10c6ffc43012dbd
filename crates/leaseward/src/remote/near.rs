//! The near side: runs ssh, and opens the connections to the voters that the far agent asks for.
//!
//! Must stay true: it connects to voters of this cluster and to nothing else; it decides nothing and renews nothing. A
//! stream that is silent or not understood is dropped and made anew; a far agent that comes back within its time to
//! live goes on with its servers.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use leaseward_raft::net::transport::{Duplex, Transport};
use leaseward_state::MachineName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::Client;
use crate::limits::{NOISE_BYTES_MAX, SENTINEL_WITHIN, SILENCE, SSH_AGAIN};
use crate::remote::frame::Decoder;
use crate::remote::mux::{Accepted, Dial, Over, Stream, carry};
use crate::remote::sentinel::{STREAM, Scanner};
use crate::remote::ssh::Ssh;

/// What the near side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NearHello {
    /// The machine that the far side is.
    pub(crate) machine: String,
    pub(crate) version: String,
}

/// What the far side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FarHello {
    pub(crate) version: String,
}

/// A machine with our program on it.
#[derive(Debug, Clone)]
pub struct Carried {
    /// The machine.
    pub machine: MachineName,
    /// How it is reached.
    pub ssh: Ssh,
    /// What is run there; a forced command in `authorized_keys` has the last word.
    pub command: String,
}

/// The voters, by number: whatever number the far side names, it gets one of them.
#[derive(Clone)]
struct Voters {
    client: Client,
    transport: Transport,
}

impl Dial for Voters {
    type Connection = Box<dyn Duplex>;

    async fn dial(&self, voter: u8) -> io::Result<Box<dyn Duplex>> {
        let addresses = self.client.addresses();
        let none = || io::Error::new(io::ErrorKind::NotFound, "no voter is known");
        let at = usize::from(voter).checked_rem(addresses.len()).ok_or_else(none)?;
        self.transport.connect(&addresses[at]).await
    }
}

impl Carried {
    /// Keeps the machine connected until `stop` is cancelled. `client` knows the voters; nothing is asked through it.
    pub async fn run(self, client: Client, transport: Transport, stop: CancellationToken) {
        let mut pause = SSH_AGAIN.0;
        let mut last = String::new();
        loop {
            let began = Instant::now();
            let why = tokio::select! {
                why = self.once(&client, transport) => why,
                () = stop.cancelled() => return,
            };
            if began.elapsed() > SSH_AGAIN.1 * 2 {
                pause = SSH_AGAIN.0;
            }
            // A machine that is in use by another one of us says so again and again.
            if why == last {
                debug!(machine = %self.machine, "{why}");
            } else {
                warn!(machine = %self.machine, destination = self.ssh.destination, "{why}");
            }
            last = why;
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(SSH_AGAIN.1);
        }
    }

    /// Runs ssh once. Returns why it is over, with a code.
    async fn once(&self, client: &Client, transport: Transport) -> String {
        let mut child = match self.ssh.command(&self.command).spawn() {
            Ok(child) => child,
            Err(error) => return format!("LW0373: ssh cannot be started: {error}"),
        };
        let (Some(write), Some(mut read), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return "LW0373: ssh has no pipes".to_owned();
        };
        let words = tokio::spawn(follow_errors(errors, self.machine.clone()));
        let decoder = match timeout(SENTINEL_WITHIN, skip_noise(&mut read)).await {
            Ok(Ok(decoder)) => decoder,
            Ok(Err(why)) => return failed(&why, child, words).await,
            Err(_) => {
                let why = format!("our program did not speak within {} s", SENTINEL_WITHIN.as_secs());
                return failed(&why, child, words).await;
            }
        };
        let mut stream = Stream { read, write, decoder };
        let hello = NearHello { machine: self.machine.to_string(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let hello = serde_json::to_vec(&hello).unwrap_or_default();
        let over = match stream.greet(hello, SENTINEL_WITHIN).await {
            Ok(far) => {
                let far: Option<FarHello> = serde_json::from_slice(&far).ok();
                let version = far.map_or_else(String::new, |far| far.version);
                info!(machine = %self.machine, destination = self.ssh.destination, version, "connected by ssh");
                let voters = Voters { client: client.clone(), transport };
                let (_keep, nothing) = mpsc::channel::<Accepted<DuplexStream>>(1);
                carry(stream, nothing, Some(voters), SILENCE).await
            }
            Err(over) => over,
        };
        match over {
            Over::Ended => failed("the far side ended", child, words).await.replacen("LW0370", "LW0371", 1),
            over => over.to_string(),
        }
    }
}

/// Reads until the sentinel. Returns what followed it.
async fn skip_noise(read: &mut (impl AsyncRead + Unpin)) -> Result<Decoder, String> {
    let mut scanner = Scanner::new(STREAM);
    let mut piece = vec![0; 4_096];
    loop {
        let count = read.read(&mut piece).await.map_err(|error| error.to_string())?;
        let rest = match count {
            0 => return Err(format!("the login ended before our program spoke; it said: {:?}", scanner.noise())),
            count => scanner.feed(&piece[..count]),
        };
        match rest {
            Ok(Some(rest)) => {
                let mut decoder = Decoder::default();
                decoder.feed(&rest);
                return Ok(decoder);
            }
            Ok(None) => {}
            Err(_) => {
                let noise = scanner.noise();
                return Err(format!("more than {NOISE_BYTES_MAX} bytes before our program spoke: … {noise:?}"));
            }
        }
    }
}

/// Ends ssh. Returns what is known of its end.
async fn failed(why: &str, mut child: Child, words: tokio::task::JoinHandle<String>) -> String {
    let ended = timeout(Duration::from_millis(500), child.wait()).await;
    child.start_kill().ok();
    let exit = match ended {
        Ok(Ok(status)) => exit_words(status),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    let said = timeout(Duration::from_millis(500), words).await.ok().and_then(Result::ok).unwrap_or_default();
    let said = if said.is_empty() { said } else { format!("; ssh said: {said}") };
    format!("LW0370: {why}{exit}{said}")
}

/// ssh itself failed with 255; any other code is the far program's.
pub(crate) fn exit_words(status: ExitStatus) -> String {
    match status.code() {
        Some(255) => "; ssh failed (255)".to_owned(),
        Some(code) => format!("; the far side exited with {code}"),
        None => "; ssh was killed".to_owned(),
    }
}

/// Passes on what the far side says on its standard error. Returns the last line.
async fn follow_errors(read: impl AsyncRead + Unpin, machine: MachineName) -> String {
    let mut lines = Lines::new(read);
    let mut last = String::new();
    while let Some(line) = lines.next().await {
        if !line.trim().is_empty() {
            info!(%machine, "far: {line}");
            last = line;
        }
    }
    last
}

/// Lines of bounded length.
struct Lines<R> {
    read: R,
    waiting: Vec<u8>,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    const LONGEST: usize = 4_096;

    fn new(read: R) -> Self {
        Self { read, waiting: Vec::new(), ended: false }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            let end = self.waiting.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let end = end.or_else(|| (self.waiting.len() >= Self::LONGEST || self.ended).then_some(self.waiting.len()));
            match end {
                Some(0) if self.ended => return None,
                Some(end) => {
                    let line: Vec<u8> = self.waiting.drain(..end).collect();
                    return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                None => {}
            }
            let mut piece = [0; 1_024];
            match self.read.read(&mut piece).await {
                Ok(count) if count > 0 => self.waiting.extend_from_slice(&piece[..count]),
                _ => self.ended = true,
            }
        }
    }
}
