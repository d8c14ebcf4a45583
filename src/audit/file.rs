//! The files under the log: opened, locked, and what can be wrong with them.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag};

/// How many names are tried for the bytes of a torn line.
const MAX_TORN_FILES: u32 = 100;
/// How often a lock that another process holds is tried again, and how soon.
const LOCK_TRIES: u32 = 20;
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Why the audit log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process holds the lock.
    #[error(
        "{0} is in use by another process: stop it, or give each daemon an audit file and a \
         state directory of its own"
    )]
    Locked(PathBuf),
    /// A directory, a device, a pipe.
    #[error("{0} is not a regular file: name one as the audit file")]
    Irregular(PathBuf),
    /// Something that Portcullis did not write, and will not cut.
    #[error("{0} holds something else than audit records: move it away, or name another file")]
    Foreign(PathBuf),
    /// The writer's thread does not start.
    #[error("cannot start the thread that writes the audit log: {0}")]
    Thread(io::Error),
    /// The operating system says no.
    #[error("cannot {doing} {path}: {source}: {}", remedy(.source))]
    Io {
        /// A verb.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl LogError {
    /// For `map_err`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Whether this may pass without a hand on the configuration: a disk that is full or fails.
    /// Calls that need no judgement must go on meanwhile.
    pub(super) fn may_pass(&self) -> bool {
        use io::ErrorKind as Kind;
        match self {
            Self::Locked(_) | Self::Irregular(_) | Self::Foreign(_) | Self::Thread(_) => false,
            Self::Io { source, .. } => match source.kind() {
                Kind::PermissionDenied | Kind::NotADirectory | Kind::IsADirectory => false,
                _ => !is_symbolic_link(source),
            },
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => "make room there",
        Kind::PermissionDenied => "let Portcullis write there",
        Kind::ReadOnlyFilesystem => "mount it writable",
        _ if is_symbolic_link(error) => "name the file itself, not a symbolic link",
        _ => "check the path, the disk and the kernel's log",
    }
}

/// What `O_NOFOLLOW` makes of one.
fn is_symbolic_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Creates a directory and its parents, for the owner only.
pub(super) fn create_directory(path: &Path) -> Result<(), LogError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(LogError::io("create", path))
}

/// Taken until the file is closed, by this process or its end.
///
/// A lock that is held is tried again for a moment: a child process shares its parent's locks
/// from fork to exec, so one that was just let go of may still be there.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), LogError> {
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                thread::sleep(LOCK_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => return Err(LogError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(LogError::io("lock", path)(error)),
        }
    }
}

/// Opens the log for reading and appending, or creates it and makes its name durable.
pub(super) fn open_log(path: &Path) -> Result<File, LogError> {
    // O_NONBLOCK: a pipe put there must not hold up the daemon.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600).custom_flags(flags);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = directory_of(path);
            create_directory(directory)?;
            let file = options.create(true).open(path).map_err(LogError::io("create", path))?;
            sync_directory(directory)?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(LogError::Irregular(path.to_owned()));
        }
        opened => opened.map_err(LogError::io("open", path))?,
    };
    if !file.metadata().map_err(LogError::io("read", path))?.is_file() {
        return Err(LogError::Irregular(path.to_owned()));
    }
    lock(&file, path)?;
    Ok(file)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(directory: &Path) -> Result<(), LogError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(LogError::io("sync", directory))
}

/// Copies the bytes from `start` on into a file of their own, and returns its path. They are
/// durable there before the caller cuts them off.
pub(super) fn preserve(log: &File, path: &Path, start: u64, seq: u64) -> Result<PathBuf, LogError> {
    let (mut torn, torn_path) = create_torn(path, seq)?;
    let copy = |torn: &mut File| {
        let mut log = log;
        log.seek(SeekFrom::Start(start))?;
        io::copy(&mut log.take(u64::MAX), torn)?;
        torn.flush()?;
        torn.sync_all()
    };
    if let Err(error) = copy(&mut torn) {
        // Best effort: the bytes are still in the log, and the next try takes another name.
        let _ = std::fs::remove_file(&torn_path);
        return Err(LogError::io("write", &torn_path)(error));
    }
    sync_directory(directory_of(path))?;
    Ok(torn_path)
}

fn create_torn(path: &Path, seq: u64) -> Result<(File, PathBuf), LogError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut number = 0;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".torn-{seq}"));
        if number > 0 {
            name.push(format!("-{number}"));
        }
        let torn = PathBuf::from(name);
        match options.open(&torn) {
            Ok(file) => return Ok((file, torn)),
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && number < MAX_TORN_FILES =>
            {
                number += 1;
            }
            Err(error) => return Err(LogError::io("create", &torn)(error)),
        }
    }
}
