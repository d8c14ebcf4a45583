//! Mirrors: who is asked, in which order, and what it takes to say that something is not there.

use super::*;
use crate::support::registry::Match;

/// A mirror before an upstream.
struct Two {
    mirror: TestRegistry,
    upstream: TestRegistry,
    node: Node,
}

impl Two {
    fn new() -> Self {
        Self::where_mirror_may("")
    }

    fn where_mirror_may(capabilities: &str) -> Self {
        let (mirror, upstream) = (TestRegistry::start(), TestRegistry::start());
        let node = Node::new(&format!(
            "server = \"{}\"\n[host.\"{}\"]\n{capabilities}",
            upstream.url(),
            mirror.url()
        ));
        Self { mirror, upstream, node }
    }

    #[track_caller]
    fn refuses<T: std::fmt::Debug>(
        &self,
        result: Result<T, RegistryError>,
        code: Code,
        told: &str,
    ) {
        let told = told.replace("MIRROR", self.mirror.host());
        refuses(result, code, &told, &self.upstream);
    }
}

#[tokio::test]
async fn the_first_host_that_has_it_answers() {
    let two = Two::new();
    let image = two.upstream.push_image("app", "v1");
    assert_eq!(two.node.anonymous_tag().await.unwrap().digest, image);
    assert_eq!(two.mirror.asked(), ["GET /v2/app/manifests/v1?ns=registry.example"]);
    assert_eq!(two.upstream.asked(), ["GET /v2/app/manifests/v1?ns=registry.example"]);

    let mirrored = two.mirror.push_image("app", "v1");
    assert_eq!(two.node.anonymous_tag().await.unwrap().digest, mirrored);
    assert_eq!(two.upstream.requests().len(), 1);
}

#[tokio::test]
async fn only_hosts_that_resolve_are_asked_for_tags() {
    let two = Two::where_mirror_may("capabilities = [\"pull\"]");
    let image = two.upstream.push_image("app", "v1");
    two.mirror.push_image("app", "v1");
    let repo = two.node.repo(&Credentials::Anonymous);
    assert_eq!(repo.tagged(&tag("v1"), LIMIT).await.unwrap().digest, image);
    repo.referrers(&image, 1).await.unwrap();
    assert!(two.mirror.requests().is_empty());
    repo.manifest(&by_digest(image), LIMIT).await.unwrap();
    assert_eq!(two.mirror.requests().len(), 1);
}

#[tokio::test]
async fn a_mirror_in_trouble_is_passed_over_at_once() {
    for fault in [
        status(403),
        status(429),
        status(500),
        Fault::CloseConnection,
        Fault::EndlessBody,
        Fault::LyingDigestHeader,
        Fault::RedirectLoop,
    ] {
        let two = Two::new();
        let image = two.upstream.push_image("app", "v1");
        two.mirror.push_image("app", "v1");
        two.mirror.fault(Match::any(), fault.clone());
        assert_eq!(two.node.anonymous_tag().await.unwrap().digest, image);
        let tries = if matches!(fault, Fault::RedirectLoop) { 11 } else { 1 };
        assert_eq!(two.mirror.requests().len(), tries);
    }
}

#[tokio::test]
async fn a_mirror_that_hangs_is_passed_over_in_time() {
    let mirror = TestRegistry::start();
    let upstream = TestRegistry::start();
    let image = upstream.push_image("app", "v1");
    mirror.fault(Match::any(), Fault::Hang);
    let text = format!("server = \"{}\"\n[host.\"{}\"]", upstream.url(), mirror.url());
    let timeouts = Timeouts { request: Duration::from_secs(1), ..PATIENT };
    let node = Node::with_timeouts(&text, timeouts);
    assert_eq!(node.anonymous_tag().await.unwrap().digest, image);
}

#[tokio::test]
async fn a_mirror_with_other_bytes_is_passed_over_and_not_forgotten() {
    let two = Two::new();
    let image = two.upstream.push_image("app", "v1");
    let repo = two.node.repo(&Credentials::Anonymous);
    two.mirror.fault(Match::any(), Fault::Status(200, vec![], "other".into()));
    assert_eq!(repo.manifest(&by_digest(image), LIMIT).await.unwrap().digest, image);
    let absent = Digest::of(b"absent");
    two.refuses(
        repo.manifest(&by_digest(absent), LIMIT).await,
        Code::DigestMismatch,
        &format!(
            "manifest {absent}: MIRROR sent {} instead of {absent}; {{}} has none (404 Not Found)",
            Digest::of(b"other")
        ),
    );
}

#[tokio::test]
async fn it_takes_every_host_to_say_that_there_is_none() {
    let two = Two::new();
    two.refuses(
        two.node.anonymous_tag().await,
        Code::ImageNotFound,
        "tag v1: MIRROR has none (404 Not Found); {} has none (404 Not Found)",
    );
    // The one that matters most: a mirror without the signature, and an upstream out of reach.
    for troubled in [&two.mirror, &two.upstream] {
        for (code, name) in
            [(500, "Internal Server Error"), (403, "Forbidden"), (400, "Bad Request")]
        {
            two.mirror.heal();
            two.upstream.heal();
            troubled.fault(Match::any(), status(code));
            let error = two.node.anonymous_tag().await.unwrap_err();
            assert!(!error.is_not_found(), "{error}");
            assert!(error.to_string().contains(&format!("{code} {name}")), "{error}");
        }
    }
}

