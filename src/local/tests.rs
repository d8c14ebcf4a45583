//! Whoever can write the store gains nothing.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    evidence::{
        Entry, Evidence, UntrustedBody, UntrustedClaim,
        testing::{entry, index, manifest, signed},
    },
    policy::source,
    resolve::Fetched,
    verify::testing::Pair,
};

/// Two images, an index of both, and what somebody made who cannot sign: other layers under the
/// configuration of an image, and an index that lists a good image beside that.
struct World {
    keys: [Pair; 2],
    documents: Vec<(Fetched, Option<Fetched>)>,
    ids: [ImageId; 2],
    digests: Vec<Digest>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (one, two) = (manifest("one", "one"), manifest("two", "two"));
    let (fake, both) = (manifest("two", "fake"), index(&[&one, &two]));
    let mixed = index(&[&one, &fake]);
    let documents = vec![
        (one.clone(), None),
        (two.clone(), None),
        (both.clone(), Some(one.clone())),
        (both.clone(), Some(two.clone())),
        (fake.clone(), None),
        (mixed.clone(), Some(one.clone())),
        (mixed.clone(), Some(fake.clone())),
    ];
    let digests = [&one, &two, &both, &fake, &mixed].map(|document| document.digest).to_vec();
    let ids = ["one", "two"].map(|text| ImageId::of_config(Digest::of(text.as_bytes())));
    World { keys: [Pair::p256(), Pair::p256()], documents, ids, digests }
});

/// Each key's signature of each document that is not made by the attacker.
static SIGNATURES: LazyLock<Vec<(usize, UntrustedClaim)>> = LazyLock::new(|| {
    let sign = |key: usize| {
        WORLD.digests[..3].iter().map(move |digest| (key, signed(&WORLD.keys[key], *digest)))
    };
    (0..2).flat_map(sign).collect()
});

/// What the attacker does to a claim.
#[derive(Clone, Debug)]
enum Edit {
    None,
    /// Says that it was found for another digest.
    Move(usize),
    /// Says another digest in what was signed.
    Forge(usize),
    Flip(usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => Just(Edit::None),
        1 => (0..5usize).prop_map(Edit::Move),
        1 => (0..5usize).prop_map(Edit::Forge),
        1 => (0..400usize).prop_map(Edit::Flip),
    ]
}

fn edited(mut claim: UntrustedClaim, edit: &Edit) -> UntrustedClaim {
    let UntrustedBody::SimpleSigning { payload, signature } = &mut claim.body else {
        unreachable!("all are simple signings")
    };
    match edit {
        Edit::None => {}
        Edit::Move(to) => claim.subject = WORLD.digests[*to],
        Edit::Forge(to) => {
            let text = String::from_utf8(payload.clone()).unwrap();
            let from = WORLD.digests.iter().find(|digest| text.contains(&digest.hex())).unwrap();
            *payload = text.replace(&from.hex(), &WORLD.digests[*to].hex()).into_bytes();
            claim.subject = WORLD.digests[*to];
        }
        Edit::Flip(at) if *at % 2 == 0 => {
            let at = at % signature.len();
            signature[at] ^= 1;
        }
        Edit::Flip(at) => {
            let at = at % payload.len();
            payload[at] ^= 1;
        }
    }
    claim
}

/// A document of the store, with claims of whatever kind.
fn known() -> impl Strategy<Value = Known> {
    let claims = || vec((0..6usize, edits()), 0..5);
    let made = (0..7usize, claims(), claims(), any::<bool>(), any::<bool>());
    made.prop_map(|(which, top, child, whole, child_whole)| {
        let claims = |list: Vec<(usize, Edit)>| -> Vec<_> {
            list.iter().map(|(which, edit)| edited(SIGNATURES[*which].1.clone(), edit)).collect()
        };
        let (document, below) = WORLD.documents[which].clone();
        let below = below.map(|below| entry(below, &claims(child), child_whole));
        Known::new(entry(document, &claims(top), whole), below).unwrap()
    })
}

fn authorities() -> impl Strategy<Value = String> {
    let key = |name: &str, key: usize| {
        let pem = WORLD.keys[key].pem().replace('\n', "\n          ");
        format!("    - name: {name}\n      publicKey:\n        pem: |\n          {pem}\n")
    };
    let (one, two) = (key("one", 0), key("two", 1));
    let both = format!("{one}{two}");
    let digests = format!("    - {{name: d, digests: ['{}']}}\n", WORLD.digests[0]);
    let texts = vec![
        format!("  authorities:\n{one}"),
        format!("  authorities:\n{two}"),
        format!("  authorities:\n{both}"),
        format!("  atLeast: 2\n  authorities:\n{both}"),
        format!("  authorities:\n{digests}"),
        format!("  authorities:\n{digests}{two}"),
    ];
    select(texts)
}

