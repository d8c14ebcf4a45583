//! Every way by which an image can be on a node: unproven it does not start, proven it does.

use std::fs;

use futures_util::future::join_all;
use serde_json::json;

use crate::{
    image::Made,
    lab::{Lab, version},
    pod::{self, Pod, by_kubelet, plain},
    scene::{POLICY, Scene, Shown, status_by},
    support::{
        cri::{PULL_IMAGE, pull},
        registry::{Fault, Match},
        sign::policy,
    },
};

/// Refused before anybody was asked, or by what the policy found.
const UNPROVEN: &[&str] = &["not_proven_locally", "signature_missing"];

/// Both images came past the gate: neither starts. Then kubelet finds them absent and pulls: the
/// signed one starts, the other one still does not.
async fn came_around(scene: &Scene<'_>, pod: &Pod, signed: &Shown, unsigned: &Shown) {
    for image in [signed, unsigned] {
        let request = pod.request(by_kubelet(&image.id, &image.name));
        let why = scene.refuses(pod, &request, UNPROVEN).await;
        assert!(why.contains(&image.id) || why.contains(&image.pinned), "{why}");
        scene.hides(&image.name).await;
    }
    scene.registry.heal();
    assert_eq!(scene.pull(&signed.name).await, Ok(signed.id.clone()));
    assert_eq!(scene.status(&signed.name).await.unwrap().id, signed.id);
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(pod, &request, &signed.made.says).await;

    let (code, message) = scene.pull(&unsigned.name).await.unwrap_err();
    let refusal = format!("SignatureValidationFailed: {}: policy \"release\"", unsigned.pinned);
    assert!(code == 2 && message.starts_with(&refusal), "{code}: {message}");
    let request = pod.request(by_kubelet(&unsigned.id, &unsigned.name));
    scene.refuses(pod, &request, UNPROVEN).await;
    scene.hides(&unsigned.name).await;
}

pub(crate) async fn pulled_before_portcullis_was_there(lab: &Lab) {
    let mut scene = Scene::new(lab, "before").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    for image in [&signed, &unsigned] {
        scene.pull_around(&image.name).await;
    }
    scene.registry.fault(Match::any(), Fault::CloseConnection);
    scene.install(lab).await;
    let pod = Pod::run(&lab.node, &scene.client, "before").await;
    came_around(&scene, &pod, &signed, &unsigned).await;
    pod.remove(&scene.client).await;
}

pub(crate) async fn imported_by_ctr(lab: &Lab) {
    let scene = Scene::new(lab, "imported").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    scene.registry.fault(Match::any(), Fault::CloseConnection);
    for image in [&signed, &unsigned] {
        lab.node.import(&image.made, &image.name);
    }
    let pod = Pod::run(&lab.node, &scene.client, "imported").await;
    came_around(&scene, &pod, &signed, &unsigned).await;
    pod.remove(&scene.client).await;
}

pub(crate) async fn pulled_past_the_socket(lab: &Lab) {
    let scene = Scene::new(lab, "past").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    for image in [&signed, &unsigned] {
        scene.pull_around(&image.name).await;
    }
    scene.registry.fault(Match::any(), Fault::CloseConnection);
    let pod = Pod::run(&lab.node, &scene.client, "past").await;
    came_around(&scene, &pod, &signed, &unsigned).await;
    pod.remove(&scene.client).await;
}

/// Evidence that was gathered when Portcullis came is enough: nobody has to pull again.
pub(crate) async fn evidence_is_gathered_for_what_is_there(lab: &Lab) {
    let mut scene = Scene::new(lab, "inventory").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    for image in [&signed, &unsigned] {
        scene.pull_around(&image.name).await;
    }
    scene.install(lab).await;
    let pod = Pod::run(&lab.node, &scene.client, "inventory").await;
    scene.shows(&signed.name).await;
    scene.stop_registry();
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(&pod, &request, &signed.made.says).await;
    let request = pod.request(by_kubelet(&unsigned.id, &unsigned.name));
    scene.refuses(&pod, &request, UNPROVEN).await;
    assert!(scene.news("pull").is_empty());
    pod.remove(&scene.client).await;
}

