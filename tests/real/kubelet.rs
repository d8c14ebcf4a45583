//! kubelet's own sequences of calls (1.31 to 1.36), and what it then says of the pod.
//!
//! As in its `image_manager.go` and `kuberuntime_container.go`: the pod's sandbox runs first, then
//! the images of volumes and of the container are made sure of, then the image's user is asked
//! for by the name in the pod, then the container is created by what was found.

use std::collections::HashMap;

use crate::{
    image::Made,
    lab::{FALLBACK, Lab, version},
    pod::{self, NAMESPACE, Pod},
    scene::{Scene, Shown, status_by},
    support::{
        cri::{
            AuthConfig, IMAGE_STATUS, Image, ImageSpec, ImageStatusRequest, ImageStatusResponse,
            PULL_IMAGE, PodSandboxConfig, PodSandboxMetadata, PullImageRequest, PullImageResponse,
        },
        grpc::Client,
    },
};

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}
use Policy::{Always, IfNotPresent, Never};

/// The reason why a container waits, and the message beside it.
type Waiting = (&'static str, String);

/// kubelet before the gate of a scene.
struct Kubelet<'a> {
    scene: &'a Scene<'a>,
    pod: &'a Pod,
    /// Pull secrets that fit the image.
    secrets: Vec<AuthConfig>,
    /// An image volume, mounted by every container.
    volume: Option<&'a str>,
}

impl<'a> Kubelet<'a> {
    fn new(scene: &'a Scene<'a>, pod: &'a Pod) -> Self {
        Self { scene, pod, secrets: Vec::new(), volume: None }
    }

    fn client(&self) -> &Client {
        &self.scene.client
    }

    /// `SyncPod` for a pod with one container, up to the container's own words.
    async fn sync(&self, policy: Policy, image: &Shown) -> Result<(), Waiting> {
        self.sync_named(policy, &image.name, &image.made.says).await
    }

    async fn sync_named(&self, policy: Policy, name: &str, says: &str) -> Result<(), Waiting> {
        let volume = match self.volume {
            Some(volume) => Some((volume, self.ensure(IfNotPresent, volume).await?)),
            None => None,
        };
        let found = self.ensure(policy, name).await?;
        let user = self.status(ImageSpec { image: name.into(), ..Default::default() }).await;
        // `runAsNonRoot`: an image that is not found is taken for one that runs as root.
        if user.and_then(|image| image.uid).is_none_or(|uid| uid.value == 0) {
            return Err(("CreateContainerConfigError", "image will run as root".into()));
        }
        let image = pod::by_kubelet(&found, name);
        let request = match volume {
            Some((name, found)) => {
                let mounted =
                    ImageSpec { annotations: annotations(), ..pod::by_kubelet(&found, name) };
                self.pod.request_with_volume(image, mounted)
            }
            None => self.pod.request(image),
        };
        let before = self.pod.containers(&self.scene.direct).await;
        match pod::create(self.client(), &request).await {
            Ok(container) => {
                self.pod.start(self.client(), &request, &container.id, says).await;
                Ok(())
            }
            Err((_, message)) => {
                assert_eq!(self.pod.containers(&self.scene.direct).await, before, "{message}");
                Err(("CreateContainerError", message))
            }
        }
    }

