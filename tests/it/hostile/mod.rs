//! Every way that we know to get an image past the gate, and every way to keep the gate from
//! judging: a table, each line of which goes end to end through the real daemon.
//!
//! A case arranges a registry and says what kubelet must be told. The table holds each answer to
//! the rest of the promise: the runtime heard nothing, the audit log has one line an attempt with
//! the same reason and text, and the text is the same when the caller comes back with other
//! credentials.

mod answers;
mod holes;
mod images;
mod policies;
mod requests;
mod signatures;
mod slow;
mod transport;

use std::{cell::RefCell, fmt::Display, path::Path};

use futures_util::future::join_all;
use portcullis::image::Digest;
use serde_json::Value;

use crate::support::{
    cri::{AuthConfig, PULL_IMAGE, pull},
    gate::{Setup, records},
    grpc::Client,
    registry::{Builder, Fault, Match, TestRegistry},
    runtime::{FakeRuntime, ok},
    sign::{self, Signer},
};

/// One line of the table.
struct Case {
    name: String,
    registry: Builder,
    arrange: Box<dyn FnOnce(&Scene)>,
    /// What is pulled, with placeholders.
    image: &'static str,
    /// The policy's text; by default one key named `release`, for this repository.
    policy: Option<fn(&Scene) -> String>,
    /// `hosts.toml` of the registry, with placeholders.
    hosts: Option<String>,
    /// User and password of each attempt; neither for an anonymous one.
    callers: [Option<(&'static str, &'static str)>; 2],
    reason: &'static str,
    /// Behind the prefix that goes with the reason, with placeholders.
    message: String,
}

/// What a case arranges things with.
struct Scene {
    registry: TestRegistry,
    repository: String,
    /// An image at `v1`, unsigned.
    digest: Digest,
    key: Signer,
    other: Signer,
    /// Texts of this run behind the placeholders of the table.
    names: RefCell<Vec<(String, String)>>,
}

impl Scene {
    /// What stands behind a placeholder.
    fn name(&self, placeholder: &str, text: impl Display) {
        self.names.borrow_mut().push((format!("{{{placeholder}}}"), text.to_string()));
    }

    fn fill(&self, text: &str) -> String {
        let names = self.names.borrow();
        names.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// The other way round, for a failing test to print.
    fn blank(&self, text: &str) -> String {
        let names = self.names.borrow();
        names.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(value, name))
    }

    fn sign_simple(&self) {
        self.key.sign_simple(&self.registry, &self.repository, self.digest);
    }

    /// The manifest and the bundle.
    fn sign_bundle(&self) -> (Digest, Digest) {
        let bundle = self.key.bundle(&sign::statement(self.digest, sign::SIGN));
        self.name("size", bundle.len());
        let manifest = sign::push_bundle(&self.registry, &self.repository, self.digest, &bundle);
        (manifest, Digest::of(&bundle))
    }

    /// Signs with a `.sig` manifest of these layers.
    fn sign_with(&self, layers: Vec<Value>) -> Digest {
        sign::push_simple(&self.registry, &self.repository, self.digest, layers)
    }

    fn fault(&self, to: Match, fault: Fault) {
        self.registry.fault(to, fault);
    }

    fn sig_tag(&self) -> String {
        format!("sha256-{}.sig", self.digest.hex())
    }

    /// An `ImagePolicy` for the repository, with these further lines of `spec`.
    fn policy(&self, lines: &str, keys: &[(&str, &Signer)]) -> String {
        let images = format!("{}/{}", self.registry.host(), self.repository);
        let text = sign::policy(&self.repository, &images, keys);
        text.replace("spec:\n", &format!("spec:\n{lines}"))
    }
}

impl Case {
    /// An unsigned image that is pulled by tag.
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            registry: TestRegistry::builder(),
            arrange: Box::new(|_| {}),
            image: "{host}/{repository}:v1",
            policy: None,
            hosts: None,
            callers: [None, Some(("other", "credentials"))],
            reason: "",
            message: String::new(),
        }
    }

    fn registry(mut self, registry: Builder) -> Self {
        self.registry = registry;
        self
    }

    fn arrange(mut self, arrange: impl FnOnce(&Scene) + 'static) -> Self {
        self.arrange = Box::new(arrange);
        self
    }

    fn image(mut self, image: &'static str) -> Self {
        self.image = image;
        self
    }

    fn policy(mut self, policy: fn(&Scene) -> String) -> Self {
        self.policy = Some(policy);
        self
    }

    fn hosts(mut self, text: impl Into<String>) -> Self {
        self.hosts = Some(text.into());
        self
    }

    fn callers(mut self, first: &'static str, second: &'static str) -> Self {
        self.callers = [first, second].map(|user| Some((user, "password")));
        self
    }

    fn anonymous(mut self) -> Self {
        self.callers = [None, None];
        self
    }

    /// The reason and the whole message.
    fn refused(mut self, reason: &'static str, message: impl Into<String>) -> Self {
        (self.reason, self.message) = (reason, message.into());
        self
    }

    /// The reason, and what the one authority found.
    fn judged(self, reason: &'static str, found: impl Display) -> Self {
        self.refused(
            reason,
            format!(
                "{{pinned}}: policy \"{{repository}}\" requires 1 of 1 authority: \"release\": {found}"
            ),
        )
    }
}

