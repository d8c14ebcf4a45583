//! A client, the relay and a runtime, with HTTP/2 between them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};

use crate::forward::{Upstream, relay};

const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a call that the runtime takes until it gives more room.
const WINDOW: u32 = 10;

/// A call as the runtime has it.
struct Arrived {
    body: RecvStream,
    answer: server::SendResponse<Bytes>,
}

/// A client whose calls are relayed to a runtime.
struct Lab {
    client: client::SendRequest<Bytes>,
    calls: mpsc::UnboundedReceiver<Arrived>,
    _directory: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        Self::with(false).await
    }

    /// `detached`: whoever relays does not hear of a client that breaks off, but from the message.
    async fn with(detached: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("runtime.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (arrived, calls) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut runtime = server::Builder::new();
            runtime.initial_window_size(WINDOW);
            let mut runtime = runtime.handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, answer))) = runtime.accept().await {
                let _ = arrived.send(Arrived { body: request.into_body(), answer });
            }
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let upstream = Upstream::new(Arc::new(path));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let upstream = upstream.clone();
                let call = async move { relay(&upstream, request).await };
                async move {
                    Ok::<_, Infallible>(match detached {
                        true => tokio::spawn(call).await.unwrap(),
                        false => call.await,
                    })
                }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(theirs), service).await;
        });
        let (client, driver) = client::handshake(ours).await.unwrap();
        tokio::spawn(driver);
        Self { client, calls, _directory: directory }
    }

    /// Begins a call.
    async fn call(&mut self) -> (client::ResponseFuture, SendStream<Bytes>) {
        let request = Request::post("http://localhost/a/b").body(()).unwrap();
        let mut client = self.client.clone().ready().await.unwrap();
        client.send_request(request, false).unwrap()
    }

    async fn arrived(&mut self) -> Arrived {
        timeout(PATIENCE, self.calls.recv()).await.expect("a call arrives").unwrap()
    }
}

impl Arrived {
    /// The next bytes. The runtime has room for as many again.
    async fn next(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let next = timeout(PATIENCE, self.body.data()).await.expect("more, or an end");
        if let Some(Ok(data)) = &next {
            self.body.flow_control().release_capacity(data.len()).unwrap();
        }
        next
    }

    async fn all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.extend_from_slice(&data.unwrap());
        }
        all
    }

    /// For which reason the call is broken off, without room for more of it.
    async fn broken_off(&mut self) -> Option<Reason> {
        loop {
            match timeout(PATIENCE, self.body.data()).await.expect("more, or an end")? {
                Ok(_) => {}
                Err(error) => return error.reason(),
            }
        }
    }

    fn answers(&mut self) -> SendStream<Bytes> {
        self.answer.send_response(Response::new(()), false).unwrap()
    }
}

async fn answer(response: client::ResponseFuture) -> RecvStream {
    timeout(PATIENCE, response).await.expect("an answer begins").unwrap().into_body()
}

#[tokio::test]
async fn a_whole_message_arrives_whole() {
    let mut lab = Lab::new().await;
    for message in [&b""[..], b"short", b"longer than the runtime takes at once"] {
        let (response, mut stream) = lab.call().await;
        stream.send_data(Bytes::from_static(message), true).unwrap();
        let mut call = lab.arrived().await;
        assert_eq!(call.all().await, message);
        call.answers().send_data(Bytes::from_static(b"yes"), true).unwrap();
        assert_eq!(answer(response).await.data().await.unwrap().unwrap(), "yes");
    }
}

