//! Signatures made on the spot, in cosign's formats, for content that only a test has.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use portcullis::image::Digest;
use serde_json::{Value, json};

use super::registry::TestRegistry;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The predicate type of an image signature.
pub(crate) const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// A throw-away P-256 key.
pub(crate) struct Signer(EcdsaKeyPair);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    /// What identifies the key: SHA-256 over its SubjectPublicKeyInfo.
    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.spki())
    }

    fn spki(&self) -> Vec<u8> {
        // SubjectPublicKeyInfo of a P-256 point (RFC 5480).
        let mut spki = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00".to_vec();
        spki.extend_from_slice(self.0.public_key().as_ref());
        spki
    }

    /// The public key in PEM, indented for YAML.
    pub(crate) fn pem(&self, indent: usize) -> String {
        let body = STANDARD.encode(self.spki());
        let lines = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
        let lines = ["-----BEGIN PUBLIC KEY-----"]
            .into_iter()
            .chain(lines)
            .chain(["-----END PUBLIC KEY-----"]);
        lines.map(|line| format!("{:indent$}{line}\n", "")).collect()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }

    /// A layer of a `.sig` manifest: the payload goes into the registry.
    pub(crate) fn simple_layer(
        &self,
        registry: &TestRegistry,
        repository: &str,
        payload: &[u8],
    ) -> Value {
        let digest = registry.push_blob(repository, payload.to_vec());
        json!({
            "mediaType": SIMPLE_SIGNING,
            "digest": digest.to_string(),
            "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(self.sign(payload))},
        })
    }

    /// Signs as cosign 2 does: the tag `sha256-….sig`.
    pub(crate) fn sign_simple(&self, registry: &TestRegistry, repository: &str, digest: Digest) {
        let layer = self.simple_layer(registry, repository, &simple_payload(digest));
        push_simple(registry, repository, digest, vec![layer]);
    }

    /// Signs as cosign 3 does: a bundle as referrer.
    pub(crate) fn sign_bundle(&self, registry: &TestRegistry, repository: &str, digest: Digest) {
        let statement = statement(digest, SIGN);
        push_bundle(registry, repository, digest, &self.bundle(&statement));
    }

    /// A bundle around a statement.
    pub(crate) fn bundle(&self, statement: &Value) -> Vec<u8> {
        let payload = statement.to_string();
        let kind = "application/vnd.in-toto+json";
        let message = format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len());
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "test"}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&payload),
                "payloadType": kind,
                "signatures": [{"sig": STANDARD.encode(self.sign(message.as_bytes()))}],
            },
        });
        bundle.to_string().into_bytes()
    }
}

/// The payload that cosign 2 signs.
pub(crate) fn simple_payload(digest: Digest) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "registry.example.com/app"},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": "cosign container image signature",
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

/// The statement that cosign 3 signs.
pub(crate) fn statement(digest: Digest, predicate_type: &str) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex()}, "annotations": {}}],
        "predicateType": predicate_type,
        "predicate": {},
    })
}

/// The `.sig` manifest with these layers.
pub(crate) fn push_simple(
    registry: &TestRegistry,
    repository: &str,
    digest: Digest,
    layers: Vec<Value>,
) -> Digest {
    let config = registry.push_blob(repository, b"{}".to_vec());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 2},
        "layers": layers,
    });
    registry.push_json(repository, Some(&format!("sha256-{}.sig", digest.hex())), &manifest)
}

/// A bundle as referrer of an image.
pub(crate) fn push_bundle(
    registry: &TestRegistry,
    repository: &str,
    subject: Digest,
    bundle: &[u8],
) -> Digest {
    let config = registry.push_blob(repository, b"{}".to_vec());
    let layer = registry.push_blob(repository, bundle.to_vec());
    let subject = registry.descriptor(repository, subject);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [{"mediaType": BUNDLE, "digest": layer.to_string(), "size": bundle.len()}],
        "subject": subject,
    });
    registry.push_json(repository, None, &manifest)
}

/// An `ImagePolicy` with these keys, any of which will do.
pub(crate) fn policy(name: &str, images: &str, keys: &[(&str, &Signer)]) -> String {
    let mut text = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         match: {{images: [{images:?}]}}\n  authorities:\n"
    );
    for (name, key) in keys {
        text += &format!("    - name: {name}\n      publicKey:\n        pem: |\n{}", key.pem(10));
    }
    text
}
