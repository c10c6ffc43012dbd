//! Servers that stamp the time while they execute. The stamps are the witness: one file for all hosts, one clock.

use std::fs;

use serde_json::json;

use crate::history::{History, Record, op};
use crate::hosts::Hosts;
use crate::stamps::{Stamps, boot_ns};
use crate::victim;

/// So many.
const SERVERS: usize = 2;

/// A server that stamps.
pub(super) struct Server {
    name: String,
    stamps: Stamps,
}

/// Defines the servers; they may run on every host.
pub(super) fn define(hosts: &Hosts) -> Vec<Server> {
    let each = |i: usize| {
        let name = format!("pay-{i}");
        let stamps = Stamps::at(&hosts.dir().join(format!("stamps-{i}")));
        let command =
            [victim().to_str().expect("text"), "stamp", stamps.path().to_str().expect("text"), "--ignore-term"]
                .map(str::to_owned);
        let mut candidates = hosts.names().to_vec();
        candidates.rotate_left(i);
        // Shims are killed on purpose: that must not make it a failed server.
        let text = format!(
            "command = {command:?}\nstop_grace = \"500ms\"\ncandidates = {candidates:?}\n\
             [restart]\nin_place = 1000\ncluster = 10000\nbackoff = [\"0s\"]\n"
        );
        let file = hosts.dir().join(format!("{name}.toml"));
        fs::write(&file, text).expect("the file is written");
        hosts.must(&["server", "apply", "-f", file.to_str().expect("text")]);
        Server { name, stamps }
    };
    (0..SERVERS).map(each).collect()
}

impl Server {
    /// Returns why it does not run, if so.
    pub(super) fn is_sick(&self, hosts: &Hosts) -> Option<String> {
        let Some(shown) = hosts.get(&format!("/v1/servers/{}", self.name)) else {
            return Some(format!("nobody tells of {}", self.name));
        };
        if shown["phase"] != "running" {
            return Some(format!("{} is {}", self.name, shown["phase"]));
        }
        // It runs if it stamps now, under the token that the cluster knows.
        let token = crate::history::number(&shown["token"]).unwrap_or(0);
        let stamps = self.stamps.tail().is_some_and(|(is, _)| is == token);
        (!stamps).then(|| format!("{} should execute under token {token}, and does not", self.name))
    }

    /// Writes down each of its lives.
    pub(super) fn write_down(&self, history: &History) {
        for life in self.stamps.lives() {
            let record = Record::begun(op::LIFE, life.first as u32, &self.name, &self.name, life.first);
            let (token, machine) = (life.token.to_string(), life.machine.to_string());
            let output = json!({ "token": token, "machine": machine, "written": boot_ns() });
            history.add(record.done(life.last, output));
        }
    }
}
