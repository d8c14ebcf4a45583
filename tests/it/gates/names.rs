//! The ways to name what a container is made from: none of them is a way round a policy.

use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;

use crate::support::{
    cri::{CREATE_CONTAINER, IMAGE_STATUS, Image, ImageStatusResponse, PULL_IMAGE},
    gate::Gate,
    grpc::Client,
    runtime::ok,
    sign::{self, Signer},
};

use super::{Node, creation, invalid, is_own, line, pull_by, send, told, unasked, unknown};

/// The last container that the runtime was told to create, byte for byte.
fn created(node: &Node) -> Vec<u8> {
    let calls = node.runtime.take();
    let mut created = calls.iter().filter(|call| call.head.uri.path() == CREATE_CONTAINER);
    let call = created.next().expect("a container is created");
    assert!(created.next().is_none());
    call.body[5..].to_vec()
}

/// An image is refused with this reason and message, on record once, and not created.
async fn refused(node: &Node, gate: &Gate, client: &Client, image: [&str; 2], why: [&str; 2]) {
    let before = gate.records("create").len();
    let answer = send(client, &creation(image[0], image[1]).message()).await;
    assert_eq!(answer.status(), invalid(why[1]), "{image:?}");
    assert_eq!(told(gate, "create")[before..], [line("deny", why[0], why[1])], "{image:?}");
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

#[tokio::test]
async fn every_spelling_of_a_proven_image_is_pinned_to_its_id() {
    let node = Node::new();
    let familiar = sign::policy("web", "docker.io/library/web", &[("release", &node.key)]);
    let gate = node.setup().policy("web.yaml", &familiar).start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let by_digest = node.name(&format!("app@{}", node.digest));
    let tag_and_digest = node.name(&format!("app:v1@{}", node.digest));
    node.shelf.name(&tag_and_digest, &name);
    node.runtime.take();
    for (asked, user) in [
        (&*id, ""),
        (&id, &id),
        (&id[7..], &id[7..]),
        (&id[..20], ""),
        (&id[..20], &id[..20]),
        (&id[7..20], ""),
        (&id[7..20], &id[7..20]),
        (&id, &id[7..20]),
        (&id, &id[..20]),
        (&name, ""),
        (&by_digest, ""),
        (&tag_and_digest, ""),
        (&by_digest, &name),
        (&id, &by_digest),
        (&id, &tag_and_digest),
    ] {
        let answer = send(&client, &creation(asked, user).message()).await;
        assert_eq!(answer.status(), (0, String::new()), "{asked} {user}");
        assert_eq!(created(&node), creation(&id, user).message(), "{asked} {user}");
    }
    // A familiar name is one in docker.io.
    node.shelf.name("web:v1", &name);
    let answer = send(&client, &creation("web:v1", "").message()).await;
    assert_eq!(answer.status(), (0, String::new()));
    assert_eq!(created(&node), creation(&id, "").message());
    let record = gate.records("create").pop().unwrap();
    assert_eq!(record["image"]["repository"], "docker.io/library/web");
    assert_eq!(record["image"]["requested"], "web:v1");
}

#[tokio::test]
async fn a_name_that_leads_to_other_bytes_now_does_not_start_them() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    let evil = node.registry.push_image("app", "v2");
    let evil_id = node.shelf.pull(&node.name("app:v2"));
    node.shelf.name(&name, &node.name("app:v2"));
    let pinned = format!("{}@{evil}", node.name("app"));
    let why = ["not_proven_locally", &unasked(&pinned, "app")];
    for image in [&*evil_id, &name, &evil_id[7..19]] {
        refused(&node, &gate, &client, [image, &name], why).await;
        refused(&node, &gate, &client, [image, ""], why).await;
    }
    // A digest means its own bytes, whatever the runtime has under it.
    let by_digest = node.name(&format!("app@{}", node.digest));
    node.shelf.name(&by_digest, &node.name("app:v2"));
    let why = ["not_proven_locally", &unknown(&by_digest, &evil_id)];
    refused(&node, &gate, &client, [&by_digest, ""], why).await;
    refused(&node, &gate, &client, [&evil_id, &by_digest], why).await;
    // The good one starts as before.
    node.runtime.take();
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    assert_eq!(created(&node), creation(&id, &name).message());
}

