//! One verified pull, as kubelet sees it.

use std::fs;

use serde_json::Value;

use crate::{
    lab::{Lab, REFERRERS},
    pod::{Pod, by_kubelet},
    scene::Scene,
    support::{
        cri::{
            AuthConfig, CONTAINER_STATUS, ContainerStatusResponse, IMAGE_STATUS, Image,
            ImageStatusResponse, LIST_IMAGES, ListImagesResponse, PULL_IMAGE, PullImageResponse,
            RUNNING, by_id, image_status, pull,
        },
        gate::Gate,
        grpc::{Client, framed},
        registry::{Fault, Match, TestRegistry},
        sign::{Signer, policy},
    },
};

/// A gate that trusts one key for everything below a path of a registry.
fn gate(lab: &Lab, images: &str, signer: &Signer) -> Gate {
    lab.gate().policy("policy.yaml", &policy("release", images, &[("release", signer)])).start()
}

async fn status_of(client: &Client, image: &str) -> Option<Image> {
    client.unary(IMAGE_STATUS, &image_status(image)).await.message::<ImageStatusResponse>().image
}

pub(crate) async fn a_tag_pull_shows_exactly_that_tag_at_once(lab: &Lab) {
    let signer = Signer::new();
    let digest = lab.registry.push_image("pull/tag", Some("v1"));
    signer.sign_simple(&lab.registry, "pull/tag", digest);
    let image = format!("{REFERRERS}/pull/tag:v1");
    let gate = gate(lab, &format!("{REFERRERS}/pull/*"), &signer);
    let client = gate.client().await;
    for _ in 0..2 {
        let pulled: PullImageResponse =
            client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message();
        let shown = status_of(&client, &image).await.expect("the tag is shown at once");
        assert_eq!(shown.id, pulled.image_ref);
        assert_eq!(shown.repo_tags, [image.as_str()]);
        assert_eq!(shown.repo_digests, [format!("{REFERRERS}/pull/tag@{digest}")]);
        let listed: ListImagesResponse =
            client.unary(LIST_IMAGES, &image_status("")).await.message();
        assert!(listed.images.contains(&shown));
    }
    // A second tag of the same image.
    lab.registry.tag("pull/tag", "v2", digest);
    let second = format!("{REFERRERS}/pull/tag:v2");
    client.unary(PULL_IMAGE, &pull(&second, "shop")).await.message::<PullImageResponse>();
    let mut tags = status_of(&client, &second).await.unwrap().repo_tags;
    tags.sort();
    assert_eq!(tags, [image, second]);
}

pub(crate) async fn a_digest_pull_shows_no_tag(lab: &Lab) {
    let signer = Signer::new();
    let digest = lab.registry.push_image("digest/app", Some("v1"));
    signer.sign_bundle(&lab.registry, "digest/app", digest);
    let gate = gate(lab, &format!("{REFERRERS}/digest/*"), &signer);
    let client = gate.client().await;
    let by_digest = format!("{REFERRERS}/digest/app@{digest}");
    // A tag beside the digest is dropped, as containerd does.
    for image in [by_digest.clone(), format!("{REFERRERS}/digest/app:v1@{digest}")] {
        let pulled: PullImageResponse =
            client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message();
        let shown = status_of(&client, &image).await.expect("the digest is shown");
        assert_eq!(shown.id, pulled.image_ref);
        assert_eq!(shown.repo_tags, Vec::<String>::new());
        assert_eq!(shown.repo_digests, [by_digest.as_str()]);
    }
    assert_eq!(status_of(&client, &format!("{REFERRERS}/digest/app:v1")).await, None);
}

pub(crate) async fn a_tag_that_moves_is_judged_anew(lab: &Lab) {
    let signer = Signer::new();
    let first = lab.registry.push_image("moves/app", Some("v1"));
    signer.sign_simple(&lab.registry, "moves/app", first);
    let image = format!("{REFERRERS}/moves/app:v1");
    let gate = gate(lab, &format!("{REFERRERS}/moves/*"), &signer);
    let client = gate.client().await;
    let pulled: PullImageResponse = client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message();

    let second = lab.registry.push_image("moves/app", Some("v1"));
    let answer = client.unary(PULL_IMAGE, &pull(&image, "shop")).await;
    let refusal = format!(
        "SignatureValidationFailed: {REFERRERS}/moves/app@{second}: policy \"release\" requires 1 of 1 authority: \
         \"release\": no signature found"
    );
    assert_eq!(answer.status(), (2, refusal));
    assert_eq!(
        status_of(&client, &image).await.unwrap().id,
        pulled.image_ref,
        "the tag still names the proven bytes"
    );

    signer.sign_bundle(&lab.registry, "moves/app", second);
    let moved: PullImageResponse = client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message();
    assert_ne!(moved.image_ref, pulled.image_ref);
    assert_eq!(status_of(&client, &image).await.unwrap().id, moved.image_ref);
}

