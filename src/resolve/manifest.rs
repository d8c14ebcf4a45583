//! Image manifests and indexes, read strictly (OCI image-spec; Docker Image Manifest V2,
//! Schema 2).
//!
//! The runtime fetches and reads the same bytes again. Whatever a manifest could mean to it must
//! be what it means here, so a document that is a little of both kinds (CVE-2021-41190), or that
//! Go reads otherwise, is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    image::{Digest, shorten},
    json::{self, JsonError},
    refusal::{Code, Refusal},
};

/// Most bytes of a manifest that are read (distribution-spec, "Pushing manifests").
pub const MAX_MANIFEST: usize = 4 << 20;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// The fields that the runtime reads; Go fills them from keys in any case.
const FIELDS: [&str; 16] = [
    "annotations",
    "architecture",
    "artifactType",
    "config",
    "digest",
    "fsLayers",
    "layers",
    "manifests",
    "mediaType",
    "os",
    "os.features",
    "platform",
    "schemaVersion",
    "size",
    "subject",
    "variant",
];

/// Annotations by which containerd 2.1 to 2.3 and CRI-O (now and before 1.30) know an image that
/// is to be restored instead of started.
const CHECKPOINT: [&str; 2] =
    ["org.criu.checkpoint.", "io.kubernetes.cri-o.annotations.checkpoint."];

/// A content descriptor (image-spec, "Descriptor").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the content.
    #[serde(deserialize_with = "digest")]
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// What the content is, where it is a manifest. A hint: some registries put the type of the
    /// configuration here.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// The platform that the content is for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, deserialize_with = "json::null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether the content is an image manifest.
    pub fn is_image(&self) -> bool {
        matches!(&*self.media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }

    /// Whether the content is an image index.
    pub fn is_index(&self) -> bool {
        matches!(&*self.media_type, OCI_INDEX | DOCKER_LIST)
    }
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// A platform (image-spec, "Image Index"), as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `GOOS`.
    #[serde(deserialize_with = "json::null_is_empty")]
    pub os: String,
    /// `GOARCH`.
    #[serde(deserialize_with = "json::null_is_empty")]
    pub architecture: String,
    /// Variant of the architecture: `v8`.
    #[serde(deserialize_with = "json::null_is_empty")]
    pub variant: String,
    /// Features that the operating system must have.
    #[serde(rename = "os.features", deserialize_with = "json::null_is_empty")]
    pub os_features: Vec<String>,
}

/// A manifest of one of the two kinds.
#[derive(Clone, Debug)]
pub enum Manifest {
    /// One image, or one artifact.
    Image(Box<ImageManifest>),
    /// A list of manifests, one a platform.
    Index(Index),
}

/// An image manifest (image-spec, "Image Manifest").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// What the artifact is, where this is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, in order.
    #[serde(deserialize_with = "json::null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to.
    #[serde(default)]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "json::null_is_empty")]
    annotations: BTreeMap<String, String>,
}

/// An image index (image-spec, "Image Index") or a Docker manifest list.
#[derive(Clone, Debug, Deserialize)]
pub struct Index {
    /// The manifests, in order.
    #[serde(deserialize_with = "json::null_is_empty")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, deserialize_with = "json::null_is_empty")]
    annotations: BTreeMap<String, String>,
}

/// What a document says of itself. A field that must not be there must not be there as `null`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    config: bool,
    #[serde(default, deserialize_with = "present")]
    layers: bool,
    #[serde(default, deserialize_with = "present")]
    manifests: bool,
    #[serde(default, deserialize_with = "present")]
    fs_layers: bool,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl Manifest {
    /// Reads a manifest that came with this `Content-Type`.
    pub fn read(media_type: &str, body: &[u8]) -> Result<Self, ManifestError> {
        if body.len() > MAX_MANIFEST {
            return Err(ManifestError::Long(body.len()));
        }
        let is_index = match media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            OCI_INDEX | DOCKER_LIST => true,
            old if old.starts_with(DOCKER_SCHEMA_1) => return Err(ManifestError::Schema1),
            other => return Err(ManifestError::MediaType(shorten(other))),
        };
        let outline: Outline = json::read_for_go(body, &FIELDS)?;
        if outline.fs_layers || outline.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        if outline.schema_version != Some(2) {
            return Err(ManifestError::SchemaVersion);
        }
        match outline.media_type {
            Some(own) if own != media_type => {
                return Err(ManifestError::OtherMediaType {
                    own: shorten(&own),
                    sent: shorten(media_type),
                });
            }
            _ => {}
        }
        let foreign = match is_index {
            true => [("config", outline.config), ("layers", outline.layers)],
            false => [("manifests", outline.manifests), ("fsLayers", outline.fs_layers)],
        };
        if let Some((field, _)) = foreign.into_iter().find(|(_, present)| *present) {
            return Err(ManifestError::Mixed { field, is_index });
        }
        // Judged unambiguous above; what is left to go wrong is a field's type.
        Ok(match is_index {
            true => Manifest::Index(json::parse(body)?),
            false => Manifest::Image(json::parse(body)?),
        })
    }

    /// Whether the runtime would restore a checkpoint from this image instead of starting it,
    /// and pull another image, named inside, by itself.
    pub fn is_checkpoint(&self) -> bool {
        let annotations = match self {
            Manifest::Image(image) => &image.annotations,
            Manifest::Index(index) => &index.annotations,
        };
        annotations.keys().any(|key| CHECKPOINT.iter().any(|prefix| key.starts_with(prefix)))
    }
}

