//! A bundle in a registry, through the mirrors and CAs of images.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::{
    evidence::{self, Evidence},
    image::{Digest, ImageRef, PinnedImage},
    policy::bundle::{Artifact, BundleError, Layer, MAX_BUNDLE, MAX_MANIFEST, Sealed, signers},
    resolve::{
        AuthFile, Credentials, Descriptor, Fetched, Registry, RegistryError, Repo, Resolved,
    },
    verify::PublicKey,
};

use super::{Found, Outcome, open};

/// An artifact, and what it was last.
#[derive(Debug)]
pub(super) struct Oci {
    image: ImageRef,
    credentials: Option<PathBuf>,
    registry: Registry,
    /// The last manifest, and what became of it. What can be signed later without being changed
    /// does not stand here.
    last: Option<(Digest, Outcome)>,
}

/// Ends the asking early, with whether the same manifest would end it so again.
struct Ended {
    found: Found,
    for_good: bool,
}

impl Oci {
    pub(super) fn new(image: ImageRef, credentials: Option<PathBuf>, registry: Registry) -> Self {
        Self { image, credentials, registry, last: None }
    }

    pub(super) async fn ask(&mut self, keys: &Arc<[PublicKey]>, anew: bool) -> Found {
        let repo = match self.repo().await {
            Ok(repo) => repo,
            Err(why) => return Found::failed(why),
        };
        let manifest = match repo.manifest(&self.image.version, MAX_MANIFEST).await {
            Ok(manifest) => manifest,
            Err(error) => return unanswered(error).found,
        };
        let digest = manifest.digest;
        match &self.last {
            Some((last, outcome)) if *last == digest && !anew => {
                return Found::Same(outcome.clone());
            }
            _ => {}
        }
        let (found, for_good) = match self.fetch(&repo, manifest, keys).await {
            Ok(found) => (found, true),
            Err(Ended { found, for_good }) => (found, for_good),
        };
        self.last = found.outcome().filter(|_| for_good).map(|outcome| (digest, outcome));
        found
    }

    async fn fetch(
        &self,
        repo: &Repo,
        manifest: Fetched,
        keys: &Arc<[PublicKey]>,
    ) -> Result<Found, Ended> {
        match Layer::of(&manifest).map_err(Ended::for_good)? {
            Layer::Envelope(layer) => {
                let body = blob(repo, &layer).await?;
                Ok(open(keys, move || Sealed::parse(&body[..])).await)
            }
            // Nothing is fetched that nobody vouches for.
            Layer::Payload(layer) => {
                let evidence = self.evidence(repo, manifest.digest, keys).await?;
                let body = blob(repo, &layer).await?;
                let read =
                    move || Sealed::of_artifact(Artifact::new(manifest, &evidence, body.to_vec())?);
                Ok(open(keys, read).await)
            }
        }
    }

    /// The signatures on a manifest, one of which is by a key.
    async fn evidence(
        &self,
        repo: &Repo,
        digest: Digest,
        keys: &[PublicKey],
    ) -> Result<Evidence, Ended> {
        let image = PinnedImage { repository: self.image.repository.clone(), digest };
        let resolved = Resolved { image, child: None, id: None };
        let evidence = evidence::gather(repo, &resolved).await;
        match (signers(digest, &evidence, keys), evidence.gaps.first()) {
            (Ok(_), _) => Ok(evidence),
            // What was not answered may have been the signature.
            (Err(_), Some(gap)) => Err(Ended::for_now(Found::failed(gap.message.clone()))),
            (Err(error), None) => Err(Ended::for_now(Found::Rejected(error.to_string()))),
        }
    }

    /// The repository, with the credentials that the file has now.
    async fn repo(&self) -> Result<Repo, String> {
        let repository = self.image.repository.clone();
        let credentials = match self.credentials.clone() {
            None => Credentials::Anonymous,
            Some(path) => {
                let read = move || AuthFile::load(Some(&path))?.credentials(&repository);
                let read = tokio::task::spawn_blocking(read).await;
                read.unwrap_or_else(|_| Err("the credentials could not be read".to_owned()))?
            }
        };
        Ok(self.registry.repo(&self.image.repository, &credentials))
    }
}

/// The content of the one layer.
async fn blob(repo: &Repo, layer: &Descriptor) -> Result<Bytes, Ended> {
    let size = usize::try_from(layer.size).unwrap_or(usize::MAX);
    if size > MAX_BUNDLE {
        return Err(Ended::for_good(BundleError::Long(size)));
    }
    repo.blob(&layer.digest, size).await.map_err(unanswered)
}

impl Ended {
    fn for_good(error: BundleError) -> Self {
        Self { found: Found::Rejected(error.to_string()), for_good: true }
    }

    fn for_now(found: Found) -> Self {
        Self { found, for_good: false }
    }
}

/// Tells a registry that does not answer from one that answers with what cannot be used.
fn unanswered(error: RegistryError) -> Ended {
    use RegistryError as E;
    let found = match error {
        E::DigestMismatch(_) | E::LimitExceeded(_) | E::Unreadable(_) => {
            Found::Rejected(error.to_string())
        }
        // The remedy for a pull is none here.
        E::Unauthorized(_) => Found::failed(
            error.to_string().replace("add an imagePullSecret", "name a file with credentials"),
        ),
        E::NotFound(_) | E::Unreachable(_) => Found::failed(error.to_string()),
    };
    Ended::for_now(found)
}
