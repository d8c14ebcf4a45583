//! A runtime that hangs, on each question of a judgement. In this process, since the product's own
//! patience is half a minute.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::support::{
    containerd::STATUS,
    cri::{CREATE_CONTAINER, IMAGE_STATUS, RUN_POD_SANDBOX},
    grpc::{Client, framed},
    inside::{Patience, gate},
    runtime::Reply,
};

use super::{LIST_RECORDS, Node, creation, invalid, is_own, send, unknown};

/// Gates with little patience. They stop when the sender is dropped.
fn gates(node: &Node, directory: &std::path::Path) -> watch::Sender<bool> {
    let patience = Patience { runtime: Duration::from_millis(100), ..Patience::default() };
    gate(directory, node.runtime.socket(), &node.policy("app", &node.key), patience)
}

#[tokio::test]
async fn a_runtime_that_hangs_is_given_up() {
    let node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let _gates = gates(&node, directory.path());
    let client = Client::connect(&directory.path().join("s")).await;
    let name = node.name("app:v1");
    let id = node.shelf.pull(&name);
    let hang = |path: &'static str| {
        let holdings = std::sync::Mutex::new(Vec::new());
        node.instead(path, move |call| {
            let (held, holding) = mpsc::channel(1);
            holdings.lock().unwrap().push(holding);
            is_own(call).then_some(Reply::Never(held))
        });
    };
    for path in [
        "/containerd.services.content.v1.Content/Read",
        "/containerd.services.images.v1.Images/Get",
    ] {
        hang(path);
        let answer = send(&client, &creation(&id, &name).message()).await;
        assert_eq!(answer.status(), invalid(&unknown(&name, &id)), "{path}");
    }
    let late = "the container runtime failed to tell: no answer in time";
    hang(IMAGE_STATUS);
    let answer = send(&client, &creation(&name, "").message()).await;
    assert_eq!(answer.status(), invalid(&format!("{name}: {late}")));
    for path in [LIST_RECORDS, STATUS] {
        hang(path);
        let answer = client.call(RUN_POD_SANDBOX, &[], framed(b"")).await;
        assert_eq!(answer.status(), invalid(late), "{path}");
    }
    assert_eq!(node.calls(CREATE_CONTAINER) + node.calls(RUN_POD_SANDBOX), 0);
}
