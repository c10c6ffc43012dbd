//! Breaks what the schedule says, and mends it.
//!
//! Must stay true: each fault is in the history from its beginning to the end of its mending; faults may overlap, but what happens
//! to one host as a whole (its power, its disk, its agent) happens to no host twice at a time, and the end of one fault does not
//! end another; whoever ends by himself is started again, as a system would, and has to have a reason (`ends.rs`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout, timeout_at};

use super::ends::Ends;
use super::eye::Eye;
use super::nemesis::{Fault, Nemesis, Target};
use super::net::{Line, Lines};
use super::servers::Server;
use super::wall;
use super::{HEALED_WITHIN, OTHER_CLIENT, boot_clock};
use crate::history::{History, Record, op};
use crate::hosts::Hosts;
use crate::hosts::delay::Latency;
use crate::hosts::filter::Filter;
use crate::hosts::outage::quarantined;
use crate::signal;
use crate::stamps::boot_ns;

/// An agent that is told to end does within this, or is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A node that was started asks the others what it acknowledged before it takes part; they answer within this.
const REMEMBERED_WITHIN: Duration = Duration::from_secs(2);

/// An agent that was started has a leader again within this, or the next one is started all the same.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A node whose host is gone is removed within this, or not at all; other faults may be in the way.
const REMOVED_WITHIN: Duration = Duration::from_secs(40);

/// How often it is looked whether an agent has ended by itself.
const LOOK_EACH: Duration = Duration::from_millis(250);

/// What every host sends when links are narrow, in kilobits a second.
const NARROW: u32 = 1_000;

