//! `portcullis run`: the daemon.

use std::path::Path;

use tracing::level_filters::LevelFilter;

use crate::{config::Config, daemon, telemetry};

use super::Exit;

pub(super) fn run(path: &Path) -> Exit {
    telemetry::start(LevelFilter::INFO);
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return Exit::Config;
        }
    };
    match daemon::run(config) {
        Ok(()) => Exit::Success,
        Err(error) => {
            tracing::error!("{error}");
            if error.is_configuration() { Exit::Config } else { Exit::Inconclusive }
        }
    }
}
