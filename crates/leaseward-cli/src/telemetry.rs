//! Log lines: text on a terminal, JSON otherwise, always on stderr.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::settings::{Format, Log};

/// Installs the log subscriber of this process. openraft speaks at `warn` and above unless asked for more.
pub(crate) fn init(log: &Log) {
    let filter = EnvFilter::try_new(format!("openraft=warn,sled=warn,{}", log.level))
        .unwrap_or_else(|_| EnvFilter::new("openraft=warn,sled=warn,info"));
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
