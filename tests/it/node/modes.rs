//! Policies that only warn, glass that is broken, and what is revoked while the daemon runs.

use nix::sys::signal::Signal;
use portcullis::image::Digest;
use serde_json::{Value, json};

use crate::support::{
    cri::{PULL_IMAGE, PullImageRequest, pull},
    gate::Gate,
    sign::Signer,
};

use super::{Node, swap, until, whole};

impl Node {
    /// The policy by this key, with these lines in its `spec`.
    fn policy_with(&self, key: &Signer, lines: &str) -> String {
        self.policy(key).replace("spec:\n", &format!("spec:\n{lines}"))
    }

    /// A daemon whose policy wants another key than that of the signature.
    fn refusing(&self, lines: &str) -> Gate {
        let policy = self.policy_with(&Signer::new(), lines);
        self.setup().policy("p.yaml", &policy).start()
    }

    /// Why it refuses the image.
    fn refusal(&self) -> String {
        format!(
            "{}: policy \"app\" requires 1 of 1 authority: \"release\": no signature by this key \
             (1 signature found)",
            self.image()
        )
    }

    /// Pulls, and returns what the caller was told.
    async fn pull(&self, gate: &Gate, request: &PullImageRequest) -> (i32, String) {
        gate.client().await.unary(PULL_IMAGE, request).await.status()
    }

    /// Pulls, and holds that the image is refused with this text and unseen by the runtime.
    async fn refused(&self, gate: &Gate, request: &PullImageRequest, message: &str) {
        self.runtime.take();
        let told = self.pull(gate, request).await;
        assert_eq!(told, (2, format!("SignatureValidationFailed: {message}")));
        assert_eq!(self.runtime.paths(), Vec::<String>::new());
        let last = gate.records("pull").pop().unwrap();
        assert_eq!((&last["decision"], &last["message"]), (&json!("deny"), &json!(message)));
    }
}

/// A pull from a namespace, with this annotation of the pod.
fn annotated(image: &str, namespace: &str, name: &str, value: &str) -> PullImageRequest {
    let mut request = pull(image, namespace);
    let pod = request.sandbox_config.as_mut().unwrap();
    pod.annotations.insert(name.into(), value.into());
    request
}

const GLASS: &str = "  breakGlass: {annotation: example.com/glass, namespaces: [incident]}\n";

fn breaking(image: &str) -> PullImageRequest {
    annotated(image, "incident", "example.com/glass", "true")
}

fn revocation(name: &str, list: &str, what: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: {name}}}\n\
         spec: {{{list}: ['{what}']}}\n"
    )
}

/// The only record of a pull, with its text and the outcome of its only policy.
#[track_caller]
fn only(gate: &Gate, event: &str, message: &str, outcome: &str) -> Value {
    let mut records = [gate.records("pull"), gate.records("break_glass")].concat();
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records.remove(0);
    assert_eq!(
        (&record["event"], &record["decision"], &record["message"]),
        (&json!(event), &json!("warn"), &json!(message))
    );
    assert_eq!(record["policies"].as_array().unwrap().len(), 1, "{record}");
    assert_eq!(record["policies"][0]["outcome"], outcome);
    record
}

#[tokio::test]
async fn what_a_policy_warns_of_is_pulled_and_recorded_once() {
    let node = Node::new();
    let gate = node.refusing("  mode: Warn\n");
    assert_eq!(node.pull(&gate, &pull(&node.image(), "shop")).await, (0, String::new()));
    assert_eq!(node.runtime.paths(), [PULL_IMAGE]);
    let message =
        format!("{} may be pulled, and would be refused: {}", node.image(), node.refusal());
    let record = only(&gate, "pull", &message, "warned");
    assert_eq!(record["reason"], "authority_not_satisfied");
    whole(&gate);
}

#[tokio::test]
async fn a_warning_beside_a_policy_that_enforces_pulls_nothing() {
    let node = Node::new();
    let warning = node.policy_with(&node.key, "  mode: Warn\n").replace("name: app", "name: a");
    let enforcing = node.policy(&Signer::new());
    let gate = node.setup().policy("a.yaml", &warning).policy("p.yaml", &enforcing).start();
    node.refused(&gate, &pull(&node.image(), "shop"), &node.refusal()).await;
}

#[tokio::test]
async fn broken_glass_is_an_event_of_its_own() {
    let node = Node::new();
    let gate = node.refusing(GLASS);
    assert_eq!(node.pull(&gate, &breaking(&node.image())).await, (0, String::new()));
    assert_eq!(node.runtime.paths(), [PULL_IMAGE]);
    let message =
        format!("{} may be pulled since the pod broke the glass of \"app\"", node.image());
    let record = only(&gate, "break_glass", &message, "break_glass");
    assert_eq!(record["pod"]["namespace"], "incident");
    let log = gate.log();
    let warning =
        log.lines().filter(|line| line.contains(&message) && line.contains("WARN")).count();
    assert_eq!(warning, 1, "{log}");
    whole(&gate);
}

