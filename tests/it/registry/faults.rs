//! What hostile, broken and overburdened registries do to each kind of request.

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::support::registry::Match;

const KINDS: [&str; 4] = ["tag", "manifest", "blob", "referrers"];

/// Makes the one request of a kind; all of them hit faults on any request.
async fn ask(node: &Node, kind: &str, digest: Digest) -> Result<(), RegistryError> {
    let repo = node.repo(&Credentials::Anonymous);
    match kind {
        "tag" => repo.tagged(&tag("v1"), LIMIT).await.map(drop),
        "manifest" => repo.manifest(&by_digest(digest), LIMIT).await.map(drop),
        "blob" => repo.blob(&digest, LIMIT).await.map(drop),
        _ => repo.referrers(&digest, 100).await.map(drop),
    }
}

fn asked(kind: &str, digest: Digest) -> String {
    match kind {
        "tag" => "tag v1".into(),
        "referrers" => format!("referrers of {digest}"),
        kind => format!("{kind} {digest}"),
    }
}

#[tokio::test]
async fn every_status_but_404_is_an_error_for_every_request() {
    use Code::{RegistryUnauthorized as Unauthorized, RegistryUnreachable as Unreachable};
    let anonymous = ", and the pull came without credentials for it: add an imagePullSecret";
    for (code, told, tries, why) in [
        (400, Unreachable, 1, "answered 400 Bad Request"),
        (403, Unauthorized, 1, &*format!("refused (403 Forbidden){anonymous}")),
        (405, Unreachable, 1, "answered 405 Method Not Allowed"),
        (406, Unreachable, 1, "answered 406 Not Acceptable"),
        (410, Unreachable, 1, "answered 410 Gone"),
        (204, Unreachable, 1, "answered 204 No Content"),
        (206, Unreachable, 1, "answered 206 Partial Content"),
        (302, Unreachable, 1, "answered 302 Found"),
        (429, Unreachable, 3, "answered 429 Too Many Requests"),
        (500, Unreachable, 3, "answered 500 Internal Server Error"),
        (502, Unreachable, 3, "answered 502 Bad Gateway"),
        (503, Unreachable, 3, "answered 503 Service Unavailable"),
    ] {
        for kind in KINDS {
            let registry = TestRegistry::start();
            registry.fault(Match::any(), status(code));
            let digest = registry.push_image("app", "v1");
            let result = ask(&Node::asking(&registry), kind, digest).await;
            refuses(result, told, &format!("{}: {{}} {why}", asked(kind, digest)), &registry);
            assert_eq!(registry.requests().len(), tries, "{code} {kind}");
        }
    }
}

#[tokio::test]
async fn hanging_and_breaking_off() {
    let try_with = async |fault: Fault, timeouts: Timeouts, why: &str, kind: &str| {
        let registry = TestRegistry::start();
        let image = registry.push_image("app", "v1");
        let digest = match kind {
            "blob" => registry.push_blob("app", "content"),
            _ => image,
        };
        registry.fault(Match::any(), fault);
        let node = Node::with_timeouts(&format!("server = \"{}\"", registry.url()), timeouts);
        let result = ask(&node, kind, digest).await;
        let message = format!("{}: {{}} {why}", asked(kind, digest));
        refuses(result, Code::RegistryUnreachable, &message, &registry);
    };
    for (fault, timeouts, why) in [
        (Fault::Hang, HASTY, "did not answer in time"),
        (Fault::StallBody, HASTY, "did not answer in time"),
        (Fault::Truncate, PATIENT, "broke off in the middle of its answer"),
        (Fault::CloseConnection, PATIENT, "gave no answer in HTTP"),
    ] {
        join_all(KINDS.map(|kind| try_with(fault.clone(), timeouts, why, kind))).await;
    }
}

#[tokio::test]
async fn a_second_try_may_do() {
    for (fault, tries) in [
        (status(500), 2),
        (status(503), 2),
        (Fault::Status(429, vec![("retry-after", "0".into())], String::new()), 2),
        (Fault::Truncate, 2),
        (Fault::CloseConnection, 2),
    ] {
        let registry = TestRegistry::start();
        registry.push_image("app", "v1");
        registry.fault(Match::any().nth(1), fault);
        Node::asking(&registry).anonymous_tag().await.unwrap();
        assert_eq!(registry.requests().len(), tries);
    }
}

