//! Never accept what cosign refuses: each fixture as it is, and with each byte of its signatures
//! changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use portcullis::{
    evidence::{Evidence, UntrustedBody, UntrustedClaim, gather},
    image::{ImageRef, Repository},
    policy::{Authority, AuthorityKind, PublicKeyAuthority, Revoked},
    resolve::{Credentials, HostsDirectories, Registry, Resolved, pin},
    verify::{self, PublicKey},
};
use serde_json::Value;

use super::{
    mutants::{self, Change, Contents, Flip},
    oracle::{self, Question},
};
use crate::support::{fixtures::Fixtures, registry::TestRegistry};

const NOW: &str = "2026-11-22T00:00:00Z";
/// Repositories that are judged at once.
const AT_ONCE: usize = 16;

/// What Portcullis accepts and cosign cannot verify, with the reason.
const COSIGN_CANNOT: [(&str, &str); 5] = [
    ("cosign2/ed25519ph", PREHASHED),
    (
        "cosign2/rsa-2048-pss",
        "cosign verifies RSA by PKCS #1 only; Vaults and openssl sign with PSS",
    ),
    ("cosign3/ed25519", PREHASHED),
    ("cosign3-legacy/ed25519", PREHASHED),
    ("cosign3-legacy-tlog/ed25519", PREHASHED),
];
const PREHASHED: &str = "cosign 3 signs Ed25519ph and verifies pure Ed25519: it refuses its own";

/// What cosign accepts and Portcullis refuses, with the reason.
const REFUSED_ON_PURPOSE: [(&str, &str); 1] = [(
    "cosign3/attestation-only",
    "an attestation by the right key says something about an image; it does not vouch for it",
)];

/// Where a change can make cosign refuse and Portcullis not, with the reason: kind of the document
/// and beginning of the place in it. What is signed, and the signature, are the same to the last
/// bit.
const UNREAD: [(&str, &str, &str); 4] = [
    (
        "bundle",
        "/verificationMaterial/publicKey/hint is gone",
        "cosign knows no other field there; the policy says which key, and no hint is read",
    ),
    ("bundle", "/verificationMaterial/tlogEntries", NO_LOG),
    ("manifest of signatures", "/layers/annotations/dev.sigstore.cosign/bundle", NO_LOG),
    (
        "index of bundles",
        "/manifests/digest",
        "a bundle listed by an algorithm that is unknown is passed over, and another one counts; \
         cosign gives up",
    ),
];
const NO_LOG: &str =
    "no log is read in this version; cosign wants well-formed entries even where it ignores them";
/// Signed in two formats, of which each cosign looks at one: what one of them accepts is vouched for.
const IN_TWO_FORMATS: &str = "mixed/both-formats";

fn is_unread((kind, place): &(String, String)) -> bool {
    UNREAD.iter().any(|unread| unread.0 == kind && place.starts_with(unread.1))
}

/// One fixture, and the key that is asked about it.
struct Case {
    name: String,
    contents: Contents,
    authority: Authority,
    questions: Vec<Question>,
    registry: TestRegistry,
    client: Registry,
    image: Resolved,
}

impl Case {
    async fn new(fixtures: &Fixtures, name: &str) -> Option<Self> {
        let fixture = fixtures.repository(name);
        let key = fixture.facts["key"].as_str()?;
        let annotations = &fixture.facts["annotations"];
        let authority = Authority {
            name: "release".into(),
            kind: AuthorityKind::PublicKey(PublicKeyAuthority {
                key: PublicKey::from_pem(&fixtures.file(key)).unwrap(),
                not_before: None,
                not_after: None,
                annotations: serde_json::from_value(annotations.clone()).unwrap_or_default(),
            }),
        };
        // Without the referrers API the list of bundles can be forged as well.
        let registry = TestRegistry::builder().no_referrers_api().start();
        let contents = Contents::of(fixtures, name);
        contents.push("original", &registry);
        let image: ImageRef = format!("{}/original:v1", registry.host()).parse().unwrap();
        let client = Registry::new(HostsDirectories::parse(""));
        let repo = client.repo(&image.repository, &Credentials::Anonymous);
        let image = pin(&repo, &image).await.unwrap().0;
        let questions = Question::of(fixtures, name, key);
        let name = name.to_owned();
        Some(Self { name, contents, authority, questions, registry, client, image })
    }

    async fn evidence(&self, repository: &str) -> Evidence {
        let repository: Repository =
            format!("{}/{repository}", self.registry.host()).parse().unwrap();
        gather(&self.client.repo(&repository, &Credentials::Anonymous), &self.image).await
    }

    fn judge(&self, evidence: &Evidence) -> bool {
        let (none, now) = (Revoked::default(), NOW.parse().unwrap());
        verify::authority(&self.authority, &self.image, evidence, &none, now).is_ok()
    }

