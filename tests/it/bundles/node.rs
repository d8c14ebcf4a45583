//! A daemon whose policies are a bundle, from the first start to those without a server.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{https::Server, *};
use crate::support::{
    gate::{Gate, Setup},
    grpc::PATIENCE,
    runtime::{FakeRuntime, ok},
};

/// `policies` of `portcullis status`, once they are as wanted.
async fn until(gate: &Gate, wanted: impl Fn(&Value) -> bool) -> Value {
    let asked = async {
        loop {
            let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
                .args(["status", "-o", "json", "--config"])
                .arg(gate.path().join("config.toml"))
                .output()
                .unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            if wanted(&status["policies"]) {
                return status["policies"].clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, asked).await;
    found.unwrap_or_else(|_| panic!("not as wanted: {}", gate.log()))
}

/// Whether these policies are in force, and nothing or something is wrong.
fn stands(revision: u64, trouble: Option<&'static str>) -> impl Fn(&Value) -> bool {
    move |policies| {
        policies["revision"].as_u64() == Some(revision) && policies["trouble"].as_str() == trouble
    }
}

fn gate(server: &Server, runtime: &FakeRuntime) -> Gate {
    let key = Fixtures::load().path("keys/ed25519.pub");
    let lines = format!(
        "source = \"{}/prod.bundle\"\nkeys = [{key:?}]\ncertificate_authority = {:?}",
        server.registry.url(),
        server.ca.path().join("ca.pem"),
    );
    Setup::before(runtime.socket()).source(&lines).start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_believed_last_stays_and_nothing_older_comes_back() {
    let (server, runtime) = (Server::start(), FakeRuntime::start(|_| ok(b"")));
    server.answers(200, &[], bundle(5));
    let mut gate = gate(&server, &runtime);
    until(&gate, stands(5, None)).await;
    // A change counts as soon as somebody asks for it.
    server.answers(200, &[], bundle(6));
    gate.signal(Signal::SIGHUP);
    until(&gate, stands(6, None)).await;
    // What is older, by another key or broken is told, and changes nothing.
    let other = String::from_utf8(sign(&payload(9), &key("other")).unwrap().bytes).unwrap();
    for body in [bundle(5), other, bundle(7).replace("payload", "paylord")] {
        server.answers(200, &[], body);
        gate.signal(Signal::SIGHUP);
        until(&gate, stands(6, Some("Rejected"))).await;
        server.answers(200, &[], bundle(6));
        gate.signal(Signal::SIGHUP);
        until(&gate, stands(6, None)).await;
    }
    // Nor does a restart, without a server and with an older bundle from it.
    server.answers(500, &[], "");
    gate.crash_and_restart();
    until(&gate, stands(6, Some("Unreachable"))).await;
    server.answers(200, &[], bundle(5));
    gate.crash_and_restart();
    until(&gate, stands(6, Some("Rejected"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_and_without_anything_kept_there_is_no_policy() {
    let (server, runtime) = (Server::start(), FakeRuntime::start(|_| ok(b"")));
    server.answers(404, &[], "");
    let gate = gate(&server, &runtime);
    let policies = until(&gate, |policies| policies["trouble"] == "Unreachable").await;
    assert_eq!((&policies["count"], &policies["revision"]), (&Value::from(0), &Value::Null));
    server.answers(200, &[], bundle(1));
    until(&gate, stands(1, None)).await;
}
