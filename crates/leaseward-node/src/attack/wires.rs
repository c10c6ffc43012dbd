//! A network for one round: the machine behind its fence, and a client, each in a namespace, with a cable between.
//!
//! Must stay true: only descriptors and threads of this process hold the namespaces, so nothing of them outlives it,
//! and nothing is sent elsewhere. Who sends and receives at a fenced address is no server and goes on after its
//! deadline; an address stays until the round is over. So what stops the packets is the fence and nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use leaseward_state::server::{Announce, FloatingAddress};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use tokio::task::JoinSet;

use super::Fault;
use crate::address::{AddressError, Addresses, check_network_fence};
use crate::clock::BootInstant;
use crate::limits::{ATTACK_PACKETS_OPEN, ATTACK_PACKETS_PAUSE};

const PROGRAMS: [&str; 4] = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];

/// The interface of both.
const LINK: &str = "eth0";

/// Where packets go at a fenced address.
const PORT: u16 = 7;

/// The places of the machine and of its client in both subnets.
const HOST: u8 = 1;
const CLIENT: u8 = 2;

/// The place of the first server's addresses.
const FLOATING: u8 = 100;

fn addresses(place: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 9, 0, place).into(), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, place.into()).into()]
}

/// Returns the addresses of the n-th server.
pub(super) fn floating(n: usize) -> [IpAddr; 2] {
    addresses(FLOATING.saturating_add(u8::try_from(n).unwrap_or(u8::MAX)))
}

/// Two namespaces with a cable between them.
#[derive(Debug)]
pub(super) struct Wires {
    host: File,
    client: File,
}

/// Finds out whether the network fence can be set up, in a namespace that is gone afterwards.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn try_fence() -> Result<(), String> {
    set_up_fence(&namespace().map_err(|fault| fault.to_string())?)
}

impl Wires {
    /// Makes them.
    ///
    /// # Errors
    /// [`Fault::LeftOut`] with what is missing.
    pub(super) fn make() -> Result<Self, Fault> {
        let wires = Self { host: namespace()?, client: namespace()? };
        set_up_fence(&wires.host).map_err(Fault::LeftOut)?;
        let other_end = format!("/proc/{}/fd/{}", std::process::id(), wires.client.as_raw_fd());
        let cable = format!("link add {LINK} type veth peer name {LINK} netns {other_end}\n");
        for (space, place, before) in [(&wires.host, HOST, cable.as_str()), (&wires.client, CLIENT, "")] {
            let [four, six] = addresses(place);
            let up = format!("link set lo up\nlink set {LINK} up\naddr add {four}/24 dev {LINK}\n");
            ip(space, &format!("{before}{up}addr add {six}/64 dev {LINK} nodad\n"))?;
        }
        Ok(wires)
    }

    /// Runs `work` on a thread of the machine's; processes that it starts are there too.
    pub(super) fn on_host<T: Send>(&self, work: impl FnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
        within(&self.host, work)?
    }

    /// Starts to send from and to the addresses of so many servers.
    pub(super) fn traffic(&self, servers: usize) -> Result<Traffic<'_>, Fault> {
        let refused = |e: io::Error| Fault::Broken(format!("open a socket in the namespace: {e}"));
        let mut ways = Vec::new();
        for (n, ip) in (0..servers).flat_map(|n| floating(n).map(|ip| (n, ip))) {
            let near = addresses(CLIENT)[usize::from(ip.is_ipv6())];
            let host = within(&self.host, || open(SocketAddr::new(ip, PORT)))?.map_err(refused)?;
            // Each has a port of its own, by which the addresses are told apart.
            let client = within(&self.client, || open(SocketAddr::new(near, 0)))?.map_err(refused)?;
            ways.push(Way { server: n, ip, near, host, client, crossed: Arc::default() });
        }
        Ok(Traffic::start(self, ways))
    }
}

/// One address, from both ends.
#[derive(Debug)]
struct Way {
    server: usize,
    ip: IpAddr,
    near: IpAddr,
    host: UdpSocket,
    client: UdpSocket,
    crossed: Arc<Crossed>,
}

/// When the last packet arrived, by the boot clock.
#[derive(Debug, Default)]
struct Crossed {
    outward: AtomicU64,
    inward: AtomicU64,
}

