//! The files of the store: read with suspicion, written whole or not at all.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{stat::futimens, time::TimeSpec},
};

use crate::{
    evidence::{
        Known,
        document::{self, DocumentError, MAX_DOCUMENT},
    },
    image::{Digest, shorten},
    named::ImageId,
};

/// Most names that are read of the directory of all images.
const MAX_ENTRIES: usize = 2 * super::MAX_IMAGES;
/// Most names that are read of the directory of one image.
const MAX_NAMES: usize = 128;
/// Most things set aside that are kept; the oldest go first.
const MAX_BROKEN: usize = 64;
/// Most paths of which is remembered that they were complained about.
const MAX_TOLD: usize = 1024;
/// How often a write is begun anew when a directory vanishes under it.
const MAX_TRIES: usize = 3;

/// Where things go that cannot be read.
const BROKEN: &str = "broken";
/// The beginning of the name of a file that is still being written.
const UNFINISHED: &str = ".new-";

/// What is wrong with a directory, a link, a pipe in the place of a file.
const IRREGULAR: &str = "it is no regular file";

/// The directory `evidence`.
#[derive(Debug)]
pub(super) struct Files {
    top: PathBuf,
    /// Files begun by this process; part of their names.
    begun: AtomicU64,
    broken: AtomicU64,
    /// What cannot be read stays where it is.
    read_only: bool,
    told: Mutex<BTreeSet<PathBuf>>,
}

/// One file, as its name and the file system say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// When it was last kept: seconds since 1970, and nanoseconds.
    pub(super) used: (i64, i64),
}

impl Files {
    pub(super) fn new(top: PathBuf) -> Self {
        Self {
            top,
            begun: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            read_only: false,
            told: Mutex::default(),
        }
    }

    /// The same for somebody who only looks.
    pub(super) fn read_only(top: PathBuf) -> Self {
        Self { read_only: true, ..Self::new(top) }
    }

    pub(super) fn top(&self) -> &Path {
        &self.top
    }

    /// How many things could not be read so far.
    pub(super) fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Makes the directory, or finds out why it is of no use; removes what an interrupted write
    /// left. Returns a name that is not the store's, if there is one.
    pub(super) fn open(&self) -> io::Result<Option<String>> {
        self.create(&self.top)?;
        if fs::symlink_metadata(&self.top)?.mode() & 0o777 != 0o700 {
            fs::set_permissions(&self.top, Permissions::from_mode(0o700))?;
        }
        let mut foreign = None;
        for (name, is_directory) in self.names(&self.top, MAX_ENTRIES)? {
            if name.starts_with(UNFINISHED) {
                // Another process that is just writing it begins anew.
                let _ = fs::remove_file(self.top.join(name));
            } else if name != BROKEN && !(is_directory && of_hex(&name).is_some()) {
                foreign.get_or_insert(name);
            }
        }
        // A file that cannot be made later is better known now.
        let (_, probe) = self.begin()?;
        fs::remove_file(probe)?;
        Ok(foreign)
    }

    /// The images that have a directory.
    pub(super) fn images(&self) -> io::Result<Vec<ImageId>> {
        let names = match self.names(&self.top, MAX_ENTRIES) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        let directories = names.into_iter().filter(|(_, is_directory)| *is_directory);
        let digests = directories.filter_map(|(name, _)| of_hex(&name));
        Ok(digests.map(ImageId::of_config).collect())
    }

    /// The names of the files about an image.
    pub(super) fn digests(&self, id: ImageId) -> io::Result<Vec<Digest>> {
        let names = self.names(&self.of_image(id), MAX_NAMES)?;
        Ok(names.iter().filter_map(|(name, _)| of_hex(name.strip_suffix(".json")?)).collect())
    }

