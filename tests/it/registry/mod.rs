//! The registry client against registries that behave, and against those that do not.

mod auth;
mod faults;
mod hosts;
mod referrers;
mod tls;

use std::{fs, path::Path, time::Duration};

use portcullis::{
    image::{Digest, Repository, Tag, Version},
    refusal::{Code, Refusal},
    resolve::{Credentials, Fetched, HostsDirectories, Registry, RegistryError, Repo, Timeouts},
};
use tempfile::TempDir;

use crate::support::{
    ca::TestCa,
    docker_registry::{self, DockerRegistry},
    registry::{Fault, TestRegistry},
};

/// The repository of all tests, at a registry that only `hosts.toml` knows where to find.
const IMAGE: &str = "registry.example/app";
/// Most bytes of a manifest, in these tests.
const LIMIT: usize = 64 << 10;

/// Time limits that no test waits for, but for the pause between tries.
const PATIENT: Timeouts = Timeouts {
    connect: Duration::from_secs(20),
    request: Duration::from_secs(20),
    call: Duration::from_secs(60),
    backoff: Duration::from_millis(1),
};

/// Time limits for hosts that never answer.
const HASTY: Timeouts = Timeouts {
    connect: Duration::from_secs(20),
    request: Duration::from_millis(1500),
    call: Duration::from_millis(3500),
    backoff: Duration::from_millis(1),
};

/// A node with its `hosts.toml` files.
struct Node {
    certs: TempDir,
    registry: Registry,
}

impl Node {
    /// With this `hosts.toml` for `registry.example`.
    fn new(hosts: &str) -> Self {
        Self::with_timeouts(hosts, PATIENT)
    }

    fn with_timeouts(hosts: &str, timeouts: Timeouts) -> Self {
        let certs = tempfile::tempdir().unwrap();
        let directories = HostsDirectories::parse(certs.path().to_str().unwrap());
        let node = Self { certs, registry: Registry::with_timeouts(directories, timeouts) };
        node.write("hosts.toml", hosts);
        node
    }

    /// With one host, asked over plain HTTP.
    fn asking(registry: &TestRegistry) -> Self {
        Self::new(&format!("server = \"{}\"", registry.url()))
    }

    /// Writes a file beside `hosts.toml`.
    fn write(&self, name: &str, text: &str) {
        let directory = self.certs.path().join("registry.example");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), text).unwrap();
    }

    fn repo(&self, credentials: &Credentials) -> Repo {
        self.repo_of(IMAGE, credentials)
    }

    fn repo_of(&self, name: &str, credentials: &Credentials) -> Repo {
        self.registry.repo(&name.parse::<Repository>().unwrap(), credentials)
    }

    async fn tag(&self, credentials: &Credentials) -> Result<Fetched, RegistryError> {
        self.repo(credentials).tagged(&tag("v1"), LIMIT).await
    }

    async fn anonymous_tag(&self) -> Result<Fetched, RegistryError> {
        self.tag(&Credentials::Anonymous).await
    }

    fn path(&self) -> &Path {
        self.certs.path()
    }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn by_digest(digest: Digest) -> Version {
    Version::Digest(digest)
}

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.into(), password: password.into() }
}

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], "hostile \u{1b}[31m text".into())
}

/// Refuses with this code and message; `{}` stands for the host.
#[track_caller]
fn refuses<T: std::fmt::Debug>(
    result: Result<T, RegistryError>,
    code: Code,
    message: &str,
    registry: &TestRegistry,
) {
    let refusal = Refusal::from(result.expect_err(message));
    let wanted = Refusal::new(code, message.replace("{}", registry.host()));
    assert_eq!(refusal, wanted);
}

