//! What is not judged passes byte for byte, and nothing else passes at all.

use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::support::{
    cri::{IMAGE_STATUS, VERSION},
    gate::{Gate, Setup},
    grpc::{PATIENCE, framed},
    runtime::{FakeRuntime, Reply, constant, headers, ok},
};

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

fn gate_before(runtime: &FakeRuntime) -> Gate {
    Setup::before(runtime.socket()).start()
}

#[tokio::test]
async fn a_call_and_its_answer_pass_untouched() {
    // A message that no schema knows, with an unknown field and invalid UTF-8.
    let (question, answer) =
        (b"\xf2\x7e\x03\xff\xfe\xfd".as_slice(), b"\x0a\x02\xc3\x28\xf8\x7f\x01".as_slice());
    let runtime = FakeRuntime::start(move |_| {
        let head = headers(&[
            ("content-type", "application/grpc"),
            ("x-runtime", "a"),
            ("x-runtime", "b"),
        ]);
        let tail = headers(&[("grpc-status", "0"), ("x-bin-bin", "AAEC"), ("x-tail", "t")]);
        Reply::whole(head, framed(answer), tail)
    });
    let gate = gate_before(&runtime);
    let sent = [
        ("grpc-timeout", "119999m"),
        ("traceparent", "00-ab-cd-01"),
        ("x-many", "1"),
        ("x-many", "2"),
        ("x-bin", "\u{7e}"),
    ];
    let through = gate.client().await.call(VERSION, &sent, framed(question)).await;
    let direct = crate::support::grpc::Client::connect(runtime.socket())
        .await
        .call(VERSION, &sent, framed(question))
        .await;
    assert_eq!(without_date(through), without_date(direct));
    let calls = runtime.take();
    assert_eq!(calls[0].body, framed(question));
    assert_eq!(calls[0].head.headers, calls[1].head.headers);
    assert_eq!(calls[0].head.uri, calls[1].head.uri);
}

fn without_date(mut raw: crate::support::grpc::Raw) -> crate::support::grpc::Raw {
    raw.headers.remove("date"); // the fake runtime's HTTP library adds it
    raw
}

#[tokio::test]
async fn errors_pass_with_their_details() {
    let details = "CAISA2JvbxoEdGVzdA".repeat(1500); // 27 kB: more than HTTP libraries allow by default
    let status = details.clone();
    let runtime = FakeRuntime::start(move |_| {
        let status = headers(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-message", "no such container %E2%9C%97"),
            ("grpc-status-details-bin", &status),
        ]);
        Reply::whole(status, Bytes::new(), headers(&[]))
    });
    let gate = gate_before(&runtime);
    let answer = gate.client().await.call(VERSION, &[], framed(b"")).await;
    assert_eq!(answer.headers["grpc-status"], "5");
    assert_eq!(answer.headers["grpc-message"], "no such container %E2%9C%97");
    assert_eq!(answer.headers["grpc-status-details-bin"], details.as_str());
}

#[tokio::test]
async fn large_messages_pass_both_ways() {
    let big = vec![0x5a; 16 << 20];
    let answer = big.clone();
    let runtime = FakeRuntime::start(constant(HashMap::from([(VERSION, answer)])));
    let gate = gate_before(&runtime);
    let answer = gate.client().await.call(VERSION, &[], framed(&big)).await;
    assert_eq!(answer.body.len(), 5 + (16 << 20));
    assert!(answer.body == framed(&big) && runtime.take()[0].body == framed(&big));
}

