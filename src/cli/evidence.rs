//! `portcullis evidence`: packs out of the store of a node, and into that of another.

mod export;
mod import;

pub(super) use export::run as export;
pub(super) use import::run as import;

use serde::Serialize;

use crate::{
    config::Config,
    evidence::{Entry, Known, UntrustedBody},
    image::Digest,
    named::ImageId,
};

use super::arguments::StateOf;

/// What stands in a line about one image.
#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    digest: Digest,
    id: ImageId,
    /// Those that have the form of one; whether they hold is for a policy to say.
    signatures: usize,
}

impl Summary {
    fn of(known: &Known) -> Self {
        let entries = std::iter::once(known.top()).chain(known.child());
        let claims = entries.flat_map(|entry: &Entry| &entry.claims);
        let signatures =
            claims.filter(|claim| !matches!(claim.body, UntrustedBody::Unreadable { .. })).count();
        Self { digest: known.digest(), id: known.id(), signatures }
    }

    fn counted(&self) -> String {
        match self.signatures {
            1 => "1 signature".to_owned(),
            many => format!("{many} signatures"),
        }
    }
}

/// The configuration. That in its usual place may be absent where `needed` is false.
fn config(at: &StateOf, needed: bool) -> Result<Config, String> {
    let mut config = super::config(&at.config, !needed).map_err(|error| match needed {
        true => format!("{error}; or name --state"),
        false => error,
    })?;
    if let Some(directory) = &at.state {
        config.state.directory.clone_from(directory);
    }
    Ok(config)
}
