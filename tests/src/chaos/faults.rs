//! Breaks what the schedule says, and mends it.
//!
//! Must stay true: each fault is in the history from its beginning to the end of its mending; whoever ends by himself is
//! started again, as a system would, and counted.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::nemesis::{Fault, Nemesis, Target};
use super::servers::Server;
use super::{HEALED_WITHIN, OTHER_CLIENT};
use crate::history::{History, Record, op};
use crate::hosts::Hosts;
use crate::hosts::filter::Filter;
use crate::signal;
use crate::stamps::boot_ns;

/// An agent that is told to end does within this, or is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// An agent that was started has a leader again within this, or the next one is started all the same.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether an agent has ended by itself.
const LOOK_EACH: Duration = Duration::from_millis(250);

/// Who breaks.
pub(super) struct Faults<'a> {
    hosts: &'a mut Hosts,
    history: History,
    /// Agents that ended by themselves.
    pub(super) ended_by_themselves: usize,
}

impl<'a> Faults<'a> {
    pub(super) fn new(hosts: &'a mut Hosts, history: History) -> Self {
        Self { hosts, history, ended_by_themselves: 0 }
    }

    /// Waits, and starts again whoever ended by himself.
    pub(super) async fn wait_until(&mut self, until: Instant) {
        loop {
            self.start_again();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK_EACH)).await;
        }
    }

    fn start_again(&mut self) {
        for host in 0..self.hosts.names().len() {
            if self.hosts.should_live(host) && !self.hosts.agent_lives(host) {
                self.ended_by_themselves += 1;
                println!("{} ended by itself", self.hosts.names()[host]);
                self.hosts.kill_agent(host);
                self.hosts.start_agent(host);
            }
        }
    }

    /// Breaks something, waits, and mends it.
    pub(super) async fn run(&mut self, fault: &Fault) {
        let host = match fault.target {
            Target::Host(host) => host,
            Target::Leader => self.leader().unwrap_or(fault.order[0]),
        };
        let host = match fault.nemesis {
            Nemesis::Isolate => self.leader().unwrap_or(host),
            // The first one has nobody to join.
            Nemesis::Churn if host == 0 => 1,
            _ => host,
        };
        let name = self.hosts.names()[host];
        let record = Record::begun(op::FAULT, 0, name, fault.nemesis.name(), boot_ns());
        println!(
            "{:>7.1} s  {} {name}, for {:.1} s",
            fault.after.as_secs_f64(),
            fault.nemesis.name(),
            fault.lasting.as_secs_f64()
        );
        let until = Instant::now() + fault.lasting;
        self.break_it(fault, host, until).await;
        self.wait_until(until).await;
        self.mend(fault.nemesis, host).await;
        let lasting = json!({ "strength": fault.strength, "order": fault.order });
        self.history.add(record.done(boot_ns(), lasting));
    }

    fn leader(&self) -> Option<usize> {
        let cluster = self.hosts.cluster()?;
        let name = cluster["leader"].as_str()?;
        self.hosts.names().iter().position(|known| *known == name)
    }

    fn deafen(&self, host: usize, to: impl IntoIterator<Item = usize>) {
        let deaf_to: BTreeSet<_> =
            to.into_iter().filter(|other| *other != host).map(|other| self.hosts.address(other)).collect();
        self.hosts.network().set_filter(self.hosts.names()[host], &Filter { deaf_to, loses_percent: 0 });
    }

    async fn break_it(&mut self, fault: &Fault, host: usize, until: Instant) {
        let names = self.hosts.names().to_vec();
        let all = 0..names.len();
        match fault.nemesis {
            Nemesis::Partition => {
                let (one, other) = fault.order.split_at(names.len() / 2);
                for side in [(one, other), (other, one)] {
                    side.0.iter().for_each(|host| self.deafen(*host, side.1.iter().copied()));
                }
            }
            Nemesis::Isolate => {
                self.deafen(host, all.clone());
                all.filter(|other| *other != host).for_each(|other| self.deafen(other, [host]));
            }
            Nemesis::OneWay => {
                let other = fault.order.iter().copied().find(|other| *other != host).unwrap_or(host);
                // By chance the leader is the one who does not hear, or the one who is not heard.
                let (deaf, to) = if fault.strength.is_multiple_of(2) { (host, other) } else { (other, host) };
                self.deafen(deaf, [to]);
            }
            Nemesis::Loss => {
                for name in names {
                    let filter = Filter { deaf_to: BTreeSet::new(), loses_percent: fault.strength };
                    self.hosts.network().set_filter(name, &filter);
                }
            }
            Nemesis::Slow => self.hosts.network().set_rate(names[host], Some(u32::from(fault.strength) * 20)),
            Nemesis::Clients => self.hosts.network().set_cable(OTHER_CLIENT, false),
            Nemesis::Flap => {
                while Instant::now() < until {
                    self.hosts.cut_off(host);
                    self.wait_until(Instant::now() + Duration::from_millis(u64::from(fault.strength) * 20)).await;
                    self.hosts.plug_in(host);
                    self.wait_until(Instant::now() + Duration::from_millis(u64::from(fault.strength) * 30)).await;
                }
            }
            Nemesis::Pause => self.signal_agent(host, Signal::STOP),
            Nemesis::PauseHost => self.signal_host(host, Signal::STOP),
            Nemesis::Kill => {
                self.hosts.kill_agent(host);
                self.hosts.start_agent(host);
            }
            Nemesis::KillShims => self.hosts.shims(host).into_iter().for_each(|shim| signal(shim, Signal::KILL)),
            Nemesis::Power => self.hosts.power_off(host),
            Nemesis::DiskFull => self.hosts.disk(host).fill(),
            Nemesis::DiskStall => self.hosts.disk(host).freeze(),
            Nemesis::Restart | Nemesis::Upgrade => self.restart_all(&fault.order).await,
            Nemesis::Churn => {
                self.hosts.power_off(host);
                self.removed(names[host]).await;
            }
        }
    }

    async fn mend(&mut self, nemesis: Nemesis, host: usize) {
        match nemesis {
            Nemesis::Partition | Nemesis::Isolate | Nemesis::OneWay | Nemesis::Loss => {
                for name in self.hosts.names() {
                    self.hosts.network().set_filter(name, &Filter::default());
                }
            }
            Nemesis::Slow => self.hosts.network().set_rate(self.hosts.names()[host], None),
            Nemesis::Clients => self.hosts.network().set_cable(OTHER_CLIENT, true),
            Nemesis::Pause => self.signal_agent(host, Signal::CONT),
            Nemesis::PauseHost => self.signal_host(host, Signal::CONT),
            Nemesis::Power => self.hosts.power_on(host),
            Nemesis::DiskFull => self.hosts.disk(host).empty(),
            Nemesis::DiskStall => self.hosts.disk(host).thaw(),
            Nemesis::Churn => {
                self.hosts.wipe(host);
                self.hosts.power_on(host);
            }
            Nemesis::Flap | Nemesis::Kill | Nemesis::KillShims | Nemesis::Restart | Nemesis::Upgrade => {}
        }
    }

    /// Ends every fault that could still be there. Each was mended already: this is for a schedule that was cut short.
    pub(super) async fn mend_all(&mut self) {
        for name in self.hosts.names() {
            self.hosts.network().set_filter(name, &Filter::default());
            self.hosts.network().set_rate(name, None);
        }
        self.start_again();
    }

    fn signal_agent(&mut self, host: usize, what: Signal) {
        if self.hosts.agent_lives(host) {
            self.hosts.signal_agent(host, what);
        }
    }

    fn signal_host(&self, host: usize, what: Signal) {
        let on_it = self.hosts.network().processes(self.hosts.names()[host]);
        on_it.into_iter().for_each(|pid| signal(pid, what));
    }

    /// Restarts every agent, one after the other, each once there is a leader again.
    async fn restart_all(&mut self, order: &[usize]) {
        for host in order.iter().copied() {
            self.signal_agent(host, Signal::TERM);
            let ends = async {
                while self.hosts.agent_lives(host) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            if timeout(ENDS_WITHIN, ends).await.is_err() {
                println!("{} did not end when it was told to", self.hosts.names()[host]);
            }
            self.hosts.kill_agent(host);
            self.hosts.start_agent(host);
            let back = Instant::now() + BACK_WITHIN;
            while !self.all_up() && Instant::now() < back {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn all_up(&self) -> bool {
        let up = |cluster: &serde_json::Value| {
            let voters = cluster["voters"].as_array()?;
            Some(cluster["leader"].is_string() && voters.iter().all(|voter| voter["up"] == true))
        };
        self.hosts.cluster().as_ref().and_then(up).unwrap_or(false)
    }

    /// Removes a node for good, as an operator would who has lost its disk.
    async fn removed(&self, name: &str) {
        let deadline = Instant::now() + BACK_WITHIN;
        while Instant::now() < deadline {
            let output = self.hosts.cli(&["node", "rm", name, "--yes", "--timeout", "5s"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() || said.contains("LW0404") {
                return;
            }
            println!("node rm {name}: {}", said.trim());
            sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Waits until everything is well again: all vote and are connected, each server runs, each member has the newest version of
/// the set. Returns what is not well when the time is over.
pub(super) async fn until_well(hosts: &mut Hosts, servers: Option<&[Server]>, set: Option<&str>) -> Vec<String> {
    let deadline = Instant::now() + HEALED_WITHIN;
    loop {
        let sick = sick(hosts, servers, set);
        if sick.is_empty() || Instant::now() > deadline {
            return sick;
        }
        for host in 0..hosts.names().len() {
            if !hosts.agent_lives(host) {
                hosts.kill_agent(host);
                hosts.start_agent(host);
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn sick(hosts: &Hosts, servers: Option<&[Server]>, set: Option<&str>) -> Vec<String> {
    let mut sick = Vec::new();
    let count = hosts.names().len();
    match hosts.cluster() {
        None => sick.push("nobody leads".to_owned()),
        Some(cluster) => {
            let voters = cluster["voters"].as_array().into_iter().flatten();
            let up = voters.filter(|voter| voter["up"] == true).count();
            if up != count {
                sick.push(format!("{up} of {count} vote and are up"));
            }
            if cluster["machines"]["connected"].as_u64() != Some(count as u64) {
                sick.push(format!("{} of {count} machines are connected", cluster["machines"]["connected"]));
            }
        }
    }
    sick.extend(servers.into_iter().flatten().filter_map(|server| server.is_sick(hosts)));
    if let Some(set) = set {
        let members = hosts.get(&format!("/v1/configs/{set}/members"));
        let behind = |members: &serde_json::Value| {
            let head = &members["version"];
            let items = members["items"].as_array()?;
            let well = |member: &&serde_json::Value| member["phase"] == "applied" && member["applied"] == *head;
            let well = items.iter().filter(well).count();
            (well != count).then(|| format!("{well} of {count} members have v{head} of {set}"))
        };
        match members {
            // Nothing was ever published.
            None => sick.push(format!("nobody tells how far the members of {set} are")),
            Some(members) => sick.extend(behind(&members)),
        }
    }
    sick
}
