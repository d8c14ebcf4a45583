use aws_lc_rs::signature as aws;
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE};
use serde_json::{Value, json};

use super::*;
use crate::{
    evidence::{Evidence, UntrustedBody, UntrustedClaim},
    policy::{Text, Texts},
    resolve::Fetched,
    verify::{pre_authentication, testing::Pair},
};

mod keys;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(super) fn text(name: &str, text: &str) -> Text {
    Text { name: name.into(), text: text.into() }
}

pub(super) fn payload() -> Payload {
    Payload {
        revision: 7,
        expires_at: Some("2026-12-01T00:00:00Z".parse().unwrap()),
        texts: Texts {
            files: vec![text("p.yaml", "spec: é\n")], keys: vec![text("k.pub", "PEM")]
        },
    }
}

fn json_payload() -> Value {
    serde_json::from_slice(&payload().write().unwrap()).unwrap()
}

fn envelope(payload: &[u8], kind: &str, signers: &[&Pair]) -> Value {
    let message = pre_authentication(kind, payload);
    let signatures =
        signers.iter().map(|pair| json!({"sig": STANDARD.encode(pair.sign(&message))}));
    json!({
        "payload": STANDARD.encode(payload),
        "payloadType": kind,
        "signatures": signatures.collect::<Vec<_>>(),
    })
}

fn sealed(value: &Value) -> Result<Sealed, BundleError> {
    Sealed::parse(value.to_string().into_bytes())
}

