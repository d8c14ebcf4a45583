//! A bundle in a registry: signed by itself, or by cosign on its manifest.

use portcullis::{
    image::Digest,
    policy::{
        bundle::{PAYLOAD_TYPE, Sealed},
        fetch::Place,
    },
    resolve::{HostsDirectories, Registry},
};
use serde_json::json;

use super::*;
use crate::support::{
    registry::{Fault, IMAGE_MANIFEST, Match, TestRegistry},
    sign,
};

const ENVELOPE: &str = "application/vnd.portcullis.policy-bundle.v1alpha1.dsse+json";

fn place(registry: &TestRegistry, reference: &str) -> Place {
    Place::Oci {
        image: format!("{}/policies{reference}", registry.host()).parse().unwrap(),
        credentials: None,
        registry: Registry::new(HostsDirectories::default()),
    }
}

/// An artifact with this layer under `prod`; its own digest and its layer's.
fn push(registry: &TestRegistry, kind: &str, content: &[u8]) -> (Digest, Digest) {
    let layer = registry.push_blob("policies", content.to_vec());
    let config = registry.push_blob("policies", "{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": kind, "digest": layer, "size": content.len()}],
    });
    (registry.push_json("policies", Some("prod"), &manifest), layer)
}

/// Asks with the key of the signer.
fn pinned_to(signer: &sign::Signer, registry: &TestRegistry, reference: &str) -> Fetcher {
    let key = PublicKey::from_pem(&signer.pem(0)).unwrap();
    Fetcher::new(place(registry, reference), [key].into())
}

#[tokio::test]
async fn what_cosign_signed_is_believed_by_its_key_and_by_no_other() {
    let fixtures = Fixtures::at(&Fixtures::load().path("bundles"));
    assert_eq!(fixtures.repositories.len(), 4);
    for registry in [TestRegistry::start(), TestRegistry::builder().no_referrers_api().start()] {
        for (name, fixture) in &fixtures.repositories {
            fixtures.push(name, &registry);
            let place = || Place::Oci {
                image: format!("{}/{name}:v1", registry.host()).parse().unwrap(),
                credentials: None,
                registry: Registry::new(HostsDirectories::default()),
            };
            let key = fixture.facts["key"].as_str().unwrap();
            let key = key.trim_start_matches("keys/").trim_end_matches(".pub");
            let heard = Fetcher::new(place(), pinned(key)).ask(false).await.heard;
            assert_eq!(told(&heard, &registry), "offers 7", "{name}");
            let Heard::Offer(offer) = heard else { unreachable!() };
            let kept = offer.sealed.as_ref().unwrap().bytes();
            assert_eq!(Sealed::parse(kept.clone()).unwrap().open(&pinned(key)), Ok(offer.clone()));
            let line = asks(&mut Fetcher::new(place(), pinned("other")), &registry).await;
            let why = "is not signed by a pinned key: no signature by this key (1 signature found)";
            assert_eq!(line, format!("rejected: oci://S/{name}:v1: {why}"));
        }
    }
}

fn fetched(registry: &TestRegistry, layer: Digest) -> bool {
    registry.asked().contains(&format!("GET /v2/policies/blobs/{layer}"))
}

#[tokio::test]
async fn an_envelope_in_a_registry_is_fetched_once() {
    let registry = TestRegistry::start();
    push(&registry, ENVELOPE, bundle(1).as_bytes());
    let mut fetcher = fetcher(place(&registry, ":prod"));
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 1");
    let before = registry.requests().len();
    assert_eq!(asks(&mut fetcher, &registry).await, "unchanged");
    assert_eq!(registry.asked()[before..], ["GET /v2/policies/manifests/prod"]);
    // The tag moves, and moves back.
    let (second, _) = push(&registry, ENVELOPE, bundle(2).as_bytes());
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 2");
    push(&registry, ENVELOPE, bundle(1).as_bytes());
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 1");
    let mut by_digest = self::fetcher(place(&registry, &format!("@{second}")));
    assert_eq!(asks(&mut by_digest, &registry).await, "offers 2");
    assert_eq!(by_digest.name(), format!("oci://{}/policies@{second}", registry.host()));
}

