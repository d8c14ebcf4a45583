//! TLS as `hosts.toml` has it, and as containerd does it without one.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig, crypto::aws_lc_rs::default_provider, pki_types::PrivateKeyDer,
};

use super::*;
use crate::support::ca::{LOOPBACK, TestCa};

fn secure(ca: &TestCa) -> TestRegistry {
    let registry = TestRegistry::builder().tls(ca).start();
    registry.push_image("app", "v1");
    registry
}

fn node(registry: &TestRegistry, keys: &str) -> Node {
    Node::new(&format!("server = \"{}\"\n{keys}", registry.url()))
}

const UNTRUSTED: &str = "tag v1: {} has a certificate that is not trusted: name its CA as `ca` in \
                         hosts.toml";

#[tokio::test]
async fn a_ca_of_ones_own() {
    let ca = TestCa::new();
    let registry = secure(&ca);
    let node = node(&registry, "ca = \"ca.pem\"");
    node.write("ca.pem", TestCa::new().pem());
    refuses(node.anonymous_tag().await, Code::RegistryUnreachable, UNTRUSTED, &registry);
    // A file that is replaced counts for the next pull.
    node.write("ca.pem", ca.pem());
    node.anonymous_tag().await.unwrap();
    assert_eq!(registry.requests()[0].version, http::Version::HTTP_2);
}

#[tokio::test]
async fn nobody_is_trusted_unsaid() {
    let registry = secure(&TestCa::new());
    for keys in ["", "skip_verify = false"] {
        let node = node(&registry, keys);
        refuses(node.anonymous_tag().await, Code::RegistryUnreachable, UNTRUSTED, &registry);
    }
    node(&registry, "skip_verify = true").anonymous_tag().await.unwrap();
}

#[tokio::test]
async fn a_name_must_fit() {
    let ca = TestCa::new();
    let config = ca.server_config(&ca.server(&["other.example"]), false);
    let registry = TestRegistry::builder().tls_config(config).start();
    let node = node(&registry, "ca = \"ca.pem\"");
    node.write("ca.pem", ca.pem());
    refuses(
        node.anonymous_tag().await,
        Code::RegistryUnreachable,
        "tag v1: {} has a certificate for another name",
        &registry,
    );
}

/// As `openssl req -x509` makes one: a CA by its extensions, and the server's own certificate.
fn self_signed(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> (String, ServerConfig) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (cert.pem(), config)
}

