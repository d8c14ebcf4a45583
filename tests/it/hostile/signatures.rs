//! Signatures that are there, and do not count.

use serde_json::json;

use crate::support::{
    registry::{Fault, IMAGE_MANIFEST, Match, TestRegistry},
    sign::{SIGN, push_bundle, simple_payload, statement},
};

use super::{Case, Scene, all_refused};

const NONE: &str = "no signature found";
const BY_ANOTHER: &str = "no signature by this key (1 signature found)";
const VULNERABILITIES: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn unreadable(why: &str) -> String {
    format!("no readable signature; 1 of 1 unreadable: {why}")
}

fn open(found: &str, why: &str) -> String {
    format!("{found}; not every signature could be looked up: {why}")
}

/// A bundle by the right key, its JSON changed.
fn bundle_with(scene: &Scene, change: impl FnOnce(&mut serde_json::Value)) {
    let bundle = scene.key.bundle(&statement(scene.digest, SIGN));
    let mut bundle = serde_json::from_slice(&bundle).unwrap();
    change(&mut bundle);
    let bundle = bundle.to_string();
    push_bundle(&scene.registry, &scene.repository, scene.digest, bundle.as_bytes());
}

fn simple_layer(scene: &Scene) -> serde_json::Value {
    scene.key.simple_layer(&scene.registry, &scene.repository, &simple_payload(scene.digest))
}

