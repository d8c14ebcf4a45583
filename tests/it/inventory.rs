//! The look at the node: what is there already is learnt, asked about, and told of.

use portcullis::image::Digest;
use serde_json::{Value, json};

use crate::support::{
    containerd::{Container, Shelf},
    cri::{
        self, CREATE_CONTAINER, ContainerConfig, ContainerMetadata, CreateContainerRequest,
        IMAGE_STATUS, ImageSpec, PodConfig, PodSandboxMetadata, image_status,
    },
    gate::{Gate, Setup},
    grpc::PATIENCE,
    registry::{Fault, Match, TestRegistry},
    runtime::FakeRuntime,
    sign::{self, Signer},
};

/// A node that had a signed image, `app:v1`, before Portcullis came.
struct Node {
    registry: TestRegistry,
    shelf: Shelf,
    runtime: FakeRuntime,
    key: Signer,
    digest: Digest,
    /// The runtime's ID of the image.
    id: String,
}

impl Node {
    fn new() -> Self {
        let (registry, key) = (TestRegistry::start(), Signer::new());
        let digest = registry.push_image("app", "v1");
        key.sign_simple(&registry, "app", digest);
        let shelf = Shelf::beside(&registry);
        let id = shelf.pull(&format!("{}/app:v1", registry.host()));
        let runtime = shelf.runtime();
        Self { registry, shelf, runtime, key, digest, id }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    fn policy(&self, key: &Signer) -> String {
        sign::policy("p", &self.name("**"), &[("release", key)])
    }

    fn gate(&self) -> Gate {
        Setup::before(self.runtime.socket()).policy("p.yaml", &self.policy(&self.key)).start()
    }

    /// A container of this image, started behind Portcullis's back.
    fn run(&self, container: &str) {
        self.shelf.run(Container {
            id: container.into(),
            name: "web".into(),
            image: self.id.clone(),
            user_specified: self.name("app:v1"),
            image_id: self.id.clone(),
            exited: false,
            pod: ["shop".into(), "web-0".into(), "u".into()],
        });
    }

    /// `CreateContainer` of the image, as kubelet asks for it.
    fn create(&self) -> CreateContainerRequest {
        create(&self.id, &self.name("app:v1"))
    }
}

fn create(id: &str, name: &str) -> CreateContainerRequest {
    let metadata = PodSandboxMetadata {
        name: "web-0".into(),
        uid: "u".into(),
        namespace: "shop".into(),
        attempt: 0,
    };
    CreateContainerRequest {
        pod_sandbox_id: "pod".into(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata { name: "web".into() }),
            image: Some(ImageSpec {
                image: id.into(),
                user_specified_image: name.into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        sandbox_config: Some(PodConfig { metadata: Some(metadata), ..Default::default() }),
    }
}

/// Waits until the daemon has told of a look at the node with these counts.
async fn looked(gate: &Gate, counts: &str) {
    looked_often(gate, counts, 1).await;
}

/// The same for the time when it tells of them again, after others.
async fn looked_often(gate: &Gate, counts: &str, times: usize) {
    let told = format!("looked at the node {counts}");
    until(&told, || plain(&gate.log()).matches(&told).count() == times).await;
}

/// Without colours.
fn plain(log: &str) -> String {
    let mut parts = log.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    first + &parts.filter_map(|part| part.split_once('m')).map(|(_, text)| text).collect::<String>()
}

/// Waits for something that only files tell.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The messages of all `drift` records about containers.
fn drifts(gate: &Gate) -> Vec<Value> {
    gate.records("drift").into_iter().filter(|record| record["container"].is_string()).collect()
}

#[tokio::test]
async fn what_was_there_before_is_proven_without_a_pull_and_then_starts_without_a_registry() {
    let node = Node::new();
    let gate = node.gate();
    looked(&gate, "images=1 proven=1 running=0 drifted=0 unpermitted=0").await;
    let asked = node.registry.asked();
    let tag = format!("GET /v2/app/manifests/sha256-{}.sig", node.digest.hex());
    assert_eq!(asked.iter().filter(|path| **path == tag).count(), 1, "{asked:?}");
    assert!(!asked.iter().any(|path| path.ends_with("/v1")), "a tag was resolved: {asked:?}");
    assert!(node.registry.requests().iter().all(|request| request.authorization().is_none()));
    let request = node.create();
    let Node { registry, runtime, .. } = node;
    drop(registry);
    let client = gate.client().await;
    let answer = client.unary(CREATE_CONTAINER, &request).await;
    assert_eq!(answer.message::<cri::IdResponse>().id, "container-0");
    assert!(!runtime.paths().iter().any(|path| path == cri::PULL_IMAGE));
    assert_eq!(gate.records("create").len(), 1);
}

#[tokio::test]
async fn what_nobody_signed_stays_unproven_and_is_asked_about_once() {
    let node = Node::new();
    let digest = node.registry.push_image("other", "v1");
    node.shelf.pull(&node.name("other:v1"));
    let gate = node.gate();
    looked(&gate, "images=2 proven=1 running=0 drifted=0 unpermitted=0").await;
    // Another set asks again, at a moment of this node's own; the same one does not.
    let tag = format!("GET /v2/other/manifests/sha256-{}.sig", digest.hex());
    let count = || node.registry.asked().iter().filter(|path| **path == tag).count();
    let request = image_status(&node.name("other:v1"));
    let answer = gate.client().await.unary(IMAGE_STATUS, &request).await;
    assert_eq!(answer.message::<cri::ImageStatusResponse>(), Default::default());
    assert_eq!(count(), 1);
}

#[tokio::test]
async fn a_registry_that_is_down_is_given_up_and_holds_up_nothing() {
    let node = Node::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        node.registry.push_image(name, "v1");
        node.shelf.pull(&node.name(&format!("{name}:v1")));
    }
    node.registry.fault(Match::any(), Fault::Hang);
    node.run("c1");
    let open = sign::policy("p", "elsewhere.io/**", &[("k", &node.key)]);
    let unsigned = node.policy(&node.key).replace("name: p}", "name: z}");
    let gate = Setup::before(node.runtime.socket())
        .policy("p.yaml", &open)
        .policy("z.yaml", &unsigned)
        .start();
    // Four questions hang. Gates and other policies do not wait for them.
    node.registry.until(|requests| requests.len() >= 4).await;
    let answer = gate.client().await.unary(CREATE_CONTAINER, &node.create()).await;
    assert!(answer.status().1.starts_with("SignatureValidationFailed: "), "{answer:?}");
    std::fs::remove_file(gate.path().join("policies/z.yaml")).unwrap();
    // No policy covers what is there any more, so nobody is asked.
    looked(&gate, "images=11 proven=0 running=1 drifted=1 unpermitted=1").await;
}

#[tokio::test]
async fn a_container_that_other_policies_would_refuse_is_told_of_once_and_left_running() {
    let node = Node::new();
    node.run("c1");
    let gate = node.gate();
    looked(&gate, "images=1 proven=1 running=1 drifted=0 unpermitted=1").await;
    let found = drifts(&gate);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["container"], "c1");
    assert_eq!(found[0]["pod"], json!({"namespace": "shop", "name": "web-0", "uid": "u"}));
    assert_eq!(
        found[0]["message"],
        "container \"web\" in pod shop/web-0 was not created through Portcullis: it is older than \
         this node's records, or came past the gate; it is left running"
    );
    assert_eq!(found[0]["decision"], Value::Null);

    let policy = gate.path().join("policies/p.yaml");
    std::fs::write(&policy, node.policy(&Signer::new())).unwrap();
    until("the drift", || drifts(&gate).len() == 2).await;
    let drift = &drifts(&gate)[1];
    let image = format!("{}@{}", node.name("app"), node.digest);
    assert_eq!(
        drift["message"],
        format!(
            "container \"web\" in pod shop/web-0 runs an image that would be refused now: {image}: \
             policy \"p\" requires 1 of 1 authority: \"release\": no signature by this key (1 \
             signature found); it is left running"
        )
    );
    assert_eq!(drift["decision"], "deny");
    assert_eq!(drift["reason"], "authority_not_satisfied");
    assert_eq!(drift["container"], "c1");
    assert_eq!(drift["image"]["requested"], node.name("app:v1"));
    assert_eq!(drift["image"]["id"], node.id);
    looked(&gate, "images=1 proven=0 running=1 drifted=1 unpermitted=1").await;

    // Back, and there again: the same drift under the same policies is not told twice.
    let strict = std::fs::read(&policy).unwrap();
    std::fs::write(&policy, node.policy(&node.key)).unwrap();
    looked_often(&gate, "images=1 proven=1 running=1 drifted=0 unpermitted=1", 2).await;
    std::fs::write(&policy, strict).unwrap();
    looked_often(&gate, "images=1 proven=0 running=1 drifted=1 unpermitted=1", 2).await;
    assert!(!node.runtime.paths().iter().any(|path| path.contains("StopContainer")));
    assert_eq!(drifts(&gate).len(), 2);
}

#[tokio::test]
async fn a_restart_and_an_edit_tell_nothing_twice() {
    let node = Node::new();
    for container in ["c1", "c2", "c3"] {
        node.run(container);
    }
    let mut gate = node.gate();
    looked(&gate, "images=1 proven=1 running=3 drifted=0 unpermitted=3").await;
    assert_eq!(drifts(&gate).len(), 3);
    node.run("c4");
    gate.crash_and_restart();
    looked(&gate, "images=1 proven=1 running=4 drifted=0 unpermitted=4").await;
    let told: Vec<_> = drifts(&gate).iter().map(|record| record["container"].clone()).collect();
    assert_eq!(told, ["c1", "c2", "c3", "c4"]);

    // An edit that changes nothing for them.
    let strict = node.policy(&Signer::new());
    let policy = gate.path().join("policies/p.yaml");
    std::fs::write(&policy, &strict).unwrap();
    until("the drift", || drifts(&gate).len() == 8).await;
    node.shelf.remove_container("c4");
    let beside =
        strict.replace("name: p}", "name: q}").replace(&node.name("**"), "elsewhere.io/**");
    std::fs::write(gate.path().join("policies/q.yaml"), beside).unwrap();
    looked(&gate, "images=1 proven=0 running=3 drifted=3 unpermitted=3").await;
    assert_eq!(drifts(&gate).len(), 8);
}

#[tokio::test]
async fn a_container_that_was_let_in_is_no_news() {
    let node = Node::new();
    let gate = node.gate();
    looked(&gate, "images=1 proven=1 running=0 drifted=0 unpermitted=0").await;
    let client = gate.client().await;
    assert_eq!(client.unary(CREATE_CONTAINER, &node.create()).await.status().0, 0);
    // Another set of the same effect makes it look again.
    let again = node.policy(&node.key).replace("name: p}", "name: again}");
    std::fs::write(gate.path().join("policies/p.yaml"), again).unwrap();
    looked(&gate, "images=1 proven=1 running=1 drifted=0 unpermitted=0").await;
    assert_eq!(drifts(&gate), Vec::<Value>::new());
}

#[tokio::test]
async fn an_image_that_shares_its_id_with_a_checkpoint_does_not_start() {
    let node = Node::new();
    let (kind, bytes) = node.registry.reader()("app", "v1").unwrap();
    let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
    manifest["annotations"] = json!({"org.criu.checkpoint.container.name": "x"});
    let name = "localhost/checkpoint:v1";
    let checkpoint = node.shelf.put(name, &kind, manifest.to_string());
    let gate = node.gate();
    looked(&gate, "images=2 proven=1 running=0 drifted=0 unpermitted=0").await;
    let client = gate.client().await;
    let refused = format!(
        "SignatureValidationFailed: {}: the container runtime also has the checkpoint {checkpoint} \
         under this image's ID, and might restore that instead: remove it from the runtime",
        node.name("app:v1")
    );
    assert_eq!(client.unary(CREATE_CONTAINER, &node.create()).await.status(), (2, refused));
    let status = client.unary(IMAGE_STATUS, &image_status(&node.name("app:v1"))).await;
    assert_eq!(status.message::<cri::ImageStatusResponse>(), Default::default());

    // Once it is gone, the next look lifts the ban.
    node.shelf.forget(name);
    let again = node.policy(&node.key).replace("name: p}", "name: again}");
    std::fs::write(gate.path().join("policies/p.yaml"), again).unwrap();
    looked(&gate, "images=1 proven=1 running=0 drifted=0 unpermitted=0").await;
    assert_eq!(client.unary(CREATE_CONTAINER, &node.create()).await.status().0, 0);
}
