//! What the contenders stand before: real containerd, and a fast fake runtime.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixListener, runtime::Runtime};

use crate::support::{
    containerd::{LIST_CONTAINERS, Shelf},
    cri::{CREATE_CONTAINER, IdResponse},
    grpc::framed,
    runtime::{self, Body, headers},
};

/// How long containerd may take to listen.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
const WINDOW: u32 = 16 << 20;
/// IDs of containers that the fake runtime gives, again and again.
const CONTAINERS: usize = 500;

/// A private containerd 2.1, as `tests/lab/node` starts it; gone when dropped.
pub(crate) struct Containerd {
    child: Child,
    root: tempfile::TempDir,
}

impl Containerd {
    pub(crate) const RELEASE: &str = "2.1";

    /// One that has the images of `host` from the registry at `url`.
    pub(crate) fn start(host: &str, url: &str) -> Self {
        let root = tempfile::Builder::new().prefix("node").tempdir_in("/tmp").unwrap();
        let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/node");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM"])
            .arg(node)
            .args(["--mirror", &format!("{host}={url}"), Self::RELEASE])
            .arg(root.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut containerd = Self { child, root };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(containerd.socket()).is_err() {
            let ended = containerd.child.try_wait().unwrap().is_some();
            assert!(!ended && begun.elapsed() < STARTED_WITHIN, "containerd does not listen");
            thread::sleep(Duration::from_millis(20)); // there is nothing to be woken by
        }
        containerd
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("containerd.sock")
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.root.path().join("certs.d")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(self.root.path());
    }
}

/// A runtime that answers what is measured from memory, and the rest as the shelf does. It has a
/// thread of its own.
pub(crate) struct Fake {
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fake {
    pub(crate) fn start(shelf: Shelf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("r.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::Builder::new()
            .name("runtime".into())
            .spawn(move || {
                let thread = tokio::runtime::Builder::new_current_thread().enable_all().build();
                serve(&thread.unwrap(), listener, Arc::new(Answers::new(shelf)));
            })
            .unwrap();
        Self { socket, _directory: directory }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The answers, ready to be sent.
struct Answers {
    lists: HashMap<String, Bytes>,
    created: Vec<Bytes>,
    creations: AtomicUsize,
    shelf: Shelf,
}

impl Answers {
    fn new(shelf: Shelf) -> Self {
        let lists = [100, 1000].map(|count| (count.to_string(), framed(&list(count))));
        let created = |number| framed(&IdResponse { id: id(number) }.encode_to_vec());
        Self {
            lists: lists.into(),
            created: (0..CONTAINERS).map(created).collect(),
            creations: AtomicUsize::new(0),
            shelf,
        }
    }

    fn to(&self, call: &runtime::Call) -> Option<Bytes> {
        match call.head.uri.path() {
            LIST_CONTAINERS => {
                let asked = ListRequest::decode(&call.body[5..]).ok()?.filter?.id;
                self.lists.get(&asked).cloned()
            }
            CREATE_CONTAINER => {
                let number = self.creations.fetch_add(1, Ordering::Relaxed);
                Some(self.created[number % CONTAINERS].clone())
            }
            _ => None,
        }
    }
}

fn serve(thread: &Runtime, listener: std::os::unix::net::UnixListener, answers: Arc<Answers>) {
    thread.block_on(async {
        let listener = UnixListener::from_std(listener).unwrap();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let answers = answers.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let answers = answers.clone();
                    async move { Ok::<_, Infallible>(answer(request, &answers).await) }
                });
                let _ = http2::Builder::new(TokioExecutor::new())
                    .auto_date_header(false)
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .max_concurrent_streams(1000)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

async fn answer(request: Request<Incoming>, answers: &Answers) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let call = runtime::Call { head, body };
    let Some(message) = answers.to(&call) else {
        return runtime::give(answers.shelf.answer(&call)).await;
    };
    let status = headers(&[("grpc-status", "0")]);
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(status))];
    let mut response =
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

/// The request for a list of so many containers: the fake runtime goes by the filter.
pub(crate) fn list_request(count: usize) -> Vec<u8> {
    ListRequest { filter: Some(ListFilter { id: count.to_string() }) }.encode_to_vec()
}

/// `ListContainersResponse` as containerd 2.1 answers kubelet, with this many containers.
fn list(count: usize) -> Vec<u8> {
    let pairs = |pairs: &[(&str, String)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    };
    let containers = (0..count).map(|number| Container {
        id: id(number),
        pod_sandbox_id: id(number + 1_000_000),
        metadata: Some(Metadata { name: format!("application-{number}"), attempt: 1 }),
        image: Some(Image {
            image: format!("sha256:{}", id(number + 2_000_000)),
            user_specified_image: format!("registry.example.com/team/application-{number}:v1.2.3"),
        }),
        image_ref: format!("registry.example.com/team/app@sha256:{}", id(number + 3_000_000)),
        state: 1,
        created_at: 1_760_000_000_000_000_000 + number as i64,
        labels: pairs(&[
            ("io.kubernetes.container.name", format!("application-{number}")),
            ("io.kubernetes.pod.name", format!("application-{number}-7d9c5b8f6d-x2x4z")),
            ("io.kubernetes.pod.namespace", "production".to_owned()),
            ("io.kubernetes.pod.uid", "0f0e2ba1-7d9c-4c5b-8f6d-0123456789ab".to_owned()),
        ]),
        annotations: pairs(&[
            ("io.kubernetes.container.hash", "5d1f8c4b".to_owned()),
            (
                "io.kubernetes.container.ports",
                r#"[{"name":"http","containerPort":8080,"protocol":"TCP"}]"#.to_owned(),
            ),
            ("io.kubernetes.container.restartCount", "1".to_owned()),
            ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log".to_owned()),
            ("io.kubernetes.container.terminationMessagePolicy", "File".to_owned()),
            ("io.kubernetes.pod.terminationGracePeriod", "30".to_owned()),
        ]),
        image_id: format!("sha256:{}", id(number + 2_000_000)),
    });
    ListResponse { containers: containers.collect() }.encode_to_vec()
}

/// 64 digits, as a container's ID has.
fn id(number: usize) -> String {
    portcullis::image::Digest::of(&number.to_be_bytes()).hex()
}

#[derive(Clone, PartialEq, Message)]
struct ListRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<ListFilter>,
}

#[derive(Clone, PartialEq, Message)]
struct ListFilter {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(string, tag = "5")]
    image_ref: String,
    #[prost(int32, tag = "6")]
    state: i32,
    #[prost(int64, tag = "7")]
    created_at: i64,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "9")]
    annotations: HashMap<String, String>,
    #[prost(string, tag = "10")]
    image_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    user_specified_image: String,
}
