//! The real cosign, asked about many images at once.

use std::{env, path::PathBuf, process::Command};

use serde_json::Value;

use crate::support::{docker_registry::program, fixtures::Fixtures, registry::TestRegistry};

/// Most images that one process is asked about; it stops at the first that it refuses.
const BATCH: usize = 64;

/// Portcullis reads no log in this version, so cosign is told not to, either.
const OF_LOGS: [&str; 4] =
    ["--offline", "--trusted-root", "rekor/trusted-root.json", "--insecure-ignore-tlog"];

/// Signed with another algorithm than cosign 2 expects of the key: it has to be told.
const ALGORITHMS: [(&str, &str); 3] = [
    ("cosign2/ecdsa-p384-sha384", "sha384"),
    ("cosign2/ecdsa-p521-sha512", "sha512"),
    ("cosign3-legacy-tlog/ecdsa-p384", "sha384"),
];

/// `make differential`: with everything, however long it takes.
pub(super) fn everything() -> bool {
    env::var_os("PORTCULLIS_EVERY_BYTE").is_some()
}

/// One way to ask cosign about a fixture.
#[derive(Clone, Debug)]
pub(super) struct Question {
    version: String,
    key: PathBuf,
    flags: Vec<String>,
    /// What is signed: the image, or its child.
    subject: String,
    /// Whether cosign was seen to accept the fixture when it was made.
    pub(super) passed: bool,
}

impl Question {
    /// As `registry.json` has them for this key.
    pub(super) fn of(fixtures: &Fixtures, name: &str, key: &str) -> Vec<Self> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let asked = fixtures.checks.iter().filter(|check| check["repository"] == name);
        let mut questions: Vec<_> = asked
            .filter(|check| check["key"] == key)
            .map(|check| {
                let flags = check["flags"].as_array().unwrap().iter().map(text);
                Self {
                    version: text(&check["cosign"]),
                    key: fixtures.path(key),
                    flags: flags.filter(|flag| !OF_LOGS.contains(&&**flag)).collect(),
                    subject: text(&check["digest"]),
                    passed: check["passes"] == true,
                }
            })
            .collect();
        if let Some((_, algorithm)) = ALGORITHMS.iter().find(|(fixture, _)| *fixture == name) {
            let flags = ["--signature-digest-algorithm", algorithm].map(str::to_owned);
            questions[0].flags.extend(flags);
        }
        questions
    }

    /// Whether the program is there: cosign 3 comes from a suite that moves.
    pub(super) fn can_be_asked(&self) -> bool {
        self.version == "2" || everything()
    }

    /// The repositories whose image cosign refuses.
    pub(super) fn refused(&self, registry: &TestRegistry, repositories: &[String]) -> Vec<String> {
        let mut refused = Vec::new();
        for batch in repositories.chunks(BATCH) {
            self.split(registry, batch, &mut refused);
        }
        refused
    }

    fn split(&self, registry: &TestRegistry, repositories: &[String], refused: &mut Vec<String>) {
        if self.accepts(registry, repositories) {
            return;
        }
        if let [one] = repositories {
            refused.push(one.clone());
            return;
        }
        let (left, right) = repositories.split_at(repositories.len() / 2);
        self.split(registry, left, refused);
        self.split(registry, right, refused);
    }

    fn accepts(&self, registry: &TestRegistry, repositories: &[String]) -> bool {
        let scratch = tempfile::tempdir().unwrap();
        let images =
            repositories.iter().map(|one| format!("{}/{one}@{}", registry.host(), self.subject));
        let part = format!("cosign-{}", self.version);
        let output = Command::new(program(&part, "usr/bin/cosign"))
            .args(["verify", "--allow-http-registry", "--allow-insecure-registry"])
            .arg("--key")
            .arg(&self.key)
            .arg("--insecure-ignore-tlog")
            .args(&self.flags)
            .args(images)
            .current_dir(scratch.path())
            .env("HOME", scratch.path())
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        output.status.success()
    }
}