/// Where nothing listens.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn manifests_and_blobs_arrive_as_they_are() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let blob = registry.push_blob("app", "content");
    let node = Node::asking(&registry);
    let repo = node.repo(&Credentials::Anonymous);
    let fetched = repo.tagged(&tag("v1"), LIMIT).await.unwrap();
    assert_eq!(fetched.digest, image);
    assert_eq!(Digest::of(&fetched.body), image);
    assert_eq!(fetched.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(repo.manifest(&by_digest(image), LIMIT).await.unwrap(), fetched);
    assert_eq!(repo.manifest(&Version::Tag(tag("v1")), LIMIT).await.unwrap(), fetched);
    assert_eq!(repo.blob(&blob, 7).await.unwrap(), "content");
    assert_eq!(
        registry.asked(),
        [
            "GET /v2/app/manifests/v1?ns=registry.example".to_owned(),
            format!("GET /v2/app/manifests/{image}?ns=registry.example"),
            "GET /v2/app/manifests/v1?ns=registry.example".to_owned(),
            format!("GET /v2/app/blobs/{blob}?ns=registry.example"),
        ]
    );
    let request = &registry.requests()[0];
    assert_eq!(
        request.header("accept").unwrap(),
        "application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.oci.image.manifest.v1+json, \
         application/vnd.oci.image.index.v1+json, */*"
    );
    assert!(request.header("user-agent").unwrap().starts_with("portcullis/"));
    assert_eq!(request.authorization(), None);
}

#[tokio::test]
async fn questions_may_be_asked_from_any_task() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    let repo = node.repo(&Credentials::Anonymous);
    let (one, two) = (repo.clone(), repo);
    let tagged = tokio::spawn(async move { one.tagged(&tag("v1"), LIMIT).await });
    let listed = tokio::spawn(async move { two.referrers(&image, 1).await.map(|all| all.len()) });
    assert_eq!(tagged.await.unwrap().unwrap().digest, image);
    assert_eq!(listed.await.unwrap(), Ok(0));
}

#[tokio::test]
async fn connections_are_shared_by_all_pulls() {
    let registry = TestRegistry::start();
    registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    for _ in 0..5 {
        node.anonymous_tag().await.unwrap();
        // The body of an answer that is of no use is read as well.
        let absent = node.repo(&Credentials::Anonymous).tagged(&tag("v2"), LIMIT).await;
        assert!(absent.unwrap_err().is_not_found());
    }
    assert_eq!(registry.connections(), 1);
}

#[tokio::test]
async fn what_no_host_has_is_not_found() {
    let registry = TestRegistry::start();
    let node = Node::asking(&registry);
    let repo = node.repo(&Credentials::Anonymous);
    let digest = Digest::of(b"absent");
    let none = "{} has none (404 Not Found)";
    refuses(
        repo.tagged(&tag("v1"), LIMIT).await,
        Code::ImageNotFound,
        &format!("tag v1: {none}"),
        &registry,
    );
    refuses(
        repo.manifest(&by_digest(digest), LIMIT).await,
        Code::ImageNotFound,
        &format!("manifest {digest}: {none}"),
        &registry,
    );
    refuses(
        repo.blob(&digest, LIMIT).await,
        Code::ImageNotFound,
        &format!("blob {digest}: {none}"),
        &registry,
    );
}

#[tokio::test]
async fn docker_registry_with_tls_and_a_password() {
    let ca = TestCa::new();
    let real = DockerRegistry::builder().tls(&ca).htpasswd().start();
    let node = Node::new(&format!("server = \"{}\"\nca = \"ca.pem\"", real.url()));
    node.write("ca.pem", ca.pem());
    let error = node.anonymous_tag().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized(_)), "{error}");
    let error = node.tag(&basic(docker_registry::USER, "wrong")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized(_)), "{error}");
    let repo = node.repo(&basic(docker_registry::USER, docker_registry::PASSWORD));
    assert!(repo.tagged(&tag("v1"), LIMIT).await.unwrap_err().is_not_found());
    // It has no referrers API, and there is no fallback tag.
    assert_eq!(repo.referrers(&Digest::of(b"image"), 1).await.unwrap().len(), 0);
}