#[tokio::test]
async fn a_pause_that_is_too_long_is_not_made() {
    for pause in ["11", "86400", "18446744073709551615"] {
        let registry = TestRegistry::start();
        let after = vec![("retry-after", pause.to_owned())];
        registry.fault(Match::any(), Fault::Status(429, after, String::new()));
        refuses(
            Node::asking(&registry).anonymous_tag().await,
            Code::RegistryUnreachable,
            "tag v1: {} answered 429 Too Many Requests",
            &registry,
        );
        assert_eq!(registry.requests().len(), 1);
    }
}

#[tokio::test]
async fn bodies_end_at_the_limit() {
    let registry = TestRegistry::start();
    let blob = registry.push_blob("app", "content");
    let node = Node::asking(&registry);
    let repo = node.repo(&Credentials::Anonymous);
    assert_eq!(repo.blob(&blob, 7).await.unwrap(), "content");
    refuses(
        repo.blob(&blob, 6).await,
        Code::LimitExceeded,
        &format!("blob {blob}: {{}} sent more than 6 bytes, which is the limit"),
        &registry,
    );
    let image = registry.push_image("app", "v1");
    registry.fault(Match::any(), Fault::EndlessBody);
    for kind in KINDS {
        let limit = if kind == "referrers" { 4 << 20 } else { LIMIT };
        let digest = if kind == "blob" { blob } else { image };
        let why = format!("{{}} sent more than {limit} bytes, which is the limit");
        let message = format!("{}: {why}", asked(kind, digest));
        refuses(ask(&node, kind, digest).await, Code::LimitExceeded, &message, &registry);
    }
}

/// A server that answers every connection with these bytes and then hangs up.
async fn raw(answer: &'static str) -> (String, impl Drop) {
    struct Abort(tokio::task::JoinHandle<()>);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, Abort(task))
}

#[tokio::test]
async fn answers_that_are_hardly_http() {
    use Code::{LimitExceeded, RegistryUnreachable as Unreachable};
    for (answer, code, why) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4294967296\r\n\r\nx",
            LimitExceeded,
            "sent more than 65536 bytes, which is the limit",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
            Unreachable,
            "broke off in the middle of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            Unreachable,
            "broke off in the middle of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
            Unreachable,
            "gave no answer in HTTP",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", Unreachable, "gave no answer in HTTP"),
        ("", Unreachable, "gave no answer in HTTP"),
        ("HTTP/1.1 404 Not Fo", Unreachable, "gave no answer in HTTP"),
    ] {
        let (address, _server) = raw(answer).await;
        let node = Node::new(&format!("server = \"http://{address}\""));
        let refusal = Refusal::from(node.anonymous_tag().await.unwrap_err());
        assert_eq!(refusal, Refusal::new(code, format!("tag v1: {address} {why}")), "{answer}");
    }
}

#[tokio::test]
async fn header_fields_end_at_a_limit() {
    let registry = TestRegistry::start();
    let node = Node::asking(&registry);
    let long = vec![("x-long", "x".repeat(65 << 10))];
    registry.fault(Match::any(), Fault::Status(200, long, "x".into()));
    refuses(
        node.anonymous_tag().await,
        Code::LimitExceeded,
        "tag v1: {} sent more than 65536 bytes of header fields, which is the limit",
        &registry,
    );
    registry.heal();
    let many = vec![("x-many", "x".to_owned()); 200];
    registry.fault(Match::any(), Fault::Status(200, many, "x".into()));
    refuses(
        node.anonymous_tag().await,
        Code::RegistryUnreachable,
        "tag v1: {} gave no answer in HTTP",
        &registry,
    );
}

#[tokio::test]
async fn other_bytes_are_refused_whoever_vouches_for_them() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let blob = registry.push_blob("app", "content");
    let node = Node::asking(&registry);
    let other = Digest::of(b"other");
    registry.fault(Match::any(), Fault::OtherBytes("other".into()));
    for (kind, digest) in [("manifest", image), ("blob", blob)] {
        let message = format!("{kind} {digest}: {{}} sent {other} instead of {digest}");
        refuses(ask(&node, kind, digest).await, Code::DigestMismatch, &message, &registry);
    }
    // By a tag these are the bytes.
    assert_eq!(node.anonymous_tag().await.unwrap().digest, other);

    registry.heal();
    registry.fault(Match::any(), Fault::Corrupt);
    for (kind, digest) in [("manifest", image), ("blob", blob), ("tag", image)] {
        let error = ask(&node, kind, digest).await.unwrap_err();
        assert!(matches!(error, RegistryError::DigestMismatch(_)), "{error}");
    }
}

