//! The whole daemon before a real API server: from `kubectl apply` to a refused pull.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    cluster::Cluster,
    crds::install,
    support::{
        cri::{PULL_IMAGE, pull},
        gate::{Gate, Setup},
        grpc::PATIENCE,
        registry::TestRegistry,
        runtime::{FakeRuntime, pulling},
    },
};

/// What is asked of the product: from `kubectl apply` to enforced, on one machine.
const APPLIED_TO_ENFORCED: Duration = Duration::from_secs(1);

struct Node {
    threads: Runtime,
    image: String,
    repository: String,
    digest: String,
    setup: Option<Setup>,
    // Held for as long as they are asked.
    _registry: TestRegistry,
    _runtime: FakeRuntime,
}

impl Node {
    fn of(cluster: &Cluster) -> Self {
        let threads = Runtime::new().unwrap();
        let _entered = threads.enter();
        let (registry, runtime) = (TestRegistry::start(), FakeRuntime::start(pulling));
        let digest = registry.push_image("app", "v1").to_string();
        let repository = format!("{}/app", registry.host());
        let kubeconfig = cluster.kubeconfig_of("system:node:one", "system:nodes");
        let lines = format!(
            "source = \"kubernetes:\"\n[kubernetes]\nkubeconfig = {kubeconfig:?}\nnode = \"one\""
        );
        let setup = Some(Setup::before(runtime.socket()).source(&lines));
        let image = format!("{repository}@{digest}");
        drop(_entered);
        Self { threads, image, repository, digest, setup, _registry: registry, _runtime: runtime }
    }

    fn policy(&self, mode: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: app}}\n\
             spec:\n  mode: {mode}\n  match: {{images: ['{}']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: a test}}}}]\n",
            self.repository
        )
    }

    fn revocation(&self) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: lost}}\n\
             spec: {{digests: ['{}']}}\n",
            self.digest
        )
    }

    /// The message of a pull; empty where it is let through.
    fn pull(&self, gate: &Gate) -> String {
        let request = pull(&self.image, "shop");
        self.threads
            .block_on(async { gate.client().await.unary(PULL_IMAGE, &request).await.status().1 })
    }

    /// Pulls until the answer is this one, and tells how long that took.
    #[track_caller]
    fn until(&self, gate: &Gate, expected: &str) -> Duration {
        let began = Instant::now();
        loop {
            let answer = self.pull(gate);
            if answer == expected {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "{answer}");
        }
    }

    fn revoked(&self) -> String {
        format!("SignatureValidationFailed: {}: {} is revoked by \"lost\"", self.image, self.digest)
    }
}

fn last_policy(gate: &Gate) -> Value {
    gate.records("policy").pop().unwrap()
}

pub(crate) fn what_is_applied_is_enforced_and_outlives_the_server(mut cluster: Cluster) {
    install(&cluster);
    let mut node = Node::of(&cluster);
    cluster.apply(&node.policy("Enforce"));
    let mut gate = node.setup.take().unwrap().start();
    node.until(&gate, "");

    cluster.apply(&node.revocation());
    let took = node.until(&gate, &node.revoked());
    println!("from the end of kubectl apply to the first refused pull: {took:?}");
    assert!(took < APPLIED_TO_ENFORCED, "{took:?}");

    // What the server refuses changes nothing here.
    let wrong = node.policy("Enforced");
    let refused = cluster.kubectl_as(&cluster.kubeconfig(), &["apply", "-f", "-"], &wrong);
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(node.pull(&gate), node.revoked());

    cluster.stop_api_server();
    assert_eq!(node.pull(&gate), node.revoked());
    gate.crash_and_restart();
    let recalled = "policy set that this node had last, in force: 1 policy";
    assert!(gate.records("policy").iter().any(|record| record["message"] == recalled));
    assert_eq!(node.pull(&gate), node.revoked());

    cluster.start_api_server();
    cluster.ask(&["delete", "revocation", "lost"]);
    node.until(&gate, "");
    let record = last_policy(&gate);
    assert!(record["policy_set"]["revision"].as_u64().is_some(), "{record}");
    let listed = cluster.ask(&["get", "imagepolicies"]);
    assert!(listed.contains(&node.repository), "{listed}");
}
