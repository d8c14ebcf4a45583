//! What is known on this node about one image that the runtime can start.
//!
//! A [`Known`] comes from a registry, from the runtime, from disk or from a pack; whatever it came
//! from is not trusted. Its manifests are named by their own hashes, and the links between them
//! (index, child, configuration) are read from these very bytes. So whoever writes a file of
//! evidence can leave things out, and can add nothing but what others have signed.

use std::collections::BTreeSet;

use crate::{
    image::{Digest, PinnedImage, Repository},
    named::ImageId,
    refusal::{Code, Refusal},
    resolve::{Fetched, Manifest, ManifestError, Resolved},
};

use super::{Evidence, MAX_SIGNATURES, UntrustedClaim};

/// A manifest or an index, and what is claimed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The document; its digest was computed here.
    pub manifest: Fetched,
    /// What is claimed about its digest.
    pub claims: Vec<UntrustedClaim>,
    /// Whether everybody who could have more claims was asked, and answered. If not, what is not
    /// here is no proof of absence.
    pub whole: bool,
}

/// An image that the runtime can start: an image manifest, or an index and its child for this
/// node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    top: Entry,
    child: Option<Entry>,
    id: ImageId,
    proven_by: BTreeSet<Digest>,
}

/// Most identities that are noted to have proven one image.
pub(super) const MAX_PROVERS: usize = 16;

impl Known {
    /// Puts together what belongs together: an image manifest alone, or an index and one image
    /// manifest that it lists.
    ///
    /// # Errors
    ///
    /// The documents are no such pair, or a checkpoint.
    pub fn new(top: Entry, child: Option<Entry>) -> Result<Self, KnownError> {
        let read = |entry: &Entry| Manifest::read(&entry.manifest.media_type, &entry.manifest.body);
        let first = read(&top)?;
        let second = child.as_ref().map(read).transpose()?;
        if first.is_checkpoint() || second.as_ref().is_some_and(Manifest::is_checkpoint) {
            return Err(KnownError::Manifest(ManifestError::Checkpoint));
        }
        let image = match (&first, &second, &child) {
            (Manifest::Image(image), None, None) => image,
            (Manifest::Index(index), Some(Manifest::Image(image)), Some(child)) => {
                let digest = child.manifest.digest;
                if !index.manifests.iter().any(|listed| listed.digest == digest) {
                    return Err(KnownError::NotListed(digest));
                }
                image
            }
            _ => return Err(KnownError::Shape),
        };
        let id = ImageId::of_config(image.config.digest);
        Ok(Self { top, child, id, proven_by: BTreeSet::new() })
    }

    /// The runtime's ID of the image.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// The digest by which it is pulled: that of the index, or of the manifest.
    pub fn digest(&self) -> Digest {
        self.top.manifest.digest
    }

    /// The index, or the manifest that is alone.
    pub fn top(&self) -> &Entry {
        &self.top
    }

    /// The image manifest that the index lists.
    pub fn child(&self) -> Option<&Entry> {
        self.child.as_ref()
    }

    /// Who proved it when it was pulled, each identity hashed. A note for whoever has to choose
    /// what to let go of: it is believed by nobody who judges, and does not leave the node.
    pub(super) fn proven_by(&self) -> &BTreeSet<Digest> {
        &self.proven_by
    }

    /// The same, proven by these as far as is noted, 16 at most.
    pub fn noted(mut self, proven_by: impl IntoIterator<Item = Digest>) -> Self {
        self.proven_by = BTreeSet::new();
        for identity in proven_by {
            if self.proven_by.len() < MAX_PROVERS {
                self.proven_by.insert(identity);
            }
        }
        self
    }

    /// The image as the later stages see it, under the name of a repository.
    pub fn resolved(&self, repository: &Repository) -> Resolved {
        Resolved {
            image: PinnedImage { repository: repository.clone(), digest: self.digest() },
            child: self.child.as_ref().map(|child| child.manifest.digest),
            id: Some(self.id),
        }
    }

    /// What is claimed about it, as much of each manifest as is looked at. Where nobody was asked,
    /// that is a gap.
    pub fn evidence(&self) -> Evidence {
        let entries = || std::iter::once(&self.top).chain(&self.child);
        // Of each: claims about the one, which anybody can make, must not hide those about the other.
        let claims = entries().flat_map(|entry| entry.claims.iter().take(MAX_SIGNATURES));
        let gaps = match entries().all(|entry| entry.whole) {
            true => Vec::new(),
            false => vec![Refusal::new(
                Code::NotProvenLocally,
                "not all evidence about this image is on this node: let it be pulled through \
                 Portcullis (imagePullPolicy: Always), or bring evidence with \
                 \"portcullis evidence import\"",
            )],
        };
        Evidence { claims: claims.cloned().collect(), gaps }
    }
}

/// Why documents are not what is known about one image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnownError {
    /// One of them cannot be read, or must not be started.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The index does not list the manifest.
    #[error("the index does not list {0}")]
    NotListed(Digest),
    /// Neither one image manifest nor an index with one.
    #[error("an image manifest is needed, alone or with an index that lists it")]
    Shape,
}
