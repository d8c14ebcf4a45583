//! Judged calls other than pulls go on, each by the permits that it takes.

use http::{Request, header::CONTENT_LENGTH, request};

use crate::{
    audit::Recorded,
    decide::Permit,
    decode::{CreateRequest, cri, frame},
    refusal::{Code, Refusal},
};

use super::{
    Answer, Body, Upstream, answer,
    relay::absolute,
    unary::{self, Whole},
};

/// Passes a call on as it came, and takes its whole answer in. Of the runtime's reasons to fail,
/// the answer says the same as without Portcullis.
pub async fn hold(
    upstream: &Upstream,
    head: request::Parts,
    message: &[u8],
) -> Result<Whole, Answer> {
    let mut call = absolute(Request::from_parts(head, Body::whole(frame(message))));
    for replaced in [CONTENT_LENGTH.as_str(), "grpc-encoding", "grpc-accept-encoding"] {
        call.headers_mut().remove(replaced);
    }
    let response = upstream.call(call).await.map_err(|error| answer::unreachable(&error))?;
    unary::collect(response).await.map_err(answer::failed)
}

/// Has a container created from images that were judged, and from nothing else: the runtime is
/// told their whole IDs. Returns the container's ID as well, where one was created.
pub async fn create(
    upstream: &Upstream,
    head: request::Parts,
    request: &CreateRequest,
    permits: Vec<Recorded<Permit>>,
) -> (Answer, Option<String>) {
    let ids: Option<Vec<_>> = permits.into_iter().map(|permit| permit.into_inner().id()).collect();
    let Some(message) = ids.and_then(|ids| request.pinned(&ids)) else {
        let why = "a fault in Portcullis: not every image of the container was judged";
        return (answer::refuse(&Refusal::new(Code::Internal, why)), None);
    };
    match hold(upstream, head, &message).await {
        Ok(whole) => {
            let created = whole.decode::<cri::CreateContainerResponse>();
            let created = whole.status().and(created).ok().map(|created| created.container_id);
            (whole.into_response(), created)
        }
        Err(failed) => (failed, None),
    }
}

/// Has a sandbox run from the sandbox image that was judged.
pub async fn sandbox(
    upstream: &Upstream,
    head: request::Parts,
    message: &[u8],
    _permit: Recorded<Permit>,
) -> Answer {
    match hold(upstream, head, message).await {
        Ok(whole) => whole.into_response(),
        Err(failed) => failed,
    }
}
