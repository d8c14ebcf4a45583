//! Signed bundles as the source, from a server and from a registry.

use jiff::{SignedDuration, Timestamp};
use portcullis::policy::{
    Text, Texts,
    bundle::{Payload, SigningKey, sign},
};
use serde_json::json;

use super::*;
use crate::support::{
    ca::TestCa,
    fixtures::Fixtures,
    registry::{Fault as Wrong, IMAGE_MANIFEST, Match},
};

const UNSIGNED: &str = "is not signed by a pinned key: it carries 1 signature";
const CHANGED: &str = "policy set in force: 1 policy";
const SAME: &str = "policies load; the set in force is unchanged";
const STAYS: &str = "policies are not loaded, the set in force stays: ";

/// A server of one bundle, with a CA of its own, and the node that follows it.
pub(super) struct Origin {
    pub(super) node: Node,
    server: TestRegistry,
    path: String,
}

/// The set that lets in one image, as a bundle by this key.
pub(super) fn bundle(
    node: &Node,
    name: &str,
    revision: u64,
    expires_at: Option<Timestamp>,
    key: &str,
) -> String {
    let files = vec![Text { name: "p.yaml".into(), text: node.lets_in(name).to_string() }];
    let texts = Texts { files, keys: Vec::new() };
    let payload = Payload { revision, expires_at, texts }.write().unwrap();
    let pem = Fixtures::load().file(&format!("keys/{key}.key"));
    let signed = sign(&payload, &SigningKey::from_pem(&pem).unwrap()).unwrap();
    String::from_utf8(signed.bytes).unwrap()
}

impl Origin {
    pub(super) fn new() -> Self {
        let (node, ca) = (Node::new(), TestCa::new());
        fs::write(node.file("ca.pem"), ca.pem()).unwrap();
        let server = TestRegistry::builder().tls(&ca).start();
        // Something that is there, so that faults can spoil it.
        let path = format!("/v2/b/blobs/{}", server.push_blob("b", vec![0; 1000]));
        Self { node, server, path }
    }

    pub(super) fn name(&self) -> String {
        format!("{}{}", self.server.url(), self.path)
    }

    /// What stands in `[policy]` with this key.
    fn lines(&self, key: &str, more: &str) -> String {
        format!(
            "source = {:?}\nkeys = [{:?}]\ncertificate_authority = {:?}\npoll = \"24h\"\n{more}",
            self.name(),
            Fixtures::load().path(&format!("keys/{key}.pub")),
            self.node.file("ca.pem"),
        )
    }

    pub(super) fn start(&self) -> Gate {
        self.node.setup(&self.lines("ed25519", "")).start()
    }

    pub(super) fn offers(&self, name: &str, revision: u64) {
        self.answers(bundle(&self.node, name, revision, None, "ed25519"));
    }

    fn answers(&self, body: String) {
        self.is_wrong(Wrong::Status(200, Vec::new(), body));
    }

    pub(super) fn is_down(&self) {
        self.is_wrong(Wrong::Status(503, Vec::new(), String::new()));
    }

    /// What is said of it then.
    pub(super) fn down(&self) -> String {
        format!("{}: {} answered 503 Service Unavailable", self.name(), self.server.host())
    }

