//! Clients that ask for too much, that never read, never finish, or never begin.

use std::{io::ErrorKind, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use hyper::body::Frame;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use crate::{
    storm::{frame, header_block, read_frame},
    support::{
        cri::{CREATE_CONTAINER, PULL_IMAGE, RUN_POD_SANDBOX, VERSION, pull},
        gate::Gate,
        grpc::framed,
        runtime::{FakeRuntime, Reply, ok},
    },
};

use super::{Node, memory_returns, pulled};

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that has begun, in the words of HTTP/2.
async fn begun(gate: &Gate) -> UnixStream {
    let mut stream = loop {
        match UnixStream::connect(gate.socket()).await {
            // Many come at once: the queue before the gate is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sleep(Duration::from_millis(5)).await;
            }
            connected => break connected.unwrap(),
        }
    };
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(4, 0, 0, b"")).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pulls_at_once_are_each_judged_and_answered() {
    const IMAGES: usize = 50;
    const PULLS: usize = 1000;
    let node = Node::new();
    let images: Vec<_> = (0..IMAGES)
        .map(|n| {
            let repository = format!("wave-{n}");
            let digest = node.registry.push_image(&repository, "v1");
            if n % 5 != 0 {
                node.key.sign_simple(&node.registry, &repository, digest);
            }
            node.pinned(&repository, digest)
        })
        .collect();
    let signed: Vec<_> =
        images.iter().enumerate().filter(|(n, _)| n % 5 != 0).map(|(_, i)| i.clone()).collect();
    let gate = node.setup().start();
    let before = gate.resident();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(gate.client().await);
    }
    let pulls = (0..PULLS).map(|n| pulled(&clients[n % 10], &images[n % IMAGES]));
    for (n, (code, message)) in join_all(pulls).await.into_iter().enumerate() {
        if (n % IMAGES).is_multiple_of(5) {
            assert!(code == 2 && message.ends_with("no signature found"), "{message}");
        } else {
            assert_eq!((code, message), (0, String::new()));
        }
    }
    eprintln!("memory: {before} KiB, {} KiB after {PULLS} pulls", gate.resident());
    node.sound(&gate, &signed, PULLS).await;
    memory_returns(&gate, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_waits_alone_and_costs_little() {
    let mut node = Node::new();
    // Far more than fits into all the buffers on the way.
    node.runtime = FakeRuntime::start(|call| match call.head.uri.path() {
        EVENTS => {
            let (events, receiver) = mpsc::unbounded_channel();
            for _ in 0..16 {
                events.send(Frame::data(Bytes::from_static(&[0; 1 << 20]))).unwrap();
            }
            Reply::Stream(receiver)
        }
        VERSION => ok(b""),
        _ => crate::support::runtime::pulling(call),
    });
    let gate = node.setup().start();
    let before = gate.resident();
    // An allocator may keep what was used once; what is used again is no more than that.
    let mut used = None;
    for round in 0..3 {
        let mut deaf = Vec::new();
        for _ in 0..4 {
            let mut stream = begun(&gate).await;
            for id in (1..200).step_by(2) {
                stream.write_all(&frame(1, 0x4, id, &header_block(EVENTS))).await.unwrap();
                stream.write_all(&frame(0, 0x1, id, &framed(b""))).await.unwrap();
            }
            deaf.push(stream);
        }
        super::until("every stream is open", || node.runtime.paths().len() >= 400).await;
        let other = gate.client().await;
        for _ in 0..100 {
            assert_eq!(other.call(VERSION, &[], framed(b"")).await.status().0, 0);
        }
        let most = gate.resident();
        // Eight MiB of each connection's answers may be on their way, and some more.
        assert!(most < before + (64 << 10) + super::KEPT, "{before} KiB, then {most} KiB");
        drop(deaf);
        node.sound(&gate, &[], 2 * round).await;
        let now = gate.resident();
        eprintln!("memory: {before} KiB, {most} KiB with 400 streams that nobody reads, {now} KiB");
        let used = *used.get_or_insert(most);
        assert!(most < used + (16 << 10), "{used} KiB, and in another round {most} KiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_no_message_is_not_judged_and_holds_up_nobody() {
    let node = Node::new();
    let gate = node.setup().start();
    let before = gate.resident();
    const CALLS: u32 = 200;
    let mut unfinished = Vec::new();
    for path in [PULL_IMAGE, CREATE_CONTAINER, RUN_POD_SANDBOX, VERSION] {
        let mut stream = begun(&gate).await;
        for id in (1..2 * CALLS).step_by(2) {
            stream.write_all(&frame(1, 0x4, id, &header_block(path))).await.unwrap();
            // Some have begun their message.
            if id % 4 == 1 {
                let half = framed(&pull(&node.pinned("app", node.app), "shop").encode_to_vec());
                let half = half.slice(..half.len() / 2);
                stream.write_all(&frame(0, 0, id, &half)).await.unwrap();
            }
        }
        unfinished.push(stream);
    }
    // Half-open: our side has said all, and half of a call at that.
    for end in [&PREFACE[..7], PREFACE, &[PREFACE, &frame(4, 0, 0, b"")[..5]].concat()] {
        let mut stream = UnixStream::connect(gate.socket()).await.unwrap();
        stream.write_all(end).await.unwrap();
        stream.shutdown().await.unwrap();
        unfinished.push(stream);
    }
    let client = gate.client().await;
    for _ in 0..20 {
        assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
    }
    assert_eq!(pulled(&client, &node.pinned("app", node.app)).await, (0, String::new()));
    assert_eq!(gate.records("pull").len(), 1);
    drop(unfinished);
    // Each of these calls has broken off, and is refused for that.
    let calls = CALLS as usize;
    for (event, others) in [("pull", 1), ("create", 0)] {
        let what = format!("every broken {event} is on record");
        super::until(&what, || gate.records(event).len() == calls + others).await;
        let broken = gate.records(event);
        let broken = broken.iter().filter(|record| record["reason"] == "malformed_request");
        assert_eq!(broken.count(), calls);
    }
    node.sound(&gate, &[], calls + 1).await;
    assert_eq!(gate.records("create").len(), calls);
    memory_returns(&gate, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_all_and_hears_nothing_is_answered() {
    // A client that closes its side behind its call, as some do.
    let node = Node::new();
    let gate = node.setup().start();
    let mut stream = begun(&gate).await;
    stream.write_all(&frame(1, 0x4, 1, &header_block(VERSION))).await.unwrap();
    stream.write_all(&frame(0, 0x1, 1, &framed(b""))).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    let ended = tokio::time::timeout(crate::support::grpc::PATIENCE, read).await;
    ended.expect("the connection ends").unwrap();
    node.sound(&gate, &[], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes twelve thousand descriptors: make faults"]
async fn ten_thousand_idle_connections() {
    const CONNECTIONS: usize = 10_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > 12_000, "ulimit -n is {hard}: too low for this test");
    let node = Node::new();
    let gate = node.setup().start();
    node.sound(&gate, &[], 0).await;
    let before = gate.resident();
    for round in 1..=3 {
        let mut idle = JoinSet::new();
        for n in 0..CONNECTIONS {
            let mut stream = begun(&gate).await;
            idle.spawn(async move {
                // Each is a connection of HTTP/2, and every tenth was used.
                assert_eq!(read_frame(&mut stream).await.unwrap().0, 4);
                if n % 10 == 0 {
                    call(&mut stream).await;
                }
                stream
            });
        }
        let idle = idle.join_all().await;
        let most = gate.resident();
        let began = std::time::Instant::now();
        let client = gate.client().await;
        assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
        let took = began.elapsed();
        drop(idle);
        node.sound(&gate, &[], 2 * round).await;
        let now = gate.resident();
        eprintln!(
            "memory: {before} KiB, {most} KiB with {CONNECTIONS} connections, {now} KiB after; a \
             new client is answered in {took:?}"
        );
        // The C library's allocator gives little of it back, and takes no more for it after some
        // rounds; optimised or not, a connection costs less than that.
        assert!(most.max(now) < before + 48 * CONNECTIONS as u64, "{most} KiB, {now} KiB");
    }
}

/// One call, answered.
async fn call(stream: &mut UnixStream) {
    stream.write_all(&frame(1, 0x4, 1, &header_block(VERSION))).await.unwrap();
    stream.write_all(&frame(0, 0x1, 1, &framed(b""))).await.unwrap();
    loop {
        let (kind, flags, id, _) = read_frame(stream).await.unwrap();
        if (id, kind) == (1, 1) && flags & 1 == 1 {
            return;
        }
    }
}