/// Why a manifest is not one that Portcullis judges.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More bytes than [`MAX_MANIFEST`].
    #[error("the manifest has {0} bytes, {MAX_MANIFEST} are allowed")]
    Long(usize),
    /// Docker Image Manifest V2, Schema 1: its digest does not cover what is pulled.
    #[error(
        "the manifest is of Docker's schema 1, which no current runtime pulls: push the image \
         again with a current tool"
    )]
    Schema1,
    /// Not one of the four media types.
    #[error("the registry sends the manifest as \"{0}\", which is no image manifest or index")]
    MediaType(String),
    /// The registry and the document disagree on what it is.
    #[error("the registry sends the manifest as \"{sent}\", the manifest says \"{own}\"")]
    OtherMediaType {
        /// What the document says.
        own: String,
        /// What the registry says.
        sent: String,
    },
    /// `schemaVersion` is absent or another.
    #[error("the manifest has no \"schemaVersion\": 2")]
    SchemaVersion,
    /// An index with an image's fields, or the other way round.
    #[error(
        "the {} has a field {field:?} and can be read as something else (CVE-2021-41190)",
        if *.is_index { "index" } else { "manifest" }
    )]
    Mixed {
        /// The field that does not belong there.
        field: &'static str,
        /// What the registry says it is.
        is_index: bool,
    },
    /// No JSON, JSON that two readers may read differently, or a field of a wrong type.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// A checkpoint.
    #[error(
        "the image is a checkpoint: restoring it starts processes that no signature covers; use \
         an ordinary image"
    )]
    Checkpoint,
}

impl From<JsonError> for ManifestError {
    fn from(error: JsonError) -> Self {
        Self::Json(error.to_string())
    }
}

