//! The registry of the sandbox (pause) image hangs.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prost::Message;

use crate::support::{
    containerd::Shelf,
    cri::{RUN_POD_SANDBOX, RunPodSandboxRequest},
    gate::records,
    grpc::{Client, framed},
    inside::{self, Patience},
    registry::{Fault, Gate as Held, Match, TestRegistry},
    sign::{self, Signer},
};

use super::whole;

/// How long a pod waits here.
const PATIENCE: Duration = Duration::from_millis(300);

async fn run(client: &Client) -> (i32, String) {
    let pod = framed(&RunPodSandboxRequest::default().encode_to_vec());
    client.call(RUN_POD_SANDBOX, &[], pod).await.status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_hangs_holds_up_no_pod_and_is_asked_once() {
    let (registry, key) = (TestRegistry::start(), Signer::new());
    let digest = registry.push_image("pause", "v1");
    key.sign_simple(&registry, "pause", digest);
    let pause = format!("{}/pause:v1", registry.host());
    let shelf = Shelf::beside(&registry);
    shelf.sandbox_image(Some(&pause));
    let (runtime, directory) = (shelf.runtime(), tempfile::tempdir().unwrap());
    let policies =
        sign::policy("pause", &format!("{}/pause", registry.host()), &[("release", &key)]);
    let patience = Patience { sandbox: PATIENCE, ..Patience::default() };
    let _gate = inside::gate(directory.path(), runtime.socket(), &policies, patience);
    let held = Held::closed();
    registry.fault(Match::any(), Fault::Wait(held.clone()));

    let client = Client::connect(&directory.path().join("s")).await;
    let refused = format!(
        "RegistryUnavailable: {pause}: the sandbox image is being pulled, and its registry takes \
         long"
    );
    for _ in 0..3 {
        let began = Instant::now();
        let told = join_all((0..20).map(|_| run(&client))).await;
        assert_eq!(told, vec![(2, refused.clone()); 20]);
        assert!(began.elapsed() < 20 * PATIENCE, "{:?}", began.elapsed());
    }
    assert_eq!(registry.requests().len(), 1, "{:?}", registry.asked());
    assert!(!runtime.paths().iter().any(|path| path == RUN_POD_SANDBOX));

    // It answers at last: the attempt that is under way comes to its end, and pods run.
    held.open();
    let runs = async {
        while run(&client).await.0 != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::grpc::PATIENCE, runs).await.expect("a pod runs");
    let asked = registry.asked();
    assert_eq!(asked.iter().filter(|asked| *asked == "GET /v2/pause/manifests/v1").count(), 1);
    let audit_file = directory.path().join("a.jsonl");
    let denied = records(&audit_file, "sandbox");
    let denied = denied.iter().filter(|record| record["decision"] == "deny");
    assert!(denied.count() >= 60, "each refusal is on record");
    whole(&audit_file, &directory.path().join("state"));
}
