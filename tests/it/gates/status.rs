//! Whether an image is there: for kubelet, one that nobody may have is not.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;

use crate::support::{
    cri::{IMAGE_STATUS, ImageStatusRequest, image_status},
    grpc::{Raw, framed},
    runtime::{Reply, headers, ok},
    sign::Signer,
};

use super::{Node, field, line, pull_by, shown, swap, told, unasked, without_date};

/// An answer of the runtime's with much that Portcullis does not know.
fn verbose(node: &Node, id: &str, names: &[&str]) -> (Reply, Raw) {
    let content_type = headers(&[("content-type", "application/grpc"), ("x-runtime", "yes")]);
    let trailers = headers(&[("grpc-status", "0"), ("x-trailer", "t")]);
    let names: Vec<u8> =
        names.iter().flat_map(|name| field(2, node.name(name).as_bytes())).collect();
    let image = [field(1, id.as_bytes()), names, field(77, b"\xff")].concat();
    let info = [field(1, b"info"), field(2, b"{}")].concat();
    let message = [field(1, &image), field(2, &info), field(99, b"\xfe")].concat();
    let reply = Reply::whole(content_type.clone(), framed(&message), trailers.clone());
    (reply, Raw { headers: content_type, body: framed(&message), trailers: Some(trailers) })
}

#[tokio::test]
async fn an_accepted_image_is_shown_as_the_runtime_shows_it() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let id = pull_by(&client, &node.name("app:v1")).await;
    let (answered, tags) = (id.clone(), ["app:v1", "app:v2"]);
    let registry = node.registry.host().to_owned();
    let (_, expected) = verbose(&node, &id, &tags);
    let body = expected.body.clone();
    node.instead(IMAGE_STATUS, move |call| {
        assert!(call.body.windows(registry.len()).any(|part| part == registry.as_bytes()));
        let content_type = headers(&[("content-type", "application/grpc"), ("x-runtime", "yes")]);
        let trailers = headers(&[("grpc-status", "0"), ("x-trailer", "t")]);
        Some(Reply::whole(content_type, body.clone(), trailers))
    });
    node.runtime.take();
    let spec = [field(1, node.name("app:v1").as_bytes()), field(77, b"\xff")].concat();
    let request = [field(1, &spec), b"\x10\x01".to_vec(), field(99, b"x")].concat();
    let answer = client.call(IMAGE_STATUS, &[("x-trace", "t")], framed(&request)).await;
    assert_eq!(without_date(answer), expected);
    let calls = node.runtime.take();
    assert_eq!((calls.len(), &calls[0].body), (1, &framed(&request)));
    assert_eq!(calls[0].head.headers["x-trace"], "t");
    assert!(!answered.is_empty() && gate.records("image_status").is_empty());
}

#[tokio::test]
async fn an_image_that_nobody_may_have_is_answered_as_absent() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = node.shelf.pull(&name);
    let why = unasked(&format!("{}@{}", node.name("app"), node.digest), "app");
    for (count, asked) in [&*name, &id, &id[7..], &id[7..20]].into_iter().enumerate() {
        let request = ImageStatusRequest { verbose: true, ..image_status(asked) };
        let answer = without_date(client.unary(IMAGE_STATUS, &request).await);
        let expected = Raw {
            headers: headers(&[("content-type", "application/grpc")]),
            body: framed(b""),
            trailers: Some(headers(&[("grpc-status", "0")])),
        };
        assert_eq!(answer, expected);
        let lines = vec![line("deny", "not_proven_locally", &*why); count + 1];
        assert_eq!(told(&gate, "image_status"), lines);
    }
    let record = gate.records("image_status").remove(0);
    assert_eq!(record["image"]["requested"], name);
    assert_eq!(record["image"]["digest"], node.digest.to_string());
    assert_eq!(record["image"]["id"], id);
    assert!(record.get("pod").is_none());
    // A judged pull brings what it takes.
    assert_eq!(pull_by(&client, &name).await, id);
    for asked in [&*name, &id, &id[7..20]] {
        assert_eq!(shown(&client, asked).await, id);
    }
    assert_eq!(gate.records("image_status").len(), 4);
    swap(&gate, "app.yaml", &node.policy("app", &Signer::new())).await;
    assert_eq!(shown(&client, &name).await, "");
    let last = &gate.records("image_status")[4];
    assert_eq!(last["reason"], "authority_not_satisfied");
}

