//! Holes of other verifiers that a gate on the node must not have, where no other test shows it.
//! SECURITY.md lists all of them, by the same names.

use prost::Message;

use super::{Node, creation, field, pull_by, pulled, send, shown, spec};
use crate::support::{
    cri::{CREATE_CONTAINER, PULL_IMAGE, pull},
    sign::Signer,
};

const ANNOTATIONS: [(&str, &str); 8] = [
    // What makes a static pod, and one of the system.
    ("kubernetes.io/config.source", "file"),
    ("kubernetes.io/config.mirror", "0b6c1d1e"),
    ("scheduler.alpha.kubernetes.io/critical-pod", ""),
    // What others take for proof, or for leave.
    ("kyverno.io/verify-images", "{\"app\":\"pass\"}"),
    ("talos.dev/verified", "true"),
    ("policy.sigstore.dev/include", "false"),
    ("oracle.image-policy.k8s.io/break-glass", "true"),
    ("portcullis.dev/verified", "true"),
];

fn map(number: u32) -> Vec<u8> {
    let entry = |(key, value): &(&str, &str)| {
        field(number, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    };
    ANNOTATIONS.iter().flat_map(entry).collect()
}

/// A container of a pod of the system, with all of these wherever CRI has room for them.
fn decorated(image: &str, user: &str) -> Vec<u8> {
    let image = [spec(image, user), map(2)].concat();
    let config = [field(1, &field(1, b"web")), field(2, &image), map(9), map(10)].concat();
    let pod = [field(1, b"etcd-node-1"), field(2, b"uid-1"), field(3, b"kube-system")].concat();
    let sandbox = [field(1, &pod), map(6), map(7)].concat();
    [field(1, b"pod-1"), field(2, &config), field(3, &sandbox)].concat()
}

/// An image that nobody signed, and its name.
fn unsigned(node: &Node) -> String {
    node.registry.push_image("app", "unsigned");
    node.name("app:unsigned")
}

#[tokio::test]
async fn b3_what_a_lenient_namespace_pulled_does_not_start_in_a_strict_one() {
    let node = Node::new();
    let lenient = node.policy("app", &node.key);
    let authorities = lenient.find("  authorities:").unwrap();
    let lenient = format!(
        "{}  authorities:\n    - name: any\n      unsigned: {{reason: a kitchen}}\n",
        lenient[..authorities]
            .replace("match: {", "match: {namespaces: [kitchen], ")
            .replace("name: app", "name: lenient")
    );
    let strict =
        node.policy("app", &node.key).replace("match: {", "match: {excludeNamespaces: [kitchen], ");
    let setup = node.setup().policy("app.yaml", &strict);
    let gate = setup.policy("lenient.yaml", &lenient).start();
    let client = gate.client().await;
    let name = unsigned(&node);
    let id = pulled(client.unary(PULL_IMAGE, &pull(&name, "kitchen")).await);

    let mut there = creation(&id, &name);
    there.namespace = "kitchen";
    assert_eq!(send(&client, &there.message()).await.status().0, 0);
    // It is here, and shown, since some may have it; no other way leads to it for others.
    assert_eq!(shown(&client, &name).await, id);
    let before = node.calls(CREATE_CONTAINER);
    for asked in [&id, &name] {
        let (code, why) = send(&client, &creation(asked, &name).message()).await.status();
        assert_eq!(code, 2);
        let expected = "policy \"app\" requires 1 of 1 authority: \"release\": no signature found";
        assert!(why.contains(expected), "{why}");
    }
    assert_eq!(node.calls(CREATE_CONTAINER), before);
}

/// Init containers come before, ephemeral ones after the others; to a runtime all are containers.
#[tokio::test]
async fn b8_each_container_of_a_pod_is_judged() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let (good, bad) = (node.name("app:v1"), unsigned(&node));
    let id = pull_by(&client, &good).await;
    let stranger = node.shelf.pull(&bad);
    for (image, user, code) in
        [(&id, &good, 0), (&stranger, &bad, 2), (&id, &good, 0), (&bad, &bad, 2)]
    {
        let before = node.calls(CREATE_CONTAINER);
        let told = send(&client, &creation(image, user).message()).await.status();
        assert_eq!(told.0, code, "{told:?}");
        assert_eq!(node.calls(CREATE_CONTAINER) - before, usize::from(code == 0));
    }
    assert_eq!(gate.records("create").len(), 4);
}

#[tokio::test]
async fn b9_and_b13_no_annotation_of_a_pod_or_image_proves_or_exempts() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = unsigned(&node);
    let mut request = pull(&name, "kube-system");
    let annotations = ANNOTATIONS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let pod = request.sandbox_config.as_mut().unwrap();
    pod.annotations = annotations.clone().into();
    pod.labels = annotations.clone().into();
    request.image.as_mut().unwrap().annotations = annotations.into();
    assert!(request.encoded_len() > 1000);
    let told = client.unary(PULL_IMAGE, &request).await.status();
    assert!(told.1.starts_with("SignatureValidationFailed: "), "{told:?}");
    assert_eq!(node.calls(PULL_IMAGE), 0);

    // Imported, as the images of the control plane often are.
    let id = node.shelf.pull(&name);
    let told = send(&client, &decorated(&id, &name)).await.status();
    assert!(told.1.starts_with("SignatureValidationFailed: "), "{told:?}");
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
    // With proof it starts, as any other.
    let good = node.name("app:v1");
    let id = pull_by(&client, &good).await;
    assert_eq!(send(&client, &decorated(&id, &good)).await.status().0, 0);
}

/// One signature vouches for bytes, not for all that a signer ever pushed under a name.
#[tokio::test]
async fn b27_no_image_is_let_in_for_another_ones_sake() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let good = node.name("app:v1");
    let id = pull_by(&client, &good).await;
    assert_eq!(send(&client, &creation(&id, &good).message()).await.status().0, 0);
    // The same name, repository and pod; other bytes, by somebody else.
    let other = node.registry.push_image("app", "v1");
    Signer::new().sign_simple(&node.registry, "app", other);
    let told = client.unary(PULL_IMAGE, &pull(&good, "shop")).await.status();
    assert!(told.1.contains("no signature by this key"), "{told:?}");
    let unproven = node.shelf.pull(&good);
    assert_ne!(unproven, id);
    assert_eq!(send(&client, &creation(&unproven, &good).message()).await.status().0, 2);
}
