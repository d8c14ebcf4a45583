//! The bodies that pass through: frames as they came, or one message that is already whole.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;

use super::Received;

/// A request or response body on either side of the relay.
#[derive(Debug)]
pub enum Body {
    /// Frames of the other side, passed on one by one as they come.
    Relayed(Incoming),
    /// Frames of the runtime. Should it go away in the middle, its client is told so by a
    /// status, as if connected to the runtime directly.
    FromRuntime(Received),
    /// One message, and the trailers behind it.
    Whole {
        /// The framed message, until it was taken.
        data: Option<Bytes>,
        /// The trailers, until they were taken.
        trailers: Option<HeaderMap>,
    },
}

impl Body {
    /// A body of one framed message without trailers.
    pub fn whole(data: impl Into<Bytes>) -> Self {
        Body::Whole { data: Some(data.into()), trailers: None }
    }
}

impl Default for Body {
    /// The empty body.
    fn default() -> Self {
        Body::Whole { data: None, trailers: None }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Body::Relayed(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Client),
            Body::FromRuntime(body) => match std::task::ready!(Pin::new(body).poll_frame(cx)) {
                Some(Err(error)) if !is_stream_reset(&error) => {
                    let gone = lost(&error);
                    *self = Body::default();
                    Poll::Ready(Some(Ok(Frame::trailers(gone))))
                }
                frame => Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Runtime))),
            },
            Body::Whole { data, trailers } => {
                let frame =
                    data.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Relayed(body) => body.is_end_stream(),
            Body::FromRuntime(body) => body.is_end_stream(),
            Body::Whole { data, trailers } => data.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Relayed(body) => body.size_hint(),
            Body::FromRuntime(body) => body.size_hint(),
            // An exact size would become a `content-length`, which gRPC peers do not send, and
            // behind which some clients look for no trailers.
            Body::Whole { data: Some(_), .. } => SizeHint::default(),
            Body::Whole { data: None, .. } => SizeHint::with_exact(0),
        }
    }
}

/// A reset of this one stream by the runtime is passed on as a reset; anything else means that
/// the connection is gone.
fn is_stream_reset(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote()
}

/// A body that broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's.
    #[error(transparent)]
    Client(hyper::Error),
    /// The runtime's.
    #[error("{0}")]
    Runtime(#[source] h2::Error),
}

impl BodyError {
    /// The reason for which HTTP/2 was told to break it off.
    pub(super) fn reason(&self) -> Option<h2::Reason> {
        match self {
            BodyError::Client(error) => {
                let source = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
                source.and_then(h2::Error::reason)
            }
            BodyError::Runtime(error) => error.reason(),
        }
    }
}

fn lost(error: &h2::Error) -> HeaderMap {
    tracing::debug!(%error, "the runtime's connection broke within an answer");
    let mut trailers = HeaderMap::new();
    let status = Status::unavailable("the container runtime closed its connection");
    status.add_header(&mut trailers).expect("a constant ASCII message is a valid header");
    trailers
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[test]
    fn a_message_announces_no_length() {
        let body = Body::whole("message");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (None, false));
        let body = Body::default();
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    }
}
