//! The one table from a refusal to what kubelet is told.
//!
//! kubelet takes the reason of a failed pull from the beginning of the message
//! (`SignatureValidationFailed`, `RegistryUnavailable`), and its CRI client strips the gRPC code
//! from the message for the code `UNKNOWN` alone. So both matter: any other code would bury the
//! reason under "rpc error: code = …".

use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use tonic::Status;

use crate::{
    decode::frame,
    refusal::{Code, Refusal},
};

use super::{Body, Unreachable};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What goes back to the client.
pub type Answer = Response<Body>;

/// The answer to a refused call.
pub fn refuse(refusal: &Refusal) -> Answer {
    answer(status(refusal))
}

/// The status of a refusal.
fn status(refusal: &Refusal) -> Status {
    let message = &refusal.message;
    let validation_failed = || Status::unknown(format!("SignatureValidationFailed: {message}"));
    match refusal.code {
        Code::NoPolicyMatches
        | Code::PolicyUnavailable
        | Code::PolicyExpired
        | Code::DigestRequired
        | Code::SignatureMissing
        | Code::SignatureInvalid
        | Code::AuthorityNotSatisfied
        | Code::AttestationMissing
        | Code::AttestationRejected
        | Code::Revoked
        | Code::DigestMismatch
        | Code::NotProvenLocally
        | Code::ImageMalformed
        | Code::LimitExceeded
        | Code::AuditUnavailable
        | Code::Internal => validation_failed(),
        Code::RegistryUnreachable => Status::unknown(format!("RegistryUnavailable: {message}")),
        // As without Portcullis: a mistyped image or pull secret is not a matter of signatures,
        // and kubelet's own ErrImagePull is what its user looks for.
        Code::RegistryUnauthorized => Status::unknown(message),
        Code::ImageNotFound => Status::not_found(message),
        Code::MalformedRequest => Status::invalid_argument(message),
    }
}

/// The answer to a method that is not forwarded.
pub fn unimplemented(path: &str) -> Answer {
    answer(Status::unimplemented(format!(
        "portcullis does not forward {}",
        crate::image::shorten(path)
    )))
}

/// The answer to a call whose client allowed less time than it took.
pub(crate) fn deadline_exceeded() -> Answer {
    answer(Status::deadline_exceeded("context deadline exceeded"))
}

/// The end of a stream that has none of its own, when Portcullis stops: as if the runtime did.
pub(crate) fn stopping() -> Answer {
    answer(Status::unavailable("portcullis is stopping"))
}

/// The answer while the runtime is away: at once, so that its client can tell.
pub(crate) fn unreachable(unreachable: &Unreachable) -> Answer {
    let message = unreachable.to_string();
    answer(match unreachable {
        Unreachable::Connect { .. } | Unreachable::Lost(_) => Status::unavailable(message),
        // The mapping of "gRPC over HTTP/2", "Errors".
        Unreachable::Reset(h2::Reason::REFUSED_STREAM) => Status::unavailable(message),
        Unreachable::Reset(h2::Reason::CANCEL) => Status::cancelled(message),
        Unreachable::Reset(h2::Reason::ENHANCE_YOUR_CALM) => Status::resource_exhausted(message),
        Unreachable::Reset(h2::Reason::INADEQUATE_SECURITY) => Status::permission_denied(message),
        Unreachable::Reset(_) => Status::internal(message),
    })
}

/// The answer to a judged call that the runtime did not finish.
pub(super) fn failed(status: Status) -> Answer {
    answer(status)
}

/// Portcullis' own answer to Portcullis' own call: JSON in the place of the message.
pub fn json(text: &[u8]) -> Answer {
    let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]);
    let body = Body::Whole { data: Some(frame(text).into()), trailers: Some(trailers) };
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static("application/grpc+json");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn answer(status: Status) -> Answer {
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if status.add_header(response.headers_mut()).is_err() {
        // The message is percent-encoded, so this cannot happen; a bare code still refuses.
        response.headers_mut().insert(STATUS, HeaderValue::from_static("2"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_refuses_in_the_form_that_kubelet_recognises() {
        for code in Code::ALL {
            let status = status(&Refusal::new(code, "why"));
            let expected = match code {
                Code::RegistryUnreachable => (tonic::Code::Unknown, "RegistryUnavailable: why"),
                Code::RegistryUnauthorized => (tonic::Code::Unknown, "why"),
                Code::ImageNotFound => (tonic::Code::NotFound, "why"),
                Code::MalformedRequest => (tonic::Code::InvalidArgument, "why"),
                _ => (tonic::Code::Unknown, "SignatureValidationFailed: why"),
            };
            assert_eq!((status.code(), status.message()), expected, "{code}");
        }
    }

    #[test]
    fn an_answer_is_trailers_only() {
        let answer = refuse(&Refusal::new(Code::SignatureMissing, "app \"ü\"\n"));
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["grpc-status"], "2");
        assert_eq!(
            answer.headers()["grpc-message"],
            "SignatureValidationFailed:%20app%20%22%C3%BC%22%0A"
        );
    }
}
