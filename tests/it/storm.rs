//! A client that cancels in masses, as kubelet does when a node is in trouble: its other calls go
//! on, as they do when it is connected to the runtime directly.

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::support::{
    cri::VERSION,
    gate::Setup,
    grpc::{PATIENCE, framed},
    runtime::{FakeRuntime, ok},
};

const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

/// More than HTTP libraries remember of cancelled calls.
const STORM: usize = 300;
/// So that in all more late answers come than HTTP libraries take without offence.
const STORMS: usize = 5;

#[tokio::test]
async fn answers_that_come_too_late_do_not_end_other_calls() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("r.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let gate = Setup::before(&socket).start();
    // Its own questions, about the sandbox image and the node, come first, each over a connection
    // of its own, and may wait.
    let _own = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        answer_the_cancelled(stream, begun).await;
    });
    let client = gate.client().await;
    let mut stream = client.begin(EVENTS, &[], framed(b"")).await.unwrap().into_body();
    begins.recv().await.unwrap();
    for _ in 0..STORMS {
        let mut calls = JoinSet::new();
        for _ in 0..STORM {
            let client = client.clone();
            calls.spawn(async move { client.begin(VERSION, &[], framed(b"")).await.map(drop) });
        }
        for _ in 0..STORM {
            begins.recv().await.expect("the connection to the runtime stays");
        }
    }
    let frame = tokio::time::timeout(PATIENCE, stream.frame()).await.expect("in time");
    assert_eq!(frame.unwrap().unwrap().into_data().expect("a message"), framed(b"1"));
}

/// A runtime that begins its first answer at once and all others when they are cancelled.
async fn answer_the_cancelled(mut stream: UnixStream, begun: mpsc::UnboundedSender<()>) {
    stream.read_exact(&mut [0; 24]).await.unwrap();
    stream.write_all(&frame(4, 0, 0, b"")).await.unwrap();
    let mut late = 0;
    while let Some((kind, _, id, _)) = read_frame(&mut stream).await {
        // ":status: 200", of the static table.
        let answer = match kind {
            1 => {
                begun.send(()).unwrap();
                if id > 1 {
                    continue;
                }
                frame(1, 0x4, id, &[0x88])
            }
            3 => {
                late += 1;
                frame(1, 0x5, id, &[0x88])
            }
            _ => continue,
        };
        stream.write_all(&answer).await.unwrap();
        if late == STORM * STORMS {
            stream.write_all(&frame(0, 0, 1, &framed(b"1"))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn calls_cancelled_before_they_were_looked_at_do_not_end_the_connection() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let gate = Setup::before(runtime.socket()).start();
    let mut stream = UnixStream::connect(gate.socket()).await.unwrap();
    let mut storm = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    storm.extend(frame(4, 0, 0, b""));
    let last = 2 * STORM as u32 + 1;
    for id in (1..last).step_by(2) {
        storm.extend(frame(1, 0x4, id, &header_block(VERSION)));
        storm.extend(frame(3, 0, id, &8u32.to_be_bytes()));
    }
    storm.extend(frame(1, 0x4, last, &header_block(VERSION)));
    storm.extend(frame(0, 0x1, last, &framed(b"")));
    stream.write_all(&storm).await.unwrap();
    let answered = async {
        loop {
            let (kind, flags, id, payload) =
                read_frame(&mut stream).await.expect("the connection stays");
            assert_ne!(kind, 7, "GOAWAY: {}", String::from_utf8_lossy(&payload));
            if id == last && flags & 1 == 1 {
                return kind;
            }
        }
    };
    let kind = tokio::time::timeout(PATIENCE, answered).await.expect("an answer in time");
    assert_eq!(kind, 1, "the last call ends with its trailers");
}

/// An HTTP/2 frame (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Kind, flags, stream and payload of the next frame, unless the connection has ended.
pub(crate) async fn read_frame(stream: &mut UnixStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// The headers of a gRPC call, without compression (RFC 7541, section 6.2.2).
pub(crate) fn header_block(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    for (name, value) in
        [(":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}
