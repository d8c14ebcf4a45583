//! A gRPC client that shows answers as they are on the wire.

use std::{path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// Longest a test waits for an answer; none comes near it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One connection to a socket.
#[derive(Clone)]
pub(crate) struct Client(SendRequest<Full<Bytes>>);

/// An answer, raw.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .await
            .unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        Self::over(stream).await.expect("handshake")
    }

    /// Over a connection that is there.
    pub(crate) async fn over(stream: UnixStream) -> hyper::Result<Self> {
        let (client, driver) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(driver);
        Ok(Self(client))
    }

    /// Begins a call with a framed message and more headers.
    pub(crate) async fn begin(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        framed: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "grpc-go/1.72.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.clone().send_request(request.body(Full::new(framed)).unwrap()).await
    }

    /// A whole call.
    pub(crate) async fn call(&self, path: &str, headers: &[(&str, &str)], framed: Bytes) -> Raw {
        let call = async {
            let (head, mut body) =
                self.begin(path, headers, framed).await.expect("an answer").into_parts();
            let (mut data, mut trailers) = (BytesMut::new(), None);
            while let Some(frame) = body.frame().await {
                match frame.expect("a whole answer").into_data() {
                    Ok(bytes) => data.extend_from_slice(&bytes),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            Raw { headers: head.headers, body: data.freeze(), trailers }
        };
        tokio::time::timeout(PATIENCE, call).await.expect("an answer in time")
    }

    /// A whole call with a message of prost's.
    pub(crate) async fn unary(&self, path: &str, message: &impl Message) -> Raw {
        self.call(path, &[], framed(&message.encode_to_vec())).await
    }
}

impl Raw {
    /// gRPC code and message.
    pub(crate) fn status(&self) -> (i32, String) {
        let from = |map: &HeaderMap| {
            let code = map.get("grpc-status")?.to_str().ok()?.parse().ok()?;
            let status = tonic::Status::from_header_map(map)?;
            Some((code, status.message().to_owned()))
        };
        let status = self.trailers.as_ref().and_then(from).or_else(|| from(&self.headers));
        status.unwrap_or_else(|| panic!("no status in {self:?}"))
    }

    /// The message of a call that succeeded.
    #[track_caller]
    pub(crate) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.status(), (0, String::new()));
        M::decode(&self.body[5..]).expect("the message")
    }
}

/// A message in its gRPC frame.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}
