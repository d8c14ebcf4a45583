//! The answers: lists, watches, conditions, Events.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    Request, Shared,
    fault::Fault,
    store::{Page, Signal},
};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const GROUP: &str = "/apis/portcullis.dev/v1alpha1/";
const NODES: &str = "/api/v1/nodes/";
const NAMESPACES: &str = "/api/v1/namespaces/";

/// The answer to a request, with its fault.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request,
    certificate: Option<&[u8]>,
    fault: Option<Fault>,
) -> io::Result<Response<Body>> {
    match fault {
        None => Ok(usual(shared, &request, certificate)),
        Some(Fault::Status(status, headers, body)) => {
            let mut answer = Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(name, value);
            }
            Ok(answer.body(full(body)).unwrap())
        }
        Some(Fault::Wait(gate)) => {
            gate.passed().await;
            Ok(usual(shared, &request, certificate))
        }
        Some(Fault::Close) => Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Half) => {
            let (head, body) = usual(shared, &request, certificate).into_parts();
            let body = body.collect().await?.to_bytes();
            let half = stream::once(async move { Ok(body.slice(..body.len() / 2)) });
            Ok(Response::from_parts(head, streamed(half.chain(stream::once(broken())))))
        }
        Some(Fault::Stall) => Ok(Response::new(streamed(stream::pending()))),
    }
}

fn usual(shared: Arc<Shared>, request: &Request, certificate: Option<&[u8]>) -> Response<Body> {
    let wanted = shared.certificate.lock().unwrap().clone();
    let token = shared.token.lock().unwrap().as_ref().map(|token| format!("Bearer {token}"));
    let shown = request.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    if (wanted.is_some() && wanted.as_deref() != certificate)
        || (token.is_some() && token.as_deref() != shown)
    {
        return status(401, "Unauthorized");
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let query = Query(query);
    let method = &request.method;
    if let Some(plural) = path.strip_prefix(GROUP).filter(|_| method == Method::GET) {
        return match query.get("watch") {
            Some("true") => watch(shared, plural, &query),
            _ => list(&shared, plural, &query),
        };
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return status(400, "the body is no JSON");
    };
    let mut store = shared.store.lock().unwrap();
    if let Some(node) = path.strip_prefix(NODES).and_then(|rest| rest.strip_suffix("/status"))
        && method == Method::PATCH
    {
        if request.headers[header::CONTENT_TYPE] != "application/strategic-merge-patch+json" {
            return status(415, "the body of the request was in an unknown format");
        }
        return match store.patch_node(node, &body) {
            Some(node) => json_answer(200, &node),
            None => status(404, "not found"),
        };
    }
    if let Some(namespace) = path.strip_prefix(NAMESPACES).and_then(|r| r.strip_suffix("/events"))
        && method == Method::POST
    {
        if body["metadata"]["namespace"] != namespace {
            return status(400, "the namespace of the object is another one");
        }
        return match store.add_event(body.clone()) {
            true => json_answer(201, &body),
            false => status(409, "already exists"),
        };
    }
    status(404, "the server could not find the requested resource")
}

fn list(shared: &Shared, plural: &str, query: &Query<'_>) -> Response<Body> {
    let mut store = shared.store.lock().unwrap();
    let Some(kind) = store.kind_of(plural).map(str::to_owned) else {
        return status(404, "the server could not find the requested resource");
    };
    let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let token = query.get("continue").unwrap_or_default();
    let Some(Page { version, items, more }) = store.list(plural, limit.min(shared.page), token)
    else {
        return status(410, "The provided continue parameter is too old");
    };
    let list = json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": format!("{kind}List"), "items": items,
        "metadata": {"resourceVersion": version.to_string(), "continue": more.unwrap_or_default()},
    });
    json_answer(200, &list)
}

/// A watch under way.
struct Watch {
    shared: Arc<Shared>,
    plural: String,
    kind: String,
    /// Changes up to this one were told, or known before.
    version: u64,
    /// How much of the log was looked at.
    at: usize,
    /// From here on the log is of the time after this watch began.
    began: usize,
    end: Option<Instant>,
    must_break: bool,
}

fn watch(shared: Arc<Shared>, plural: &str, query: &Query<'_>) -> Response<Body> {
    let store = shared.store.lock().unwrap();
    let Some(kind) = store.kind_of(plural).map(str::to_owned) else {
        return status(404, "the server could not find the requested resource");
    };
    let version = query.get("resourceVersion").map_or(0, |version| version.parse().unwrap());
    if version < store.compacted {
        let expired =
            json!({"type": "ERROR", "object": status_object(410, "too old resource version")});
        return Response::new(full(format!("{expired}\n")));
    }
    let lasts = query.get("timeoutSeconds").map(|seconds| seconds.parse().unwrap());
    let lasts = lasts.filter(|_| !shared.keeps_watches).map(Duration::from_secs);
    let (began, plural) = (store.log.len(), plural.to_owned());
    drop(store);
    let end = lasts.map(|lasts| Instant::now() + lasts);
    shared.watches.send_modify(|open| *open += 1);
    let watch = Watch { shared, plural, kind, version, at: 0, began, end, must_break: false };
    let events = stream::unfold(watch, |mut watch| async { Some((watch.next().await?, watch)) });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(streamed(events))
        .unwrap()
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.watches.send_modify(|open| *open -= 1);
    }
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.must_break {
            return Some(broken().await);
        }
        let mut told = self.shared.told.subscribe();
        loop {
            while let Some(signal) = self.signal() {
                let is_new = self.at > self.began;
                match signal {
                    Signal::Change { plural, version, line }
                        if plural == self.plural && version > self.version =>
                    {
                        self.version = version;
                        return Some(Ok(line));
                    }
                    Signal::Bookmark { version } if is_new => {
                        let object = json!({
                            "apiVersion": "portcullis.dev/v1alpha1", "kind": self.kind,
                            "metadata": {"resourceVersion": version.to_string(),
                                         "creationTimestamp": null},
                        });
                        let line = json!({"type": "BOOKMARK", "object": object});
                        return Some(Ok(format!("{line}\n").into()));
                    }
                    Signal::Say(plural, bytes)
                        if is_new && plural.as_ref().is_none_or(|one| *one == self.plural) =>
                    {
                        return Some(Ok(bytes));
                    }
                    Signal::End if is_new => return None,
                    Signal::Cut(bytes) if is_new => {
                        self.must_break = true;
                        return Some(Ok(bytes));
                    }
                    _ => {}
                }
            }
            let at = self.at;
            let more = told.wait_for(|length| *length > at);
            match self.end {
                None => drop(more.await.ok()?),
                Some(end) => tokio::select! {
                    more = more => drop(more.ok()?),
                    () = sleep_until(end) => return None,
                },
            }
        }
    }

    fn signal(&mut self) -> Option<Signal> {
        let signal = self.shared.store.lock().unwrap().log.get(self.at).cloned()?;
        self.at += 1;
        Some(signal)
    }
}

struct Query<'a>(&'a str);

impl Query<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

fn status_object(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
           "message": message})
}

fn status(code: u16, message: &str) -> Response<Body> {
    json_answer(code, &status_object(code, message))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(value.to_string()))
        .unwrap()
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(bytes: impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(bytes.map(|bytes| bytes.map(Frame::data))).boxed_unsync()
}

/// The end of a connection, after what was said before is on its way.
async fn broken() -> io::Result<Bytes> {
    tokio::task::yield_now().await;
    Err(io::ErrorKind::ConnectionReset.into())
}
