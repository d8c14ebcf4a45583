//! What the runtime itself has of an image: manifests, hashed here. They prove nothing, and are
//! what evidence is about.

use crate::{
    evidence::{Entry, Known, Store},
    forward::{Runtime, RuntimeError, Target},
    image::Digest,
    named::ImageId,
    resolve::{Fetched, Manifest},
};

/// Most manifests of one index that are looked at; those for other platforms are not there.
const MAX_CHILDREN: usize = 64;

/// Keeps the manifests by which the runtime has this image. Returns whether there are any.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn image(runtime: &Runtime, store: &Store, id: ImageId) -> Result<bool, RuntimeError> {
    // containerd's CRI plug-in records each image under its ID as well.
    let Some(record) = runtime.record(&id.to_string()).await? else { return Ok(false) };
    let known = target(runtime, &record.target).await?;
    let found = known.iter().any(|known| known.id() == id);
    keep(store, known).await;
    Ok(found)
}

/// The images that the runtime can start from a manifest or an index, without evidence. Those
/// that must not be started (checkpoints) and those that cannot be read are none.
///
/// # Errors
///
/// The runtime does not answer.
pub async fn target(runtime: &Runtime, target: &Target) -> Result<Vec<Known>, RuntimeError> {
    let Some(manifest) = runtime.manifest(target).await? else { return Ok(Vec::new()) };
    of(runtime, &bare(manifest), bare).await
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
    let manifest = match Manifest::read(&top.manifest.media_type, &top.manifest.body) {
        Ok(manifest) => manifest,
        Err(error) => {
            let digest = top.manifest.digest;
            tracing::warn!(%digest, %error, "an image in the runtime cannot be read");
            return Ok(Vec::new());
        }
    };
    let children = match manifest {
        Manifest::Image(_) => return Ok(Known::new(top.clone(), None).into_iter().collect()),
        Manifest::Index(index) => index.manifests,
    };
    let mut known = Vec::new();
    for child in children.into_iter().filter(|child| child.is_image()).take(MAX_CHILDREN) {
        let target = Target { digest: child.digest, media_type: child.media_type };
        let Some(manifest) = runtime.manifest(&target).await? else { continue };
        known.extend(Known::new(top.clone(), Some(entry(manifest))));
    }
    Ok(known)
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

fn unkept(digest: Digest, error: &dyn std::fmt::Display) {
    tracing::error!(%digest, %error, "evidence is not kept: what it proves may not start later");
}
