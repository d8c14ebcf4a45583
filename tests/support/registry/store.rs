//! What the registry holds. Content pushed here directly is not checked: tests need broken
//! content too. The checks of a real registry are in `api`.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::{Value, json};

#[derive(Default)]
pub(super) struct Store {
    pub(super) repos: BTreeMap<String, Repo>,
    pub(super) uploads: HashMap<String, Vec<u8>>,
    pub(super) uploads_begun: u64,
}

#[derive(Default)]
pub(super) struct Repo {
    pub(super) blobs: HashMap<Digest, Bytes>,
    /// In the order of pushing, which is the order of referrers.
    pub(super) manifests: Vec<Manifest>,
    pub(super) tags: BTreeMap<String, Digest>,
}

#[derive(Clone)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

impl Manifest {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The descriptor for a list of referrers (distribution-spec, "Listing Referrers").
    fn as_referrer(&self) -> Value {
        let json = self.json();
        let artifact = match &json["artifactType"] {
            Value::Null => &json["config"]["mediaType"],
            given => given,
        };
        let mut descriptor = json!({
            "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len(),
            "artifactType": artifact,
        });
        if let Some(annotations) = json.get("annotations") {
            descriptor["annotations"] = annotations.clone();
        }
        descriptor
    }
}

impl Store {
    pub(super) fn repo(&mut self, repo: &str) -> &mut Repo {
        self.repos.entry(repo.to_owned()).or_default()
    }
}

impl Repo {
    pub(super) fn push_blob(&mut self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.insert(digest, bytes);
        digest
    }

    pub(super) fn push_manifest(&mut self, media_type: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.manifests.retain(|held| held.digest != digest);
        self.manifests.push(Manifest { digest, media_type: media_type.to_owned(), bytes });
        digest
    }

    /// By tag or digest.
    pub(super) fn manifest(&self, reference: &str) -> Option<&Manifest> {
        let digest = match reference.parse() {
            Ok(digest) => digest,
            Err(_) => *self.tags.get(reference)?,
        };
        self.manifests.iter().find(|held| held.digest == digest)
    }

    pub(super) fn referrers(&self, subject: &str, artifact_type: Option<&str>) -> Vec<Value> {
        (self.manifests.iter().filter(|held| held.json()["subject"]["digest"] == subject))
            .map(Manifest::as_referrer)
            .filter(|found| artifact_type.is_none_or(|wanted| found["artifactType"] == wanted))
            .collect()
    }
}