#[tokio::test]
async fn an_image_for_some_namespaces_is_shown() {
    let node = Node::new();
    let (open, mine) = (node.policy("app", &node.key), node.policy("app", &Signer::new()));
    let only =
        |policy: &str, scope: &str| policy.replace("match: {", &format!("match: {{{scope}, "));
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    let id = pull_by(&client, &name).await;
    for (policies, expected) in [
        (vec![only(&open, "namespaces: [shop]")], &*id),
        (vec![only(&open, "namespaces: [shop]"), only(&mine, "namespaces: [kitchen]")], &id),
        (vec![only(&open, "excludeNamespaces: [shop]")], &id),
        (vec![open.clone(), only(&mine, "excludeNamespaces: [shop]")], &id),
        (vec![only(&mine, "namespaces: [shop]")], ""),
        (vec![open.clone(), mine.clone()], ""),
        (vec![only(&open, "namespaces: [shop]"), mine.clone()], ""),
    ] {
        let policies = policies.iter().enumerate();
        let text: Vec<_> = policies
            .map(|(number, text)| text.replace("{name: app}", &format!("{{name: app-{number}}}")))
            .collect();
        swap(&gate, "app.yaml", &text.join("---\n")).await;
        assert_eq!(shown(&client, &name).await, expected, "{text:?}");
    }
    assert_eq!(gate.records("image_status").len(), 3);
}

#[tokio::test]
async fn one_name_that_is_accepted_is_enough() {
    let node = Node::new();
    let strict = Signer::new();
    let gate = node.setup().policy("strict.yaml", &node.policy("strict", &strict)).start();
    let client = gate.client().await;
    let id = pull_by(&client, &node.name("app:v1")).await;
    node.shelf.name(&node.name("strict:v1"), &node.name("app:v1"));
    node.shelf.name(&node.name("nobody:v1"), &node.name("app:v1"));
    assert_eq!(shown(&client, &id).await, id);
    assert_eq!(shown(&client, &node.name("app:v1")).await, id);
    assert_eq!(shown(&client, &node.name("strict:v1")).await, "");
    assert_eq!(shown(&client, &node.name("nobody:v1")).await, "");
    let reasons: Vec<_> =
        gate.records("image_status").iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(reasons, ["authority_not_satisfied", "no_policy_matches"]);
}

#[tokio::test]
async fn absence_and_failure_are_the_runtimes_own_words() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let name = node.name("app:v1");
    assert_eq!(shown(&client, &name).await, "");
    let failed = headers(&[
        ("content-type", "application/grpc"),
        ("grpc-status", "5"),
        ("grpc-message", "no%20such"),
        ("grpc-status-details-bin", "CAUSAXg"),
    ]);
    let answer = failed.clone();
    node.instead(IMAGE_STATUS, move |_| {
        Some(Reply::whole(answer.clone(), Bytes::new(), HeaderMap::new()))
    });
    let told = without_date(client.unary(IMAGE_STATUS, &image_status(&name)).await);
    assert_eq!(told, Raw { headers: failed, body: Bytes::new(), trailers: None });
    assert!(gate.records("image_status").is_empty());
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_shows_nothing() {
    let node = Node::new();
    let gate = node.setup().start();
    let client = gate.client().await;
    let image = field(1, &field(1, b"sha256:abc"));
    let unframed = |bytes: &[u8]| {
        let content_type = headers(&[("content-type", "application/grpc")]);
        let body = Bytes::copy_from_slice(bytes);
        Reply::whole(content_type, body, headers(&[("grpc-status", "0")]))
    };
    let frame = "the container runtime's answer: ";
    let strange = "the runtime's answer to ImageStatus cannot be decoded".to_owned();
    let twice = [framed(&image), framed(&image)].concat();
    for (body, why) in [
        (framed(b"\x0a\x05a").to_vec(), strange.clone()),
        (framed(b"\x0a\x03\x0a\x01\xff").to_vec(), strange),
        (
            b"\x01\0\0\0\x01x".to_vec(),
            format!(
                "{frame}the message is compressed, which CRI clients and this server do not agree on"
            ),
        ),
        (twice, format!("{frame}the gRPC frame announces 14 bytes and carries 33")),
        (Vec::new(), format!("{frame}the gRPC frame is cut short")),
    ] {
        let before = gate.records("image_status").len();
        node.instead(IMAGE_STATUS, move |_| Some(unframed(&body)));
        let answer = client.unary(IMAGE_STATUS, &image_status("app")).await;
        assert_eq!(answer.status(), super::invalid(&why));
        assert_eq!(told(&gate, "image_status")[before..], [line("deny", "internal", why)]);
    }
    // An ID that is none is no image.
    node.instead(IMAGE_STATUS, move |_| Some(ok(&image)));
    assert_eq!(shown(&client, "app").await, "");
    let _ = ImageStatusRequest::default().encode_to_vec();
    let why = "\"sha256:abc\" is no digest: \"sha256:\" and 64 lower-case hexadecimal characters are \
        expected";
    assert_eq!(told(&gate, "image_status").pop().unwrap(), line("deny", "internal", why));
}