#[tokio::test]
async fn a_certificate_that_vouches_for_itself() {
    let try_with = async |trusted: Option<&str>, pem: &str, config: ServerConfig| {
        let registry = TestRegistry::builder().tls_config(config).start();
        registry.push_image("app", "v1");
        let node = node(&registry, "ca = \"ca.pem\"");
        node.write("ca.pem", trusted.unwrap_or(pem));
        node.anonymous_tag().await.map(drop).map_err(|error| {
            error
                .to_string()
                .replace(registry.host(), "{}")
                .replace("tag v1: {} has a certificate ", "")
        })
    };
    let (pem, config) = self_signed(LOOPBACK, |_| ());
    assert_eq!(try_with(None, &pem, config).await, Ok(()));
    // Nobody but the one that is named, at its own name, in its own time.
    let (pem, config) = self_signed(LOOPBACK, |_| ());
    let (other, _) = self_signed(LOOPBACK, |_| ());
    assert_eq!(
        try_with(Some(&other), &pem, config).await,
        Err("that is not trusted: name its CA as `ca` in hosts.toml".to_owned())
    );
    let (pem, config) = self_signed(&["other.example"], |_| ());
    assert_eq!(try_with(None, &pem, config).await, Err("for another name".to_owned()));
    let (pem, config) = self_signed(LOOPBACK, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    assert_eq!(try_with(None, &pem, config).await, Err("that is expired".to_owned()));
}

#[tokio::test]
async fn client_certificates() {
    let ca = TestCa::new();
    let registry = TestRegistry::builder().client_cert_tls(&ca).start();
    registry.push_image("app", "v1");
    let try_with = async |client: &str| {
        let node = node(&registry, &format!("ca = \"ca.pem\"\n{client}"));
        let (identity, stranger) = (ca.client("node"), TestCa::new().client("stranger"));
        node.write("ca.pem", ca.pem());
        node.write("both.pem", &(identity.cert_pem.clone() + &identity.key_pem));
        node.write("node.cert", &identity.cert_pem);
        node.write("node.key", &identity.key_pem);
        node.write("stranger.pem", &(stranger.cert_pem + &stranger.key_pem));
        node.anonymous_tag().await
    };
    for client in [
        "client = \"both.pem\"",
        "client = [\"both.pem\"]",
        "client = [[\"node.cert\", \"node.key\"]]",
        "client = [[\"both.pem\", \"\"]]",
    ] {
        try_with(client).await.unwrap();
        assert!(registry.requests().last().unwrap().client_cert, "{client}");
    }
    for client in ["", "client = \"stranger.pem\""] {
        refuses(
            try_with(client).await,
            Code::RegistryUnreachable,
            "tag v1: {} closed the connection without an answer: it may want a client \
             certificate, or another one (`client` in hosts.toml)",
            &registry,
        );
    }
}

/// Connections that were opened under other settings stay open, and are not used again.
#[tokio::test]
async fn settings_that_are_taken_back_end_with_their_connections() {
    let ca = TestCa::new();
    let registry = secure(&ca);
    let one = node(&registry, "skip_verify = true");
    one.anonymous_tag().await.unwrap();
    one.write("hosts.toml", &format!("server = \"{}\"", registry.url()));
    refuses(one.anonymous_tag().await, Code::RegistryUnreachable, UNTRUSTED, &registry);

    let registry = TestRegistry::builder().client_cert_tls(&ca).start();
    registry.push_image("app", "v1");
    let identity = ca.client("node");
    let one = node(&registry, "ca = \"ca.pem\"\nclient = \"both.pem\"");
    one.write("ca.pem", ca.pem());
    one.write("both.pem", &(identity.cert_pem + &identity.key_pem));
    one.anonymous_tag().await.unwrap();
    one.write("hosts.toml", &format!("server = \"{}\"\nca = \"ca.pem\"", registry.url()));
    one.anonymous_tag().await.unwrap_err();
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn files_that_are_missing_stop_their_host_only() {
    let ca = TestCa::new();
    let mirror = secure(&ca);
    let upstream = TestRegistry::start();
    let image = upstream.push_image("app", "v1");
    let text =
        format!("server = \"{}\"\n[host.\"{}\"]\nca = \"none.pem\"", upstream.url(), mirror.url());
    let node = Node::new(&text);
    assert_eq!(node.anonymous_tag().await.unwrap().digest, image);
    let repo = node.repo(&Credentials::Anonymous);
    refuses(
        repo.tagged(&tag("v2"), LIMIT).await,
        Code::RegistryUnreachable,
        &format!(
            "tag v2: {} cannot be asked: {} cannot be read: No such file or directory (os error \
             2); {{}} has none (404 Not Found)",
            mirror.host(),
            node.path().join("registry.example/none.pem").display()
        ),
        &upstream,
    );
}

#[tokio::test]
async fn a_registry_on_loopback_needs_no_file() {
    let plain = TestRegistry::start();
    plain.push_image("app", "v1");
    for registry in [plain, secure(&TestCa::new())] {
        let node = Node::new("");
        let repo = node.repo_of(&format!("{}/app", registry.host()), &Credentials::Anonymous);
        repo.tagged(&tag("v1"), LIMIT).await.unwrap();
        repo.tagged(&tag("v1"), LIMIT).await.unwrap();
        assert_eq!(registry.asked(), ["GET /v2/app/manifests/v1"; 2]);
    }
}

#[tokio::test]
async fn http_with_tls_settings_tries_tls_first() {
    let ca = TestCa::new();
    let plain = TestRegistry::start();
    plain.push_image("app", "v1");
    for registry in [plain, secure(&ca)] {
        let node = Node::new(&format!("server = \"http://{}\"\nca = \"ca.pem\"", registry.host()));
        node.write("ca.pem", ca.pem());
        node.anonymous_tag().await.unwrap();
        assert_eq!(registry.requests().len(), 1);
    }
    // A certificate that is not trusted is no reason to go on without any.
    let registry = secure(&TestCa::new());
    let node = Node::new(&format!("server = \"http://{}\"\nca = \"ca.pem\"", registry.host()));
    node.write("ca.pem", ca.pem());
    refuses(node.anonymous_tag().await, Code::RegistryUnreachable, UNTRUSTED, &registry);
}

#[tokio::test]
async fn https_is_never_given_up() {
    let registry = TestRegistry::start();
    registry.push_image("app", "v1");
    let node = Node::new(&format!("server = \"https://{}\"\nskip_verify = true", registry.host()));
    refuses(
        node.anonymous_tag().await,
        Code::RegistryUnreachable,
        "tag v1: {} speaks no TLS: name it with http:// in hosts.toml, if that is meant",
        &registry,
    );
    assert!(registry.requests().is_empty());

    let secure = secure(&TestCa::new());
    secure.fault(
        crate::support::registry::Match::any(),
        Fault::RedirectTo(format!("{}/v2/app/manifests/v1", registry.url())),
    );
    let skip = Node::new(&format!("server = \"{}\"\nskip_verify = true", secure.url()));
    refuses(
        skip.anonymous_tag().await,
        Code::RegistryUnreachable,
        "tag v1: {} redirected to plain http, which is not followed from https",
        &secure,
    );
    assert!(registry.requests().is_empty());
}
