//! What the runtime itself has of an image: manifests, hashed here. They prove nothing, and are
//! what evidence is about.

use crate::{
    evidence::{Entry, Known, KnownError, Store},
    forward::{Runtime, RuntimeError, Target},
    image::Digest,
    local::Local,
    named::ImageId,
    resolve::{Fetched, Manifest, ManifestError},
};

/// Most manifests of one index that are looked at; those for other platforms are not there.
const MAX_CHILDREN: usize = 64;

/// What the runtime has under a manifest or an index.
#[derive(Debug, Default)]
pub struct Found {
    /// The images that it can start from there, without evidence.
    pub known: Vec<Known>,
    /// What is there and must not be started, or cannot be read.
    pub unusable: Vec<Unusable>,
}

/// Something that no image can be started from.
#[derive(Debug)]
pub struct Unusable {
    /// Why not.
    pub why: KnownError,
    /// The ID of the image that the runtime would take it for, where it can be told.
    pub id: Option<ImageId>,
}

impl Unusable {
    /// The ID of the image in whose place the runtime would restore this checkpoint.
    pub fn restored_as(&self) -> Option<ImageId> {
        match &self.why {
            KnownError::Manifest(ManifestError::Checkpoint) => self.id,
            _ => None,
        }
    }
}

/// Keeps the manifests by which the runtime has this image, and marks it where it has a checkpoint
/// under the same ID. Returns whether there are any.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn image(runtime: &Runtime, local: &Local, id: ImageId) -> Result<bool, RuntimeError> {
    // containerd's CRI plug-in records each image under its ID as well, and restores what that
    // record leads to.
    let Some(record) = runtime.record(&id.to_string()).await? else {
        local.looked_at([id]);
        return Ok(false);
    };
    let found = look(runtime, &record.target).await?;
    let digest = record.target.digest;
    found.tell(digest);
    local.mark(found.unusable.iter().filter_map(Unusable::restored_as), digest);
    local.looked_at([id]);
    let has = found.known.iter().any(|known| known.id() == id);
    keep(local.store(), found.known).await;
    Ok(has)
}

/// The images that the runtime can start from a manifest or an index, without evidence. Those
/// that must not be started (checkpoints) and those that cannot be read are none.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn target(runtime: &Runtime, target: &Target) -> Result<Vec<Known>, RuntimeError> {
    let found = look(runtime, target).await?;
    found.tell(target.digest);
    Ok(found.known)
}

/// The images that the runtime can start from a manifest or an index that is there already, with
/// the children's manifests from the runtime.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn of(
    runtime: &Runtime,
    top: &Entry,
    entry: impl Fn(Fetched) -> Entry,
) -> Result<Vec<Known>, RuntimeError> {
    let found = parts(runtime, top, entry).await?;
    found.tell(top.manifest.digest);
    Ok(found.known)
}

/// Everything that the runtime has under a manifest or an index. Nothing where it does not have
/// the document itself.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn look(runtime: &Runtime, target: &Target) -> Result<Found, RuntimeError> {
    let Some(manifest) = runtime.manifest(target).await? else { return Ok(Found::default()) };
    parts(runtime, &bare(manifest), bare).await
}

async fn parts(
    runtime: &Runtime,
    top: &Entry,
    entry: impl Fn(Fetched) -> Entry,
) -> Result<Found, RuntimeError> {
    let mut found = Found::default();
    let children = match Manifest::read(&top.manifest.media_type, &top.manifest.body) {
        Ok(Manifest::Index(index)) => index.manifests,
        Ok(Manifest::Image(_)) => {
            found.add(top.clone(), None);
            return Ok(found);
        }
        Err(error) => {
            found.unusable.push(Unusable { why: error.into(), id: None });
            return Ok(found);
        }
    };
    for child in children.into_iter().filter(|child| child.is_image()).take(MAX_CHILDREN) {
        let target = Target { digest: child.digest, media_type: child.media_type };
        let Some(manifest) = runtime.manifest(&target).await? else { continue };
        found.add(top.clone(), Some(entry(manifest)));
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, top: Entry, child: Option<Entry>) {
        let image = child.as_ref().unwrap_or(&top).manifest.clone();
        match Known::new(top, child) {
            Ok(known) => self.known.push(known),
            Err(why) => {
                let id = match Manifest::read(&image.media_type, &image.body) {
                    Ok(Manifest::Image(image)) => Some(ImageId::of_config(image.config.digest)),
                    Ok(Manifest::Index(_)) | Err(_) => None,
                };
                self.unusable.push(Unusable { why, id });
            }
        }
    }

    fn tell(&self, digest: Digest) {
        for Unusable { why, .. } in &self.unusable {
            tracing::warn!(%digest, %why, "an image in the runtime cannot be started");
        }
    }
}

/// What is known of a manifest when nobody was asked yet.
fn bare(manifest: Fetched) -> Entry {
    Entry { manifest, claims: Vec::new(), whole: false }
}

/// Keeps all of these, away from the threads that must not wait for a disk.
pub async fn keep(store: &Store, known: Vec<Known>) {
    let store = store.clone();
    let kept = tokio::task::spawn_blocking(move || {
        known
            .iter()
            .try_for_each(|known| store.keep(known).map_err(|error| (known.digest(), error)))
    });
    if let Ok(Err((digest, error))) = kept.await {
        unkept(digest, &error);
    }
}

/// Keeps this before the runtime has it, as far as that is safe. Returns whether it is kept.
pub async fn keep_ahead(store: &Store, known: Known) -> bool {
    let (store, digest) = (store.clone(), known.digest());
    let kept = tokio::task::spawn_blocking(move || store.keep_ahead(&known)).await;
    match kept {
        Ok(Ok(kept)) => kept,
        Ok(Err(error)) => {
            unkept(digest, &error);
            true // in memory; another try would fail as well
        }
        Err(_panic) => false,
    }
}

fn unkept(digest: Digest, error: &dyn std::fmt::Display) {
    tracing::error!(%digest, %error, "evidence is not kept: what it proves may not start later");
}
