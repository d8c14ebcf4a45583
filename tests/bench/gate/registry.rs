//! A real registry over TLS, with images of 380 kB that a real cosign signed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::json;

use crate::{
    lab::Node,
    support::{
        ca::TestCa,
        docker_registry::{DockerRegistry, program},
        remote::Remote,
    },
};

/// The name of the registry in images.
pub(crate) const HOST: &str = "bench.example.com";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Bytes of a packed layer.
const LAYER: usize = 380_000;

/// The registry, its CA, and cosign's key.
pub(crate) struct Shop {
    registry: DockerRegistry,
    remote: Remote,
    scratch: tempfile::TempDir,
}

impl Shop {
    pub(crate) fn open() -> Self {
        let ca = TestCa::new();
        let registry = DockerRegistry::builder().tls(&ca).start();
        let remote = Remote::new(registry.url(), Some(ca.pem()));
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("ca.pem"), ca.pem()).unwrap();
        let shop = Self { registry, remote, scratch };
        shop.cosign("cosign-2", &["generate-key-pair"]);
        shop
    }

    /// Shows the registry to all who read `hosts.toml` there.
    pub(crate) fn show(&self, hosts: &Path) {
        let url = self.registry.url();
        let ca = self.scratch.path().join("ca.pem");
        let text = format!(
            "server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\nca = {:?}\n",
            ca.display().to_string()
        );
        let directory = hosts.join(HOST);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    pub(crate) fn show_to(&self, node: &Node) {
        self.show(&node.hosts());
    }

    /// Pushes an image unlike any other as `v1`; the digest of its manifest.
    pub(crate) async fn push(&self, repository: &str) -> Digest {
        let (layer, diff_id) = layer(self.scratch.path(), repository);
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&layer), "size": layer.len(),
            }],
        });
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes());
        self.remote.push_blob(repository, layer).await;
        self.remote.push_blob(repository, config).await;
        let answer = self.remote.put_manifest(repository, "v1", MANIFEST, manifest).await;
        assert_eq!(answer.status(), 201, "{repository}");
        digest
    }

    /// Has cosign 2 sign images by their digests.
    pub(crate) fn sign(&self, images: &[(String, Digest)]) {
        let host = self.registry.host();
        let names =
            images.iter().map(|(repository, digest)| format!("{host}/{repository}@{digest}"));
        let names: Vec<_> = names.collect();
        let sign = ["sign", "--yes", "--key", "cosign.key", "--tlog-upload=false"];
        let all: Vec<_> = sign.into_iter().chain(names.iter().map(String::as_str)).collect();
        self.cosign("cosign-2", &all);
    }

    fn cosign(&self, part: &str, arguments: &[&str]) {
        let mut command = self.command(&program(part, "usr/bin/cosign"));
        let output = command.args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{part} {arguments:?}: {error}");
    }

    /// A program that trusts the registry's CA, beside cosign's key.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.scratch.path())
            .env("HOME", self.scratch.path())
            .env("COSIGN_PASSWORD", "")
            .env("SSL_CERT_FILE", self.scratch.path().join("ca.pem"))
            .stdin(Stdio::null());
        command
    }

    /// The registry's address, as it stands in image names.
    pub(crate) fn host(&self) -> &str {
        self.registry.host()
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.scratch.path().join("cosign.pub")
    }

    /// A policy that trusts cosign's key for all images of the registry.
    pub(crate) fn policy(&self) -> String {
        let key = fs::read_to_string(self.key_file()).unwrap();
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: bench}}\nspec:\n  \
             match: {{images: [\"{HOST}/**\"]}}\n  authorities:\n    - name: bench\n      publicKey:\n        \
             pem: |\n          {}\n",
            key.trim_end().replace('\n', "\n          ")
        )
    }
}

/// A layer with one file that does not shrink, and the digest of what is in it.
fn layer(scratch: &Path, seed: &str) -> (Bytes, Digest) {
    let mut content = Vec::with_capacity(LAYER);
    let mut block = Digest::of(seed.as_bytes());
    while content.len() < LAYER {
        let hex = block.hex();
        let bytes =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        content.extend(bytes);
        block = Digest::of(hex.as_bytes());
    }
    fs::write(scratch.join("app"), content).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).current_dir(scratch).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}");
        output.stdout
    };
    let mode = ["--owner=0", "--group=0", "--mode=755", "--mtime=@0"];
    run("tar", &[&["-cf", "layer.tar"], &mode[..], &["app"]].concat());
    let tar = fs::read(scratch.join("layer.tar")).unwrap();
    (run("gzip", &["-nc", "layer.tar"]).into(), Digest::of(&tar))
}
