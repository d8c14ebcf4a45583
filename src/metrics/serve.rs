//! `GET /metrics` over HTTP/1, and nothing else.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::config::MetricsAddress;

use super::{Metrics, Sources};

/// Connections at once; others wait.
const MAX_CONNECTIONS: usize = 16;
/// Header fields of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Longest time for a connection, from its first byte to the last of its answer.
const SCRAPE: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A socket for metrics.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

/// Metrics cannot be served where the configuration says.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be served at {address}: {error}; choose another metrics.listen")]
pub struct MetricsError {
    address: MetricsAddress,
    error: io::Error,
}

impl Listener {
    /// Listens. At the path of a socket that nobody serves any more, it takes the place of that;
    /// only the daemon's own user can connect there.
    ///
    /// # Errors
    ///
    /// The address is in use, or not this machine's; the path holds something else.
    pub async fn open(address: &MetricsAddress) -> Result<Self, MetricsError> {
        let listener = match address {
            MetricsAddress::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            MetricsAddress::Unix(path) => unix(path).map(Self::Unix),
        };
        listener.map_err(|error| MetricsError { address: address.clone(), error })
    }
}

fn unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves metrics. Never ends.
pub async fn serve(listener: Listener, metrics: Metrics, sources: Sources) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return };
        let accepted = match &listener {
            Listener::Tcp(listener) => {
                listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>)
            }
            Listener::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>)
            }
        };
        match accepted {
            Ok(stream) => {
                let (metrics, sources) = (metrics.clone(), sources.clone());
                tokio::spawn(async move {
                    let _ = timeout(SCRAPE, converse(stream, metrics, sources)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn converse(stream: Box<dyn Stream>, metrics: Metrics, sources: Sources) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, || metrics.text(&sources));
        async move { Ok::<_, Infallible>(answer) }
    });
    // What goes wrong with a reader of metrics is the reader's business.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SCRAPE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(request: &Request<Incoming>, text: impl FnOnce() -> String) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => (StatusCode::OK, OPEN_METRICS, text()),
        ("/metrics", _) => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned()),
    };
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}
