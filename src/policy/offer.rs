//! What a source of policies says, before any of it is believed.

use std::sync::Arc;

use jiff::Timestamp;

use crate::problem::Problems;

use super::{PolicySet, Texts, bundle::Genuine};

/// The set that a source holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What it is read from.
    pub texts: Texts,
    /// The source's own count of its changes: a set with a lower one is an older set. None: the
    /// source has no such count, and what it holds now is the newest.
    pub revision: Option<u64>,
    /// From this moment on the set is in force no more. None: no such moment.
    pub expires_at: Option<Timestamp>,
    /// The signed bundle that all this was read from: what of a set can be kept on this node and
    /// believed again. None: nobody signed it.
    pub sealed: Option<Genuine>,
}

impl Offer {
    /// What a directory of files holds.
    pub(super) fn of_files(texts: Texts) -> Self {
        Self { texts, revision: None, expires_at: None, sealed: None }
    }

    /// What custom resources say.
    pub(crate) fn of_objects(texts: Texts, revision: u64) -> Self {
        Self { revision: Some(revision), ..Self::of_files(texts) }
    }

    /// The set that is offered, whether or not it may come into force.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with its texts; `source` is the name of where they come from.
    pub fn read(&self, source: &str, now: Timestamp) -> Result<PolicySet, Problems> {
        Ok(self.texts.read(source, now)?.with_revision(self.revision))
    }

    /// What [`Offer::to_bytes`] made of an offer that is no signed bundle, without its revision.
    pub(super) fn of_kept_files(bytes: &[u8]) -> Result<Self, String> {
        let texts = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(Self::of_files(texts))
    }

    /// The bytes that are kept on this node.
    pub(super) fn to_bytes(&self) -> Arc<[u8]> {
        match &self.sealed {
            Some(genuine) => genuine.bytes().clone(),
            // Texts are texts; to write them as JSON does not fail.
            None => serde_json::to_vec(&self.texts).unwrap_or_default().into(),
        }
    }
}

/// What became of asking a source.
#[derive(Clone, Debug)]
pub enum Heard {
    /// It holds this set. Told again whenever it is not known to be the one that was told last.
    Offer(Offer),
    /// It was reached, and holds what it offered last.
    Unchanged,
    /// It was reached, and what it holds is no policy set.
    Rejected(Problems),
    /// It cannot be reached, or does not answer as it should: why, in a sentence without times,
    /// so that the same trouble is the same sentence.
    Failed(String),
}
