//! The sandbox (pause) image: the runtime's own choice, and proven like any other.

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message;

use crate::support::{
    containerd::STATUS,
    cri::{PULL_IMAGE, PullImageRequest, RUN_POD_SANDBOX},
    gate::{Gate, Setup},
    grpc::{Client, Raw, framed},
    registry::{Fault, Match},
    runtime::{FakeRuntime, Reply, headers, ok},
    sign,
};

use super::{LIST_RECORDS, Node, field, invalid, is_own, line, told, until, without_date};

/// A node whose runtime says that it uses `pause:v1`.
fn node() -> Node {
    let node = Node::new();
    node.shelf.sandbox_image(Some(&node.name("pause:v1")));
    node.open()
}

fn setup(node: &Node) -> Setup {
    node.setup().policy("pause.yaml", &node.policy("pause", &node.key)).sandbox_image(None)
}

/// As kubelet sends it, with fields of a CRI to come.
fn message() -> Vec<u8> {
    let pod = [field(1, b"web-0"), field(2, b"uid-1"), field(3, b"shop")].concat();
    let config = [field(1, &pod), field(77, b"\xff\xfe")].concat();
    [field(1, &config), field(2, b"runc"), field(99, b"x")].concat()
}

async fn run(client: &Client) -> Raw {
    client.call(RUN_POD_SANDBOX, &[("x-trace", "t")], framed(&message())).await
}

/// The look at the start is over when it is on record.
async fn looked(gate: &Gate) {
    until("the sandbox image was looked for", || !gate.records("sandbox").is_empty()).await;
}