/// Signs whatever payload by a key, and opens it with that key.
fn opened(payload: &Value) -> Result<Offer, BundleError> {
    let pair = Pair::Ed25519(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
    let payload = payload.to_string().into_bytes();
    sealed(&envelope(&payload, PAYLOAD_TYPE, &[&pair]))?.open(&[pair.public()])
}

#[track_caller]
fn refused(payload: &Value, why: &str) {
    let error = opened(payload).unwrap_err().to_string();
    assert_eq!(error.split(" at line ").next(), Some(why));
}

#[test]
fn a_payload_is_written_and_read() {
    let Payload { revision, expires_at, texts } = payload();
    let offer = opened(&json_payload()).unwrap();
    assert_eq!(
        (offer.texts, offer.revision, offer.expires_at),
        (texts, Some(revision), expires_at)
    );
    let bytes = payload().write().unwrap();
    assert_eq!(Payload::read(&bytes).unwrap(), payload());
    let plain = Payload { expires_at: None, ..payload() };
    let plain = Payload { texts: Texts { keys: Vec::new(), ..plain.texts }, ..plain };
    assert_eq!(
        String::from_utf8(plain.write().unwrap()).unwrap(),
        "{\n  \"apiVersion\": \"portcullis.dev/v1alpha1\",\n  \"kind\": \"PolicyBundle\",\n  \
         \"revision\": 7,\n  \"files\": [\n    {\n      \"name\": \"p.yaml\",\n      \"text\": \
         \"spec: é\\n\"\n    }\n  ]\n}\n"
    );
}

#[test]
fn what_would_not_be_read_is_not_written() {
    let error = |payload: Payload| payload.write().unwrap_err();
    let never = Payload { expires_at: Some(jiff::Timestamp::MAX), ..payload() };
    assert!(matches!(error(never), PayloadError::ExpiresAt(_)));
    assert_eq!(error(Payload { revision: 0, ..payload() }), PayloadError::Revision(0));
    assert_eq!(error(Payload { texts: Texts::default(), ..payload() }), PayloadError::Empty);
}

#[test]
fn a_signed_payload_that_is_no_bundle_is_refused() {
    let with = |key: &str, value: Value| {
        let mut payload = json_payload();
        payload[key] = value;
        payload
    };
    let file = json!({"name": "a", "text": ""});
    for (key, value, why) in [
        (
            "kind",
            json!("ImagePolicy"),
            "has a payload of kind \"ImagePolicy\" instead of \"PolicyBundle\"",
        ),
        (
            "apiVersion",
            json!("portcullis.dev/v2"),
            "has a payload of apiVersion \"portcullis.dev/v2\", and this program reads \
             \"portcullis.dev/v1alpha1\"",
        ),
        (
            "revision",
            json!(0),
            "has revision 0; whole numbers from 1 to 9007199254740991 are expected",
        ),
        (
            "revision",
            json!(1u64 << 53),
            "has revision 9007199254740992; whole numbers from 1 to 9007199254740991 are expected",
        ),
        (
            "expiresAt",
            json!("tomorrow"),
            "has an expiresAt that cannot be read: \"tomorrow\" is no time; write it as in \
             2026-01-01T00:00:00Z (RFC 3339)",
        ),
        ("files", json!([]), "has no files, and so no policy"),
        ("files", json!([file, file]), "has the name \"a\" twice in its files"),
        ("keys", json!([file, file]), "has the name \"a\" twice in its keys"),
        (
            "files",
            json!([{"name": "a\u{1b}", "text": ""}]),
            "has a name in its files that is empty, longer than 4095 bytes or has control \
             characters: \"a\\u{1b}\"",
        ),
        (
            "more",
            json!(1),
            "has a payload that is no PolicyBundle: unknown field `more`, expected one of \
          `apiVersion`, `kind`, `revision`, `expiresAt`, `files`, `keys`",
        ),
    ] {
        let error = opened(&with(key, value)).unwrap_err().to_string();
        assert_eq!(error.split(" at line ").next(), Some(why));
    }
    for (key, value) in [
        ("revision", json!(-1)),
        ("revision", json!(1.5)),
        ("revision", json!("7")),
        ("expiresAt", Value::Null),
        ("keys", Value::Null),
        ("files", json!([{"name": "a"}])),
        ("files", json!([{"name": "a", "text": "", "mode": 1}])),
        ("files", json!(vec![json!({"name": "a", "text": ""}); 10_001])),
    ] {
        let error = opened(&with(key, value.clone())).unwrap_err();
        assert!(matches!(error, BundleError::Payload(PayloadError::Json(_))), "{value}: {error}");
    }
    for missing in ["apiVersion", "kind", "revision", "files"] {
        let mut payload = json_payload();
        payload.as_object_mut().unwrap().remove(missing);
        refused(
            &payload,
            &format!("has a payload that is no PolicyBundle: missing field `{missing}`"),
        );
    }
    let twice = json_payload().to_string().replacen('{', r#"{"revision":9,"#, 1);
    let error = Payload::read(twice.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("duplicate key \"revision\""), "{error}");
    let trailing = [payload().write().unwrap(), b"{}".to_vec()].concat();
    assert!(Payload::read(&trailing).unwrap_err().to_string().contains("trailing characters"));
}

#[test]
fn what_is_larger_than_allowed_is_not_read() {
    let long = vec![b' '; MAX_BUNDLE + 1];
    let error = Sealed::parse(long).unwrap_err().to_string();
    assert_eq!(error, "has 26214401 bytes, 26214400 are allowed for a bundle of policies");
    let error = Payload::read(&vec![b' '; (18 << 20) + 1]).unwrap_err().to_string();
    assert_eq!(error, "has a payload of 18874369 bytes, 18874368 are allowed");
    let files = (0..17).map(|n| text(&n.to_string(), &"x".repeat(1 << 20))).collect();
    let large = Payload { texts: Texts { files, keys: Vec::new() }, ..payload() };
    let error = large.write().unwrap_err().to_string();
    assert_eq!(error, "has 17825792 bytes of policies, 16777216 are allowed");
}

#[test]
fn the_largest_set_has_room_in_an_envelope() {
    // Lines as short as those of policies: each costs JSON one more byte.
    let line = "          - sha256:0123456789abcdef\n";
    let file = line.repeat((1 << 20) / line.len());
    let files = (0..16).map(|n| text(&n.to_string(), &file)).collect();
    let largest = Payload { texts: Texts { files, keys: Vec::new() }, ..payload() };
    let key = SigningKey::from_pem(keys::ED25519).unwrap();
    let signed = sign(&largest.write().unwrap(), &key).unwrap();
    let offer = Sealed::parse(signed.bytes).unwrap().open(&[key.public().clone()]).unwrap();
    assert_eq!(offer.texts, largest.texts);
}

#[test]
fn any_one_pinned_key_suffices_and_no_other_does() {
    let (one, two, other) = (Pair::p256(), Pair::rsa(&aws::RSA_PSS_SHA256), Pair::p256());
    let bytes = payload().write().unwrap();
    let both = sealed(&envelope(&bytes, PAYLOAD_TYPE, &[&one, &two])).unwrap();
    let signers = |keys: &[&Pair]| {
        let keys: Vec<_> = keys.iter().map(|pair| pair.public()).collect();
        both.open(&keys).map(|offer| offer.sealed.unwrap().signers().to_vec())
    };
    assert_eq!(signers(&[&one]), Ok(vec![one.public().id()]));
    assert_eq!(signers(&[&two, &other]), Ok(vec![two.public().id()]));
    assert_eq!(signers(&[&other, &two, &one]), Ok(vec![two.public().id(), one.public().id()]));
    let message = "is not signed by a pinned key: it carries 2 signatures";
    assert_eq!(signers(&[&other]).unwrap_err().to_string(), message);
    let message = "cannot be believed: no key is pinned";
    assert_eq!(signers(&[]).unwrap_err().to_string(), message);
}

#[test]
fn what_is_opened_is_opened_again_from_the_bytes_that_it_keeps() {
    let pair = Pair::p256();
    let bytes = envelope(&payload().write().unwrap(), PAYLOAD_TYPE, &[&pair]).to_string();
    let offer = Sealed::parse(bytes.clone().into_bytes()).unwrap().open(&[pair.public()]).unwrap();
    let kept = offer.sealed.clone().unwrap();
    assert_eq!(**kept.bytes(), *bytes.as_bytes());
    let again = Sealed::parse(kept.bytes().clone()).unwrap();
    assert_eq!(again.open(&[pair.public()]), Ok(offer));
    assert!(again.open(&[Pair::p256().public()]).is_err());
}

#[test]
fn an_envelope_is_left_at_the_first_key_that_is_not_its_own() {
    let refused = |text: &str| Sealed::parse(text.as_bytes()).unwrap_err().to_string();
    // Whoever looks for equal keys first has remembered millions of others.
    assert!(refused(r#"{"a":1,"b":1,"b":1}"#).contains("unknown field `a`"));
    assert!(refused(r#"{"payload":"","payload":""}"#).contains("duplicate field `payload`"));
    let twice = r#"{"payload":"","payloadType":"","signatures":[{"sig":"","sig":""}]}"#;
    assert!(refused(twice).contains("duplicate field `sig`"));
}

#[test]
fn an_envelope_is_read_strictly() {
    let pair = Pair::p256();
    let bytes = payload().write().unwrap();
    let good = envelope(&bytes, PAYLOAD_TYPE, &[&pair]);
    let with = |key: &str, value: Value| {
        let mut envelope = good.clone();
        envelope[key] = value;
        sealed(&envelope).unwrap_err().to_string()
    };
    assert_eq!(with("signatures", json!([])), "carries no signature");
    assert_eq!(
        with("payload", json!("é")),
        "is no signed bundle of policies: its payload is no base64"
    );
    assert_eq!(
        with("signatures", json!([{"sig": "_+"}])),
        "is no signed bundle of policies: its signature is no base64"
    );
    assert_eq!(
        with("payloadType", json!("application/vnd.in-toto+json")),
        "is a signed document of type \"application/vnd.in-toto+json\", and not of \
         \"application/vnd.portcullis.policy-bundle.v1alpha1+json\""
    );
    let signature = good["signatures"][0].clone();
    let many = with("signatures", json!(vec![signature; 9]));
    assert!(many.contains("invalid length 9, expected a list of at most 8"), "{many}");
    for (key, value) in [
        ("more", json!(1)),
        ("signatures", Value::Null),
        ("signatures", json!([{"sig": "", "cert": ""}])),
        ("payload", json!(1)),
    ] {
        assert!(with(key, value).starts_with("is no signed bundle of policies (a DSSE"), "{key}");
    }
    let text = good.to_string();
    for wrong in [
        text.replacen('{', r#"{"payload":"","#, 1),
        text.replacen(r#"{"sig""#, r#"{"sig":"","sig""#, 1),
        text.clone() + "{}",
        text.clone() + "\0",
        format!("[{text}]"),
    ] {
        assert!(matches!(Sealed::parse(wrong.into_bytes()), Err(BundleError::Envelope(_))));
    }
    let unsigned = Sealed::parse(bytes).unwrap_err().to_string();
    assert_eq!(
        unsigned,
        "is a bundle of policies that nobody signed; \"portcullis policy sign\" signs it"
    );
}

#[test]
fn a_key_id_is_a_hint_and_both_alphabets_are_base64() {
    let (pair, other) = (Pair::p256(), Pair::p256());
    let mut value = envelope(&payload().write().unwrap(), PAYLOAD_TYPE, &[&pair]);
    value["signatures"][0]["keyid"] = json!(other.public().id().to_string());
    assert!(sealed(&value).unwrap().open(&[pair.public()]).is_ok());
    assert!(sealed(&value).unwrap().open(&[other.public()]).is_err());
    let signature = STANDARD.decode(value["signatures"][0]["sig"].as_str().unwrap()).unwrap();
    value["signatures"][0]["sig"] = json!(URL_SAFE.encode(signature));
    assert!(sealed(&value).unwrap().open(&[pair.public()]).is_ok());
}

#[test]
fn a_signature_over_anything_else_is_none() {
    let pair = Pair::p256();
    let bytes = payload().write().unwrap();
    let mut value = envelope(&bytes, PAYLOAD_TYPE, &[&pair]);
    let refuses = |value: &Value| {
        let error = sealed(value).unwrap().open(&[pair.public()]).unwrap_err();
        assert_eq!(error, BundleError::NotSigned("it carries 1 signature".into()));
    };
    // By the same key over the payload itself, or as a document of another type.
    for message in [bytes.clone(), pre_authentication("application/vnd.in-toto+json", &bytes)] {
        value["signatures"] = json!([{"sig": STANDARD.encode(pair.sign(&message))}]);
        refuses(&value);
    }
    let good = envelope(&bytes, PAYLOAD_TYPE, &[&pair]);
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let mut value = good.clone();
        value["payload"] = json!(STANDARD.encode(changed));
        refuses(&value);
    }
    let mut value = good.clone();
    value["payload"] = json!(STANDARD.encode([&bytes[..], b"\n"].concat()));
    refuses(&value);
}

#[test]
fn cut_off_anywhere_it_is_none() {
    let pair = Pair::Ed25519(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
    let keys = [pair.public()];
    let envelope = envelope(&payload().write().unwrap(), PAYLOAD_TYPE, &[&pair]).to_string();
    let (kept, key) = artifact();
    for (whole, keys) in [(envelope.as_bytes(), &keys), (&kept.bytes[..], &[key])] {
        assert!(Sealed::parse(whole).unwrap().open(keys).is_ok());
        for end in 0..whole.len() {
            let cut = Sealed::parse(&whole[..end]).and_then(|sealed| sealed.open(keys));
            assert!(cut.is_err(), "{end} of {} bytes", whole.len());
        }
    }
}

fn manifest(layers: &Value) -> Fetched {
    let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
        "digest": Digest::of(b"{}").to_string()});
    let body =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": layers});
    let body = body.to_string();
    Fetched { digest: Digest::of(body.as_bytes()), media_type: MANIFEST.into(), body: body.into() }
}

fn layer(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// cosign's simple signing of a manifest.
fn claim(manifest: Digest, pair: &Pair) -> UntrustedClaim {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": ""},
            "image": {"docker-manifest-digest": manifest.to_string()},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let signature = pair.sign(&payload);
    let body = UntrustedBody::SimpleSigning { payload, signature };
    UntrustedClaim { subject: manifest, source: "x.sig".into(), body }
}

/// A signed artifact, and the key that signed it.
fn artifact() -> (Sealed, PublicKey) {
    let pair = Pair::p256();
    let bytes = payload().write().unwrap();
    let manifest = manifest(&json!([layer(PAYLOAD_TYPE, &bytes)]));
    let claims = vec![claim(manifest.digest, &pair)];
    let evidence = Evidence { claims, gaps: Vec::new() };
    let artifact = Artifact::new(manifest, &evidence, bytes).unwrap();
    (Sealed::of_artifact(artifact).unwrap(), pair.public())
}

#[test]
fn an_artifact_is_kept_and_verified_again_without_a_registry() {
    let (sealed, key) = artifact();
    let offer = sealed.open(std::slice::from_ref(&key)).unwrap();
    assert_eq!((&offer.texts, offer.revision), (&payload().texts, Some(7)));
    let kept = offer.sealed.clone().unwrap();
    assert_eq!(kept.signers(), [key.id()]);
    let again = Sealed::parse(kept.bytes().clone()).unwrap();
    assert_eq!(again.open(&[Pair::p256().public(), key]), Ok(offer));
    let message = "is not signed by a pinned key: no signature by this key (1 signature found)";
    assert_eq!(again.open(&[Pair::p256().public()]).unwrap_err().to_string(), message);
    assert_eq!(again.open(&[]), Err(BundleError::NoKey));
}

#[test]
fn a_kept_artifact_that_was_changed_is_none() {
    let (sealed, key) = artifact();
    let text = String::from_utf8(sealed.bytes.to_vec()).unwrap();
    let parse = |text: String| Sealed::parse(text.into_bytes()).map_err(|error| error.to_string());
    let error = parse(text.replace("\"revision\": 7", "\"revision\": 8")).unwrap_err();
    assert!(error.starts_with("is no artifact with a bundle of policies: its layer is sha256:"));
    let error = parse(text.replacen("\"version\":1", "\"version\":2", 1)).unwrap_err();
    assert_eq!(
        error,
        "is no kept bundle of policies: its first line is not that of version 1, which is what \
         this program reads"
    );
    // Another manifest, with the digest and the size of another payload: nobody signed that.
    let other = text.split_once("}\n{\n").unwrap().1.replace("\"revision\": 7", "\"revision\": 8");
    let other = format!("{{\n{other}");
    let (old, new) = (Digest::of(&payload().write().unwrap()), Digest::of(other.as_bytes()));
    let (head, _) = text.split_once("}\n{\n").unwrap();
    let forged = head.replace(&old.to_string(), &new.to_string()) + "}\n" + &other;
    let error = parse(forged).unwrap().open(&[key]).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "is not signed by a pinned key: signed by this key, but for another digest"
        )
    );
}

#[test]
fn an_artifact_has_one_layer_that_its_manifest_names() {
    let bytes = payload().write().unwrap();
    let none = Evidence::default();
    let wrong = |manifest: Fetched, payload: &[u8]| {
        Artifact::new(manifest, &none, payload.to_vec()).err().unwrap().to_string()
    };
    let one = layer(PAYLOAD_TYPE, &bytes);
    let prefix = "is no artifact with a bundle of policies: ";
    let layers = wrong(manifest(&json!([one, one])), &bytes);
    assert_eq!(layers, format!("{prefix}it has 2 layers instead of one"));
    assert_eq!(
        wrong(manifest(&json!([])), &bytes),
        format!("{prefix}it has 0 layers instead of one")
    );
    assert_eq!(
        wrong(manifest(&json!([layer("text/plain", &bytes)])), &bytes),
        format!(
            "{prefix}its layer is of type \"text/plain\", and not of \
             \"application/vnd.portcullis.policy-bundle.v1alpha1+json\" or \
             \"application/vnd.portcullis.policy-bundle.v1alpha1.dsse+json\""
        )
    );
    let mut short = one.clone();
    short["size"] = json!(1);
    let size = wrong(manifest(&json!([short])), &bytes);
    assert_eq!(
        size,
        format!("{prefix}its layer has {} bytes, and its manifest says 1", bytes.len())
    );
    let mut long = manifest(&json!([one]));
    long.body = [&long.body[..], &[b' '; 64 << 10]].concat().into();
    assert!(wrong(long, &bytes).contains("are allowed"));
    let mut index = manifest(&json!([one]));
    index.media_type = "application/vnd.oci.image.index.v1+json".into();
    assert!(wrong(index, &bytes).starts_with(prefix));
}

#[test]
fn a_flood_of_signatures_does_not_make_a_bundle_too_large() {
    let pair = Pair::p256();
    let bytes = payload().write().unwrap();
    let manifest = manifest(&json!([layer(PAYLOAD_TYPE, &bytes)]));
    let flood = UntrustedClaim {
        body: UntrustedBody::Bundle { json: vec![b' '; 1 << 20] },
        ..claim(manifest.digest, &pair)
    };
    let mut claims = vec![flood; 30];
    claims.push(claim(manifest.digest, &pair));
    let evidence = Evidence { claims, gaps: Vec::new() };
    let artifact = Artifact::new(manifest, &evidence, bytes).unwrap();
    let sealed = Sealed::of_artifact(artifact).unwrap();
    assert!(sealed.bytes.len() < 4 << 20);
    assert!(sealed.open(&[pair.public()]).is_ok());
}