#[tokio::test]
async fn an_id_alone_must_satisfy_the_policies_of_every_repository() {
    let node = Node::new();
    let strict = Signer::new();
    let gate = node.setup().policy("strict.yaml", &node.policy("strict", &strict)).start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    assert_eq!(send(&client, &creation(&id, "").message()).await.status().0, 0);
    node.shelf.name(&node.name("strict:v1"), &name);
    node.runtime.take();
    let pinned = format!("{}@{}", node.name("strict"), node.digest);
    let why = format!(
        "{pinned}: policy \"strict\" requires 1 of 1 authority: \"release\": no signature by this \
         key (1 signature found)"
    );
    for (image, user) in [
        (&*id, ""),
        (&id, &*id),
        (&id[7..20], ""),
        // What begins an ID is no name of docker.io, whoever says it.
        (&id, &id[7..20]),
        (&id[7..20], &id[7..20]),
        (&id, &node.name("strict:v1")),
        (&node.name("strict:v1"), ""),
    ] {
        let why = ["authority_not_satisfied", &why];
        refused(&node, &gate, &client, [image, user], why).await;
    }
    node.runtime.take();
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    assert_eq!(created(&node), creation(&id, &name).message());
}

#[tokio::test]
async fn the_beginning_of_an_id_is_not_judged_as_a_name_that_looks_like_it() {
    let node = Node::new();
    let anything = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: hub}\n\
        spec:\n  match: {images: ['docker.io/**']}\n  authorities: [{name: a, unsigned: {reason: t}}]\n";
    let gate = node.setup().policy("hub.yaml", anything).start();
    let client = gate.client().await;
    let evil = node.registry.push_image("app", "v2");
    let id = node.shelf.pull(&node.name("app:v2"));
    let pinned = format!("{}@{evil}", node.name("app"));
    let why = ["not_proven_locally", &unasked(&pinned, "app")];
    for (image, user) in [(&*id, &id[7..20]), (&id[7..20], &id[7..20]), (&id[7..20], "")] {
        refused(&node, &gate, &client, [image, user], why).await;
    }
    // An image can have such a name; the runtime looks for that first.
    node.shelf.name(&format!("docker.io/library/{}:latest", &id[7..20]), &id);
    node.runtime.take();
    assert_eq!(send(&client, &creation(&id, &id[7..20]).message()).await.status().0, 0);
    assert_eq!(created(&node), creation(&id, &id[7..20]).message());
}

#[tokio::test]
async fn what_the_runtime_does_not_have_is_told_as_missing() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let nothing = format!("sha256:{}", "0".repeat(64));
    for (image, user) in [(&*name, ""), (&name, &*name), (&nothing, ""), ("sha256:abc", "abc")] {
        let answer = send(&client, &creation(image, user).message()).await;
        let message = format!("{image}: the container runtime has no such image");
        assert_eq!(answer.status(), (5, message.clone()));
        let last = told(&gate, "create").pop().unwrap();
        assert_eq!(last, line("deny", "image_not_found", message));
    }
    assert_eq!(gate.records("create").len(), 4);
    assert_eq!(node.calls(CREATE_CONTAINER), 0);
}

#[tokio::test]
async fn an_image_without_a_name_does_not_start_by_its_id() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    node.shelf.forget(&name);
    node.shelf.forget(&node.name(&format!("app@{}", node.digest)));
    node.runtime.take();
    let why = format!(
        "{id}: the image has no name on this node, and policies go by names: name it in the pod"
    );
    refused(&node, &gate, &client, [&id, ""], ["no_policy_matches", &why]).await;
    node.runtime.take();
    assert_eq!(send(&client, &creation(&id, &name).message()).await.status().0, 0);
    assert_eq!(created(&node), creation(&id, &name).message());
}

