//! Listener, connections, and the way of one request.

use std::{io, net::TcpListener, sync::Arc, sync::atomic::Ordering, thread};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::{
    Request, Shared,
    api::{Body, Call, Route, error, full},
    auth::TOKEN_PATH,
};

/// The thread; ends with the value.
pub(super) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(shared: Arc<Shared>, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        shared.url.set(url).expect("started once");
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
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
            assert!(ended.is_ok() || thread::panicking(), "the test registry panicked");
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<ServerConfig>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(connection(stream, Arc::clone(&shared), tls.clone()));
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    match tls {
        None => serve(stream, shared, false).await,
        Some(tls) => {
            // A client that does not trust us is what some tests want to see.
            let Ok(stream) = tls.accept(stream).await else { return };
            let client_cert = stream.get_ref().1.peer_certificates().is_some();
            serve(stream, shared, client_cert).await;
        }
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>, client_cert: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { answer(&shared, request, client_cert).await }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    // Ends with an error when a fault closes the connection or the client goes away.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    shared: &Shared,
    request: http::Request<Incoming>,
    client_cert: bool,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let target = head.uri.path_and_query().map_or(path, |target| target.as_str());
    let seen = Request {
        method: head.method.clone(),
        target: target.to_owned(),
        version: head.version,
        headers: head.headers.clone(),
        body: body.clone(),
        client_cert,
    };
    shared.requests.send_modify(|requests| requests.push(seen));
    let fault = shared.faults.lock().unwrap().due(&head.method, target);
    let url = format!("{}{target}", shared.url.get().unwrap());
    let instead = match &fault {
        Some(fault) => fault.instead(&url).await?,
        None => None,
    };
    let mut answer = match (instead, fault) {
        (Some(instead), _) => instead,
        (None, Some(fault)) => fault.spoil(usual(shared, &head, path, query, body)).await?,
        (None, None) => usual(shared, &head, path, query, body),
    };
    if head.method == Method::HEAD {
        *answer.body_mut() = full("");
    }
    Ok(answer)
}

/// The answer without faults.
fn usual(
    shared: &Shared,
    head: &http::request::Parts,
    path: &str,
    query: &str,
    body: Bytes,
) -> Response<Body> {
    let url = shared.url.get().unwrap();
    if let Some(auth) = &shared.auth {
        if path == TOKEN_PATH {
            return auth.token(&head.method, query, &head.headers, &body, url);
        }
        let scope = Route::of(path).scope(&head.method);
        if let Some(refusal) = auth.refusal(&head.headers, url, &scope) {
            return refusal;
        }
    }
    let call = Call { method: &head.method, path, query, headers: &head.headers, body };
    match shared.store.lock() {
        Ok(mut store) => call.answer(&mut store, &shared.options),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    }
}
