//! A shim's life: answer requests until the namespace is empty, then say so.
//!
//! Must stay true: what is acknowledged is armed; a request for another token or boot changes nothing; the exit
//! record is written only after the kernel has said that init is gone.

use std::io::{ErrorKind, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use leaseward_state::server::Exit;
use leaseward_state::token::FencingToken;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, send, sockopt};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Channel;
use super::init::{Report, STOP};
use super::timer::KillTimer;
use crate::clock::BootInstant;
use crate::files::{self, ExitRecord, Files};
use crate::kernel;
use crate::limits::{CLIENTS_MAX, DEADLINE_AHEAD_MAX, LINE_BYTES_MAX};
use crate::process::Pidfd;
use crate::protocol::{Order, Reply, Request, Status};

/// One connection; the first one is the starter's.
struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
    starter: bool,
}

/// A shim whose init waits for, or has been given, the word to go.
pub(super) struct Shim {
    pub(super) order: Order,
    pub(super) status: Status,
    pub(super) files: Option<Files>,
    pub(super) stop_grace: Duration,
    pub(super) timer: KillTimer,
    pub(super) signals: SignalFd,
    pub(super) listener: Option<UnixListener>,
    pub(super) init_link: OwnedFd,
    /// Whether init may still say something. Its end of the link closes before the last process is gone.
    pub(super) init_speaks: bool,
    pub(super) init_fd: Pidfd,
    /// Set once the server executes.
    pub(super) started: bool,
    /// Why it does not.
    pub(super) failed: Option<String>,
    /// How its main process ended, by init's word.
    pub(super) exit: Option<Exit>,
    /// When a stop's grace is over.
    pub(super) kill_at: Option<BootInstant>,
    /// The server's, given back before the end is told: the next shim need not wait for this one to be gone.
    pub(super) lock: Option<OwnedFd>,
}

impl Shim {
    /// Serves until every process of the server is gone.
    pub(super) fn serve(mut self, channel: Channel) -> Result<(), String> {
        let mut clients = Vec::new();
        if let Some(stream) = channel.stream {
            set_nonblocking(&stream)?;
            clients.push(Client { stream, pending: Vec::new(), starter: true });
        }
        loop {
            let ready = self.wait(&clients);
            let mut ready = ready.into_iter();
            let mut next = || ready.next().unwrap_or(false);
            let (signalled, reported, ended, knocked) = (next(), next(), next(), next());
            if reported || ended {
                self.hear_init(&clients);
            }
            if ended {
                return self.finish(&clients);
            }
            if signalled && matches!(self.signals.read_signal(), Ok(Some(_))) && self.files.is_some() {
                self.stop(self.stop_grace);
            }
            // In the order of `clients`, as `wait` looked.
            let heard: Vec<bool> = clients.iter().map(|_| next()).collect();
            let mut heard = heard.into_iter();
            clients.retain_mut(|client| !heard.next().unwrap_or(false) || self.hear(client));
            if knocked {
                self.accept(&mut clients)?;
            }
            let now = BootInstant::now();
            if self.kill_at.is_some_and(|at| at <= now) {
                self.init_fd.kill();
                self.kill_at = None;
            }
            if self.timer.own_watch().is_some_and(|at| at <= now) {
                return Err("the deadline has passed".to_owned());
            }
        }
    }

