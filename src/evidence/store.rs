//! Evidence kept on this node.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{image::Digest, named::ImageId};

use super::Known;

/// Everything that is known about images on this node. Clones share it. All calls block on the
/// disk.
#[derive(Clone, Debug)]
pub struct Store(Arc<Mutex<HashMap<ImageId, Vec<Known>>>>);

impl Store {
    /// Opens the store below the state directory.
    pub fn open(_state_directory: &Path) -> Self {
        Self(Arc::default())
    }

    /// All that is known of an image, most recently kept first: several manifests can name one
    /// configuration.
    pub fn of_id(&self, id: ImageId) -> Vec<Known> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&id).cloned().unwrap_or_default()
    }

    /// What is known of the images with this manifest or index.
    pub fn of_digest(&self, digest: Digest) -> Vec<Known> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().filter(|known| known.digest() == digest).cloned().collect()
    }

    /// Keeps what is known of an image, beside what was known already.
    pub fn keep(&self, known: &Known) -> io::Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = all.entry(known.id()).or_default();
        same.retain(|other| other.digest() != known.digest());
        same.insert(0, known.clone());
        Ok(())
    }
}