/// Packets each way at every address, until it is dropped.
#[derive(Debug)]
pub(super) struct Traffic<'a> {
    wires: &'a Wires,
    seen: Vec<(usize, IpAddr, Arc<Crossed>)>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Traffic<'a> {
    fn start(wires: &'a Wires, ways: Vec<Way>) -> Self {
        let seen = ways.iter().map(|way| (way.server, way.ip, Arc::clone(&way.crossed))).collect();
        let is_over = Arc::<AtomicBool>::default();
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                ways.iter().for_each(Way::cross);
                std::thread::sleep(ATTACK_PACKETS_PAUSE);
            }
        });
        Self { wires, seen, is_over, thread: Some(thread) }
    }

    /// Returns whether packets have crossed at every address, each way.
    pub(super) fn all_pass(&self) -> bool {
        let all = self.seen.iter().flat_map(|(.., crossed)| [&crossed.outward, &crossed.inward]);
        all.into_iter().all(|at| at.load(Ordering::Relaxed) > 0)
    }

    /// Returns when the last packet of a server's addresses crossed, and how many ways are open now.
    pub(super) fn of(&self, server: usize) -> (BootInstant, usize) {
        let own = self.seen.iter().filter(|(n, ..)| *n == server);
        let times = own.flat_map(|(.., crossed)| [&crossed.outward, &crossed.inward]);
        let times: Vec<BootInstant> = times.map(|at| BootInstant(at.load(Ordering::Relaxed))).collect();
        let now = BootInstant::now();
        let open = times.iter().filter(|at| now.saturating_since(**at) < ATTACK_PACKETS_OPEN).count();
        (times.into_iter().max().unwrap_or(BootInstant(0)), open)
    }

    /// Keeps the kernel from taking the addresses away at the end of their lifetimes.
    pub(super) fn keep_addresses(&self) -> Result<(), Fault> {
        let keep = |(_, address, _): &(_, IpAddr, _)| {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            format!("addr change {address}/{prefix} dev {LINK} valid_lft forever preferred_lft forever\n")
        };
        ip(&self.wires.host, &self.seen.iter().map(keep).collect::<String>())
    }

    /// Asks for the owner of each address, as a neighbour does who means to claim it. Returns the servers with an
    /// address that is answered for, each as often as it is. If that must be `all` of them, it is an error where not.
    pub(super) fn answers(&self, all: bool) -> Result<Vec<usize>, Fault> {
        let asked = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut probes = JoinSet::new();
                for (server, ip, _) in &self.seen {
                    let (server, address) = (*server, named(*ip));
                    let addresses = Addresses::new("/nonexistent".into(), std::collections::BTreeMap::new());
                    probes.spawn(async move { (server, addresses.probe(&address).await) });
                }
                Ok::<_, io::Error>(probes.join_all().await)
            })
        };
        let asked = within(&self.wires.client, asked)?.map_err(|e| Fault::Broken(format!("probe: {e}")))?;
        let mut answering = Vec::new();
        for (server, result) in asked {
            match result {
                Ok(()) if all => return Err(Fault::Missed(format!("an address of server {server} answers no probe"))),
                Ok(()) => {}
                Err(AddressError::Conflict { .. }) => answering.push(server),
                Err(error) => return Err(Fault::Broken(error.to_string())),
            }
        }
        Ok(answering)
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Way {
    /// Sends a packet each way, and notes what arrives. The fence makes sending fail, which is no news.
    fn cross(&self) {
        let _ = self.host.send_to(b"out", (self.near, self.client_port()));
        let _ = self.client.send_to(b"in", (self.ip, PORT));
        arrived(&self.client, &self.crossed.outward);
        arrived(&self.host, &self.crossed.inward);
    }

    fn client_port(&self) -> u16 {
        self.client.local_addr().map_or(0, |at| at.port())
    }
}

/// Notes when it was, after the packet has crossed: late rather than early.
fn arrived(socket: &UdpSocket, last: &AtomicU64) {
    while socket.recv(&mut [0; 8]).is_ok() {
        last.store(BootInstant::now().0, Ordering::Relaxed);
    }
}

fn named(ip: IpAddr) -> FloatingAddress {
    FloatingAddress {
        ip: ip.to_string(),
        interface: Some(LINK.to_owned()),
        announce: Announce::AfterReady,
        tickle: false,
        network_fence: false,
    }
}

/// Makes a network namespace that lives as long as what is returned, and whoever is in it.
fn namespace() -> Result<File, Fault> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    };
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    let made = made.map_err(|_| Fault::Broken("the thread of a namespace panicked".into()))?;
    made.map_err(|error| {
        let is_ours = error.raw_os_error() == Some(Errno::EPERM as i32);
        let hint = if is_ours { " (run as root)" } else { "" };
        Fault::LeftOut(format!("no network namespace: {error}{hint}"))
    })
}

/// Runs `work` on a thread in a namespace. What it opens and starts stays there.
fn within<T: Send>(space: &File, work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
    let enter = || setns(space, CloneFlags::CLONE_NEWNET).map(|()| work());
    let done = std::thread::scope(|scope| scope.spawn(enter).join());
    let done = done.map_err(|_| Fault::Broken("a thread in a namespace panicked".into()))?;
    done.map_err(|errno| Fault::Broken(format!("enter a namespace: {errno}")))
}

fn set_up_fence(space: &File) -> Result<(), String> {
    let set_up = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(check_network_fence()).map_err(|error| error.to_string())
    };
    within(space, set_up).map_err(|fault| fault.to_string())?
}

/// Carries out lines of `ip` in a namespace.
fn ip(space: &File, lines: &str) -> Result<(), Fault> {
    let program = PROGRAMS.into_iter().find(|path| Path::new(path).exists());
    let program = program.ok_or_else(|| Fault::LeftOut("needs `ip` (iproute2)".into()))?;
    let run = || {
        let mut command = Command::new(program);
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(lines.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = within(space, run)?.map_err(|e| Fault::Broken(format!("run {program}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Fault::LeftOut(format!("ip: {}", words.lines().next().unwrap_or("no reason given"))))
}

/// Opens a socket at an address that need not be there yet.
fn open(at: SocketAddr) -> io::Result<UdpSocket> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened: OwnedFd = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&opened, sockopt::IpFreebind, &true)?;
    bind(opened.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(UdpSocket::from(opened))
}
