//! What people ask this machine: its agent looks into the file, and says the answer.
//!
//! Must stay true: renewals, orders and content have other connections, and nothing here keeps them waiting; an answer
//! is bounded; a node that does not know the question costs nothing but a new try.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_raft::limits::{ASKED_ABOUT_WITHIN, PRINTED_BYTES_MAX};
use leaseward_raft::net::wire::{About, Told};
use leaseward_state::config::Digest;
use leaseward_state::config::delta::SharedBytes;
use leaseward_state::{MachineName, ServerName, SetName};
use leaseward_sync::limits::FRAMES_BYTES_MAX;
use leaseward_sync::member::MemberConfig;
use leaseward_sync::patterns::Patterns;
use leaseward_sync::{Scanned, frame, manifest, scan_some};
use tokio::time::sleep;
use tracing::debug;

use crate::client::Client;

/// A node that has not answered for so much longer than it may take is lost.
const LATE: Duration = Duration::from_millis(500);

/// After a node that could not be asked, the next one is asked after this: nobody's life hangs on it.
const AGAIN: Duration = Duration::from_millis(250);

/// Answers questions to a machine, one after the other, until it is dropped.
pub(crate) async fn answer(client: Client, machine: MachineName, log_dir: PathBuf, sets: MemberConfig) {
    let mut here = Here { log_dir, sets, scanned: BTreeMap::new() };
    loop {
        let question = match client.question(&machine, ASKED_ABOUT_WITHIN + LATE).await {
            Ok(Some(question)) => question,
            Ok(None) => continue,
            Err(error) => {
                debug!(%error, "nobody could be asked for questions");
                sleep(AGAIN).await;
                continue;
            }
        };
        let look = tokio::task::spawn_blocking(move || {
            let told = here.look(question.about);
            (here, told)
        });
        // Only a panic loses what was looked at.
        let Ok((back, told)) = look.await else { return };
        here = back;
        // A node that did not hear the answer asks again.
        if let Err(error) = client.answered(question.id, told).await {
            debug!(%error, "an answer was not heard");
            sleep(AGAIN).await;
        }
    }
}

/// What this machine can be asked about.
struct Here {
    log_dir: PathBuf,
    sets: MemberConfig,
    /// What was asked for last of each set: its pieces are asked for next.
    scanned: BTreeMap<SetName, Scanned>,
}

impl Here {
    fn look(&mut self, about: About) -> Told {
        match about {
            About::Printed { server, lines } => printed(&self.log_dir, &server, lines),
            About::Tree { set, ignore, only, xattrs } => self.tree(set, &ignore, only.as_deref(), xattrs),
            About::Pieces { set, digests } => self.pieces(&set, &digests),
        }
    }

    fn tree(&mut self, set: SetName, ignore: &[String], only: Option<&[String]>, xattrs: bool) -> Told {
        let target = self.sets.dirs(&set).target;
        let scanned = Patterns::new(ignore).and_then(|ignore| {
            scan_some(&target, xattrs, &|path| {
                !ignore.ignores(path) && only.is_none_or(|only| only.iter().any(|known| known == path))
            })
        });
        match scanned {
            Ok(scanned) => {
                let encoded = manifest::encode(scanned.manifest());
                self.scanned.insert(set, scanned);
                Told::Tree(encoded.into())
            }
            Err(error) if !target.exists() => {
                debug!(%set, %error, "asked for a set that is not here");
                Told::NotHere
            }
            Err(error) => failed(error.code(), error.to_string()),
        }
    }

    fn pieces(&self, set: &SetName, digests: &[Digest]) -> Told {
        let Some(scanned) = self.scanned.get(set) else { return Told::NotHere };
        let mut pieces: Vec<(Digest, SharedBytes)> = Vec::new();
        let mut room = FRAMES_BYTES_MAX;
        for digest in digests {
            let packed = scanned.read(*digest).and_then(|plain| frame::pack(&plain));
            let packed = match packed {
                Ok(packed) => packed,
                Err(error) => return failed(error.code(), error.to_string()),
            };
            if !pieces.is_empty() && packed.len() > room {
                break;
            }
            room = room.saturating_sub(packed.len());
            pieces.push((*digest, packed.into()));
        }
        Told::Pieces(pieces)
    }
}

fn failed(code: &str, why: String) -> Told {
    Told::Failed { code: code.to_owned(), why }
}

fn printed(log_dir: &Path, server: &ServerName, lines: u32) -> Told {
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    match leaseward_node::logs(log_dir, server, lines) {
        Ok(lines) => Told::Lines(tail(lines, PRINTED_BYTES_MAX)),
        Err(leaseward_node::Error::NotHere { .. }) => Told::NotHere,
        Err(error) => failed(error.code(), error.to_string()),
    }
}

/// Returns the last lines that have at most so many bytes together; of one that is longer, its end.
fn tail(mut lines: Vec<String>, most: usize) -> Vec<String> {
    let mut room = most;
    let mut kept = 0;
    for line in lines.iter().rev() {
        match room.checked_sub(line.len() + 1) {
            Some(rest) => (room, kept) = (rest, kept + 1),
            None => break,
        }
    }
    if kept == 0
        && let Some(last) = lines.pop()
    {
        let from = (last.len().saturating_sub(most)..).find(|at| last.is_char_boundary(*at)).unwrap_or(last.len());
        return vec![last[from..].to_owned()];
    }
    lines.split_off(lines.len() - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_was_printed_is_kept() {
        let lines = || ["first", "second", "third"].map(str::to_owned).to_vec();
        assert_eq!(tail(lines(), 100), lines());
        assert_eq!(tail(lines(), 13), ["second", "third"]);
        assert_eq!(tail(lines(), 12), ["third"]);
        assert_eq!(tail(lines(), 3), ["ird"]);
        assert_eq!(tail(vec!["aéé".into()], 3), ["é"]);
        assert_eq!(tail(Vec::new(), 3), Vec::<String>::new());
    }
}
