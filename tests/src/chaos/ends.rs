//! Agents that end by themselves: what each said, and whether something that is broken explains it.
//!
//! Must stay true: an end is expected for a named reason only ([`reason`]); any other one, a panic or a signal of nobody's above all, makes
//! the run `NOT WELL`, though the agent is started again and all heals. So a fault that begins to explain an end has to be named here, with
//! why an operator would want that end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;

use super::nemesis::Nemesis;
use crate::hosts::Hosts;

/// So long after a fault was mended an end may still be its: it is looked for now and then, and what was written is flushed first.
const ECHO: Duration = Duration::from_secs(2);

/// Returns why an agent that says this in the end is expected to, where this is broken.
fn reason(code: &str, broken: Nemesis) -> Option<&'static str> {
    match (code, broken) {
        // A node that was never one cannot begin without room: whoever starts it is told at once. Those that are one go on.
        ("LW0605", Nemesis::DiskFull) => Some("it could not begin on a disk without room"),
        _ => None,
    }
}

/// Returns the line in which an agent says why it ended, if it does.
fn last_word(log: &str) -> Option<&str> {
    let is_one = |line: &&str| line.starts_with("error ") || line.contains(" ERROR ") || line.contains("panicked at");
    log.lines().rfind(is_one)
}

/// Returns the code with which an error ends an agent.
fn code(line: &str) -> Option<&str> {
    line.strip_prefix("error ")?.split_once(':').map(|(code, _)| code)
}

/// What broke on a host as a whole.
#[derive(Debug)]
struct Broken {
    host: usize,
    nemesis: Nemesis,
    /// None while it is.
    mended: Option<Instant>,
}

/// The ends of a run.
#[derive(Debug, Default)]
pub(super) struct Ends {
    broken: Vec<Broken>,
    /// How much of each log was read at the end before.
    read: BTreeMap<PathBuf, u64>,
    expected: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Ends {
    /// Something is broken on a host from now on.
    pub(super) fn breaks(&mut self, host: usize, nemesis: Nemesis) {
        self.broken.push(Broken { host, nemesis, mended: None });
    }

    /// It is mended.
    pub(super) fn mends(&mut self, host: usize, nemesis: Nemesis) {
        let is_it = |broken: &&mut Broken| broken.host == host && broken.nemesis == nemesis && broken.mended.is_none();
        if let Some(broken) = self.broken.iter_mut().find(is_it) {
            broken.mended = Some(Instant::now());
        }
    }

    /// Starts the agent of a host again if it has ended by itself, as a system would, and remembers what it said.
    pub(super) fn start_again(&mut self, hosts: &mut Hosts, host: usize) {
        let Some(status) = hosts.end_of_agent(host) else { return };
        let name = hosts.names()[host];
        let said = self.since(&hosts.dir().join("log").join(format!("{name}.log")));
        self.judge(name, host, status, last_word(&said));
        hosts.kill_agent(host);
        hosts.start_agent(host);
    }

    fn judge(&mut self, name: &str, host: usize, status: ExitStatus, said: Option<&str>) {
        let is_on =
            |broken: &&Broken| broken.host == host && broken.mended.is_none_or(|mended| mended.elapsed() < ECHO);
        let code = said.and_then(code).filter(|_| status.code().is_some());
        let on = self.broken.iter().filter(is_on).map(|broken| broken.nemesis);
        let expected = code.and_then(|code| on.clone().find_map(|nemesis| Some((code, reason(code, nemesis)?))));
        match expected {
            Some((code, why)) => *self.expected.entry(format!("{code}, {why}")).or_default() += 1,
            None => {
                let on: Vec<_> = on.map(Nemesis::name).collect();
                let said = said.unwrap_or("it said nothing");
                let told = format!("{name} ended by itself ({status}; broken there: {}): {said}", on.join(", "));
                println!("{told}");
                self.wrong.push(told);
            }
        }
    }

    /// Returns what a log says since this was asked before.
    fn since(&mut self, log: &Path) -> String {
        let from = self.read.entry(log.to_owned()).or_default();
        let mut bytes = Vec::new();
        let read = File::open(log).and_then(|mut file| {
            file.seek(SeekFrom::Start(*from))?;
            file.read_to_end(&mut bytes)
        });
        *from += read.unwrap_or(0) as u64;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns how many ended for which reason, and those that ended for none.
    pub(super) fn all(self) -> (BTreeMap<String, usize>, Vec<String>) {
        (self.expected, self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const FULL: &str = "error LW0605: no space left for /data/blobs: 0 bytes free, 0 must stay free";

    #[tokio::test(start_paused = true)]
    async fn an_end_is_expected_only_where_its_reason_is_broken() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let mut ends = Ends::default();
        let wrong = |ends: &Ends| ends.wrong.len();
        ends.judge("h1", 0, exit(1), Some(FULL));
        assert_eq!(wrong(&ends), 1, "nothing is broken");
        ends.breaks(0, Nemesis::DiskFull);
        ends.breaks(1, Nemesis::DiskStall);
        ends.judge("h1", 0, exit(1), Some(FULL));
        assert_eq!(wrong(&ends), 1, "its disk is full");
        ends.judge("h2", 1, exit(1), Some(FULL));
        assert_eq!(wrong(&ends), 2, "another disk is full");
        for (status, said) in [
            (exit(1), Some("error LW0604: entry 7 is damaged")),
            (exit(101), Some("thread 'main' panicked at src/main.rs:7:1:")),
            (exit(70), Some("2026-11-23T13:58:35Z ERROR this node cannot go on why=\"the core is gone\"")),
            (exit(0), None),
            (ExitStatus::from_raw(9), Some(FULL)),
        ] {
            let before = wrong(&ends);
            ends.judge("h1", 0, status, said);
            assert_eq!(wrong(&ends), before + 1, "{status}: {said:?}");
        }
        ends.mends(0, Nemesis::DiskFull);
        let before = wrong(&ends);
        ends.judge("h1", 0, exit(1), Some(FULL));
        assert_eq!(wrong(&ends), before, "it was full a moment ago");
        tokio::time::advance(ECHO).await;
        ends.judge("h1", 0, exit(1), Some(FULL));
        assert_eq!(wrong(&ends), before + 1, "it was full long ago");
        let (expected, wrong) = ends.all();
        assert_eq!(expected.values().collect::<Vec<_>>(), [&2]);
        assert!(wrong[0].contains("h1 ended by itself") && wrong[0].contains(FULL), "{}", wrong[0]);
    }

    #[test]
    fn what_an_agent_said_last_is_found_in_what_is_new_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("h1.log");
        let mut ends = Ends::default();
        assert_eq!(ends.since(&log), "");
        std::fs::write(&log, format!("INFO up\n{FULL}\n  more  leaseward explain LW0605\n")).unwrap();
        let said = ends.since(&log);
        assert_eq!(last_word(&said), Some(FULL));
        assert_eq!(code(FULL), Some("LW0605"));
        assert_eq!(last_word(&ends.since(&log)), None, "that was the end before");
    }
}
