//! The settings of `leaseward remote run`: one TOML, or flags for one machine.
//!
//! Must stay true: unknown keys are refused; a destination can never be taken for an option of ssh; no machine is named
//! twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward::MachineName;
use leaseward::remote::control::ControlConfig;
use leaseward::remote::near::Carried;
use leaseward::remote::ssh::Ssh;
use serde::Deserialize;

use crate::args::RemoteRun;
use crate::diagnostic::Diagnostic;
use crate::settings::{Log, Text, Tls};

/// What is run on a far machine that has our program.
const COMMAND: &str = "leaseward remote agent";

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoteSettings {
    /// Peer addresses of voters.
    pub(super) join: Vec<String>,
    /// What is remembered of machines with a control script.
    #[serde(default = "data")]
    pub(super) data: PathBuf,
    #[serde(default)]
    pub(super) tls: Tls,
    #[serde(default)]
    pub(super) log: Log,
    /// The machines.
    pub(super) remote: Vec<Remote>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remote {
    /// Its name in the cluster.
    machine: String,
    /// As ssh takes it. Always the same machine.
    destination: String,
    /// More options for ssh.
    #[serde(default)]
    options: Vec<String>,
    /// What is run there. A forced command has the last word.
    #[serde(default = "command")]
    command: String,
    /// A control script there, instead of our program.
    control: Option<String>,
    /// Time to live of the session, with a control script; else the far side's settings say it.
    #[serde(default = "ttl")]
    lease_ttl: Text,
    /// From one look at a server to the next, with a control script.
    #[serde(default = "poll")]
    poll: Text,
    /// Free words for placement, with a control script.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The weight of the servers that it can run, with a control script; any, if not given.
    capacity: Option<u32>,
    /// Servers that it may start at the same time, with a control script; 0: any.
    #[serde(default)]
    start_slots: u32,
}

fn data() -> PathBuf {
    "/var/lib/leaseward/remote".into()
}

fn command() -> String {
    COMMAND.to_owned()
}

fn ttl() -> Text {
    Text(Duration::from_secs(3))
}

fn poll() -> Text {
    Text(Duration::from_secs(1))
}

/// One machine, ready to be managed.
#[derive(Debug, Clone)]
pub(super) enum Managed {
    /// With our program on it.
    Carried(Carried),
    /// With a control script.
    Control(Box<ControlConfig>),
}

impl RemoteSettings {
    /// Returns what the arguments say.
    pub(super) fn of(arguments: &RemoteRun) -> Result<Self, Diagnostic> {
        if let Some(path) = &arguments.config {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Diagnostic::new("LW0100", format!("cannot read {}: {error}", path.display())))?;
            return Self::parse(&text, path);
        }
        let (Some(machine), Some(destination)) = (&arguments.machine, &arguments.to) else {
            return Err(Diagnostic::new("LW0104", "no machine is named")
                .hint("name one with --machine and --to, or a file with --config"));
        };
        let remote = Remote {
            machine: machine.clone(),
            destination: destination.clone(),
            options: arguments.ssh_option.clone(),
            command: command(),
            control: arguments.control.clone(),
            lease_ttl: Text(arguments.ttl),
            poll: Text(arguments.poll),
            labels: BTreeMap::new(),
            capacity: None,
            start_slots: 0,
        };
        Ok(Self {
            join: arguments.join.clone(),
            data: arguments.data.clone(),
            tls: Tls { plain: arguments.plain },
            log: Log::default(),
            remote: vec![remote],
        })
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Diagnostic> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let code = if error.message().starts_with("unknown field") { "LW0103" } else { "LW0104" };
            Diagnostic::new(code, format!("{}: {}", path.display(), error.message()))
                .hint("docs/how-to/ssh.md shows every key")
        })
    }

    /// Returns the machines, if all of it makes sense.
    pub(super) fn machines(&self) -> Result<Vec<Managed>, Diagnostic> {
        let bad = |key: &str, why: String| Err(Diagnostic::new("LW0104", format!("{key}: {why}")));
        if self.join.is_empty() {
            return bad("join", "no voter is named".into());
        }
        let mut names = BTreeSet::new();
        let mut machines = Vec::new();
        for remote in &self.remote {
            let machine = MachineName::new(remote.machine.clone())
                .map_err(|error| Diagnostic::new("LW0101", format!("remote.machine: {error}")))?;
            if !names.insert(machine.clone()) {
                return bad("remote.machine", format!("{machine} is named twice"));
            }
            if remote.destination.is_empty() || remote.destination.starts_with('-') {
                return bad("remote.destination", format!("{:?} is no destination", remote.destination));
            }
            let ttl = remote.lease_ttl.0;
            if ttl < Duration::from_millis(leaseward_state::limits::TTL_MS_MIN * 2) {
                let why = format!("remote.lease_ttl: {ttl:?} is below the floor of 400 ms");
                return Err(Diagnostic::new("LW0102", why));
            }
            let mut ssh = Ssh::new(remote.destination.clone());
            ssh.options.clone_from(&remote.options);
            machines.push(match &remote.control {
                None => Managed::Carried(Carried { machine, ssh, command: remote.command.clone() }),
                Some(control) => Managed::Control(Box::new(ControlConfig {
                    data: self.data.join(machine.as_str()),
                    machine,
                    ssh,
                    control: control.clone(),
                    ttl,
                    poll: remote.poll.0.max(Duration::from_millis(100)),
                    labels: remote.labels.clone(),
                    capacity: remote.capacity,
                    start_slots: remote.start_slots,
                })),
            });
        }
        Ok(machines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines(remotes: &str) -> Result<usize, String> {
        let text = format!("join = [\"127.0.0.1:1\"]\n{remotes}");
        let settings = RemoteSettings::parse(&text, Path::new("remote.toml"));
        settings.and_then(|settings| settings.machines()).map(|all| all.len()).map_err(|error| error.code)
    }

    #[test]
    fn the_file_of_the_how_to_is_good() {
        let page = include_str!("../../../../../docs/how-to/ssh.md");
        let text = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
        let settings = RemoteSettings::parse(text, Path::new("remote.toml")).expect("it parses");
        assert_eq!(settings.machines().expect("good").len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let one = "[[remote]]\nmachine = \"pay\"\ndestination = \"pay.example\"\n";
        assert_eq!(machines(one), Ok(1));
        assert_eq!(machines(&format!("{one}{one}")), Err("LW0104".into()), "twice");
        assert_eq!(machines(&one.replace("pay.example", "-oProxyCommand=reboot")), Err("LW0104".into()));
        assert_eq!(machines(&format!("{one}contrl = \"x\"\n")), Err("LW0103".into()));
        assert_eq!(machines(&format!("{one}control = \"x\"\nlease_ttl = \"200ms\"\n")), Err("LW0102".into()));
    }
}
