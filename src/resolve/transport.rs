//! One HTTP exchange: bounded in time, size and redirects, and careful with secrets.

use std::{error::Error as StdError, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, IF_NONE_MATCH, LOCATION},
};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::image::shorten;

use super::{
    error::{Again, Fault, Kind},
    tls::is_ca_as_end_entity,
};

/// Most redirects that are followed, as in containerd.
const MAX_REDIRECTS: usize = 10;
/// Most bytes of an answer's header fields, names and values together.
pub(super) const MAX_HEADER_BYTES: usize = 64 << 10;
/// Most header fields of an answer.
pub(super) const MAX_HEADERS: usize = 128;
/// How much of an error's body is read, and thrown away, for the connection to be used again.
const MAX_ERROR_BODY: usize = 64 << 10;

const UNTRUSTED: &str = "has a certificate that is not trusted: name its CA as `ca` in hosts.toml";

/// How long registries may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To make a connection, where `hosts.toml` has no `dial_timeout`.
    pub connect: Duration,
    /// For one request to one host, from the first byte sent to the last one received.
    pub request: Duration,
    /// For one question, over all hosts and further tries.
    pub call: Duration,
    /// Before the second try; twice as long before the third.
    pub backoff: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            call: Duration::from_secs(60),
            backoff: Duration::from_millis(200),
        }
    }
}

/// A `GET` to be made.
#[derive(Clone, Debug)]
pub(super) struct Get<'a> {
    pub(super) url: Url,
    pub(super) accept: &'static str,
    /// Goes to the origin of `url` only, wherever redirects lead.
    pub(super) private: &'a HeaderMap,
    /// Likewise.
    pub(super) authorization: Option<&'a HeaderValue>,
    /// `If-None-Match`: an answer that has this `ETag` is not wanted again.
    pub(super) held: Option<&'a HeaderValue>,
    /// Longest wait for the head of one answer, where that is shorter than for the whole.
    pub(super) head: Option<Duration>,
    /// Most bytes of the body.
    pub(super) limit: usize,
    pub(super) deadline: Instant,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) header: HeaderMap,
    /// Empty unless the status is 200.
    pub(super) body: Bytes,
    /// Where the answer came from, after redirects.
    pub(super) url: Url,
    /// Whether that is the origin that was asked.
    pub(super) at_home: bool,
}

/// Makes a request, and those that it is redirected to.
pub(super) async fn get(client: &reqwest::Client, get: Get<'_>) -> Result<Answer, Fault> {
    let deadline = get.deadline;
    timeout_at(deadline, follow(client, get)).await.unwrap_or_else(|_| Err(late()))
}

