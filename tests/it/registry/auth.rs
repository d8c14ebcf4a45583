//! Credentials: each kind, and where they never go.

use std::{
    io,
    sync::{Arc, Mutex},
};

use http::Method;

use super::*;
use crate::support::registry::Match;

fn bearer() -> TestRegistry {
    let registry = TestRegistry::builder().bearer("me", "pw").start();
    registry.push_image("app", "v1");
    registry
}

fn token_requests(registry: &TestRegistry) -> Vec<String> {
    registry.asked().into_iter().filter(|asked| asked.contains(" /token")).collect()
}

#[tokio::test]
async fn a_basic_challenge_gets_user_and_password() {
    let registry = TestRegistry::builder().basic("me", "pw").start();
    registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    node.tag(&basic("me", "pw")).await.unwrap();
    let sent: Vec<_> =
        registry.requests().iter().map(|r| r.authorization().map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some("Basic bWU6cHc=".to_owned())]);

    refuses(
        node.tag(&basic("me", "wrong")).await,
        Code::RegistryUnauthorized,
        "tag v1: {} refused the pull credentials (401 Unauthorized)",
        &registry,
    );
    refuses(
        node.anonymous_tag().await,
        Code::RegistryUnauthorized,
        "tag v1: {} wants credentials, and the pull came with none: add an imagePullSecret",
        &registry,
    );
    refuses(
        node.tag(&Credentials::IdentityToken("secret".into())).await,
        Code::RegistryUnauthorized,
        "tag v1: {} wants user name and password, and the pull came with an identity token",
        &registry,
    );
}

#[tokio::test]
async fn a_bearer_challenge_gets_a_token_to_pull_this_repository() {
    let registry = bearer();
    let node = Node::asking(&registry);
    let repo = node.repo(&basic("me", "pw"));
    repo.tagged(&tag("v1"), LIMIT).await.unwrap();
    let service = registry.host().replace(':', "%3A");
    assert_eq!(
        registry.asked(),
        [
            "GET /v2/app/manifests/v1?ns=registry.example".to_owned(),
            format!("GET /token?service={service}&scope=repository%3Aapp%3Apull"),
            "GET /v2/app/manifests/v1?ns=registry.example".to_owned(),
        ]
    );
    let requests = registry.requests();
    assert_eq!(requests[1].authorization(), Some("Basic bWU6cHc="));
    assert_eq!(requests[2].authorization(), Some("Bearer token-1"));

    // The challenge is remembered for the image, the token for all.
    repo.tagged(&tag("v1"), LIMIT).await.unwrap();
    assert_eq!(registry.requests().len(), 4);
    node.tag(&basic("me", "pw")).await.unwrap();
    assert_eq!(token_requests(&registry).len(), 1);
    // Nor is who has a token challenged again.
    assert_eq!(registry.requests().len(), 5);
    assert_eq!(registry.requests()[4].authorization(), Some("Bearer token-1"));

    // Another one has none, and sends none.
    assert!(node.anonymous_tag().await.is_err());
    assert_eq!(registry.requests()[5].authorization(), None);
}

#[tokio::test]
async fn tokens_are_not_shared_by_callers() {
    let registry = bearer();
    let node = Node::asking(&registry);
    node.tag(&basic("me", "pw")).await.unwrap();
    refuses(
        node.tag(&basic("me", "wrong")).await,
        Code::RegistryUnauthorized,
        "tag v1: {} names the token service 127.0.0.1, which gave no token for what the pull \
         came with (401 Unauthorized)",
        &registry,
    );
    assert!(node.anonymous_tag().await.is_err());
}

#[tokio::test]
async fn a_token_that_ended_is_replaced() {
    let registry = bearer();
    let node = Node::asking(&registry);
    let repo = node.repo(&basic("me", "pw"));
    for _ in 0..2 {
        repo.tagged(&tag("v1"), LIMIT).await.unwrap();
        registry.expire_tokens();
    }
    // For the next judgement as well.
    node.tag(&basic("me", "pw")).await.unwrap();
    assert_eq!(token_requests(&registry).len(), 3);
}

#[tokio::test]
async fn anonymous_tokens() {
    let registry = TestRegistry::builder().bearer("me", "pw").anonymous_pull().start();
    registry.push_image("app", "v1");
    Node::asking(&registry).anonymous_tag().await.unwrap();
    assert_eq!(registry.requests()[1].authorization(), None);
    assert_eq!(registry.requests()[2].authorization(), Some("Bearer token-1"));
}

