//! What is signed: a key accepts a text only if every reader finds in it what the key vouches
//! for, and nothing that the key did not sign.
#![allow(clippy::unwrap_used, reason = "a panic is how a property says that it does not hold")]

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::json;

use crate::{image::Digest, properties::Json};

use super::{PublicKey, bundle, finding::Finding, simple};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const IMAGE_SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// cosign's key, the bundle that it made (`cosign3/ecdsa-p256`), and the image that is signed.
const COSIGN: &str = include_str!("../../fixtures/keys/ecdsa-p256.pub");
const GENUINE: &[u8] = include_bytes!(
    "../../fixtures/registry/blobs/sha256/314fa8f8d82a4aa183b3dc156684f5823b241d1f51eed6612148086c7fa5de65"
);
const SIGNED: &str = "sha256:5e4d2e4ad85772eb5f1601e3de61fddaa85db6c0113233a7ecbb85b306c9f0c3";

/// A key that signs whatever it is given.
static OURS: LazyLock<(SigningKey, PublicKey)> = LazyLock::new(|| {
    let pair = SigningKey::from_bytes(&[7; 32]);
    let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let point = pair.verifying_key().to_bytes();
    let base64 = STANDARD.encode([&head[..], &point].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n");
    (pair, PublicKey::from_pem(&pem).unwrap())
});

static THEIRS: LazyLock<PublicKey> = LazyLock::new(|| PublicKey::from_pem(COSIGN).unwrap());

/// What the seeds are about.
fn image() -> Digest {
    Digest::of(b"image")
}

fn wanted() -> BTreeMap<String, String> {
    [("env".to_owned(), "prod".to_owned())].into()
}

/// A payload that the key did sign.
pub(crate) fn simple(input: &[u8]) {
    let (pair, key) = &*OURS;
    let signature = pair.sign(input).to_bytes();
    let none = BTreeMap::new();
    let check = |payload: &[u8], subject, wanted: &BTreeMap<String, String>| {
        simple::check(payload, &signature, key, subject, wanted)
    };
    let changed = [input, b" "].concat();
    assert_eq!(check(&changed, image(), &none), Finding::NotByKey);
    let with = check(input, image(), &wanted());
    match check(input, image(), &none) {
        Finding::Holds => {}
        Finding::Short(why) => {
            assert_ne!(with, Finding::Holds);
            assert!(why.why().len() < 4000 && why.why().chars().all(|c| !c.is_control()));
            return;
        }
        other => panic!("{other:?}, although the key signed it"),
    }
    assert_ne!(check(input, Digest::of(b"other"), &none), Finding::Holds);
    let payload = Json::read(input);
    let critical = payload.get("critical").unwrap();
    let digest = critical.get("image").and_then(|image| image.get("docker-manifest-digest"));
    assert_eq!(digest.and_then(Json::text), Some(&*image().to_string()));
    let kind = critical.get("type").and_then(Json::text);
    assert_eq!(kind, Some("cosign container image signature"));
    assert!(critical.get("identity").unwrap().get("docker-reference").is_some());
    let signed = payload.get("optional").and_then(|optional| exact(optional, "env"));
    assert_eq!(with == Finding::Holds, signed == Some("prod"));
}

/// The text that Go's map has under this key.
fn exact<'a>(object: &'a Json, key: &str) -> Option<&'a str> {
    let Json::Object(entries) = object else { return None };
    entries.iter().rfind(|(name, _)| name == key).and_then(|(_, value)| value.text())
}

/// A bundle: no change of it makes the key vouch for anything that it did not sign.
pub(crate) fn bundle(input: &[u8]) {
    let none = BTreeMap::new();
    let signed: Digest = SIGNED.parse().unwrap();
    let check = |subject, wanted| bundle::check(input, &THEIRS, subject, wanted);
    let finding = check(signed, &none);
    assert_eq!(check(signed, &none), finding);
    assert_ne!(check(image(), &none), Finding::Holds);
    if let Finding::Unreadable(why) = &finding {
        assert!(why.len() < 4000 && why.chars().all(|c| !c.is_control()), "{why:?}");
    }
    if finding != Finding::Holds {
        return;
    }
    assert_ne!(check(signed, &wanted()), Finding::Holds, "an annotation that nobody signed");
    let (bundle, genuine) = (Json::read(input), Json::read(GENUINE));
    let payload = |bundle: &Json| {
        let envelope = bundle.get("dsseEnvelope").unwrap();
        assert_eq!(envelope.get("payloadType").and_then(Json::text), Some(PAYLOAD_TYPE));
        assert_eq!(envelope.get("signatures").unwrap().list().len(), 1);
        STANDARD.decode(envelope.get("payload").and_then(Json::text).unwrap()).unwrap()
    };
    assert_eq!(payload(&bundle), payload(&genuine), "a payload that the key did not sign");
    assert_eq!(bundle.get("messageSignature"), None);
    let material = bundle.get("verificationMaterial").unwrap();
    assert!(material.get("publicKey").is_some());
    assert_eq!((material.get("certificate"), material.get("x509CertificateChain")), (None, None));
}

/// A DSSE envelope that the key did sign: the first byte says how much of the rest is its type.
pub(crate) fn dsse(input: &[u8]) {
    let Some((length, rest)) = input.split_first() else { return };
    let Some((kind, payload)) = rest.split_at_checked(*length as usize) else { return };
    let Ok(kind) = str::from_utf8(kind) else { return };
    let (pair, key) = &*OURS;
    let none = BTreeMap::new();
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let encoding = [head.as_bytes(), payload].concat();
    let signature = pair.sign(&encoding).to_bytes();
    let check = |kind: &str, payload: &[u8], signatures: usize, subject| {
        let signature = json!({"sig": STANDARD.encode(signature)});
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": ""}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload),
                "payloadType": kind,
                "signatures": vec![signature; signatures],
            },
        });
        bundle::check(bundle.to_string().as_bytes(), key, subject, &none)
    };
    let finding = check(kind, payload, 1, image());
    // What stands at the end of the type is not what begins the payload.
    if let Some(end) = kind.chars().next_back() {
        let (short, moved) = kind.split_at(kind.len() - end.len_utf8());
        let moved = [moved.as_bytes(), payload].concat();
        assert_eq!(check(short, &moved, 1, image()), Finding::NotByKey);
    }
    for signatures in [0, 2] {
        assert!(matches!(check(kind, payload, signatures, image()), Finding::Unreadable(_)));
    }
    match finding {
        Finding::Holds => {}
        Finding::Short(_) => return,
        other => panic!("{other:?}, although the key signed it"),
    }
    assert_eq!(kind, PAYLOAD_TYPE);
    let statement = Json::read(payload);
    assert_eq!(
        statement.get("_type").and_then(Json::text),
        Some("https://in-toto.io/Statement/v1")
    );
    assert_eq!(statement.get("predicateType").and_then(Json::text), Some(IMAGE_SIGNATURE));
    let subjects = statement.get("subject").unwrap().list();
    let names =
        |subject: &Json| exact(subject.get("digest").unwrap(), "sha256") == Some(&image().hex());
    assert!(subjects.iter().any(names));
}
