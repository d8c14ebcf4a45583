//! Every call that is not judged: opaque frames, both ways.

use http::{
    Request,
    uri::{Authority, Scheme, Uri},
};
use hyper::body::Incoming;

use super::{Answer, Body, Upstream, answer};

/// Passes a call on as it came, and its answer back. Dropping the future cancels the call at the
/// runtime, as its client's cancellation does.
pub async fn relay(upstream: &Upstream, request: Request<Incoming>) -> Answer {
    match upstream.call(absolute(request.map(Body::Relayed))).await {
        Ok(response) => response.map(Body::FromRuntime),
        Err(error) => answer::unreachable(&error),
    }
}

/// HTTP/2 requests carry scheme and authority; a client that left one out gets gRPC's usual.
pub(super) fn absolute<B>(mut request: Request<B>) -> Request<B> {
    let uri = request.uri();
    if uri.scheme().is_none() || uri.authority().is_none() {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.authority.get_or_insert(Authority::from_static("localhost"));
        *request.uri_mut() =
            Uri::from_parts(parts).expect("scheme, authority and the path of a request make a URI");
    }
    request
}