#[tokio::test]
async fn an_identity_token_goes_by_oauth2_or_as_a_password() {
    let registry = bearer();
    let node = Node::asking(&registry);
    let identity = Credentials::IdentityToken(registry.refresh_token().to_owned());
    node.tag(&identity).await.unwrap();
    let form = &registry.requests()[1];
    assert_eq!(form.method, Method::POST);
    let service = registry.host().replace(':', "%3A");
    assert_eq!(
        form.body,
        format!(
            "grant_type=refresh_token&service={service}&scope=repository%3Aapp%3Apull\
             &client_id=portcullis&refresh_token=refresh-pw"
        )
    );
    assert_eq!(form.authorization(), None);

    for unknown in [400, 401, 404, 405] {
        let registry = bearer();
        registry.fault(Match::token().method(Method::POST), status(unknown));
        let node = Node::asking(&registry);
        node.tag(&Credentials::IdentityToken("idt".into())).await.unwrap_err();
        assert_eq!(registry.requests()[2].authorization(), Some("Basic OmlkdA=="));
    }
    let registry = bearer();
    registry.fault(Match::token().method(Method::POST), Fault::RedirectTo("/elsewhere".into()));
    refuses(
        Node::asking(&registry).tag(&identity).await,
        Code::RegistryUnreachable,
        "tag v1: {} names the token service 127.0.0.1, which answered 307 Temporary Redirect",
        &registry,
    );
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let registry = bearer();
    let token = registry.issue_token(&["repository:app:pull"]);
    let node = Node::asking(&registry);
    node.tag(&Credentials::RegistryToken(token)).await.unwrap();
    assert!(token_requests(&registry).is_empty());
    refuses(
        node.tag(&Credentials::RegistryToken("another".into())).await,
        Code::RegistryUnauthorized,
        "tag v1: {} refused the pull credentials (401 Unauthorized)",
        &registry,
    );
}

#[tokio::test]
async fn nobody_gets_credentials_unasked() {
    let registry = TestRegistry::start();
    registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    for credentials in [
        basic("me", "pw"),
        Credentials::IdentityToken("secret".into()),
        Credentials::RegistryToken("secret".into()),
    ] {
        node.tag(&credentials).await.unwrap();
    }
    assert!(registry.requests().iter().all(|request| request.authorization().is_none()));
}

#[tokio::test]
async fn a_server_address_keeps_credentials_from_mirrors() {
    let mirror = TestRegistry::builder().basic("me", "pw").start();
    let upstream = TestRegistry::builder().basic("me", "pw").start();
    upstream.push_image("app", "v1");
    let text = format!("server = \"{}\"\n[host.\"{}\"]", upstream.url(), mirror.url());
    let node = Node::new(&text);
    node.tag(&basic("me", "pw").only_for(upstream.url())).await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.authorization().is_none()));
    assert_eq!(mirror.requests().len(), 1);

    // Without one, a mirror gets them as from containerd: once it has asked.
    node.tag(&basic("me", "pw")).await.unwrap();
    assert_eq!(mirror.requests()[2].authorization(), Some("Basic bWU6cHc="));
}

/// Any host may say that its tokens come from the service of another one. What that one was given
/// for its own header in `hosts.toml` is not for it.
#[tokio::test]
async fn a_token_is_kept_from_hosts_that_name_the_same_token_service() {
    let upstream = bearer();
    let header = "[header]\nauthorization = \"Basic bWU6cHc=\"";
    let node = Node::new(&format!("server = \"{}\"\n{header}", upstream.url()));
    node.anonymous_tag().await.unwrap();

    let hostile = TestRegistry::start();
    let challenge =
        format!("Bearer realm=\"{}/token\",service=\"{}\"", upstream.url(), upstream.host());
    hostile
        .fault(Match::any(), Fault::Status(401, vec![("www-authenticate", challenge)], "".into()));
    node.write(
        "hosts.toml",
        &format!("server = \"{}\"\n{header}\n[host.\"{}\"]", upstream.url(), hostile.url()),
    );
    node.anonymous_tag().await.unwrap();
    assert!(!hostile.requests().is_empty());
    assert!(hostile.requests().iter().all(|request| request.authorization().is_none()));
}

