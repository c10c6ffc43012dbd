//! One look at a server.
//!
//! Must stay true: a look is over within its timeout and leaves nothing behind. Left out on purpose: TLS, redirects
//! (3xx is an answer), and bodies.

use std::collections::BTreeMap;
use std::process::Stdio;

use leaseward_state::server::{Probe, ServerSpec};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::limits::STATUS_LINE_BYTES_MAX;
use crate::shim::DEFAULT_PATH;

/// What a look needs to know beside the probe.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    environment: BTreeMap<String, String>,
    directory: String,
    user: Option<(u32, u32)>,
}

impl Scene {
    /// Returns the server's own surroundings, for commands.
    pub(crate) fn of(spec: &ServerSpec, marks: impl IntoIterator<Item = (&'static str, String)>, pid: u32) -> Self {
        let mut environment = spec.environment.clone();
        environment.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        environment.extend(marks.into_iter().map(|(key, value)| (key.to_owned(), value)));
        environment.insert("LEASEWARD_PID".to_owned(), pid.to_string());
        let user = spec.user.as_deref().and_then(|name| nix::unistd::User::from_name(name).ok().flatten());
        let user = user.filter(|user| user.uid != nix::unistd::geteuid());
        Self {
            environment,
            directory: spec.directory.clone().unwrap_or_else(|| "/".to_owned()),
            user: user.map(|user| (user.uid.as_raw(), user.gid.as_raw())),
        }
    }
}

/// Returns why a probe can never succeed as it is written.
pub(crate) fn check(probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Process => Ok(()),
        Probe::Tcp(address) => match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
            _ => Err(format!("check.tcp `{address}` is not host:port")),
        },
        Probe::Http(url) => split_url(url).map(|_| ()),
        Probe::Command(command) if command.is_empty() => Err("check.command is empty".to_owned()),
        Probe::Command(_) => Ok(()),
    }
}

/// Looks once; `Err` says what was seen. The caller bounds the time. Cancel safe: a command is killed with its group.
pub(crate) async fn look(probe: &Probe, scene: &Scene) -> Result<(), String> {
    match probe {
        // The process descriptor tells at once when it does not.
        Probe::Process => Ok(()),
        Probe::Tcp(address) => {
            TcpStream::connect(address.as_str()).await.map(drop).map_err(|e| format!("connect: {e}"))
        }
        Probe::Http(url) => get(url).await,
        Probe::Command(command) => run(command, scene).await,
    }
}

/// Returns host with port as sent, the address to connect to, and the path.
fn split_url(url: &str) -> Result<(&str, String, &str), String> {
    let wrong = || format!("check.http `{url}` is not http://host[:port][/path]");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if host.is_empty() || url.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return Err(wrong());
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok((host, if has_port { host.to_owned() } else { format!("{host}:80") }, path))
}

async fn get(url: &str) -> Result<(), String> {
    let (host, address, path) = split_url(url)?;
    let mut stream = TcpStream::connect(address).await.map_err(|e| format!("connect: {e}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: leaseward\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("send: {e}"))?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_BYTES_MAX {
        if stream.read_buf(&mut answer).await.map_err(|e| format!("read: {e}"))? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(answer.split(|byte| *byte == b'\n').next().unwrap_or_default());
    match status(&line) {
        Some(200..=399) => Ok(()),
        Some(other) => Err(format!("HTTP status {other}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

/// Kills a check's process group when the look is over or given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn run(command: &[String], scene: &Scene) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("the command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&scene.environment).current_dir(&scene.directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    if let Some((uid, gid)) = scene.user {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn().map_err(|e| format!("run {program}: {e}"))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let ended = child.wait().await;
    drop(group);
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_status_lines_are_read_as_they_are_written() {
        assert_eq!(split_url("http://h:8/a?b").unwrap(), ("h:8", "h:8".to_owned(), "/a?b"));
        assert_eq!(split_url("http://h").unwrap(), ("h", "h:80".to_owned(), "/"));
        for wrong in ["https://h/", "h:8", "http://", "http://h/a b", "http://h/\r\nX: y"] {
            assert!(split_url(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(status("HTTP/1.1 204 No Content\r"), Some(204));
        assert_eq!(status("HTTP/1.0 503\r"), Some(503));
        assert_eq!(status("SSH-2.0-OpenSSH"), None);
    }
}