/// Who breaks.
pub(super) struct Faults<'a> {
    /// Never borrowed while something is waited for.
    hosts: RefCell<&'a mut Hosts>,
    names: Vec<&'static str>,
    eye: Eye,
    history: History,
    began: Instant,
    /// To the hosts, and what is wrong with them.
    lines: RefCell<Lines>,
    /// Hosts that a fault has for itself.
    taken: RefCell<BTreeSet<usize>>,
    /// Hosts whose agents are told to end by a fault.
    in_hand: RefCell<BTreeSet<usize>>,
    /// Held by all for as long as they are broken; by one alone that must meet no other one.
    together: RwLock<()>,
    /// Agents that ended by themselves.
    pub(super) ends: RefCell<Ends>,
    /// Agents that were seen to go by the wall clock that was set for them.
    pub(super) clocks_seen: Cell<usize>,
    /// Those that were seen to go by another one.
    pub(super) blind: RefCell<Vec<String>>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(hosts: &'a mut Hosts, history: History) -> Self {
        let (names, eye) = (hosts.names().to_vec(), Eye::open(hosts));
        Self {
            eye,
            hosts: RefCell::new(hosts),
            names,
            history,
            began: Instant::now(),
            lines: RefCell::default(),
            taken: RefCell::default(),
            in_hand: RefCell::default(),
            together: RwLock::new(()),
            ends: RefCell::default(),
            clocks_seen: Cell::new(0),
            blind: RefCell::default(),
        }
    }

    /// Plays a schedule for so long, with so many faults at a time at most, and until the last one is mended. If mending takes longer
    /// than was planned, what comes after comes later, and what would come after the end does not.
    pub(super) async fn play(&self, faults: &[Fault], lasting: Duration, overlap: usize) {
        let began = self.began;
        let end = began + lasting;
        let mut late = Duration::ZERO;
        let mut running = FuturesUnordered::new();
        let mut look = interval(LOOK_EACH);
        let mut left = faults.iter().peekable();
        loop {
            let due = left.peek().map(|fault| began + fault.after + late).filter(|due| *due < end);
            let may_begin = due.is_some() && running.len() < overlap;
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or(end)), if may_begin || (due.is_none() && Instant::now() < end) => {
                    if let (Some(fault), true) = (left.next(), may_begin) {
                        late = began.elapsed().saturating_sub(fault.after);
                        running.push(self.run(fault));
                    }
                }
                Some(()) = running.next(), if !running.is_empty() => {}
                _ = look.tick() => self.start_again(),
            }
            if running.is_empty() && Instant::now() >= end {
                return;
            }
        }
    }

    fn start_again(&self) {
        let mut hosts = self.hosts.borrow_mut();
        for host in 0..self.names.len() {
            if !self.in_hand.borrow().contains(&host) {
                self.ends.borrow_mut().start_again(&mut hosts, host);
            }
        }
    }

    /// Breaks something, waits, and mends it.
    async fn run(&self, fault: &Fault) {
        let (_alone, _together) = match fault.nemesis.is_alone() {
            true => (Some(self.together.write().await), None),
            false => (None, Some(self.together.read().await)),
        };
        let wanted = match fault.target {
            Target::Host(host) if fault.nemesis != Nemesis::Isolate => host,
            _ => self.leader().await.unwrap_or(fault.order[0]),
        };
        let wanted = if fault.nemesis == Nemesis::Churn { wanted.max(1) } else { wanted };
        let whole = if meets_whole_host(fault.nemesis) { self.take(wanted, fault) } else { Some(wanted) };
        let Some(host) = whole else {
            return println!(
                "{:>7.1} s  {}: every host has its fault",
                fault.after.as_secs_f64(),
                fault.nemesis.name()
            );
        };
        let name = self.names[host];
        let record = Record::begun(op::FAULT, 0, name, fault.nemesis.name(), boot_ns());
        println!(
            "{:>7.1} s  {} {name}, for {:.1} s",
            self.began.elapsed().as_secs_f64(),
            fault.nemesis.name(),
            fault.lasting.as_secs_f64()
        );
        if meets_whole_host(fault.nemesis) {
            self.ends.borrow_mut().breaks(host, fault.nemesis);
        }
        let more = self.break_and_mend(fault, host, Instant::now() + fault.lasting).await;
        self.ends.borrow_mut().mends(host, fault.nemesis);
        if meets_whole_host(fault.nemesis) {
            self.taken.borrow_mut().remove(&host);
        }
        let mut told = json!({ "strength": fault.strength, "order": fault.order });
        if let (Some(told), Some(more)) = (told.as_object_mut(), more) {
            told.insert("what".to_owned(), more.into());
        }
        self.history.add(record.done(boot_ns(), told));
    }

    /// Takes a host for a fault: this one, or the next one that no other fault has.
    fn take(&self, wanted: usize, fault: &Fault) -> Option<usize> {
        let mut taken = self.taken.borrow_mut();
        // The first one has nobody to join.
        let is_out = |host: usize| taken.contains(&host) || (fault.nemesis == Nemesis::Churn && host == 0);
        let may = |host: &usize| !is_out(*host);
        let host = std::iter::once(wanted).chain(fault.order.iter().copied()).find(may)?;
        taken.insert(host);
        Some(host)
    }

    async fn leader(&self) -> Option<usize> {
        let cluster = self.eye.cluster(&self.names).await?;
        let name = cluster["leader"].as_str()?;
        self.names.iter().position(|known| *known == name)
    }

    /// Returns that a host does not hear some others.
    fn deaf(&self, host: usize, to: impl IntoIterator<Item = usize>) -> (&'static str, Line) {
        let hosts = self.hosts.borrow();
        let deaf_to: BTreeSet<_> =
            to.into_iter().filter(|other| *other != host).map(|other| hosts.address(other)).collect();
        (self.names[host], Line { filter: Filter { deaf_to, loses_percent: 0 }, kilobits: None })
    }

    /// Returns what is wrong with the lines between hosts.
    fn wrong_lines(&self, fault: &Fault, host: usize) -> Vec<(&'static str, Line)> {
        let all = 0..self.names.len();
        let everywhere = |line: &Line| self.names.iter().map(|name| (*name, line.clone())).collect();
        match fault.nemesis {
            Nemesis::Partition => {
                let (one, other) = fault.order.split_at(self.names.len() / 2);
                let side = |one: &[usize], other: &[usize]| -> Vec<_> {
                    one.iter().map(|host| self.deaf(*host, other.iter().copied())).collect()
                };
                [side(one, other), side(other, one)].concat()
            }
            Nemesis::Isolate => {
                let others = all.clone().filter(|other| *other != host).map(|other| self.deaf(other, [host]));
                std::iter::once(self.deaf(host, all.clone())).chain(others).collect()
            }
            Nemesis::OneWay => {
                let other = fault.order.iter().copied().find(|other| *other != host).unwrap_or(host);
                // By chance the leader is the one who does not hear, or the one who is not heard.
                let (deaf, to) = if fault.strength.is_multiple_of(2) { (host, other) } else { (other, host) };
                vec![self.deaf(deaf, [to])]
            }
            Nemesis::Loss => {
                let filter = Filter { deaf_to: BTreeSet::new(), loses_percent: fault.strength };
                everywhere(&Line { filter, kilobits: None })
            }
            Nemesis::Slow => {
                vec![(self.names[host], Line { kilobits: Some(u32::from(fault.strength) * 20), ..Line::default() })]
            }
            Nemesis::Narrow => everywhere(&Line { kilobits: Some(NARROW), ..Line::default() }),
            _ => Vec::new(),
        }
    }

    /// Breaks something, and mends it at its time. Returns what there is to tell of it.
    async fn break_and_mend(&self, fault: &Fault, host: usize, until: Instant) -> Option<String> {
        let name = self.names[host];
        match fault.nemesis {
            Nemesis::Partition
            | Nemesis::Isolate
            | Nemesis::OneWay
            | Nemesis::Loss
            | Nemesis::Slow
            | Nemesis::Narrow => {
                let id = self.lines.borrow_mut().add(self.wrong_lines(fault, host), self.hosts.borrow().network());
                sleep_until(until).await;
                self.lines.borrow_mut().remove(id, self.hosts.borrow().network());
            }
            Nemesis::Latency => {
                let (on, latency) = latency(fault, host, self.names.len());
                // Broken for as long as somebody has them.
                let delays: Vec<_> =
                    on.iter().map(|host| self.hosts.borrow().network().delay(self.names[*host], latency)).collect();
                sleep_until(until).await;
                let frames: u64 = delays.iter().map(crate::hosts::delay::Delay::carried).sum();
                return Some(format!("{frames} frames, {latency:?} on {} cables", delays.len()));
            }
            Nemesis::Clients => {
                self.hosts.borrow().network().set_cable(OTHER_CLIENT, false);
                sleep_until(until).await;
                self.hosts.borrow().network().set_cable(OTHER_CLIENT, true);
            }
            Nemesis::Flap => {
                while Instant::now() < until {
                    self.hosts.borrow_mut().cut_off(host);
                    sleep(Duration::from_millis(u64::from(fault.strength) * 20)).await;
                    self.hosts.borrow_mut().plug_in(host);
                    sleep(Duration::from_millis(u64::from(fault.strength) * 30)).await;
                }
            }
            Nemesis::Pause => {
                self.signal_agent(host, Signal::STOP);
                sleep_until(until).await;
                self.signal_agent(host, Signal::CONT);
            }
            Nemesis::PauseHost => {
                self.signal_host(host, Signal::STOP);
                sleep_until(until).await;
                self.signal_host(host, Signal::CONT);
            }
            Nemesis::Kill => {
                let mut hosts = self.hosts.borrow_mut();
                hosts.kill_agent(host);
                hosts.start_agent(host);
            }
            Nemesis::KillShims => {
                let shims = self.hosts.borrow().shims(host);
                shims.into_iter().for_each(|shim| signal(shim, Signal::KILL));
            }
            Nemesis::Power => {
                let lost = u64::from(fault.strength) << 32 | fault.after.as_millis() as u64;
                self.hosts.borrow_mut().power_cut(host, lost);
                sleep_until(until).await;
                self.boot(fault, host);
            }
            Nemesis::DiskFull => {
                self.hosts.borrow_mut().disk(host).fill();
                sleep_until(until).await;
                self.hosts.borrow_mut().disk(host).empty();
            }
            Nemesis::DiskStall => {
                self.hosts.borrow_mut().disk(host).freeze();
                sleep_until(until).await;
                self.hosts.borrow_mut().disk(host).thaw();
            }
            Nemesis::LostFsync => return self.lose_syncs(fault, host, until).await,
            Nemesis::WallClock => {
                let step = wall::step(fault);
                self.hosts.borrow_mut().wall_clock(host).set(step.seconds, step.rate);
                let seen = timeout_at(until, self.clock_of_agent(host)).await.ok().flatten();
                let ahead = self.hosts.borrow_mut().wall_clock(host).ahead_seconds();
                match seen {
                    Some(said) if wall::is_seen(said, ahead) => self.clocks_seen.set(self.clocks_seen.get() + 1),
                    Some(said) => {
                        self.blind
                            .borrow_mut()
                            .push(format!("{name} is {ahead:.0} s ahead, and its agent {said:.0} s"));
                    }
                    None => {}
                }
                sleep_until(until).await;
                if step.is_set_right {
                    self.hosts.borrow_mut().wall_clock(host).set(0, 0);
                }
                return Some(format!("{step:?}; its agent said {seen:.1?}"));
            }
            Nemesis::Restart | Nemesis::Upgrade => self.restart_all(fault).await,
            Nemesis::Churn => {
                self.hosts.borrow_mut().power_off(host);
                let is_removed = self.removed(name).await;
                sleep_until(until).await;
                if is_removed {
                    self.hosts.borrow_mut().wipe(host);
                }
                self.boot(fault, host);
                return (!is_removed).then(|| "it could not be removed".to_owned());
            }
        }
        None
    }

    /// Gives a host its power back. Its boot clock begins anew, as any machine's does.
    fn boot(&self, fault: &Fault, host: usize) {
        let mut hosts = self.hosts.borrow_mut();
        hosts.network_mut().set_boot_clock(self.names[host], boot_clock(u64::from(fault.strength), host));
        hosts.power_on(host);
    }

    /// Lets a disk lie, takes the power from its host, and lets it come back with what the disk really has. If the others know that it had
    /// acknowledged more, it is replaced, as an operator would.
    async fn lose_syncs(&self, fault: &Fault, host: usize, until: Instant) -> Option<String> {
        let all = self.names.len();
        // Everything that is promised has its copies.
        let before = self.until_up(all).await;
        self.hosts.borrow_mut().disk(host).begin_to_lie();
        sleep_until(until - fault.lasting / 2).await;
        self.hosts.borrow_mut().power_off_and_forget(host);
        sleep_until(until).await;
        // What nobody else had yet has its copies again.
        let meanwhile = self.until_up(all - 1).await;
        self.boot(fault, host);
        let deadline = Instant::now() + BACK_WITHIN;
        let why = loop {
            let why = self.quarantined(host).await;
            if why.is_some() || Instant::now() > deadline {
                break why;
            }
            if self.count_up().await == all {
                // It answers before it has heard what the others remember.
                sleep(REMEMBERED_WITHIN).await;
                break self.quarantined(host).await;
            }
            sleep(Duration::from_millis(50)).await;
        };
        if why.is_some() {
            self.in_hand.borrow_mut().insert(host);
            self.hosts.borrow_mut().power_off(host);
            self.hosts.borrow_mut().replace(host);
            self.in_hand.borrow_mut().remove(&host);
        }
        let others = if before && meanwhile { "" } else { "; the others were not all there" };
        Some(format!("{}{others}", why.as_deref().unwrap_or("nobody remembers more than it has")))
    }

    /// Returns by how many seconds the agent of a host says that it is ahead of the machine, once it answers. `None`: it does not say.
    async fn clock_of_agent(&self, host: usize) -> Option<f64> {
        loop {
            let pages = self.eye.pages("/metrics").await;
            if let Some((_, page)) = pages.iter().find(|(asked, _)| *asked == host) {
                return wall::ahead(page);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn signal_agent(&self, host: usize, what: Signal) {
        let mut hosts = self.hosts.borrow_mut();
        if hosts.agent_lives(host) {
            hosts.signal_agent(host, what);
        }
    }

    fn signal_host(&self, host: usize, what: Signal) {
        let on_it = self.hosts.borrow().network().processes(self.names[host]);
        on_it.into_iter().for_each(|pid| signal(pid, what));
    }

    /// Restarts every agent, one after the other, each once there is a leader again. Those that another fault has are left out.
    async fn restart_all(&self, fault: &Fault) {
        for host in fault.order.iter().copied() {
            let Some(host) = self.taken.borrow_mut().insert(host).then_some(host) else {
                println!("{} is not restarted: it has its fault", self.names[host]);
                continue;
            };
            self.in_hand.borrow_mut().insert(host);
            self.signal_agent(host, Signal::TERM);
            let ends = async {
                while self.hosts.borrow_mut().agent_lives(host) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            if timeout(ENDS_WITHIN, ends).await.is_err() {
                println!("{} did not end when it was told to", self.names[host]);
            }
            self.hosts.borrow_mut().kill_agent(host);
            self.hosts.borrow_mut().start_agent(host);
            self.in_hand.borrow_mut().remove(&host);
            self.until_up(self.names.len()).await;
            self.taken.borrow_mut().remove(&host);
        }
    }

    /// Returns why a node takes no part, as the others know.
    async fn quarantined(&self, host: usize) -> Option<String> {
        let shown = self.eye.ask("/v1/nodes").await;
        let others = shown.iter().filter(|(asked, _)| *asked != host);
        others.filter_map(|(_, nodes)| quarantined(nodes, self.names[host])).next()
    }

    /// Waits until somebody leads and so many voters are up. Returns false if that takes too long.
    async fn until_up(&self, wanted: usize) -> bool {
        let deadline = Instant::now() + BACK_WITHIN;
        while self.count_up().await < wanted {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
        true
    }

    /// Returns how many voters are up; none if nobody leads.
    async fn count_up(&self) -> usize {
        let up = |cluster: &Value| {
            let voters = cluster["voters"].as_array()?;
            let up = voters.iter().filter(|voter| voter["up"] == true).count();
            cluster["leader"].is_string().then_some(up)
        };
        self.eye.cluster(&self.names).await.as_ref().and_then(up).unwrap_or(0)
    }

    /// Removes a node for good, as an operator would who has lost its disk. Returns false if nobody answers for too long.
    async fn removed(&self, name: &str) -> bool {
        let deadline = Instant::now() + REMOVED_WITHIN;
        while Instant::now() < deadline {
            let mut asked = self.hosts.borrow().cli_command(&["node", "rm", name, "--yes", "--timeout", "5s"]);
            // Other faults go on meanwhile.
            let output = tokio::task::spawn_blocking(move || asked.output().expect("the binary starts"));
            let output = output.await.expect("it does not panic");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() || said.contains("LW0404") {
                return true;
            }
            println!("node rm {name}: {}", said.trim());
            sleep(Duration::from_millis(300)).await;
        }
        false
    }
}

/// Returns whether a fault has a host for itself.
fn meets_whole_host(nemesis: Nemesis) -> bool {
    matches!(
        nemesis,
        Nemesis::Flap
            | Nemesis::Pause
            | Nemesis::PauseHost
            | Nemesis::Kill
            | Nemesis::KillShims
            | Nemesis::Power
            | Nemesis::DiskFull
            | Nemesis::DiskStall
            | Nemesis::LostFsync
            | Nemesis::Churn
    )
}

/// Returns whose cables are slow, and how slow: one by 70 to 290 ms each way, or all of them, so that each way between two hosts takes 24 to 116 ms.
fn latency(fault: &Fault, host: usize, count: usize) -> (Vec<usize>, Latency) {
    let strength = u64::from(fault.strength);
    let (on, least) = match fault.order[0].is_multiple_of(2) {
        true => (vec![host], 50 + strength * 10),
        false => ((0..count).collect(), 8 + strength * 2),
    };
    (on, Latency { least: Duration::from_millis(least), jitter: Duration::from_millis(least / 3) })
}

/// Waits until everything is well again: all vote and are connected, each server runs, each member has the newest version of
/// the set. Returns what is not well when the time is over.
pub(super) async fn until_well(
    hosts: &mut Hosts,
    servers: Option<&[Server]>,
    set: Option<&str>,
    ends: &mut Ends,
) -> Vec<String> {
    let deadline = Instant::now() + HEALED_WITHIN;
    loop {
        let sick = sick(hosts, servers, set);
        if sick.is_empty() || Instant::now() > deadline {
            return sick;
        }
        for host in 0..hosts.names().len() {
            ends.start_again(hosts, host);
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