#[tokio::test]
async fn an_envelope_by_another_key_is_rejected_and_not_fetched_again() {
    let registry = TestRegistry::start();
    let other = sign(&payload(1), &key("other")).unwrap().bytes;
    push(&registry, ENVELOPE, &other);
    let mut fetcher = fetcher(place(&registry, ":prod"));
    let why =
        "rejected: oci://S/policies:prod: is not signed by a pinned key: it carries 1 signature";
    assert_eq!(asks(&mut fetcher, &registry).await, why);
    let before = registry.requests().len();
    assert_eq!(asks(&mut fetcher, &registry).await, why);
    assert_eq!(registry.requests().len(), before + 1);
}

#[tokio::test]
async fn a_payload_is_fetched_once_somebody_vouches_for_its_manifest() {
    let registry = TestRegistry::start();
    let signer = sign::Signer::new();
    let (manifest, layer) = push(&registry, PAYLOAD_TYPE, &payload(3));
    let mut fetcher = pinned_to(&signer, &registry, ":prod");
    let none = "rejected: oci://S/policies:prod: is not signed by a pinned key: no signature found";
    assert_eq!(asks(&mut fetcher, &registry).await, none);
    sign::Signer::new().sign_simple(&registry, "policies", manifest);
    let other = "rejected: oci://S/policies:prod: is not signed by a pinned key: no signature by \
                 this key (1 signature found)";
    assert_eq!(asks(&mut fetcher, &registry).await, other);
    assert!(!fetched(&registry, layer));
    // Signed after it was pushed: the manifest is as it was.
    signer.sign_bundle(&registry, "policies", manifest);
    let offer = match fetcher.ask(false).await.heard {
        Heard::Offer(offer) => offer,
        other => panic!("{other:?}"),
    };
    assert_eq!((offer.revision, fetched(&registry, layer)), (Some(3), true));
    let before = registry.requests().len();
    assert_eq!(asks(&mut fetcher, &registry).await, "unchanged");
    assert_eq!(registry.requests().len(), before + 1);
    // What is kept of it holds without the registry, and against no other key.
    let kept = offer.sealed.as_ref().unwrap().bytes().clone();
    let pinned = [PublicKey::from_pem(&signer.pem(0)).unwrap()];
    assert_eq!(Sealed::parse(kept.clone()).unwrap().open(&pinned).unwrap(), offer);
    assert!(Sealed::parse(kept).unwrap().open(&super::pinned("other")).is_err());
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_manifest_says_is_rejected() {
    let registry = TestRegistry::start();
    let signer = sign::Signer::new();
    let (manifest, layer) = push(&registry, PAYLOAD_TYPE, &payload(1));
    signer.sign_simple(&registry, "policies", manifest);
    let mut fetcher = pinned_to(&signer, &registry, ":prod");
    let other = payload(2);
    let digest = Digest::of(&other);
    registry.fault(Match::blob("policies", layer), Fault::OtherBytes(other.into()));
    let why = format!(
        "rejected: oci://S/policies:prod: blob {layer}: S sent {digest} instead of {layer}"
    );
    assert_eq!(asks(&mut fetcher, &registry).await, why);
    registry.heal();
    registry.fault(Match::blob("policies", layer), Fault::EndlessBody);
    let line = asks(&mut fetcher, &registry).await;
    assert!(line.starts_with("rejected: ") && line.ends_with("which is the limit"), "{line}");
    // Nothing of that sticks.
    registry.heal();
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 1");
}

#[tokio::test]
async fn a_signature_on_another_artifact_or_manifest_is_none() {
    let registry = TestRegistry::start();
    let signer = sign::Signer::new();
    let (first, _) = push(&registry, PAYLOAD_TYPE, &payload(1));
    signer.sign_simple(&registry, "policies", first);
    // The signatures of the first under the name of the second.
    let (second, layer) = push(&registry, PAYLOAD_TYPE, &payload(2));
    let signed = registry.reader()("policies", &format!("sha256-{}.sig", first.hex())).unwrap();
    let tag = format!("sha256-{}.sig", second.hex());
    registry.push_manifest("policies", Some(&tag), &signed.0, signed.1);
    let mut fetcher = pinned_to(&signer, &registry, ":prod");
    let line = asks(&mut fetcher, &registry).await;
    let why = "is not signed by a pinned key: signed by this key, but for another digest";
    assert!(line.starts_with(&format!("rejected: oci://S/policies:prod: {why}")), "{line}");
    assert!(!fetched(&registry, layer));
    // An image by the same key is no bundle of policies.
    let image = registry.push_image("policies", "app");
    signer.sign_simple(&registry, "policies", image);
    let line = asks(&mut pinned_to(&signer, &registry, ":app"), &registry).await;
    let why = "is no artifact with a bundle of policies: its layer is of type";
    assert!(line.starts_with(&format!("rejected: oci://S/policies:app: {why}")), "{line}");
}

#[tokio::test]
async fn what_a_registry_does_not_answer_is_a_failure_and_no_rejection() {
    let registry = TestRegistry::start();
    let signer = sign::Signer::new();
    let mut fetcher = pinned_to(&signer, &registry, ":prod");
    let line = asks(&mut fetcher, &registry).await;
    assert_eq!(line, "failed: tag prod: S has none (404 Not Found)");
    let (manifest, _) = push(&registry, PAYLOAD_TYPE, &payload(1));
    signer.sign_simple(&registry, "policies", manifest);
    // The signature may be what the registry does not give.
    let tag = format!("sha256-{}.sig", manifest.hex());
    registry.fault(Match::manifest("policies", &tag), Fault::Status(403, Vec::new(), "".into()));
    let line = asks(&mut fetcher, &registry).await;
    assert!(line.starts_with("failed: tag sha256-"), "{line}");
    registry.heal();
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 1");
    // And what was offered is not forgotten because of it.
    registry.fault(Match::any(), Fault::Status(403, Vec::new(), "".into()));
    assert!(asks(&mut fetcher, &registry).await.starts_with("failed: tag prod: S refused"));
    registry.heal();
    assert_eq!(asks(&mut fetcher, &registry).await, "unchanged");
}

#[tokio::test]
async fn credentials_are_read_anew_each_time() {
    let registry = TestRegistry::builder().basic("node", "secret").start();
    push(&registry, ENVELOPE, bundle(1).as_bytes());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let Place::Oci { image, registry: hosts, .. } = place(&registry, ":prod") else {
        unreachable!()
    };
    let without = Place::Oci { image: image.clone(), credentials: None, registry: hosts.clone() };
    let line = asks(&mut fetcher(without), &registry).await;
    let why = "S wants credentials, and the pull came with none: name a file with credentials";
    assert_eq!(line, format!("failed: tag prod: {why}"));
    let mut fetcher =
        fetcher(Place::Oci { image, credentials: Some(file.clone()), registry: hosts });
    let line = asks(&mut fetcher, &registry).await;
    assert!(line.contains("config.json: cannot be read: No such file"), "{line}");
    // "node:secret"
    let auths = json!({"auths": {registry.host(): {"auth": "bm9kZTpzZWNyZXQ="}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    assert_eq!(asks(&mut fetcher, &registry).await, "offers 1");
    let auths = auths.to_string().replace("bm9kZTpzZWNyZXQ=", "bm9kZTp3cm9uZw==");
    std::fs::write(&file, auths).unwrap();
    let line = asks(&mut fetcher, &registry).await;
    assert_eq!(line, "failed: tag prod: S refused the pull credentials (401 Unauthorized)");
}