async fn follow(client: &reqwest::Client, get: Get<'_>) -> Result<Answer, Fault> {
    let mut url = get.url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let at_home = same_origin(&url, &get.url);
        let mut header = if at_home { get.private.clone() } else { HeaderMap::new() };
        header.insert(ACCEPT, HeaderValue::from_static(get.accept));
        if let Some(authorization) = get.authorization.filter(|_| at_home) {
            header.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(held) = get.held {
            header.insert(IF_NONE_MATCH, held.clone());
        }
        let from = |fault: Fault| if at_home { fault } else { elsewhere(&url, fault) };
        let sent = client.get(url.clone()).headers(header).send();
        let sent = match get.head {
            Some(head) => timeout(head, sent).await.map_err(|_| from(late()))?,
            None => sent.await,
        };
        let response = sent.map_err(|e| from(describe(&e)))?;
        let status = response.status();
        if is_redirect(status)
            && let Some(location) = response.headers().get(LOCATION).cloned()
        {
            discard(response).await;
            url = target(&get.url, &url, &location).map_err(from)?;
            continue;
        }
        return receive(response, get.limit, url.clone(), at_home).await.map_err(from);
    }
    Err(Fault::new(Kind::Unreachable, format!("redirected more than {MAX_REDIRECTS} times")))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads, if it may be followed.
fn target(origin: &Url, from: &Url, location: &HeaderValue) -> Result<Url, Fault> {
    let bad = |why| Fault::new(Kind::Unreachable, format!("redirected to {why}"));
    let text = location.to_str().map_err(|_| bad("an address that cannot be read"))?;
    let url = from.join(text).map_err(|_| bad("an address that cannot be read"))?;
    if url.host_str().is_none() || !matches!(url.scheme(), "http" | "https") {
        return Err(bad("an address that is neither http nor https"));
    }
    if url.scheme() == "http" && origin.scheme() != "http" {
        return Err(bad("plain http, which is not followed from https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("an address with credentials in it"));
    }
    Ok(url)
}

/// Sends a form, to this address and no other.
pub(super) async fn post_form(
    client: &reqwest::Client,
    url: &Url,
    form: String,
    private: &HeaderMap,
    limit: usize,
    deadline: Instant,
) -> Result<Answer, Fault> {
    let mut header = private.clone();
    header.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let exchange = async {
        let sent = client.post(url.clone()).headers(header).body(form).send().await;
        receive(sent.map_err(|e| describe(&e))?, limit, url.clone(), true).await
    };
    timeout_at(deadline, exchange).await.unwrap_or_else(|_| Err(late()))
}

async fn receive(
    mut response: reqwest::Response,
    limit: usize,
    url: Url,
    at_home: bool,
) -> Result<Answer, Fault> {
    let status = response.status();
    let size: usize = response.headers().iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
    if size > MAX_HEADER_BYTES {
        return Err(Fault::new(
            Kind::LimitExceeded,
            format!("sent more than {MAX_HEADER_BYTES} bytes of header fields, which is the limit"),
        ));
    }
    let header = std::mem::take(response.headers_mut());
    if status != StatusCode::OK {
        discard(response).await;
        return Ok(Answer { status, header, body: Bytes::new(), url, at_home });
    }
    let over = || {
        Fault::new(Kind::LimitExceeded, format!("sent more than {limit} bytes, which is the limit"))
    };
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(over());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| describe(&e))? {
        if chunk.len() > limit - body.len() {
            return Err(over());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, header, body: body.freeze(), url, at_home })
}

async fn discard(mut response: reqwest::Response) {
    let mut left = MAX_ERROR_BODY;
    while let Ok(Some(chunk)) = response.chunk().await {
        let Some(rest) = left.checked_sub(chunk.len()) else { return };
        left = rest;
    }
}

/// Whether two addresses have scheme, host and port in common.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

/// The same fault, told of the host that a redirect led to. That one's troubles are no reason to
/// ask the first one in another way.
fn elsewhere(url: &Url, fault: Fault) -> Fault {
    let host = shorten(url.host_str().unwrap_or_default());
    let again = match fault.again {
        Again::Plain | Again::Unconnected => Again::No,
        again => again,
    };
    Fault { why: format!("redirected to {host}, which {}", fault.why), again, ..fault }
}

fn late() -> Fault {
    Fault::new(Kind::Unreachable, "did not answer in time").again(Again::Soon)
}

/// What a failed exchange means, without addresses of sockets, URLs or numbers of the system.
fn describe(error: &reqwest::Error) -> Fault {
    let fault = |why: &str| Fault::new(Kind::Unreachable, why);
    if let Some(tls) = cause::<rustls::Error>(error) {
        return describe_tls(tls);
    }
    if error.is_dns() {
        return fault("has a name that cannot be resolved").again(Again::Unconnected);
    }
    let connecting = error.is_connect();
    if error.is_timeout() {
        return match connecting {
            true => fault("let no connection come about in time").again(Again::Unconnected),
            false => late(),
        };
    }
    match cause::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            fault("refused the connection").again(Again::Unconnected)
        }
        // A server that speaks no TLS may hang up on the first bytes of it.
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) if connecting => {
            fault("hung up while the connection was made").again(Again::Plain)
        }
        _ if connecting => fault("cannot be connected to").again(Again::Unconnected),
        _ if error.is_decode() || error.is_body() => {
            fault("broke off in the middle of its answer").again(Again::Soon)
        }
        _ if error.url().is_some_and(|url| url.scheme() == "https") => no_answer_over_tls(),
        _ => fault("gave no answer in HTTP").again(Again::Soon),
    }
}

