//! One key against claims of every kind: what holds, and what is said of what does not.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{testing::Pair, *};
use crate::image::PinnedImage;

const INDEX: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const CHILD: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const OTHER: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// A judgement to be made: one key, an index with a child, and claims.
struct Case {
    pair: Pair,
    window: [Option<&'static str>; 2],
    annotations: &'static [(&'static str, &'static str)],
    evidence: Evidence,
}

impl Case {
    fn new() -> Self {
        Self {
            pair: Pair::p256(),
            window: [None, None],
            annotations: &[],
            evidence: Evidence::default(),
        }
    }

    fn claim(mut self, subject: &str, body: UntrustedBody) -> Self {
        let (subject, source) = (subject.parse().unwrap(), "somewhere".to_owned());
        self.evidence.claims.push(UntrustedClaim { subject, source, body });
        self
    }

    /// A payload, signed by the key as it is.
    fn simple(self, subject: &str, payload: &str) -> Self {
        let signature = self.pair.sign(payload.as_bytes());
        self.claim(
            subject,
            UntrustedBody::SimpleSigning { payload: payload.as_bytes().to_vec(), signature },
        )
    }

    /// A bundle around a statement that the key signed.
    fn statement(self, subject: &str, statement: &Value) -> Self {
        let bundle = bundle(&self.pair, IN_TOTO, &statement.to_string());
        self.bundle(subject, &bundle)
    }

    fn bundle(self, subject: &str, bundle: &Value) -> Self {
        self.claim(subject, UntrustedBody::Bundle { json: bundle.to_string().into_bytes() })
    }

    fn judge_at(&self, now: &str) -> Result<Verified, Missed> {
        let kind = AuthorityKind::PublicKey(PublicKeyAuthority {
            key: self.pair.public(),
            not_before: self.window[0].map(|time| time.parse().unwrap()),
            not_after: self.window[1].map(|time| time.parse().unwrap()),
            annotations: self
                .annotations
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        });
        let image = Resolved {
            image: PinnedImage {
                repository: "registry.example.com/app".parse().unwrap(),
                digest: INDEX.parse().unwrap(),
            },
            child: Some(CHILD.parse().unwrap()),
            id: None,
        };
        let wanted = Authority { name: "release".into(), kind };
        authority(&wanted, &image, &self.evidence, &Revoked::default(), now.parse().unwrap())
    }

    #[track_caller]
    fn accepts(&self, subject: &str) {
        let verified = self.judge_at("2026-06-01T00:00:00Z").unwrap();
        assert_eq!(verified.subject().to_string(), subject);
        assert_eq!(verified.identity(), &Identity::Key(self.pair.public().id()));
    }

    #[track_caller]
    fn misses(&self, code: Code, why: &str) {
        self.misses_at("2026-06-01T00:00:00Z", code, why);
    }

    #[track_caller]
    fn misses_at(&self, now: &str, code: Code, why: &str) {
        let missed = self.judge_at(now).unwrap_err();
        assert_eq!((missed.code, &*missed.why), (code, why));
    }
}

fn payload(digest: &str, optional: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"x"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":{optional}}}"#
    )
}

fn statement(digest: &str) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": SIGN,
        "subject": [{"digest": {"sha256": digest.strip_prefix("sha256:").unwrap()}}],
        "predicate": {},
    })
}

fn bundle(pair: &Pair, payload_type: &str, payload: &str) -> Value {
    let signed =
        format!("DSSEv1 {} {payload_type} {} {payload}", payload_type.len(), payload.len());
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(payload),
            "payloadType": payload_type,
            "signatures": [{"sig": STANDARD.encode(pair.sign(signed.as_bytes()))}],
        },
    })
}

fn good_bundle(pair: &Pair) -> Value {
    bundle(pair, IN_TOTO, &statement(INDEX).to_string())
}