pub(crate) async fn a_container_runs_from_the_pulled_image(lab: &Lab) {
    let scene = Scene::new(lab, "run").await;
    let (client, image) = (&scene.client, scene.signed("app"));
    let pod = Pod::run(&lab.node, client, "run").await;
    let id = scene.pull(&image.name).await.unwrap();
    let container = pod.starts(client, by_kubelet(&id, &image.name), &image.made.says).await;
    let status = client.call(CONTAINER_STATUS, &[], framed(&by_id(1, &container))).await;
    assert_eq!(status.message::<ContainerStatusResponse>().status.unwrap().state, RUNNING);
    pod.remove(client).await;
}

pub(crate) async fn a_registry_that_is_gone_is_not_a_verdict(lab: &Lab) {
    let signer = Signer::new();
    let registry = TestRegistry::start();
    let digest = registry.push_image("app", Some("v1"));
    signer.sign_simple(&registry, "app", digest);
    let host = "gone.example.com";
    lab.node.host(host, registry.url());
    let gate = gate(lab, &format!("{host}/**"), &signer);
    let client = gate.client().await;
    let image = format!("{host}/app:v1");
    client.unary(PULL_IMAGE, &pull(&image, "shop")).await.message::<PullImageResponse>();
    drop(registry);
    let (code, message) = client.unary(PULL_IMAGE, &pull(&image, "shop")).await.status();
    assert_eq!(code, 2, "{message}");
    assert!(message.starts_with("RegistryUnavailable: gone.example.com/app:v1: "), "{message}");
    let records = gate.records("pull");
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["reason"], "registry_unreachable");
}

pub(crate) async fn credentials_of_the_caller_reach_the_registry(lab: &Lab) {
    let signer = Signer::new();
    let registry = TestRegistry::builder().bearer("robot", "s3cret").start();
    let digest = registry.push_image("private/app", Some("v1"));
    signer.sign_simple(&registry, "private/app", digest);
    let host = "private.example.com";
    lab.node.host(host, registry.url());
    let gate = gate(lab, &format!("{host}/**"), &signer);
    let client = gate.client().await;
    let image = format!("{host}/private/app:v1");

    let (code, message) = client.unary(PULL_IMAGE, &pull(&image, "shop")).await.status();
    assert_eq!(code, 2, "{message}");
    assert!(!message.contains("SignatureValidationFailed"), "{message}");
    let mut wrong = pull(&image, "shop");
    wrong.auth = Some(AuthConfig {
        username: "robot".into(),
        password: "wr0ng".into(),
        ..Default::default()
    });
    assert_eq!(client.unary(PULL_IMAGE, &wrong).await.status().0, 2);
    let mut right = pull(&image, "shop");
    right.auth = Some(AuthConfig {
        username: "robot".into(),
        password: "s3cret".into(),
        ..Default::default()
    });
    let pulled: PullImageResponse = client.unary(PULL_IMAGE, &right).await.message();
    assert_eq!(status_of(&client, &image).await.unwrap().id, pulled.image_ref);

    let records = gate.records("pull");
    let reasons: Vec<_> = records.iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(
        reasons,
        [Value::from("registry_unauthorized"), Value::from("registry_unauthorized"), Value::Null]
    );
    let log = fs::read_to_string(gate.audit_file()).unwrap();
    assert!(!log.contains("s3cret") && !log.contains("wr0ng"));
}

pub(crate) async fn a_refused_image_leaves_nothing_in_containerd(lab: &Lab) {
    let (signer, registry) = (Signer::new(), TestRegistry::start());
    registry.push_image("app", Some("v1"));
    let host = "nothing.example.com";
    lab.node.host(host, registry.url());
    // Should a layer be asked for, it is not served.
    registry.fault(Match::when(|target| target.contains("/blobs/")), Fault::CloseConnection);
    let gate = gate(lab, &format!("{host}/**"), &signer);
    let client = gate.client().await;
    let image = format!("{host}/app:v1");
    assert_eq!(client.unary(PULL_IMAGE, &pull(&image, "shop")).await.status().0, 2);
    assert_eq!(status_of(&lab.direct().await, &image).await, None);
    let asked = registry.asked();
    assert!(asked.iter().all(|request| !request.contains("/blobs/")), "{asked:?}");
}