/// In TLS 1.3 a client's certificate is judged after the handshake. Whether the server's alert or
/// the end of the connection is seen first is chance, so both are told in the same words.
fn no_answer_over_tls() -> Fault {
    let why = "closed the connection without an answer: it may want a client certificate, or \
               another one (`client` in hosts.toml)";
    Fault::new(Kind::Unreachable, why).again(Again::Soon)
}

fn describe_tls(error: &rustls::Error) -> Fault {
    use rustls::{AlertDescription, CertificateError as C, Error as E};
    let fault = |why: &str| Fault::new(Kind::Unreachable, why);
    match error {
        E::InvalidMessage(_) => {
            fault("speaks no TLS: name it with http:// in hosts.toml, if that is meant")
                .again(Again::Plain)
        }
        // A CA that was made anew under its old name shows as a bad signature.
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => fault(UNTRUSTED),
        error if is_ca_as_end_entity(error) => fault(UNTRUSTED),
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            fault("has a certificate for another name")
        }
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            fault("has a certificate that is expired")
        }
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            fault("has a certificate that is not valid yet")
        }
        E::InvalidCertificate(_) => fault("has a certificate that cannot be accepted"),
        E::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked,
        ) => no_answer_over_tls(),
        _ => fault("does not agree with us on TLS"),
    }
}

/// The error of this type among the causes. `io::Error` hides the one that it carries.
fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    // Errors are a few levels deep; the bound is for those that name themselves as their cause.
    for _ in 0..16 {
        let error = next?;
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(origin: &str, from: &str, location: &str) -> Result<String, String> {
        let url = |text| Url::parse(text).unwrap();
        target(&url(origin), &url(from), &HeaderValue::from_str(location).unwrap())
            .map(|url| url.to_string())
            .map_err(|fault| fault.why)
    }

    #[test]
    fn redirects() {
        let https = "https://r.example/v2/a";
        assert_eq!(leads(https, https, "/b?c"), Ok("https://r.example/b?c".into()));
        assert_eq!(leads(https, https, "//cdn.example/b"), Ok("https://cdn.example/b".into()));
        let http = "http://r.example/v2/a";
        assert_eq!(leads(http, http, "http://cdn.example/b"), Ok("http://cdn.example/b".into()));
        assert_eq!(leads(http, https, "http://cdn.example/b"), Ok("http://cdn.example/b".into()));
        for (location, why) in [
            ("http://r.example/b", "redirected to plain http, which is not followed from https"),
            ("ftp://r.example/b", "redirected to an address that is neither http nor https"),
            ("file:///etc/passwd", "redirected to an address that is neither http nor https"),
            ("https://u:p@r.example/b", "redirected to an address with credentials in it"),
            ("https://u@r.example/b", "redirected to an address with credentials in it"),
            ("https://", "redirected to an address that cannot be read"),
        ] {
            assert_eq!(leads(https, https, location), Err(why.into()), "{location}");
        }
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let same = |a, b| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("https://r.example/a", "https://r.example:443/b"));
        assert!(!same("https://r.example/a", "http://r.example:443/a"));
        assert!(!same("https://r.example/a", "https://r.example:444/a"));
        assert!(!same("https://r.example/a", "https://s.example/a"));
    }

    #[test]
    fn a_cause_is_found_behind_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::other(tls.clone()));
        assert_eq!(cause::<rustls::Error>(&error), Some(&tls));
        assert_eq!(cause::<rustls::Error>(&io::Error::other("x")), None);
    }
}