    /// `EnsureImageExists`: the ID of the image.
    async fn ensure(&self, policy: Policy, name: &str) -> Result<String, Waiting> {
        let image = ImageSpec {
            image: default_tag(name),
            annotations: annotations(),
            ..Default::default()
        };
        if policy != Always
            && let Some(present) = self.status(image.clone()).await
        {
            return Ok(present.id);
        }
        if policy == Never {
            let why = format!("Container image {name:?} is not present with pull policy of Never");
            return Err(("ErrImageNeverPull", why));
        }
        let secrets = match &self.secrets[..] {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        // One after the other, until one will do.
        let mut failures = Vec::new();
        for secret in secrets {
            let request = PullImageRequest {
                image: Some(image.clone()),
                auth: secret,
                sandbox_config: Some(sandbox_config()),
            };
            let answer = self.client().unary(PULL_IMAGE, &request).await;
            match answer.status() {
                (0, _) => {
                    let pulled = answer.message::<PullImageResponse>().image_ref;
                    self.status(image).await.expect("its size is asked for");
                    return Ok(pulled);
                }
                // cri-client leaves out the code only where it is UNKNOWN.
                (2, message) if !failures.contains(&message) => failures.push(message),
                (2, _) => {}
                (code, message) => failures.push(format!("rpc error: code = {code}: {message}")),
            }
        }
        let message = match &failures[..] {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let known = ["SignatureValidationFailed", "RegistryUnavailable"];
        let reason = known.into_iter().find(|reason| message.starts_with(reason));
        Err((reason.unwrap_or("ErrImagePull"), message))
    }

    async fn status(&self, image: ImageSpec) -> Option<Image> {
        let request = ImageStatusRequest { image: Some(image), verbose: false };
        self.client().unary(IMAGE_STATUS, &request).await.message::<ImageStatusResponse>().image
    }

    /// How many images were pulled since this was asked last.
    fn pulls(&self) -> usize {
        self.scene.news("pull").len()
    }

    /// The container waits for this reason.
    async fn waits(&self, policy: Policy, image: &Shown, reason: &str) -> String {
        let (why, message) = self.sync(policy, image).await.unwrap_err();
        assert_eq!(why, reason, "{policy:?} {}: {message}", image.name);
        message
    }

    /// The container starts, after as many pulls.
    async fn starts(&self, policy: Policy, image: &Shown, pulls: usize) {
        self.pulls();
        self.sync(policy, image).await.unwrap_or_else(|why| panic!("{}: {why:?}", image.name));
        assert_eq!(self.pulls(), pulls, "{policy:?} {}", image.name);
    }
}

/// All of the pod's: kubelet sends them with each image.
fn annotations() -> HashMap<String, String> {
    HashMap::from([
        ("kubernetes.io/config.seen".to_owned(), "2026-01-01T00:00:00Z".to_owned()),
        ("kubernetes.io/config.source".to_owned(), "api".to_owned()),
    ])
}

fn sandbox_config() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: NAMESPACE.into(),
            attempt: 0,
        }),
        annotations: annotations(),
        ..Default::default()
    }
}

/// `applyDefaultImageTag`.
fn default_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap();
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

/// The images of a scene for all that follows.
struct Images {
    /// Pulled through the gate by kubelet.
    warm: Shown,
    /// Signed, and not on the node.
    cold: Shown,
    /// On the node past the gate.
    unsigned: Shown,
    /// Neither.
    absent: Shown,
}

impl Images {
    async fn of(scene: &Scene<'_>) -> Self {
        let images = Self {
            warm: scene.signed("warm"),
            cold: scene.signed("cold"),
            unsigned: scene.unsigned("unsigned"),
            absent: scene.unsigned("absent"),
        };
        scene.pull_around(&images.unsigned.name).await;
        images
    }
}

/// While the registry answers.
async fn online(scene: &Scene<'_>, images: &Images, pod: &str) {
    let pod = Pod::run(scene.node, &scene.client, pod).await;
    let kubelet = Kubelet::new(scene, &pod);
    kubelet.starts(Always, &images.warm, 1).await;
    kubelet.starts(IfNotPresent, &images.warm, 0).await;
    kubelet.starts(Never, &images.warm, 0).await;
    kubelet.waits(Never, &images.cold, "ErrImageNeverPull").await;
    for policy in [Always, IfNotPresent] {
        for image in [&images.unsigned, &images.absent] {
            let why = kubelet.waits(policy, image, "SignatureValidationFailed").await;
            assert!(why.contains(&image.pinned), "{why}");
        }
    }
    // For `IfNotPresent` it was asked about and told of before.
    scene.news("image_status");
    kubelet.waits(Never, &images.unsigned, "ErrImageNeverPull").await;
    scene.hides(&images.unsigned.name).await;
    kubelet.waits(Never, &images.absent, "ErrImageNeverPull").await;
    assert!(scene.news("image_status").is_empty(), "an image that is not there is no judgement");
    assert_eq!(status_by(&scene.direct, &images.absent.name).await, None);
    pod.remove(&scene.client).await;
}

/// When the registry is gone.
async fn offline(scene: &Scene<'_>, images: &Images, pod: &str) {
    let pod = Pod::run(scene.node, &scene.client, pod).await;
    let kubelet = Kubelet::new(scene, &pod);
    kubelet.starts(IfNotPresent, &images.warm, 0).await;
    kubelet.starts(Never, &images.warm, 0).await;
    kubelet.waits(Always, &images.warm, "RegistryUnavailable").await;
    for image in [&images.cold, &images.unsigned, &images.absent] {
        kubelet.waits(Always, image, "RegistryUnavailable").await;
        kubelet.waits(IfNotPresent, image, "RegistryUnavailable").await;
        kubelet.waits(Never, image, "ErrImageNeverPull").await;
    }
    pod.remove(&scene.client).await;
}