#[tokio::test]
async fn signatures_that_do_not_count() {
    let api = "a registry without the referrers API";
    all_refused(vec![
        Case::new("unsigned").judged("signature_missing", NONE),
        Case::new(format!("unsigned, {api}"))
            .registry(TestRegistry::builder().no_referrers_api())
            .judged("signature_missing", NONE),
        Case::new("signed by another key")
            .arrange(|s| s.other.sign_simple(&s.registry, &s.repository, s.digest))
            .judged("authority_not_satisfied", BY_ANOTHER),
        Case::new("a bundle by another key")
            .arrange(|s| s.other.sign_bundle(&s.registry, &s.repository, s.digest))
            .judged("authority_not_satisfied", BY_ANOTHER),
        Case::new("the signature of another digest")
            .arrange(|s| {
                let trusted = s.registry.push_image(&s.repository, None);
                s.name("trusted", trusted);
                let layer =
                    s.key.simple_layer(&s.registry, &s.repository, &simple_payload(trusted));
                s.sign_with(vec![layer]);
            })
            .judged("signature_invalid", "signed by this key, but for another digest {trusted}"),
        Case::new("payload changed")
            .arrange(|s| {
                let mut layer = simple_layer(s);
                let mut payload = simple_payload(s.digest);
                payload.push(b'\n');
                layer["digest"] = s.registry.push_blob(&s.repository, payload.clone()).to_string().into();
                layer["size"] = payload.len().into();
                s.sign_with(vec![layer]);
            })
            .judged("authority_not_satisfied", BY_ANOTHER),
        Case::new("signature changed")
            .arrange(|s| {
                let mut layer = simple_layer(s);
                let signature = &mut layer["annotations"]["dev.cosignproject.cosign/signature"];
                let mut text = signature.as_str().unwrap().as_bytes().to_vec();
                text[30] = if text[30] == b'A' { b'B' } else { b'A' };
                *signature = String::from_utf8(text).unwrap().into();
                s.sign_with(vec![layer]);
            })
            .judged("authority_not_satisfied", BY_ANOTHER),
        Case::new("no signature in the annotation")
            .arrange(|s| {
                let mut layer = simple_layer(s);
                layer["annotations"] = json!({"dev.cosignproject.cosign/signature": ""});
                s.sign_with(vec![layer]);
            })
            .judged("signature_invalid", unreadable("its annotation dev.cosignproject.cosign/signature is no base64")),
        Case::new("a scan for vulnerabilities instead of a signature")
            .arrange(|s| {
                let bundle = s.key.bundle(&statement(s.digest, VULNERABILITIES));
                push_bundle(&s.registry, &s.repository, s.digest, &bundle);
            })
            .judged(
                "signature_invalid",
                format!(
                    "signed by this key, but with predicate type {VULNERABILITIES} instead of {SIGN}"
                ),
            ),
        Case::new("a bundle about another image")
            .arrange(|s| {
                let trusted = s.registry.push_image(&s.repository, None);
                s.name("trusted", trusted);
                let bundle = s.key.bundle(&statement(trusted, SIGN));
                push_bundle(&s.registry, &s.repository, s.digest, &bundle);
            })
            .judged("signature_invalid", "signed by this key, but for another digest {trusted}"),
        Case::new("another image's bundle, listed by the fallback tag")
            .registry(TestRegistry::builder().no_referrers_api())
            .arrange(|s| {
                let trusted = s.registry.push_image(&s.repository, None);
                s.name("trusted", trusted);
                s.key.sign_bundle(&s.registry, &s.repository, trusted);
                let index = s.registry.push_fallback_tag(&s.repository, trusted);
                s.registry.tag(&s.repository, &format!("sha256-{}", s.digest.hex()), index);
            })
            .judged("signature_invalid", unreadable("it refers to another image, {trusted}")),
        Case::new("a bundle with two signatures")
            .arrange(|s| {
                bundle_with(s, |bundle| {
                    let signatures = &mut bundle["dsseEnvelope"]["signatures"];
                    let first = signatures[0].clone();
                    *signatures = json!([first, first]);
                });
            })
            .judged("signature_invalid", unreadable("a bundle with 2 signatures instead of one")),
        Case::new("a bundle that names no key and no certificate")
            .arrange(|s| bundle_with(s, |bundle| bundle["verificationMaterial"] = json!({})))
            .judged("signature_invalid", unreadable("a bundle must have either a key or a certificate")),
        Case::new("a bundle of another version")
            .arrange(|s| {
                bundle_with(s, |bundle| {
                    bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into();
                });
            })
            .judged("signature_invalid", unreadable("a bundle of type \"application/vnd.dev.sigstore.bundle+json;version=0.1\", only v0.3 is read")),
        Case::new("a bundle that is no JSON")
            .arrange(|s| {
                push_bundle(&s.registry, &s.repository, s.digest, b"\x1b[31m<html>");
            })
            .judged("signature_invalid", unreadable("malformed bundle: expected value at line 1 column 1")),
        Case::new("a payload that does not match its digest")
            .arrange(|s| {
                let payload = s.registry.push_blob(&s.repository, simple_payload(s.digest));
                s.sign_simple();
                s.name("payload", payload);
                let lie = simple_payload(s.registry.push_image(&s.repository, None));
                s.name("lie", portcullis::image::Digest::of(&lie));
                s.fault(Match::blob(&s.repository, payload), Fault::OtherBytes(lie.into()));
            })
            .judged("signature_invalid", unreadable("blob {payload}: {host} sent {lie} instead of {payload}")),
        Case::new("a signature manifest that is an index")
            .arrange(|s| {
                let index = s.registry.push_index(&s.repository, None, &[]);
                s.registry.tag(&s.repository, &s.sig_tag(), index);
            })
            .judged("signature_invalid", unreadable("an index instead of signatures")),
        Case::new("a signature manifest that is the image itself")
            .arrange(|s| s.registry.tag(&s.repository, &s.sig_tag(), s.digest))
            .judged("signature_invalid", unreadable("a layer of type \"application/vnd.oci.image.layer.v1.tar\"")),
        Case::new("more signatures than are looked at")
            .arrange(|s| {
                let layer =
                    s.other.simple_layer(&s.registry, &s.repository, &simple_payload(s.digest));
                let mut layers = vec![layer; 100];
                layers.push(simple_layer(s));
                s.sign_with(layers);
            })
            .judged("limit_exceeded", open("no signature by this key (100 signatures found)", "there are more signatures than Portcullis looks at, 100 or 16 MiB: remove those that no policy asks for")),
        Case::new("10,000 signatures under the tag")
            .arrange(|s| {
                let layer = simple_layer(s);
                s.sign_with(vec![layer; 10_000]);
            })
            .judged("signature_invalid", unreadable("tag sha256-{hex}.sig: {host} sent more than 1048576 bytes, which is the limit")),
        Case::new("10,000 referrers")
            .arrange(|s| {
                let (manifest, _) = s.sign_bundle();
                let one = json!({
                    "mediaType": IMAGE_MANIFEST, "digest": manifest, "size": 1, "artifactType": BUNDLE,
                });
                let index = json!({
                    "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": vec![one; 10_000],
                });
                let page = Fault::OtherBytes(index.to_string().into());
                s.fault(Match::referrers(&s.repository, s.digest), page);
            })
            .judged("limit_exceeded", open(NONE, "referrers of {digest}: {host} lists more than 1000 referrers, which is the limit")),
        Case::new("pages of referrers without end")
            .arrange(|s| {
                s.sign_bundle();
                let next = format!("</v2/{}/referrers/{}?from=0>; rel=\"next\"", s.repository, s.digest);
                let body = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
                let page = Fault::Status(200, vec![("link", next)], body);
                s.fault(Match::referrers(&s.repository, s.digest), page);
            })
            .judged("limit_exceeded", open(NONE, "referrers of {digest}: {host} lists referrers on more than 64 pages, which is the limit")),
        Case::new("a next page at another host")
            .arrange(|s| {
                s.sign_bundle();
                let next = "<http://127.0.0.1:1/v2/x/referrers/y>; rel=\"next\"".to_owned();
                let body = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
                let page = Fault::Status(200, vec![("link", next)], body);
                s.fault(Match::referrers(&s.repository, s.digest), page);
            })
            .judged("registry_unreachable", open(NONE, "referrers of {digest}: {host} sent a next page that is none of referrers")),
    ])
    .await;
}