pub(crate) async fn a_signed_name_leads_to_other_bytes(lab: &Lab) {
    let scene = Scene::new(lab, "repointed").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    scene.pull(&signed.name).await.unwrap();
    lab.node.import(&unsigned.made, &unsigned.name);
    let pod = Pod::run(&lab.node, &scene.client, "repointed").await;

    lab.node.ctr(&["images", "tag", "--force", &unsigned.name, &signed.name]);
    let leads = || status_by(&scene.direct, &signed.name);
    while leads().await.unwrap().id != unsigned.id {} // containerd tells CRI in a moment
    scene.hides(&signed.name).await;
    for image in [
        by_kubelet(&unsigned.id, &signed.name),
        by_kubelet(&unsigned.id, &signed.pinned),
        plain(&signed.name),
        plain(&unsigned.id),
    ] {
        scene.refuses(&pod, &pod.request(image), UNPROVEN).await;
    }
    // The signed bytes are still what they were.
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(&pod, &request, &signed.made.says).await;
    // And kubelet, to whom the image is absent, sets the name right.
    assert_eq!(scene.pull(&signed.name).await, Ok(signed.id.clone()));
    assert_eq!(scene.status(&signed.name).await.unwrap().id, signed.id);
    scene.accepts(&pod, &pod.request(plain(&signed.name)), &signed.made.says).await;

    // A name by digest that leads elsewhere means what it says, be the other image proven as well.
    let other = scene.signed("other");
    scene.pull(&other.name).await.unwrap();
    lab.node.ctr(&["images", "tag", "--force", &other.name, &signed.pinned]);
    let leads = || status_by(&scene.direct, &signed.pinned);
    while leads().await.unwrap().id != other.id {}
    scene.hides(&signed.pinned).await;
    for image in [plain(&signed.pinned), by_kubelet(&other.id, &signed.pinned)] {
        scene.refuses(&pod, &pod.request(image), UNPROVEN).await;
    }
    pod.remove(&scene.client).await;
}

pub(crate) async fn by_whatever_name(lab: &Lab) {
    let scene = Scene::new(lab, "named").await;
    let (signed, unsigned) = (scene.signed("signed"), scene.unsigned("unsigned"));
    scene.pull(&signed.name).await.unwrap();
    scene.pull_around(&unsigned.name).await;
    let pod = Pod::run(&lab.node, &scene.client, "named").await;
    for image in [&signed, &unsigned] {
        let hex = image.id.strip_prefix("sha256:").unwrap();
        let names = [&image.id, hex, &hex[..12], &image.id[..20], &image.pinned, &image.name];
        for name in names {
            let request = pod.request(plain(name));
            if image.id == signed.id {
                scene.accepts(&pod, &request, &image.made.says).await;
            } else {
                scene.refuses(&pod, &request, UNPROVEN).await;
            }
        }
    }
    // The pod's name for the image decides which policies are asked, whatever else it is called.
    let request = pod.request(by_kubelet(&signed.id, "elsewhere.example.com/app:v1"));
    let why = scene.refuses(&pod, &request, &["no_policy_matches"]).await;
    assert!(why.contains("elsewhere.example.com/app"), "{why}");
    pod.remove(&scene.client).await;
}

/// The ID of an image is the digest of its configuration, which names the contents of the layers;
/// a manifest can name other layers beside it. containerd compares when it unpacks.
pub(crate) async fn by_the_id_of_another_image(lab: &Lab) {
    let scene = Scene::new(lab, "posing").await;
    let signed = scene.signed("signed");
    let posing = scene.shown(Made::posing_as(&signed.made), "posing");
    assert_eq!(posing.id, signed.id);
    let pod = Pod::run(&lab.node, &scene.client, "posing").await;
    let import = |image: &Shown| {
        let archive = image.made.archive(&image.name);
        let archive = archive.path().to_str().unwrap();
        lab.node.ctr(&["images", "import", "--no-unpack", archive]);
    };
    // Evidence for the ID is on the node, its layers are not.
    scene.pull(&signed.name).await.unwrap();
    lab.node.ctr(&["images", "rm", "--sync", &signed.name, &signed.pinned, &signed.id]);
    import(&posing);
    for name in [&posing.name, &signed.name] {
        let request = pod.request(by_kubelet(&posing.id, name));
        let (_, message) = pod::create(&scene.client, &request).await.unwrap_err();
        assert!(message.contains("wrong diff id calculated on extraction"), "{message}");
        assert!(pod.list(&scene.direct).await.is_empty(), "{name}: {message}");
    }
    // With the layers that belong to it, it is that image.
    assert_eq!(scene.pull(&signed.name).await, Ok(signed.id.clone()));
    let request = pod.request(by_kubelet(&signed.id, &signed.name));
    scene.accepts(&pod, &request, &signed.made.says).await;
    pod.remove(&scene.client).await;
}