fn policies() -> impl Strategy<Value = PolicySet> {
    let images = select(vec!["**", "a.io/**", "a.io/one", "b.io/**"]);
    let scope = select(vec!["", ", namespaces: [shop]", ", namespaces: [kitchen]"]);
    let policy = (images, scope, authorities()).prop_map(|(images, scope, authorities)| {
        format!("spec:\n  match: {{images: ['{images}']{scope}}}\n{authorities}")
    });
    vec(policy, 1..4).prop_map(|policies| {
        let texts = policies.iter().enumerate().map(|(number, spec)| {
            format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\n\
                 metadata: {{name: p{number}}}\n{spec}"
            )
        });
        let text = texts.collect::<Vec<_>>().join("---\n");
        source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap()
    })
}

fn questions() -> impl Strategy<Value = Question> {
    let name = prop_oneof![
        select(vec!["a.io/one:v1", "a.io/two:v1", "b.io/x:v1"]).prop_map(str::to_owned),
        (0..5usize).prop_map(|digest| format!("a.io/one@{}", WORLD.digests[digest])),
    ];
    (select(WORLD.ids.to_vec()), vec(name, 0..3)).prop_map(|(id, names)| Question {
        id,
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
        caller: Caller::of(Some("shop".into())),
    })
}

/// What everybody signed of the documents by which an image can be known, unedited.
fn genuine(known: &Known) -> Evidence {
    let subjects = [Some(known.digest()), known.child().map(|child| child.manifest.digest)];
    let about = |claim: &UntrustedClaim| subjects.contains(&Some(claim.subject));
    let claims = SIGNATURES.iter().map(|(_, claim)| claim.clone()).filter(about).collect();
    Evidence { claims, gaps: Vec::new() }
}

/// Whether the image may start by genuine evidence under each of its names.
fn deserved(policies: &PolicySet, question: &Question) -> bool {
    let bare =
        |manifest: &Fetched| Entry { manifest: manifest.clone(), claims: Vec::new(), whole: true };
    let all: Vec<_> = WORLD
        .documents
        .iter()
        .map(|(top, child)| Known::new(bare(top), child.as_ref().map(bare)).unwrap())
        .filter(|known| known.id() == question.id)
        .collect();
    let may = |name: &ImageRef| {
        let selected = policies.select(name, question.caller.namespace.as_deref());
        selected.is_ok_and(|selected| {
            all.iter().filter(|known| fits(known, name)).any(|known| {
                let image = known.resolved(&name.repository);
                let now = Timestamp::UNIX_EPOCH;
                decide::decide(&selected, &image, &genuine(known), &question.caller, now).0.is_ok()
            })
        })
    };
    !question.names.is_empty() && question.names.iter().all(may)
}

proptest! {
    /// With all of its documents and claims in the attacker's hands, the store proves no more
    /// than what was signed.
    #[test]
    fn an_edited_store_takes_permissions_away_and_gives_none(
        knowns in vec(known(), 0..8),
        policies in policies(),
        question in questions(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::new(Store::open(directory.path()).0);
        for known in &knowns {
            local.store().keep(known).unwrap();
        }
        let judgement = local.judge(&policies, &question, Timestamp::UNIX_EPOCH);
        let deserved = deserved(&policies, &question);
        if let Ok(permit) = &judgement.decision {
            prop_assert!(deserved);
            prop_assert_eq!(permit.id(), Some(question.id));
        }
        let remembered = local.remembered(&policies, &question, Timestamp::UNIX_EPOCH);
        prop_assert_eq!(remembered.is_some(), judgement.decision.is_ok());
    }

    /// With everything that was signed in the store, the judgement is that of genuine evidence.
    #[test]
    fn a_whole_store_proves_all_that_was_signed(
        policies in policies(),
        question in questions(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::new(Store::open(directory.path()).0);
        for (top, child) in &WORLD.documents {
            let with = |manifest: &Fetched| {
                let claims = SIGNATURES.iter().map(|(_, claim)| claim.clone());
                let about: Vec<_> =
                    claims.filter(|claim| claim.subject == manifest.digest).collect();
                entry(manifest.clone(), &about, true)
            };
            local.store().keep(&Known::new(with(top), child.as_ref().map(with)).unwrap()).unwrap();
        }
        let judgement = local.judge(&policies, &question, Timestamp::UNIX_EPOCH);
        let deserved = deserved(&policies, &question);
        prop_assert_eq!(judgement.decision.is_ok(), deserved, "{:?}", judgement.decision);
    }
}

fn policy_of(key: usize, mode: &str) -> PolicySet {
    policy_within(key, mode, "")
}

/// With these lines about the key's window.
fn policy_within(key: usize, mode: &str, window: &str) -> PolicySet {
    let pem = WORLD.keys[key].pem().replace('\n', "\n          ");
    let text = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p}}\nspec:\n  \
         mode: {mode}\n  match: {{images: ['**']}}\n  authorities:\n    - name: one\n      \
         publicKey:\n{window}        pem: |\n          {pem}\n"
    );
    source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap()
}

