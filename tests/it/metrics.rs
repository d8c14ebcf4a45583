//! Metrics as Prometheus would fetch them.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use crate::support::{
    cri::{PULL_IMAGE, VERSION, pull},
    gate::Setup,
    grpc::framed,
    runtime::{FakeRuntime, ok},
};

/// Sends these bytes, and returns what comes back until the end.
pub(crate) fn talk(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn judgements_are_counted_as_they_stand_in_the_audit_log() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let setup = Setup::before(runtime.socket());
    let socket = setup.path().join("metrics.sock");
    // Left behind by a daemon that was killed.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let gate = setup.metrics(&format!("unix:{}", socket.display())).start();
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let client = gate.client().await;
    client.unary(PULL_IMAGE, &pull("hostile\"name:v1", "shop")).await;
    client.unary(PULL_IMAGE, &pull("plumbus:v1", "sh\"op")).await;
    let get =
        |path: &str| talk(&socket, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    let answer = get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    for (reason, count) in [("malformed_request", 1), ("policy_unavailable", 1)] {
        let sample = format!(
            "\nportcullis_judgements_total{{event=\"pull\",decision=\"deny\",reason=\"{reason}\"}} {count}\n"
        );
        assert!(answer.contains(&sample), "{sample}{answer}");
    }
    // There is no policy at all.
    assert!(answer.contains("\nportcullis_policies_rejected 1\n"), "{answer}");
    for name in ["hostile", "plumbus", "shop", "sh\\"] {
        assert!(!answer.contains(name), "{name}: {answer}");
    }
    assert!(get("/").starts_with("HTTP/1.1 404 Not Found\r\n"));
    let post = talk(&socket, b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{post}");
    let many: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
    let many = talk(&socket, format!("GET /metrics HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
}

#[tokio::test]
async fn an_address_in_use_costs_the_metrics_and_not_the_gate() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let gate = Setup::before(runtime.socket()).metrics(&taken.to_string()).start();
    let message = format!(
        "metrics cannot be served at {taken}: Address already in use (os error 98); choose another \
         metrics.listen; there are none until the next start"
    );
    assert!(gate.log().contains(&message), "{}", gate.log());
    assert_eq!(gate.client().await.call(VERSION, &[], framed(b"")).await.status().0, 0);
}

#[tokio::test]
async fn a_file_is_not_taken_for_a_socket() {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    std::fs::write(&path, "mine").unwrap();
    let gate = Setup::before(runtime.socket()).metrics(&format!("unix:{}", path.display())).start();
    assert!(gate.log().contains("metrics cannot be served at unix:"), "{}", gate.log());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}
