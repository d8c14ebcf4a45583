//! Images that run, each unlike any other, and each saying so.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::{Value, json};

use crate::support::{fixtures::Fixtures, registry::TestRegistry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What the program of the fixtures says.
const LINE: &str = "hello from a verified image";

/// An image of the fixtures' program, saying something of its own.
pub(crate) struct Made {
    /// The line that its container prints.
    pub(crate) says: String,
    layer: Bytes,
    config: Bytes,
    manifest: Bytes,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self::annotated(&json!({}))
    }

    /// With these annotations on the manifest.
    pub(crate) fn annotated(annotations: &Value) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // As long as the line in the program, whose place it takes.
        let says = format!("hello from image {number:010}");
        let mut layer = program().to_vec();
        let at = layer.windows(LINE.len()).position(|part| part == LINE.as_bytes()).unwrap();
        layer[at..at + LINE.len()].copy_from_slice(says.as_bytes());
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": ["/hello"], "Cmd": ["pause"], "WorkingDir": "/", "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
        })
        .to_string();
        Self::of(says, layer.into(), config.into(), annotations)
    }

    fn of(says: String, layer: Bytes, config: Bytes, annotations: &Value) -> Self {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": Digest::of(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": Digest::of(&layer), "size": layer.len()}],
            "annotations": annotations,
        })
        .to_string();
        Self { says, layer, config, manifest: manifest.into() }
    }

    /// An image by the ID of another one, with a layer that is not that one's.
    pub(crate) fn posing_as(other: &Made) -> Self {
        let Self { says, layer, .. } = Self::new();
        Self::of(says, layer, other.config.clone(), &json!({}))
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The digest of its one layer, and so the name of what is unpacked of it.
    pub(crate) fn layer_digest(&self) -> Digest {
        Digest::of(&self.layer)
    }

    /// The runtime's ID.
    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub(crate) fn push(&self, registry: &TestRegistry, repository: &str, tag: &str) {
        registry.push_blob(repository, self.layer.clone());
        registry.push_blob(repository, self.config.clone());
        registry.push_manifest(repository, Some(tag), MANIFEST, self.manifest.clone());
    }

    /// An image layout in a tar archive (image-spec, "image-layout.md"), where the image has this
    /// name: what `ctr images import` takes.
    pub(crate) fn archive(&self, name: &str) -> tempfile::NamedTempFile {
        let layout = tempfile::tempdir().unwrap();
        let blobs = layout.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for blob in [&self.layer, &self.config, &self.manifest] {
            fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{
            "mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
            "annotations": {"io.containerd.image.name": name},
        }]});
        fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let archive = tempfile::NamedTempFile::new().unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(layout.path()).arg("-cf").arg(archive.path()).arg(".");
        assert!(tar.status().unwrap().success());
        archive
    }
}

/// The layer of the fixtures' program, unpacked.
fn program() -> &'static [u8] {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    LAYER.get_or_init(|| {
        let fixtures = Fixtures::load();
        let image = fixtures.repository("cosign2/ecdsa-p256").image().to_string();
        let manifest: Value = serde_json::from_slice(&fixtures.blob(&image)).unwrap();
        let packed = fixtures.blob(manifest["layers"][0]["digest"].as_str().unwrap());
        let mut gzip = Command::new("gzip")
            .arg("-dc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Small enough for a pipe to hold.
        gzip.stdin.take().unwrap().write_all(&packed).unwrap();
        gzip.wait_with_output().unwrap().stdout
    })
}