fn of_one() -> Question {
    let name = "a.io/one:v1".parse().unwrap();
    Question { id: WORLD.ids[0], names: vec![name], caller: Caller::default() }
}

/// A pack with a hundred worthless claims about an index does not hide what was signed about the
/// image in it.
#[test]
fn a_pack_buries_no_signature() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let (both, one) = (WORLD.documents[2].0.clone(), WORLD.documents[0].0.clone());
    let good = [signed(&WORLD.keys[0], one.digest)];
    let child = entry(one.clone(), &good, true);
    store.keep(&Known::new(entry(both.clone(), &[], true), Some(child)).unwrap()).unwrap();
    let junk: Vec<_> = (0..100)
        .map(|number| crate::evidence::testing::unreadable(both.digest, &format!("junk {number}")))
        .collect();
    let pack = Known::new(entry(both, &junk, true), Some(entry(one, &[], true))).unwrap();
    assert!(store.import(&pack).unwrap());
    let judgement =
        Local::new(store).judge(&policy_of(0, "Enforce"), &of_one(), Timestamp::UNIX_EPOCH);
    assert!(judgement.decision.is_ok(), "{:?}", judgement.decision);
}

/// Nor does one with another index around the image have it pass as a mere warning, under a
/// digest that nobody signed.
#[test]
fn what_is_proven_is_told_as_proven_whatever_a_pack_adds() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let (one, mixed) = (WORLD.documents[0].0.clone(), WORLD.documents[5].0.clone());
    let good = [signed(&WORLD.keys[0], one.digest)];
    store.keep(&Known::new(entry(one.clone(), &good, true), None).unwrap()).unwrap();
    let pack = Known::new(entry(mixed, &[], true), Some(entry(one.clone(), &[], true))).unwrap();
    assert!(store.import(&pack).unwrap());
    let judgement =
        Local::new(store).judge(&policy_of(0, "Warn"), &of_one(), Timestamp::UNIX_EPOCH);
    let permit = judgement.decision.as_ref().unwrap();
    assert_eq!((permit.grounds(), permit.image().digest), (&Grounds::Satisfied, one.digest));
}

/// What is let through without proof is derived anew: proof may have come.
#[test]
fn a_warning_is_not_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let one = WORLD.documents[0].0.clone();
    store.keep(&Known::new(entry(one.clone(), &[], true), None).unwrap()).unwrap();
    let (local, policies) = (Local::new(store), policy_of(0, "Warn"));
    let (question, now) = (of_one(), Timestamp::UNIX_EPOCH);
    let judgement = local.judge(&policies, &question, now);
    assert!(matches!(judgement.decision.as_ref().unwrap().grounds(), Grounds::Warned(_)));
    assert!(local.remembered(&policies, &question, now).is_none());
    let good = [signed(&WORLD.keys[0], one.digest)];
    local.store().keep(&Known::new(entry(one, &good, true), None).unwrap()).unwrap();
    let judgement = local.judge(&policies, &question, now);
    assert_eq!(judgement.decision.as_ref().unwrap().grounds(), &Grounds::Satisfied);
    assert!(local.remembered(&policies, &question, now).is_some());
}

/// A clock that is set back or forward finds no permission of another time.
#[test]
fn a_permission_is_remembered_for_its_own_time_whichever_way_the_clock_goes() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let one = WORLD.documents[0].0.clone();
    let good = [signed(&WORLD.keys[0], one.digest)];
    store.keep(&Known::new(entry(one, &good, true), None).unwrap()).unwrap();
    let window =
        "        notBefore: 2026-01-01T00:00:00Z\n        notAfter: 2027-01-01T00:00:00Z\n";
    let (local, policies) = (Local::new(store), policy_within(0, "Enforce", window));
    let at = |time: &str| time.parse::<Timestamp>().unwrap();
    let within = [at("2026-01-01T00:00:00Z"), at("2026-12-31T23:59:59Z")];
    let without =
        [at("2025-12-31T23:59:59Z"), at("2027-01-01T00:00:00Z"), at("1970-01-01T00:00:00Z")];
    for now in without.into_iter().chain(within).chain(without) {
        let allowed = within.contains(&now);
        // Whoever asks the memory first, as the gate does, hears no other answer.
        assert!(allowed || local.remembered(&policies, &of_one(), now).is_none(), "{now}");
        assert_eq!(local.judge(&policies, &of_one(), now).decision.is_ok(), allowed, "{now}");
        assert_eq!(local.remembered(&policies, &of_one(), now).is_some(), allowed, "{now}");
    }
}

