//! The call of `portcullis status` to a daemon.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::Code;

use super::{
    Unreachable, Upstream,
    unary::{request, within},
};

/// Asks a daemon how it stands; the answer is JSON. The method is served on the socket for CRI,
/// so that those may ask who may call CRI.
pub const NODE_STATUS: &str = "/portcullis.v1alpha1.Node/Status";

/// Largest answer, in bytes.
const MAX_STATUS: usize = 1 << 20;
/// Longest wait for it. The daemon waits for its runtime no longer than a fifth of that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a daemon did not tell how it stands.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Whoever asks may not.
    #[error("may not ask: cannot connect to {socket}: {error}: run this as root")]
    Forbidden {
        /// The socket's path.
        socket: String,
        /// What the system said.
        error: io::Error,
    },
    /// Nobody listens.
    #[error("not running: cannot connect to {socket}: {error}")]
    NotRunning {
        /// The socket's path.
        socket: String,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody listens who is no Portcullis of this kind.
    #[error("{0} is not answered by this version of Portcullis: {1}")]
    Stranger(String, String),
    /// The answer broke off, or did not come.
    #[error("{0} does not answer: {1}")]
    Silent(String, String),
}

/// Asks the daemon that listens on this socket.
pub async fn node_status(socket: &Path) -> Result<Vec<u8>, Unanswered> {
    let shown = socket.display().to_string();
    let answer = timeout(PATIENCE, ask(socket)).await;
    answer.unwrap_or_else(|_| {
        let why = format!("nothing came within {} s", PATIENCE.as_secs());
        Err(Unanswered::Silent(shown, why))
    })
}

async fn ask(socket: &Path) -> Result<Vec<u8>, Unanswered> {
    let shown = || socket.display().to_string();
    let daemon = Upstream::new(Arc::new(socket.to_owned()));
    let response = daemon.call(request(NODE_STATUS, b"")).await;
    let response = response.map_err(|error| unanswered(error, shown()))?;
    let answer = match within(response, MAX_STATUS).await {
        Ok(answer) => answer,
        Err(status) => return Err(Unanswered::Silent(shown(), status.message().to_owned())),
    };
    match answer.status() {
        Ok(()) => {}
        Err(status) if status.code() == Code::Unimplemented => {
            return Err(Unanswered::Stranger(shown(), status.message().to_owned()));
        }
        Err(status) => return Err(Unanswered::Silent(shown(), status.message().to_owned())),
    }
    let message = answer.message().ok().flatten().map(<[u8]>::to_vec);
    message.ok_or_else(|| Unanswered::Stranger(shown(), "its answer is not one message".into()))
}

fn unanswered(error: Unreachable, socket: String) -> Unanswered {
    match error {
        Unreachable::Connect { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            Unanswered::Forbidden { socket, error }
        }
        Unreachable::Connect { error, .. } => Unanswered::NotRunning { socket, error },
        Unreachable::Lost(error) => Unanswered::Silent(socket, error.to_string()),
        Unreachable::Reset(reason) => Unanswered::Silent(socket, reason.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_ask_is_not_told_that_nobody_listens() {
        let told = |error| {
            let error = io::Error::from_raw_os_error(error);
            let error = Unreachable::Connect { socket: "/p.sock".into(), error };
            unanswered(error, "/p.sock".to_owned()).to_string()
        };
        let (forbidden, refused) = (13, 111);
        assert_eq!(
            told(forbidden),
            "may not ask: cannot connect to /p.sock: Permission denied (os error 13): run this as \
             root"
        );
        assert_eq!(
            told(refused),
            "not running: cannot connect to /p.sock: Connection refused (os error 111)"
        );
    }
}
