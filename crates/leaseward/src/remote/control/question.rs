//! A question to a control script, and its answer.
//!
//! The question is a small script on the standard input of `sh -s` on the far machine, so the words that ssh carries
//! are always the same (fit for a forced command) and no value is ever seen in a list of processes.
//!
//! Must stay true: whatever logins print, an answer is what stands between two lines that name this question's own
//! random number; a script that arrives cut off does nothing. Pure.

use std::collections::BTreeMap;

use crate::limits::{CONTROL_ANSWER_BYTES_MAX, NOISE_BYTES_MAX};
use crate::remote::sentinel::find;

/// What is run on the far machine.
pub(crate) const SHELL: &str = "sh -s";

/// What a control script is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Start it, in the background. Exit 0 says that it was started.
    Start,
    /// Ask it to end.
    Stop,
    /// End every process of it.
    Kill,
    /// Print its state as the first line.
    Status,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Status => "status",
        }
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// The program and its arguments; none: only whether anybody answers.
    pub(crate) words: Vec<&'a str>,
    /// Its environment.
    pub(crate) environment: &'a BTreeMap<String, String>,
}

/// Where an environment variable cannot be passed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("LW0376: a shell cannot pass on an environment variable called {0:?}")]
pub(crate) struct BadVariable(String);

impl Question<'_> {
    /// Returns the script that asks it. `nonce` is random.
    ///
    /// # Errors
    /// [`BadVariable`] for a name that no shell takes.
    pub(crate) fn script(&self, nonce: &str) -> Result<String, BadVariable> {
        let mut exports = String::new();
        for (name, value) in self.environment {
            if !is_variable(name) {
                return Err(BadVariable(name.clone()));
            }
            exports.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        let words: Vec<String> = self.words.iter().map(|word| quoted(word)).collect();
        let run = if words.is_empty() { ":".to_owned() } else { format!("exec {}", words.join(" ")) };
        // In braces, so that the shell reads all of it before it does any of it.
        Ok(format!(
            "{{\n\
             printf '\\n%s\\n' '{begin}'\n\
             cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -\n\
             (\n{exports}{run}\n) </dev/null 2>&1\n\
             printf '\\n%s %s-----\\n' '{end}' \"$?\"\n\
             exit 0\n\
             }}\n",
            begin = begin(nonce).trim_end(),
            end = end(nonce).trim_end(),
        ))
    }
}

fn begin(nonce: &str) -> String {
    format!("-----LEASEWARD BEGIN {nonce}-----\n")
}

fn end(nonce: &str) -> String {
    format!("-----LEASEWARD END {nonce} ")
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns a word as a shell takes it literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The far machine's boot; `-` where nobody knows.
    pub(crate) boot_id: String,
    /// What the script printed.
    pub(crate) text: String,
    /// Its exit code.
    pub(crate) exit: i32,
}

/// Puts an answer together from what is read.
#[derive(Debug)]
pub(crate) struct Reading {
    begin: Vec<u8>,
    end: Vec<u8>,
    seen: Vec<u8>,
}

impl Reading {
    pub(crate) fn new(nonce: &str) -> Self {
        let end = format!("\n{}", end(nonce));
        Self { begin: begin(nonce).into_bytes(), end: end.into_bytes(), seen: Vec::new() }
    }

    /// Takes the next piece. Returns the answer once it is whole.
    ///
    /// # Errors
    /// A reason with a code, if there is too much of it.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<Option<Answer>, String> {
        self.seen.extend_from_slice(piece);
        let begin = find(&self.seen, &self.begin);
        if let Some(answer) = begin.and_then(|at| self.answer(&self.seen[at + self.begin.len()..])) {
            return Ok(Some(answer));
        }
        let (size, most) = match begin {
            Some(at) => (self.seen.len() - at, CONTROL_ANSWER_BYTES_MAX),
            None => (self.seen.len(), NOISE_BYTES_MAX),
        };
        if size > most {
            return Err(format!("LW0375: more than {most} bytes, and no end"));
        }
        Ok(None)
    }

    fn answer(&self, rest: &[u8]) -> Option<Answer> {
        let at = find(rest, &self.end)?;
        let exit = rest[at + self.end.len()..].strip_suffix(b"-----\n").or_else(|| {
            let tail = &rest[at + self.end.len()..];
            find(tail, b"-----\n").map(|to| &tail[..to])
        })?;
        let exit = std::str::from_utf8(exit).ok()?.parse().ok()?;
        let text = String::from_utf8_lossy(&rest[..at]).into_owned();
        let (boot_id, text) = text.split_once('\n').unwrap_or((&text, ""));
        Some(Answer { boot_id: boot_id.trim().to_owned(), text: text.to_owned(), exit })
    }

    /// Returns what was read, for people.
    pub(crate) fn noise(&self) -> String {
        crate::remote::sentinel::last_words(&self.seen)
    }
}

/// What a control script says of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It is on its way up.
    Starting,
    /// It works.
    Running,
    /// It is on its way down.
    Stopping,
    /// No process of it lives.
    Stopped,
    /// Something of it may live, and it does not work.
    Unwell(String),
}

/// Reads the first line of a `status`, as WebLogic's scripts write it too (`RUNNING:Y:N`).
///
/// # Errors
/// A reason with a code, if it says nothing that is known: then nothing is known.
pub(crate) fn state(answer: &Answer) -> Result<State, String> {
    let first = answer.text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let word = first.split(':').next().unwrap_or_default().trim().to_ascii_uppercase();
    if answer.exit != 0 {
        return Err(format!("LW0374: its status exits with {}: {first}", answer.exit));
    }
    match word.as_str() {
        "STARTING" | "STANDBY" | "ADMIN" | "RESUMING" => Ok(State::Starting),
        "RUNNING" => Ok(State::Running),
        "STOPPING" | "SHUTTING_DOWN" | "FORCE_SHUTTING_DOWN" | "SUSPENDING" => Ok(State::Stopping),
        // WebLogic's word for a server that ended and is not to be started again.
        "STOPPED" | "SHUTDOWN" | "FAILED_NOT_RESTARTABLE" => Ok(State::Stopped),
        "FAILED" | "UNHEALTHY" => Ok(State::Unwell(first.to_owned())),
        _ => Err(format!("LW0374: its status says {first:?}")),
    }
}

#[cfg(test)]
#[path = "question_tests.rs"]
mod tests;
