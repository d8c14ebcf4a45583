//! A panic in any stage refuses what it ends, and nothing else.
//!
//! The product has no switch to panic by. So these are its own parts, in this process, with a
//! time-out too long to be added to a clock, or on threads that have no timer.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::join_all;
use portcullis::{
    audit::{Config, Log},
    evidence::{Ledger, Store},
    forward::{Runtime, Upstream},
    inventory::{self, Inventory},
    local::Local,
    pipeline::{Parts, Pipeline, SandboxImage},
    policy::{self, source},
    resolve::{HostsDirectories, Registry, Timeouts},
};
use prost::Message;
use tokio::{runtime::Handle, time::timeout};

use crate::support::{
    containerd::Shelf,
    cri::{
        CREATE_CONTAINER, ContainerConfig, CreateContainerRequest, ImageSpec, PULL_IMAGE,
        PodConfig, PodSandboxMetadata, RUN_POD_SANDBOX, RunPodSandboxRequest, VERSION,
    },
    gate::records,
    grpc::{Client, PATIENCE, framed},
    inside::{self, Patience},
    registry::TestRegistry,
    sign::{self, Signer},
};

use super::{pulled, whole};

const FAULT: &str = "a fault in Portcullis ended the judgement; its log has the details";

/// Whoever asks a registry with these panics.
fn absurd() -> Timeouts {
    Timeouts { request: Duration::MAX, ..Timeouts::default() }
}

/// A registry with two images, and a runtime that has both. `app` is to be signed; `listed` is
/// accepted by its digest, for which nobody is asked.
struct Stage {
    registry: TestRegistry,
    shelf: Shelf,
    policies: String,
    listed: String,
}

