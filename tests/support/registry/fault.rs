//! What a hostile or broken registry does, and to which requests.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portcullis::image::Digest;
use tokio::sync::watch;

use super::api::{Body, full};

/// What happens to a request. Faults come before authentication; those that spoil a body or a
/// header do so to every usual answer, also to a 401.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answers this status, these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Never answers.
    Hang,
    /// Answers as usual once the gate is open.
    Wait(Gate),
    /// Closes the connection (resets the stream in HTTP/2) without an answer.
    CloseConnection,
    /// Redirects to another URL (307).
    RedirectTo(String),
    /// Redirects to the URL that was asked for (307).
    RedirectLoop,
    /// The usual headers without a length, then zeros without end.
    EndlessBody,
    /// The usual headers and half of the body, then nothing more.
    StallBody,
    /// The usual headers and half of the body, then a closed connection.
    Truncate,
    /// One bit of the body is not as it should be; the headers are.
    Corrupt,
    /// `Docker-Content-Digest` of something else.
    LyingDigestHeader,
    /// No `Docker-Content-Digest`.
    NoDigestHeader,
    /// Another `Content-Type`.
    ContentType(&'static str),
    /// Another body, with its own `Docker-Content-Digest`.
    OtherBytes(Bytes),
}

/// Holds requests back until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Predicate = Box<dyn Fn(&str) -> bool + Send>;

/// Which requests a fault is for. Requests that are answered 401 count as well.
pub(crate) struct Match {
    method: Option<Method>,
    target: Predicate,
    first: usize,
    once: bool,
    seen: usize,
}

impl Match {
    /// Every request whose path and query satisfy the predicate.
    pub(crate) fn when(target: impl Fn(&str) -> bool + Send + 'static) -> Self {
        Self { method: None, target: Box::new(target), first: 1, once: false, seen: 0 }
    }

    /// Every request.
    pub(crate) fn any() -> Self {
        Self::when(|_| true)
    }

    /// Every request for this path, whatever its query.
    pub(crate) fn path(path: impl Into<String>) -> Self {
        let path = path.into();
        Self::when(move |target| target.split('?').next() == Some(&path))
    }

    pub(crate) fn manifest(repo: &str, reference: impl std::fmt::Display) -> Self {
        Self::path(format!("/v2/{repo}/manifests/{reference}"))
    }

    pub(crate) fn blob(repo: &str, digest: Digest) -> Self {
        Self::path(format!("/v2/{repo}/blobs/{digest}"))
    }

    pub(crate) fn referrers(repo: &str, subject: Digest) -> Self {
        Self::path(format!("/v2/{repo}/referrers/{subject}"))
    }

    /// Requests to the token server.
    pub(crate) fn token() -> Self {
        Self::path(super::auth::TOKEN_PATH)
    }

    pub(crate) fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Only the nth matching request, from 1.
    pub(crate) fn nth(mut self, nth: usize) -> Self {
        (self.first, self.once) = (nth, true);
        self
    }

    /// The nth matching request, from 1, and all after it.
    pub(crate) fn starting_at(mut self, nth: usize) -> Self {
        (self.first, self.once) = (nth, false);
        self
    }

    /// Counts this request; true if it is this rule's turn.
    fn applies(&mut self, method: &Method, target: &str) -> bool {
        if self.method.as_ref().is_some_and(|wanted| wanted != method) || !(self.target)(target) {
            return false;
        }
        self.seen += 1;
        if self.once { self.seen == self.first } else { self.seen >= self.first }
    }
}

#[derive(Default)]
pub(super) struct Faults(Vec<(Match, Fault)>);

impl Faults {
    pub(super) fn add(&mut self, to: Match, fault: Fault) {
        self.0.push((to, fault));
    }

    /// The first rule whose turn it is wins; all that match count the request.
    pub(super) fn due(&mut self, method: &Method, target: &str) -> Option<Fault> {
        let mut due = None;
        for (rule, fault) in &mut self.0 {
            if rule.applies(method, target) {
                due = due.or_else(|| Some(fault.clone()));
            }
        }
        due
    }
}

impl Fault {
    /// What is answered without looking at the request; `None` if the usual answer is wanted.
    pub(super) async fn instead(&self, url: &str) -> io::Result<Option<Response<Body>>> {
        let redirect = |to: &str| {
            let answer = Response::builder().status(StatusCode::TEMPORARY_REDIRECT);
            answer.header(header::LOCATION, to).body(full("")).unwrap()
        };
        Ok(Some(match self {
            Fault::Status(status, headers, body) => {
                let answer = Response::builder().status(*status);
                let answer = headers.iter().fold(answer, |answer, (k, v)| answer.header(*k, v));
                answer.body(full(body.clone())).unwrap()
            }
            Fault::Hang => std::future::pending().await,
            Fault::CloseConnection => return Err(io::ErrorKind::ConnectionAborted.into()),
            Fault::RedirectTo(to) => redirect(to),
            Fault::RedirectLoop => redirect(url),
            Fault::Wait(gate) => {
                gate.passed().await;
                return Ok(None);
            }
            _ => return Ok(None),
        }))
    }

    /// Spoils the usual answer.
    pub(super) async fn spoil(&self, answer: Response<Body>) -> io::Result<Response<Body>> {
        let (mut head, body) = answer.into_parts();
        let content = body.collect().await?.to_bytes();
        let half = || content.slice(..content.len() / 2);
        let digest_of = |bytes: &[u8]| HeaderValue::try_from(Digest::of(bytes).to_string());
        let body = match self {
            Fault::EndlessBody => {
                head.headers.remove(header::CONTENT_LENGTH);
                stream_of(stream::repeat(Bytes::from_static(&[0; 64 << 10])).map(Ok))
            }
            Fault::StallBody => stream_of(stream::iter([Ok(half())]).chain(stream::pending())),
            Fault::Truncate => {
                let closed = stream::once(async {
                    // hyper sends what it has only when the body makes it wait.
                    tokio::task::yield_now().await;
                    Err(io::ErrorKind::ConnectionAborted.into())
                });
                stream_of(stream::iter([Ok(half())]).chain(closed))
            }
            Fault::Corrupt => {
                let mut bytes = content.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                full(bytes)
            }
            Fault::LyingDigestHeader => {
                head.headers.insert("docker-content-digest", digest_of(b"a lie").unwrap());
                full(content)
            }
            Fault::NoDigestHeader => {
                head.headers.remove("docker-content-digest");
                full(content)
            }
            Fault::ContentType(other) => {
                head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(other));
                full(content)
            }
            Fault::OtherBytes(other) => {
                head.headers.insert("docker-content-digest", digest_of(other).unwrap());
                head.headers.insert(header::CONTENT_LENGTH, other.len().into());
                full(other.clone())
            }
            _ => full(content),
        };
        Ok(Response::from_parts(head, body))
    }
}

fn stream_of(chunks: impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}