/// gRPC code and prefix that kubelet is told a reason with.
fn wire(reason: &str) -> (i32, &'static str) {
    match reason {
        "registry_unreachable" => (2, "RegistryUnavailable: "),
        "registry_unauthorized" => (2, ""),
        "image_not_found" => (5, ""),
        "malformed_request" => (3, ""),
        _ => (2, "SignatureValidationFailed: "),
    }
}

/// What an attempt got, and what it should have got.
struct Attempt {
    name: String,
    told: (i32, String),
    expected: (i32, String),
    printed: String,
}

/// A case with its registry running.
struct Staged {
    case: Case,
    scene: Scene,
    image: String,
}

fn stage(number: usize, mut case: Case) -> Staged {
    let registry = std::mem::take(&mut case.registry).start();
    let repository = format!("case-{number}");
    let digest = registry.push_image(&repository, "v1");
    let (key, other, names) = (Signer::new(), Signer::new(), RefCell::default());
    let scene = Scene { registry, repository, digest, key, other, names };
    scene.name("host", scene.registry.host());
    scene.name("repository", &scene.repository);
    scene.name("hex", digest.hex());
    scene.name("digest", digest);
    scene.name("image", format!("{}/{}:v1", scene.registry.host(), scene.repository));
    scene.name("pinned", format!("{}/{}@{digest}", scene.registry.host(), scene.repository));
    std::mem::replace(&mut case.arrange, Box::new(|_| {}))(&scene);
    let image = scene.fill(case.image);
    Staged { case, scene, image }
}

impl Staged {
    fn policy_text(&self) -> String {
        let by_key = |scene: &Scene| scene.policy("", &[("release", &scene.key)]);
        self.case.policy.unwrap_or(by_key)(&self.scene)
    }

    /// Both attempts, one after the other.
    async fn attempt(&self, socket: &Path) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        let client = Client::connect(socket).await;
        for caller in self.case.callers {
            let mut request = pull(&self.image, "shop");
            request.auth = caller.map(|(username, password)| AuthConfig {
                username: username.into(),
                password: password.into(),
                ..Default::default()
            });
            let told = client.unary(PULL_IMAGE, &request).await.status();
            let (code, prefix) = wire(self.case.reason);
            attempts.push(Attempt {
                name: self.case.name.clone(),
                expected: (code, prefix.to_owned() + &self.scene.fill(&self.case.message)),
                printed: self.scene.blank(&told.1),
                told,
            });
        }
        attempts
    }
}

/// Holds a table against a daemon of its own.
async fn all_refused(cases: Vec<Case>) {
    let runtime = FakeRuntime::start(|_| ok(b""));
    let mut setup = Setup::before(runtime.socket());
    let staged: Vec<_> = cases.into_iter().enumerate().map(|(n, case)| stage(n, case)).collect();
    for one in &staged {
        setup = setup.policy(&format!("{}.yaml", one.scene.repository), &one.policy_text());
        if let Some(hosts) = &one.case.hosts {
            setup = setup.hosts(one.scene.registry.host(), &one.scene.fill(hosts));
        }
    }
    let gate = setup.start();
    let attempts = attempt_all(&staged, &gate.socket()).await;
    hold(&staged, &attempts, &runtime, &gate.audit_file());
}

async fn attempt_all(staged: &[Staged], socket: &Path) -> Vec<Attempt> {
    join_all(staged.iter().map(|one| one.attempt(socket))).await.into_iter().flatten().collect()
}

/// What must be true of a table when all attempts were answered.
fn hold(staged: &[Staged], attempts: &[Attempt], runtime: &FakeRuntime, audit_file: &Path) {
    assert_eq!(attempts.len(), 2 * staged.len());
    let wrong: Vec<_> = attempts.iter().filter(|one| one.told != one.expected).collect();
    for one in wrong.iter().step_by(2) {
        eprintln!("{}: {} {}", one.name, one.told.0, one.printed);
    }
    for one in wrong {
        assert_eq!(one.told, one.expected, "{}", one.name);
    }
    assert_eq!(runtime.paths(), Vec::<String>::new());

    let field = |record: &Value, name: &str| record[name].as_str().unwrap_or("").to_owned();
    let mut recorded: Vec<_> = records(audit_file, "pull")
        .iter()
        .map(|record| ["decision", "reason", "message"].map(|name| field(record, name)))
        .collect();
    let mut expected: Vec<_> = staged
        .iter()
        .flat_map(|one| {
            let line = ["deny".into(), one.case.reason.into(), one.scene.fill(&one.case.message)];
            [line.clone(), line]
        })
        .collect();
    recorded.sort();
    expected.sort();
    assert_eq!(recorded, expected);
}