    /// Waits for something; returns what is ready: signals, init's words, init's end, the listener, each client.
    fn wait(&self, clients: &[Client]) -> Vec<bool> {
        let read = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // A closed link would be ready for ever, at real-time priority: the signals stand in for what is not there.
        let nothing = self.signals.as_fd();
        let listener = self.listener.as_ref().map_or(nothing, AsFd::as_fd);
        let init_link = if self.init_speaks { self.init_link.as_fd() } else { nothing };
        let mut look = vec![read(self.signals.as_fd()), read(init_link), read(self.init_fd.as_fd()), read(listener)];
        look.extend(clients.iter().map(|client| read(client.stream.as_fd())));
        let until = self.kill_at.into_iter().chain(self.timer.own_watch()).min();
        let timeout = until.map_or(PollTimeout::NONE, |at| {
            let millis = at.saturating_since(BootInstant::now()).as_millis() + 1;
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut look, timeout).is_err() {
            return Vec::new();
        }
        let mut ready: Vec<bool> = look.iter().map(|each| each.any().unwrap_or(true)).collect();
        ready[1] &= self.init_speaks;
        ready[3] &= self.listener.is_some();
        ready
    }

    /// Reads what init has said.
    fn hear_init(&mut self, clients: &[Client]) {
        let mut packet = [0; LINE_BYTES_MAX];
        loop {
            let (length, sender) = match receive(&self.init_link, &mut packet) {
                Some((0, _)) => {
                    self.init_speaks = false;
                    return;
                }
                None => return,
                Some(heard) => heard,
            };
            match serde_json::from_slice(&packet[..length]) {
                Ok(Report::Here) => self.status.server_pid = sender,
                Ok(Report::Started) => {
                    self.started = true;
                    tell_starter(clients, &Reply::Started(self.status()));
                }
                Ok(Report::Failed(why)) => self.failed = Some(why),
                Ok(Report::Exited(exit)) => self.exit = Some(exit),
                Err(_) => {}
            }
        }
    }

    fn accept(&self, clients: &mut Vec<Client>) -> Result<(), String> {
        let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) else {
            return Ok(());
        };
        let peer: Result<UnixCredentials, _> = getsockopt(&stream, sockopt::PeerCredentials);
        let ours = nix::unistd::geteuid().as_raw();
        if !peer.is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0) {
            return Ok(());
        }
        set_nonblocking(&stream)?;
        if clients.len() >= CLIENTS_MAX {
            clients.remove(0);
        }
        clients.push(Client { stream, pending: Vec::new(), starter: false });
        Ok(())
    }

    /// Reads and answers; returns whether the connection goes on.
    fn hear(&mut self, client: &mut Client) -> bool {
        let mut some = [0; LINE_BYTES_MAX];
        let on = match client.stream.read(&mut some) {
            Ok(0) => false,
            Ok(n) => {
                client.pending.extend_from_slice(&some[..n]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        while let Some(end) = client.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.pending.drain(..=end).collect();
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request),
                Err(error) => Reply::Refused { why: format!("not understood: {error}") },
            };
            if !say(&client.stream, &reply) {
                return false;
            }
        }
        if !on && client.starter && self.files.is_none() {
            // Nobody is left to extend the lease or to see the end.
            self.stop(self.stop_grace);
        }
        on && client.pending.len() <= LINE_BYTES_MAX
    }

    fn answer(&mut self, request: Request) -> Reply {
        let refuse = |why: String| Reply::Refused { why };
        let wrong = |token: FencingToken| {
            (token != self.status.token).then(|| format!("it runs under token {}, not {token}", self.status.token))
        };
        match request {
            Request::Extend { token, deadline, boot_id } => {
                if let Some(why) = wrong(token) {
                    return refuse(why);
                }
                if boot_id != self.status.boot_id {
                    return refuse(format!("the deadline is of another boot, {boot_id}"));
                }
                if deadline > BootInstant::now() + DEADLINE_AHEAD_MAX {
                    return refuse(format!("the deadline {deadline} is more than a day ahead"));
                }
                match self.timer.extend(deadline) {
                    Ok(deadline) => Reply::Extended { deadline },
                    Err(error) => refuse(format!("arm the timer: {error}")),
                }
            }
            Request::Stop { token, grace_ms } => wrong(token).map_or_else(
                || {
                    self.stop(Duration::from_millis(grace_ms));
                    Reply::Done
                },
                refuse,
            ),
            Request::Kill { token } => wrong(token).map_or_else(
                || {
                    self.init_fd.kill();
                    Reply::Done
                },
                refuse,
            ),
            Request::Status => Reply::Status(self.status()),
        }
    }

    fn status(&self) -> Status {
        Status { deadline: self.timer.deadline(), ..self.status.clone() }
    }

    /// Asks the server to stop. A second stop asks again and may only shorten the grace.
    fn stop(&mut self, grace: Duration) {
        let at = BootInstant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
        let _ = send(self.init_link.as_raw_fd(), &[STOP], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    }

    /// Records the end and tells it to everybody. Init is gone, and the kernel ends a namespace's init last.
    fn finish(self, clients: &[Client]) -> Result<(), String> {
        let at = BootInstant::now();
        let status = self.status;
        let init = waitpid(Pid::from_raw(i32::try_from(status.init.pid).unwrap_or(0)), None);
        let exit = match (self.exit, init) {
            (Some(exit), _) => exit,
            (None, Ok(WaitStatus::Signaled(_, signal, _))) => Exit::Signal(signal as i32),
            (None, Ok(WaitStatus::Exited(_, code))) => Exit::Code(code),
            (None, _) => Exit::Unseen,
        };
        if let Some(files) = &self.files {
            let record = ExitRecord { order: self.order, init: status.init, at, exit };
            match files::write(&files.exit(), &record) {
                Ok(()) => files.forget_live(),
                Err(error) => eprintln!("write {}: {error}", files.exit().display()),
            }
        }
        if let (false, Some(why)) = (self.started, self.failed) {
            tell_starter(clients, &Reply::Failed { why });
        }
        drop(self.lock);
        // Taking down a locked memory takes a while, and nobody's deadline depends on it any more.
        let _ = kernel::schedule_ordinary();
        for client in clients {
            say(&client.stream, &Reply::Over { exit });
        }
        Ok(())
    }
}

fn set_nonblocking(stream: &UnixStream) -> Result<(), String> {
    stream.set_nonblocking(true).map_err(|e| format!("use a connection: {e}"))
}

/// Sends one line without waiting; false if it could not be sent whole.
pub(super) fn say(stream: &UnixStream, reply: &Reply) -> bool {
    let Ok(mut line) = serde_json::to_vec(reply) else {
        return false;
    };
    line.push(b'\n');
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(stream.as_raw_fd(), &line, flags).is_ok_and(|sent| sent == line.len())
}

fn tell_starter(clients: &[Client], reply: &Reply) {
    for client in clients.iter().filter(|client| client.starter) {
        say(&client.stream, reply);
    }
}

/// Receives one packet and the number of the process that sent it, in our PID namespace.
fn receive(link: &OwnedFd, packet: &mut [u8]) -> Option<(usize, u32)> {
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(packet)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(link.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    let sender = message.cmsgs().ok()?.find_map(|part| match part {
        ControlMessageOwned::ScmCredentials(credentials) => u32::try_from(credentials.pid()).ok(),
        _ => None,
    });
    Some((message.bytes, sender.unwrap_or(0)))
}