#[test]
fn a_good_signature_holds_in_either_format_on_index_or_child() {
    for digest in [INDEX, CHILD] {
        Case::new().simple(digest, &payload(digest, "null")).accepts(digest);
        Case::new().simple(digest, &payload(digest, r#"{"a":1}"#)).accepts(digest);
        Case::new().statement(digest, &statement(digest)).accepts(digest);
    }
    // The index first, wherever it stands.
    Case::new()
        .statement(CHILD, &statement(CHILD))
        .simple(INDEX, &payload(INDEX, "null"))
        .accepts(INDEX);
    // Among claims of every other kind.
    let stranger = Pair::p256();
    let signed = payload(INDEX, "null").into_bytes();
    let signature = stranger.sign(&signed);
    Case::new()
        .claim(INDEX, UntrustedBody::Unreadable { why: "x".into() })
        .claim(INDEX, UntrustedBody::SimpleSigning { payload: signed, signature })
        .bundle(INDEX, &json!([]))
        .simple(INDEX, &payload(OTHER, "null"))
        .simple(INDEX, &payload(INDEX, "null"))
        .accepts(INDEX);
}

#[test]
fn nothing_is_not_a_signature() {
    Case::new().misses(Code::SignatureMissing, "no signature found");
    // Found at a digest that nobody asked about.
    Case::new()
        .simple(OTHER, &payload(OTHER, "null"))
        .misses(Code::SignatureMissing, "no signature found");
}

#[test]
fn the_subject_is_that_of_the_place_where_it_was_found() {
    Case::new().simple(INDEX, &payload(CHILD, "null")).misses(
        Code::SignatureInvalid,
        &format!("signed by this key, but for another digest {CHILD}"),
    );
    Case::new().statement(CHILD, &statement(INDEX)).misses(
        Code::SignatureInvalid,
        &format!("signed by this key, but for another digest {INDEX}"),
    );
}

#[test]
fn other_keys_are_counted() {
    let (one, other) = (Pair::p256(), Pair::p256());
    let why = "no signature by this key (1 signature found)";
    let case = Case::new().bundle(INDEX, &good_bundle(&one));
    case.misses(Code::AuthorityNotSatisfied, why);
    let payload = payload(INDEX, "null").into_bytes();
    let signature = other.sign(&payload);
    let case = case.claim(INDEX, UntrustedBody::SimpleSigning { payload, signature });
    case.misses(Code::AuthorityNotSatisfied, "no signature by this key (2 signatures found)");
    let mut certificate = good_bundle(&case.pair);
    certificate["verificationMaterial"] = json!({"certificate": {"rawBytes": ""}});
    case.bundle(CHILD, &certificate).bundle(CHILD, &json!({})).misses(
        Code::AuthorityNotSatisfied,
        "no signature by this key (3 signatures found, 1 by certificate); 1 of 4 unreadable: \
         malformed bundle: missing field `mediaType` at line 1 column 2",
    );
}

#[test]
fn a_flipped_bit_anywhere_breaks_a_signature() {
    let pair = Pair::p256();
    let payload = payload(INDEX, "null").into_bytes();
    let signature = pair.sign(&payload);
    let mut case = Case { pair, ..Case::new() };
    for byte in 0..payload.len() + signature.len() {
        let (mut payload, mut signature) = (payload.clone(), signature.clone());
        match byte.checked_sub(payload.len()) {
            None => payload[byte] ^= 1,
            Some(byte) => signature[byte] ^= 1,
        }
        case.evidence.claims.clear();
        case = case.claim(INDEX, UntrustedBody::SimpleSigning { payload, signature });
        case.misses(Code::AuthorityNotSatisfied, "no signature by this key (1 signature found)");
    }
}

#[test]
fn every_byte_of_a_statement_and_its_type_is_signed() {
    for (from, to) in [
        ("payload", STANDARD.encode(statement(INDEX).to_string() + " ")),
        ("payloadType", "application/vnd.in-toto+jsom".into()),
        ("payload", String::new()),
    ] {
        let mut case = Case::new();
        let mut bundle = good_bundle(&case.pair);
        bundle["dsseEnvelope"][from] = to.into();
        case = case.bundle(INDEX, &bundle);
        case.misses(Code::AuthorityNotSatisfied, "no signature by this key (1 signature found)");
    }
}

#[test]
fn signed_payloads_are_read_strictly() {
    let good = payload(INDEX, "null");
    for (from, to, why) in [
        (INDEX, OTHER, format!("for another digest {OTHER}")),
        (INDEX, &INDEX.to_uppercase(), format!("for another digest {}", INDEX.to_uppercase())),
        (INDEX, "", "for another digest ".into()),
        (
            "cosign container image signature",
            "atomic container signature",
            "the signed payload is malformed: its type is not \"cosign container image signature\""
                .into(),
        ),
    ] {
        Case::new()
            .simple(INDEX, &good.replace(from, to))
            .misses(Code::SignatureInvalid, &format!("signed by this key, but {why}"));
    }
    for bad in [
        good.replacen('{', r#"{"more":1,"#, 1),
        good.replace(r#""type":"#, r#""more":1,"type":"#),
        good.replace(r#""docker-reference":"#, r#""more":1,"docker-reference":"#),
        good.replace(r#""docker-manifest-digest":"#, r#""more":1,"docker-manifest-digest":"#),
        good.replace(
            r#""image":"#,
            &format!(r#""image":{{"docker-manifest-digest":"{OTHER}"}},"image":"#),
        ),
        good.replace(
            r#""docker-manifest-digest":"#,
            &format!(r#""docker-manifest-digest":"{OTHER}","docker-manifest-digest":"#),
        ),
        good.replace(r#","optional":null"#, ""),
        good.replace(r#""optional":null"#, r#""optional":[]"#),
        good.replace(r#""optional":null"#, r#""optional":{"a":"1","a":"2"}"#),
        good.replace(r#""identity":{"docker-reference":"x"},"#, ""),
        good.replace(r#""x""#, "null"),
        good.clone() + "x",
        good.clone() + &good,
        String::new(),
        "[]".into(),
        format!("\u{feff}{good}"),
    ] {
        let missed = Case::new().simple(INDEX, &bad).judge_at("2026-06-01T00:00:00Z").unwrap_err();
        let start = "signed by this key, but the signed payload is malformed: ";
        assert!(missed.why.starts_with(start), "{bad}: {missed:?}");
        assert_eq!(missed.code, Code::SignatureInvalid);
    }
}

#[test]
fn only_an_image_signature_is_one() {
    let mut scan = statement(INDEX);
    scan["predicateType"] = "https://cosign.sigstore.dev/attestation/vuln/v1".into();
    Case::new().statement(INDEX, &scan).misses(
        Code::SignatureInvalid,
        "signed by this key, but with predicate type \
         https://cosign.sigstore.dev/attestation/vuln/v1 instead of \
         https://sigstore.dev/cosign/sign/v1",
    );
    let case = Case::new();
    let other = bundle(&case.pair, "text/plain", &statement(INDEX).to_string());
    case.bundle(INDEX, &other).misses(
        Code::SignatureInvalid,
        "signed by this key, but the signed payload is malformed: its type is not \
         \"application/vnd.in-toto+json\"",
    );
    let mut old = statement(INDEX);
    old["_type"] = "https://in-toto.io/Statement/v0.1".into();
    Case::new().statement(INDEX, &old).misses(
        Code::SignatureInvalid,
        "signed by this key, but the signed payload is malformed: it is no in-toto Statement v1",
    );
    for (subjects, why) in [
        (json!([]), "the signed payload is malformed: it names no SHA-256 digest"),
        (
            json!([{"digest": {"sha512": INDEX.strip_prefix("sha256:")}}]),
            "the signed payload is malformed: it names no SHA-256 digest",
        ),
        (json!([{"digest": {"sha256": "11"}}]), "for another digest sha256:11"),
        (json!([{"digest": {"sha256": INDEX}}]), &*format!("for another digest sha256:{INDEX}")),
    ] {
        let mut none = statement(INDEX);
        none["subject"] = subjects;
        let why = format!("signed by this key, but {why}");
        Case::new().statement(INDEX, &none).misses(Code::SignatureInvalid, &why);
    }
    for bad in [json!(null), json!([null]), json!([{}]), json!({})] {
        let mut none = statement(INDEX);
        none["subject"] = bad;
        assert!(Case::new().statement(INDEX, &none).judge_at("2026-06-01T00:00:00Z").is_err());
    }
    let case = Case::new();
    let twice = statement(INDEX).to_string().replacen('{', r#"{"subject":[],"#, 1);
    let twice = bundle(&case.pair, IN_TOTO, &twice);
    assert!(case.bundle(INDEX, &twice).judge_at("2026-06-01T00:00:00Z").is_err());
}

#[test]
fn one_of_several_subjects_is_enough() {
    let mut several = statement(OTHER);
    several["subject"].as_array_mut().unwrap().push(statement(INDEX)["subject"][0].clone());
    Case::new().statement(INDEX, &several).accepts(INDEX);
    Case::new().statement(CHILD, &several).misses(
        Code::SignatureInvalid,
        &format!("signed by this key, but for another digest {OTHER}"),
    );
}

#[test]
fn bundles_of_another_shape_are_not_read() {
    let pair = Pair::p256();
    let good = good_bundle(&pair);
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut bundle = good.clone();
        edit(&mut bundle);
        bundle
    };
    let signature = good["dsseEnvelope"]["signatures"][0].clone();
    let one_kind = "a bundle must have either a key or a certificate";
    for (bundle, why) in [
        (
            with(&|b| b["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.2+json".into()),
            "a bundle of type \"application/vnd.dev.sigstore.bundle.v0.2+json\", only v0.3 is read",
        ),
        (with(&|b| b["verificationMaterial"] = json!({})), one_kind),
        (with(&|b| b["verificationMaterial"]["publicKey"] = Value::Null), one_kind),
        (with(&|b| b["verificationMaterial"]["certificate"] = json!({})), one_kind),
        (with(&|b| b["verificationMaterial"]["x509CertificateChain"] = json!({})), one_kind),
        (
            with(&|b| b["messageSignature"] = json!({})),
            "a bundle with a message signature signs no image",
        ),
        (with(&|b| b["dsseEnvelope"] = Value::Null), "a bundle without a signature"),
        (
            with(&|b| b["dsseEnvelope"]["signatures"] = json!([])),
            "a bundle with 0 signatures instead of one",
        ),
        (
            with(&|b| b["dsseEnvelope"]["signatures"] = json!([signature, signature])),
            "a bundle with 2 signatures instead of one",
        ),
        (
            with(&|b| b["dsseEnvelope"]["signatures"][0]["sig"] = "a b".into()),
            "the bundle's signature is no base64",
        ),
        (
            with(&|b| b["dsseEnvelope"]["payload"] = "a_-b".into()),
            "the bundle's payload is no base64",
        ),
    ] {
        let why = format!("no readable signature; 1 of 1 unreadable: {why}");
        let case = Case::new().bundle(INDEX, &bundle);
        Case { pair: Pair::p256(), ..case }.misses(Code::SignatureInvalid, &why);
    }
    let text = good.to_string();
    for bad in [text.clone() + "{}", text.replacen('{', r#"{"dsseEnvelope":null,"#, 1)] {
        let case = Case { pair: Pair::p256(), ..Case::new() };
        let case = case.claim(INDEX, UntrustedBody::Bundle { json: bad.into_bytes() });
        assert_eq!(case.judge_at("2026-06-01T00:00:00Z").unwrap_err().code, Code::SignatureInvalid);
    }
    // Unknown fields, log entries of any quality and the other spelling are fine.
    let mut more = good.clone();
    more["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.3".into();
    more["more"] = json!([1]);
    more["verificationMaterial"]["tlogEntries"] = json!([{"logIndex": "nonsense"}]);
    Case { pair, ..Case::new() }.bundle(INDEX, &more).accepts(INDEX);
}

#[test]
fn annotations_must_be_signed_with_the_same_value() {
    const WANTED: &[(&str, &str)] = &[("env", "prod"), ("team", "shop")];
    for (signed, why) in [
        (json!({"env": "prod", "team": "shop", "more": 1}), None),
        (json!({"env": "dev", "team": "shop"}), Some("\"env\" is \"dev\", not \"prod\"")),
        (json!({"env": "PROD", "team": "shop"}), Some("\"env\" is \"PROD\", not \"prod\"")),
        (json!({"env": "prod"}), Some("\"team\" is missing, not \"shop\"")),
        (json!({"env": ["prod"], "team": "shop"}), Some("\"env\" is no string, not \"prod\"")),
        (json!(null), Some("\"env\" is missing, not \"prod\"")),
    ] {
        let mut statement = statement(INDEX);
        statement["subject"][0]["annotations"] = signed.clone();
        for case in [
            Case::new().simple(INDEX, &payload(INDEX, &signed.to_string())),
            Case::new().statement(INDEX, &statement),
        ] {
            let case = Case { annotations: WANTED, ..case };
            match why {
                None => case.accepts(INDEX),
                Some(why) => case.misses(
                    Code::AuthorityNotSatisfied,
                    &format!("signed by this key, but annotation {why}"),
                ),
            }
        }
    }
    // Annotations of another subject are not those of this one.
    let mut two = statement(OTHER);
    two["subject"][0]["annotations"] = json!({"env": "prod", "team": "shop"});
    two["subject"].as_array_mut().unwrap().push(statement(INDEX)["subject"][0].clone());
    let case = Case { annotations: WANTED, ..Case::new().statement(INDEX, &two) };
    case.misses(
        Code::AuthorityNotSatisfied,
        "signed by this key, but annotation \"env\" is missing, not \"prod\"",
    );
}

#[test]
fn the_nearest_miss_is_told() {
    let mut scan = statement(INDEX);
    scan["predicateType"] = "x".into();
    let case = Case::new().simple(INDEX, "{}").simple(INDEX, &payload(OTHER, "null"));
    let other = format!("signed by this key, but for another digest {OTHER}");
    case.misses(Code::SignatureInvalid, &other);
    let case = case.statement(INDEX, &scan).simple(CHILD, &payload(INDEX, "null"));
    let predicate = format!("signed by this key, but with predicate type x instead of {SIGN}");
    case.misses(Code::SignatureInvalid, &predicate);
    let case = case.claim(INDEX, UntrustedBody::Unreadable { why: "first".into() });
    let case = case.claim(INDEX, UntrustedBody::Unreadable { why: "second".into() });
    case.misses(Code::SignatureInvalid, &format!("{predicate}; 2 of 6 unreadable: first"));
    let case = Case { annotations: &[("a", "b")], ..case }.simple(INDEX, &payload(INDEX, "null"));
    case.misses(
        Code::AuthorityNotSatisfied,
        "signed by this key, but annotation \"a\" is missing, not \"b\"; 2 of 7 unreadable: first",
    );
}

#[test]
fn hostile_text_in_signed_payloads_is_shortened() {
    let case = Case::new().simple(INDEX, &payload(&"\\u001b".repeat(1000), "null"));
    let missed = case.judge_at("2026-06-01T00:00:00Z").unwrap_err();
    assert!(missed.why.len() < 1000 && missed.why.chars().all(|c| !c.is_control()));
}

#[test]
fn a_key_counts_within_its_window_only() {
    let case = Case::new().simple(INDEX, &payload(INDEX, "null"));
    let case =
        Case { window: [Some("2026-01-01T00:00:00Z"), Some("2027-07-01T12:30:00Z")], ..case };
    let code = Code::AuthorityNotSatisfied;
    case.misses_at("2025-12-31T23:59:59.999Z", code, "key not valid before 2026-01-01");
    case.misses_at("2027-07-01T12:30:00Z", code, "key expired 2027-07-01T12:30:00Z");
    case.misses_at("9999-01-01T00:00:00Z", code, "key expired 2027-07-01T12:30:00Z");
    assert!(case.judge_at("2026-01-01T00:00:00Z").is_ok());
    assert!(case.judge_at("2027-07-01T12:29:59Z").is_ok());
}
