//! `portcullis evidence`: packs out of the store of a node, and into that of another.

mod export;
mod import;

pub(super) use export::run as export;
pub(super) use import::run as import;

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use serde::Serialize;

use crate::{
    cli::style::printable,
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

/// Why the directory that was named is none.
fn no_directory(at: &StateOf) -> Option<String> {
    let named = at.state.as_ref()?;
    let is_none = match fs::metadata(named) {
        Ok(found) => !found.is_dir(),
        // Whoever may not look cannot say that.
        Err(error) => error.kind() != ErrorKind::PermissionDenied,
    };
    let named = printable(&named.to_string_lossy());
    is_none.then(|| format!("--state {named}: there is no such directory"))
}

/// Why what the store below this directory knows cannot be told. One that was never written to
/// knows nothing, and that can be told.
fn unreadable(state: &Path) -> Option<String> {
    let store = state.join("evidence");
    let error = fs::read_dir(&store).err().filter(|error| error.kind() != ErrorKind::NotFound)?;
    Some(cannot_be_read(&store, &error))
}

fn cannot_be_read(store: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "; run this as root",
        _ => "",
    };
    format!("{} cannot be read: {error}{remedy}", printable(&store.to_string_lossy()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_read_the_store_is_told_who_may() {
        let said =
            |error: i32| cannot_be_read(Path::new("/s"), &io::Error::from_raw_os_error(error));
        assert_eq!(
            said(13),
            "/s cannot be read: Permission denied (os error 13); run this as root"
        );
        assert_eq!(said(20), "/s cannot be read: Not a directory (os error 20)");
    }
}
