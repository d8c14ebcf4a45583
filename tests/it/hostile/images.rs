//! Manifests that are not what they seem, and images that are no images.

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::{Value, json};

use crate::support::{
    cri::{IMAGE_STATUS, PULL_IMAGE, pull},
    gate::Setup,
    grpc::framed,
    registry::{Fault, IMAGE_INDEX, IMAGE_MANIFEST, Match, TestRegistry},
    runtime::{FakeRuntime, pulling},
    sign::{Signer, policy},
};

use super::{Case, Scene, all_refused};

const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

const UNKNOWN: &str = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

/// The manifest of an ordinary image.
fn manifest(s: &Scene) -> Value {
    let blob = s.registry.push_blob(&s.repository, "{}");
    json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
        "config": {"mediaType": "x/y", "digest": blob, "size": 2}, "layers": [],
    })
}

/// Such an image at `v1`, signed, with a field of its own.
fn push_with(s: &Scene, field: &str, value: Value) {
    let mut manifest = manifest(s);
    manifest[field] = value;
    push(s, IMAGE_MANIFEST, manifest.to_string());
}

/// Any bytes at `v1`, signed.
fn push(s: &Scene, media_type: &str, bytes: impl Into<Bytes>) {
    let digest = s.registry.push_manifest(&s.repository, Some("v1"), media_type, bytes);
    s.key.sign_simple(&s.registry, &s.repository, digest);
}

