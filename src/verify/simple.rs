//! cosign's simple signing (cosign `specs/SIGNATURE_SPEC.md`), as strict as containers/image.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{image::Digest, json};

use super::{
    PublicKey,
    finding::{self, Finding, Shortfall},
};

const TYPE: &str = "cosign container image signature";

/// The payload: these fields and no others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    /// `null` or an object, but there.
    #[serde(deserialize_with = "Option::deserialize")]
    optional: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "identity")]
    _identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

/// Where the signer had the image. Like cosign we conclude nothing from it: the signature is on
/// the bytes, and an image that was copied to a mirror keeps its signature.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    #[serde(rename = "docker-reference")]
    _docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Holds a payload and a signature over its bytes against a key.
pub(super) fn check(
    payload: &[u8],
    signature: &[u8],
    key: &PublicKey,
    subject: Digest,
    wanted: &BTreeMap<String, String>,
) -> Finding {
    // The bytes first: what nobody vouches for is not even parsed.
    if key.verify(payload, signature).is_err() {
        return Finding::NotByKey;
    }
    match claims(payload, subject, wanted) {
        Ok(()) => Finding::Holds,
        Err(shortfall) => Finding::Short(shortfall),
    }
}

fn claims(
    payload: &[u8],
    subject: Digest,
    wanted: &BTreeMap<String, String>,
) -> Result<(), Shortfall> {
    let payload: Payload = json::read(payload).map_err(Shortfall::malformed)?;
    if payload.critical.kind != TYPE {
        return Err(Shortfall::malformed(format_args!("its type is not {TYPE:?}")));
    }
    if payload.critical.image.digest != subject.to_string() {
        return Err(Shortfall::other_digest(&payload.critical.image.digest));
    }
    finding::annotations(&payload.optional.unwrap_or_default(), wanted)
}
