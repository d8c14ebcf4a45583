//! What the manifests around an image say about where its signatures are. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    image::{Digest, shorten},
    resolve::{Descriptor, Fetched, ImageManifest, Manifest},
};

/// Most bytes of one payload or bundle.
pub(super) const MAX_BLOB: u64 = 1 << 20;

/// Longest signature in an annotation, in characters of base64: one by RSA with 8192 bits has 1368.
const MAX_SIGNATURE: usize = 4 << 10;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// All versions and both spellings; `verify` says which it reads.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// cosign 2 with `COSIGN_EXPERIMENTAL=1` and `--registry-referrers-mode oci-1-1`.
const COSIGN_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// What an index says of a bundle when go-containerregistry made it: the type of the
/// configuration (cosign#4641, kyverno#16664). So does every registry for manifests without
/// `artifactType`.
const CONFIGURATIONS: [&str; 3] = [
    "application/vnd.oci.empty.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Where one claim is, before its bytes are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// A payload blob and the signature over it.
    Simple { blob: Blob, signature: Vec<u8> },
    /// A bundle blob.
    Bundle(Blob),
    /// Something in the place of a signature that cannot be one.
    Unreadable(String),
}

impl Lead {
    /// The bytes that are still to be fetched.
    pub(super) fn blob(&self) -> Option<Blob> {
        match self {
            Lead::Simple { blob, .. } | Lead::Bundle(blob) => Some(*blob),
            Lead::Unreadable(_) => None,
        }
    }
}

/// A blob of at most [`MAX_BLOB`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: usize,
}

/// The claims under a `.sig` tag: each layer is one.
pub(super) fn tagged(manifest: &Fetched) -> Vec<Lead> {
    match Manifest::read(&manifest.media_type, &manifest.body) {
        Ok(Manifest::Image(manifest)) => manifest.layers.iter().map(simple).collect(),
        Ok(Manifest::Index(_)) => vec![Lead::Unreadable("an index instead of signatures".into())],
        Err(error) => vec![Lead::Unreadable(error.to_string())],
    }
}

/// Whether a referrer can be a signature, as far as its descriptor tells. Other artifacts can
/// be many and large (SBOMs, scans) and are not fetched.
pub(super) fn may_be_signature(referrer: &Descriptor) -> bool {
    let kind = referrer.artifact_type.as_deref().unwrap_or_default();
    referrer.is_image()
        && (kind.is_empty()
            || kind.starts_with(BUNDLE)
            || kind == COSIGN_ARTIFACT
            || CONFIGURATIONS.contains(&kind))
}

/// The claims in a referrer of `subject`; none if it is something else than a signature.
///
/// What a bundle signs is in the bundle, so a manifest without `subject`, listed by a fallback
/// tag, is as good as any. One that says it is about another image is not.
pub(super) fn referrer(manifest: &Fetched, subject: Digest) -> Vec<Lead> {
    let manifest = match Manifest::read(&manifest.media_type, &manifest.body) {
        Ok(Manifest::Image(manifest)) => manifest,
        Ok(Manifest::Index(_)) => return Vec::new(),
        Err(error) => return vec![Lead::Unreadable(error.to_string())],
    };
    let leads = signatures(&manifest);
    match &manifest.subject {
        Some(other) if other.digest != subject && !leads.is_empty() => {
            vec![Lead::Unreadable(format!("it refers to another image, {}", other.digest))]
        }
        _ => leads,
    }
}

fn signatures(manifest: &ImageManifest) -> Vec<Lead> {
    if manifest.artifact_type.as_deref() == Some(COSIGN_ARTIFACT)
        || manifest.config.media_type == COSIGN_ARTIFACT
    {
        return manifest.layers.iter().map(simple).collect();
    }
    match &*manifest.layers {
        [layer] if layer.media_type.starts_with(BUNDLE) => match blob(layer) {
            Ok(blob) => vec![Lead::Bundle(blob)],
            Err(unreadable) => vec![unreadable],
        },
        _ => Vec::new(),
    }
}