#[tokio::test]
async fn a_message_in_pieces_passes_piece_by_piece_and_the_answer_may_begin_before() {
    let mut lab = Lab::new().await;
    let (response, mut stream) = lab.call().await;
    let mut call = lab.arrived().await;
    let mut answers = call.answers();
    let mut answer = answer(response).await;
    for piece in ["one", "two", "three"] {
        stream.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
        assert_eq!(call.next().await.unwrap().unwrap(), piece);
        answers.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
        assert_eq!(answer.data().await.unwrap().unwrap(), piece);
    }
    let long = "more than the runtime takes at once, and in more than one piece";
    stream.send_data(Bytes::from_static(long.as_bytes()), false).unwrap();
    stream.send_data(Bytes::new(), true).unwrap();
    assert_eq!(call.all().await, long.as_bytes());
    assert!(call.body.trailers().await.unwrap().is_none());
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let mut lab = Lab::new().await;
    for message in ["", "message"] {
        let trailers = |name: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), "value".parse().unwrap())])
        };
        let (response, mut stream) = lab.call().await;
        if !message.is_empty() {
            stream.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
        }
        stream.send_trailers(trailers("there")).unwrap();
        let mut call = lab.arrived().await;
        assert_eq!(call.all().await, message.as_bytes());
        assert_eq!(call.body.trailers().await.unwrap(), Some(trailers("there")));
        call.answers().send_trailers(trailers("back")).unwrap();
        let mut answer = answer(response).await;
        assert!(answer.data().await.is_none());
        assert_eq!(answer.trailers().await.unwrap(), Some(trailers("back")));
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_is_heard_with_its_reason() {
    for (reason, heard) in [
        (Reason::CANCEL, Reason::CANCEL),
        (Reason::INTERNAL_ERROR, Reason::INTERNAL_ERROR),
        // The library does not tell one from the other.
        (Reason::NO_ERROR, Reason::CANCEL),
    ] {
        // Before it said anything, and within its message, which has no end then.
        for (message, detached) in [("", false), ("piece", false), ("", true), ("piece", true)] {
            let mut lab = Lab::with(detached).await;
            let (_response, mut stream) = lab.call().await;
            stream.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
            let mut call = lab.arrived().await;
            if !message.is_empty() {
                assert_eq!(call.next().await.unwrap().unwrap(), message);
            }
            stream.send_reset(reason);
            assert_eq!(call.broken_off().await, Some(heard));
        }
    }
}

/// However much of its message waits.
#[tokio::test]
async fn a_client_that_breaks_off_is_heard_by_a_runtime_that_takes_no_more() {
    let mut lab = Lab::new().await;
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR] {
        for (pieces, answered) in [(1, false), (2, false), (9, false), (9, true)] {
            let (response, mut stream) = lab.call().await;
            let mut call = lab.arrived().await;
            let answers = answered.then(|| call.answers());
            for _ in 0..pieces {
                stream.send_data(Bytes::from_static(b"longer than the window"), false).unwrap();
            }
            // As much as there is room for has arrived, and nothing more comes.
            let data = timeout(PATIENCE, call.body.data()).await.unwrap().unwrap().unwrap();
            assert_eq!(data.len(), WINDOW as usize);
            let answer = match answered {
                true => Ok(answer(response).await),
                false => Err(response),
            };
            stream.send_reset(reason);
            assert_eq!(call.broken_off().await, Some(reason), "{pieces} {answered}");
            drop((answer, answers));
        }
    }
}

#[tokio::test]
async fn a_runtime_that_wants_no_more_of_a_message_ends_the_call() {
    let mut lab = Lab::new().await;
    let (response, mut stream) = lab.call().await;
    stream.send_data(Bytes::from_static(b"longer than the window"), false).unwrap();
    let mut call = lab.arrived().await;
    call.answer.send_reset(Reason::REFUSED_STREAM);
    let response = timeout(PATIENCE, response).await.expect("an answer begins").unwrap();
    // UNAVAILABLE, as "gRPC over HTTP/2" has it.
    assert_eq!(response.headers()["grpc-status"], "14");
    drop(stream);
    // The connection is as good as before.
    let (response, mut stream) = lab.call().await;
    stream.send_data(Bytes::from_static(b"again"), true).unwrap();
    let mut call = lab.arrived().await;
    assert_eq!(call.all().await, b"again");
    call.answers().send_data(Bytes::new(), true).unwrap();
    assert!(answer(response).await.data().await.unwrap().unwrap().is_empty());
}

#[tokio::test]
async fn a_call_that_the_runtime_breaks_off_is_broken_off_for_the_same_reason() {
    let mut lab = Lab::new().await;
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (response, _stream) = lab.call().await;
        let mut call = lab.arrived().await;
        let mut answers = call.answers();
        let mut answer = answer(response).await;
        answers.send_data(Bytes::from_static(b"piece"), false).unwrap();
        assert_eq!(answer.data().await.unwrap().unwrap(), "piece");
        answers.send_reset(reason);
        let error = timeout(PATIENCE, answer.data()).await.expect("an end").unwrap().unwrap_err();
        assert_eq!((error.is_reset(), error.reason()), (true, Some(reason)));
    }
}
