//! What starts on the node: `CreateContainer`, `ImageStatus` and `RunPodSandbox`, judged from
//! evidence that is kept here.

mod create;
mod holes;
mod lies;
mod names;
mod patience;
mod reuse;
mod sandbox;
mod status;
mod volumes;
mod wire;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::Value;

use crate::support::{
    containerd::Shelf,
    cri::{CREATE_CONTAINER, IMAGE_STATUS, PULL_IMAGE, image_status, pull},
    gate::{Gate, Setup},
    grpc::{Client, PATIENCE, Raw, framed},
    registry::TestRegistry,
    runtime::{Call, FakeRuntime, Reply, headers},
    sign::{self, Signer},
};

const LIST_RECORDS: &str = "/containerd.services.images.v1.Images/List";

type Script = Box<dyn Fn(&Call) -> Option<Reply> + Send>;

/// A node with a signed image in a registry; its runtime has nothing yet.
struct Node {
    registry: TestRegistry,
    shelf: Shelf,
    runtime: FakeRuntime,
    /// What the runtime does instead, by path.
    instead: Arc<Mutex<HashMap<&'static str, Script>>>,
    key: Signer,
    digest: Digest,
}

impl Node {
    fn new() -> Self {
        let (registry, key) = (TestRegistry::start(), Signer::new());
        let shelf = Shelf::beside(&registry);
        let digest = registry.push_image("app", "v1");
        key.sign_simple(&registry, "app", digest);
        let instead: Arc<Mutex<HashMap<&'static str, Script>>> = Arc::default();
        let (usual, unusual) = (shelf.clone(), instead.clone());
        let runtime = FakeRuntime::whole(move |call| {
            let unusual = unusual.lock().unwrap();
            let reply = unusual.get(call.head.uri.path()).and_then(|script| script(call));
            reply.unwrap_or_else(|| usual.answer(call))
        });
        let node = Self { registry, shelf, runtime, instead, key, digest };
        // The look at the node would learn and ask what tests are about: it has to wait.
        node.instead(LIST_RECORDS, |_| Some(failing("14")));
        node
    }

    /// Lets Portcullis look at the node.
    fn open(self) -> Self {
        self.instead(LIST_RECORDS, |_| None);
        self
    }

    /// A name in the registry.
    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// A policy for a repository, by this key.
    fn policy(&self, repository: &str, key: &Signer) -> String {
        sign::policy(repository, &self.name(repository), &[("release", key)])
    }

    /// Gates that let in `app` by its key.
    fn setup(&self) -> Setup {
        Setup::before(self.runtime.socket()).policy("app.yaml", &self.policy("app", &self.key))
    }

    /// An image of its own, signed with this key.
    fn signed(&self, repository: &str, key: &Signer) -> Digest {
        let digest = self.registry.push_image(repository, "v1");
        key.sign_simple(&self.registry, repository, digest);
        digest
    }

    /// From now on the runtime answers these calls so, where the script has an answer.
    fn instead(
        &self,
        path: &'static str,
        script: impl Fn(&Call) -> Option<Reply> + Send + 'static,
    ) {
        self.instead.lock().unwrap().insert(path, Box::new(script));
    }

    /// The calls of one method that reached the runtime.
    fn calls(&self, path: &str) -> usize {
        self.runtime.paths().iter().filter(|called| *called == path).count()
    }
}

/// A call that the runtime fails with this code.
fn failing(code: &'static str) -> Reply {
    let content_type = ("content-type", "application/grpc");
    let status = headers(&[content_type, ("grpc-status", code), ("grpc-message", "broken")]);
    Reply::whole(status, Bytes::new(), headers(&[]))
}

/// Whether this is a question of Portcullis itself.
fn is_own(call: &Call) -> bool {
    let agent = call.head.headers.get("user-agent");
    agent.is_some_and(|agent| agent.as_bytes().starts_with(b"portcullis/"))
}

/// Pulls through a gate, for the namespace `shop`.
#[track_caller]
fn pulled(answer: Raw) -> String {
    answer.message::<crate::support::cri::PullImageResponse>().image_ref
}

async fn pull_by(client: &Client, image: &str) -> String {
    pulled(client.unary(PULL_IMAGE, &pull(image, "shop")).await)
}

