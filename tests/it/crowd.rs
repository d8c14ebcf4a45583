//! More clients than there are file descriptors for.

use tokio::{io::AsyncReadExt, net::UnixStream};

use crate::support::{
    cri::{VERSION, VersionRequest},
    gate::{Gate, Setup},
    grpc::PATIENCE,
    runtime::{FakeRuntime, ok},
};

/// Descriptors of the gate, and the clients that it lets in with these.
const DESCRIPTORS: usize = 512;
const CLIENTS: usize = (DESCRIPTORS - 256) / 3 * 2;

fn gate(runtime: &FakeRuntime) -> Gate {
    // The soft limit is lower yet: the gate raises it.
    let script = format!("ulimit -Sn 64; ulimit -Hn {DESCRIPTORS}; exec \"$0\" \"$@\"");
    Setup::before(runtime.socket()).start_by(&script, std::process::Stdio::null())
}

/// Whether the gate keeps a connection: it greets those that it keeps.
async fn is_kept(stream: &mut UnixStream) -> bool {
    let greeted = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
    greeted.expect("in time").is_ok_and(|read| read == 1)
}

async fn connect(gate: &Gate) -> UnixStream {
    let stream = UnixStream::connect(gate.socket()).await.unwrap();
    stream.writable().await.unwrap();
    // The beginning of every HTTP/2 connection, to which the gate answers with its own.
    let _ = stream.try_write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    stream
}

#[tokio::test]
async fn a_client_too_many_is_told_at_once_and_the_others_go_on() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let gate = gate(&runtime);
    let client = gate.client().await;
    assert_eq!(client.unary(VERSION, &VersionRequest::default()).await.status().0, 0);
    let mut idle = Vec::new();
    for number in 1..CLIENTS {
        let mut stream = connect(&gate).await;
        assert!(is_kept(&mut stream).await, "client {number}");
        idle.push(stream);
    }
    for _ in 0..3 {
        assert!(!is_kept(&mut connect(&gate).await).await, "one too many");
    }
    let said = "170 clients are connected, and there may be no more";
    assert_eq!(gate.log().matches(said).count(), 1, "{}", gate.log());
    assert_eq!(client.unary(VERSION, &VersionRequest::default()).await.status().0, 0);

    drop(idle);
    // The gate learns of an end when it looks, so one that comes at once may be too early.
    while !is_kept(&mut connect(&gate).await).await {}
    let another = gate.client().await;
    assert_eq!(another.unary(VERSION, &VersionRequest::default()).await.status().0, 0);
}
