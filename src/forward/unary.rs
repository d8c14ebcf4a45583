//! Our own few calls to the runtime.

use bytes::{Buf, Bytes};
use http::{
    HeaderValue, Request, Response,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use http_body_util::{BodyExt, Collected, Limited};
use prost::Message;
use tonic::Status;

use crate::{
    decode::{MAX_MESSAGE, PREFIX, frame, unframe},
    refusal::{Code, Refusal},
};

use super::{Answer, Body, Received, Upstream};

/// Metadata that names containerd's namespace; those of Kubernetes live in `k8s.io`.
const NAMESPACE: (&str, &str) = ("containerd-namespace", "k8s.io");

/// One call with one message each way.
pub(super) async fn unary<Answer: Message + Default>(
    upstream: &Upstream,
    path: &'static str,
    message: &impl Message,
) -> Result<Answer, Status> {
    let response = ask(upstream, path, message, MAX_MESSAGE).await?;
    response.decode()
}

/// One call with one message there and several back, of at most `limit` bytes in all.
pub(super) async fn streamed<Answer: Message + Default>(
    upstream: &Upstream,
    path: &'static str,
    message: &impl Message,
    limit: usize,
) -> Result<Vec<Answer>, Status> {
    // containerd sends content in pieces of some KiB, each framed.
    let response = ask(upstream, path, message, limit + limit / 16 + (64 << 10)).await?;
    let mut rest = &response.data[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let strange = || Status::internal("the runtime's answer is no sequence of messages");
        let length: [u8; 4] =
            rest.get(1..PREFIX).and_then(|bytes| bytes.try_into().ok()).ok_or_else(strange)?;
        let end = PREFIX.checked_add(u32::from_be_bytes(length) as usize).ok_or_else(strange)?;
        let framed = rest.get(..end).ok_or_else(strange)?;
        let message = unframe(framed).map_err(|_| strange())?;
        messages.push(Answer::decode(message).map_err(|_| strange())?);
        rest = &rest[end..];
    }
    Ok(messages)
}

async fn ask(
    upstream: &Upstream,
    path: &'static str,
    message: &impl Message,
    limit: usize,
) -> Result<Whole, Status> {
    let request = request(path, &message.encode_to_vec());
    let response =
        upstream.call(request).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let response = within(response, limit).await?;
    response.status()?;
    Ok(response)
}

pub(super) fn request(path: &'static str, message: &[u8]) -> Request<Body> {
    Request::post(format!("http://localhost{path}"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(TE, HeaderValue::from_static("trailers"))
        .header(USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .header(NAMESPACE.0, NAMESPACE.1)
        .body(Body::whole(frame(message)))
        .expect("constant paths and headers make a request")
}

/// A whole answer of the runtime, held until it may leave.
#[derive(Debug)]
pub struct Whole {
    head: http::response::Parts,
    data: Bytes,
    trailers: Option<http::HeaderMap>,
}

impl Whole {
    /// What the runtime said of the call.
    pub(super) fn status(&self) -> Result<(), Status> {
        let status = self.trailers.as_ref().and_then(Status::from_header_map);
        match status.or_else(|| Status::from_header_map(&self.head.headers)) {
            Some(status) if status.code() == tonic::Code::Ok => Ok(()),
            Some(status) => Err(status),
            None => Err(Status::internal("the runtime's answer has no status")),
        }
    }

    /// The message of a call that succeeded.
    pub(super) fn decode<Answer: Message + Default>(&self) -> Result<Answer, Status> {
        let message = unframe(&self.data)
            .map_err(|_| Status::internal("the runtime's answer is not one message"))?;
        Answer::decode(message)
            .map_err(|_| Status::internal("the runtime's answer cannot be decoded"))
    }

    /// The one message of a call that succeeded. None: the call failed.
    ///
    /// # Errors
    ///
    /// `internal`: the runtime says that the call succeeded, and its answer is not one message
    /// that can be read here.
    pub fn message(&self) -> Result<Option<&[u8]>, Refusal> {
        if self.status().is_err() {
            return Ok(None);
        }
        unframe(&self.data).map(Some).map_err(|error| {
            Refusal::new(Code::Internal, format!("the container runtime's answer: {error}"))
        })
    }

    /// The same answer with the empty message.
    pub fn emptied(self) -> Answer {
        Whole { data: frame(&[]).into(), ..self }.into_response()
    }

    /// The answer as it came.
    pub fn into_response(self) -> Answer {
        let data = (!self.data.is_empty()).then_some(self.data);
        Response::from_parts(self.head, Body::Whole { data, trailers: self.trailers })
    }
}

/// Takes a whole answer in, of one message at most.
pub(super) async fn collect(response: Response<Received>) -> Result<Whole, Status> {
    within(response, MAX_MESSAGE).await
}

pub(super) async fn within(response: Response<Received>, limit: usize) -> Result<Whole, Status> {
    let (head, body) = response.into_parts();
    let body: Collected<Bytes> = Limited::new(body, PREFIX + limit)
        .collect()
        .await
        .map_err(|error| Status::unavailable(format!("the runtime's answer broke off: {error}")))?;
    let trailers = body.trailers().cloned();
    let mut data = body.aggregate();
    Ok(Whole { head, data: data.copy_to_bytes(data.remaining()), trailers })
}
