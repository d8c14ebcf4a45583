//! Starts, stops, crashes and twins.

use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixListener},
    process::ExitStatus,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{
    cri::{PULL_IMAGE, VERSION, pull},
    gate::{Gate, Setup},
    grpc::framed,
    registry::{Fault, Gate as Held, Match},
};

use super::{Node, until, verify, whole};

async fn serves(node: &Node, gate: &Gate) {
    let client = gate.client().await;
    assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
    let told = client.unary(PULL_IMAGE, &pull(&node.image(), "shop")).await.status();
    assert_eq!(told, (0, String::new()));
}

/// Stops the daemon while this thread goes on: its clients are asked whether they are done.
async fn stop(gate: Gate) -> (ExitStatus, TempDir) {
    tokio::task::spawn_blocking(|| gate.stop()).await.unwrap()
}

#[tokio::test]
async fn an_order_to_stop_lets_calls_end_and_is_recorded() {
    let node = Node::new();
    let gate = node.setup().start();
    let held = Held::closed();
    node.registry.fault(Match::manifest("app", node.digest), Fault::Wait(held.clone()));
    let client = gate.client().await;
    let request = pull(&node.image(), "shop");
    let call = tokio::spawn(async move { client.unary(PULL_IMAGE, &request).await.status() });
    node.registry.until(|requests| !requests.is_empty()).await;
    gate.signal(Signal::SIGTERM);
    until("it stops listening", || std::os::unix::net::UnixStream::connect(gate.socket()).is_err())
        .await;
    held.open();
    assert_eq!(call.await.unwrap(), (0, String::new()));
    let audit_file = gate.audit_file();
    let (status, directory) = stop(gate).await;
    assert_eq!(status.code(), Some(0));
    assert!(!directory.path().join("p.sock").exists());
    let text = fs::read_to_string(&audit_file).unwrap();
    let events: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
        // The look for the sandbox image comes when it comes.
        .filter(|event| event != "sandbox")
        .collect();
    assert_eq!(events, ["start", "policy", "pull", "stop"]);
    let (code, text) = verify(&[&audit_file], &directory.path().join("state"));
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_crash_leaves_the_chain_whole() {
    let node = Node::new();
    let mut gate = node.setup().start();
    for _ in 0..3 {
        serves(&node, &gate).await;
        // Killed while it works.
        let (client, request) = (gate.client().await, pull(&node.image(), "shop"));
        let call = tokio::spawn(async move {
            client
                .begin(PULL_IMAGE, &[], framed(&prost::Message::encode_to_vec(&request)))
                .await
                .map(drop)
        });
        tokio::task::yield_now().await;
        gate.crash_and_restart();
        let _ = call.await;
        whole(&gate);
    }
    serves(&node, &gate).await;
    whole(&gate);
    assert_eq!(gate.records("start").len(), 4);
    assert!(gate.records("pull").len() >= 4);
}

#[tokio::test]
async fn a_second_daemon_leaves_the_first_alone() {
    let node = Node::new();
    let gate = node.setup().start();
    let socket = fs::symlink_metadata(gate.socket()).unwrap();

    let (status, log) = node.setup().socket(&gate.socket()).start_in_vain();
    assert_eq!(status.code(), Some(2));
    let why = format!(
        "{} is in use: another process answers there. Stop it, or set listen.socket to another path",
        gate.socket().display()
    );
    assert!(log.contains(&why), "{log}");

    let (status, log) = node.setup().audit_file(&gate.audit_file()).start_in_vain();
    assert_eq!(status.code(), Some(2));
    let why = format!(
        "{} is in use by another process: stop it, or give each daemon an audit file and a state \
         directory of its own",
        gate.audit_file().display()
    );
    assert!(log.contains(&why), "{log}");

    let same = fs::symlink_metadata(gate.socket()).unwrap();
    assert_eq!((socket.dev(), socket.ino()), (same.dev(), same.ino()));
    serves(&node, &gate).await;
    whole(&gate);
    assert_eq!(gate.records("start").len(), 1);
}

#[tokio::test]
async fn systemds_socket_is_taken_and_left_in_place() {
    let node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null";
    let setup = node.setup().socket(&path);
    let stdin = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
    let gate = setup.start_by(script, stdin);
    serves(&node, &gate).await;
    assert_eq!(gate.records("pull").len(), 1);
    let (status, _directory) = stop(gate).await;
    assert_eq!(status.code(), Some(0));
    // systemd goes on listening, and starts the next one on demand.
    std::os::unix::net::UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn bad_configuration_ends_before_there_is_a_socket() {
    let node = Node::new();
    let setup = Setup::before(node.runtime.socket());
    let good = setup.config();
    let precious = setup.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    let (status, log) = node.setup().socket(&precious).start_in_vain();
    assert_eq!(status.code(), Some(78), "{log}");
    assert_eq!(fs::read(&precious).unwrap(), b"mine");
    for config in [
        "[listen".to_owned(),
        "\0".to_owned(),
        good.clone() + "[surprise]\n",
        good.clone() + "rotate = true\n",
        good.replace("file://", "oci://"),
        good.replace("endpoint = ", "endpoint = 1 #"),
    ] {
        let (status, log) = setup.start_in_vain_with(&config);
        assert_eq!(status.code(), Some(78), "{config:?}: {log}");
        for name in ["p.sock", "audit.jsonl", "state"] {
            assert!(!setup.path().join(name).exists(), "{name} after {config:?}");
        }
    }
}
