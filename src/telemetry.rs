//! The daemon's own log, on standard error. It decides nothing, and it is not the audit log.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Variable that sets the level: `PORTCULLIS_LOG=debug`, or per module.
const VARIABLE: &str = "PORTCULLIS_LOG";

/// Begins logging; `default` is the level where the variable is not set.
pub(crate) fn start(default: &str) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let on_terminal = stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(on_terminal)
        .with_target(false)
        // A log that cannot be written is told of on standard error, by a macro that panics when
        // that cannot be written either; and here it is the same file.
        .log_internal_errors(false);
    // journald stamps each line itself.
    let started = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().try_init(),
        None => log.try_init(),
    };
    // Only a second call fails, and the first one's settings stay.
    let _ = started;
}
