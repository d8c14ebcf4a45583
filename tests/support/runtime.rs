//! A runtime that does what a test tells it: for what real containerd cannot be made to do.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

use super::cri;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What came in.
pub(crate) struct Call {
    pub head: Parts,
    pub body: Bytes,
}

/// A whole answer.
pub(crate) struct Whole {
    headers: HeaderMap,
    data: Bytes,
    trailers: HeaderMap,
}

/// What goes out.
pub(crate) enum Reply {
    /// All of it.
    Whole(Box<Whole>),
    /// Frames as the test sends them.
    Stream(mpsc::UnboundedReceiver<Frame<Bytes>>),
    /// No answer. The sender is dropped when the call is cancelled.
    Never(mpsc::Sender<()>),
}

impl Reply {
    /// Headers, data and trailers.
    pub(crate) fn whole(headers: HeaderMap, data: Bytes, trailers: HeaderMap) -> Self {
        Reply::Whole(Box::new(Whole { headers, data, trailers }))
    }
}

type Script = Arc<dyn Fn(&Call) -> Reply + Send + Sync>;

/// A runtime on a socket of its own; gone when dropped. It answers from a thread of its own, so
/// that a gate is not kept waiting by a test that waits for the gate.
pub(crate) struct FakeRuntime {
    socket: PathBuf,
    calls: Arc<Mutex<Vec<Call>>>,
    serving: Option<(Runtime, JoinHandle<()>)>,
    _directory: Option<tempfile::TempDir>,
}

impl FakeRuntime {
    /// A runtime that answers each call as `script` says.
    pub(crate) fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut runtime = Self::at(&directory.path().join("runtime.sock"), script);
        runtime._directory = Some(directory);
        runtime
    }

    /// A runtime that answers Portcullis' own questions by the script as well.
    pub(crate) fn whole(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("runtime.sock");
        let mut runtime = Self::begin(&socket, script, false);
        runtime._directory = Some(directory);
        runtime
    }

    /// The same at a path of the test's.
    pub(crate) fn whole_at(
        socket: &Path,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(socket, script, false)
    }

    /// A runtime at a path of the test's.
    pub(crate) fn at(
        socket: &Path,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(socket, script, true)
    }

    fn begin(
        socket: &Path,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
        keeps_house: bool,
    ) -> Self {
        let thread = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = thread.enter();
        let listener = UnixListener::bind(socket).unwrap();
        drop(entered);
        let calls = Arc::new(Mutex::new(Vec::new()));
        let task = thread.spawn(serve(listener, Arc::new(script), calls.clone(), keeps_house));
        let serving = Some((thread, task));
        Self { socket: socket.to_owned(), calls, serving, _directory: None }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The paths of all calls so far.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|call| call.head.uri.path().to_owned()).collect()
    }

    /// Takes the calls that came so far.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Ends all connections and leaves a dead socket behind, as a runtime that was killed.
    pub(crate) async fn kill(mut self) {
        let (thread, task) = self.serving.take().unwrap();
        task.abort();
        let _ = task.await;
        thread.shutdown_background();
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        if let Some((thread, _)) = self.serving.take() {
            thread.shutdown_background();
        }
    }
}

