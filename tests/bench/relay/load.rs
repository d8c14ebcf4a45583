//! The one load generator: one connection to a contender, as kubelet has it, and blocks of calls.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::client::{Builder, SendRequest};
use http::{Request, Version};
use tokio::net::UnixStream;

use crate::support::grpc::framed;

/// Bytes of answers in flight, so large that no answer waits for its reader.
const WINDOW: u32 = 16 << 20;

/// A call as it is sent each time.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) path: &'static str,
    message: Bytes,
}

impl Call {
    pub(crate) fn new(path: &'static str, message: &[u8]) -> Self {
        Self { path, message: framed(message) }
    }
}

/// What a block of calls took.
pub(crate) struct Block {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) took: Duration,
}

/// A connection to a contender.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    calls: u32,
}

impl Connection {
    pub(crate) async fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        let mut builder = Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender, calls: 0 }
    }

    /// One call, which must succeed. Returns the message.
    pub(crate) async fn call(&mut self, call: &Call) -> Vec<Bytes> {
        self.calls += 1;
        let request = Request::post(format!("http://localhost{}", call.path))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("user-agent", "grpc-go/1.72.1")
            .header("te", "trailers")
            // What is left of the time allowed is another number each time.
            .header("grpc-timeout", format!("{}u", 99_999_999 - self.calls % 10_000))
            .body(())
            .unwrap();
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(call.message.clone(), true).unwrap();
        let response = response.await.unwrap();
        let headers = response.headers().clone();
        let mut body = response.into_body();
        let mut data = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            data.push(piece);
        }
        let trailers = body.trailers().await.unwrap();
        let status = trailers.as_ref().unwrap_or(&headers);
        assert!(
            status.get("grpc-status").is_some_and(|status| status == "0"),
            "{}: {headers:?} {trailers:?}",
            call.path
        );
        data
    }

    /// This many calls, so many of them in flight at any time.
    pub(crate) async fn block(&self, call: &Call, in_flight: usize, calls: usize) -> Block {
        let begun = Instant::now();
        let worker = |share: usize| {
            let mut connection = self.clone();
            async move {
                let mut latencies = Vec::with_capacity(share);
                for _ in 0..share {
                    let begun = Instant::now();
                    connection.call(call).await;
                    latencies.push(begun.elapsed());
                }
                latencies
            }
        };
        let mut workers: FuturesUnordered<_> =
            (0..in_flight).map(|_| worker(calls.div_ceil(in_flight))).collect();
        let mut latencies = Vec::with_capacity(calls);
        while let Some(more) = workers.next().await {
            latencies.extend(more);
        }
        Block { latencies, took: begun.elapsed() }
    }
}
