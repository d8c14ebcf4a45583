//! Which containers were permitted here: an empty file for each, below `containers/` in the state
//! directory. And which others are on record as not permitted: the same below `strangers/`, so
//! that a restart does not tell of all of them once more.
//!
//! For reports only: containers that were started behind Portcullis's back, or before it came,
//! are told from those that it let through. Nothing is allowed for what stands here, and whoever
//! can write files there can hide a container from a report and no more.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::fcntl::OFlag;

/// Longest ID of a container, in bytes; runtimes make them of 64 characters.
const MAX_ID: usize = 128;
/// Most containers that are remembered of one run. Those of earlier ones are pruned by then, or
/// the runtime does not tell which are there.
const MAX_CONTAINERS: usize = 20_000;

/// The containers that were permitted here. Clones share it. All calls block on the disk; errors
/// are logged, and what cannot be read was not permitted.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    strangers: PathBuf,
    /// Permitted since the runtime was last asked for its containers, which it then may not have
    /// told yet.
    recent: Mutex<BTreeSet<String>>,
}

impl Ledger {
    /// The ledger below the state directory. Nothing is read or written yet.
    pub fn open(state_directory: &Path) -> Self {
        let directory = state_directory.join("containers");
        let strangers = state_directory.join("strangers");
        Self(Arc::new(Shared { directory, strangers, recent: Mutex::default() }))
    }

    /// Notes that a container was permitted.
    pub fn permit(&self, id: &str) {
        if !is_id(id) {
            tracing::error!("\"{}\" is no ID of a container", crate::image::shorten(id));
            return;
        }
        {
            let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() >= MAX_CONTAINERS {
                return;
            }
            recent.insert(id.to_owned());
            if recent.len() == MAX_CONTAINERS {
                tracing::error!(
                    "{MAX_CONTAINERS} containers were permitted since the runtime last told which \
                     it has: further ones are not noted"
                );
            }
        }
        if let Err(error) = write(&self.0.directory, id) {
            let at = self.0.directory.display();
            tracing::error!("container {id} cannot be noted in {at} as permitted: {error}");
        }
    }

    /// Whether a container was permitted, as far as is remembered.
    pub fn was_permitted(&self, id: &str) -> bool {
        has(&self.0.directory, id)
    }

    /// Notes that a container is on record as not permitted.
    pub fn told(&self, id: &str) {
        if is_id(id)
            && let Err(error) = write(&self.0.strangers, id)
        {
            let at = self.0.strangers.display();
            tracing::warn!("container {id} cannot be noted in {at} as told of: {error}");
        }
    }

    /// Whether a container is on record as not permitted, as far as is remembered.
    pub fn was_told(&self, id: &str) -> bool {
        has(&self.0.strangers, id)
    }

    /// Forgets the containers that the runtime does not have any more. One that was permitted since
    /// the last call stays: it may be younger than the list.
    pub fn retain(&self, live: &BTreeSet<String>) {
        let recent = {
            let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *recent)
        };
        for directory in [&self.0.directory, &self.0.strangers] {
            if let Err(error) = remove(directory, |id| !live.contains(id) && !recent.contains(id))
                && error.kind() != io::ErrorKind::NotFound
            {
                let at = directory.display();
                tracing::error!("containers that are gone cannot be removed from {at}: {error}");
            }
        }
    }
}

fn write(directory: &Path, id: &str) -> io::Result<()> {
    match must_be_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        done => done?,
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(flags.bits());
    match options.open(directory.join(id)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn has(directory: &Path, id: &str) -> bool {
    is_id(id)
        && must_be_directory(directory).is_ok()
        && fs::symlink_metadata(directory.join(id)).is_ok_and(|file| file.is_file())
}

fn remove(directory: &Path, goes: impl Fn(&str) -> bool) -> io::Result<()> {
    must_be_directory(directory)?;
    for entry in fs::read_dir(directory)?.take(2 * MAX_CONTAINERS) {
        let entry = entry?;
        // What is no ID was not put there by us.
        let gone = entry.file_name().to_str().is_some_and(|id| is_id(id) && goes(id));
        if gone && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

fn must_be_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no directory")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn live(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_permitted_container_is_known_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        assert!(!ledger.was_permitted("a"));
        ledger.permit("a");
        ledger.permit("a");
        assert!(Ledger::open(state.path()).was_permitted("a"));
        assert!(!ledger.was_permitted("b"));
    }

    #[test]
    fn a_container_that_is_gone_is_forgotten_and_a_young_one_is_not() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        ledger.retain(&live(&[]));
        ledger.permit("a");
        ledger.permit("b");
        ledger.retain(&live(&["a"]));
        assert!(ledger.was_permitted("a") && ledger.was_permitted("b"));
        ledger.retain(&live(&["a"]));
        assert!(ledger.was_permitted("a") && !ledger.was_permitted("b"));
    }

    #[test]
    fn who_was_told_of_is_known_after_a_restart_and_forgotten_when_gone() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        assert!(!ledger.was_told("a"));
        ledger.told("a");
        ledger.told("../b");
        let again = Ledger::open(state.path());
        assert!(again.was_told("a") && !again.was_permitted("a") && !again.was_told("../b"));
        again.retain(&live(&["a"]));
        assert!(again.was_told("a"));
        again.retain(&live(&[]));
        assert!(!again.was_told("a"));
    }

    #[test]
    fn there_is_an_end_to_what_is_noted_while_the_runtime_does_not_tell() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        let noted = || fs::read_dir(state.path().join("containers")).unwrap().count();
        (0..MAX_CONTAINERS + 5).for_each(|number| ledger.permit(&number.to_string()));
        assert_eq!(noted(), MAX_CONTAINERS);
        ledger.retain(&live(&[]));
        ledger.retain(&live(&[]));
        ledger.permit("a");
        assert_eq!(noted(), 1);
    }

    #[test]
    fn what_is_no_id_is_no_path() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        fs::write(state.path().join("outside"), "").unwrap();
        ledger.permit("a");
        let long = "a".repeat(MAX_ID + 1);
        for id in ["", ".", "..", ".a", "../outside", "a/b", "a\0", "ä", "a b", "a\n", &long] {
            ledger.permit(id);
            assert!(!ledger.was_permitted(id), "{id:?}");
        }
        assert_eq!(fs::read_dir(state.path().join("containers")).unwrap().count(), 1);
        let longest = "a".repeat(MAX_ID);
        ledger.permit(&longest);
        assert!(ledger.was_permitted(&longest));
    }

    #[test]
    fn another_directory_is_neither_believed_nor_touched() {
        let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("a"), "").unwrap();
        symlink(other.path(), state.path().join("containers")).unwrap();
        let ledger = Ledger::open(state.path());
        assert!(!ledger.was_permitted("a"));
        ledger.permit("b");
        ledger.retain(&live(&[]));
        ledger.retain(&live(&[]));
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_files_are_removed_and_the_directory_may_vanish() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(state.path());
        ledger.permit("a");
        let containers = state.path().join("containers");
        fs::create_dir(containers.join("directory")).unwrap();
        fs::write(containers.join(".hidden"), "").unwrap();
        assert!(!ledger.was_permitted("directory"));
        ledger.retain(&live(&[]));
        ledger.retain(&live(&[]));
        assert!(containers.join("directory").exists() && containers.join(".hidden").exists());
        fs::remove_dir_all(&containers).unwrap();
        ledger.permit("a");
        assert!(ledger.was_permitted("a"));
    }
}
