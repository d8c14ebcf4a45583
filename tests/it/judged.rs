//! What reaches the runtime of a judged pull, and what its answer must be.

use bytes::Bytes;

use crate::support::{
    cri::{PULL_IMAGE, pull},
    gate::{Gate, Setup},
    grpc::framed,
    registry::TestRegistry,
    runtime::{FakeRuntime, Reply, headers, ok},
};

fn gate(runtime: &FakeRuntime, registry: &TestRegistry) -> Gate {
    let policy = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p}}\nspec:\n  \
         match: {{images: ['{}/**']}}\n  authorities: [{{name: a, unsigned: {{reason: test}}}}]\n",
        registry.host()
    );
    Setup::before(runtime.socket()).policy("p.yaml", &policy).start()
}

fn message(image: &str) -> Bytes {
    framed(&prost::Message::encode_to_vec(&pull(image, "shop")))
}

#[tokio::test]
async fn a_pull_asks_for_an_answer_that_can_be_read() {
    let (runtime, registry) = (FakeRuntime::start(|_| ok(b"\x0a\x01i")), TestRegistry::start());
    let digest = registry.push_image("app", None);
    let gate = gate(&runtime, &registry);
    let client = gate.client().await;
    let image = format!("{}/app@{digest}", registry.host());
    let sent = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"), ("x-trace", "t")];
    let answer = client.call(PULL_IMAGE, &sent, message(&image)).await;
    assert_eq!(answer.status(), (0, String::new()));
    let head = &runtime.take()[0].head;
    assert_eq!(head.headers["x-trace"], "t");
    for compression in ["grpc-encoding", "grpc-accept-encoding"] {
        assert!(!head.headers.contains_key(compression), "{compression}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_no_success() {
    let runtime = FakeRuntime::start(|_| {
        let content_type = headers(&[("content-type", "application/grpc")]);
        let compressed = Bytes::from_static(b"\x01\0\0\0\x01x");
        Reply::whole(content_type, compressed, headers(&[("grpc-status", "0")]))
    });
    let registry = TestRegistry::start();
    let digest = registry.push_image("app", Some("v1"));
    let gate = gate(&runtime, &registry);
    let client = gate.client().await;
    let image = format!("{}/app", registry.host());
    let answer = client.call(PULL_IMAGE, &[], message(&format!("{image}:v1"))).await;
    let message = format!(
        "{image}@{digest} was pulled, but the runtime did not record it as {image}:v1: \
         the runtime's answer is not one message"
    );
    assert_eq!(answer.status(), (2, message));
}
