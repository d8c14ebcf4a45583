//! Who is asked, and what others hear of it.

use crate::support::{
    ca::TestCa,
    cri::{AuthConfig, PULL_IMAGE, pull},
    gate::Setup,
    registry::{Fault, Match, TestRegistry},
    runtime::{FakeRuntime, pulling},
    sign::{Signer, policy, simple_payload},
};
use portcullis::image::Digest;

use super::{Case, Scene, all_refused};

#[tokio::test]
async fn a_registry_that_cannot_be_trusted_is_not_asked() {
    let https = "server = \"https://{host}\"\n";
    let case = |name: &str, why: &str| {
        Case::new(name)
            .arrange(Scene::sign_simple)
            .hosts(https)
            .refused("registry_unreachable", format!("{{image}}: tag v1: {{host}} {why}"))
    };
    let ca = TestCa::new();
    all_refused(vec![
        case(
            "an unknown CA",
            "has a certificate that is not trusted: name its CA as `ca` in hosts.toml",
        )
        .registry(TestRegistry::builder().tls(&ca)),
        case(
            "plain HTTP on an HTTPS port",
            "speaks no TLS: name it with http:// in hosts.toml, if that is meant",
        ),
        case("plain HTTP to an HTTPS port", "gave no answer in HTTP")
            .registry(TestRegistry::builder().tls(&ca))
            .hosts("server = \"http://{host}\"\n"),
        case("nobody there", "")
            .hosts("server = \"http://127.0.0.1:1\"\n")
            .refused("registry_unreachable", "{image}: tag v1: 127.0.0.1:1 refused the connection"),
        case("hosts.toml gives nobody the right to resolve", "")
            .hosts("server = \"http://{host}\"\ncapabilities = [\"pull\"]\n")
            .refused(
                "registry_unreachable",
                "{image}: tag v1: no host may be asked: hosts.toml gives none the capability",
            ),
        case(
            "a CA that cannot be read",
            "cannot be asked: /nonexistent/ca.pem cannot be read: No such file or directory (os \
             error 2)",
        )
        .hosts("server = \"https://{host}\"\nca = \"/nonexistent/ca.pem\"\n"),
        case(
            "TLS that must be, though whose does not matter",
            "speaks no TLS: name it with http:// in hosts.toml, if that is meant",
        )
        .hosts("server = \"https://{host}\"\nskip_verify = true\n"),
    ])
    .await;
}

/// A redirect to another host is followed, without a word of what was for the first one.
#[tokio::test]
async fn another_host_hears_no_secrets() {
    let registry = TestRegistry::builder().basic("user", "password").start();
    let (elsewhere, key) = (TestRegistry::start(), Signer::new());
    let digest = registry.push_image("app", "v1");
    key.sign_simple(&registry, "app", digest);
    let payload = simple_payload(digest);
    let blob = Digest::of(&payload);
    elsewhere.push_blob("elsewhere", payload);
    let there = format!("{}/v2/elsewhere/blobs/{blob}", elsewhere.url());
    registry.fault(Match::blob("app", blob), Fault::RedirectTo(there));

    let runtime = FakeRuntime::start(pulling);
    let images = format!("{}/app", registry.host());
    let hosts = format!("server = \"{}\"\n[header]\nx-mine = \"for one host\"\n", registry.url());
    let gate = Setup::before(runtime.socket())
        .policy("p.yaml", &policy("app", &images, &[("release", &key)]))
        .hosts(registry.host(), &hosts)
        .start();
    let mut request = pull(&format!("{images}@{digest}"), "shop");
    request.auth = Some(AuthConfig {
        username: "user".into(),
        password: "password".into(),
        ..Default::default()
    });
    let client = gate.client().await;
    // It asks for them in vain.
    elsewhere.fault(
        Match::any(),
        Fault::Status(401, vec![("www-authenticate", "Basic realm=\"r\"".into())], String::new()),
    );
    let (code, message) = client.unary(PULL_IMAGE, &request).await.status();
    assert_eq!(
        (code, message),
        (
            2,
            format!(
                "RegistryUnavailable: {images}@{digest}: policy \"app\" requires 1 of 1 authority: \
                 \"release\": no signature found; not every signature could be looked up: blob \
                 {blob}: {} redirected to 127.0.0.1, which answered 401 Unauthorized",
                registry.host()
            )
        )
    );
    assert_eq!(runtime.paths(), Vec::<String>::new());
    let heard = elsewhere.requests();
    assert!(!heard.is_empty());
    assert!(heard.iter().all(|r| r.authorization().is_none() && r.header("x-mine").is_none()));

    elsewhere.heal();
    assert_eq!(client.unary(PULL_IMAGE, &request).await.status(), (0, String::new()));
    assert_eq!(runtime.paths(), [PULL_IMAGE]);

    let asked = registry.requests();
    assert!(asked.iter().all(|request| request.header("x-mine") == Some("for one host")));
    assert!(asked.iter().any(|request| request.authorization().is_some()));
    let all = elsewhere.requests();
    assert_eq!(all.len(), heard.len() + 1);
    assert!(all.iter().all(|r| r.authorization().is_none() && r.header("x-mine").is_none()));
    assert!(!gate.log().contains("password") && !gate.log().contains("for one host"));
}