impl From<ManifestError> for Refusal {
    fn from(error: ManifestError) -> Self {
        let code = match error {
            ManifestError::Long(_) => Code::LimitExceeded,
            _ => Code::ImageMalformed,
        };
        Refusal::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

    fn image() -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(""),
            descriptor("")
        )
    }

    fn index(entry: &str) -> String {
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entry}]}}"#)
    }

    fn descriptor(more: &str) -> String {
        format!(r#"{{"mediaType":"x/y","digest":"{DIGEST}","size":3{more}}}"#)
    }

    #[track_caller]
    fn refuses(media_type: &str, body: &str, why: &str) {
        let error = Manifest::read(media_type, body.as_bytes()).unwrap_err();
        let error = error.to_string();
        assert_eq!(error.split(" at line 1 column ").next(), Some(why));
    }

    #[test]
    fn the_four_types_are_read() {
        for (one, other) in [(OCI_MANIFEST, OCI_INDEX), (DOCKER_MANIFEST, DOCKER_LIST)] {
            let manifest = Manifest::read(one, image().replace(OCI_MANIFEST, one).as_bytes());
            assert!(matches!(manifest, Ok(Manifest::Image(image)) if image.layers.len() == 1));
            let entry = descriptor(r#","platform":{"os":"linux","architecture":"amd64"}"#);
            let manifest =
                Manifest::read(other, index(&entry).replace(OCI_INDEX, other).as_bytes());
            let Ok(Manifest::Index(index)) = manifest else { panic!("{manifest:?}") };
            assert_eq!(index.manifests[0].digest.to_string(), DIGEST);
            assert_eq!(index.manifests[0].platform.as_ref().unwrap().architecture, "amd64");
        }
    }

    #[test]
    fn what_go_tools_leave_out_or_null_is_read() {
        let bare = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":null,"annotations":null,"subject":null}}"#,
            descriptor(r#","platform":null,"annotations":null"#)
        );
        assert!(Manifest::read(OCI_MANIFEST, bare.as_bytes()).is_ok());
        let empty = r#"{"schemaVersion":2,"manifests":null}"#;
        assert!(Manifest::read(OCI_INDEX, empty.as_bytes()).is_ok());
    }

    #[test]
    fn a_document_of_both_kinds_is_refused() {
        let why = "the manifest has a field \"manifests\" and can be read as something else \
                   (CVE-2021-41190)";
        refuses(OCI_MANIFEST, &image().replacen('{', r#"{"manifests":[],"#, 1), why);
        refuses(OCI_MANIFEST, &image().replacen('{', r#"{"manifests":null,"#, 1), why);
        for field in ["config", "layers"] {
            refuses(
                OCI_INDEX,
                &index("").replacen('{', &format!("{{\"{field}\":null,"), 1),
                &format!(
                    "the index has a field \"{field}\" and can be read as something else \
                     (CVE-2021-41190)"
                ),
            );
        }
        refuses(
            OCI_INDEX,
            &index("").replacen('{', r#"{"Layers":[],"#, 1),
            "the manifest cannot be read: key \"Layers\" instead of \"layers\"",
        );
        refuses(
            OCI_MANIFEST,
            &image().replacen('{', &format!(r#"{{"config":{},"#, descriptor("")), 1),
            "the manifest cannot be read: duplicate key \"config\"",
        );
    }

    #[test]
    fn registry_and_document_must_agree_on_the_type() {
        refuses(
            OCI_INDEX,
            &image(),
            "the registry sends the manifest as \"application/vnd.oci.image.index.v1+json\", the \
             manifest says \"application/vnd.oci.image.manifest.v1+json\"",
        );
        refuses(
            "text/html",
            &image(),
            "the registry sends the manifest as \"text/html\", which is no image manifest or index",
        );
        assert!(Manifest::read("", image().as_bytes()).is_err());
    }

    #[test]
    fn schema_1_is_refused_however_it_comes() {
        let why = "the manifest is of Docker's schema 1, which no current runtime pulls: push the \
                   image again with a current tool";
        refuses("application/vnd.docker.distribution.manifest.v1+prettyjws", "", why);
        refuses(OCI_MANIFEST, r#"{"schemaVersion":1}"#, why);
        refuses(OCI_MANIFEST, &image().replacen('{', r#"{"fsLayers":[],"#, 1), why);
        let none = image().replace(r#""schemaVersion":2,"#, "");
        refuses(OCI_MANIFEST, &none, "the manifest has no \"schemaVersion\": 2");
    }

    #[test]
    fn broken_descriptors_are_refused() {
        let other = "sha512:".to_owned() + &"0".repeat(128);
        for (from, to) in [
            (DIGEST, &*other),
            ("\"size\":3", "\"size\":-1"),
            ("\"size\":3", "\"size\":\"3\""),
            ("\"digest\"", "\"digset\""),
            ("\"mediaType\":\"x/y\",", ""),
        ] {
            let body = index(&descriptor("")).replace(from, to);
            let error = Manifest::read(OCI_INDEX, body.as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Json(_)), "{to}: {error}");
        }
        refuses(
            OCI_MANIFEST,
            r#"{"schemaVersion":2,"layers":[]}"#,
            "the manifest cannot be read: missing field `config`",
        );
    }

    #[test]
    fn the_length_is_bounded() {
        let body = vec![b' '; MAX_MANIFEST + 1];
        let error = Manifest::read(OCI_MANIFEST, &body).unwrap_err();
        assert_eq!(error, ManifestError::Long(MAX_MANIFEST + 1));
        assert_eq!(Refusal::from(error).code, Code::LimitExceeded);
    }

    #[test]
    fn checkpoints_are_known_by_their_annotations() {
        for key in [
            "org.criu.checkpoint.container.name",
            "io.kubernetes.cri-o.annotations.checkpoint.name",
        ] {
            let annotation = format!(r#"{{"annotations":{{"{key}":"x"}},"#);
            for (kind, body) in [(OCI_MANIFEST, image()), (OCI_INDEX, index(""))] {
                let body = body.replacen('{', &annotation, 1);
                assert!(Manifest::read(kind, body.as_bytes()).unwrap().is_checkpoint());
            }
            let hidden = image().replacen('{', &annotation.replacen('a', "A", 1), 1);
            assert!(Manifest::read(OCI_MANIFEST, hidden.as_bytes()).is_err());
        }
        assert!(!Manifest::read(OCI_MANIFEST, image().as_bytes()).unwrap().is_checkpoint());
    }
}
