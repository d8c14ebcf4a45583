//! A runtime that fails, hangs or lies: what cannot be learnt from it does not start.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use portcullis::image::Digest;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::{
    containerd::Shelf,
    cri::{CREATE_CONTAINER, IMAGE_STATUS},
    gate::Gate,
    grpc::{Client, framed},
    registry::{IMAGE_INDEX, IMAGE_MANIFEST},
    runtime::{Reply, headers},
};

use super::{Node, creation, failing, field, invalid, is_own, line, send, told, unasked, unknown};

const GET: &str = "/containerd.services.images.v1.Images/Get";
const READ: &str = "/containerd.services.content.v1.Content/Read";

/// A creation that is refused with this message, on record once.
async fn refused(gate: &Gate, client: &Client, image: [&str; 2], reason: &str, why: &str) {
    let before = gate.records("create").len();
    let answer = send(client, &creation(image[0], image[1]).message()).await;
    assert_eq!(answer.status(), invalid(why));
    assert_eq!(told(gate, "create")[before..], [line("deny", reason, why)]);
}

#[tokio::test]
async fn what_cannot_be_learnt_is_not_known() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = node.shelf.pull(&name);
    let why = unknown(&name, &id);
    let endless: Arc<Mutex<Vec<mpsc::UnboundedSender<Frame<Bytes>>>>> = Arc::default();
    let held = endless.clone();
    let never = Arc::new(Mutex::new(Vec::new()));
    type Script = Box<dyn Fn() -> Reply + Send>;
    let scripts: Vec<(&'static str, Script)> = vec![
        (GET, Box::new(|| failing("14"))),
        (READ, Box::new(|| failing("13"))),
        (READ, Box::new(|| failing("5"))),
        // Nothing, half a frame, a frame that announces more than there is, other bytes.
        (READ, Box::new(|| answer(b""))),
        (READ, Box::new(|| answer(b"\0\0\0"))),
        (READ, Box::new(|| answer(b"\0\xff\xff\xff\xffx"))),
        (READ, Box::new(|| answer(&framed(&field(2, b"{}"))))),
        (READ, Box::new(|| answer(&framed(b"\xff")))),
        (READ, Box::new(move || without_end(&held))),
        (GET, Box::new(|| answer(&framed(b"\x0a\x05x")))),
        (GET, Box::new(|| answer(&framed(b"")))),
        (GET, Box::new(|| answer(&framed(&field(1, &field(1, b"x")))))),
    ];
    for (path, script) in scripts {
        node.instead(path, move |_| Some(script()));
        refused(&gate, &client, [&id, &name], "not_proven_locally", &why).await;
        node.instead(path, |_| None);
    }
    // A call that is given up does not go on without its client.
    node.instead(READ, move |_| {
        let (held, holding) = mpsc::channel(1);
        never.lock().unwrap().push(holding);
        Some(Reply::Never(held))
    });
    let message = framed(&creation(&id, &name).message());
    let given_up = client.call(CREATE_CONTAINER, &[("grpc-timeout", "50m")], message).await;
    assert_eq!(given_up.status(), (4, "context deadline exceeded".to_owned()));
    node.instead(READ, |_| None);
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
    // Honest, it says what the image is, and that is no proof.
    let pinned = format!("{}@{}", node.name("app"), node.digest);
    let why = unasked(&pinned, "app");
    refused(&gate, &client, [&id, &name], "not_proven_locally", &why).await;
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

fn answer(body: &[u8]) -> Reply {
    let content_type = headers(&[("content-type", "application/grpc")]);
    Reply::whole(content_type, Bytes::copy_from_slice(body), headers(&[("grpc-status", "0")]))
}

/// More than any manifest has, and no end.
fn without_end(held: &Mutex<Vec<mpsc::UnboundedSender<Frame<Bytes>>>>) -> Reply {
    let (sender, frames) = mpsc::unbounded_channel();
    let piece = framed(&field(2, &vec![b' '; 1 << 20]));
    for _ in 0..6 {
        sender.send(Frame::data(piece.clone())).unwrap();
    }
    held.lock().unwrap().push(sender);
    Reply::Stream(frames)
}

