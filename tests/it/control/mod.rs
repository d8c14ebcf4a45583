//! The whole daemon and what controls it: what a client of its socket gets, what is on record, and
//! what it tells of itself, while the source of its policies changes, lies, breaks or is away.

mod bundles;
mod flight;
mod floor;
mod kubernetes;
mod restart;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use nix::sys::signal::Signal;
use portcullis::image::Digest;
use serde_json::Value;

use crate::support::{
    api_server::{self, ApiServer, Fault},
    cri::{PULL_IMAGE, VERSION, pull},
    gate::{Gate, Setup},
    grpc::{PATIENCE, framed},
    registry::TestRegistry,
    runtime::{FakeRuntime, pulling},
};

/// What every image is refused with while no set is in force; why follows.
const NONE: &str = "no policy is in force on this node, so every image is refused: ";

/// A node before a registry with two images that nobody signed, `app` and `other`.
struct Node {
    registry: TestRegistry,
    runtime: FakeRuntime,
    app: Digest,
    other: Digest,
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let registry = TestRegistry::start();
        let (app, other) = (registry.push_image("app", "v1"), registry.push_image("other", "v1"));
        let (runtime, directory) = (FakeRuntime::start(pulling), tempfile::tempdir().unwrap());
        Self { registry, runtime, app, other, directory }
    }

    /// A file that no gate owns.
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A gate with this source and these further lines.
    fn setup(&self, lines: &str) -> Setup {
        Setup::before(self.runtime.socket()).source(lines)
    }

    /// A gate that follows this API server, as `node-1`.
    fn follows(&self, server: &ApiServer, lines: &str) -> Setup {
        let kubeconfig = self.file("kubeconfig");
        server.kubeconfig(&kubeconfig, "", "");
        self.setup(&format!(
            "source = \"kubernetes:\"\n{lines}\n[kubernetes]\nkubeconfig = {kubeconfig:?}\nnode = \"node-1\""
        ))
    }

    fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// An image by digest: one call to the runtime a pull.
    fn image(&self, name: &str) -> String {
        let digest = if name == "app" { self.app } else { self.other };
        format!("{}@{digest}", self.repository(name))
    }

    /// A policy that lets in one of the images, unsigned.
    fn lets_in(&self, name: &str) -> Value {
        api_server::policy(name, &self.repository(name))
    }

    /// gRPC code and message of a pull.
    async fn pull(&self, gate: &Gate, name: &str) -> (i32, String) {
        let request = pull(&self.image(name), "shop");
        gate.client().await.unary(PULL_IMAGE, &request).await.status()
    }

    /// The image is pulled.
    async fn starts(&self, gate: &Gate, name: &str) {
        assert_eq!(self.pull(gate, name).await, (0, String::new()), "{name}");
        let records = gate.records("pull");
        assert_eq!(records.last().unwrap()["decision"], "allow");
    }

    /// The image is refused with this reason and message, and so it stands on record; the runtime
    /// hears nothing.
    async fn is_refused(&self, gate: &Gate, name: &str, reason: &str, message: &str) {
        let before = self.runtime.paths().len();
        let expected = message.replace("IMAGE", &self.image(name));
        let answer = self.pull(gate, name).await;
        assert_eq!(answer, (2, format!("SignatureValidationFailed: {expected}")));
        let record = gate.records("pull").pop().unwrap();
        assert_eq!((&record["decision"], &record["reason"]), (&"deny".into(), &reason.into()));
        assert_eq!(record["message"], expected);
        assert_eq!(self.runtime.paths().len(), before);
    }

    /// No policy covers the image.
    async fn is_not_covered(&self, gate: &Gate, name: &str) {
        let why = "IMAGE: no policy matches this image in namespace \"shop\"; an ImagePolicy whose \
                   spec.match.images covers it is needed";
        self.is_refused(gate, name, "no_policy_matches", why).await;
    }
}

/// The daemon is up, and calls that need no judgement pass.
async fn serves(gate: &Gate) {
    let answer = gate.client().await.call(VERSION, &[], framed(b"")).await;
    assert_eq!(answer.status(), (0, String::new()));
}

/// Waits for something that only files tell.
async fn until<T>(gate: &Gate, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("never: {what}: {:?}", gate.records("policy")))
}

/// What stands on record of the policies, from one record on.
async fn told(gate: &Gate, from: usize, what: &str) -> Value {
    let said = |record: &Value| record["message"].as_str().unwrap().contains(what);
    until(gate, what, || gate.records("policy").into_iter().skip(from).find(said)).await
}

/// Waits until a set of at least this revision came into force.
async fn in_force(gate: &Gate, revision: u64) -> Value {
    // An API server counts what else it holds, too.
    let is = |record: &Value| record["policy_set"]["revision"].as_u64() >= Some(revision);
    let what = format!("revision {revision}");
    until(gate, &what, || gate.records("policy").into_iter().rfind(is)).await
}

/// SIGHUP, and what came of it.
async fn reload(gate: &Gate) -> String {
    let before = gate.records("policy").len();
    gate.signal(Signal::SIGHUP);
    let record = until(gate, "an answer", || gate.records("policy").into_iter().nth(before)).await;
    record["message"].as_str().unwrap().to_owned()
}

/// SIGHUP, until this stands on record, from one record on: an answer that was under way already
/// may come first.
async fn comes_to(gate: &Gate, from: usize, what: &str) -> Value {
    reload(gate).await;
    told(gate, from, what).await
}

/// `portcullis status -o json`.
fn status(gate: &Gate) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["status", "-o", "json", "--config"])
        .arg(gate.path().join("config.toml"))
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The trouble that `status` tells, and its text.
fn trouble(gate: &Gate) -> (String, String) {
    let status = status(gate);
    let text = |name: &str| status["policies"][name].as_str().unwrap_or_default().to_owned();
    (text("trouble"), text("rejected"))
}

/// Where the mark is that says which sets were accepted.
fn mark(gate: &Gate) -> PathBuf {
    gate.path().join("audit.jsonl.policy-mark")
}

/// The sets that are kept in the state directory.
fn kept(gate: &Gate) -> Vec<PathBuf> {
    let directory = fs::read_dir(gate.path().join("state/policy"));
    let entries = directory.into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// From now on the API server closes every connection without an answer.
fn take_down(server: &ApiServer) {
    server.fault(usize::MAX, |_| true, Fault::Close);
    server.break_watches("");
}

/// What a node says of it then.
fn closed(server: &ApiServer) -> String {
    format!("the API server {} closed the connection without an answer", server.url())
}

/// Copies the files of a directory, and of the directories in it.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