#[tokio::test]
async fn signatures_that_are_not_enough() {
    let two = |found: &str| {
        format!(
            "{{pinned}}: policy \"{{repository}}\" requires 2 of 2 authorities, 1 accepted: {found}"
        )
    };
    all_refused(vec![
        Case::new("two signatures by one key of two")
            .arrange(|s| {
                s.sign_simple();
                s.sign_bundle();
            })
            .policy(|s| s.policy("  atLeast: 2\n", &[("first", &s.key), ("second", &s.other)]))
            .refused(
                "authority_not_satisfied",
                two("\"second\": no signature by this key (2 signatures found)"),
            ),
        Case::new("an expired key")
            .arrange(Scene::sign_simple)
            .policy(|s| {
                s.policy("", &[("release", &s.key)]) + "        notAfter: 2026-01-01T00:00:00Z\n"
            })
            .judged("authority_not_satisfied", "key expired 2026-01-01"),
        Case::new("a key of the future")
            .arrange(Scene::sign_simple)
            .policy(|s| {
                s.policy("", &[("release", &s.key)]) + "        notBefore: 2999-01-01T12:00:00Z\n"
            })
            .judged("authority_not_satisfied", "key not valid before 2999-01-01T12:00:00Z"),
        Case::new("an annotation that was not signed")
            .arrange(Scene::sign_simple)
            .policy(|s| s.policy("", &[("release", &s.key)]) + "        annotations: {env: prod}\n")
            .judged(
                "authority_not_satisfied",
                "signed by this key, but annotation \"env\" is missing, not \"prod\"",
            ),
        Case::new("one of two policies is satisfied")
            .arrange(Scene::sign_simple)
            .policy(|s| {
                let other = s.policy("", &[("audit", &s.other)]);
                let other = other.replace(&format!("name: {}}}", s.repository), "name: zz-second}");
                s.policy("", &[("release", &s.key)]) + "---\n" + &other
            })
            .refused(
                "authority_not_satisfied",
                format!(
                    "{{pinned}}: policy \"zz-second\" requires 1 of 1 authority: \"audit\": {BY_ANOTHER}"
                ),
            ),
        Case::new("an index of which only the other platform's child is signed")
            .arrange(|s| {
                let amd64 = s.registry.push_image(&s.repository, None);
                let arm64 = s.registry.push_image(&s.repository, None);
                let children = [(amd64, "amd64"), (arm64, "arm64")];
                let index = s.registry.push_index(&s.repository, Some("v1"), &children);
                let foreign = if cfg!(target_arch = "aarch64") { amd64 } else { arm64 };
                s.key.sign_simple(&s.registry, &s.repository, foreign);
                s.name("index", format!("{}/{}@{index}", s.registry.host(), s.repository));
            })
            .refused(
                "signature_missing",
                format!(
                    "{{index}}: policy \"{{repository}}\" requires 1 of 1 authority: \"release\": {NONE}"
                ),
            ),
        Case::new("an index with two children for this platform, one of them signed")
            .arrange(|s| {
                let this = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
                let signed = s.registry.push_image(&s.repository, None);
                let children = [(signed, this), (s.digest, this)];
                let index = s.registry.push_index(&s.repository, Some("v1"), &children);
                s.key.sign_simple(&s.registry, &s.repository, signed);
                s.name("index", format!("{}/{}@{index}", s.registry.host(), s.repository));
            })
            .refused(
                "signature_missing",
                format!(
                    "{{index}}: policy \"{{repository}}\" requires 1 of 1 authority: \"release\": {NONE}"
                ),
            ),
    ])
    .await;
}