/// Anybody can make indexes of somebody's image. A pack full of them pushes out no evidence.
#[test]
fn a_pack_pushes_nothing_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let one = WORLD.documents[0].0.clone();
    let good = [signed(&WORLD.keys[0], one.digest)];
    store.keep(&Known::new(entry(one.clone(), &good, true), None).unwrap()).unwrap();
    let mut refused = 0;
    for number in 0..20 {
        let around = index(&[&one, &manifest("junk", &number.to_string())]);
        let child = Some(entry(one.clone(), &[], true));
        let pack = Known::new(entry(around, &[], true), child).unwrap();
        refused += usize::from(store.import(&pack).is_err());
    }
    assert_eq!(refused, 5);
    let judgement =
        Local::new(store).judge(&policy_of(0, "Enforce"), &of_one(), Timestamp::UNIX_EPOCH);
    assert!(judgement.decision.is_ok(), "{:?}", judgement.decision);
}

/// Where a signature is on the child too, anybody can wrap that child in indexes of his own, and each
/// is proven by the same key: that gives them none of the places of the index that it signed.
#[test]
fn wraps_of_a_signed_child_do_not_crowd_out_the_index_that_is_signed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let child = manifest("app", "app");
    let wrap = |junk: &str, top_signed: bool| {
        let list = index(&[&child, &manifest("junk", junk)]);
        let about_child = [signed(&WORLD.keys[0], child.digest)];
        let about_top = [signed(&WORLD.keys[0], list.digest)];
        let top = entry(list, if top_signed { &about_top } else { &[] }, true);
        Known::new(top, Some(entry(child.clone(), &about_child, true))).unwrap()
    };
    // As a pull judges it, and keeps it with who proved it.
    let (policies, now) = (policy_of(0, "Enforce"), Timestamp::UNIX_EPOCH);
    let pull = |known: &Known, repository: &str| {
        let name = format!("{repository}@{}", known.digest()).parse().unwrap();
        let question = Question { id: known.id(), names: vec![name], caller: Caller::default() };
        let all = std::slice::from_ref(known);
        let judged = judge_known(all, |known, _| known.evidence(), &policies, &question, now).0;
        assert!(judged.is_proof());
        store.keep(&known.clone().noted(judged.proven_by())).unwrap();
        question
    };
    let question = pull(&wrap("own", true), "a.io/app");
    for number in 0..20 {
        pull(&wrap(&number.to_string(), false), "a.io/evil");
    }
    let judgement = Local::new(Store::open(directory.path()).0).judge(&policies, &question, now);
    assert!(judgement.decision.is_ok(), "{:?}", judgement.decision);
}

/// Whoever has a key of his own, and wraps the image that others run, pushes out no proof of theirs
/// by what he pulls.
#[test]
fn nobody_crowds_out_what_another_key_proves() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).0;
    let local = Local::new(store.clone());
    let names = ["a.io/app:v1", "a.io/evil:v1"].map(|name| name.parse::<ImageRef>().unwrap());
    let keep = |whose: usize, layer: &str| {
        let manifest = manifest("app", layer);
        let claims = [signed(&WORLD.keys[whose], manifest.digest)];
        let known = Known::new(entry(manifest, &claims, true), None).unwrap();
        store.keep(&known.clone().noted([Digest::of(&[whose as u8])])).unwrap();
        known.id()
    };
    let starts = |local: &Local, whose: usize, id| {
        let names = vec![names[whose].clone()];
        let question = Question { id, names, caller: Caller::default() };
        let policies = policy_of(whose, "Enforce");
        local.judge(&policies, &question, Timestamp::UNIX_EPOCH).decision.is_ok()
    };
    let id = keep(0, "app");
    assert!(starts(&local, 0, id));
    for layer in 0..40 {
        keep(1, &layer.to_string());
        assert!(layer % 2 == 0 || starts(&local, 1, id));
    }
    assert_eq!(store.of_id(id).len(), 16);
    assert!(starts(&local, 0, id));
    // Nor after a restart, whatever the runtime has.
    let again = Local::new(Store::open(directory.path()).0);
    again.store().retain(&BTreeSet::from([id]), Timestamp::now()).unwrap();
    for layer in 40..80 {
        keep(1, &layer.to_string());
    }
    assert!(starts(&again, 0, id) && starts(&again, 1, id));
}
