//! The daemon stops, and another one takes its place.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::body::Frame;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::UnixStream,
    sync::mpsc,
    task::{JoinSet, block_in_place},
    time::sleep,
};

use crate::{
    storm::frame,
    support::{
        cri::VERSION,
        gate::Setup,
        grpc::{Client, framed},
        registry::{Fault, Gate as Held, Match},
        runtime::{FakeRuntime, Reply, ok, pulling},
    },
};

use super::{Node, pulled, until};

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
/// What systemd does with the socket that it keeps.
const ACTIVATED: &str = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null";
/// Far less than calls in flight are given, and far more than it takes.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A runtime with a stream of events that has no end and, at first, no event either.
fn with_events(events: mpsc::UnboundedReceiver<Frame<bytes::Bytes>>) -> FakeRuntime {
    let events = Mutex::new(Some(events));
    FakeRuntime::start(move |call| match call.head.uri.path() {
        EVENTS => match events.lock().unwrap().take() {
            Some(events) => Reply::Stream(events),
            None => Reply::Never(mpsc::channel(1).0),
        },
        _ => pulling(call),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_idle_clients_do_not_hold_up_the_end() {
    let (events, receiver) = mpsc::unbounded_channel();
    let runtime = with_events(receiver);
    let gate = Setup::before(runtime.socket()).start();
    // A client whose stream has begun, and one whose stream has not.
    let (first, second) = (gate.client().await, gate.client().await);
    let mut stream = first.begin(EVENTS, &[], framed(b"")).await.unwrap().into_body();
    events.send(Frame::data(framed(b"1"))).unwrap();
    stream.frame().await.unwrap().unwrap();
    let silent = tokio::spawn(async move { second.begin(EVENTS, &[], framed(b"")).await });
    until("the second stream is open", || runtime.paths().len() == 2).await;
    // One that never says a word, one that says half a word, and one that never answers pings.
    let _mute = UnixStream::connect(gate.socket()).await.unwrap();
    let mut stammering = UnixStream::connect(gate.socket()).await.unwrap();
    stammering.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut deaf = UnixStream::connect(gate.socket()).await.unwrap();
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    deaf.write_all(&frame(4, 0, 0, b"")).await.unwrap();
    let last = gate.client().await;
    assert_eq!(last.call(VERSION, &[], framed(b"")).await.status().0, 0);

    let began = Instant::now();
    let (status, _directory) = tokio::task::spawn_blocking(|| gate.stop()).await.unwrap();
    let took = began.elapsed();
    assert!(status.success());
    assert!(took < AT_ONCE, "{took:?}");
    eprintln!("stopped in {took:?}");
    // Neither ends as if there were no more events.
    let end = stream.frame().await.unwrap().unwrap().into_trailers().unwrap();
    let end = (&end["grpc-status"], &end["grpc-message"]);
    assert_eq!(end, (&"14".parse().unwrap(), &"portcullis%20is%20stopping".parse().unwrap()));
    assert_eq!(silent.await.unwrap().unwrap().headers()["grpc-status"], "14");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_beside_a_stream_ends_in_its_time() {
    let mut node = Node::new();
    let (_events, receiver) = mpsc::unbounded_channel();
    node.runtime = with_events(receiver);
    let gate = node.setup().start();
    let held = Held::closed();
    node.registry.fault(Match::manifest("app", node.app), Fault::Wait(held.clone()));
    let client = gate.client().await;
    let stream = client.begin(EVENTS, &[], framed(b"")).await.unwrap();
    let app = node.pinned("app", node.app);
    let pull = tokio::spawn({
        let client = client.clone();
        async move { pulled(&client, &app).await }
    });
    node.registry.until(|requests| !requests.is_empty()).await;
    gate.signal(Signal::SIGTERM);
    until("it stops listening", || std::os::unix::net::UnixStream::connect(gate.socket()).is_err())
        .await;
    held.open();
    assert_eq!(pull.await.unwrap(), (0, String::new()));
    let audit_file = gate.audit_file();
    let (status, directory) = tokio::task::spawn_blocking(|| gate.stop()).await.unwrap();
    assert!(status.success());
    drop(stream);
    let log = fs::read_to_string(audit_file).unwrap();
    assert!(log.lines().last().unwrap().contains("\"event\":\"stop\""));
    assert!(!directory.path().join("p.sock").exists());
}

/// Passes on what the gate sends, and the last part of it slowly.
async fn dawdle(gate: UnixStream, client: UnixStream, at_first: usize) {
    let ((mut from, mut to), (mut up, mut down)) = (gate.into_split(), client.into_split());
    let asking = tokio::spawn(async move { copy(&mut up, &mut to).await });
    let (mut passed, mut piece) = (0, vec![0; 16 << 10]);
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        passed += read;
        if passed > at_first {
            sleep(Duration::from_millis(10)).await;
        }
        if down.write_all(&piece[..read]).await.is_err() {
            break;
        }
    }
    asking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_slowly_gets_all_of_an_answer() {
    const LONG: usize = 8 << 20;
    let runtime = FakeRuntime::start(|_| ok(&vec![7; LONG]));
    let gate = Setup::before(runtime.socket()).start();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = UnixStream::connect(gate.socket()).await.unwrap();
    let slow = tokio::spawn(dawdle(stream, theirs, LONG - (1 << 20)));
    let client = Client::over(ours).await.unwrap();
    let mut body = client.begin(VERSION, &[], framed(b"")).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let stopping = tokio::task::spawn_blocking(|| gate.stop());
    let rest = body.collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(first.len() + rest.to_bytes().len(), 5 + LONG);
    let (status, _directory) = stopping.await.unwrap();
    assert!(status.success());
    slow.await.unwrap();
}

/// Connects and calls, over and over; each call must be answered at its second try at the latest.
async fn keep_calling(socket: Arc<Path>, stop: Arc<AtomicBool>, calls: Arc<AtomicUsize>) -> usize {
    let mut again = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut tries = 0;
        loop {
            tries += 1;
            let stream = UnixStream::connect(&*socket).await.expect("whoever connects is let in");
            let answered = async {
                let client = Client::over(stream).await?;
                let body = client.begin(VERSION, &[], framed(b"")).await?.into_body();
                let trailers = body.collect().await?.trailers().cloned();
                Ok::<_, hyper::Error>(trailers.is_some_and(|all| all["grpc-status"] == "0"))
            };
            match answered.await {
                Ok(answered) => break assert!(answered),
                Err(error) => assert!(tries < 3, "{error:?}"),
            }
            again += 1;
        }
        calls.fetch_add(1, Ordering::Relaxed);
    }
    again
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_socket_that_stays_a_restart_turns_nobody_away() {
    const RESTARTS: usize = 3;
    let runtime = FakeRuntime::start(|call| match call.head.uri.path() {
        EVENTS => Reply::Never(mpsc::channel(1).0),
        _ => ok(b""),
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stdin = || OwnedFd::from(listener.try_clone().unwrap());
    let mut gate = Setup::before(runtime.socket()).socket(&path).start_by(ACTIVATED, stdin());

    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn(keep_calling(path.clone().into(), stop.clone(), calls.clone()));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..RESTARTS {
        let done = calls.load(Ordering::Relaxed);
        until("calls are answered", || calls.load(Ordering::Relaxed) > done + 10).await;
        let watcher = gate.client().await;
        let stream = tokio::spawn(async move { watcher.begin(EVENTS, &[], framed(b"")).await });
        until("the stream is open", || {
            runtime.take().iter().any(|call| call.head.uri.path() == EVENTS)
        })
        .await;
        let began = Instant::now();
        block_in_place(|| gate.restart_by(ACTIVATED, stdin()));
        slowest = slowest.max(began.elapsed());
        assert_eq!(stream.await.unwrap().unwrap().headers()["grpc-status"], "14");
    }
    let done = calls.load(Ordering::Relaxed);
    until("calls are answered", || calls.load(Ordering::Relaxed) > done + 10).await;
    stop.store(true, Ordering::Relaxed);
    let again: usize = clients.join_all().await.into_iter().sum();
    let calls = calls.load(Ordering::Relaxed);
    eprintln!("slowest restart {slowest:?}; {calls} calls, {again} of them sent twice");
    assert!(slowest < AT_ONCE, "{slowest:?}");
    super::whole(&gate.audit_file(), &gate.path().join("state"));
    assert_eq!((gate.records("start").len(), gate.records("stop").len()), (RESTARTS + 1, RESTARTS));
}
