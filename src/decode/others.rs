//! The other two requests that are judged.

use prost::Message;

use crate::refusal::{Code, Refusal};

use super::{Pod, cri, pull::pod, wire::MAX_POD};

/// The image of an `ImageStatus` call, as the caller wrote it.
///
/// # Errors
///
/// `malformed_request`: the bytes are no such message.
pub fn image_status(message: &[u8]) -> Result<String, Refusal> {
    let decoded = cri::ImageStatusRequest::decode(message).map_err(|_| strange("ImageStatus"))?;
    Ok(decoded.image.unwrap_or_default().image)
}

/// The image that the runtime has according to its answer to `ImageStatus`: its ID and names.
/// None: it has none.
///
/// # Errors
///
/// `internal`: the bytes are no such message.
pub fn image_found(message: &[u8]) -> Result<Option<(String, Vec<String>)>, Refusal> {
    let decoded = cri::ImageStatusResponse::decode(message).map_err(|_| {
        Refusal::new(Code::Internal, "the runtime's answer to ImageStatus cannot be decoded")
    })?;
    Ok(decoded.image.map(|image| {
        let names = image.repo_tags.into_iter().chain(image.repo_digests).collect();
        (image.id, names)
    }))
}

/// The pod of a `RunPodSandbox` call.
///
/// # Errors
///
/// `malformed_request`: the bytes are no such message. `limit_exceeded`: they are more than a pod
/// takes.
pub fn sandbox(message: &[u8]) -> Result<Option<Pod>, Refusal> {
    if message.len() > MAX_POD {
        let why = format!("RunPodSandbox request: more than {MAX_POD} bytes");
        return Err(Refusal::new(Code::LimitExceeded, why));
    }
    let decoded =
        cri::RunPodSandboxRequest::decode(message).map_err(|_| strange("RunPodSandbox"))?;
    Ok(pod(decoded.config.unwrap_or_default()).0)
}

fn strange(method: &str) -> Refusal {
    let why = format!("{method} request: a field that Portcullis reads is not what CRI defines");
    Refusal::new(Code::MalformedRequest, why)
}