/// The images that the runtime was told to pull.
fn pulls(node: &Node) -> Vec<String> {
    let calls = node.runtime.take();
    let pulls = calls.iter().filter(|call| call.head.uri.path() == PULL_IMAGE);
    pulls
        .map(|call| {
            assert!(is_own(call) || call.head.headers.get("user-agent").is_none());
            PullImageRequest::decode(&call.body[5..]).unwrap().image.unwrap().image
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_one_is_pulled_through_the_gate_and_then_pods_run() {
    let node = node();
    let digest = node.signed("pause", &node.key);
    let gate = setup(&node).start();
    let client = gate.client().await;
    looked(&gate).await;
    let content_type = headers(&[("content-type", "application/grpc")]);
    let trailers = headers(&[("grpc-status", "0"), ("x-trailer", "t")]);
    let body = framed(b"\x0a\x01p\xba\x06\x01\xff");
    let expected =
        Raw { headers: content_type.clone(), body: body.clone(), trailers: Some(trailers.clone()) };
    node.instead(RUN_POD_SANDBOX, move |_| {
        Some(Reply::whole(content_type.clone(), body.clone(), trailers.clone()))
    });
    assert_eq!(without_date(run(&client).await), expected);
    assert_eq!(without_date(run(&client).await), expected);
    let ran: Vec<_> = node.runtime.paths();
    assert_eq!(ran.iter().filter(|path| *path == RUN_POD_SANDBOX).count(), 2);
    let calls = node.runtime.take();
    let call = calls.iter().find(|call| call.head.uri.path() == RUN_POD_SANDBOX).unwrap();
    assert_eq!(
        (&call.body, &call.head.headers["x-trace"]),
        (&framed(&message()), &"t".parse().unwrap())
    );
    let pulled = calls.iter().find(|call| call.head.uri.path() == PULL_IMAGE).unwrap();
    let pulled = PullImageRequest::decode(&pulled.body[5..]).unwrap().image.unwrap().image;
    let pinned = format!("{}@{digest}", node.name("pause"));
    assert_eq!(pulled, pinned);

    let allowed = line("allow", "", format!("{pinned} may be started"));
    assert_eq!(told(&gate, "sandbox"), [allowed.clone(), allowed.clone(), allowed]);
    let records = gate.records("sandbox");
    assert!(records[0].get("pod").is_none());
    assert_eq!(records[1]["pod"]["name"], "web-0");
    assert_eq!(records[1]["image"]["requested"], node.name("pause:v1"));
    assert!(records[1]["image"]["id"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_signed_is_refused_missing_or_there() {
    let node = node();
    let digest = node.registry.push_image("pause", "v1");
    let gate = setup(&node).start();
    let client = gate.client().await;
    looked(&gate).await;
    node.shelf.pull(&node.name("pause:v1"));
    let pinned = format!("{}@{digest}", node.name("pause"));
    let policy = "policy \"pause\" requires 1 of 1 authority: \"release\": no signature found";
    let pull = line("deny", "signature_missing", format!("{pinned}: {policy}"));
    assert_eq!(told(&gate, "sandbox"), std::slice::from_ref(&pull));
    let why = super::unasked(&pinned, "pause");
    assert_eq!(run(&client).await.status(), invalid(&why));
    assert_eq!(told(&gate, "sandbox"), [pull, line("deny", "not_proven_locally", why)]);
    assert_eq!(node.calls(RUN_POD_SANDBOX), 0);
    assert!(pulls(&node).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_name_leads_to_other_bytes_now_is_pulled_anew() {
    let node = node();
    let digest = node.signed("pause", &node.key);
    let gate = setup(&node).start();
    let client = gate.client().await;
    looked(&gate).await;
    assert_eq!(run(&client).await.status().0, 0);
    assert_eq!(pulls(&node), [format!("{}@{digest}", node.name("pause"))]);
    let evil = node.registry.push_image("evil", "v1");
    node.shelf.pull(&node.name("evil:v1"));
    node.shelf.name(&node.name("pause:v1"), &node.name("evil:v1"));
    // So soon after the last attempt nothing is pulled.
    let why = super::unasked(&format!("{}@{evil}", node.name("pause")), "pause");
    assert_eq!(run(&client).await.status(), invalid(&why));
    assert_eq!(node.calls(RUN_POD_SANDBOX), 0);
    // A new daemon has made no attempt.
    let mut gate = gate;
    gate.crash_and_restart();
    until("it is pulled anew", || node.calls(PULL_IMAGE) > 0).await;
    until("it is there", || gate.records("sandbox").len() >= 4).await;
    assert_eq!(run(&gate.client().await).await.status().0, 0);
    assert_eq!(pulls(&node), [format!("{}@{digest}", node.name("pause"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_one_after_an_upgrade_of_the_runtime_is_judged() {
    let node = node();
    node.signed("pause", &node.key);
    let gate = setup(&node).start();
    let client = gate.client().await;
    looked(&gate).await;
    assert_eq!(run(&client).await.status().0, 0);
    node.runtime.take();
    node.registry.push_image("pause", "v2");
    node.shelf.sandbox_image(Some(&node.name("pause:v2")));
    let why = format!("{}: the sandbox image is not on this node", node.name("pause:v2"));
    assert_eq!(run(&client).await.status(), invalid(&why));
    assert_eq!(node.calls(RUN_POD_SANDBOX), 0);
}

/// A name of containerd's that its configuration pins.
fn pinned(name: &str, digit: &str) -> Vec<u8> {
    let label = [field(1, b"io.cri-containerd.pinned"), field(2, b"pinned")].concat();
    let digest = format!("sha256:{}", digit.repeat(64));
    let target = field(2, digest.as_bytes());
    field(1, &[field(1, name.as_bytes()), field(2, &label), field(3, &target)].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_does_not_tell_keeps_the_gate_closed() {
    let remedy = "; set runtime.sandbox_image to what the runtime's own configuration says \
        (containerd 2: pinned_images.sandbox, containerd 1: sandbox_image)";
    let unknown = "which sandbox (pause) image the container runtime uses is not known: ";
    let several = "its status does not tell, and it has pinned several images";
    let node = Node::new();
    let pause = |rest: &str, digit: &str| pinned(&node.name(&format!("pause{rest}")), digit);
    let id = pinned(&format!("sha256:{}", "1".repeat(64)), "1");
    let other = pinned(&node.name("other:v1"), "1");
    let digests = ["1", "2"].map(|digit| format!("@sha256:{}", digit.repeat(64)));
    let digests = [pause(&digests[0], "1"), pause(&digests[1], "2")].concat();
    for (records, why) in [
        (Vec::new(), "its status does not tell, and it has pinned no image by a name"),
        ([pause(":v1", "1"), pause(":v2", "2")].concat(), several),
        ([pause(":v1", "1"), other].concat(), several),
        (digests, several),
        (id, "its status does not tell, and it has pinned no image by a name"),
        (
            pinned("A B", "1"),
            "it says \"A B\" is no repository: a path component must be lower-case letters and \
             digits, separated by '.', '_', '__' or dashes",
        ),
    ] {
        node.instead(LIST_RECORDS, move |_| Some(ok(&records)));
        let setup = setup(&node);
        let (status, log) = setup.start_in_vain();
        assert_eq!(status.code(), Some(78), "{log}");
        assert!(log.contains(&format!("{unknown}{why}{remedy}")), "{log}");
        assert!(!setup.path().join("p.sock").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_pinned_image_is_it_where_the_status_does_not_tell() {
    let node = Node::new();
    let digest = node.signed("pause", &node.key);
    // As containerd records one that was pulled: by its tag, its digest and its ID.
    let id = format!("sha256:{}", "2".repeat(64));
    let by_digest = node.name(&format!("pause@sha256:{}", "1".repeat(64)));
    let names = [id, by_digest, node.name("pause:v1")];
    let records = names.map(|name| pinned(&name, "1")).concat();
    node.instead(LIST_RECORDS, move |_| Some(ok(&records)));
    let gate = setup(&node).start();
    looked(&gate).await;
    assert_eq!(run(&gate.client().await).await.status().0, 0);
    assert_eq!(pulls(&node), [format!("{}@{digest}", node.name("pause"))]);
}

/// Whoever may pull can give the bytes of the pinned image one more name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_another_name_is_not_what_the_sandbox_image_is_judged_by() {
    let node = Node::new().open();
    let pause = node.signed("pause", &node.key);
    let bytes = node.registry.reader()("pause", "v1").unwrap();
    node.registry.push_manifest("a/copy", Some("v1"), &bytes.0, bytes.1);
    node.key.sign_simple(&node.registry, "a/copy", pause);
    node.shelf.pull(&node.name("pause:v1"));
    node.shelf.pin(&node.name("pause:v1"));
    // Its name comes before the other one, and its policy is for one namespace.
    let copy = sign::policy("copy", &node.name("a/copy"), &[("release", &node.key)]);
    let copy = copy.replace("images: [", "namespaces: [shop], images: [");
    let gate = setup(&node).policy("copy.yaml", &copy).start();
    let client = gate.client().await;
    looked(&gate).await;
    super::pull_by(&client, &node.name("a/copy:v1")).await;
    assert_eq!(run(&client).await.status(), (0, String::new()));
    let records = gate.records("sandbox");
    let last = records.last().unwrap();
    assert_eq!(last["image"]["requested"], node.name("pause:v1"));
    assert_eq!(last["image"]["digest"], pause.to_string());
}

/// Nor does a policy for that name let pods run from what its own policy refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_another_name_lends_the_sandbox_image_no_policy() {
    let node = Node::new().open();
    let pause = node.registry.push_image("pause", "v1");
    let bytes = node.registry.reader()("pause", "v1").unwrap();
    node.registry.push_manifest("a/copy", Some("v1"), &bytes.0, bytes.1);
    node.shelf.pull(&node.name("pause:v1"));
    node.shelf.pin(&node.name("pause:v1"));
    let copy = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: copy}}\nspec:\n  \
         match: {{images: [{:?}]}}\n  authorities: [{{name: a, unsigned: {{reason: t}}}}]\n",
        node.name("a/copy")
    );
    let gate = setup(&node).policy("copy.yaml", &copy).start();
    let client = gate.client().await;
    looked(&gate).await;
    super::pull_by(&client, &node.name("a/copy:v1")).await;
    let (code, message) = run(&client).await.status();
    let pinned = format!("{}@{pause}: policy \"pause\"", node.name("pause"));
    assert!(code == 2 && message.contains(&pinned), "{code} {message}");
    assert_eq!(node.calls(RUN_POD_SANDBOX), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_runtime_is_away_no_pod_runs_and_when_it_tells_they_do() {
    let node = node();
    node.signed("pause", &node.key);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("runtime.sock");
    let policy = node.policy("pause", &node.key);
    let gate = Setup::before(&socket).policy("pause.yaml", &policy).sandbox_image(None).start();
    let client = gate.client().await;
    let why = format!(
        "the container runtime failed to tell: cannot connect to the container runtime at {}: No \
         such file or directory (os error 2)",
        socket.display()
    );
    assert_eq!(run(&client).await.status(), invalid(&why));
    assert_eq!(told(&gate, "sandbox").pop().unwrap(), line("deny", "internal", why));
    let shelf = node.shelf.clone();
    let _runtime = FakeRuntime::whole_at(&socket, move |call| shelf.answer(call));
    assert_eq!(run(&client).await.status(), (0, String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_fails_is_asked_again() {
    let node = node();
    node.signed("pause", &node.key);
    let failed = || {
        headers(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "14"),
            ("grpc-message", "not yet"),
        ])
    };
    node.instead(STATUS, move |_| Some(Reply::whole(failed(), Bytes::new(), headers(&[]))));
    let gate = setup(&node).start();
    let client = gate.client().await;
    let why = "the container runtime failed to tell: not yet";
    assert_eq!(run(&client).await.status(), invalid(why));
    node.instead(STATUS, |_| None);
    assert_eq!(run(&client).await.status(), (0, String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_pods_make_one_attempt() {
    const PODS: usize = 100;
    let node = node();
    let digest = node.signed("pause", &node.key);
    node.registry.fault(Match::any(), Fault::Status(503, Vec::new(), String::new()));
    let gate = setup(&node).start();
    let client = gate.client().await;
    let answers = join_all((0..PODS).map(|_| run(&client))).await;
    let why = format!("{}: the sandbox image is not on this node", node.name("pause:v1"));
    for answer in answers {
        assert_eq!(answer.status(), invalid(&why));
    }
    let lines = told(&gate, "sandbox");
    assert_eq!(lines.len(), PODS + 1);
    let pulls = gate.records("sandbox");
    let mut pulls = pulls.iter().filter(|record| record.get("pod").is_none());
    assert_eq!(pulls.next().unwrap()["reason"], "registry_unreachable");
    assert!(pulls.next().is_none());
    assert_eq!(node.calls(RUN_POD_SANDBOX) + node.calls(PULL_IMAGE), 0);
    let asked = node.registry.asked();
    assert!(asked.len() < 10, "{asked:?} for {digest}");
}