    /// The files about an image, last used first.
    pub(super) fn list(&self, id: ImageId) -> io::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for digest in self.digests(id)? {
            let path = self.path(id, digest);
            // One that is gone by now is none.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_file() {
                self.set_aside(&path, IRREGULAR);
                continue;
            }
            let used = (metadata.mtime(), metadata.mtime_nsec());
            all.push(Listed { digest, bytes: metadata.len(), used });
        }
        all.sort_by_key(|one| (std::cmp::Reverse(one.used), one.digest));
        Ok(all)
    }

    /// What is known by one file. One that says something else than its name, or nothing that can
    /// be read, is set aside.
    pub(super) fn read(&self, id: ImageId, digest: Digest) -> Option<Known> {
        self.must_be_ours(&self.top).and_then(|()| self.must_be_ours(&self.of_image(id))).ok()?;
        let path = self.path(id, digest);
        let known = match load(&path) {
            Ok(bytes) => match document::decode(&bytes) {
                // A later release wrote it, and may come back.
                Err(later @ DocumentError::Later(_)) => {
                    self.tell(&path, &later);
                    return None;
                }
                known => known.map_err(|error| error.to_string()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) if may_pass(&error) => {
                self.tell(&path, &error);
                return None;
            }
            Err(error) => Err(error.to_string()),
        };
        let why = match known {
            Ok(known) if (known.id(), known.digest()) == (id, digest) => return Some(known),
            Ok(known) => format!("it is about image {}, manifest {}", known.id(), known.digest()),
            Err(why) => why,
        };
        self.set_aside(&path, &why);
        None
    }

    /// Writes the file, and returns when it is durable. A crash leaves the old one or the new one.
    pub(super) fn write(&self, id: ImageId, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let mut tries = 1;
        loop {
            match self.try_write(id, digest, bytes) {
                // Somebody removed a directory, or the unfinished file.
                Err(error) if error.kind() == ErrorKind::NotFound && tries < MAX_TRIES => {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn try_write(&self, id: ImageId, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.create(&self.top)?;
        let directory = self.of_image(id);
        if fs::symlink_metadata(&directory).is_ok_and(|metadata| !metadata.is_dir()) {
            self.set_aside(&directory, "it is no directory");
        }
        self.create(&directory)?;
        let (mut file, unfinished) = self.begin()?;
        let finish = |file: &mut File| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, self.path(id, digest))?;
            sync(&directory)
        };
        finish(&mut file).inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    /// A file that is not there for readers yet, in the file system of all the others.
    fn begin(&self) -> io::Result<(File, PathBuf)> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(flags());
        let mut tries = 1;
        loop {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            let path = self.top.join(format!("{UNFINISHED}{}-{number}", process::id()));
            match options.open(&path) {
                // In containers every process can have the number 1.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < MAX_TRIES => {
                    tries += 1;
                }
                opened => return Ok((opened?, path)),
            }
        }
    }

    /// Notes that an image was used.
    pub(super) fn touch(&self, id: ImageId, digest: Digest) -> io::Result<()> {
        let file =
            OpenOptions::new().read(true).custom_flags(flags()).open(self.path(id, digest))?;
        futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW).map_err(io::Error::from)
    }

    /// Removes a file, and the directory with the last one.
    pub(super) fn remove(&self, id: ImageId, digest: Digest) -> io::Result<()> {
        match fs::remove_file(self.path(id, digest)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Only an empty one goes.
        let _ = fs::remove_dir(self.of_image(id));
        Ok(())
    }

    /// Moves something out of the way, for somebody to look at.
    fn set_aside(&self, path: &Path, why: &str) {
        self.broken.fetch_add(1, Ordering::Relaxed);
        if self.read_only {
            return self.tell(path, &why);
        }
        match self.try_set_aside(path) {
            Ok(to) => tracing::error!(
                "{} cannot be used as evidence, and was moved to {}: {why}",
                path.display(),
                to.display()
            ),
            Err(error) => self.tell(path, &format_args!("{why}; it cannot be moved away: {error}")),
        }
    }

    fn try_set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let directory = self.top.join(BROKEN);
        self.create(&directory)?;
        let numbered = |name: &str| name.rsplit_once('.')?.1.parse::<u64>().ok();
        let mut kept: Vec<_> = self
            .names(&directory, MAX_ENTRIES)?
            .into_iter()
            .filter_map(|(name, _)| Some((numbered(&name)?, name)))
            .collect();
        kept.sort_unstable();
        let number = kept.last().map_or(0, |(number, _)| *number).saturating_add(1);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = directory.join(format!("{name}.{number}"));
        fs::rename(path, &to)?;
        for (_, old) in kept.iter().take((kept.len() + 1).saturating_sub(MAX_BROKEN)) {
            let old = directory.join(old);
            // A directory that was put in the place of a file goes if it is empty.
            let _ = fs::remove_file(&old).or_else(|_| fs::remove_dir(&old));
        }
        Ok(to)
    }

    /// Says once what is wrong with a path that stays where it is.
    fn tell(&self, path: &Path, why: &dyn std::fmt::Display) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD && told.insert(path.to_owned()) {
            tracing::error!("{} cannot be used as evidence: {why}", path.display());
        }
    }

    /// The names in a directory, and whether each is a directory itself. A symbolic link is none.
    fn names(&self, path: &Path, most: usize) -> io::Result<Vec<(String, bool)>> {
        self.must_be_ours(path)?;
        let entries = fs::read_dir(path)?.take(most).filter_map(Result::ok);
        Ok(entries
            .map(|entry| {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                (entry.file_name().to_string_lossy().into_owned(), is_directory)
            })
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<()> {
        match self.must_be_ours(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => return done,
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // So that the directory itself survives a power cut.
        path.parent().map_or(Ok(()), sync)
    }

    /// Whether this is a directory itself. If it is something else, that is said once.
    fn must_be_ours(&self, path: &Path) -> io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        let why = match kind.is_dir() {
            true => return Ok(()),
            false if kind.is_symlink() => "it is a symbolic link, not a directory",
            false => "it is no directory",
        };
        self.tell(path, &why);
        Err(io::Error::new(ErrorKind::NotADirectory, why))
    }

    fn of_image(&self, id: ImageId) -> PathBuf {
        self.top.join(id.config().hex())
    }

    fn path(&self, id: ImageId, digest: Digest) -> PathBuf {
        self.of_image(id).join(format!("{}.json", digest.hex()))
    }
}

/// For messages: a name that somebody else chose.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", shorten(name))
}

fn of_hex(name: &str) -> Option<Digest> {
    format!("sha256:{name}").parse().ok()
}

/// A link is not followed, a pipe does not hold up, and children do not inherit.
fn flags() -> i32 {
    (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits()
}

fn sync(directory: &Path) -> io::Result<()> {
    // Whatever was put in its place meanwhile, this does not wait.
    let flags = (OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(directory)?.sync_all()
}

fn load(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(flags()).open(path)?;
    let metadata = file.metadata()?;
    let invalid = |why: String| Err(io::Error::new(ErrorKind::InvalidData, why));
    if !metadata.is_file() {
        return invalid(IRREGULAR.into());
    }
    let length = metadata.len();
    if length > MAX_DOCUMENT as u64 {
        return invalid(format!("it has {length} bytes, {MAX_DOCUMENT} are allowed"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // One that grows meanwhile is read as far as it was, and then is no document.
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether the fault is this process's or the machine's, and not the file's.
fn may_pass(error: &io::Error) -> bool {
    let passing = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EINTR, Errno::EAGAIN];
    passing.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
