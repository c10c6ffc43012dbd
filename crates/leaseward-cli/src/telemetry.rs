//! Log lines: text on a terminal, JSON otherwise, always on stderr.

use std::io::{IsTerminal, stderr};

use leaseward_raft::REPETITIONS;
use tracing_subscriber::EnvFilter;

use crate::settings::{Format, Log};

/// Installs the log subscriber of this process.
pub(crate) fn init(log: &Log) {
    let filter = EnvFilter::try_new(directives(&log.level)).unwrap_or_else(|_| EnvFilter::new(directives("info")));
    let json = match log.format {
        Format::Json => true,
        Format::Text => false,
        Format::Auto => !stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(stderr().is_terminal()).init();
    }
}

/// Returns what is said. openraft speaks at `warn` and above unless asked for more, and of replication not at all: it says
/// of each attempt to reach a dead peer that it failed, some eighty times a second. We say once that a node is not heard,
/// and what ends the core comes from the core.
fn directives(level: &str) -> String {
    let asked_for = ["debug", "trace", "openraft"].iter().any(|word| level.contains(word));
    let replication = if asked_for { "warn" } else { "off" };
    let repetitions: String = REPETITIONS.iter().map(|target| format!("{target}={replication},")).collect();
    format!("openraft=warn,{repetitions}sled=warn,{level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_is_silent_unless_somebody_asks() {
        for level in ["info", "warn", "error,leaseward_raft=info"] {
            assert_eq!(directives(level).matches("=off").count(), 2, "{level}");
        }
        for level in ["debug", "info,openraft=info", "info,leaseward_raft=trace"] {
            assert!(!directives(level).contains("=off"), "{level}");
        }
        for level in ["info", "debug"] {
            EnvFilter::try_new(directives(level)).expect("it is a filter");
        }
    }
}
