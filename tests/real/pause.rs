//! The sandbox (pause) image, which containerd would pull by itself: no pod starts unless it is
//! proven.

use crate::{
    lab::{FALLBACK, Lab, version},
    pod::{self, Pod},
    scene::{Scene, status_by},
    support::sign::policy,
};

/// containerd's default is a name by tag, and so is this.
const PAUSE: &str = "sandbox.example.com/pause:v1";

impl Scene<'_> {
    /// No pod starts for one of these reasons, on record, and containerd begins none.
    async fn refuses_pods(&self, name: &str, reasons: &[&str]) -> String {
        self.news("sandbox");
        let (code, message) = Pod::try_run(self.node, &self.client, name)
            .await
            .map(|_| ())
            .expect_err("a pod from a sandbox image that is not proven");
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(PAUSE.strip_suffix(":v1").unwrap()), "{message}");
        self.recorded("sandbox", "deny", reasons);
        assert!(!pod::exists(&self.direct, name).await);
        message
    }

    /// A pod starts, on record, and a container in it.
    async fn accepts_pods(&self, name: &str) {
        self.news("sandbox");
        let pod = Pod::run(self.node, &self.client, name).await;
        self.recorded("sandbox", "allow", &[]);
        pod.remove(&self.client).await;
    }
}

pub(crate) async fn a_missing_one_is_brought_through_the_gate(lab: &Lab) {
    let node = lab.another(PAUSE).await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    let pause = scene.signed("pause");
    assert_eq!(status_by(&scene.direct, PAUSE).await, None);
    scene.install(lab).await;
    scene.accepts_pods("missing").await;
    assert_eq!(status_by(&scene.direct, PAUSE).await.unwrap().id, pause.id);
    let asked = scene.registry.requests();
    let signature = format!("sha256-{}.sig", pause.made.digest().hex());
    assert!(asked.iter().any(|request| request.target.contains(&signature)));

    // Removed, as by hand: brought again. With the registry gone as well, there is no pod.
    node.ctr(&["images", "rm", PAUSE, &pause.pinned, &pause.id]);
    scene.restart_gate().await;
    scene.accepts_pods("again").await;
    scene.stop_registry();
    scene.accepts_pods("offline").await;
    scene.restart_gate().await;
    scene.accepts_pods("offline-anew").await;
    node.ctr(&["images", "rm", PAUSE, &pause.pinned, &pause.id]);
    let reasons = &["not_proven_locally", "registry_unreachable"];
    scene.refuses_pods("gone", reasons).await;
}

pub(crate) async fn an_unsigned_one_starts_no_pod(lab: &Lab) {
    let node = lab.another(PAUSE).await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    let pause = scene.unsigned("pause");
    scene.install(lab).await;
    let reasons = &["not_proven_locally", "signature_missing"];
    scene.refuses_pods("absent", reasons).await;
    assert_eq!(status_by(&scene.direct, PAUSE).await, None, "nothing was pulled");
    // Being there is no proof.
    scene.pull_around(PAUSE).await;
    scene.refuses_pods("present", reasons).await;
    scene.restart_gate().await;
    scene.refuses_pods("anew", reasons).await;
    // Signed at last.
    scene.sign(&pause);
    scene.restart_gate().await;
    scene.accepts_pods("signed").await;
    // A policy that no longer trusts the signer counts at once.
    let nobody = crate::support::sign::Signer::new();
    let release = |key| policy("release", "sandbox.example.com/**", &[("release", key)]);
    scene.policy(crate::scene::POLICY, &release(&nobody)).await;
    scene.refuses_pods("distrusted", &["authority_not_satisfied"]).await;
    scene.policy(crate::scene::POLICY, &release(&scene.signer)).await;
    scene.accepts_pods("trusted").await;
}

pub(crate) async fn a_repointed_one_starts_no_pod(lab: &Lab) {
    let node = lab.another(PAUSE).await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    let (pause, other) = (scene.signed("pause"), scene.unsigned("other"));
    scene.install(lab).await;
    scene.accepts_pods("before").await;
    node.import(&other.made, &other.name);
    scene.stop_registry();
    node.ctr(&["images", "tag", "--force", &other.name, PAUSE]);
    while status_by(&scene.direct, PAUSE).await.unwrap().id != other.id {}
    scene.refuses_pods("repointed", &["not_proven_locally", "registry_unreachable"]).await;
    // The bytes that are proven are still there, by digest: the name can be set right by hand.
    node.ctr(&["images", "tag", "--force", &pause.pinned, PAUSE]);
    while status_by(&scene.direct, PAUSE).await.unwrap().id != pause.id {}
    scene.accepts_pods("set-right").await;
}

/// containerd is told another one, and restarts: so does what Portcullis believes of it.
pub(crate) async fn another_one_by_configuration_is_judged(lab: &Lab) {
    if version() == "2.1" {
        return; // it does not tell; the operator does
    }
    let node = lab.another(&format!("{FALLBACK}/pause:v1")).await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    scene.unsigned("pause");
    scene.accepts_pods("before").await;
    node.set_pause(PAUSE);
    scene.restart_node().await;
    scene.refuses_pods("after", &["not_proven_locally", "signature_missing"]).await;
}

/// containerd 2 does not tell, and what it pins is asked for. Whoever may pull can give the same
/// bytes one more name, which comes before the pinned one.
pub(crate) async fn a_copy_of_it_lends_it_no_name(lab: &Lab) {
    let node = lab.another(PAUSE).await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    let pause = scene.signed("pause");
    scene.pull_around(PAUSE).await;
    scene.install_unconfigured(lab).await;
    scene.accepts_pods("before").await;
    node.host("a.example.com", scene.registry.url());
    let copy = policy("copy", "a.example.com/**", &[("release", &scene.signer)]);
    let copy = copy.replace("images: [", "namespaces: [somewhere], images: [");
    scene.policy("copy.yaml", &copy).await;
    crate::scene::pull_by(&scene.direct, "a.example.com/pause:v1").await.unwrap();
    let shown = status_by(&scene.direct, &pause.id).await.unwrap();
    assert_eq!(shown.repo_tags[0], "a.example.com/pause:v1");
    scene.accepts_pods("after").await;
    scene.restart_gate().await;
    scene.accepts_pods("anew").await;
}

/// The operator says one, and containerd uses another, which nobody signed.
pub(crate) async fn the_operators_word_is_held_against_the_runtimes(lab: &Lab) {
    let node = lab.another("sandbox.example.com/other:v1").await;
    let mut scene = Scene::on(lab, &node, "sandbox").await;
    scene.signed("pause");
    let other = scene.unsigned("other");
    if version() == "2.1" {
        // It does not tell, and what it uses shows once it has it.
        scene.pull_around(&other.name).await;
    }
    scene.install_configured(lab, PAUSE).await;
    // At its start the gate provides what the operator says, unless the runtime tells otherwise.
    while version() == "2.1" && status_by(&scene.direct, PAUSE).await.is_none() {}
    let message = scene.refuses_pods("differs", &["internal"]).await;
    let differs = "the container runtime makes sandboxes from sandbox.example.com/other:v1, and \
                   runtime.sandbox_image says sandbox.example.com/pause:v1: make the two equal";
    assert!(message.ends_with(differs), "{message}");
    node.set_pause(PAUSE);
    scene.restart_node().await;
    scene.accepts_pods("equal").await;
}