async fn serve(
    listener: UnixListener,
    script: Script,
    calls: Arc<Mutex<Vec<Call>>>,
    keeps_house: bool,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (script, calls) = (script.clone(), calls.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (script, calls) = (script.clone(), calls.clone());
                async move { Ok::<_, Infallible>(answer(request, &script, &calls, keeps_house).await) }
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(1 << 20)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    script: &Script,
    calls: &Mutex<Vec<Call>>,
    keeps_house: bool,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let call = Call { head, body };
    if keeps_house && housekeeping(&call) {
        return give(ok(b"")).await;
    }
    let reply = script(&call);
    calls.lock().unwrap().push(call);
    give(reply).await
}

/// What Portcullis asks on its own account, whatever the test is about: its look at the node and
/// at the sandbox image. Answered with nothing, and not told to the test, unless the test takes
/// the node into its own hands by another sandbox image.
fn housekeeping(call: &Call) -> bool {
    let own =
        call.head.headers.get("user-agent").is_some_and(|agent| {
            agent.to_str().is_ok_and(|agent| agent.starts_with("portcullis/"))
        });
    let path = call.head.uri.path();
    let looks = [LIST_RECORDS, cri::LIST_IMAGES, LIST_CONTAINERS, STATUS];
    own && (looks.contains(&path)
        || path == cri::IMAGE_STATUS
            && call.body.windows(SANDBOX_IMAGE.len()).any(|part| part == SANDBOX_IMAGE.as_bytes()))
}

/// The sandbox image of gates that stand before runtimes of this kind; nobody serves it.
pub(crate) const SANDBOX_IMAGE: &str = "127.0.0.1:1/pause:v1";
const LIST_RECORDS: &str = "/containerd.services.images.v1.Images/List";
const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const STATUS: &str = "/runtime.v1.RuntimeService/Status";

pub(crate) async fn give(reply: Reply) -> Response<Body> {
    match reply {
        Reply::Whole(whole) => {
            let Whole { headers, data, trailers } = *whole;
            let mut frames = Vec::new();
            if !data.is_empty() {
                frames.push(Ok(Frame::data(data)));
            }
            if !trailers.is_empty() {
                frames.push(Ok(Frame::trailers(trailers)));
            }
            let mut response =
                Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
            *response.headers_mut() = headers;
            response
        }
        Reply::Stream(mut frames) => {
            let frames = futures_util::stream::poll_fn(move |cx| {
                frames.poll_recv(cx).map(|frame| frame.map(Ok))
            });
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        }
        Reply::Never(held) => {
            let _held = held;
            std::future::pending().await
        }
    }
}

/// A header map of these pairs.
pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect::<HeaderMap>()
}

/// The answer of a call that succeeded with this message.
pub(crate) fn ok(message: &[u8]) -> Reply {
    let content_type = headers(&[("content-type", "application/grpc")]);
    Reply::whole(content_type, super::grpc::framed(message), headers(&[("grpc-status", "0")]))
}

/// A runtime of constant answers: by path, and `ok` with an empty message for the rest.
pub(crate) fn constant(
    answers: HashMap<&'static str, Vec<u8>>,
) -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    move |call| ok(answers.get(call.head.uri.path()).map_or(&[], Vec::as_slice))
}

/// The ID of every image that [`pulling`] pulls.
pub(crate) const IMAGE_ID: &str =
    "sha256:1d00000000000000000000000000000000000000000000000000000000000000";
const GET: &str = "/containerd.services.images.v1.Images/Get";

#[derive(Clone, PartialEq, Message)]
struct ImageRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(string, tag = "2")]
    digest: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetImageRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageRecord>,
}

/// A runtime that pulls whatever it is asked for, and shows it under any name.
pub(crate) fn pulling(call: &Call) -> Reply {
    let message = call.body.get(5..).unwrap_or_default();
    match call.head.uri.path() {
        cri::PULL_IMAGE => {
            ok(&cri::PullImageResponse { image_ref: IMAGE_ID.into() }.encode_to_vec())
        }
        GET => {
            let name = GetImageRequest::decode(message).unwrap().name;
            // A tag is not recorded yet.
            let Some(digest) = name.split_once('@').map(|(_, digest)| digest.to_owned()) else {
                let status = headers(&[
                    ("content-type", "application/grpc"),
                    ("grpc-status", "5"),
                    ("grpc-message", "not found"),
                ]);
                return Reply::whole(status, Bytes::new(), HeaderMap::new());
            };
            let image = ImageRecord { name, target: Some(Descriptor { digest }) };
            ok(&GetImageResponse { image: Some(image) }.encode_to_vec())
        }
        cri::IMAGE_STATUS => {
            let asked = cri::ImageStatusRequest::decode(message).unwrap().image.unwrap().image;
            let image =
                cri::Image { id: IMAGE_ID.into(), repo_tags: vec![asked], ..Default::default() };
            ok(&cri::ImageStatusResponse { image: Some(image) }.encode_to_vec())
        }
        _ => ok(b""),
    }
}
