//! A bundle at an https address.

use std::{fs, time::Duration};

use portcullis::policy::fetch::{Fetcher, Place};
use tempfile::TempDir;

use super::*;
use crate::support::{
    ca::TestCa,
    registry::{Fault, Match, TestRegistry},
};

/// A server of one document, with a CA of its own.
pub(super) struct Server {
    pub(super) registry: TestRegistry,
    pub(super) ca: TempDir,
}

impl Server {
    pub(super) fn start() -> Self {
        let authority = TestCa::new();
        let ca = tempfile::tempdir().unwrap();
        fs::write(ca.path().join("ca.pem"), authority.pem()).unwrap();
        Self { registry: TestRegistry::builder().tls(&authority).start(), ca }
    }

    fn place(&self, path: &str) -> Place {
        let address = format!("{}{path}", self.registry.url()).parse().unwrap();
        Place::Https { address, ca: Some(self.ca.path().join("ca.pem")) }
    }

    /// From now on everything is answered so.
    pub(super) fn answers(
        &self,
        status: u16,
        headers: &[(&'static str, &str)],
        body: impl Into<String>,
    ) {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.spoils(Fault::Status(status, headers, body.into()));
    }

    fn spoils(&self, fault: Fault) {
        self.registry.heal();
        self.registry.fault(Match::any(), fault);
    }

    /// `If-None-Match` of the last request.
    fn asked_with(&self) -> Option<String> {
        let requests = self.registry.requests();
        requests.last().unwrap().header("if-none-match").map(str::to_owned)
    }
}

#[tokio::test]
async fn a_change_is_offered_and_the_same_again_is_unchanged() {
    let server = Server::start();
    let mut fetcher = fetcher(server.place("/prod.bundle?sig=secret"));
    for (etag, revision, wanted) in [
        (None, 1, "offers 1"),
        (None, 1, "unchanged"),
        (Some("\"a\""), 1, "unchanged"),
        (Some("\"a\""), 2, "offers 2"),
        (Some("\"b\""), 2, "unchanged"),
        (None, 1, "offers 1"),
    ] {
        let headers: Vec<_> = etag.map(|etag| ("etag", etag)).into_iter().collect();
        server.answers(200, &headers, bundle(revision));
        assert_eq!(asks(&mut fetcher, &server.registry).await, wanted, "{etag:?} {revision}");
    }
    assert_eq!(server.registry.requests()[0].target, "/prod.bundle?sig=secret");
    assert_eq!(fetcher.name(), format!("{}/prod.bundle", server.registry.url()));
}

#[tokio::test]
async fn an_etag_is_sent_back_and_believed_of_what_it_came_with() {
    let server = Server::start();
    let mut fetcher = fetcher(server.place("/b"));
    server.answers(304, &[], "");
    let wrong = "failed: S answered 304 Not Modified, although nothing was held against it";
    assert_eq!(asks(&mut fetcher, &server.registry).await, wrong);
    server.answers(200, &[("etag", "\"one\"")], bundle(1));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
    assert_eq!(server.asked_with(), None);
    server.answers(304, &[], "");
    assert_eq!(asks(&mut fetcher, &server.registry).await, "unchanged");
    assert_eq!(server.asked_with().unwrap(), "\"one\"");
    // What was rejected is rejected again, and is not what was offered before.
    server.answers(200, &[("etag", "\"two\"")], "junk");
    let rejected = asks(&mut fetcher, &server.registry).await;
    assert!(rejected.starts_with("rejected: https://S/b: is no signed bundle of policies"));
    server.answers(304, &[], "");
    assert_eq!(asks(&mut fetcher, &server.registry).await, rejected);
    assert_eq!(server.asked_with().unwrap(), "\"two\"");
    // Without a failure in between being taken for an answer.
    server.answers(500, &[("etag", "\"three\"")], "");
    assert!(asks(&mut fetcher, &server.registry).await.starts_with("failed: S answered 500"));
    server.answers(200, &[], bundle(1));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
    assert_eq!(asks(&mut fetcher, &server.registry).await, "unchanged");
    assert_eq!(server.asked_with(), None);
}

#[tokio::test]
async fn a_server_whose_etag_stands_still_hides_no_change_for_ever() {
    let server = Server::start();
    let mut fetcher = fetcher(server.place("/b"));
    server.answers(200, &[("etag", "\"x\"")], bundle(1));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
    server.answers(304, &[], "");
    for _ in 0..60 {
        assert_eq!(asks(&mut fetcher, &server.registry).await, "unchanged");
    }
    server.answers(200, &[("etag", "\"x\"")], bundle(2));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 2");
    assert_eq!(server.asked_with(), None);
    // Nor longer than until somebody asks for it.
    server.answers(200, &[("etag", "\"x\"")], bundle(3));
    let answer = fetcher.ask(true).await;
    assert_eq!(
        (told(&answer.heard, &server.registry), server.asked_with()),
        ("offers 3".into(), None)
    );
    // Who asks is told what is there, be it the same: it may not have come into force before.
    let answer = fetcher.ask(true).await;
    assert_eq!(told(&answer.heard, &server.registry), "offers 3");
}

#[tokio::test]
async fn what_no_pinned_key_signed_is_rejected_whatever_it_is() {
    let server = Server::start();
    let mut fetcher = fetcher(server.place("/b"));
    let other = String::from_utf8(sign(&payload(1), &key("other")).unwrap().bytes).unwrap();
    for (body, why) in [
        (other, "is not signed by a pinned key: it carries 1 signature"),
        (
            String::from_utf8(payload(1)).unwrap(),
            "is a bundle of policies that nobody signed; \"portcullis policy sign\" signs it",
        ),
        (
            bundle(1)[..500].to_owned(),
            "is no signed bundle of policies (a DSSE envelope in JSON): ",
        ),
        (String::new(), "is no signed bundle of policies (a DSSE envelope in JSON): EOF"),
    ] {
        server.answers(200, &[], body);
        let line = asks(&mut fetcher, &server.registry).await;
        assert!(line.starts_with(&format!("rejected: https://S/b: {why}")), "{line}");
        assert_eq!(asks(&mut fetcher, &server.registry).await, line);
    }
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let server = Server::start();
    let digest = server.registry.push_blob("b", vec![0; 1000]);
    let path = format!("/v2/b/blobs/{digest}");
    let mut fetcher = fetcher(server.place(&path));
    server.spoils(Fault::EndlessBody);
    let limit = "S sent more than 26214400 bytes, which is the limit";
    let line = asks(&mut fetcher, &server.registry).await;
    assert_eq!(line, format!("rejected: https://S{path}: {limit}"));
    // It takes nothing from what is offered next.
    server.answers(200, &[], bundle(1));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
}

#[tokio::test]
async fn a_server_that_lets_us_wait_is_left() {
    let server = Server::start();
    let digest = server.registry.push_blob("b", vec![0; 1000]);
    let place = server.place(&format!("/v2/b/blobs/{digest}"));
    let mut fetcher = Fetcher::with_patience(place, pinned("ed25519"), HASTY);
    for fault in [Fault::Hang, Fault::StallBody] {
        server.spoils(fault);
        assert_eq!(asks(&mut fetcher, &server.registry).await, "failed: S did not answer in time");
    }
    server.spoils(Fault::Truncate);
    let line = asks(&mut fetcher, &server.registry).await;
    assert_eq!(line, "failed: S broke off in the middle of its answer");
}

#[tokio::test]
async fn answers_that_are_none_are_told() {
    let server = Server::start();
    let mut fetcher = fetcher(server.place("/b"));
    for (status, why) in [
        (404, "has none (404 Not Found)"),
        (410, "has none (410 Gone)"),
        (
            401,
            "refused (401 Unauthorized): nodes ask without credentials, so let it be read without",
        ),
        (403, "refused (403 Forbidden): nodes ask without credentials, so let it be read without"),
        (204, "answered 204 No Content"),
        (206, "answered 206 Partial Content"),
        (429, "answered 429 Too Many Requests"),
        (500, "answered 500 Internal Server Error"),
    ] {
        server.answers(status, &[], bundle(1));
        let answer = fetcher.ask(false).await;
        assert_eq!(told(&answer.heard, &server.registry), format!("failed: S {why}"));
        assert_eq!(answer.retry_after, None);
    }
    for status in [429, 503] {
        server.answers(status, &[("retry-after", "7")], "");
        assert_eq!(fetcher.ask(false).await.retry_after, Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn redirects_lead_to_https_alone() {
    let (server, elsewhere) = (Server::start(), Server::start());
    let plain = TestRegistry::start();
    plain.fault(Match::any(), Fault::Status(200, Vec::new(), bundle(1)));
    let mut fetcher = fetcher(server.place("/b"));
    for (to, why) in [
        (plain.url(), "redirected to plain http, which is not followed from https"),
        ("file:///etc/passwd", "redirected to an address that is neither http nor https"),
        (
            elsewhere.registry.url(),
            "redirected to 127.0.0.1, which has a certificate that is not trusted",
        ),
    ] {
        server.spoils(Fault::RedirectTo(to.to_owned()));
        assert_eq!(asks(&mut fetcher, &server.registry).await, format!("failed: S {why}"));
    }
    assert_eq!(plain.requests().len(), 0);
    server.spoils(Fault::RedirectLoop);
    let line = asks(&mut fetcher, &server.registry).await;
    assert_eq!(line, "failed: S redirected more than 10 times");
    server.registry.heal();
    let there = format!("{}/there", server.registry.url());
    server.registry.fault(Match::path("/b"), Fault::RedirectTo(there));
    server.registry.fault(Match::path("/there"), Fault::Status(200, Vec::new(), bundle(1)));
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
}

#[tokio::test]
async fn a_server_must_prove_who_it_is() {
    let server = Server::start();
    server.answers(200, &[], bundle(1));
    let untrusted = "failed: S has a certificate that is not trusted";
    let ca = server.ca.path().join("ca.pem");
    let Place::Https { address, .. } = server.place("/b") else { unreachable!() };
    let mut without = fetcher(Place::Https { address, ca: None });
    assert_eq!(asks(&mut without, &server.registry).await, untrusted);
    let mut fetcher = fetcher(server.place("/b"));
    let right = fs::read(&ca).unwrap();
    fs::write(&ca, TestCa::new().pem()).unwrap();
    assert_eq!(asks(&mut fetcher, &server.registry).await, untrusted);
    assert_eq!(server.registry.requests().len(), 0);
    // A file that is replaced counts from the next question on.
    fs::write(&ca, right).unwrap();
    assert_eq!(asks(&mut fetcher, &server.registry).await, "offers 1");
    fs::remove_file(&ca).unwrap();
    let line = asks(&mut fetcher, &server.registry).await;
    assert!(line.starts_with("failed: S cannot be asked: ") && line.contains("ca.pem"), "{line}");
}