/// `app` is docker.io/library/app:latest, for policies as well.
pub(crate) async fn by_a_short_name(lab: &Lab) {
    let scene = Scene::new(lab, "short").await;
    lab.node.host("docker.io", scene.registry.url());
    let (signed, unsigned) = (Made::new(), Made::new());
    signed.push(&scene.registry, "library/short-signed", "latest");
    unsigned.push(&scene.registry, "library/short-unsigned", "latest");
    scene.signer.sign_simple(&scene.registry, "library/short-signed", signed.digest());
    let text = policy("hub", "docker.io/library/short-*", &[("release", &scene.signer)]);
    scene.policy("hub.yaml", &text).await;
    assert_eq!(scene.pull("short-signed").await, Ok(signed.id()));
    scene.pull_around("short-unsigned").await;
    let pod = Pod::run(&lab.node, &scene.client, "short").await;
    for name in ["short-signed", "short-signed:latest", "docker.io/library/short-signed"] {
        scene.accepts(&pod, &pod.request(plain(name)), &signed.says).await;
        let request = pod.request(by_kubelet(&signed.id(), name));
        scene.accepts(&pod, &request, &signed.says).await;
    }
    for name in ["short-unsigned", "short-unsigned:latest", "docker.io/library/short-unsigned"] {
        scene.refuses(&pod, &pod.request(plain(name)), UNPROVEN).await;
        let request = pod.request(by_kubelet(&unsigned.id(), name));
        scene.refuses(&pod, &request, UNPROVEN).await;
    }
    pod.remove(&scene.client).await;
}

/// containerd 1.6 and 1.7 know nothing of image volumes; the judgement is the same.
pub(crate) async fn as_a_volume(lab: &Lab) {
    let scene = Scene::new(lab, "volume").await;
    let (app, data, unsigned) =
        (scene.signed("app"), scene.signed("data"), scene.unsigned("unsigned"));
    for image in [&app, &data] {
        scene.pull(&image.name).await.unwrap();
    }
    scene.pull_around(&unsigned.name).await;
    let pod = Pod::run(&lab.node, &scene.client, "volume").await;
    let container = || by_kubelet(&app.id, &app.name);
    for volume in [by_kubelet(&unsigned.id, &unsigned.name), plain(&unsigned.name)] {
        let request = pod.request_with_volume(container(), volume);
        let why = scene.refuses(&pod, &request, UNPROVEN).await;
        assert!(why.contains("volume.example.com/unsigned"), "{why}");
    }
    for volume in [by_kubelet(&data.id, &data.name), plain(&data.name), plain(&data.id[..20])] {
        let request = pod.request_with_volume(container(), volume);
        scene.news("create");
        if version() == "2.1" {
            pod.request_starts(&scene.client, &request, &app.made.says).await;
        } else {
            // To them it is a mount of no directory.
            let (_, message) = pod::create(&scene.client, &request).await.unwrap_err();
            assert!(message.ends_with("mkdir : no such file or directory"), "{message}");
        }
        let news = scene.news("create");
        assert!(!news.is_empty() && news.iter().all(|one| one["decision"] == "allow"), "{news:#?}");
    }
    pod.remove(&scene.client).await;
}

