//! The way to the runtime's socket: one HTTP/2 connection for each client connection.
//!
//! A connection of its own for each client keeps clients from holding each other up (HTTP/2 flow
//! control counts by connection), and lets the runtime see one client as one client.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Request, Response};
use tokio::{
    net::UnixStream,
    sync::{Mutex, watch},
    time::timeout,
};

use super::{
    Body, Socket,
    stream::{self, Received},
};

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
    connection: Arc<Mutex<Option<SendRequest<Bytes>>>>,
    /// Dropped with the last clone, and the connections with it: the library does not notice.
    alive: Arc<watch::Sender<()>>,
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
    Lost(#[source] h2::Error),
    /// The runtime reset this one call.
    #[error("the container runtime reset the call: {0}")]
    Reset(h2::Reason),
}

impl Upstream {
    /// A way to the runtime that listens at this path. Nothing is connected yet.
    pub fn new(socket: Arc<PathBuf>) -> Self {
        Self { socket, connection: Arc::default(), alive: Arc::default() }
    }

    /// A way of its own, as for another client.
    pub fn another(&self) -> Self {
        Self::new(self.socket.clone())
    }

    /// Sends one call and returns when its answer begins.
    pub async fn call(&self, request: Request<Body>) -> Result<Response<Received>, Unreachable> {
        let (head, body) = request.into_parts();
        let mut sender = self.ready().await?;
        let end = http_body::Body::is_end_stream(&body);
        let sent = sender.send_request(Request::from_parts(head, ()), end);
        let (response, stream) = sent.map_err(Unreachable::from)?;
        let caller = if end { None } else { stream::send(body, stream).await };
        let response = response.await.map_err(Unreachable::from)?;
        Ok(response.map(|stream| Received::new(stream, caller)))
    }

    /// A connection that takes a call now. One that broke since its last call is replaced; a
    /// fresh one that does not take it is not tried again.
    async fn ready(&self) -> Result<SendRequest<Bytes>, Unreachable> {
        loop {
            let (connection, fresh) = self.connection().await?;
            match connection.ready().await {
                Ok(ready) => return Ok(ready),
                Err(error) if fresh => return Err(error.into()),
                Err(_) => *self.connection.lock().await = None,
            }
        }
    }

    async fn connection(&self) -> Result<(SendRequest<Bytes>, bool), Unreachable> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref() {
            return Ok((connection.clone(), false));
        }
        let connect =
            async { Socket::new(timeout(CONNECT, UnixStream::connect(&*self.socket)).await??) };
        let stream = connect.await.map_err(|error: io::Error| Unreachable::Connect {
            socket: self.socket.to_path_buf(),
            error,
        })?;
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            // What is still on its way when a call is cancelled is no fault of the runtime.
            .max_local_error_reset_streams(None);
        let (connection, driver) = builder.handshake(stream).await.map_err(Unreachable::Lost)?;
        let mut alive = self.alive.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                ended = driver => if let Err(error) = ended {
                    tracing::debug!(%error, "the runtime's connection ended");
                },
                _ = alive.changed() => {}
            }
        });
        *slot = Some(connection.clone());
        Ok((connection, true))
    }
}

impl From<h2::Error> for Unreachable {
    fn from(error: h2::Error) -> Self {
        let reset = error.reason().filter(|_| error.is_reset() && error.is_remote());
        reset.map_or(Unreachable::Lost(error), Unreachable::Reset)
    }
}
