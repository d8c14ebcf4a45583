//! The way to the runtime's socket: one HTTP/2 connection for each client connection.
//!
//! A connection of its own for each client keeps clients from holding each other up (HTTP/2 flow
//! control counts by connection), and lets the runtime see one client as one client.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, sync::Mutex, time::timeout};

use super::{Body, Socket};

/// How long the runtime may take to accept a connection. A socket that nobody listens on fails
/// at once; this bounds a runtime that hangs with its backlog full.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of one answer in flight before the runtime must wait for its reader.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same over all answers of a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Largest header list, in bytes: an error's details travel in headers, twice.
pub(crate) const MAX_HEADERS: u32 = 64 << 10;

/// One client's way to the runtime, connected when first used and again when it broke.
#[derive(Clone, Debug)]
pub struct Upstream {
    socket: Arc<PathBuf>,
    connection: Arc<Mutex<Option<SendRequest<Body>>>>,
}

/// The runtime cannot be reached, or went away before it answered.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// Nobody listens, or not in time.
    #[error("cannot connect to the container runtime at {}: {error}", socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The connection broke before the answer began.
    #[error("the container runtime closed its connection")]
    Lost(#[source] hyper::Error),
    /// The runtime reset this one call.
    #[error("the container runtime reset the call: {0}")]
    Reset(h2::Reason),
}

impl Upstream {
    /// A way to the runtime that listens at this path. Nothing is connected yet.
    pub fn new(socket: Arc<PathBuf>) -> Self {
        Self { socket, connection: Arc::default() }
    }

    /// A way of its own, as for another client.
    pub fn another(&self) -> Self {
        Self::new(self.socket.clone())
    }

    /// Sends one call and returns when its answer begins.
    pub async fn call(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Unreachable> {
        loop {
            let (mut connection, fresh) = self.connection().await?;
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(response),
                // A connection that broke since its last call gives the request back unsent. A
                // fresh one that does so is not tried again: this ends after two rounds.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(Unreachable::from(error.into_error())),
                },
            }
        }
    }

    async fn connection(&self) -> Result<(SendRequest<Body>, bool), Unreachable> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok((connection.clone(), false));
        }
        let connect =
            async { Socket::new(timeout(CONNECT, UnixStream::connect(&*self.socket)).await??) };
        let stream = connect.await.map_err(|error: io::Error| Unreachable::Connect {
            socket: self.socket.to_path_buf(),
            error,
        })?;
        let (connection, driver) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            // What is still on its way when a call is cancelled is no fault of the runtime.
            .max_local_error_reset_streams(None)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Unreachable::Lost)?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the runtime's connection ended");
            }
        });
        *slot = Some(connection.clone());
        Ok((connection, true))
    }
}

impl From<hyper::Error> for Unreachable {
    fn from(error: hyper::Error) -> Self {
        use std::error::Error;
        let reset = error
            .source()
            .and_then(|source| source.downcast_ref::<h2::Error>())
            .filter(|error| error.is_reset() && error.is_remote())
            .and_then(h2::Error::reason);
        reset.map_or(Unreachable::Lost(error), Unreachable::Reset)
    }
}