pub(crate) async fn as_a_checkpoint(lab: &Lab) {
    let scene = Scene::new(lab, "checkpoint").await;
    let pod = Pod::run(&lab.node, &scene.client, "checkpoint").await;
    let archive = lab.node.path().join("checkpoint.tar");
    fs::write(&archive, vec![0; 1024]).unwrap();
    for path in [archive.to_str().unwrap(), "./checkpoint.tar", "../checkpoint.tar"] {
        let why = scene.refuses(&pod, &pod.request(plain(path)), &["malformed_request"]).await;
        assert!(why.contains("checkpoint"), "{why}");
    }
    // What could be a path or a name is a name.
    let relative = pod.request(plain("checkpoints/archive.tar"));
    let (code, message) = pod::create(&scene.client, &relative).await.unwrap_err();
    assert_eq!(
        (code, message.as_str()),
        (5, "checkpoints/archive.tar: the container runtime has no such image")
    );
    scene.recorded("create", "deny", &["image_not_found"]);

    // Signed or not, restoring starts what no signature covers.
    for key in
        ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"]
    {
        let image = scene.push(Made::annotated(&json!({key: "app"})), "image");
        scene.sign(&image);
        let (code, message) = scene.pull(&image.name).await.unwrap_err();
        assert!(code == 2 && message.contains("checkpoint"), "{code}: {message}");
        lab.node.import(&image.made, &image.name);
        for named in [by_kubelet(&image.id, &image.name), plain(&image.name), plain(&image.id)] {
            let reasons = &["image_malformed", "not_proven_locally"];
            scene.refuses(&pod, &pod.request(named), reasons).await;
        }
        scene.hides(&image.name).await;
    }
    pod.remove(&scene.client).await;
}

/// Where one namespace may have other bytes under a tag, moving it starts them nowhere else:
/// containerd finds an image's bytes by one of its tags, however it was asked for.
pub(crate) async fn under_a_tag_that_moves(lab: &Lab) {
    const MOVES: usize = 20;
    let scene = Scene::new(lab, "moving").await;
    let (good, other) = (scene.signed("app"), scene.unsigned("other"));
    other.made.push(&scene.registry, "app", "v2");
    let strict = policy("release", &format!("{}/**", scene.host), &[("release", &scene.signer)]);
    scene.policy(POLICY, &strict.replace("images: [", "namespaces: [shop], images: [")).await;
    let lenient = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: dev}}\nspec:\n  \
         match: {{images: ['{}/**'], namespaces: [dev]}}\n  \
         authorities: [{{name: a, unsigned: {{reason: t}}}}]\n",
        scene.host
    );
    scene.policy("dev.yaml", &lenient).await;
    assert_eq!(scene.pull(&good.name).await, Ok(good.id.clone()));
    let pod = Pod::run(&lab.node, &scene.client, "moving").await;
    let done = std::cell::Cell::new(false);
    let moving = async {
        for number in 0..MOVES {
            let (image, namespace) = [(&other, "dev"), (&good, "shop")][number % 2];
            scene.registry.tag("app", "v1", image.made.digest());
            let answer = scene.client.unary(PULL_IMAGE, &pull(&good.name, namespace)).await;
            assert_eq!(answer.status(), (0, String::new()));
        }
        done.set(true);
    };
    let creators = join_all((0..8).map(|_| async {
        let client = scene.gate.client().await;
        let mut made = Vec::new();
        while !done.get() {
            let request = pod.request(by_kubelet(&good.id, &good.name));
            if let Ok(created) = pod::create(&client, &request).await {
                made.push(created.id);
            }
        }
        made
    }));
    let (made, ()) = futures_util::future::join(creators, moving).await;
    let snapshots = lab.node.ctr(&["snapshots", "--snapshotter", "overlayfs", "ls"]);
    let made: Vec<_> = made.into_iter().flatten().collect();
    let of_other: Vec<_> = snapshots
        .lines()
        .filter(|line| line.contains(&other.made.layer_digest().to_string()))
        .filter(|line| made.iter().any(|id| line.starts_with(id.as_str())))
        .collect();
    assert!(of_other.is_empty(), "{} of {} containers: {of_other:#?}", of_other.len(), made.len());
    assert!(made.len() > MOVES, "{}", made.len());
    pod.remove(&scene.client).await;
}