#[tokio::test]
async fn what_is_no_image_is_refused_though_it_is_signed() {
    let checkpoint = "the image is a checkpoint: restoring it starts processes that no signature \
                      covers; use an ordinary image";
    let schema_1 = "the manifest is of Docker's schema 1, which no current runtime pulls: push the \
                    image again with a current tool";
    let case = |name: &str, arrange: fn(&Scene), reason: &'static str, why: &str| {
        Case::new(name).arrange(arrange).refused(reason, format!("{{image}}: {why}"))
    };
    let malformed = "image_malformed";
    all_refused(vec![
        case(
            "layers and manifests",
            |s| push_with(s, "manifests", json!([])),
            malformed,
            "the manifest has a field \"manifests\" and can be read as something else \
             (CVE-2021-41190)",
        ),
        case(
            "an index with layers",
            |s| {
                let index = json!({
                    "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [], "layers": null,
                });
                push(s, IMAGE_INDEX, index.to_string());
            },
            malformed,
            "the index has a field \"layers\" and can be read as something else (CVE-2021-41190)",
        ),
        case(
            "two lists of layers",
            |s| {
                let text = manifest(s).to_string().replacen('{', "{\"layers\":[],", 1);
                push(s, IMAGE_MANIFEST, text);
            },
            malformed,
            "the manifest cannot be read: duplicate key \"layers\" at line 1 column 142",
        ),
        case(
            "layers for Go only",
            |s| push_with(s, "Layers", json!([])),
            malformed,
            "the manifest cannot be read: key \"Layers\" instead of \"layers\" at line 1 column 9",
        ),
        case(
            "Docker schema 1",
            |s| {
                push(s, IMAGE_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#);
                s.fault(Match::manifest(&s.repository, "v1"), Fault::ContentType(SCHEMA_1));
            },
            malformed,
            schema_1,
        ),
        case(
            "Docker schema 1 under another type",
            |s| push(s, IMAGE_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#),
            malformed,
            schema_1,
        ),
        case(
            "a checkpoint",
            |s| push_with(s, "annotations", json!({"org.criu.checkpoint.container.name": "x"})),
            malformed,
            checkpoint,
        ),
        case(
            "a checkpoint of CRI-O",
            |s| {
                let key = "io.kubernetes.cri-o.annotations.checkpoint.name";
                push_with(s, "annotations", json!({key: "x"}));
            },
            malformed,
            checkpoint,
        ),
        case(
            "a manifest of more than 4 MiB",
            |s| push_with(s, "annotations", json!({"a": "x".repeat(4 << 20)})),
            "limit_exceeded",
            "tag v1: {host} sent more than 4194304 bytes, which is the limit",
        ),
        case(
            "no JSON",
            |s| push(s, IMAGE_MANIFEST, "\x1b[2Jnot JSON"),
            malformed,
            "the manifest cannot be read: expected value at line 1 column 1",
        ),
        case(
            "nothing",
            |s| push(s, IMAGE_MANIFEST, ""),
            malformed,
            "the manifest cannot be read: EOF while parsing a value at line 1 column 0",
        ),
        case(
            "a deep one",
            |s| push(s, IMAGE_MANIFEST, "[".repeat(1 << 20)),
            malformed,
            "the manifest cannot be read: recursion limit exceeded at line 1 column 128",
        ),
        case(
            "an index that is sent as an image",
            |s| {
                let text = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []});
                push(s, IMAGE_MANIFEST, text.to_string());
            },
            malformed,
            "the registry sends the manifest as \"application/vnd.oci.image.manifest.v1+json\", the \
             manifest says \"application/vnd.oci.image.index.v1+json\"",
        ),
        case(
            "another type in the header",
            |s| {
                push_with(s, "annotations", json!({}));
                s.fault(Match::manifest(&s.repository, "v1"), Fault::ContentType("text/html"));
            },
            malformed,
            "the registry sends the manifest as \"text/html\", which is no image manifest or index",
        ),
        case(
            "an index in the header",
            |s| {
                push_with(s, "annotations", json!({}));
                s.fault(Match::manifest(&s.repository, "v1"), Fault::ContentType(IMAGE_INDEX));
            },
            malformed,
            "the registry sends the manifest as \"application/vnd.oci.image.index.v1+json\", the \
             manifest says \"application/vnd.oci.image.manifest.v1+json\"",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_digest_is_those_bytes_or_nothing() {
    all_refused(vec![
        Case::new("other bytes for the digest")
            .arrange(|s| {
                s.sign_simple();
                let other = manifest(s).to_string();
                s.name("other", Digest::of(other.as_bytes()));
                let fault = Fault::OtherBytes(other.into());
                s.fault(Match::manifest(&s.repository, s.digest), fault);
            })
            .image("{host}/{repository}@{digest}")
            .refused(
                "digest_mismatch",
                "{pinned}: manifest {digest}: {host} sent {other} instead of {digest}",
            ),
        Case::new("a tag beside the digest of something else")
            .arrange(|s| {
                s.sign_simple();
                s.registry.push_image(&s.repository, "v2");
            })
            .image(
                "{host}/{repository}:v1@sha256:\
                 e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa",
            )
            .refused(
                "image_not_found",
                format!("{{host}}/{{repository}}@{UNKNOWN}: manifest {UNKNOWN}: {{host}} has none (404 Not Found)"),
            ),
    ])
    .await;
}

/// Whoever moves a tag between the judgement and the pull gains nothing: the pull is for the
/// bytes that were judged. Everything else of the request is as its caller wrote it.
#[tokio::test]
async fn what_was_judged_is_what_is_pulled() {
    let (registry, key) = (TestRegistry::start(), Signer::new());
    let digest = registry.push_image("app", "v1");
    key.sign_simple(&registry, "app", digest);
    let evil: &[u8] = br#"{"schemaVersion":2,"config":{"mediaType":"x/y","size":2,"digest":"sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa"},"layers":[]}"#;
    registry.fault(
        Match::manifest("app", "v1").starting_at(2),
        Fault::OtherBytes(Bytes::from_static(evil)),
    );
    let runtime = FakeRuntime::start(pulling);
    let images = format!("{}/app", registry.host());
    let setup = Setup::before(runtime.socket());
    let gate = setup.policy("p.yaml", &policy("app", &images, &[("release", &key)])).start();

    // `PullImageRequest` by hand: credentials first, an annotation and an unknown field within
    // the image, an unknown message and an unknown number behind it.
    let request = |image: &str| {
        let spec = [
            b"\xf8\x07\x05".as_slice(),
            &field(1, image.as_bytes()),
            &field(2, b"\x0a\x01k\x12\x01v"),
        ];
        let sandbox = field(1, &[field(1, b"web-0"), field(3, b"shop")].concat());
        [
            field(2, &field(1, b"")),
            field(1, &spec.concat()),
            field(3, &sandbox),
            field(15, b"\xff\x00not UTF-8"),
            b"\xf8\x07\x05".to_vec(),
        ]
        .concat()
    };
    let tag = format!("{images}:v1");
    let client = gate.client().await;
    let answer = client.call(PULL_IMAGE, &[("x-mine", "kept")], framed(&request(&tag))).await;
    assert_eq!(answer.status(), (0, String::new()));

    let calls = runtime.take();
    let mut paths: Vec<_> = calls.iter().map(|call| call.head.uri.path()).collect();
    let images_service = "/containerd.services.images.v1.Images";
    let (get, create) = (format!("{images_service}/Get"), format!("{images_service}/Create"));
    paths[1..3].sort_unstable(); // asked side by side
    assert_eq!(paths, [PULL_IMAGE, &get, IMAGE_STATUS, &get, IMAGE_STATUS, &create, IMAGE_STATUS]);
    assert_eq!(calls[0].body, framed(&request(&format!("{images}@{digest}"))));
    assert_eq!(calls[0].head.headers["x-mine"], "kept");
    let record = &gate.records("pull")[0];
    assert_eq!(record["decision"], "allow");
    assert_eq!(record["image"]["digest"], digest.to_string());

    // The second request finds the other bytes, which nobody signed.
    let refused = client.unary(PULL_IMAGE, &pull(&tag, "shop")).await.status();
    let evil = Digest::of(evil);
    assert_eq!(
        refused,
        (
            2,
            format!(
                "SignatureValidationFailed: {images}@{evil}: policy \"app\" requires 1 of 1 \
                 authority: \"release\": no signature found"
            )
        )
    );
    assert_eq!(runtime.paths(), Vec::<String>::new());
}

/// A length-delimited field of fewer than 128 bytes.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, value.len().try_into().unwrap()], value].concat()
}