#[tokio::test]
async fn a_mirror_without_it_and_an_upstream_out_of_reach_prove_nothing() {
    let mirror = TestRegistry::start();
    let closed = closed_port();
    let node = Node::new(&format!("server = \"http://{closed}\"\n[host.\"{}\"]", mirror.url()));
    let repo = node.repo(&Credentials::Anonymous);
    let image = Digest::of(b"image");
    let signature: Tag = tag(&format!("sha256-{}.sig", image.hex()));
    refuses(
        repo.tagged(&signature, LIMIT).await,
        Code::RegistryUnreachable,
        &format!("tag {signature}: {{}} has none (404 Not Found); {closed} refused the connection"),
        &mirror,
    );
    refuses(
        repo.referrers(&image, 100).await,
        Code::RegistryUnreachable,
        &format!("referrers of {image}: {{}} lists none; {closed} refused the connection"),
        &mirror,
    );
}

#[tokio::test]
async fn nobody_to_ask_is_not_absence() {
    let registry = TestRegistry::start();
    let text = format!("server = \"{}\"\ncapabilities = [\"push\"]", registry.url());
    let node = Node::new(&text);
    let repo = node.repo(&Credentials::Anonymous);
    let nobody = "no host may be asked: hosts.toml gives none the capability";
    let image = Digest::of(b"image");
    refuses(
        repo.tagged(&tag("v1"), LIMIT).await,
        Code::RegistryUnreachable,
        &format!("tag v1: {nobody}"),
        &registry,
    );
    refuses(
        repo.referrers(&image, 1).await,
        Code::RegistryUnreachable,
        &format!("referrers of {image}: {nobody}"),
        &registry,
    );
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn a_broken_file_asks_the_registry_itself() {
    let registry = TestRegistry::start();
    let mirror = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let node = Node::new("");
    let host = node.path().join(registry.host());
    fs::create_dir(&host).unwrap();
    let broken = format!("server = \"{}\"\ncapabilities = [\"unknown\"]", mirror.url());
    fs::write(host.join("hosts.toml"), broken).unwrap();
    let repo = node.repo_of(&format!("{}/app", registry.host()), &Credentials::Anonymous);
    assert_eq!(repo.tagged(&tag("v1"), LIMIT).await.unwrap().digest, image);
    assert_eq!(registry.asked(), ["GET /v2/app/manifests/v1"]);
    assert!(mirror.requests().is_empty());
}

#[tokio::test]
async fn the_file_is_read_anew_for_each_pull() {
    let two = Two::new();
    two.mirror.push_image("app", "v1");
    let image = two.upstream.push_image("app", "v1");
    two.node.anonymous_tag().await.unwrap();
    two.node.write("hosts.toml", &format!("server = \"{}\"", two.upstream.url()));
    assert_eq!(two.node.anonymous_tag().await.unwrap().digest, image);
}

#[tokio::test]
async fn headers_and_paths_of_a_host() {
    let registry = TestRegistry::start();
    registry.push_image("proxy/app", "v1");
    let node = Node::new(&format!(
        "server = \"{}/v2/proxy/\"\noverride_path = true\n[header]\nx-one = \"1\"\nx-two = [\"a\", \"b\"]",
        registry.url()
    ));
    node.anonymous_tag().await.unwrap();
    assert_eq!(registry.asked(), ["GET /v2/proxy/app/manifests/v1?ns=registry.example"]);
    let request = &registry.requests()[0];
    assert_eq!(request.header("x-one"), Some("1"));
    let two: Vec<_> = request.headers.get_all("x-two").iter().collect();
    assert_eq!(two, ["a", "b"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_an_error() {
    let registry = TestRegistry::start();
    let node = Node::new("");
    let file = node.path().join("registry.example/hosts.toml");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refuses(
        node.anonymous_tag().await,
        Code::RegistryUnreachable,
        &format!(
            "tag v1: registry.example cannot be asked: {} cannot be read: not a regular file",
            file.display()
        ),
        &registry,
    );
}

/// As guides write it for a registry with a CA of its own: once as the server, and once as a host,
/// where alone the CA is named.
#[tokio::test]
async fn a_place_that_is_named_twice_says_only_once_that_it_has_none() {
    let ca = TestCa::new();
    let registry = TestRegistry::builder().tls(&ca).start();
    let digest = registry.push_image("app", "v1");
    let url = registry.url();
    let node = Node::new(&format!("server = {url:?}\n[host.{url:?}]\nca = \"ca.pem\""));
    node.write("ca.pem", ca.pem());
    let repo = node.repo(&Credentials::Anonymous);
    assert!(repo.referrers(&digest, 1).await.unwrap().is_empty());
    let gone = "tag gone: {} has none (404 Not Found)";
    refuses(repo.tagged(&tag("gone"), LIMIT).await, Code::ImageNotFound, gone, &registry);
    let asked = registry.requests().len();
    assert_eq!(asked, 2, "the list of referrers, the tag");
}

/// The second time it may show more than the first: that is another question.
#[tokio::test]
async fn a_place_that_is_named_again_with_a_header_of_its_own_is_asked_again() {
    let registry = TestRegistry::start();
    let url = registry.url();
    let node = Node::new(&format!("server = {url:?}\n[header]\nx-key = \"k\"\n[host.{url:?}]"));
    node.anonymous_tag().await.unwrap_err();
    let asked = registry.requests();
    let keys: Vec<_> = asked.iter().map(|asked| asked.headers.get("x-key").is_some()).collect();
    assert_eq!(keys, [false, true]);
}