/// What every library below us says at the finest level, in any way to be asked.
#[tokio::test]
async fn no_log_has_a_secret() {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let log = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let ca = TestCa::new();
    let secure = TestRegistry::builder().tls(&ca).bearer("me", "hunter2").start();
    let plain = TestRegistry::builder().bearer("me", "hunter2").start();
    for registry in [secure, plain] {
        registry.push_image("app", "v1");
        let node = Node::new(&format!(
            "server = \"{}\"\nca = \"ca.pem\"\n[header]\nx-key = \"hunter2\"",
            registry.url()
        ));
        node.write("ca.pem", ca.pem());
        node.tag(&basic("me", "hunter2")).await.unwrap();
        node.tag(&Credentials::IdentityToken("refresh-hunter2".into())).await.unwrap();
        node.tag(&Credentials::RegistryToken("token-1".into())).await.unwrap();
        node.tag(&basic("me", "wrong-hunter2")).await.unwrap_err();
    }
    let said = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert!(said.contains("TRACE") && said.contains("h2::"), "{said}");
    for secret in ["hunter2", "bWU6aHVudGVyM", "token-1", "token-2"] {
        assert!(!said.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn unreadable_challenges_and_token_services() {
    let registry = bearer();
    let node = Node::asking(&registry);
    let me = basic("me", "pw");
    let manifest = || Match::manifest("app", "v1");
    let challenge = |text: String| {
        registry.heal();
        registry.fault(manifest(), Fault::Status(401, vec![("www-authenticate", text)], "".into()));
    };
    for text in ["", "Digest realm=\"x\"", "Bearer realm=\"open", "Bearer service=\"x\""] {
        challenge(text.to_owned());
        refuses(
            node.tag(&me).await,
            Code::RegistryUnauthorized,
            "tag v1: {} wants credentials (401 Unauthorized) in a way that cannot be read",
            &registry,
        );
    }
    challenge("Bearer realm=\"ftp://auth.example/token\"".to_owned());
    refuses(
        node.tag(&me).await,
        Code::RegistryUnauthorized,
        "tag v1: {} names a token service without TLS, which gets no credentials",
        &registry,
    );
    let closed = closed_port();
    challenge(format!("Bearer realm=\"http://{closed}/token\""));
    refuses(
        node.tag(&me).await,
        Code::RegistryUnreachable,
        "tag v1: {} names the token service 127.0.0.1, which refused the connection",
        &registry,
    );

    for (fault, code, why) in [
        (
            status(403),
            Code::RegistryUnauthorized,
            "gave no token for what the pull came with (403 Forbidden)",
        ),
        (status(404), Code::RegistryUnreachable, "answered 404 Not Found"),
        (status(500), Code::RegistryUnreachable, "answered 500 Internal Server Error"),
        (status(200), Code::RegistryUnreachable, "sent an answer that cannot be read"),
        (
            Fault::OtherBytes("{\"token\":\"\"}".into()),
            Code::RegistryUnreachable,
            "sent an answer without a token",
        ),
        (Fault::EndlessBody, Code::LimitExceeded, "sent more than 65536 bytes, which is the limit"),
        (Fault::RedirectLoop, Code::RegistryUnreachable, "redirected more than 10 times"),
    ] {
        registry.heal();
        registry.fault(Match::token(), fault);
        let message = format!("tag v1: {{}} names the token service 127.0.0.1, which {why}");
        refuses(node.tag(&me).await, code, &message, &registry);
    }
}

#[tokio::test]
async fn no_error_and_no_debug_output_has_a_secret() {
    let registry = TestRegistry::builder().bearer("me", "hunter2").start();
    let node =
        Node::new(&format!("server = \"{}\"\n[header]\nx-key = \"hunter2\"", registry.url()));
    for fault in [status(500), Fault::EndlessBody, Fault::RedirectTo("http://x:hunter2@y/".into())]
    {
        for credentials in [
            basic("me", "hunter2"),
            Credentials::IdentityToken("refresh-hunter2".into()),
            Credentials::RegistryToken("hunter2".into()),
        ] {
            registry.heal();
            registry.fault(Match::token(), fault.clone());
            let repo = node.repo(&credentials);
            let error = repo.tagged(&tag("v1"), LIMIT).await.unwrap_err();
            let shown = format!("{error} {error:?} {repo:?} {:?} {credentials:?}", node.registry);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