    fn is_wrong(&self, wrong: Wrong) {
        self.server.heal();
        self.server.fault(Match::any(), wrong);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_down_at_boot_takes_nothing_from_what_was_kept() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.is_down();
    let mut gate = origin.start();
    told(&gate, 0, "is not heard, and none is in force").await;
    serves(&gate).await;
    let why = format!("{NONE}{}", origin.down());
    node.is_refused(&gate, "app", "policy_unavailable", &why).await;
    assert_eq!(trouble(&gate).0, "Unreachable");
    origin.offers("app", 1);
    comes_to(&gate, 0, CHANGED).await;
    node.starts(&gate, "app").await;
    assert_eq!(gate.records("pull").pop().unwrap()["policy_set"]["revision"], 1);
    origin.is_down();
    let before = gate.records("policy").len();
    gate.crash_and_restart();
    let recalled = gate.records("policy").swap_remove(before);
    assert_eq!(recalled["message"], "policy set that this node had last, in force: 1 policy");
    assert_eq!(recalled["policy_set"]["revision"], 1);
    node.starts(&gate, "app").await;
    let stays =
        format!("the source of policies is not heard, the set in force stays: {}", origin.down());
    told(&gate, before, &stays).await;
    node.starts(&gate, "app").await;
    node.is_not_covered(&gate, "other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_next_set_is_rejected_whole_and_the_old_one_stays() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.offers("app", 5);
    let gate = origin.start();
    let good = in_force(&gate, 5).await["policy_set"].clone();
    let of = |name, revision, key| bundle(node, name, revision, None, key);
    let past = Timestamp::from_second(1_600_000_000).unwrap();
    let none = "is no signed bundle of policies (a DSSE envelope in JSON): ";
    let next = of("other", 6, "ed25519");
    let tampered = {
        let mut envelope: Value = serde_json::from_str(&next).unwrap();
        let old: Value = serde_json::from_str(&of("app", 5, "ed25519")).unwrap();
        envelope["signatures"] = old["signatures"].clone();
        envelope.to_string()
    };
    for (what, body, why) in [
        ("tampered", tampered, UNSIGNED),
        ("by another key", of("other", 6, "other"), UNSIGNED),
        ("truncated", next[..next.len() / 2].to_owned(), none),
        ("nothing", String::new(), none),
        (
            "older",
            of("other", 4, "ed25519"),
            "it has revision 4, which is older than revision 5 that this node had; publish it with \
             a revision above 5",
        ),
        (
            "the same revision twice",
            of("other", 5, "ed25519"),
            "it differs from what this node had as revision 5; each change needs a revision of its \
             own: publish it with one above 5",
        ),
        (
            "expired",
            bundle(node, "other", 6, Some(past), "ed25519"),
            "it expired at 2020-09-13T12:26:40Z; publish one that holds for longer, or set this \
             node's clock",
        ),
    ] {
        origin.answers(body);
        let said = reload(&gate).await;
        let expected = format!("{STAYS}{}: {why}", origin.name());
        assert!(said.starts_with(&expected), "{what}: {said}");
        assert_eq!(trouble(&gate).0, "Rejected", "{what}");
        node.starts(&gate, "app").await;
        node.is_not_covered(&gate, "other").await;
        assert_eq!(gate.records("pull").pop().unwrap()["policy_set"], good, "{what}");
    }
    // What was in force is what it holds again, and then the next.
    origin.offers("app", 5);
    assert_eq!(reload(&gate).await, SAME);
    assert_eq!(trouble(&gate), <(String, String)>::default());
    origin.answers(next);
    assert_eq!(reload(&gate).await, CHANGED);
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_end_holds_up_nothing() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.offers("app", 1);
    let gate = origin.start();
    in_force(&gate, 1).await;
    let resident = gate.resident();
    // Zeros without end: far more than a gigabyte, if anybody took them.
    origin.is_wrong(Wrong::EndlessBody);
    let said = reload(&gate).await;
    let limit =
        format!("{} sent more than 26214400 bytes, which is the limit", origin.server.host());
    assert_eq!(said, format!("{STAYS}{}: {limit}", origin.name()));
    assert!(gate.resident() < resident + 100 * 1024, "{} KiB", gate.resident());
    node.starts(&gate, "app").await;
    // One that stops in the middle, and is waited for while everything else goes on.
    let asked = origin.server.requests().len();
    origin.is_wrong(Wrong::Hang);
    gate.signal(Signal::SIGHUP);
    origin.server.until(|requests| requests.len() > asked).await;
    node.starts(&gate, "app").await;
    node.is_not_covered(&gate, "other").await;
    serves(&gate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etag_that_stands_still_hides_no_change_from_who_asks() {
    let origin = Origin::new();
    let node = &origin.node;
    let with_tag = |revision, name| {
        let headers = vec![("etag", "\"same\"".to_owned())];
        let body = bundle(node, name, revision, None, "ed25519");
        origin.is_wrong(Wrong::Status(200, headers, body));
    };
    with_tag(1, "app");
    let gate = origin.start();
    in_force(&gate, 1).await;
    with_tag(2, "other");
    assert_eq!(reload(&gate).await, CHANGED);
    node.starts(&gate, "other").await;
    // Nor is anything confirmed by a server that says so of nothing.
    origin.is_wrong(Wrong::Status(304, Vec::new(), String::new()));
    let said = reload(&gate).await;
    assert!(
        said.ends_with("answered 304 Not Modified, although nothing was held against it"),
        "{said}"
    );
    node.starts(&gate, "other").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_while_it_is_in_force_is_in_force_no_more() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.is_down();
    let mut gate = origin.start();
    told(&gate, 0, "is not heard").await;
    // Shortly ahead, or as far as a slow machine needs it.
    let mut ahead = SignedDuration::from_secs(2);
    let at = loop {
        let at = Timestamp::now() + ahead;
        origin.answers(bundle(node, "app", 1, Some(at), "ed25519"));
        reload(&gate).await;
        if gate.records("policy").iter().any(|record| record["message"] == CHANGED) {
            break at;
        }
        ahead *= 2;
    };
    let until_then = status(&gate)["policies"]["until"].clone();
    assert_eq!(until_then, format!("{at:.0}"));
    let why = format!(
        "the policies of this node expired at {at:.0}; {} must offer newer ones",
        origin.name()
    );
    told(&gate, 0, &why).await;
    assert!(Timestamp::now() >= at);
    node.is_refused(&gate, "app", "policy_expired", &why).await;
    assert_eq!(trouble(&gate), ("Expired".into(), why.clone()));
    // Its own word does not help it, and no restart does.
    reload(&gate).await;
    node.is_refused(&gate, "app", "policy_expired", &why).await;
    gate.crash_and_restart();
    node.is_refused(&gate, "app", "policy_expired", &why).await;
    serves(&gate).await;
    let before = gate.records("policy").len();
    origin.offers("app", 2);
    comes_to(&gate, before, CHANGED).await;
    node.starts(&gate, "app").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_pinned_no_more_opens_nothing_that_was_kept() {
    let origin = Origin::new();
    let node = &origin.node;
    origin.offers("app", 3);
    let mut gate = origin.start();
    in_force(&gate, 3).await;
    node.starts(&gate, "app").await;
    gate.crash();
    let config = gate.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("ed25519.pub", "rsa-2048.pub")).unwrap();
    let before = gate.records("policy").len();
    gate.start_again();
    let why = format!("the policies that were kept on this node are of no use: {UNSIGNED}");
    told(&gate, before, &why).await;
    assert_eq!(node.pull(&gate, "app").await.0, 2);
    assert_eq!(gate.records("pull").pop().unwrap()["reason"], "policy_unavailable");
    serves(&gate).await;
    // What the new key signs comes into force, if it is no older.
    origin.answers(bundle(node, "other", 2, None, "rsa-2048"));
    comes_to(&gate, before, "it has revision 2, which is older than revision 3").await;
    origin.answers(bundle(node, "other", 4, None, "rsa-2048"));
    comes_to(&gate, before, CHANGED).await;
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_moves_to_a_newer_bundle_is_enforced_and_back_is_not() {
    let (node, registry) = (Node::new(), TestRegistry::start());
    let kind = "application/vnd.portcullis.policy-bundle.v1alpha1.dsse+json";
    let publish = |name, revision| {
        let content = bundle(&node, name, revision, None, "ed25519");
        let layer = registry.push_blob("policies", content.clone());
        let empty = registry.push_blob("policies", "{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
            "layers": [{"mediaType": kind, "digest": layer, "size": content.len()}],
        });
        registry.push_json("policies", Some("prod"), &manifest);
    };
    publish("app", 1);
    let key = Fixtures::load().path("keys/ed25519.pub");
    let name = format!("oci://{}/policies:prod", registry.host());
    let lines = format!("source = {name:?}\nkeys = [{key:?}]\npoll = \"24h\"");
    let mut gate = node.setup(&lines).start();
    in_force(&gate, 1).await;
    node.starts(&gate, "app").await;
    publish("other", 2);
    assert_eq!(reload(&gate).await, CHANGED);
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
    assert_eq!(reload(&gate).await, SAME);
    publish("app", 1);
    let older = "it has revision 1, which is older than revision 2 that this node had";
    let said = reload(&gate).await;
    assert!(said.starts_with(&format!("{STAYS}{name}: {older}")), "{said}");
    registry.fault(Match::any(), Wrong::CloseConnection);
    gate.crash_and_restart();
    node.starts(&gate, "other").await;
    node.is_not_covered(&gate, "app").await;
}
