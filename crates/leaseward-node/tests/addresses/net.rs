//! A small network for one story: machines and clients in namespaces of their own, on one bridge.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_node::BootInstant;
use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, Signal, kill_process};

use super::support::{PATIENCE, wait_for};

/// Every machine's own interface.
pub(crate) const LINK: &str = "eth0";

/// Namespaces with a bridge between them, removed when dropped, whatever happened.
pub(crate) struct Net {
    name: String,
    spaces: Vec<String>,
}

impl Net {
    /// Makes the machines `a` (10.9.0.1, fd09::1), `b` (…2) and `c` (…3) and a bridge between them.
    pub(crate) fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("lw{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut net = Self { name, spaces: Vec::new() };
        let hub = net.add("hub");
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        ip(&["-n", &hub, "link", "set", "br0", "up"]);
        for (machine, number) in [("a", 1), ("b", 2), ("c", 3)] {
            let space = net.add(machine);
            ip(&["-n", &hub, "link", "add", "name", machine, "type", "veth", "peer", "name", LINK, "netns", &space]);
            ip(&["-n", &hub, "link", "set", "dev", machine, "master", "br0", "up"]);
            ip(&["-n", &space, "link", "set", "lo", "up"]);
            ip(&["-n", &space, "link", "set", LINK, "up"]);
            ip(&["-n", &space, "addr", "add", &format!("10.9.0.{number}/24"), "dev", LINK]);
            ip(&["-n", &space, "addr", "add", &format!("fd09::{number}/64"), "dev", LINK, "nodad"]);
        }
        net
    }

    fn add(&mut self, machine: &str) -> String {
        let space = self.space(machine);
        ip(&["netns", "add", &space]);
        self.spaces.push(space.clone());
        space
    }

    pub(crate) fn space(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    /// Changes a machine's addresses by hand.
    pub(crate) fn ip(&self, machine: &str, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.space(machine)], arguments].concat())
    }

    /// Runs a command on a machine.
    pub(crate) fn run(&self, machine: &str, command: &[&str]) {
        ip(&[&["netns", "exec", &self.space(machine)], command].concat());
    }

    /// Takes a machine from the network. It keeps its addresses, as one without power keeps its place in caches.
    pub(crate) fn power_off(&self, machine: &str) {
        self.ip("hub", &["link", "set", "dev", machine, "down"]);
    }

    /// Returns a machine's line about an address: its prefix and its interface.
    pub(crate) fn shown(&self, machine: &str, address: &str) -> Option<String> {
        let shown = self.ip(machine, &["-o", "addr", "show"]);
        shown.lines().find(|line| line.contains(&format!(" {address}/"))).map(str::to_owned)
    }

    /// Returns for how many seconds a machine still has an address.
    pub(crate) fn lifetime(&self, machine: &str, address: &str) -> u32 {
        let shown = self.shown(machine, address).unwrap();
        shown.split_once(" valid_lft ").unwrap().1.split_once("sec").unwrap().0.parse().unwrap()
    }

    pub(crate) fn mac(&self, machine: &str) -> String {
        let shown = self.ip(machine, &["-o", "link", "show", LINK]);
        shown.split_once("link/ether ").unwrap().1[..17].to_owned()
    }

    /// Starts something of the lab's on a machine.
    pub(crate) fn play(&self, machine: &str, arguments: &[&str]) -> Player {
        let lab = env!("CARGO_BIN_EXE_leaseward-node-lab");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(machine), lab]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (said, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Player { input: child.stdin.take().unwrap(), child, lines }
    }

    /// Starts an echo on a machine. Returns when it listens.
    pub(crate) fn echo(&self, machine: &str, address: &str) -> Player {
        let player = self.play(machine, &["echo", address, "7"]);
        assert_eq!(player.hear(), "ready");
        player
    }

    /// Starts to ask an echo from machine `c`, every two milliseconds.
    pub(crate) fn client(&self, address: &str) -> Client {
        let to = SocketAddr::new(address.parse().unwrap(), 7);
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
        let socket = self.within("c", || UdpSocket::bind((any, 0)).unwrap());
        Client::start(socket, to)
    }

    /// Runs `work` in a machine's network. What it opens stays there.
    pub(crate) fn within<T: Send>(&self, machine: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.space(machine))).unwrap();
        let enter = || {
            setns(space, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in &self.spaces {
            let _ = Command::new("ip").args(["netns", "del", space]).status();
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {words}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// A process of the lab's, killed when dropped.
pub(crate) struct Player {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Player {
    /// Asks, and returns the answer.
    pub(crate) fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").unwrap();
        self.hear()
    }

    /// Asks for what must succeed. Returns what else it says.
    pub(crate) fn must(&mut self, question: &str) -> String {
        let answer = self.ask(question);
        answer.strip_prefix("ok").unwrap_or_else(|| panic!("{question}: {answer}")).trim().to_owned()
    }

    pub(crate) fn hear(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("an answer in time")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When an echo answered, as its client sees it.
pub(crate) struct Client {
    answers: Arc<Mutex<Vec<BootInstant>>>,
    is_over: Arc<AtomicBool>,
}

impl Client {
    fn start(socket: UdpSocket, to: SocketAddr) -> Self {
        let client = Self { answers: Arc::default(), is_over: Arc::default() };
        let (answers, is_over) = (Arc::clone(&client.answers), Arc::clone(&client.is_over));
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !is_over.load(Ordering::Relaxed) {
                let asked = BootInstant::now().0.to_le_bytes();
                let _ = socket.send_to(&asked, to);
                while socket.recv(&mut bytes).is_ok() {
                    answers.lock().unwrap().push(BootInstant::now());
                    // The next question is due in two milliseconds, not at once.
                    if bytes[..8] == asked {
                        std::thread::sleep(Duration::from_millis(2));
                        break;
                    }
                }
            }
        });
        client
    }

    /// Returns when it was answered first after `start`.
    pub(crate) fn answered_since(&self, start: BootInstant) -> Option<BootInstant> {
        self.answers.lock().unwrap().iter().copied().find(|at| *at > start)
    }

    pub(crate) fn wait_for_answer(&self, since: BootInstant) -> BootInstant {
        wait_for("an answer", PATIENCE, || self.answered_since(since))
    }

    pub(crate) fn last_before(&self, end: BootInstant) -> BootInstant {
        self.answers.lock().unwrap().iter().copied().rfind(|at| *at < end).unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
