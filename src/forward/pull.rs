//! A judged pull goes on: pinned to the digest that was judged, and recorded under the name that
//! its user wrote.

use http::{Request, header::CONTENT_LENGTH, request};
use tonic::Status;

use crate::{
    audit::Recorded,
    decide::Permit,
    decode::{PullRequest, cri, frame},
    image::{PinnedImage, Tag, Version},
};

use super::{Answer, Body, Upstream, alias, answer, relay::absolute, unary};

/// Sends a permitted pull to the runtime. The answer is the runtime's own, byte for byte, and
/// leaves when the runtime's `ImageStatus` shows the image under the tag that was asked for.
pub async fn pull(
    upstream: &Upstream,
    head: request::Parts,
    request: &PullRequest,
    permit: Recorded<Permit>,
) -> Answer {
    let permit = permit.into_inner();
    let image = permit.image();
    let message = request.message.with_image(&image.to_string());
    let mut call = absolute(Request::from_parts(head, Body::whole(frame(&message))));
    for replaced in [CONTENT_LENGTH.as_str(), "grpc-encoding", "grpc-accept-encoding"] {
        call.headers_mut().remove(replaced);
    }
    let response = match upstream.call(call).await {
        Ok(response) => response,
        Err(error) => return answer::unreachable(&error),
    };
    let whole = match unary::collect(response).await {
        Ok(whole) => whole,
        Err(status) => return answer::failed(status),
    };
    // A pull that failed has recorded nothing. A pull by digest adds no tag, as without us.
    if let (Ok(()), Version::Tag(tag)) = (whole.status(), &request.wanted.image.version)
        && let Err(status) = record(upstream, image, tag, &whole).await
    {
        return answer::failed(Status::unknown(format!(
            "{image} was pulled, but the runtime did not record it as {}: {}",
            request.wanted.image,
            status.message()
        )));
    }
    whole.into_response()
}

async fn record(
    upstream: &Upstream,
    image: &PinnedImage,
    tag: &Tag,
    pulled: &unary::Whole,
) -> Result<(), Status> {
    let pulled: cri::PullImageResponse = pulled.decode()?;
    alias::record(upstream, image, tag, &pulled.image_ref).await
}