#[tokio::test]
async fn what_is_not_quite_broken_glass_pulls_nothing() {
    let node = Node::new();
    let gate = node.refusing(GLASS);
    let image = node.image();
    // One that breaks it does so for nobody else.
    assert_eq!(node.pull(&gate, &breaking(&image)).await.0, 0);
    for request in [
        pull(&image, "incident"),
        annotated(&image, "shop", "example.com/glass", "true"),
        annotated(&image, "incident", "example.com/glass", "True"),
        annotated(&image, "incident", "example.com/glass", ""),
        annotated(&image, "incident", "example.com/glas", "true"),
    ] {
        node.refused(&gate, &request, &node.refusal()).await;
    }
    let mut nameless = breaking(&image);
    nameless.sandbox_config.as_mut().unwrap().metadata = None;
    node.refused(&gate, &nameless, &node.refusal()).await;
}

#[tokio::test]
async fn glass_whose_time_is_over_stays_whole() {
    let node = Node::new();
    let gate = node.refusing(&GLASS.replace('}', ", notAfter: 2020-01-01T00:00:00Z}"));
    node.refused(&gate, &breaking(&node.image()), &node.refusal()).await;
}

/// An image of which the digest of the configuration is known, too.
fn image_with_config(node: &Node) -> (Digest, Digest) {
    let config =
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let digest = node.registry.push_blob("app", config);
    let descriptor = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": digest, "size": config.len(),
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor, "layers": [],
    });
    (node.registry.push_json("app", None, &manifest), digest)
}

#[tokio::test]
async fn what_is_revoked_is_pulled_by_nobody() {
    let node = Node::new();
    let (image, config) = image_with_config(&node);
    node.key.sign_simple(&node.registry, "app", image);
    let pinned = format!("{}/app@{image}", node.registry.host());
    for lines in ["", "  mode: Warn\n", GLASS] {
        for revoked in [image, config] {
            let gate = node
                .setup()
                .policy("p.yaml", &node.policy_with(&node.key, lines))
                .policy("r.yaml", &revocation("bad-build", "digests", &revoked.to_string()))
                .start();
            let message = format!("{pinned}: {revoked} is revoked by \"bad-build\"");
            node.refused(&gate, &breaking(&pinned), &message).await;
            assert_eq!(gate.records("pull")[0]["reason"], "revoked");
            // Another image by the same signer is none the worse.
            assert_eq!(node.pull(&gate, &pull(&node.image(), "shop")).await.0, 0);
        }
    }
}

#[tokio::test]
async fn a_revocation_is_in_force_for_the_next_pull() {
    let node = Node::new();
    let gate = node.setup().start();
    let request = pull(&node.image(), "shop");
    assert_eq!(node.pull(&gate, &request).await.0, 0);
    let loads = || gate.records("policy").len();

    // By a file that appears.
    let file = gate.path().join("policies/r.yaml");
    let key = node.key.id();
    swap(&file, &revocation("stolen", "keys", &key.to_string()));
    until("the revocation is in force", || loads() == 2).await;
    let revoked = format!(
        "{}: policy \"app\" requires 1 of 1 authority: \"release\": key revoked by \"stolen\"",
        node.image()
    );
    node.refused(&gate, &request, &revoked).await;
    assert_eq!(gate.records("pull").pop().unwrap()["reason"], "revoked");

    // One that cannot be read leaves it in force.
    swap(&file, &revocation("stolen", "keys", "release.pub"));
    until("the broken revocation is told", || loads() == 3).await;
    let message = gate.records("policy")[2]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("policies are not loaded, the set in force stays: "), "{message}");
    node.refused(&gate, &request, &revoked).await;

    // By a signal.
    swap(&file, &revocation("bad-build", "digests", &node.digest.to_string()));
    gate.signal(Signal::SIGHUP);
    until("the other revocation is in force", || loads() >= 4).await;
    let revoked = format!("{}: {} is revoked by \"bad-build\"", node.image(), node.digest);
    node.refused(&gate, &request, &revoked).await;

    // And its end as well.
    std::fs::remove_file(&file).unwrap();
    let loaded = loads();
    gate.signal(Signal::SIGHUP);
    until("nothing is revoked", || loads() > loaded).await;
    assert_eq!(node.pull(&gate, &request).await.0, 0);
    whole(&gate);
}
