//! What a registry can answer instead of answering, on each request of a pull. Whatever it is, it
//! is never taken for "this image is not signed", and never for "this image is good".

use std::fmt::Display;

use portcullis::image::Digest;

use crate::support::{
    registry::{Builder, Fault, Match, TestRegistry},
    sign::simple_payload,
};

use super::{Case, Scene, all_refused};

/// A request of the flow, which only this one signature could answer.
#[derive(Clone, Copy)]
pub(super) struct Request {
    name: &'static str,
    /// Signs, and says which request it is.
    of: fn(&Scene) -> Match,
    /// What it asks for, as messages tell it.
    asked: &'static str,
    token: bool,
}

const MANIFEST: Request = Request {
    name: "the manifest",
    of: |s| {
        s.sign_simple();
        Match::manifest(&s.repository, "v1")
    },
    asked: "tag v1",
    token: false,
};

const EVIDENCE: [Request; 5] = [
    Request {
        name: "the .sig tag",
        of: |s| {
            let payload = simple_payload(s.digest);
            let layer = s.key.simple_layer(&s.registry, &s.repository, &payload);
            s.name("sig", s.sign_with(vec![layer]));
            Match::manifest(&s.repository, s.sig_tag())
        },
        asked: "tag sha256-{hex}.sig",
        token: false,
    },
    Request {
        name: "the referrers",
        of: |s| {
            s.sign_bundle();
            Match::referrers(&s.repository, s.digest)
        },
        asked: "referrers of {digest}",
        token: false,
    },
    Request {
        name: "the payload",
        of: |s| {
            s.sign_simple();
            let payload = Digest::of(&simple_payload(s.digest));
            s.name("payload", payload);
            s.name("size", simple_payload(s.digest).len());
            Match::blob(&s.repository, payload)
        },
        asked: "blob {payload}",
        token: false,
    },
    Request {
        name: "the bundle's manifest",
        of: |s| {
            let (manifest, _) = s.sign_bundle();
            s.name("manifest", manifest);
            Match::manifest(&s.repository, manifest)
        },
        asked: "manifest {manifest}",
        token: false,
    },
    Request {
        name: "the bundle",
        of: |s| {
            let (_, bundle) = s.sign_bundle();
            s.name("bundle", bundle);
            Match::blob(&s.repository, bundle)
        },
        asked: "blob {bundle}",
        token: false,
    },
];

const TOKEN: Request = Request {
    name: "the token",
    of: |s| {
        s.sign_simple();
        Match::token()
    },
    asked: "tag v1",
    token: true,
};

pub(super) fn requests() -> impl Iterator<Item = Request> {
    std::iter::once(MANIFEST).chain(EVIDENCE).chain(std::iter::once(TOKEN))
}

impl Request {
    /// A fault on this request, for callers without credentials.
    pub(super) fn goes_wrong(self, how: &str, fault: Fault) -> Case {
        let registry: Builder = match self.token {
            true => TestRegistry::builder().bearer("user", "password").anonymous_pull(),
            false => TestRegistry::builder(),
        };
        Case::new(format!("{how} on {}", self.name))
            .registry(registry)
            .arrange(move |s| s.fault((self.of)(s), fault))
            .anonymous()
    }

    /// The message of a question that stayed open.
    pub(super) fn open(self, why: &str) -> String {
        let asked = self.asked;
        match (self.asked, self.token) {
            (_, true) => {
                format!(
                    "{{image}}: {asked}: {{host}} names the token service 127.0.0.1, which {why}"
                )
            }
            ("tag v1", _) => format!("{{image}}: {asked}: {{host}} {why}"),
            _ => format!(
                "{{pinned}}: policy \"{{repository}}\" requires 1 of 1 authority: \"release\": no \
                 signature found; not every signature could be looked up: {asked}: {{host}} {why}"
            ),
        }
    }

    /// The message of an answer that is there and of no use.
    fn unreadable(self, why: &str) -> String {
        let asked = self.asked;
        format!("no readable signature; 1 of 1 unreadable: {asked}: {{host}} {why}")
    }
}

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], "{}".into())
}

#[tokio::test]
async fn no_answer_is_no_judgement() {
    let faults = [
        ("400", status(400), "answered 400 Bad Request"),
        ("429", status(429), "answered 429 Too Many Requests"),
        ("500", status(500), "answered 500 Internal Server Error"),
        ("a loop of redirects", Fault::RedirectLoop, "redirected more than 10 times"),
        ("half an answer", Fault::Truncate, "broke off in the middle of its answer"),
        ("a closed connection", Fault::CloseConnection, "gave no answer in HTTP"),
        (
            "a redirect to a file",
            Fault::RedirectTo("file:///etc/passwd".into()),
            "redirected to an address that is neither http nor https",
        ),
    ];
    let cases = requests().flat_map(|request| {
        faults.clone().map(|(name, fault, why)| {
            request.goes_wrong(name, fault).refused("registry_unreachable", request.open(why))
        })
    });
    all_refused(cases.collect()).await;
}