pub(crate) async fn pull_policies_hold_over_restarts_and_offline(lab: &Lab) {
    let node = lab.another(&format!("{FALLBACK}/pause:v1")).await;
    let mut scene = Scene::on(lab, &node, "policies").await;
    let images = Images::of(&scene).await;
    online(&scene, &images, "fresh").await;
    scene.restart_gate().await;
    online(&scene, &images, "gate-restarted").await;
    scene.restart_node().await;
    online(&scene, &images, "node-restarted").await;
    scene.stop_registry();
    offline(&scene, &images, "offline").await;
    scene.restart_gate().await;
    offline(&scene, &images, "offline-gate-restarted").await;
    scene.restart_node().await;
    scene.restart_gate().await;
    offline(&scene, &images, "offline-both-restarted").await;
}

pub(crate) async fn if_not_present_pulls_what_is_missing_once(lab: &Lab) {
    let scene = Scene::new(lab, "cold").await;
    let pod = Pod::run(&lab.node, &scene.client, "cold").await;
    let (kubelet, image) = (Kubelet::new(&scene, &pod), scene.signed("app"));
    kubelet.starts(IfNotPresent, &image, 1).await;
    kubelet.starts(IfNotPresent, &image, 0).await;
    // By digest, and by no tag at all.
    let other = scene.signed("other");
    kubelet.pulls();
    for _ in 0..2 {
        kubelet.sync_named(IfNotPresent, &other.pinned, &other.made.says).await.unwrap();
    }
    assert_eq!(kubelet.pulls(), 1);
    let latest = Made::new();
    latest.push(&scene.registry, "latest", "latest");
    scene.signer.sign_bundle(&scene.registry, "latest", latest.digest());
    for _ in 0..2 {
        let name = format!("{}/latest", scene.host);
        kubelet.sync_named(IfNotPresent, &name, &latest.says).await.unwrap();
    }
    assert_eq!(kubelet.pulls(), 1);
    pod.remove(&scene.client).await;
}

pub(crate) async fn each_credential_hears_the_same_refusal(lab: &Lab) {
    let scene = Scene::new(lab, "secrets").await;
    let pod = Pod::run(&lab.node, &scene.client, "secrets").await;
    let secret = |number: u32| AuthConfig {
        username: format!("robot-{number}"),
        password: format!("s3cret-{number}"),
        server_address: scene.host.clone(),
        ..Default::default()
    };
    let mut kubelet = Kubelet::new(&scene, &pod);
    kubelet.secrets = (0..3).map(secret).collect();
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    for policy in [Always, IfNotPresent] {
        kubelet.pulls();
        // Equal messages come to one; others would lose the reason.
        let why = kubelet.waits(policy, &unsigned, "SignatureValidationFailed").await;
        assert_eq!(kubelet.pulls(), 3);
        let refusal = format!(
            "SignatureValidationFailed: {}: policy \"release\" requires 1 of 1 authority: \
             \"release\": no signature found",
            unsigned.pinned
        );
        assert_eq!(why, refusal);
    }
    kubelet.starts(Always, &signed, 1).await;
    pod.remove(&scene.client).await;
}

pub(crate) async fn image_volumes_are_made_sure_of_like_images(lab: &Lab) {
    if version() != "2.1" {
        return; // no image volumes; `ways` has what is judged there
    }
    let scene = Scene::new(lab, "volumes").await;
    let (app, data, unsigned) =
        (scene.signed("app"), scene.signed("data"), scene.unsigned("unsigned"));
    let pod = Pod::run(&lab.node, &scene.client, "volumes").await;
    let mut kubelet = Kubelet::new(&scene, &pod);
    kubelet.volume = Some(&data.name);
    kubelet.starts(IfNotPresent, &app, 2).await;
    kubelet.starts(IfNotPresent, &app, 0).await;
    kubelet.volume = Some(&unsigned.name);
    kubelet.waits(IfNotPresent, &app, "SignatureValidationFailed").await;
    scene.pull_around(&unsigned.name).await;
    kubelet.waits(IfNotPresent, &app, "SignatureValidationFailed").await;
    pod.remove(&scene.client).await;
}
