//! What is refused before a server is defined: what could never work, and what somebody else changed or has.

use crate::limits::SPEC_BYTES_MAX;
use crate::name::ServerName;
use crate::refusal::Refusal;
use crate::server::{Server, ServerSpec};
use crate::state::State;

impl State {
    /// An address follows one server.
    pub(super) fn check_addresses(&self, name: &ServerName, spec: &ServerSpec) -> Result<(), Refusal> {
        for (i, address) in spec.addresses.iter().enumerate() {
            let has = |spec: &ServerSpec| spec.addresses.iter().any(|other| other.ip == address.ip);
            if spec.addresses[..i].iter().any(|other| other.ip == address.ip) {
                return Err(Refusal::Invalid(format!("address {} is named twice", address.ip)));
            }
            let mut others = self.servers.iter().filter(|(other, _)| *other != name);
            if let Some((other, _)) = others.find(|(_, other)| has(&other.spec)) {
                return Err(Refusal::InUse {
                    kind: "address".into(),
                    name: address.ip.clone(),
                    why: format!("it follows server/{other}: give one of them another address"),
                });
            }
        }
        Ok(())
    }
}

pub(super) fn check_version(name: &ServerName, server: Option<&Server>, expected: Option<u64>) -> Result<(), Refusal> {
    let current = server.map_or(0, |server| server.version);
    match expected {
        Some(0) if current != 0 => Err(Refusal::Exists { kind: "server".into(), name: name.to_string() }),
        Some(expected) if expected != current => {
            Err(Refusal::Version { kind: "server".into(), name: name.to_string(), expected, current })
        }
        _ => Ok(()),
    }
}

pub(super) fn check_spec(spec: &ServerSpec) -> Result<(), Refusal> {
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(Refusal::Invalid("a server needs a command".into()));
    }
    let texts = spec.command.iter().chain(&spec.stop_command).map(String::len).sum::<usize>()
        + spec.environment.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
        + spec.hooks.values().flat_map(|hook| &hook.command).map(String::len).sum::<usize>()
        + spec.mounts.iter().flat_map(|mount| &mount.options).map(String::len).sum::<usize>()
        + spec.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if texts > SPEC_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a specification has at most {SPEC_BYTES_MAX} bytes of text")));
    }
    Ok(())
}
