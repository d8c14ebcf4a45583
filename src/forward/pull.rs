//! A judged pull goes on: pinned to the digest that was judged, and recorded under the name that
//! its user wrote.

use http::{HeaderValue, Request, header::CONTENT_TYPE, request};
use prost::Message;
use tonic::Status;

use crate::{
    audit::Recorded,
    decide::Permit,
    decode::{PullRequest, cri, frame},
    image::{PinnedImage, Tag, Version},
    named::ImageId,
};

use super::{Answer, Upstream, alias, answer, judged::hold, unary};

/// Sends a permitted pull to the runtime. The answer is the runtime's own, byte for byte, and
/// leaves when the runtime's `ImageStatus` shows the image under the tag that was asked for.
/// Returns the ID of the pulled image as well, where there is one.
pub async fn pull(
    upstream: &Upstream,
    head: request::Parts,
    request: &PullRequest,
    permit: Recorded<Permit>,
) -> (Answer, Option<ImageId>) {
    let permit = permit.into_inner();
    let image = permit.image();
    let message = request.message.with_names(|_, _| image.to_string());
    let whole = match hold(upstream, head, &message).await {
        Ok(whole) => whole,
        Err(failed) => return (failed, None),
    };
    if whole.status().is_err() {
        return (whole.into_response(), None);
    }
    let id = whole.decode::<cri::PullImageResponse>().ok();
    let id = id.and_then(|pulled| pulled.image_ref.parse().ok());
    // A pull that failed has recorded nothing. A pull by digest adds no tag, as without us.
    if let Version::Tag(tag) = &request.wanted.image.version
        && let Err(status) = record(upstream, image, tag, &whole).await
    {
        let failed = answer::failed(Status::unknown(format!(
            "{image} was pulled, but the runtime did not record it as {}: {}",
            request.wanted.image,
            status.message()
        )));
        return (failed, id);
    }
    (whole.into_response(), id)
}

/// A call that asks for an image on behalf of nobody, for [`pull`].
pub fn own_pull(image: &str) -> (request::Parts, Vec<u8>) {
    let image = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let message = cri::PullImageRequest { image: Some(image), ..Default::default() };
    let mut head = Request::new(()).into_parts().0;
    head.method = http::Method::POST;
    head.uri = http::Uri::from_static("http://localhost/runtime.v1.ImageService/PullImage");
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    (head, frame(&message.encode_to_vec()))
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
