//! The relay: connections in, calls routed.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    decode::{MAX_MESSAGE, PREFIX},
    forward::{self, Answer, MAX_HEADERS, Socket, Upstream},
    pipeline::Pipeline,
    refusal::{Code, Refusal},
    status,
};

use super::{
    capacity, deadline,
    drain::{Calls, ordered},
    route::{Judged, Methods, Own, Route},
};

/// Calls in flight on one connection. kubelet holds one for each exec probe that runs.
const STREAMS: u32 = 4096;
/// Bytes of one request in flight before its client must wait.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same over all requests of a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long to wait when no connection can be accepted, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long calls in flight may go on after the order to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a connection that had no call for as long stays then: for its client to hear that it
/// ends. One that listens ends it before, and for who was just answered there is time to read.
const FAREWELL: Duration = Duration::from_millis(100);

/// Serves CRI on the listener until `stop` turns true; then lets calls in flight end.
pub async fn serve(
    listener: UnixListener,
    pipeline: Pipeline,
    upstream: Upstream,
    methods: Arc<Methods>,
    desk: status::Desk,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let most = capacity::connections();
    let mut crowded = false;
    let stopping = stop.clone();
    let mut stopped = pin!(ordered(&mut stop));
    let mut exhausted = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    exhausted = false;
                    while connections.try_join_next().is_some() {}
                    if connections.len() >= most {
                        // Closed, so that its client can tell. Said once until there is room.
                        if !std::mem::replace(&mut crowded, true) {
                            tracing::error!(
                                "{most} clients are connected, and there may be no more: others \
                                 are turned away; look for a client that leaves connections open"
                            );
                        }
                        continue;
                    }
                    crowded = false;
                    let client = Client {
                        pipeline: pipeline.clone(),
                        upstream: upstream.another(),
                        methods: methods.clone(),
                        peer: peer(&stream, &desk),
                        desk: desk.clone(),
                    };
                    connections.spawn(client.converse(stream, stopping.clone()));
                }
                Err(error) => {
                    if !std::mem::replace(&mut exhausted, true) {
                        tracing::error!(%error, "cannot accept connections; they wait");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut stopped => break,
        }
    }
    drop(listener);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "calls were still in flight after {} s",
            DRAIN.as_secs()
        );
    }
}

/// One client connection.
struct Client {
    pipeline: Pipeline,
    upstream: Upstream,
    methods: Arc<Methods>,
    desk: status::Desk,
    /// The process on the other side, where it is worth a note.
    peer: Option<Arc<status::Client>>,
}

fn peer(stream: &UnixStream, desk: &status::Desk) -> Option<Arc<status::Client>> {
    desk.board().connected(stream.peer_cred().ok()?.pid())
}

impl Client {
    async fn converse(self, stream: UnixStream, mut stop: watch::Receiver<bool>) {
        let socket = match Socket::new(stream) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%error, "cannot take a connection"),
        };
        let client = Arc::new(self);
        let calls = Calls::until(stop.clone());
        let begun = calls.clone();
        let service = service_fn(move |request| {
            let (client, call) = (client.clone(), begun.begin(path_of(&request)));
            async move { Ok::<_, Infallible>(call.answered(client.answer(request)).await) }
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                // Cancelled calls cost no more than others, and a connection that is ended for
                // them takes the exec sessions on it along.
                .max_pending_accept_reset_streams(STREAMS as usize)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADERS)
                .auto_date_header(false)
                .serve_connection(TokioIo::new(socket), service)
        );
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = ordered(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = calls.over(FAREWELL, DRAIN) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a client's connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = path_of(&request);
        if let Some(peer) = &self.peer {
            peer.calls();
        }
        match self.methods.route(path) {
            Route::Relay => forward::relay(&self.upstream, request).await,
            Route::Own(Own::Status) => forward::json(&self.desk.report().await),
            Route::Refuse => forward::unimplemented(path),
            Route::Judge(judged) => {
                let limit = deadline::of(request.headers());
                // Its state is large, and in here each relayed call would make room for it.
                let answer = Box::pin(self.judge(judged, request));
                match limit {
                    Some(limit) => timeout(limit, answer)
                        .await
                        .unwrap_or_else(|_| forward::deadline_exceeded()),
                    None => answer.await,
                }
            }
        }
    }

    async fn judge(&self, judged: Judged, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = take_in(judged.method(), body).await;
        let (pipeline, upstream) = (&self.pipeline, &self.upstream);
        match judged {
            Judged::Pull => pipeline.pull(upstream, head, body).await,
            Judged::Create => pipeline.create(upstream, head, body).await,
            Judged::ImageStatus => pipeline.image_status(upstream, head, body).await,
            Judged::RunPodSandbox => pipeline.run_pod_sandbox(upstream, head, body).await,
        }
    }
}

/// The method, with the query, which none has: the runtime is told all of it.
fn path_of<B>(request: &Request<B>) -> &str {
    request.uri().path_and_query().map_or("", |path| path.as_str())
}

/// A whole request, bounded.
async fn take_in(method: &str, body: Incoming) -> Result<Vec<u8>, Refusal> {
    let body = Limited::new(body, PREFIX + MAX_MESSAGE).collect().await;
    body.map(|body| body.to_bytes().into()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            let why = format!("{method} request: more than {MAX_MESSAGE} bytes");
            Refusal::new(Code::LimitExceeded, why)
        } else {
            let why = format!("{method} request: its message broke off");
            Refusal::new(Code::MalformedRequest, why)
        }
    })
}