#[tokio::test]
async fn a_digest_header_can_only_refuse() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    registry.fault(Match::any(), Fault::LyingDigestHeader);
    let lie = Digest::of(b"a lie");
    for kind in ["tag", "manifest"] {
        let message =
            format!("{}: {{}} sent {image} instead of the announced {lie}", asked(kind, image));
        refuses(ask(&node, kind, image).await, Code::DigestMismatch, &message, &registry);
    }
    for harmless in [Fault::NoDigestHeader, Fault::ContentType("text/html; charset=x")] {
        registry.heal();
        registry.fault(Match::any(), harmless);
        assert_eq!(node.anonymous_tag().await.unwrap().digest, image);
    }
    assert_eq!(node.anonymous_tag().await.unwrap().media_type, "text/html");
    for (told, accepted) in
        [("sha512:00", true), ("junk", true), ("sha256:junk", false), ("sha256:", false)]
    {
        registry.heal();
        let header = vec![("docker-content-digest", told.to_owned())];
        registry.fault(Match::any(), Fault::Status(200, header, "x".into()));
        assert_eq!(node.anonymous_tag().await.is_ok(), accepted, "{told}");
    }
}

#[tokio::test]
async fn redirects_end() {
    let registry = TestRegistry::start();
    registry.fault(Match::any(), Fault::RedirectLoop);
    refuses(
        Node::asking(&registry).anonymous_tag().await,
        Code::RegistryUnreachable,
        "tag v1: {} redirected more than 10 times",
        &registry,
    );
    assert_eq!(registry.requests().len(), 11);
}

#[tokio::test]
async fn secrets_stay_where_a_redirect_leads_away() {
    let other = TestRegistry::start();
    other.push_image("app", "v1");
    let registry = TestRegistry::builder().basic("me", "pw").start();
    let node = Node::new(&format!("server = \"{}\"\n[header]\nx-key = \"secret\"", registry.url()));
    // The first request is the one that is challenged.
    let away = Fault::RedirectTo(format!("{}/v2/app/manifests/v1", other.url()));
    registry.fault(Match::any().starting_at(2), away);
    node.tag(&basic("me", "pw")).await.unwrap();
    let sent = &registry.requests()[1];
    assert_eq!(sent.authorization(), Some("Basic bWU6cHc="));
    assert_eq!(sent.header("x-key"), Some("secret"));
    let leaked = &other.requests()[0];
    assert_eq!(leaked.authorization(), None);
    assert_eq!(leaked.header("x-key"), None);

    // And whoever is redirected to gets them neither by asking nor at a token service of its own.
    for (greedy, first) in [
        (TestRegistry::builder().basic("me", "pw").start(), 1),
        (TestRegistry::builder().basic("me", "pw").start(), 2),
        (TestRegistry::builder().bearer("me", "pw").start(), 1),
        (TestRegistry::builder().bearer("me", "pw").start(), 2),
    ] {
        registry.heal();
        let away = Fault::RedirectTo(format!("{}/v2/app/manifests/v1", greedy.url()));
        registry.fault(Match::any().starting_at(first), away);
        refuses(
            node.tag(&basic("me", "pw")).await,
            Code::RegistryUnreachable,
            "tag v1: {} redirected to 127.0.0.1, which answered 401 Unauthorized",
            &registry,
        );
        assert_eq!(greedy.asked(), ["GET /v2/app/manifests/v1"]);
        assert_eq!(greedy.requests()[0].authorization(), None);
    }
}

#[tokio::test]
async fn a_redirect_within_the_host_keeps_them() {
    let registry = TestRegistry::builder().basic("me", "pw").start();
    registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    let within = Fault::RedirectTo("/v2/app/manifests/v1".into());
    registry.fault(Match::manifest("app", "latest"), within);
    let repo = node.repo(&basic("me", "pw"));
    repo.tagged(&tag("latest"), LIMIT).await.unwrap();
}

#[tokio::test]
async fn redirects_to_nowhere() {
    let registry = TestRegistry::start();
    let node = Node::asking(&registry);
    let closed = closed_port();
    for (location, why) in [
        ("ftp://x.example/", "redirected to an address that is neither http nor https"),
        ("http://me:pw@x.example/", "redirected to an address with credentials in it"),
        ("https://", "redirected to an address that cannot be read"),
        (
            &*format!("http://{closed}/secret?token=secret"),
            "redirected to 127.0.0.1, which refused the connection",
        ),
    ] {
        registry.heal();
        registry.fault(Match::any(), Fault::RedirectTo(location.to_owned()));
        let message = format!("tag v1: {{}} {why}");
        refuses(node.anonymous_tag().await, Code::RegistryUnreachable, &message, &registry);
    }
}
