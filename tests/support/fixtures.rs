//! The signed images of `tests/fixtures/registry`, as real tools left them in a registry.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::StatusCode;
use portcullis::image::Digest;
use serde::Deserialize;
use serde_json::Value;

use super::{registry::TestRegistry, remote::Remote};

/// `registry.json` and the content beside it.
pub(crate) struct Fixtures {
    root: PathBuf,
    pub(crate) repositories: BTreeMap<String, Fixture>,
    /// What cosign was seen to say, each with `repository`, `cosign`, `key`, `flags`, `passes`.
    pub(crate) checks: Vec<Value>,
}

/// One repository with one image. The README of the fixtures tells what the fields mean.
#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) tags: BTreeMap<String, String>,
    /// In the order to push.
    pub(crate) manifests: Vec<String>,
    /// The other fields, such as `image`, `expect` and `key`; absent ones are `null`.
    #[serde(flatten)]
    pub(crate) facts: Value,
}

#[derive(Deserialize)]
struct Listing {
    repositories: BTreeMap<String, Fixture>,
    #[serde(default)]
    checks: Vec<Value>,
}

/// A manifest with its media type, or a blob.
enum Content {
    Blob(Bytes),
    Manifest(String, Bytes),
}

impl Fixtures {
    /// The fixtures of this repository.
    pub(crate) fn load() -> Self {
        Self::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"))
    }

    pub(crate) fn at(root: &Path) -> Self {
        let path = root.join("registry/registry.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let listing: Listing =
            serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { root: root.to_owned(), repositories: listing.repositories, checks: listing.checks }
    }

    pub(crate) fn repository(&self, name: &str) -> &Fixture {
        self.repositories.get(name).unwrap_or_else(|| panic!("no fixture {name}"))
    }

    /// Where a file beside the registry is, such as `keys/rsa-2048.pub`.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// What is in it.
    pub(crate) fn file(&self, path: &str) -> String {
        let path = self.path(path);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A manifest or blob, whose digest is checked.
    pub(crate) fn blob(&self, digest: &str) -> Bytes {
        let path = self.root.join("registry/blobs").join(digest.replace(':', "/"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(Digest::of(&bytes).to_string(), digest, "{}", path.display());
        bytes.into()
    }

    /// Puts one repository into the registry of the tests.
    pub(crate) fn push(&self, name: &str, registry: &TestRegistry) {
        for content in self.contents(name) {
            match content {
                Content::Blob(bytes) => registry.push_blob(name, bytes),
                Content::Manifest(kind, bytes) => registry.push_manifest(name, None, &kind, bytes),
            };
        }
        for (tag, digest) in &self.repository(name).tags {
            registry.tag(name, tag, digest.parse().unwrap());
        }
    }

    /// Pushes one repository to any registry.
    pub(crate) async fn push_http(&self, name: &str, remote: &Remote) {
        let put = async |reference: &str, kind: &str, bytes: Bytes| {
            let answer = remote.put_manifest(name, reference, kind, bytes).await;
            assert_eq!(answer.status(), StatusCode::CREATED, "manifest {reference} to {name}");
        };
        for content in self.contents(name) {
            match content {
                Content::Blob(bytes) => drop(remote.push_blob(name, bytes).await),
                Content::Manifest(kind, bytes) => {
                    put(&Digest::of(&bytes).to_string(), &kind, bytes).await;
                }
            }
        }
        for (tag, digest) in &self.repository(name).tags {
            let (kind, bytes) = self.manifest(digest);
            put(tag, &kind, bytes).await;
        }
    }

    fn manifest(&self, digest: &str) -> (String, Bytes) {
        let bytes = self.blob(digest);
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        (json["mediaType"].as_str().expect("a manifest names its mediaType").to_owned(), bytes)
    }

    /// Everything that is pushed, what is referred to first.
    fn contents(&self, name: &str) -> Vec<Content> {
        let mut contents = Vec::new();
        for digest in &self.repository(name).manifests {
            let (kind, bytes) = self.manifest(digest);
            let json: Value = serde_json::from_slice(&bytes).unwrap();
            let layers = json["layers"].as_array().into_iter().flatten();
            let blobs = json.get("config").into_iter().chain(layers);
            let blobs = blobs.map(|blob| self.blob(blob["digest"].as_str().unwrap()));
            contents.extend(blobs.map(Content::Blob));
            contents.push(Content::Manifest(kind, bytes));
        }
        contents
    }
}

impl Fixture {
    /// The digest of `v1`.
    pub(crate) fn image(&self) -> Digest {
        self.facts["image"].as_str().unwrap().parse().unwrap()
    }
}
