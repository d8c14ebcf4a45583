//! Evidence kept on this node: a file for each manifest that is known of an image.
//!
//! Below the state directory stands `evidence/<ID>/<digest>.json`, by the ID of the image and the
//! digest of its manifest or index, in hexadecimal. Nothing there is trusted, names included:
//! what a file is about is computed from its content (`document.rs`), and what it
//! claims counts when a signature holds. So files can be removed, copied from node to node and
//! brought by another process meanwhile; there is no lock. Where two processes keep the same
//! image at the same moment, the last one wins, and the other's claims are to be brought again.

mod crowd;
mod files;
mod retain;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{image::Digest, named::ImageId};

use super::{Known, document, merge};
use crowd::Candidate;
use files::{Files, Listed, quoted};

/// Most images that are kept.
pub(super) const MAX_IMAGES: usize = 20_000;
/// Most manifests that are kept, and looked at, of one image.
const MAX_MANIFESTS: usize = 16;
/// Most bytes that are kept in memory of what the disk does not take.
const MAX_MEMORY: usize = 16 << 20;
/// How often the directory is looked through for an unknown digest.
const RELIST: Duration = Duration::from_secs(1);

/// Everything that is known about images on this node. Clones share it. All calls block on the
/// disk, and none of them panics or hangs, whatever the files are.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Files,
    index: Mutex<Index>,
    /// What the disk did not take, last kept first, each with its size.
    memory: Mutex<VecDeque<(Known, usize)>>,
    /// Held from reading an entry to writing it.
    writing: Mutex<()>,
}

/// Which images have a manifest, by the names of files.
#[derive(Debug, Default)]
struct Index {
    images: BTreeMap<Digest, Vec<ImageId>>,
    listed: Option<Instant>,
}

impl Store {
    /// Opens the store below the state directory, and removes what an interrupted write left.
    ///
    /// Never fails: what is wrong is returned in sentences, for the log. Without a directory that
    /// can be used, what is learnt is kept in memory, up to 16 MiB, and every new entry tries
    /// the disk again.
    pub fn open(state_directory: &Path) -> (Self, Vec<String>) {
        let files = Files::new(state_directory.join("evidence"));
        let at = files.top().display();
        let findings = match files.open() {
            Ok(None) => Vec::new(),
            Ok(Some(foreign)) => vec![format!(
                "the evidence store at {at} holds something else than evidence, such as {}: it is \
                 passed over",
                quoted(&foreign)
            )],
            Err(error) => vec![format!(
                "the evidence store at {at} cannot be used: {error}; what is learnt is lost with \
                 this process, and what cannot be proven is refused"
            )],
        };
        (Self::over(files), findings)
    }

    /// The store of a daemon that may be running, for a command that only reads: nothing is made
    /// or removed.
    pub fn beside(state_directory: &Path) -> Self {
        Self::over(Files::read_only(state_directory.join("evidence")))
    }

    fn over(files: Files) -> Self {
        let (index, memory, writing) = Default::default();
        Self(Arc::new(Shared { files, index, memory, writing }))
    }

    /// All that is known of an image, most recently kept first, 16 manifests at most: several
    /// manifests can name one configuration.
    pub fn of_id(&self, id: ImageId) -> Vec<Known> {
        let listed = self.0.files.list(id).unwrap_or_default();
        let listed = listed.iter().take(MAX_MANIFESTS);
        let on_disk: Vec<_> = listed.filter_map(|one| self.0.files.read(id, one.digest)).collect();
        self.with_memory(on_disk, |known| known.id() == id)
    }

    /// Whether there is anything about an image, readable or not.
    pub fn has(&self, id: ImageId) -> bool {
        self.0.files.digests(id).is_ok_and(|digests| !digests.is_empty())
            || lock(&self.0.memory).iter().any(|(known, _)| known.id() == id)
    }

    /// What is known of the images with this manifest or index. Files that another process
    /// brought are seen a second later; a further manifest of an image that is known already,
    /// after the next [`Store::retain`].
    pub fn of_digest(&self, digest: Digest) -> Vec<Known> {
        let ids = {
            let mut index = lock(&self.0.index);
            if index.listed.is_none() || !index.images.contains_key(&digest) && index.is_stale() {
                index.extend(&self.0.files);
            }
            index.images.get(&digest).cloned().unwrap_or_default()
        };
        let on_disk = ids.into_iter().filter_map(|id| self.0.files.read(id, digest)).collect();
        self.with_memory(on_disk, |known| known.digest() == digest)
    }

    /// Every image of which something is kept, in the order of their IDs. Whether it can be read
    /// is for [`Store::of_id`] to say.
    pub fn all(&self) -> Vec<ImageId> {
        let mut all: BTreeSet<_> = self.0.files.images().unwrap_or_default().into_iter().collect();
        all.extend(lock(&self.0.memory).iter().map(|(known, _)| known.id()));
        all.into_iter().collect()
    }

    /// How many files could not be used and were set aside since the store was opened.
    pub fn broken(&self) -> u64 {
        self.0.files.broken()
    }

    /// Keeps what a registry or the runtime just said of an image, in addition to what was known:
    /// the new claims come first. Durable when it returns.
    ///
    /// # Errors
    ///
    /// The disk does not take it. It is then kept in memory, until the process ends or 16 MiB
    /// more were learnt.
    pub fn keep(&self, known: &Known) -> io::Result<()> {
        let by = known.proven_by().clone();
        self.put(known.id(), known.digest(), by, |old| merge::fresh(known, old)).map(drop)
    }