/// The ID of the image that a gate shows under a name; empty where it shows none.
async fn shown(client: &Client, image: &str) -> String {
    let answer = client.unary(IMAGE_STATUS, &image_status(image)).await;
    let answer = answer.message::<crate::support::cri::ImageStatusResponse>();
    answer.image.unwrap_or_default().id
}

async fn send(client: &Client, message: &[u8]) -> Raw {
    client.call(CREATE_CONTAINER, &[], framed(message)).await
}

/// What a container is to be made from.
#[derive(Clone)]
struct Creation<'a> {
    image: &'a str,
    user: &'a str,
    volumes: Vec<(&'a str, &'a str)>,
    namespace: &'a str,
}

/// As kubelet sends it: for a pod of the namespace `shop`.
fn creation<'a>(image: &'a str, user: &'a str) -> Creation<'a> {
    Creation { image, user, volumes: Vec::new(), namespace: "shop" }
}

/// A field with bytes.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(number, &value.to_vec(), &mut bytes);
    bytes
}

fn spec(image: &str, user: &str) -> Vec<u8> {
    let mut spec = field(1, image.as_bytes());
    if !user.is_empty() {
        spec.extend(field(18, user.as_bytes()));
    }
    // Fields of a CRI to come, twice.
    [spec, field(77, b"\xff\x00"), field(77, b"\xff\x01")].concat()
}

impl Creation<'_> {
    /// The message, with much that Portcullis does not know.
    fn message(&self) -> Vec<u8> {
        let metadata = field(1, b"web");
        let env = [field(1, b"KEY"), field(2, b"\xc3\x28\xa0\xa1")].concat();
        let mount = [field(1, b"/etc/hosts"), field(2, b"/h")].concat();
        let volumes = self.volumes.iter().enumerate().flat_map(|(number, (image, user))| {
            let path = format!("/volume-{number}").into_bytes();
            field(7, &[field(1, &path), field(9, &spec(image, user)), b"\x18\x01".into()].concat())
        });
        let config = [
            field(1, &metadata),
            field(7, &mount),
            field(6, &env),
            field(6, &env),
            field(2, &spec(self.image, self.user)),
            volumes.collect(),
            field(3, b"run"),
            field(99, b"new"),
            field(11, b"web/0.log"),
        ]
        .concat();
        let pod = [field(1, b"web-0"), field(2, b"uid-1"), field(3, self.namespace.as_bytes())];
        let sandbox = [field(1, &pod.concat()), field(3, b"/var/log/pods/x")].concat();
        // Field 55, fixed64, last.
        let unknown = b"\xb9\x03\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
        [field(1, b"pod-1"), field(2, &config), field(3, &sandbox), unknown].concat()
    }
}

/// Decision, reason and message of each record of an event.
fn told(gate: &Gate, event: &str) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let records = gate.records(event);
    records
        .iter()
        .map(|record| ["decision", "reason", "message"].map(|name| text(&record[name])))
        .collect()
}

fn line(decision: &str, reason: &str, message: impl Into<String>) -> [String; 3] {
    [decision.into(), reason.into(), message.into()]
}

/// What a refusal says on the wire.
fn invalid(message: &str) -> (i32, String) {
    (2, format!("SignatureValidationFailed: {message}"))
}

/// Nothing here shows what the image is.
fn unknown(name: &str, id: &str) -> String {
    format!(
        "{name}: nothing on this node shows that the image {id} belongs to this name: let it be \
         pulled through Portcullis (imagePullPolicy: Always), or bring evidence with \"portcullis \
         evidence import\""
    )
}

/// The manifest is here, and nobody was asked who signed it.
fn unasked(pinned: &str, policy: &str) -> String {
    format!(
        "{pinned}: policy \"{policy}\" requires 1 of 1 authority: \"release\": no signature found; \
         not every signature could be looked up: not all evidence about this image is on this \
         node: let it be pulled through Portcullis (imagePullPolicy: Always), or bring evidence \
         with \"portcullis evidence import\""
    )
}

/// Puts a file in place, whole, and waits until the set is in force.
async fn swap(gate: &Gate, file: &str, text: &str) {
    let before = gate.records("policy").len();
    let file = gate.path().join("policies").join(file);
    write_whole(&file, text);
    until("the set is in force", || gate.records("policy").len() > before).await;
}

fn write_whole(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

/// Waits for something that only files tell.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The made-up runtime's HTTP library adds it.
fn without_date(mut raw: Raw) -> Raw {
    raw.headers.remove("date");
    raw
}
