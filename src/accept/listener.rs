//! The socket itself: from systemd, or made here with the owner and mode of the runtime's.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
            net,
        },
    },
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use tokio::net::UnixListener;

/// Mode of the socket while the runtime's own is not there to be copied: root alone.
const DEFAULT_MODE: u32 = 0o600;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: net::UnixListener,
    made: Option<SocketFile>,
}

/// A socket file that was made here, and is taken away again when this is dropped. By path and
/// identity: what another process put there since is not ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// The socket that systemd passed, or else one bound to `path` with the owner and mode of
    /// `like`. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// Somebody listens at the path, or something else than a socket is there, or the system
    /// refuses.
    pub fn open(path: &Path, like: &Path) -> Result<Self, ListenError> {
        match ListenFd::from_env().take_unix_listener(0) {
            Ok(Some(socket)) => Ok(Self { socket, made: None }),
            Ok(None) => Self::bind(path, like),
            Err(error) => Err(ListenError::Activation(error)),
        }
    }

    fn bind(path: &Path, like: &Path) -> Result<Self, ListenError> {
        let failed = |what: &'static str| {
            move |error| ListenError::System { what, path: path.to_owned(), error }
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(there) if !there.file_type().is_socket() => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) => match net::UnixStream::connect(path) {
                Ok(_) => return Err(ListenError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(failed("connect to")(error)),
            },
        }
        let parent =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
        // Bound in a directory that only we may enter, and moved into place when its owner and
        // mode are right: nobody can connect before.
        let nursery = parent.join(format!(".portcullis-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&nursery)
            .map_err(failed("make a directory beside"))?;
        let made = Self::bind_in(&nursery, path, like);
        let _ = fs::remove_dir_all(&nursery);
        made.map_err(failed("bind"))
    }

    fn bind_in(nursery: &Path, path: &Path, like: &Path) -> io::Result<Self> {
        let young = nursery.join("s");
        let socket = net::UnixListener::bind(&young)?;
        match fs::metadata(like) {
            Ok(model) => {
                chown(&young, Some(model.uid()), Some(model.gid()))?;
                fs::set_permissions(&young, fs::Permissions::from_mode(model.mode() & 0o777))?;
            }
            Err(_) => fs::set_permissions(&young, fs::Permissions::from_mode(DEFAULT_MODE))?,
        }
        let identity = fs::symlink_metadata(&young)?;
        fs::rename(&young, path)?;
        let made = SocketFile { path: path.to_owned(), identity: (identity.dev(), identity.ino()) };
        Ok(Self { socket, made: Some(made) })
    }

    /// The socket for this runtime's reactor, to be closed when nothing more is accepted: who
    /// connects to a socket that nobody accepts on waits for nothing. And its file, where it was
    /// made here.
    pub fn accept(self) -> io::Result<(UnixListener, Option<SocketFile>)> {
        self.socket.set_nonblocking(true)?;
        Ok((UnixListener::from_std(self.socket)?, self.made))
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.made {
            Some(made) => write!(f, "{}", made.path.display()),
            None => write!(f, "systemd's socket (descriptor {})", self.socket.as_raw_fd()),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens: it is left alone.
    #[error(
        "{} is in use: another process answers there. Stop it, or set listen.socket to another path",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is at the path: it is left alone.
    #[error("{} exists and is no socket. Move it away, or set listen.socket to another path", .0.display())]
    NotASocket(PathBuf),
    /// systemd passed something that is no Unix listener.
    #[error(
        "the socket that systemd passed is no Unix stream socket: {0}. Look at ListenStream= in the socket unit"
    )]
    Activation(io::Error),
    /// The system refuses.
    #[error("cannot {what} {}: {error}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (socket, like) = (directory.path().join("run/p.sock"), directory.path().join("like"));
        fs::write(&like, "").unwrap();
        fs::set_permissions(&like, fs::Permissions::from_mode(0o640)).unwrap();
        (directory, socket, like)
    }

    #[test]
    fn the_socket_gets_the_mode_of_the_runtimes_and_goes_with_the_listener() {
        let (_directory, path, like) = scratch();
        let listener = Listener::bind(&path, &like).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        net::UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn without_a_runtime_root_alone_may_connect() {
        let (_directory, path, _) = scratch();
        let _listener = Listener::bind(&path, Path::new("/nonexistent")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, DEFAULT_MODE);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_left_alone() {
        let (_directory, path, like) = scratch();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(net::UnixListener::bind(&path).unwrap());
        let live = Listener::bind(&path, &like).unwrap();
        let error = Listener::bind(&path, &like).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)));
        net::UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let (_directory, _, like) = scratch();
        let error = Listener::bind(&like, &like).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)));
        assert!(like.exists());
    }

    #[test]
    fn a_successors_socket_is_not_taken_away() {
        let (_directory, path, like) = scratch();
        let first = Listener::bind(&path, &like).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, &like).unwrap();
        drop(first);
        net::UnixStream::connect(&path).unwrap();
    }
}
