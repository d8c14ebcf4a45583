//! What happens to the daemon on its node: signals, crashes, twins, full disks, waves of pulls.

mod audit;
mod load;
mod modes;
mod process;

use std::{fs, path::Path, process::Command, time::Duration};

use portcullis::image::Digest;

use crate::support::{
    gate::{Gate, Setup},
    grpc::PATIENCE,
    registry::TestRegistry,
    runtime::{FakeRuntime, pulling},
    sign::{self, Signer},
};

/// A node with an image that its policy accepts.
struct Node {
    registry: TestRegistry,
    runtime: FakeRuntime,
    digest: Digest,
    key: Signer,
}

impl Node {
    fn new() -> Self {
        let (registry, key) = (TestRegistry::start(), Signer::new());
        let digest = registry.push_image("app", "v1");
        key.sign_simple(&registry, "app", digest);
        Self { registry, runtime: FakeRuntime::start(pulling), digest, key }
    }

    fn setup(&self) -> Setup {
        Setup::before(self.runtime.socket()).policy("p.yaml", &self.policy(&self.key))
    }

    fn policy(&self, key: &Signer) -> String {
        sign::policy("app", &format!("{}/app", self.registry.host()), &[("release", key)])
    }

    /// The image by digest: one call to the runtime a pull.
    fn image(&self) -> String {
        format!("{}/app@{}", self.registry.host(), self.digest)
    }
}

/// `portcullis audit verify` of these files, with the head in the state directory.
fn verify(files: &[&Path], state: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "verify", "--state"])
        .arg(state)
        .args(files)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The chain of a gate's log is whole.
#[track_caller]
fn whole(gate: &Gate) {
    let (code, text) = verify(&[&gate.audit_file()], &gate.path().join("state"));
    assert_eq!(code, Some(0), "{text}");
}

/// Puts a file in place, whole.
fn swap(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

/// Waits for something that only files tell.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}