#[tokio::test]
async fn failures_to_say_what_a_name_means_are_told() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = super::pull_by(&client, &name).await;
    let strange = field(1, &field(1, b"abc"));
    for (reply, why) in [
        (Box::new(|| failing("14")) as Box<dyn Fn() -> Reply + Send>, "failed to tell: broken"),
        (Box::new(|| answer(b"")), "failed to tell: the runtime's answer is not one message"),
        (
            Box::new(|| answer(&framed(b"\xff"))),
            "failed to tell: the runtime's answer cannot be decoded",
        ),
        (
            Box::new(move || answer(&framed(&strange))),
            "has an image with a strange ID: \"abc\" is no digest: \"sha256:\" and 64 lower-case \
             hexadecimal characters are expected",
        ),
    ] {
        node.instead(IMAGE_STATUS, move |call| is_own(call).then(&reply));
        for image in [&*name, &id, &id[..20]] {
            let why = format!("{image}: the container runtime {why}");
            refused(&gate, &client, [image, ""], "internal", &why).await;
        }
        // Whoever names both needs nobody's answer.
        assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    }
    assert_eq!(node.calls(CREATE_CONTAINER), 4);
}

#[tokio::test]
async fn a_record_that_leads_elsewhere_proves_nothing() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    super::pull_by(&client, &name).await;
    node.registry.push_image("evil", "v1");
    let evil = node.shelf.pull(&node.name("evil:v1"));
    // The ID of the evil one, and the manifest of the good one.
    node.shelf.name(&evil, &name);
    let why = unknown(&name, &evil);
    refused(&gate, &client, [&evil, &name], "not_proven_locally", &why).await;
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

fn image(config: Digest, annotations: serde_json::Value) -> String {
    let config = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2,
    });
    json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": [],
        "annotations": annotations,
    })
    .to_string()
}

/// An index whose one child that is there stands at this place.
fn index(shelf: &Shelf, children: usize, place: usize) -> Digest {
    let config = Digest::of(format!("config {place}").as_bytes());
    let manifest = image(config, json!({}));
    let child = shelf.put("child", IMAGE_MANIFEST, manifest);
    let manifests: Vec<_> = (0..children)
        .map(|number| {
            let other = Digest::of(&number.to_le_bytes());
            let digest = if number == place { child } else { other };
            json!({"mediaType": IMAGE_MANIFEST, "digest": digest, "size": 2})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests});
    shelf.put(&config.to_string(), IMAGE_INDEX, index.to_string());
    config
}

#[tokio::test]
async fn of_an_index_without_end_the_first_children_are_looked_at() {
    let node = Node::new();
    let policy = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: any}\n\
        spec:\n  match: {images: ['**']}\n  authorities: [{name: a, unsigned: {reason: t}}]\n";
    let gate = node.setup().policy("app.yaml", policy).start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let late = index(&node.shelf, 10_000, 64).to_string();
    let why = unknown(&name, &late);
    refused(&gate, &client, [&late, &name], "not_proven_locally", &why).await;
    assert_eq!(node.calls(READ), 65);
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
    let early = index(&node.shelf, 10_000, 63).to_string();
    assert_eq!(send(&client, &creation(&early, &name).message()).await.status().0, 0);
    assert_eq!(node.calls(CREATE_CONTAINER), 1);
}

#[tokio::test]
async fn a_checkpoint_does_not_start_whatever_the_policy_says() {
    let node = Node::new();
    let policy = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: any}\n\
        spec:\n  match: {images: ['**']}\n  authorities: [{name: a, unsigned: {reason: t}}]\n";
    let gate = node.setup().policy("app.yaml", policy).start();
    let client = gate.client().await;
    for (number, key) in
        ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"]
            .into_iter()
            .enumerate()
    {
        let config = Digest::of(&[number as u8]).to_string();
        let manifest = image(config.parse().unwrap(), json!({key: "x"}));
        let checkpoint = node.shelf.put(&config, IMAGE_MANIFEST, manifest);
        let why = format!(
            "docker.io/library/app:v1: the container runtime also has the checkpoint {checkpoint} \
             under this image's ID, and might restore that instead: remove it from the runtime"
        );
        refused(&gate, &client, [&config, "app:v1"], "image_malformed", &why).await;
    }
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

#[tokio::test]
async fn a_creation_whose_client_is_gone_is_not_created() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = super::pull_by(&client, &name).await;
    let (asked, mut asks) = mpsc::unbounded_channel();
    node.instead(IMAGE_STATUS, move |call| {
        let (held, holding) = mpsc::channel(1);
        is_own(call).then(|| {
            asked.send(holding).unwrap();
            Reply::Never(held)
        })
    });
    let message = framed(&creation(&name, "").message());
    let other = gate.client().await;
    let call = tokio::spawn(async move {
        let answer = other.begin(CREATE_CONTAINER, &[], message).await;
        answer.unwrap().into_body().collect().await.map(drop)
    });
    let _holding = asks.recv().await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    assert_eq!((node.calls(CREATE_CONTAINER), gate.records("create").len()), (1, 1));
}
