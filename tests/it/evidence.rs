//! From a reference to a proof, through a registry: every fixture that a real tool made, and what
//! a registry can do to the evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    slice::from_ref,
};

use portcullis::{
    evidence::{Evidence, MAX_SIGNATURES, UntrustedBody, UntrustedClaim, gather},
    image::{Digest, ImageRef},
    policy::{Authority, AuthorityKind, PublicKeyAuthority, Revoked},
    refusal::{Code, Refusal},
    resolve::{Credentials, HostsDirectories, Registry, Repo, Resolved, pin},
    verify::{self, Identity, Missed, PublicKey, Verified},
};
use serde_json::{Value, json};

use crate::support::{
    fixtures::{Fixture, Fixtures},
    registry::{Fault, IMAGE_MANIFEST, Match, TestRegistry},
};

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const NOW: &str = "2026-11-22T00:00:00Z";

fn repo(registry: &TestRegistry, name: &str) -> (Repo, ImageRef) {
    let image: ImageRef = format!("{}/{name}:v1", registry.host()).parse().unwrap();
    let hosts = Registry::new(HostsDirectories::parse(""));
    (hosts.repo(&image.repository, &Credentials::Anonymous), image)
}

async fn found(registry: &TestRegistry, name: &str) -> (Resolved, Evidence) {
    let (repo, image) = repo(registry, name);
    let (resolved, _) = pin(&repo, &image).await.unwrap();
    let evidence = gather(&repo, &resolved).await;
    (resolved, evidence)
}

fn ask(
    pem: &str,
    annotations: BTreeMap<String, String>,
    (image, evidence): &(Resolved, Evidence),
) -> Result<Verified, Missed> {
    let revoked = Revoked::default();
    verify::authority(&by_key(pem, annotations), image, evidence, &revoked, NOW.parse().unwrap())
}

fn by_key(pem: &str, annotations: BTreeMap<String, String>) -> Authority {
    let key = PublicKey::from_pem(pem).unwrap();
    let kind = AuthorityKind::PublicKey(PublicKeyAuthority {
        key,
        not_before: None,
        not_after: None,
        annotations,
    });
    Authority { name: "release".into(), kind }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}

/// The fixtures whose answer does not depend on this machine's architecture.
fn portable(fixture: &Fixture) -> bool {
    std::env::consts::ARCH == "x86_64" || fixture.facts["child"].is_null()
}

#[tokio::test]
async fn every_fixture_is_judged_by_its_key_and_refused_by_others() {
    let fixtures = Fixtures::load();
    let other = fixtures.file("keys/other.pub");
    for registry in [TestRegistry::start(), TestRegistry::builder().no_referrers_api().start()] {
        let mut accepted = BTreeSet::new();
        for (name, fixture) in fixtures.repositories.iter().filter(|(_, one)| portable(one)) {
            fixtures.push(name, &registry);
            let all = found(&registry, name).await;
            assert_eq!(all.0.image.digest, fixture.image(), "{name}");
            assert_eq!(all.1.gaps, [], "{name}");
            let child = fixture.facts["child"].as_str().map(|digest| digest.parse().unwrap());
            assert_eq!(all.0.child, child, "{name}");

            let mut keys = strings(&fixture.facts["keys"]);
            keys.extend(fixture.facts["key"].as_str());
            for key in &keys {
                let annotations = &fixture.facts["annotations"];
                let annotations = serde_json::from_value(annotations.clone()).unwrap_or_default();
                let pem = fixtures.file(key);
                let answer = ask(&pem, annotations, &all);
                match fixture.facts["expect"].as_str().unwrap() {
                    "accept" => {
                        let verified = answer.unwrap_or_else(|missed| panic!("{name}: {missed:?}"));
                        let id = PublicKey::from_pem(&pem).unwrap().id();
                        assert_eq!(verified.identity(), &Identity::Key(id), "{name}");
                        assert!(all.0.subjects().any(|one| one == verified.subject()), "{name}");
                        accepted.insert(name.clone());
                    }
                    "refuse" => assert!(answer.is_err(), "{name}"),
                    unknown => panic!("{name}: {unknown}"),
                }
            }
            if !keys.contains(&"keys/other.pub") {
                assert!(ask(&other, BTreeMap::new(), &all).is_err(), "{name}");
            }
        }
        let expected = fixtures
            .repositories
            .iter()
            .filter(|(_, fixture)| portable(fixture) && fixture.facts["expect"] == "accept");
        assert_eq!(accepted, expected.map(|(name, _)| name.clone()).collect());
        assert!(accepted.len() >= 30, "{accepted:?}");
    }
}

