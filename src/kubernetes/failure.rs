//! Why the API server did not give what was asked for, in words that are the same each time.

use std::{error::Error as StdError, io, time::Duration};

use http::StatusCode;

use super::kinds::Kind;

/// Longest `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Why there is no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// A whole sentence.
    pub(super) why: String,
    pub(super) what: What,
    /// How long the server wants to be left alone.
    pub(super) after: Option<Duration>,
}

/// What may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The connection: the next one is made anew, from the files as they are then.
    Connection,
    /// The same, and the credentials may have been renewed already.
    Credentials,
    /// Listing everything (410).
    Expired,
    /// What was sent is not as it must be.
    Broken,
    /// An answer has no end.
    Much,
    /// Another answer, later.
    Answer,
}

impl Failure {
    pub(super) fn new(what: What, why: impl Into<String>) -> Self {
        Self { why: why.into(), what, after: None }
    }
}

/// An answer of another status than was hoped for, to a question for this kind.
pub(super) fn of_status(
    address: &str,
    kind: &Kind,
    status: StatusCode,
    after: Option<Duration>,
) -> Failure {
    let resource = kind.resource();
    let failure = |what, told: String| Failure::new(what, format!("{address} {told}"));
    match status.as_u16() {
        401 => failure(What::Credentials, UNKNOWN.to_owned()),
        403 => failure(
            What::Answer,
            format!(
                "does not let this node read {resource} (403 Forbidden): apply \
                 packaging/kubernetes/rbac.yaml"
            ),
        ),
        404 => failure(
            What::Answer,
            format!("does not know {resource} (404 Not Found): apply packaging/kubernetes/crds"),
        ),
        410 => {
            failure(What::Expired, format!("no longer knows the changes of {resource} (410 Gone)"))
        }
        _ => {
            let failure = failure(What::Answer, format!("answered {status}"));
            Failure { after: after.map(|after| after.min(MAX_RETRY_AFTER)), ..failure }
        }
    }
}

/// An answer of another status than was hoped for, to something that this node tells.
pub(super) fn of_writing(
    address: &str,
    what: &str,
    status: StatusCode,
    after: Option<Duration>,
) -> Failure {
    let kind = if status == StatusCode::UNAUTHORIZED { What::Credentials } else { What::Answer };
    let told = match status.as_u16() {
        401 => UNKNOWN.to_owned(),
        403 => format!(
            "does not let this node write {what} (403 Forbidden): apply \
             packaging/kubernetes/rbac.yaml"
        ),
        404 => format!("has no place for {what} yet (404 Not Found)"),
        _ => format!("answered {status} to {what}"),
    };
    let after = after.map(|after| after.min(MAX_RETRY_AFTER));
    Failure { after, ..Failure::new(kind, format!("{address} {told}")) }
}

/// What was sent of this kind cannot be used.
pub(super) fn broken(address: &str, kind: &Kind, sent: &str, why: &str) -> Failure {
    let why = format!("{address} sent {sent} of {} that cannot be read: {why}", kind.resource());
    Failure::new(What::Broken, why)
}

/// No answer came about.
pub(super) fn unanswered(address: &str, error: &(dyn StdError + 'static)) -> Failure {
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
    let system = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>());
    let was_connected = causes(error).any(|cause| cause.is::<hyper::Error>());
    let why = match (tls, system.last().map(io::Error::kind)) {
        (Some(error), _) => of_tls(error),
        (None, Some(io::ErrorKind::ConnectionRefused)) => "refused the connection",
        (None, Some(io::ErrorKind::TimedOut)) => "cannot be connected to in time",
        (None, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)) => CLOSED,
        _ if was_connected => CLOSED,
        _ => "cannot be connected to",
    };
    Failure::new(What::Connection, format!("{address} {why}"))
}

const UNKNOWN: &str = "does not know who asks (401 Unauthorized): the certificate or token of \
                       this node is expired or not of that cluster";
const CLOSED: &str = "closed the connection without an answer";

fn of_tls(error: &rustls::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    match error {
        E::InvalidMessage(_) => "speaks no TLS",
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "has a certificate that is not trusted: name its CA as certificate-authority in the \
             kubeconfig"
        }
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "has a certificate for another name"
        }
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "has a certificate that is expired"
        }
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            "has a certificate that is not valid yet"
        }
        E::InvalidCertificate(_) => "has a certificate that cannot be accepted",
        // In TLS 1.3 a client's certificate is judged after the handshake: whether the alert or
        // the end of the connection is seen first is chance.
        E::AlertReceived(_) => CLOSED,
        _ => "does not agree with us on TLS",
    }
}

/// An error and what it was caused by.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // Errors are a few levels deep; the bound is for those that name themselves as their cause.
    std::iter::successors(Some(error), |error| source(*error)).take(16)
}

/// `io::Error` hides the error that it carries.
fn source<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::kinds::KINDS;

    #[test]
    fn a_status_is_told_with_the_remedy() {
        let told = |code: u16| {
            let status = StatusCode::from_u16(code).unwrap();
            let after = Some(Duration::from_secs(600));
            of_status("the API server https://a", &KINDS[0], status, after)
        };
        for (code, what, why) in [
            (
                401,
                What::Credentials,
                "does not know who asks (401 Unauthorized): the certificate or token of this \
                 node is expired or not of that cluster",
            ),
            (
                403,
                What::Answer,
                "does not let this node read imagepolicies.portcullis.dev (403 Forbidden): apply \
                 packaging/kubernetes/rbac.yaml",
            ),
            (
                404,
                What::Answer,
                "does not know imagepolicies.portcullis.dev (404 Not Found): apply \
                 packaging/kubernetes/crds",
            ),
            (
                410,
                What::Expired,
                "no longer knows the changes of imagepolicies.portcullis.dev (410 Gone)",
            ),
            (500, What::Answer, "answered 500 Internal Server Error"),
        ] {
            let failure = told(code);
            assert_eq!(
                (failure.what, &*failure.why),
                (what, &*format!("the API server https://a {why}"))
            );
        }
        assert_eq!(told(429).after, Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn no_answer_is_told_in_few_words() {
        let told = |error: &(dyn StdError + 'static)| unanswered("it", error).why;
        let io = |kind: io::ErrorKind| told(&io::Error::other(io::Error::from(kind)));
        assert_eq!(io(io::ErrorKind::ConnectionRefused), "it refused the connection");
        assert_eq!(io(io::ErrorKind::TimedOut), "it cannot be connected to in time");
        assert_eq!(
            io(io::ErrorKind::ConnectionReset),
            "it closed the connection without an answer"
        );
        assert_eq!(io(io::ErrorKind::Other), "it cannot be connected to");
        let tls = |error| told(&io::Error::other(rustls::Error::InvalidCertificate(error)));
        use rustls::CertificateError as C;
        assert_eq!(tls(C::Expired), "it has a certificate that is expired");
        assert_eq!(tls(C::NotValidYet), "it has a certificate that is not valid yet");
        assert_eq!(tls(C::NotValidForName), "it has a certificate for another name");
        assert_eq!(tls(C::Revoked), "it has a certificate that cannot be accepted");
    }
}