    /// None: refused. Otherwise what signers signed, of all that was found.
    async fn accepted(&self, repository: &str) -> Option<BTreeSet<Signed>> {
        let evidence = self.evidence(repository).await;
        self.judge(&evidence).then(|| signed(&evidence))
    }

    /// The ways in which cosign accepts the original.
    fn accepting(&self) -> Vec<&Question> {
        let original = ["original".to_owned()];
        let asked = self.questions.iter().filter(|question| question.can_be_asked());
        asked.filter(|question| question.refused(&self.registry, &original).is_empty()).collect()
    }

    /// What is on record of a cosign that cannot be asked here.
    fn passed(&self) -> bool {
        self.questions.iter().any(|question| !question.can_be_asked() && question.passed)
    }

    /// The changed repositories that Portcullis accepts.
    async fn survivors(&self, changes: &[Change]) -> BTreeMap<String, Change> {
        let original = self.accepted("original").await.expect("accepted before");
        let mut survivors = BTreeMap::new();
        for (batch, changes) in changes.chunks(AT_ONCE).enumerate() {
            let names: Vec<_> = (0..changes.len()).map(|one| format!("m/{batch}-{one}")).collect();
            for (name, change) in names.iter().zip(changes) {
                self.contents.changed(*change).push(name, &self.registry);
            }
            let judged = join_all(names.iter().map(|name| self.accepted(name))).await;
            for ((name, change), judged) in names.into_iter().zip(changes).zip(judged) {
                let Some(signed) = judged else { continue };
                // Whatever cosign says: what counts is what the signer made, to the last bit.
                assert!(
                    !signed.is_disjoint(&original),
                    "{}: {}",
                    self.name,
                    self.contents.tell(*change)
                );
                survivors.insert(name, *change);
            }
        }
        survivors
    }
}

/// Type, statement and signature, decoded.
type Signed = (String, Vec<u8>, Vec<u8>);

fn signed(evidence: &Evidence) -> BTreeSet<Signed> {
    let of = |body: &UntrustedBody| match body {
        UntrustedBody::SimpleSigning { payload, signature } => {
            Some((String::new(), payload.clone(), signature.clone()))
        }
        UntrustedBody::Bundle { json } => {
            let bundle: Value = serde_json::from_slice(json).ok()?;
            let text = |field: &str| bundle.pointer(field)?.as_str();
            let bytes = |field| STANDARD.decode(text(field)?).ok();
            Some((
                text("/dsseEnvelope/payloadType")?.to_owned(),
                bytes("/dsseEnvelope/payload")?,
                bytes("/dsseEnvelope/signatures/0/sig")?,
            ))
        }
        UntrustedBody::Unreadable { .. } => None,
    };
    evidence.claims.iter().filter_map(|claim| of(&claim.body)).collect()
}

/// Every other byte is changed in another way.
fn in_turn(at: usize) -> Vec<Flip> {
    vec![Flip::ALL[at % 3]]
}

/// Changes each byte of these fixtures' signatures, and asks cosign about all that is accepted.
async fn hold_against_cosign(names: &[&str], flips: impl Fn(usize) -> Vec<Flip>) -> [usize; 3] {
    let fixtures = Fixtures::load();
    let (mut tried, mut accepted, mut asked) = (0, 0, 0);
    let mut wrong = BTreeMap::<String, usize>::new();
    for name in names {
        let Some(case) = Case::new(&fixtures, name).await else { continue };
        if case.accepted("original").await.is_none() {
            continue;
        }
        let changes = case.contents.changes(&flips);
        let survivors = case.survivors(&changes).await;
        let to_ask = survivors.iter().filter(|(_, at)| !is_unread(&case.contents.place(**at)));
        let repositories: Vec<_> = to_ask.map(|(repository, _)| repository.clone()).collect();
        let questions = case.accepting();
        let refused = questions.iter().flat_map(|q| q.refused(&case.registry, &repositories));
        let mut refusals = BTreeMap::<String, usize>::new();
        refused.for_each(|one| *refusals.entry(one).or_default() += 1);
        let too_many = if *name == IN_TWO_FORMATS { questions.len() } else { 1 };
        for (one, _) in refusals.into_iter().filter(|(_, refusals)| *refusals >= too_many) {
            let (kind, place) = case.contents.place(survivors[&one]);
            *wrong.entry(format!("{name}: {kind}: {place}")).or_default() += 1;
        }
        asked += questions.len() * repositories.len();
        tried += changes.len();
        accepted += survivors.len();
        println!("{name}: {} of {} accepted {wrong:?}", survivors.len(), changes.len());
    }
    assert!(wrong.is_empty(), "cosign refuses what we accept: {wrong:#?}");
    [tried, accepted, asked]
}