#[tokio::test]
async fn a_runtime_that_answers_with_another_image_is_not_believed() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let good = pull_by(&client, &name).await;
    node.registry.push_image("app", "v2");
    let asked = node.shelf.pull(&node.name("app:v2"));
    let image = Image { id: good.clone(), repo_tags: vec![name], ..Default::default() };
    let other = ImageStatusResponse { image: Some(image) }.encode_to_vec();
    node.instead(IMAGE_STATUS, move |call| is_own(call).then(|| ok(&other)));
    node.runtime.take();
    for image in [&asked, &asked[..20]] {
        let why = format!("{image}: the container runtime answers with another image, {good}");
        refused(&node, &gate, &client, [image, ""], ["internal", &why]).await;
    }
}

/// A tag that leads from the old image to the new bytes would have containerd start these for
/// whoever asks for the old one: containerd finds an image's bytes by one of its tags.
#[tokio::test]
async fn a_tag_is_forgotten_before_it_names_other_bytes() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let old = pull_by(&client, &name).await;
    let new = node.signed("app", &node.key);
    let stale = Image { id: old.clone(), repo_tags: vec![name.clone()], ..Default::default() };
    let stale = ImageStatusResponse { image: Some(stale) }.encode_to_vec();
    let looks = AtomicUsize::new(0);
    // CRI hears of what became of a name a moment later.
    node.instead(IMAGE_STATUS, move |_| {
        let look = looks.fetch_add(1, Ordering::Relaxed);
        (look < 3).then(|| ok(&stale))
    });
    node.runtime.take();
    let id = pull_by(&client, &name).await;
    assert_ne!(id, old);
    let paths = node.runtime.paths();
    let service = "/containerd.services.images.v1.Images/";
    let mut about: Vec<_> =
        paths.iter().map(|path| path.strip_prefix(service).unwrap_or(path)).collect();
    // These two are asked side by side.
    about[1..3].sort_unstable();
    let status = IMAGE_STATUS;
    let expected =
        [PULL_IMAGE, status, "Get", "Get", "Delete", status, status, status, "Create", status];
    assert_eq!(about[..expected.len()], expected, "{new}");
    assert_eq!(super::shown(&client, &name).await, id);
}

/// Two questions side by side are no look at one moment: what CRI said before the record was asked
/// for says nothing of what became of the name in between.
#[tokio::test]
async fn a_tag_that_somebody_took_and_left_meanwhile_is_forgotten_too() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let old = pull_by(&client, &node.name("app:v1")).await;
    let new = node.registry.push_image("app", "v2");
    node.key.sign_simple(&node.registry, "app", new);
    let name = node.name("app:v2");
    let stale = Image { id: old, repo_tags: vec![name.clone()], ..Default::default() };
    let stale = ImageStatusResponse { image: Some(stale) }.encode_to_vec();
    let looks = AtomicUsize::new(0);
    node.instead(IMAGE_STATUS, move |_| match looks.fetch_add(1, Ordering::Relaxed) {
        0 => Some(ok(b"")),
        1 | 2 => Some(ok(&stale)),
        _ => None,
    });
    node.runtime.take();
    pull_by(&client, &name).await;
    let paths = node.runtime.paths();
    let before = paths.iter().take_while(|path| !path.ends_with("/Create"));
    assert_eq!(before.filter(|path| *path == IMAGE_STATUS).count(), 4, "{paths:?}");
}

/// Where the runtime has no record of what it pulled, the old one is not given up for it.
#[tokio::test]
async fn a_tag_stays_where_nothing_can_take_its_place() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let old = pull_by(&client, &name).await;
    node.signed("app", &node.key);
    node.instead("/containerd.services.images.v1.Images/Get", move |call| {
        String::from_utf8_lossy(&call.body).contains('@').then(|| super::failing("14"))
    });
    let told = client.unary(PULL_IMAGE, &crate::support::cri::pull(&name, "shop")).await.status();
    assert_eq!(told.0, 2, "{told:?}");
    assert_eq!(super::shown(&client, &name).await, old, "{:?}", node.runtime.paths());
}
