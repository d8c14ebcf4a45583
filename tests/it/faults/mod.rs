//! Faults of the node around the gate, of registries, of clients, and of Portcullis itself. After
//! each: nothing unproven came to the runtime, each judgement is on record once, the chain is
//! whole, calls work again without a restart, and memory is about what it was.
//!
//! What takes minutes or ten thousand descriptors is ignored here, and run by `make faults`.

mod clients;
mod clock;
mod descriptors;
mod panics;
mod registries;
mod sandbox;
mod state;
mod stop;

use std::time::Duration;

use portcullis::image::Digest;
use prost::Message;

use crate::support::{
    cri::{PULL_IMAGE, PullImageRequest, VERSION, pull},
    gate::{Gate, Setup, whole},
    grpc::{Client, PATIENCE, framed},
    registry::TestRegistry,
    runtime::{FakeRuntime, pulling},
    sign::{self, Signer},
};

/// What memory may grow by under a load and not come back, in KiB: buffers that allocators keep.
const KEPT: u64 = 32 << 10;

/// A node with an image `app` that its policy accepts, and one `bad` that it does not.
struct Node {
    registry: TestRegistry,
    runtime: FakeRuntime,
    key: Signer,
    app: Digest,
    bad: Digest,
}

impl Node {
    fn new() -> Self {
        let (registry, key) = (TestRegistry::start(), Signer::new());
        let (app, bad) = (registry.push_image("app", "v1"), registry.push_image("bad", "v1"));
        key.sign_simple(&registry, "app", app);
        Self { registry, runtime: FakeRuntime::start(pulling), key, app, bad }
    }

    /// A gate that trusts the key for everything in the registry.
    fn setup(&self) -> Setup {
        let images = format!("{}/**", self.registry.host());
        let policy = sign::policy("release", &images, &[("release", &self.key)]);
        Setup::before(self.runtime.socket()).policy("p.yaml", &policy)
    }

    /// A name in the registry.
    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    fn pinned(&self, repository: &str, digest: Digest) -> String {
        self.name(&format!("{repository}@{digest}"))
    }

    /// Everything is as if nothing had happened: what is signed is pulled and what is not is
    /// refused, the runtime was told to pull nothing but what is in `signed`, there are as many
    /// records of pulls as there were `judged`, and the chain is whole.
    async fn sound(&self, gate: &Gate, signed: &[String], judged: usize) {
        let client = gate.client().await;
        assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
        let app = self.pinned("app", self.app);
        assert_eq!(pulled(&client, &app).await, (0, String::new()));
        let bad = self.pinned("bad", self.bad);
        let message = format!(
            "SignatureValidationFailed: {bad}: policy \"release\" requires 1 of 1 authority: \
             \"release\": no signature found"
        );
        assert_eq!(pulled(&client, &bad).await, (2, message));
        for call in self.runtime.take() {
            if call.head.uri.path() == PULL_IMAGE {
                let request = PullImageRequest::decode(&call.body[5..]).unwrap();
                let image = request.image.unwrap().image;
                assert!(image == app || signed.contains(&image), "{image} was pulled");
            }
        }
        assert_eq!(gate.records("pull").len(), judged + 2);
        whole(&gate.audit_file(), &gate.path().join("state"));
    }
}

async fn pulled(client: &Client, image: &str) -> (i32, String) {
    client.unary(PULL_IMAGE, &pull(image, "shop")).await.status()
}

/// Waits for something that only files and other processes tell.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Memory comes back to what it was, or near it.
async fn memory_returns(gate: &Gate, before: u64) {
    let what = format!("memory returns to {before} KiB");
    until(&what, || gate.resident() <= before + KEPT).await;
}
