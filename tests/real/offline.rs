//! With the registry gone: what was proven starts, what was not does not, and a policy on disk is
//! applied to the evidence at once.

use std::fs;

use crate::{
    lab::{FALLBACK, Lab},
    pod::{Pod, by_kubelet, plain},
    scene::{POLICY, Scene, Shown, release},
    support::sign::{Signer, policy},
};

impl Scene<'_> {
    async fn starts(&self, pod: &Pod, image: &Shown) {
        let request = pod.request(by_kubelet(&image.id, &image.name));
        self.accepts(pod, &request, &image.made.says).await;
        assert_eq!(self.status(&image.name).await.unwrap().id, image.id);
    }

    async fn does_not_start(&self, pod: &Pod, image: &Shown, reason: &str) -> String {
        self.hides(&image.name).await;
        self.refuses(pod, &pod.request(plain(&image.id)), &[reason]).await;
        let request = pod.request(by_kubelet(&image.id, &image.name));
        self.refuses(pod, &request, &[reason]).await
    }
}

pub(crate) async fn proven_starts_and_unproven_does_not(lab: &Lab) {
    let node = lab.another(&format!("{FALLBACK}/pause:v1")).await;
    let mut scene = Scene::on(lab, &node, "offline").await;
    let (proven, unsigned, late) =
        (scene.signed("proven"), scene.unsigned("unsigned"), scene.signed("late"));
    scene.pull(&proven.name).await.unwrap();
    scene.pull(&unsigned.name).await.unwrap_err();
    scene.stop_registry();
    // Brought by hand: one that nobody vouches for, and one of which nobody can say any more.
    for image in [&unsigned, &late] {
        node.import(&image.made, &image.name);
    }
    for round in ["as-it-was", "gate-restarted", "node-restarted", "both-restarted"] {
        if round.starts_with("node") || round.starts_with("both") {
            scene.restart_node().await;
        }
        if round.starts_with("gate") || round.starts_with("both") {
            scene.restart_gate().await;
        }
        let pod = Pod::run(&node, &scene.client, round).await;
        scene.starts(&pod, &proven).await;
        for image in [&unsigned, &late] {
            let why = scene.does_not_start(&pod, image, "not_proven_locally").await;
            assert!(why.contains("portcullis evidence import"), "{why}");
        }
        pod.remove(&scene.client).await;
    }
}

pub(crate) async fn a_policy_on_disk_counts_at_once(lab: &Lab) {
    let mut scene = Scene::new(lab, "changes").await;
    let image = scene.signed("app");
    scene.pull(&image.name).await.unwrap();
    scene.stop_registry();
    let pod = Pod::run(&lab.node, &scene.client, "changes").await;
    scene.starts(&pod, &image).await;

    // Another key.
    scene.policy(POLICY, &release(&scene.host, &Signer::new())).await;
    let why = scene.does_not_start(&pod, &image, "authority_not_satisfied").await;
    assert!(why.contains("no signature by this key"), "{why}");
    scene.restart_gate().await;
    scene.does_not_start(&pod, &image, "authority_not_satisfied").await;
    scene.policy(POLICY, &release(&scene.host, &scene.signer)).await;
    scene.starts(&pod, &image).await;

    // A second policy, which the evidence satisfies, and one which it does not.
    let strict = |key| policy("strict", &format!("{}/app", scene.host), &[("other", key)]);
    scene.policy("strict.yaml", &strict(&scene.signer)).await;
    scene.starts(&pod, &image).await;
    scene.policy("strict.yaml", &strict(&Signer::new())).await;
    scene.does_not_start(&pod, &image, "authority_not_satisfied").await;
    let strict = scene.gate.path().join("policies/strict.yaml");
    scene.policies_change(|| fs::remove_file(strict).unwrap()).await;
    scene.starts(&pod, &image).await;

    // No policy for it at all.
    scene.policy(POLICY, &release("elsewhere.example.com", &scene.signer)).await;
    scene.does_not_start(&pod, &image, "no_policy_matches").await;
    scene.policy(POLICY, &release(&scene.host, &scene.signer)).await;
    scene.starts(&pod, &image).await;

    // Revoked by each digest that names its bytes.
    for digest in [image.made.digest().to_string(), image.id.clone()] {
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: stolen}}\n\
             spec: {{digests: ['{digest}']}}\n"
        );
        scene.policy("stolen.yaml", &text).await;
        let why = scene.does_not_start(&pod, &image, "revoked").await;
        assert!(why.contains("is revoked by \"stolen\""), "{why}");
        scene.restart_gate().await;
        scene.does_not_start(&pod, &image, "revoked").await;
        let stolen = scene.gate.path().join("policies/stolen.yaml");
        scene.policies_change(|| fs::remove_file(stolen).unwrap()).await;
        scene.starts(&pod, &image).await;
    }
    pod.remove(&scene.client).await;
}

/// Two nodes: on the second one there is no registry, not even for the sandbox image. Images come
/// in archives, and evidence in a pack.
pub(crate) async fn evidence_goes_from_node_to_node(lab: &Lab) {
    let first = lab.another("airgap.example.com/pause:v1").await;
    let mut scene = Scene::on(lab, &first, "airgap").await;
    let images = [scene.signed("pause"), scene.signed("app")];
    let unsigned = scene.unsigned("unsigned");
    scene.install(lab).await;
    for image in &images {
        scene.pull(&image.name).await.unwrap();
    }
    let pack = first.path().join("evidence.pack");
    fs::write(&pack, scene.command(&["evidence", "export", "--all"])).unwrap();

    let second = lab.another("airgap.example.com/pause:v1").await;
    scene.stop_registry();
    second.close_registries();
    let there = scene.beside(lab, &second).await;
    let [pause, app] = images;
    for image in [&pause, &app, &unsigned] {
        second.import(&image.made, &image.name);
    }
    Pod::try_run(&second, &there.client, "before")
        .await
        .err()
        .expect("no proof of the pause image");
    there.hides(&app.name).await;

    there.command(&["evidence", "import", pack.to_str().unwrap()]);
    let pod = Pod::run(&second, &there.client, "after").await;
    there.starts(&pod, &app).await;
    there.does_not_start(&pod, &unsigned, "not_proven_locally").await;
    pod.remove(&there.client).await;
}