#[tokio::test]
async fn a_stream_flows_message_by_message() {
    let (events, receiver) = mpsc::unbounded_channel();
    let receiver = std::sync::Mutex::new(Some(receiver));
    let runtime =
        FakeRuntime::start(move |_| Reply::Stream(receiver.lock().unwrap().take().unwrap()));
    let gate = gate_before(&runtime);
    let mut answer = gate.client().await.begin(EVENTS, &[], framed(b"")).await.unwrap().into_body();
    for number in 0..100u8 {
        // The next one is sent only when this one has arrived: nothing waits for more.
        events.send(Frame::data(framed(&[number]))).unwrap();
        let frame = tokio::time::timeout(PATIENCE, answer.frame())
            .await
            .expect("in time")
            .unwrap()
            .unwrap();
        assert_eq!(frame.into_data().unwrap(), framed(&[number]));
    }
    events.send(Frame::trailers(headers(&[("grpc-status", "0")]))).unwrap();
    let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_runtime() {
    let (held, mut released) = mpsc::channel::<()>(1);
    let (begun, mut beginning) = mpsc::unbounded_channel();
    let held = std::sync::Mutex::new(Some(held));
    let runtime = FakeRuntime::start(move |_| {
        begun.send(()).unwrap();
        Reply::Never(held.lock().unwrap().take().unwrap())
    });
    let gate = gate_before(&runtime);
    let client = gate.client().await;
    let call = tokio::spawn(async move { client.begin(EVENTS, &[], framed(b"")).await.map(drop) });
    tokio::time::timeout(PATIENCE, beginning.recv()).await.expect("the call arrives");
    call.abort();
    assert!(
        tokio::time::timeout(PATIENCE, released.recv()).await.expect("it is cancelled").is_none()
    );
}

#[tokio::test]
async fn a_cancelled_stream_is_cancelled_at_the_runtime() {
    let (events, receiver) = mpsc::unbounded_channel();
    let receiver = std::sync::Mutex::new(Some(receiver));
    let runtime =
        FakeRuntime::start(move |_| Reply::Stream(receiver.lock().unwrap().take().unwrap()));
    let gate = gate_before(&runtime);
    let client = gate.client().await;
    let mut answer = client.begin(EVENTS, &[], framed(b"")).await.unwrap();
    events.send(Frame::data(framed(b"1"))).unwrap();
    answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    tokio::time::timeout(PATIENCE, events.closed()).await.expect("it is cancelled");
}

#[tokio::test]
async fn a_runtime_that_restarts_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("r.sock");
    let runtime = FakeRuntime::at(&socket, constant(HashMap::new()));
    let gate = Setup::before(&socket).start();
    let client = gate.client().await;
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);

    runtime.kill().await;
    // The first call may still meet the old connection's end.
    let mut told = String::new();
    for _ in 0..3 {
        let (code, message) = client.call(VERSION, &[], framed(b"")).await.status();
        assert_eq!(code, 14, "{message}");
        told = message;
    }
    let refused = format!(
        "cannot connect to the container runtime at {}: Connection refused (os error 111)",
        socket.display()
    );
    assert_eq!(told, refused);
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 14);

    let _runtime = FakeRuntime::at(&socket, constant(HashMap::new()));
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
}

#[tokio::test]
async fn a_stream_ends_with_unavailable_when_the_runtime_goes() {
    let (events, receiver) = mpsc::unbounded_channel();
    let receiver = std::sync::Mutex::new(Some(receiver));
    let runtime =
        FakeRuntime::start(move |_| Reply::Stream(receiver.lock().unwrap().take().unwrap()));
    let gate = gate_before(&runtime);
    let mut answer = gate.client().await.begin(EVENTS, &[], framed(b"")).await.unwrap().into_body();
    events.send(Frame::data(framed(b"1"))).unwrap();
    answer.frame().await.unwrap().unwrap();
    runtime.kill().await;
    let frame =
        tokio::time::timeout(PATIENCE, answer.frame()).await.expect("in time").unwrap().unwrap();
    let trailers = frame.into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
}

#[tokio::test]
async fn every_way_round_the_gate_is_refused_unseen() {
    let runtime = FakeRuntime::start(constant(HashMap::new()));
    let gate = gate_before(&runtime);
    let client = gate.client().await;
    for path in [
        "/runtime.v1alpha2.ImageService/PullImage",
        "/runtime.v1alpha2.RuntimeService/CreateContainer",
        "/containerd.services.images.v1.Images/Create",
        "/containerd.services.containers.v1.Containers/Create",
        "/containerd.services.tasks.v1.Tasks/Create",
        "/runtime.v1.RuntimeService/RestorePod",
        "/runtime.v1.RuntimeService/FromTheFuture",
        "/runtime.v1.ImageService/pullImage",
        "/runtime.v1.ImageService/PullImage?x",
        "/runtime.v1.ImageService/ImageStatus?/PullImage",
        "/grpc.health.v1.Health/Check",
        // gRPC has no queries: a runtime takes all of it for the name of a method.
        "/runtime.v1.RuntimeService/Version?",
        "/runtime.v1.RuntimeService/Version?/runtime.v1.ImageService/PullImage",
        "/runtime.v1.ImageService/PullImage?x",
    ] {
        let (code, message) = client.call(path, &[], framed(b"")).await.status();
        assert_eq!((code, message), (12, format!("portcullis does not forward {path}")));
    }
    assert_eq!(runtime.paths(), Vec::<String>::new());
    assert_eq!(client.call(IMAGE_STATUS, &[], framed(b"")).await.status().0, 0);
    assert_eq!(runtime.paths(), [IMAGE_STATUS]);
}

#[tokio::test]
async fn each_client_has_a_connection_of_its_own() {
    // A stream that nobody reads fills its connection's window; another client's call passes.
    let runtime = FakeRuntime::start(|call| match call.head.uri.path() {
        EVENTS => {
            let (events, receiver) = mpsc::unbounded_channel();
            for _ in 0..64 {
                events.send(Frame::data(Bytes::from(vec![0; 1 << 20]))).unwrap();
            }
            Reply::Stream(receiver)
        }
        _ => ok(b""),
    });
    let gate = gate_before(&runtime);
    let (deaf, other) = (gate.client().await, gate.client().await);
    let mut unread = Vec::new();
    for _ in 0..12 {
        unread.push(deaf.begin(EVENTS, &[], framed(b"")).await.unwrap());
    }
    assert_eq!(other.call(VERSION, &[], framed(b"")).await.status().0, 0);
}