impl Stage {
    fn new() -> Self {
        let registry = TestRegistry::start();
        registry.push_image("app", "v1");
        let digest = registry.push_image("listed", "v1");
        let shelf = Shelf::beside(&registry);
        let name = |rest: &str| format!("{}/{rest}", registry.host());
        shelf.pull(&name("app:v1"));
        let listed = shelf.pull(&name("listed:v1"));
        let key = Signer::new();
        let policies = [
            sign::policy("app", &name("app"), &[("release", &key)]),
            format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: floor}}\n\
                 spec:\n  match: {{images: [{:?}]}}\n  authorities:\n    - name: floor\n      \
                 digests: ['{digest}']\n",
                name("listed")
            ),
        ];
        Self { registry, shelf, policies: policies.join("---\n"), listed }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// `CreateContainer` from the image `listed`; the answer.
    async fn create(&self, client: &Client) -> (i32, String) {
        let metadata = PodSandboxMetadata { name: "web".into(), ..Default::default() };
        let request = CreateContainerRequest {
            pod_sandbox_id: "pod".into(),
            config: Some(ContainerConfig {
                image: Some(ImageSpec {
                    image: self.listed.clone(),
                    user_specified_image: self.name("listed:v1"),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            sandbox_config: Some(PodConfig { metadata: Some(metadata), ..Default::default() }),
        };
        client.unary(CREATE_CONTAINER, &request).await.status()
    }
}

/// Decision and reason of each record of an event.
fn decided(directory: &Path, event: &str) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
    let records = records(&directory.join("a.jsonl"), event);
    records.iter().map(|one| (text(&one["decision"]), text(&one["reason"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_pull_refuses_it_and_no_other_call() {
    let stage = Stage::new();
    let (runtime, directory) = (stage.shelf.runtime(), tempfile::tempdir().unwrap());
    let patience = Patience { registries: absurd(), ..Patience::default() };
    let _gate = inside::gate(directory.path(), runtime.socket(), &stage.policies, patience);
    let client = Client::connect(&directory.path().join("s")).await;
    let app = stage.name("app:v1");
    for _ in 0..2 {
        // All on one connection, and at once: those that panic, and those that do not.
        let panicking = join_all((0..20).map(|_| pulled(&client, &app)));
        let created = join_all((0..20).map(|_| stage.create(&client)));
        let passing = join_all((0..20).map(|_| client.call(VERSION, &[], framed(b""))));
        let (panicking, created, passing, other) =
            tokio::join!(panicking, created, passing, pulled(&client, "other.example.com/x:v1"));
        let refused = (2, format!("SignatureValidationFailed: {app}: {FAULT}"));
        assert_eq!(panicking, vec![refused; 20]);
        assert_eq!(created, vec![(0, String::new()); 20]);
        assert!(passing.iter().all(|answer| answer.status().0 == 0));
        assert!(
            other.1.starts_with("SignatureValidationFailed: other.example.com/x:v1: no policy")
        );
    }
    assert!(!runtime.paths().iter().any(|path| path == PULL_IMAGE));
    let pulls = decided(directory.path(), "pull");
    let faults = pulls.iter().filter(|told| **told == ("deny".into(), "internal".into())).count();
    assert_eq!((pulls.len(), faults, decided(directory.path(), "create").len()), (42, 40, 40));
    whole(&directory.path().join("a.jsonl"), &directory.path().join("state"));
}

#[test]
fn a_panic_in_any_judgement_refuses_it_and_calls_pass() {
    // The judgements' threads, without a timer: whatever waits there panics.
    let judges =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap();
    let relay = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    relay.block_on(async {
        let stage = Stage::new();
        let (runtime, directory) = (stage.shelf.runtime(), tempfile::tempdir().unwrap());
        let threads = Some(judges.handle().clone());
        let patience = Patience { threads, ..Patience::default() };
        let _gate = inside::gate(directory.path(), runtime.socket(), &stage.policies, patience);
        let client = Client::connect(&directory.path().join("s")).await;
        let refused = (2, format!("SignatureValidationFailed: {FAULT}"));
        let app = stage.name("app:v1");
        for _ in 0..2 {
            let about = (2, format!("SignatureValidationFailed: {app}: {FAULT}"));
            assert_eq!(pulled(&client, &app).await, about);
            assert_eq!(stage.create(&client).await, refused);
            let pod = framed(&RunPodSandboxRequest::default().encode_to_vec());
            assert_eq!(client.call(RUN_POD_SANDBOX, &[], pod).await.status(), refused);
            assert_eq!(client.call(VERSION, &[], framed(b"")).await.status().0, 0);
        }
        let reached = runtime.paths();
        for judged in [PULL_IMAGE, CREATE_CONTAINER, RUN_POD_SANDBOX] {
            assert!(!reached.iter().any(|path| path == judged), "{reached:?}");
        }
        for event in ["pull", "create", "sandbox"] {
            let told = vec![("deny".to_owned(), "internal".to_owned()); 2];
            assert_eq!(decided(directory.path(), event), told, "{event}");
        }
        whole(&directory.path().join("a.jsonl"), &directory.path().join("state"));
    });
    judges.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_about_one_image_does_not_end_the_look_at_the_node() {
    let stage = Stage::new();
    let (runtime, directory) = (stage.shelf.runtime(), tempfile::tempdir().unwrap());
    let current = policy::Current::default();
    let parse = |text: &str| source::parse("p.yaml", text, jiff::Timestamp::now()).unwrap();
    current.replace(Arc::new(parse(&stage.policies)));
    let state = directory.path().join("state");
    let config = Config {
        file: directory.path().join("a.jsonl"),
        state_directory: state.clone(),
        node: "node".into(),
    };
    let registry = Registry::with_timeouts(HostsDirectories::parse(""), absurd());
    let (registry, audit) = (Arc::new(registry), Log::open(config).unwrap().0);
    let (local, ledger) = (Local::new(Store::open(&state).0), Ledger::open(&state));
    let upstream = Upstream::new(Arc::new(runtime.socket().to_owned()));
    let pipeline = Pipeline::new(Parts {
        policies: current.clone(),
        registry: registry.clone(),
        local: local.clone(),
        ledger: ledger.clone(),
        runtime: Runtime::new(&upstream),
        sandbox: SandboxImage::new(None),
        audit: audit.clone(),
        threads: Handle::current(),
    });
    let inventory = Inventory::new(inventory::Parts {
        policies: current.clone(),
        registry,
        local,
        ledger,
        runtime: Runtime::new(&upstream),
        audit,
        pipeline,
    });
    let mut summary = inventory.summary();
    let looking = tokio::spawn(inventory.keep());
    for _ in 0..2 {
        timeout(PATIENCE, summary.changed()).await.expect("a look ends").unwrap();
        let images = summary.borrow_and_update().clone().unwrap().images.clone();
        assert_eq!((images.total, images.proven), (2, 1));
        // Another set, and with it another look.
        let more = stage.policies.replace("name: app}", "name: other}");
        current.replace(Arc::new(parse(&more)));
    }
    looking.abort();
}