    /// As [`Store::keep`], before the runtime has pulled it. Anybody can make manifests that name
    /// the configuration of another image, so it is kept only where nothing else is known of that
    /// image: what may never be there must push out none that proves something. Returns whether it
    /// is kept.
    ///
    /// # Errors
    ///
    /// As of [`Store::keep`].
    pub fn keep_ahead(&self, known: &Known) -> io::Result<bool> {
        let (id, digest) = (known.id(), known.digest());
        let writing = lock(&self.0.writing);
        let others = match self.0.files.digests(id) {
            Ok(kept) => kept.iter().any(|one| *one != digest),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if others {
            return Ok(false);
        }
        let by = known.proven_by().clone();
        self.put_alone(&writing, id, digest, by, |old| merge::fresh(known, old)).map(|_| true)
    }

    /// Keeps what a pack says of an image: the claims that are known come first. Returns whether
    /// any of it was new. That a pack is whole is not believed.
    ///
    /// # Errors
    ///
    /// As of [`Store::keep`]. Or 16 manifests of the image are kept already: anybody can make more
    /// of them, and a pack must push out none that proves something.
    pub fn import(&self, known: &Known) -> io::Result<bool> {
        let kept = self.0.files.list(known.id()).unwrap_or_default();
        let digest = known.digest();
        if kept.len() >= MAX_MANIFESTS && kept.iter().all(|one| one.digest != digest) {
            let why = format!("{MAX_MANIFESTS} manifests of this image are kept already");
            return Err(io::Error::other(why));
        }
        self.put(known.id(), digest, BTreeSet::new(), |old| merge::imported(known, old))
    }

    fn put(
        &self,
        id: ImageId,
        digest: Digest,
        by: BTreeSet<Digest>,
        join: impl Fn(Option<&Known>) -> Known,
    ) -> io::Result<bool> {
        self.put_alone(&lock(&self.0.writing), id, digest, by, join)
    }

    fn put_alone(
        &self,
        _writing: &MutexGuard<'_, ()>,
        id: ImageId,
        digest: Digest,
        by: BTreeSet<Digest>,
        join: impl Fn(Option<&Known>) -> Known,
    ) -> io::Result<bool> {
        let files = &self.0.files;
        let on_disk = files.read(id, digest);
        // What is there was joined with what was on disk.
        let old = self.in_memory(id, digest).or_else(|| on_disk.clone());
        let noted = old.iter().flat_map(|old| old.proven_by().clone());
        let new = join(old.as_ref()).noted(noted.chain(by));
        let is_new = old.as_ref() != Some(&new);
        let bytes = document::encode(&new).map_err(io::Error::other)?;
        let done = match on_disk.as_ref() == Some(&new) {
            // Only a hint for `retain`.
            true => files.touch(id, digest).or(Ok(())),
            false => files.write(id, digest, &bytes).and_then(|()| self.crowd_out(id, digest)),
        };
        lock(&self.0.index).add(digest, id);
        let mut memory = lock(&self.0.memory);
        memory.retain(|(other, _)| (other.id(), other.digest()) != (id, digest));
        if done.is_err() {
            memory.push_front((new, bytes.len()));
            while memory.iter().map(|(_, size)| size).sum::<usize>() > MAX_MEMORY {
                memory.pop_back();
            }
        }
        done.map(|()| is_new)
    }

    /// Removes manifests of an image that has too many; the one that was just kept stays.
    fn crowd_out(&self, id: ImageId, kept: Digest) -> io::Result<()> {
        let mut all = self.0.files.list(id)?;
        all.sort_by_key(|one| one.digest != kept);
        let go = self.too_many(id, &all);
        go.into_iter().try_for_each(|digest| self.0.files.remove(id, digest))
    }

    /// The files of an image that are too many, of all, the last used first.
    fn too_many(&self, id: ImageId, all: &[Listed]) -> Vec<Digest> {
        if all.len() <= MAX_MANIFESTS {
            return Vec::new();
        }
        let read = |one: &Listed| Some(Candidate::of(&self.0.files.read(id, one.digest)?));
        // One that cannot be read has been moved away.
        crowd::outsiders(all.iter().filter_map(read), MAX_MANIFESTS)
    }

    fn in_memory(&self, id: ImageId, digest: Digest) -> Option<Known> {
        let memory = lock(&self.0.memory);
        let mut known = memory.iter().map(|(known, _)| known);
        known.find(|known| (known.id(), known.digest()) == (id, digest)).cloned()
    }

    /// What memory has of an entry is newer than what the disk has.
    fn with_memory(&self, on_disk: Vec<Known>, wanted: impl Fn(&Known) -> bool) -> Vec<Known> {
        let memory = lock(&self.0.memory);
        let mut all: Vec<_> =
            memory.iter().map(|(known, _)| known).filter(|known| wanted(known)).cloned().collect();
        for known in on_disk {
            if all.iter().all(|one| (one.id(), one.digest()) != (known.id(), known.digest())) {
                all.push(known);
            }
        }
        all
    }
}

impl Index {
    fn is_stale(&self) -> bool {
        self.listed.is_none_or(|listed| listed.elapsed() >= RELIST)
    }

    /// Looks for images that came since the last time, or for all the first time.
    fn extend(&mut self, files: &Files) {
        let known: BTreeSet<_> = match self.listed {
            Some(_) => self.images.values().flatten().copied().collect(),
            // What `keep` added so far may not be all of an image.
            None => BTreeSet::new(),
        };
        for id in files.images().unwrap_or_default() {
            if known.contains(&id) {
                continue;
            }
            for digest in files.digests(id).unwrap_or_default() {
                self.add(digest, id);
            }
        }
        self.listed = Some(Instant::now());
    }

    fn add(&mut self, digest: Digest, id: ImageId) {
        let ids = self.images.entry(digest).or_default();
        // A manifest names one configuration, an index one for each platform; whoever can write
        // files can name more.
        if ids.len() < MAX_MANIFESTS && !ids.contains(&id) {
            ids.push(id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
