//! Referrers: pages, the fallback tag, and what is never taken for "none".

use serde_json::{Value, json};

use super::*;
use crate::support::registry::{IMAGE_INDEX, IMAGE_MANIFEST, Match};

fn push_referrers(registry: &TestRegistry, subject: Digest, count: usize) -> Vec<Digest> {
    let config = registry.push_blob("app", "{}");
    let subject = registry.descriptor("app", subject);
    let push = |n: usize| {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
            "artifactType": format!("application/vnd.example.{n}"),
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [], "subject": subject,
        });
        registry.push_json("app", None, &manifest)
    };
    (0..count).map(push).collect()
}

async fn list(node: &Node, subject: Digest) -> Result<Vec<Digest>, RegistryError> {
    let repo = node.repo(&Credentials::Anonymous);
    Ok(repo.referrers(&subject, 100).await?.iter().map(|found| found.digest).collect())
}

fn answer(body: &Value) -> Fault {
    Fault::Status(200, vec![("content-type", IMAGE_INDEX.into())], body.to_string())
}

fn page(link: &str) -> Fault {
    let body = json!({"schemaVersion": 2, "manifests": []}).to_string();
    Fault::Status(200, vec![("link", link.to_owned())], body)
}

#[tokio::test]
async fn all_pages_are_read() {
    for page_size in [1, 2, 3, 7] {
        let registry = TestRegistry::builder().page_size(page_size).start();
        let image = registry.push_image("app", "v1");
        let pushed = push_referrers(&registry, image, 5);
        let node = Node::asking(&registry);
        let found = node.repo(&Credentials::Anonymous).referrers(&image, 5).await.unwrap();
        assert_eq!(found.iter().map(|found| found.digest).collect::<Vec<_>>(), pushed);
        assert_eq!(found[4].artifact_type.as_deref(), Some("application/vnd.example.4"));
        assert_eq!(found[4].media_type, IMAGE_MANIFEST);
        assert_eq!(registry.requests().len(), 5_usize.div_ceil(page_size));
        assert!(registry.asked().iter().all(|asked| asked.ends_with("ns=registry.example")));
        refuses(
            node.repo(&Credentials::Anonymous).referrers(&image, 4).await,
            Code::LimitExceeded,
            &format!("referrers of {image}: {{}} lists more than 4 referrers, which is the limit"),
            &registry,
        );
    }
}

#[tokio::test]
async fn none_are_none() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    assert_eq!(list(&Node::asking(&registry), image).await, Ok(vec![]));
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn without_the_api_the_fallback_tag_counts() {
    let registry = TestRegistry::builder().no_referrers_api().start();
    let image = registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    assert_eq!(list(&node, image).await, Ok(vec![]));
    assert_eq!(
        registry.asked(),
        [
            format!("GET /v2/app/referrers/{image}?ns=registry.example"),
            format!("GET /v2/app/manifests/sha256-{}?ns=registry.example", image.hex()),
        ]
    );
    let pushed = push_referrers(&registry, image, 3);
    registry.push_fallback_tag("app", image);
    assert_eq!(list(&node, image).await, Ok(pushed));
}

#[tokio::test]
async fn a_broken_fallback_tag_is_an_error() {
    let registry = TestRegistry::builder().no_referrers_api().start();
    let image = registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    let fallback = || Match::manifest("app", format!("sha256-{}", image.hex()));
    for (fault, code, why) in [
        (
            answer(&json!([])),
            Code::RegistryUnreachable,
            "sent a list of referrers that is no OCI index",
        ),
        (
            answer(&json!({"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "manifests": []})),
            Code::RegistryUnreachable,
            "sent a list of referrers that is no OCI index",
        ),
        (status(400), Code::RegistryUnreachable, "answered 400 Bad Request"),
        (
            status(403),
            Code::RegistryUnauthorized,
            "refused (403 Forbidden), and the pull came without credentials for it: add an \
             imagePullSecret",
        ),
        (
            Fault::Status(200, vec![], " ".repeat((4 << 20) + 1)),
            Code::LimitExceeded,
            "sent more than 4194304 bytes, which is the limit",
        ),
    ] {
        registry.heal();
        registry.fault(fallback(), fault);
        let message = format!("referrers of {image}: {{}} {why}");
        refuses(list(&node, image).await, code, &message, &registry);
    }
}

#[tokio::test]
async fn a_list_that_is_not_whole_is_an_error() {
    let registry = TestRegistry::builder().page_size(2).start();
    let image = registry.push_image("app", "v1");
    push_referrers(&registry, image, 6);
    let node = Node::asking(&registry);
    for (fault, why) in [
        (status(404), "announced more referrers and has none"),
        (status(400), "answered 400 Bad Request"),
        (answer(&json!({})), "sent a list of referrers that is no OCI index"),
        (page("<x"), "sent a Link header that cannot be read"),
    ] {
        registry.heal();
        registry.fault(Match::referrers("app", image).nth(2), fault);
        let message = format!("referrers of {image}: {{}} {why}");
        refuses(list(&node, image).await, Code::RegistryUnreachable, &message, &registry);
    }
}

#[tokio::test]
async fn pages_lead_nowhere_else() {
    let registry = TestRegistry::start();
    let other = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let node = Node::asking(&registry);
    let elsewhere = format!("<http://localhost/v2/app/referrers/{image}>; rel=next");
    for (link, code, why) in [
        (&*elsewhere, Code::RegistryUnreachable, "sent a next page of referrers at another host"),
        (
            "</v2/>; rel=next",
            Code::RegistryUnreachable,
            "sent a next page that is none of referrers",
        ),
        (
            "</v2/app2/referrers/x>; rel=next",
            Code::RegistryUnreachable,
            "sent a next page that is none of referrers",
        ),
        (
            "</v2/app/referrers/../manifests/v1>; rel=next",
            Code::RegistryUnreachable,
            "sent a next page that is none of referrers",
        ),
        (
            "<http://:x>; rel=next",
            Code::RegistryUnreachable,
            "sent a next page of referrers that is no address",
        ),
        (
            "<?again>; rel=next",
            Code::LimitExceeded,
            "lists referrers on more than 64 pages, which is the limit",
        ),
    ] {
        registry.heal();
        registry.fault(Match::referrers("app", image), page(link));
        let message = format!("referrers of {image}: {{}} {why}");
        refuses(list(&node, image).await, code, &message, &registry);
    }
    // Another port of the same host is not followed, but asked for at our own.
    registry.heal();
    let port = format!("<{}/v2/app/referrers/{image}?from=1>; rel=next", other.url());
    registry.fault(Match::referrers("app", image).nth(1), page(&port));
    assert_eq!(list(&node, image).await, Ok(vec![]));
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_mirror_that_lists_none_is_not_the_last_word() {
    for builder in [TestRegistry::builder, || TestRegistry::builder().no_referrers_api()] {
        let mirror = builder().start();
        let upstream = TestRegistry::start();
        let image = upstream.push_image("app", "v1");
        let pushed = push_referrers(&upstream, image, 2);
        let text = format!("server = \"{}\"\n[host.\"{}\"]", upstream.url(), mirror.url());
        let node = Node::new(&text);
        assert_eq!(list(&node, image).await, Ok(pushed));
        upstream.fault(Match::any(), status(502));
        refuses(
            list(&node, image).await,
            Code::RegistryUnreachable,
            &format!(
                "referrers of {image}: {} lists none; {{}} answered 502 Bad Gateway",
                mirror.host()
            ),
            &upstream,
        );
    }
}