/// Every fixture as it was found, with the keys that are asked about it.
async fn all_found(fixtures: &Fixtures) -> Vec<(String, Vec<Authority>, Resolved, Evidence)> {
    let registry = TestRegistry::start();
    let mut all = Vec::new();
    for (name, fixture) in &fixtures.repositories {
        fixtures.push(name, &registry);
        let mut keys = strings(&fixture.facts["keys"]);
        keys.extend(fixture.facts["key"].as_str());
        let keys = keys.iter().map(|key| by_key(&fixtures.file(key), BTreeMap::new())).collect();
        let (image, evidence) = found(&registry, name).await;
        all.push((name.clone(), keys, image, evidence));
    }
    all
}

fn holds(key: &Authority, image: &Resolved, claim: UntrustedClaim) -> bool {
    let evidence = Evidence { claims: vec![claim], gaps: Vec::new() };
    verify::authority(key, image, &evidence, &Revoked::default(), NOW.parse().unwrap()).is_ok()
}

#[tokio::test]
async fn no_claim_counts_for_another_image() {
    let all = all_found(&Fixtures::load()).await;
    let mut tried = 0;
    // The hostile ones hold other images' good signatures already.
    for (from, keys, source, evidence) in all.iter().filter(|one| !one.0.starts_with("hostile/")) {
        for (to, _, image, _) in &all {
            if image.subjects().any(|one| source.subjects().any(|other| one == other)) {
                continue;
            }
            for (key, claim) in
                keys.iter().flat_map(|k| evidence.claims.iter().map(move |c| (k, c)))
            {
                let claim = UntrustedClaim { subject: image.image.digest, ..claim.clone() };
                assert!(!holds(key, image, claim), "from {from} to {to}");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

/// A log entry with its own good signatures says nothing of a signature that it is put beside, and
/// a bad one takes nothing from a good signature.
#[tokio::test]
async fn cve_2022_36056_and_2026_22703_a_log_entry_neither_makes_nor_breaks_a_signature() {
    let fixtures = Fixtures::load();
    let sig = |name: &str| -> Value {
        let fixture = fixtures.repository(name);
        serde_json::from_slice(&fixtures.blob(fixture.manifests.last().unwrap())).unwrap()
    };
    let pem = fixtures.file("keys/ecdsa-p256.pub");
    let name = "cosign2-tlog/ecdsa-p256";
    let (good, other) = (sig(name), sig("cosign2/ecdsa-p256"));
    let log = "/layers/0/annotations/dev.sigstore.cosign~1bundle";
    let signature = "/layers/0/annotations/dev.cosignproject.cosign~1signature";
    assert!(good.pointer(log).is_some());
    let foreign = other.pointer(signature).unwrap().clone();
    let cases = [
        (signature, foreign, false),
        (signature, "AAAA".into(), false),
        (signature, "".into(), false),
        (log, "{}".into(), true),
        (log, "no JSON".into(), true),
        (log, sig("cosign2-tlog/rsa-2048").pointer(log).unwrap().clone(), true),
    ];
    for (place, value, accepted) in cases {
        let registry = TestRegistry::start();
        fixtures.push(name, &registry);
        let mut manifest = good.clone();
        *manifest.pointer_mut(place).unwrap() = value.clone();
        let tag = format!("sha256-{}.sig", fixtures.repository(name).image().hex());
        registry.push_json(name, Some(&tag), &manifest);
        let answer = ask(&pem, BTreeMap::new(), &found(&registry, name).await);
        assert_eq!(answer.is_ok(), accepted, "{place}: {value}");
    }
}

/// What a policy that wants one signature by a key is told.
async fn told(
    registry: &TestRegistry,
    name: &str,
    key: &str,
    wanted: &[(&str, &str)],
) -> (Code, String) {
    let fixtures = Fixtures::load();
    fixtures.push(name, registry);
    let annotations =
        wanted.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let missed = ask(&fixtures.file(key), annotations, &found(registry, name).await).unwrap_err();
    (missed.code, missed.why)
}

#[tokio::test]
async fn a_refusal_tells_what_real_tools_left() {
    let fixtures = Fixtures::load();
    let (api, tags) = (TestRegistry::start(), TestRegistry::builder().no_referrers_api().start());
    let digest = |name: &str| fixtures.repository(name).image();
    let (key, other) = ("keys/ecdsa-p256.pub", "keys/other.pub");
    let vuln = "signed by this key, but with predicate type \
                https://cosign.sigstore.dev/attestation/vuln/v1 instead of \
                https://sigstore.dev/cosign/sign/v1";
    let foreign = format!(
        "no readable signature; 1 of 1 unreadable: it refers to another image, {}",
        digest("cosign3/ecdsa-p256")
    );
    let (cosign2, cosign3) = (digest("cosign2/ecdsa-p256"), digest("cosign3/ecdsa-p256"));
    let (cosign2, cosign3) = (
        format!("signed by this key, but for another digest {cosign2}"),
        format!("signed by this key, but for another digest {cosign3}"),
    );
    let (missing, invalid, unsatisfied) =
        (Code::SignatureMissing, Code::SignatureInvalid, Code::AuthorityNotSatisfied);
    let one = "no signature by this key (1 signature found)";
    for (registry, name, key, wanted, code, why) in [
        (&api, "unsigned/app", key, &[][..], missing, "no signature found"),
        (&api, "unsigned/index", key, &[], missing, "no signature found"),
        (&api, "cosign2/attestation-only", key, &[], missing, "no signature found"),
        (&api, "cosign3/attestation-only", key, &[], invalid, vuln),
        (&api, "cosign2/ecdsa-p256", other, &[], unsatisfied, one),
        (&tags, "cosign3/rsa-4096", other, &[], unsatisfied, one),
        (
            &api,
            "cosign2/several-keys",
            "keys/ed25519.pub",
            &[],
            unsatisfied,
            "no signature by this key (3 signatures found)",
        ),
        (&api, "hostile/payload-edited", key, &[], unsatisfied, one),
        (&api, "hostile/sig-of-other-digest", key, &[], invalid, &*cosign2),
        (&api, "hostile/bundle-other-subject", key, &[], invalid, &*cosign3),
        (&tags, "hostile/bundle-other-subject", key, &[], invalid, &*cosign3),
        (&api, "hostile/index-other-subject", key, &[], missing, "no signature found"),
        (&tags, "hostile/index-other-subject", key, &[], invalid, &*foreign),
        (
            &api,
            "cosign2/annotations",
            key,
            &[("env", "dev")],
            unsatisfied,
            "signed by this key, but annotation \"env\" is \"prod\", not \"dev\"",
        ),
        (
            &tags,
            "cosign3/annotations",
            key,
            &[("env", "prod"), ("zone", "a")],
            unsatisfied,
            "signed by this key, but annotation \"zone\" is missing, not \"a\"",
        ),
    ] {
        assert_eq!(told(registry, name, key, wanted).await, (code, why.to_owned()), "{name}");
    }
}

/// A registry with `mixed/both-formats`, the digests of its payload and its bundle, and of what
/// holds the bundle.
struct Mixed {
    registry: TestRegistry,
    image: Digest,
    payload: Digest,
    bundle: Digest,
    referrer: Digest,
}

const MIXED: &str = "mixed/both-formats";

impl Mixed {
    fn new() -> Self {
        let (fixtures, registry) = (Fixtures::load(), TestRegistry::start());
        fixtures.push(MIXED, &registry);
        let fixture = fixtures.repository(MIXED);
        let holder = |kind: &str| -> Digest {
            let all = fixture.facts["signatures"].as_array().unwrap();
            let one = all.iter().find(|one| one["kind"] == kind).unwrap();
            one["manifest"].as_str().unwrap().parse().unwrap()
        };
        let layer = |manifest: Digest| -> Digest {
            let json: Value =
                serde_json::from_slice(&fixtures.blob(&manifest.to_string())).unwrap();
            json["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
        };
        let referrer = holder("bundle");
        Self {
            image: fixture.image(),
            payload: layer(holder("simplesigning")),
            bundle: layer(referrer),
            referrer,
            registry,
        }
    }

    async fn gather(&self) -> Evidence {
        // The registry answers `pin` and everything that no fault is for.
        found(&self.registry, MIXED).await.1
    }
}

fn kinds(evidence: &Evidence) -> Vec<&str> {
    let kind = |body: &UntrustedBody| match body {
        UntrustedBody::SimpleSigning { .. } => "simple",
        UntrustedBody::Bundle { .. } => "bundle",
        UntrustedBody::Unreadable { .. } => "unreadable",
    };
    evidence.claims.iter().map(|claim| kind(&claim.body)).collect()
}

#[tokio::test]
async fn an_unanswered_question_is_a_gap_and_keeps_nothing_else_back() {
    let mixed = Mixed::new();
    assert_eq!(kinds(&mixed.gather().await), ["simple", "bundle"]);
    let sig = format!("sha256-{}.sig", mixed.image.hex());
    for (to, left) in [
        (Match::manifest(MIXED, sig), &["bundle"][..]),
        (Match::referrers(MIXED, mixed.image), &["simple"]),
        (Match::manifest(MIXED, mixed.referrer), &["simple"]),
        (Match::blob(MIXED, mixed.payload), &["bundle"]),
        (Match::blob(MIXED, mixed.bundle), &["simple"]),
    ] {
        mixed.registry.heal();
        mixed.registry.fault(to, Fault::Status(403, vec![], String::new()));
        let evidence = mixed.gather().await;
        assert_eq!(kinds(&evidence), left);
        let codes: Vec<_> = evidence.gaps.iter().map(|gap| gap.code).collect();
        assert_eq!(codes, [Code::RegistryUnauthorized]);
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_it_is_unreadable_and_no_gap() {
    let mixed = Mixed::new();
    let missing = || Fault::Status(404, vec![], String::new());
    for (to, fault, left) in [
        (Match::blob(MIXED, mixed.payload), missing(), ["unreadable", "bundle"]),
        (Match::blob(MIXED, mixed.payload), Fault::Corrupt, ["unreadable", "bundle"]),
        (Match::blob(MIXED, mixed.payload), Fault::EndlessBody, ["unreadable", "bundle"]),
        (Match::blob(MIXED, mixed.bundle), missing(), ["simple", "unreadable"]),
        (Match::manifest(MIXED, mixed.referrer), missing(), ["simple", "unreadable"]),
        (Match::manifest(MIXED, mixed.referrer), Fault::Corrupt, ["simple", "unreadable"]),
        (Match::manifest(MIXED, mixed.referrer), Fault::EndlessBody, ["simple", "unreadable"]),
        (
            Match::manifest(MIXED, mixed.referrer),
            Fault::ContentType("text/html"),
            ["simple", "unreadable"],
        ),
    ] {
        mixed.registry.heal();
        mixed.registry.fault(to, fault);
        let evidence = mixed.gather().await;
        assert_eq!(kinds(&evidence), left);
        assert_eq!(evidence.gaps, []);
    }
}

/// A manifest in the way of cosign 2 with so many signatures over one payload.
fn signatures(payload: Digest, size: usize, count: usize) -> Value {
    let layer = |number: usize| {
        let signature = ["AQ==", "Ag=="][number % 2];
        json!({
            "mediaType": SIMPLE_SIGNING, "digest": payload, "size": size,
            "annotations": {SIGNATURE: signature},
        })
    };
    json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST,
        "config": {"mediaType": "x/y", "digest": payload, "size": size},
        "layers": (0..count).map(layer).collect::<Vec<_>>(),
    })
}

#[tokio::test]
async fn a_payload_that_many_keys_signed_is_fetched_once() {
    let registry = TestRegistry::start();
    let sig = format!("sha256-{}.sig", registry.push_image("app", "v1").hex());
    let payload = registry.push_blob("app", "payload");
    registry.push_json("app", Some(&sig), &signatures(payload, 7, MAX_SIGNATURES));
    let (_, evidence) = found(&registry, "app").await;
    assert_eq!((evidence.claims.len(), evidence.gaps.len()), (MAX_SIGNATURES, 0));
    let blobs = registry.asked().into_iter().filter(|line| line.contains("/blobs/"));
    assert_eq!(blobs.count(), 1);
}

#[tokio::test]
async fn a_payload_of_another_size_than_its_manifest_says_is_unreadable() {
    let registry = TestRegistry::start();
    let sig = format!("sha256-{}.sig", registry.push_image("app", "v1").hex());
    let payload = registry.push_blob("app", "payload");
    for (size, kind) in [(6, "unreadable"), (7, "simple"), (8, "unreadable"), (700, "unreadable")] {
        registry.push_json("app", Some(&sig), &signatures(payload, size, 1));
        let evidence = found(&registry, "app").await.1;
        assert_eq!((kinds(&evidence), &*evidence.gaps), (vec![kind], &[][..]), "{size}");
    }
}

const TOO_MANY: &str = "there are more signatures than Portcullis looks at, 100 or 16 MiB: remove \
                        those that no policy asks for";

#[tokio::test]
async fn more_signatures_than_are_looked_at_are_a_gap() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let sig = format!("sha256-{}.sig", image.hex());
    let payload = registry.push_blob("app", "payload");
    registry.push_json("app", Some(&sig), &signatures(payload, 7, MAX_SIGNATURES + 1));
    let gap = Refusal::new(Code::LimitExceeded, TOO_MANY);
    let (_, evidence) = found(&registry, "app").await;
    assert_eq!(evidence.claims.len(), MAX_SIGNATURES);
    assert_eq!(evidence.gaps, from_ref(&gap));

    // The bytes together.
    let mebibyte = vec![b' '; 1 << 20];
    let large = registry.push_blob("app", mebibyte.clone());
    registry.push_json("app", Some(&sig), &signatures(large, mebibyte.len(), 17));
    let (_, evidence) = found(&registry, "app").await;
    assert_eq!((evidence.claims.len(), &*evidence.gaps), (16, from_ref(&gap)));

    // The referrers.
    registry.push_json("app", Some(&sig), &signatures(payload, 7, 0));
    let subject = registry.descriptor("app", image);
    for number in 0..=MAX_SIGNATURES {
        registry.push_json(
            "app",
            None,
            &json!({
                "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": BUNDLE,
                "config": {"mediaType": "x/y", "digest": payload, "size": 7},
                "layers": [{"mediaType": BUNDLE, "digest": payload, "size": 7}],
                "subject": subject, "annotations": {"number": number.to_string()},
            }),
        );
    }
    let (_, evidence) = found(&registry, "app").await;
    assert_eq!((evidence.claims.len(), &*evidence.gaps), (MAX_SIGNATURES, from_ref(&gap)));
    let sources: Vec<_> = evidence.claims.iter().map(|claim| &claim.source).collect();
    assert!(sources.is_sorted(), "the first ones do not depend on the registry's order");
}

#[tokio::test]
async fn other_artifacts_are_neither_fetched_nor_counted() {
    let registry = TestRegistry::start();
    let image = registry.push_image("app", "v1");
    let subject = registry.descriptor("app", image);
    let blob = registry.push_blob("app", "sbom");
    let mut sbom = json!({
        "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": "application/spdx+json",
        "config": {"mediaType": "x/y", "digest": blob, "size": 4},
        "layers": [{"mediaType": "application/spdx+json", "digest": blob, "size": 4}],
        "subject": subject,
    });
    let typed = registry.push_json("app", None, &sbom);
    sbom["artifactType"] = Value::Null;
    registry.push_json("app", None, &sbom);
    let (_, evidence) = found(&registry, "app").await;
    assert_eq!((kinds(&evidence).len(), evidence.gaps.len()), (0, 0));
    let asked = registry.asked().join("\n");
    assert!(!asked.contains(&typed.to_string()) && !asked.contains("/blobs/"), "{asked}");
}
