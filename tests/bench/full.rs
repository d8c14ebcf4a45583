//! What a full node has: images of twenty layers with a signature each, and a policy for each of
//! many teams.

use jiff::Timestamp;
use portcullis::{
    evidence::{Entry, Known, UntrustedBody, UntrustedClaim},
    image::Digest,
    policy::{PolicySet, source},
    resolve::Fetched,
};
use serde_json::json;

use crate::support::{
    registry::IMAGE_MANIFEST,
    sign::{Signer, policy, simple_payload},
};

pub(crate) const IMAGES: usize = 10_000;
pub(crate) const POLICIES: usize = 1_000;

/// The image with this number.
pub(crate) fn known(number: usize, key: &Signer) -> Known {
    let blob = |kind: &str, content: String| {
        let digest = Digest::of(content.as_bytes());
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": 7_000_000})
    };
    let layers: Vec<_> =
        (0..20).map(|layer| blob("layer.v1.tar+gzip", format!("{number} {layer}"))).collect();
    let body = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": blob("config.v1+json", format!("config {number}")),
        "layers": layers,
    });
    let body = body.to_string().into_bytes();
    let digest = Digest::of(&body);
    let payload = simple_payload(digest);
    let signature = key.sign(&payload);
    let claim = UntrustedClaim {
        subject: digest,
        source: format!("sha256-{}.sig", digest.hex()),
        body: UntrustedBody::SimpleSigning { payload, signature },
    };
    let manifest = Fetched { digest, media_type: IMAGE_MANIFEST.into(), body: body.into() };
    Known::new(Entry { manifest, claims: vec![claim], whole: true }, None).unwrap()
}

/// A name of it, in the repositories of one of the teams.
pub(crate) fn name(number: usize) -> String {
    format!("registry.example.com/team-{}/app-{number}:v1", number % POLICIES)
}

/// Policies by this key, one for each of so many teams.
pub(crate) fn policies_text(count: usize, key: &Signer) -> String {
    let images = |team: usize| format!("registry.example.com/team-{team}/**");
    policies_for(count, key, images)
}

/// So many policies by this key for these images.
pub(crate) fn policies_for(count: usize, key: &Signer, images: impl Fn(usize) -> String) -> String {
    let one = |team: usize| policy(&format!("team-{team}"), &images(team), &[("release", key)]);
    let text: Vec<_> = (0..count).map(one).collect();
    text.join("---\n")
}

/// The set that a text makes.
pub(crate) fn set(text: &str) -> PolicySet {
    source::parse("p.yaml", text, Timestamp::now()).unwrap()
}
