//! From a reference to a pinned image, through a registry.

use portcullis::{
    image::ImageRef,
    refusal::{Code, Refusal},
    resolve::{Credentials, HostsDirectories, Registry, Resolved, pin},
};
use serde_json::json;

use crate::support::registry::{Fault, IMAGE_MANIFEST, Match, TestRegistry};

async fn pinned(registry: &TestRegistry, reference: &str) -> Result<Resolved, Refusal> {
    let image: ImageRef = format!("{}/app{reference}", registry.host()).parse().unwrap();
    let hosts = Registry::new(HostsDirectories::default());
    pin(&hosts.repo(&image.repository, &Credentials::Anonymous), &image)
        .await
        .map(|(image, _)| image)
}

#[tokio::test]
async fn only_what_was_hashed_is_pinned() {
    let registry = TestRegistry::start();
    let digest = registry.push_image("app", "v1");
    let by_digest = format!("@{digest}");
    for reference in [":v1", &by_digest] {
        let image = pinned(&registry, reference).await.unwrap();
        assert_eq!((image.image.digest, image.child), (digest, None));
    }
    let codes = |fault: Fault| {
        registry.heal();
        registry.fault(Match::any(), fault);
        async {
            let one = pinned(&registry, ":v1").await.unwrap_err().code;
            (one, pinned(&registry, &by_digest).await.unwrap_err().code)
        }
    };
    let other = Fault::OtherBytes(r#"{"schemaVersion":2}"#.into());
    assert_eq!(codes(other).await, (Code::ImageMalformed, Code::DigestMismatch));
    let html = Fault::ContentType("text/html");
    assert_eq!(codes(html).await, (Code::ImageMalformed, Code::ImageMalformed));
    let lie = Fault::ContentType("application/vnd.oci.image.index.v1+json");
    assert_eq!(codes(lie).await, (Code::ImageMalformed, Code::ImageMalformed));
    let missing = Fault::Status(404, vec![], String::new());
    assert_eq!(codes(missing).await, (Code::ImageNotFound, Code::ImageNotFound));
}

#[tokio::test]
async fn a_checkpoint_is_no_image() {
    let registry = TestRegistry::start();
    let blob = registry.push_blob("app", "{}");
    registry.push_json(
        "app",
        Some("v1"),
        &json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
            "config": {"mediaType": "x/y", "digest": blob, "size": 2}, "layers": [],
            "annotations": {"org.criu.checkpoint.container.name": "x"},
        }),
    );
    let refusal = pinned(&registry, ":v1").await.unwrap_err();
    assert_eq!(refusal.code, Code::ImageMalformed);
    assert_eq!(
        refusal.message,
        "the image is a checkpoint: restoring it starts processes that no signature covers; use \
         an ordinary image"
    );
}
