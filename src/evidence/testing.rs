//! Images and signatures made on the fly, for tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;

use crate::{
    image::Digest,
    policy::{Authority, AuthorityKind, PublicKeyAuthority, Revoked},
    resolve::Fetched,
    verify::{self, testing::Pair},
};

use super::{Entry, Known, UntrustedBody, UntrustedClaim};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn fetched(media_type: &str, json: &serde_json::Value) -> Fetched {
    let body = serde_json::to_vec_pretty(json).unwrap();
    Fetched { digest: Digest::of(&body), media_type: media_type.into(), body: body.into() }
}

/// The manifest of the image with this configuration; `layer` makes a difference beside it.
pub(crate) fn manifest(config: &str, layer: &str) -> Fetched {
    let blob = |kind: &str, content: &str| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": Digest::of(content.as_bytes()),
            "size": content.len(),
        })
    };
    let json = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob("config.v1+json", config),
        "layers": [blob("layer.v1.tar+gzip", layer)],
        "annotations": {"quoted": "\"é\u{1}\\"},
    });
    fetched(MANIFEST, &json)
}

/// An index that lists these manifests.
pub(crate) fn index(manifests: &[&Fetched]) -> Fetched {
    let listed = |one: &&Fetched| json!({"mediaType": one.media_type, "digest": one.digest, "size": one.body.len()});
    let manifests: Vec<_> = manifests.iter().map(listed).collect();
    fetched(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))
}

/// Nothing is claimed about it.
pub(crate) fn entry(manifest: Fetched, claims: &[UntrustedClaim], whole: bool) -> Entry {
    Entry { manifest, claims: claims.to_vec(), whole }
}

/// cosign's simple signing of a digest.
pub(crate) fn signed(pair: &Pair, subject: Digest) -> UntrustedClaim {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": "registry.example.com/app"},
            "image": {"docker-manifest-digest": subject},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let payload = payload.to_string().into_bytes();
    let signature = pair.sign(&payload);
    claim(subject, UntrustedBody::SimpleSigning { payload, signature })
}

pub(crate) fn claim(subject: Digest, body: UntrustedBody) -> UntrustedClaim {
    UntrustedClaim { subject, source: format!("sha256-{}.sig", subject.hex()), body }
}

/// A claim that is unlike all with other names.
pub(crate) fn unreadable(subject: Digest, name: &str) -> UntrustedClaim {
    claim(subject, UntrustedBody::Unreadable { why: name.to_owned() })
}

/// An image manifest alone, whole, signed by `pair`.
pub(crate) fn alone(name: &str, pair: &Pair) -> Known {
    let manifest = manifest(name, name);
    let claims = [signed(pair, manifest.digest)];
    Known::new(entry(manifest, &claims, true), None).unwrap()
}

/// An index and its child, with every kind of claim; the index is signed by `pair`.
pub(crate) fn indexed(name: &str, pair: &Pair) -> Known {
    let child = manifest(name, name);
    let index = index(&[&child, &manifest("other", "other")]);
    let top = [
        claim(index.digest, UntrustedBody::Bundle { json: b"{\"a\":\"\xff\"}".to_vec() }),
        signed(pair, index.digest),
    ];
    let below = [unreadable(child.digest, "it is \"é\"")];
    Known::new(entry(index, &top, true), Some(entry(child, &below, false))).unwrap()
}

/// Whether a policy with this key alone would let the image start.
pub(crate) fn accepts(pair: &Pair, known: &Known) -> bool {
    let key = PublicKeyAuthority {
        key: pair.public(),
        not_before: None,
        not_after: None,
        annotations: BTreeMap::new(),
    };
    let authority = Authority { name: "key".into(), kind: AuthorityKind::PublicKey(key) };
    let resolved = known.resolved(&"registry.example.com/app".parse().unwrap());
    let now = Timestamp::UNIX_EPOCH;
    verify::authority(&authority, &resolved, &known.evidence(), &Revoked::default(), now).is_ok()
}
