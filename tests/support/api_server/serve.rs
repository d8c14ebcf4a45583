//! Listener, connections, and the way of one request.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
    time::Instant,
};

use http::Response;
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::{
    Request, Shared,
    answer::{self, Body},
};

/// Connections that wait to be accepted: as many as a server written in Go lets wait on Linux.
const BACKLOG: u32 = 4096;

/// The thread; ends with the value.
pub(super) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(shared: Arc<Shared>, tls: Option<ServerConfig>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _runtime = runtime.enter();
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
            socket.listen(BACKLOG).unwrap()
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        shared.url.set(url).expect("started once");
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, shared, tls) => {}
                }
            });
            // Dropping the runtime drops every connection, also those that hang.
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the API server of the test panicked");
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<ServerConfig>) {
    let tls = tls.map(|config| {
        let mut config = config;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(connection(stream, Arc::clone(&shared), tls.clone()));
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    let _ = stream.set_nodelay(true);
    let stream = Counted { stream, shared: Arc::clone(&shared) };
    match tls {
        None => serve(stream, shared, None).await,
        Some(tls) => {
            // A client that does not trust us is what some tests want to see.
            let Ok(stream) = tls.accept(stream).await else { return };
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(|all| Some(all.first()?.to_vec()));
            serve(stream, shared, certificate).await;
        }
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>, certificate: Option<Vec<u8>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let certificate = Arc::new(certificate);
    let service = service_fn(move |request| {
        let (shared, certificate) = (Arc::clone(&shared), Arc::clone(&certificate));
        async move { respond(shared, request, (*certificate).as_deref()).await }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new());
    // Ends with an error when a fault closes the connection or the client goes away.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
    certificate: Option<&[u8]>,
) -> io::Result<Response<Body>> {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let request = Request { method: head.method, target, headers: head.headers, body, arrived };
    shared.requests.send_modify(|requests| requests.push(request.clone()));
    let fault =
        shared.faults.lock().unwrap().due(&format!("{} {}", request.method, request.target));
    answer::answer(shared, request, certificate, fault).await
}

/// A connection whose bytes are counted.
struct Counted {
    stream: TcpStream,
    shared: Arc<Shared>,
}

fn count(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        count(&self.shared.received, buffer.filled().len() - before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        count(&self.shared.sent, *written.as_ref().unwrap_or(&0));
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
