//! Sigstore bundles that a key signed: what cosign 3 writes (sigstore/protobuf-specs
//! `sigstore_bundle.proto`, DSSE protocol v1, in-toto Statement v1).
//!
//! Entries of transparency logs and timestamps are not read. A policy that names a key asks for
//! the key's signature and nothing else; neither adds to that nor takes from it, so nothing is
//! concluded from them, present or absent, good or bad.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use crate::{
    image::{Digest, shorten},
    json,
};

use super::{
    PublicKey,
    finding::{self, Finding, Shortfall},
};

/// Bundle v0.3, as it is written now and as the first releases wrote it.
const MEDIA_TYPES: [&str; 2] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The one kind of statement that signs an image. Any other (a vulnerability scan, an SBOM) by
/// the same key tells something about the image and does not vouch for it, although cosign 3.1
/// takes it for a signature.
const IMAGE_SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";

/// protobuf's JSON: unknown fields may be there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    #[serde(default)]
    dsse_envelope: Option<Envelope>,
    #[serde(default)]
    message_signature: Option<IgnoredAny>,
}

/// How to verify: a oneof. A key's hint is not looked at; the policy says which key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(default)]
    public_key: Option<IgnoredAny>,
    #[serde(default)]
    certificate: Option<IgnoredAny>,
    #[serde(default)]
    x509_certificate_chain: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

/// in-toto Statement v1; consumers ignore fields that they do not know. The predicate of an image
/// signature is empty.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "json::null_is_empty")]
    annotations: Map<String, Value>,
}

/// Holds a bundle against a key.
pub(super) fn check(
    bundle: &[u8],
    key: &PublicKey,
    subject: Digest,
    wanted: &BTreeMap<String, String>,
) -> Finding {
    let signed = match open(bundle) {
        Ok(signed) => signed,
        Err(finding) => return finding,
    };
    // The bytes first: what nobody vouches for is not even parsed.
    if key
        .verify(&pre_authentication(&signed.payload_type, &signed.payload), &signed.signature)
        .is_err()
    {
        return Finding::NotByKey;
    }
    match claims(&signed, subject, wanted) {
        Ok(()) => Finding::Holds,
        Err(shortfall) => Finding::Short(shortfall),
    }
}

/// A DSSE envelope with its one signature, decoded.
struct Signed {
    payload_type: String,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// The bytes that a DSSE envelope signs: the pre-authentication encoding of DSSE v1.
pub(crate) fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes a bundle apart, as far as it is one that a key can have signed.
fn open(bundle: &[u8]) -> Result<Signed, Finding> {
    let unreadable = |why: String| Finding::Unreadable(why);
    let bundle: Bundle =
        json::read(bundle).map_err(|error| unreadable(format!("malformed bundle: {error}")))?;
    if !MEDIA_TYPES.contains(&&*bundle.media_type) {
        let found = shorten(&bundle.media_type);
        return Err(unreadable(format!("a bundle of type \"{found}\", only v0.3 is read")));
    }
    let material = bundle.verification_material;
    let by_certificate =
        material.certificate.is_some() || material.x509_certificate_chain.is_some();
    match (material.public_key.is_some(), by_certificate) {
        (true, false) => {}
        (false, true) => return Err(Finding::ByCertificate),
        _ => return Err(unreadable("a bundle must have either a key or a certificate".into())),
    }
    if bundle.message_signature.is_some() {
        return Err(unreadable("a bundle with a message signature signs no image".into()));
    }
    let Some(envelope) = bundle.dsse_envelope else {
        return Err(unreadable("a bundle without a signature".into()));
    };
    // With several, "signed by" would depend on which of them a reader looks at.
    let [signature] = &*envelope.signatures else {
        let count = envelope.signatures.len();
        return Err(unreadable(format!("a bundle with {count} signatures instead of one")));
    };
    let decode = |base64: &str, what| {
        STANDARD.decode(base64).map_err(|_| unreadable(format!("the bundle's {what} is no base64")))
    };
    Ok(Signed {
        payload: decode(&envelope.payload, "payload")?,
        signature: decode(&signature.sig, "signature")?,
        payload_type: envelope.payload_type,
    })
}

fn claims(
    signed: &Signed,
    subject: Digest,
    wanted: &BTreeMap<String, String>,
) -> Result<(), Shortfall> {
    if signed.payload_type != PAYLOAD_TYPE {
        return Err(Shortfall::malformed(format_args!("its type is not {PAYLOAD_TYPE:?}")));
    }
    let statement: Statement = json::read(&signed.payload).map_err(Shortfall::malformed)?;
    let subject = subject.hex();
    let mut about = statement
        .subject
        .iter()
        .filter(|one| one.digest.get("sha256") == Some(&subject))
        .peekable();
    if about.peek().is_none() {
        let other = statement.subject.iter().find_map(|one| one.digest.get("sha256"));
        return Err(match other {
            Some(other) => Shortfall::other_digest(&format!("sha256:{other}")),
            None => Shortfall::malformed("it names no SHA-256 digest"),
        });
    }
    if statement.predicate_type != IMAGE_SIGNATURE {
        let found = shorten(&statement.predicate_type);
        return Err(Shortfall::PredicateType(format!(
            "with predicate type {found} instead of {IMAGE_SIGNATURE}"
        )));
    }
    // cosign signs images with v1 only, and attests with v0.1 as well.
    if statement.kind != STATEMENT {
        return Err(Shortfall::malformed("it is no in-toto Statement v1"));
    }
    // cosign puts annotations into the subject. A digest that is named twice is signed with
    // either's.
    let mut missing = Ok(());
    for one in about {
        match finding::annotations(&one.annotations, wanted) {
            Ok(()) => return Ok(()),
            Err(shortfall) => missing = missing.and(Err(shortfall)),
        }
    }
    missing
}