#[tokio::test]
async fn cosign_says_the_same_of_every_fixture() {
    let fixtures = Fixtures::load();
    let (mut cannot, mut on_purpose) = (BTreeSet::new(), BTreeSet::new());
    for (name, fixture) in &fixtures.repositories {
        let Some(case) = Case::new(&fixtures, name).await else { continue };
        let ours = case.accepted("original").await.is_some();
        assert_eq!(ours, fixture.facts["expect"] == "accept", "{name}");
        match (ours, !case.accepting().is_empty() || case.passed()) {
            (true, false) => assert!(cannot.insert(&**name)),
            (false, true) => assert!(on_purpose.insert(&**name)),
            _ => {}
        }
    }
    assert_eq!(cannot, COSIGN_CANNOT.map(|(name, _)| name).into());
    assert_eq!(on_purpose, REFUSED_ON_PURPOSE.map(|(name, _)| name).into());
}

/// One fixture of each kind that cosign 2 verifies; `make differential` takes all, with cosign 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_in_the_registry_counts_only_where_cosign_counts_it() {
    let counts = hold_against_cosign(&["cosign2/ecdsa-p256", "index/signed-child"], in_turn).await;
    assert!(counts[0] > 1000 && counts[1] > 50 && counts[2] > 50, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half an hour: make differential"]
async fn every_byte_of_every_fixture() {
    let only = env::var(oracle::EVERYTHING).expect("`make differential` sets it");
    let fixtures = Fixtures::load();
    let names = fixtures.repositories.keys().map(|name| &**name);
    let names: Vec<_> = names.filter(|name| only == "all" || name.contains(&only)).collect();
    let counts = hold_against_cosign(&names, |_| Flip::ALL.to_vec()).await;
    println!("{} changes, {} accepted; cosign was asked {} times", counts[0], counts[1], counts[2]);
    assert!(counts[0] > 2000 * names.len() / 2 && counts[1] > 0, "{counts:?}");
}

/// All that was signed, without a registry between.
#[tokio::test]
async fn every_byte_that_real_tools_signed_counts() {
    let fixtures = Fixtures::load();
    let (mut good, mut tried, mut survived) = (0, 0, BTreeSet::new());
    for name in fixtures.repositories.keys() {
        let Some(case) = Case::new(&fixtures, name).await else { continue };
        for claim in case.evidence("original").await.claims {
            let judge = |body: UntrustedBody| {
                let claims = vec![UntrustedClaim { body, ..claim.clone() }];
                let evidence = Evidence { claims, gaps: Vec::new() };
                case.judge(&evidence).then(|| signed(&evidence))
            };
            let Some(original) = judge(claim.body.clone()) else { continue };
            good += 1;
            for (change, body) in changed(&claim.body) {
                tried += 1;
                if let Some(signed) = judge(body) {
                    assert_eq!(signed, original, "{name}: {change}");
                    survived.insert(change);
                }
            }
        }
    }
    assert!(good >= 30 && tried > 400 * good, "{good} {tried}");
    // Nothing of a payload or a signature, and of a bundle what a key's signature does not cover.
    let unsigned = ["/verificationMaterial/publicKey", "/verificationMaterial/tlogEntries"];
    let beyond = survived.iter().filter(|place| !unsigned.iter().any(|one| place.starts_with(one)));
    assert_eq!(beyond.collect::<Vec<_>>(), Vec::<&String>::new());
}

/// The claim with one byte changed, each in turn, and where.
fn changed(body: &UntrustedBody) -> Vec<(String, UntrustedBody)> {
    let all = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let one = |at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] = in_turn(at)[0].of(bytes[at]).unwrap_or(bytes[at] ^ 1);
            bytes
        };
        (0..bytes.len()).map(one).collect()
    };
    match body.clone() {
        UntrustedBody::SimpleSigning { payload, signature } => {
            let simple = |payload: &[u8], signature: &[u8]| UntrustedBody::SimpleSigning {
                payload: payload.to_vec(),
                signature: signature.to_vec(),
            };
            let payloads =
                all(&payload).into_iter().map(|one| ("payload", simple(&one, &signature)));
            let signatures =
                all(&signature).into_iter().map(|one| ("signature", simple(&payload, &one)));
            payloads.chain(signatures).map(|(what, body)| (what.to_owned(), body)).collect()
        }
        UntrustedBody::Bundle { json: was } => {
            let place = |is: &[u8]| mutants::place(&was, is);
            let bundles = all(&was).into_iter();
            bundles.map(|json| (place(&json), UntrustedBody::Bundle { json })).collect()
        }
        UntrustedBody::Unreadable { .. } => Vec::new(),
    }
}