#[tokio::test]
async fn refused_credentials_are_no_judgement() {
    let basic = || vec![("www-authenticate", "Basic realm=\"registry\"".to_owned())];
    let cases = requests().flat_map(|request| {
        let case = |how: &str, fault: Fault, anonymous: &str, known: &str| {
            let (anonymous, known) = match request.token {
                true => {
                    let status = &how[..how.len().min(3)];
                    let status = if status == "401" { "401 Unauthorized" } else { "403 Forbidden" };
                    let why = format!("gave no token for what the pull came with ({status})");
                    (why.clone(), why)
                }
                false => (anonymous.to_owned(), known.to_owned()),
            };
            let refused =
                |case: Case, why: &str| case.refused("registry_unauthorized", request.open(why));
            [
                refused(request.goes_wrong(how, fault.clone()), &anonymous),
                refused(request.goes_wrong(how, fault).callers("one", "two"), &known),
            ]
        };
        let unreadable = "wants credentials (401 Unauthorized) in a way that cannot be read";
        [
            case("401 without a challenge", status(401), unreadable, unreadable),
            case(
                "401",
                Fault::Status(401, basic(), String::new()),
                "wants credentials, and the pull came with none: add an imagePullSecret",
                "refused the pull credentials (401 Unauthorized)",
            ),
            case(
                "403",
                status(403),
                "refused (403 Forbidden), and the pull came without credentials for it: add an \
                 imagePullSecret",
                "refused the pull credentials (403 Forbidden)",
            ),
        ]
        .into_iter()
        .flatten()
    });
    all_refused(cases.collect()).await;
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let [sig, referrers, payload, manifest, bundle] = EVIDENCE;
    let case = |request: Request| request.goes_wrong("an endless answer", Fault::EndlessBody);
    let limit = |limit: &dyn Display| format!("sent more than {limit} bytes, which is the limit");
    all_refused(vec![
        case(MANIFEST).refused("limit_exceeded", MANIFEST.open(&limit(&(4 << 20)))),
        case(sig).judged("signature_invalid", sig.unreadable(&limit(&(1 << 20)))),
        case(referrers).refused("limit_exceeded", referrers.open(&limit(&(4 << 20)))),
        case(payload).judged("signature_invalid", payload.unreadable(&limit(&"{size}"))),
        case(manifest).judged("signature_invalid", manifest.unreadable(&limit(&(1 << 20)))),
        case(bundle).judged("signature_invalid", bundle.unreadable(&limit(&"{size}"))),
        case(TOKEN).refused("limit_exceeded", TOKEN.open(&limit(&(64 << 10)))),
    ])
    .await;
}

const PAGE: &str = "<html>Welcome to the airport</html>";

#[tokio::test]
async fn a_page_to_log_in_is_no_answer() {
    let [sig, referrers, payload, manifest, bundle] = EVIDENCE;
    let page = || {
        let headers = vec![("content-type", "text/html; charset=utf-8".to_owned())];
        Fault::Status(200, headers, PAGE.into())
    };
    let case = |request: Request| request.goes_wrong("a page to log in", page());
    let no_manifest =
        "the registry sends the manifest as \"text/html\", which is no image manifest or index";
    let other = |request: Request, name: &str| {
        let instead = format!("sent {} instead of {name}", Digest::of(PAGE.as_bytes()));
        case(request).judged("signature_invalid", request.unreadable(&instead))
    };
    all_refused(vec![
        case(MANIFEST).refused("image_malformed", format!("{{image}}: {no_manifest}")),
        case(sig).judged(
            "signature_invalid",
            format!("no readable signature; 1 of 1 unreadable: {no_manifest}"),
        ),
        case(referrers).refused(
            "registry_unreachable",
            referrers.open("sent a list of referrers that is no OCI index"),
        ),
        other(payload, "{payload}"),
        other(manifest, "{manifest}"),
        other(bundle, "{bundle}"),
        case(TOKEN)
            .refused("registry_unreachable", TOKEN.open("sent an answer that cannot be read")),
    ])
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let [sig, referrers, payload, manifest, bundle] = EVIDENCE;
    let case = |request: Request| request.goes_wrong("404", status(404));
    let gone =
        "no readable signature; 1 of 1 unreadable: it is listed, and the registry does not have it";
    all_refused(vec![
        case(MANIFEST).refused("image_not_found", MANIFEST.open("has none (404 Not Found)")),
        case(sig).judged("signature_missing", "no signature found"),
        case(referrers).judged("signature_missing", "no signature found"),
        case(payload).judged("signature_invalid", gone),
        case(manifest).judged("signature_invalid", gone),
        case(bundle).judged("signature_invalid", gone),
        case(TOKEN).refused("registry_unreachable", TOKEN.open("answered 404 Not Found")),
    ])
    .await;
}

#[tokio::test]
async fn other_bytes_than_announced_are_refused() {
    let [sig, _, payload, manifest, bundle] = EVIDENCE;
    let other = |request: Request, name: &str| {
        let why = format!("sent {} instead of {name}", Digest::of(b"other"));
        let case = request.goes_wrong("other bytes", Fault::OtherBytes("other".into()));
        case.judged("signature_invalid", request.unreadable(&why))
    };
    let announced = format!("instead of the announced {}", Digest::of(b"a lie"));
    let lying = |request: Request| request.goes_wrong("a lie", Fault::LyingDigestHeader);
    let lie = |request: Request, name: &str| {
        let why = request.unreadable(&format!("sent {name} {announced}"));
        lying(request).judged("signature_invalid", why)
    };
    all_refused(vec![
        other(payload, "{payload}"),
        other(manifest, "{manifest}"),
        other(bundle, "{bundle}"),
        lying(MANIFEST)
            .refused("digest_mismatch", MANIFEST.open(&format!("sent {{digest}} {announced}"))),
        lie(sig, "{sig}"),
        lie(payload, "{payload}"),
        lie(manifest, "{manifest}"),
        lie(bundle, "{bundle}"),
    ])
    .await;
}