fn simple(layer: &Descriptor) -> Lead {
    if layer.media_type != SIMPLE_SIGNING {
        return Lead::Unreadable(format!("a layer of type \"{}\"", shorten(&layer.media_type)));
    }
    let blob = match blob(layer) {
        Ok(blob) => blob,
        Err(unreadable) => return unreadable,
    };
    let Some(base64) = layer.annotations.get(SIGNATURE) else {
        return Lead::Unreadable(format!("it has no annotation {SIGNATURE}"));
    };
    if base64.len() > MAX_SIGNATURE {
        let length = base64.len();
        let why =
            format!("its annotation {SIGNATURE} has {length} bytes, {MAX_SIGNATURE} are allowed");
        return Lead::Unreadable(why);
    }
    match STANDARD.decode(base64) {
        Ok(signature) if !signature.is_empty() => Lead::Simple { blob, signature },
        _ => Lead::Unreadable(format!("its annotation {SIGNATURE} is no base64")),
    }
}

fn blob(layer: &Descriptor) -> Result<Blob, Lead> {
    match usize::try_from(layer.size) {
        Ok(size) if layer.size <= MAX_BLOB => Ok(Blob { digest: layer.digest, size }),
        _ => Err(Lead::Unreadable(format!(
            "a signature of {} bytes, {MAX_BLOB} are allowed",
            layer.size
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const BUNDLE_V03: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn fetched(media_type: &str, json: &Value) -> Fetched {
        let body = json.to_string();
        Fetched {
            digest: Digest::of(body.as_bytes()),
            media_type: media_type.into(),
            body: body.into(),
        }
    }

    fn manifest(layers: &[Value]) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": EMPTY, "digest": digest("{}"), "size": 2},
            "layers": layers,
        })
    }

    fn layer(media_type: &str, size: u64, signature: Option<&str>) -> Value {
        let mut layer = json!({"mediaType": media_type, "digest": digest("blob"), "size": size});
        if let Some(signature) = signature {
            layer["annotations"] = json!({SIGNATURE: signature});
        }
        layer
    }

    fn blob(size: usize) -> Blob {
        Blob { digest: digest("blob"), size }
    }

    fn unreadable(why: &str) -> Lead {
        Lead::Unreadable(why.into())
    }

    #[test]
    fn each_layer_under_a_tag_is_a_claim() {
        let layers = [
            layer(SIMPLE_SIGNING, 10, Some("AQID")),
            layer(SIMPLE_SIGNING, 1 << 20, Some("BA==")),
            layer(SIMPLE_SIGNING, 10, None),
            layer(SIMPLE_SIGNING, 10, Some("")),
            layer(SIMPLE_SIGNING, 10, Some("BA")),
            layer(SIMPLE_SIGNING, (1 << 20) + 1, Some("AQID")),
            layer(SIMPLE_SIGNING, u64::MAX, Some("AQID")),
            layer("application/vnd.dsse.envelope.v1+json", 10, Some("")),
            layer(SIMPLE_SIGNING, 10, Some(&"AAAA".repeat(1024))),
            layer(SIMPLE_SIGNING, 10, Some(&"AAAA".repeat(1025))),
        ];
        let no_base64 = "its annotation dev.cosignproject.cosign/signature is no base64";
        assert_eq!(
            tagged(&fetched(MANIFEST, &manifest(&layers))),
            [
                Lead::Simple { blob: blob(10), signature: vec![1, 2, 3] },
                Lead::Simple { blob: blob(1 << 20), signature: vec![4] },
                unreadable("it has no annotation dev.cosignproject.cosign/signature"),
                unreadable(no_base64),
                unreadable(no_base64),
                unreadable("a signature of 1048577 bytes, 1048576 are allowed"),
                unreadable("a signature of 18446744073709551615 bytes, 1048576 are allowed"),
                unreadable("a layer of type \"application/vnd.dsse.envelope.v1+json\""),
                Lead::Simple { blob: blob(10), signature: vec![0; 3072] },
                unreadable(
                    "its annotation dev.cosignproject.cosign/signature has 4100 bytes, 4096 are \
                     allowed"
                ),
            ]
        );
        assert_eq!(tagged(&fetched(MANIFEST, &manifest(&[]))), []);
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert_eq!(tagged(&fetched(INDEX, &index)), [unreadable("an index instead of signatures")]);
        assert_eq!(
            tagged(&fetched("text/html", &index)),
            [unreadable(
                "the registry sends the manifest as \"text/html\", which is no image manifest or \
                 index"
            )]
        );
    }

    #[test]
    fn a_referrer_with_one_bundle_is_a_claim() {
        let subject = digest("image");
        let bundle = manifest(&[layer(BUNDLE_V03, 10, None)]);
        assert_eq!(
            referrer(&fetched(MANIFEST, &bundle), subject),
            [Lead::Bundle(blob(10))],
            "without subject, as by a fallback tag"
        );
        let mut about = bundle.clone();
        about["subject"] = json!({"mediaType": INDEX, "digest": subject, "size": 1});
        assert_eq!(referrer(&fetched(MANIFEST, &about), subject), [Lead::Bundle(blob(10))]);
        let other = digest("other");
        assert_eq!(
            referrer(&fetched(MANIFEST, &about), other),
            [unreadable(&format!("it refers to another image, {subject}"))]
        );
        let large = manifest(&[layer(BUNDLE_V03, 2 << 20, None)]);
        assert_eq!(
            referrer(&fetched(MANIFEST, &large), subject),
            [unreadable("a signature of 2097152 bytes, 1048576 are allowed")]
        );
        assert_eq!(
            referrer(&fetched(MANIFEST, &json!({})), subject),
            [unreadable("the manifest has no \"schemaVersion\": 2")]
        );
    }

    #[test]
    fn referrers_of_other_kinds_are_no_claims() {
        let subject = digest("image");
        let bundle = layer(BUNDLE_V03, 10, None);
        for layers in [
            vec![],
            vec![bundle.clone(), bundle],
            vec![layer("application/spdx+json", 10, None)],
            vec![layer(SIMPLE_SIGNING, 10, Some("AQID"))],
        ] {
            let mut sbom = manifest(&layers);
            assert_eq!(referrer(&fetched(MANIFEST, &sbom), subject), []);
            sbom["subject"] = json!({"mediaType": INDEX, "digest": digest("x"), "size": 1});
            assert_eq!(referrer(&fetched(MANIFEST, &sbom), subject), []);
        }
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert_eq!(referrer(&fetched(INDEX, &index), subject), []);
    }

    #[test]
    fn a_referrer_with_simple_signatures_is_known_by_its_type() {
        let subject = digest("image");
        let mut one = manifest(&[layer(SIMPLE_SIGNING, 10, Some("AQID"))]);
        one["artifactType"] = COSIGN_ARTIFACT.into();
        let lead = Lead::Simple { blob: blob(10), signature: vec![1, 2, 3] };
        assert_eq!(referrer(&fetched(MANIFEST, &one), subject), std::slice::from_ref(&lead));
        one["artifactType"] = Value::Null;
        one["config"]["mediaType"] = COSIGN_ARTIFACT.into();
        assert_eq!(referrer(&fetched(MANIFEST, &one), subject), [lead]);
    }

    #[test]
    fn descriptors_rule_out_other_artifacts_only() {
        let may = |kind: Value, media_type: &str| {
            let descriptor = json!({
                "mediaType": media_type, "digest": digest("x"), "size": 1, "artifactType": kind,
            });
            may_be_signature(&serde_json::from_value(descriptor).unwrap())
        };
        for kind in
            [Value::Null, "".into(), BUNDLE_V03.into(), COSIGN_ARTIFACT.into(), EMPTY.into()]
        {
            assert!(may(kind.clone(), MANIFEST), "{kind}");
            assert!(!may(kind, INDEX));
        }
        assert!(!may("application/spdx+json".into(), MANIFEST));
        assert!(!may("application/vnd.cncf.notary.signature".into(), MANIFEST));
    }
}
