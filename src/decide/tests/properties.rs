//! What holds of any set of policies.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Two keys; the image is signed by the first.
static KEYS: LazyLock<[Pair; 2]> = LazyLock::new(|| [Pair::p256(), Pair::p256()]);
static CLAIM: LazyLock<UntrustedClaim> = LazyLock::new(|| signed(&KEYS[0]));

/// Moments at which something may begin or end.
const MOMENTS: [&str; 4] =
    ["2026-05-01T00:00:00Z", NOW, "2026-06-01T00:00:01Z", "2026-07-01T00:00:00Z"];

/// Authorities with names of their own, the same key among them several times.
fn authorities() -> impl Strategy<Value = Vec<String>> {
    let window = (any::<bool>(), 0..MOMENTS.len());
    let kinds = (0..5_usize, window).prop_map(|(kind, (before, moment))| match kind {
        0 => "unsigned: {reason: test}".to_owned(),
        1 => format!("digests: ['{OTHER}']"),
        2 => format!("digests: ['{CHILD}']"),
        kind => {
            let bound = if before { "notBefore" } else { "notAfter" };
            let pem = KEYS[kind - 3].pem();
            format!("publicKey: {{pem: {pem:?}, {bound}: {}}}", MOMENTS[moment])
        }
    });
    vec(kinds, 1..4).prop_map(|kinds| {
        let named = kinds.into_iter().enumerate();
        named.map(|(number, kind)| format!("{{name: a{number}, {kind}}}")).collect()
    })
}

/// The lines of a policy, whatever it matches, and its authorities.
fn lines() -> impl Strategy<Value = (Vec<String>, String)> {
    let mode = select(vec!["mode: Enforce", "mode: Warn"]);
    let reference = select(vec!["reference: Any", "reference: Digest"]);
    let images = select(vec!["r.io/prod/*", "**", "r.io/prod/app", "r.io/test/*"]);
    let namespaces = select(vec![
        "",
        ", namespaces: [shop]",
        ", namespaces: ['*']",
        ", excludeNamespaces: [shop]",
        ", excludeNamespaces: [incident]",
    ]);
    let scope = (images, namespaces)
        .prop_map(|(images, namespaces)| format!("match: {{images: ['{images}']{namespaces}}}"));
    let glass = prop::option::of((
        select(vec!["glass", "other"]),
        select(vec!["incident", "shop", "'*'"]),
        prop::option::of(select(MOMENTS.to_vec())),
    ));
    let glass = glass.prop_map(|glass| {
        let (annotation, namespaces, end) = glass?;
        let end = end.map(|end| format!(", notAfter: {end}")).unwrap_or_default();
        Some(format!("breakGlass: {{annotation: {annotation}, namespaces: [{namespaces}]{end}}}"))
    });
    (mode, reference, scope, glass, authorities()).prop_map(
        |(mode, reference, scope, glass, authorities)| {
            let lines = [mode.to_owned(), reference.to_owned(), scope].into_iter().chain(glass);
            (lines.collect(), authorities.join(", "))
        },
    )
}

fn named(name: &str, (lines, authorities): &(Vec<String>, String)) -> String {
    let lines: Vec<_> = lines.iter().map(|line| &**line).collect();
    policy(name, &lines, authorities)
}

/// Somebody who asks for the image, by tag or by digest, at some time.
#[derive(Clone, Debug)]
struct Asker {
    image: &'static str,
    namespace: Option<&'static str>,
    annotations: &'static [(&'static str, &'static str)],
    now: &'static str,
}

impl Asker {
    fn under(&self, set: &[String]) -> Question {
        let Self { image, namespace, annotations, now } = *self;
        let question = Question { annotations, ..Question::under(set).at(now) };
        question.image(image).namespace(namespace).claims([CLAIM.clone()])
    }
}

fn askers() -> impl Strategy<Value = Asker> {
    let annotations: Vec<&[(&str, &str)]> = vec![
        &[],
        &[("glass", "true")],
        &[("glass", "false"), ("other", "true")],
        &[("glass", "true"), ("other", "true")],
    ];
    let namespaces = select(vec![None, Some("shop"), Some("incident"), Some("kitchen")]);
    let moments = select(MOMENTS.to_vec());
    (select(vec![IMAGE, PINNED]), namespaces, select(annotations), moments).prop_map(
        |(image, namespace, annotations, now)| Asker { image, namespace, annotations, now },
    )
}

fn sets() -> impl Strategy<Value = Vec<String>> {
    let named = |(number, lines): (usize, _)| named(&format!("p{number}"), &lines);
    vec(lines(), 1..4).prop_map(move |all| all.into_iter().enumerate().map(named).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever it says and whatever its name: what was refused still is, unless for want of any
    /// policy, and what was only let through does not become satisfied.
    #[test]
    fn adding_a_policy_allows_nothing_that_another_one_refused(
        set in sets(), added in lines(), first in any::<bool>(), asker in askers(),
    ) {
        let added = named(if first { "a" } else { "z" }, &added);
        let before = asker.under(&set).decide();
        let after = asker.under(&[set, vec![added]].concat()).decide();
        match (before, after) {
            (Err(refusal), after) if refusal.code != Code::NoPolicyMatches => {
                prop_assert!(after.is_err(), "{after:?} after {refusal:?}");
            }
            (Ok(Grounds::Warned(_) | Grounds::BreakGlass(_)), after) => {
                prop_assert_ne!(after, Ok(Grounds::Satisfied));
            }
            _ => {}
        }
    }

    /// A revocation takes away, and gives nothing.
    #[test]
    fn a_revocation_allows_nothing(
        set in sets(), asker in askers(), key in any::<bool>(),
        revoked in select(vec![INDEX, CHILD, CONFIG, OTHER]),
    ) {
        let signer = KEYS[0].public().id().to_string();
        let revocation = match key {
            true => revocation("r", "keys", &[&signer]),
            false => revocation("r", "digests", &[revoked]),
        };
        let before = asker.under(&set).decide();
        let after = asker.under(&[set, vec![revocation]].concat());
        match before {
            Err(_) => prop_assert!(after.decide().is_err()),
            Ok(_) if !key && revoked != OTHER => {
                prop_assert_eq!(after.decide().unwrap_err().code, Code::Revoked);
                prop_assert!(!after.acceptable_somewhere());
            }
            Ok(_) => {}
        }
    }

    /// What is let through for anybody is not answered as absent.
    #[test]
    fn what_somebody_may_have_is_acceptable_somewhere(set in sets(), asker in askers()) {
        let question = asker.under(&set);
        if question.decide().is_ok() {
            prop_assert!(question.acceptable_somewhere());
        }
    }

    /// Glass is only ever one more way through.
    #[test]
    fn what_is_acceptable_without_glass_is_so_with_it(set in sets(), asker in askers()) {
        let question = asker.under(&set);
        if question.somewhere(Glass::Whole) {
            prop_assert!(question.somewhere(Glass::Granted));
        }
    }

    #[test]
    fn between_two_moments_no_decision_changes(
        set in sets(), asker in askers(), seconds in 1_777_000_000..1_784_000_000_i64,
    ) {
        let question = asker.under(&set);
        let selected = question.set.covering_somewhere(&question.image.parse().unwrap());
        let Some(selected) = selected else { return Ok(()) };
        let (from, until) = selected.constant_around(question.now);
        prop_assert!(from <= question.now && question.now < until);
        let told = (question.decide(), question.acceptable_somewhere());
        let last = until.as_nanosecond().saturating_sub(1);
        let last = Timestamp::from_nanosecond(last).unwrap();
        let within = Timestamp::from_second(seconds).unwrap().clamp(from, last);
        for now in [from, within, last] {
            let then = Question { now, ..asker.under(&set) };
            prop_assert_eq!((then.decide(), then.acceptable_somewhere()), told.clone(), "{}", now);
        }
    }

    /// Not names, and not signatures.
    #[test]
    fn at_least_counts_distinct_keys(
        wanted in vec(0..3_usize, 1..6), signatures in vec(0..3_usize, 0..6), at_least in 1..4_usize,
    ) {
        static KEYS: LazyLock<[Pair; 3]> = LazyLock::new(|| [Pair::p256(), Pair::p256(), Pair::p256()]);
        let distinct: BTreeSet<_> = wanted.iter().collect();
        prop_assume!(at_least <= distinct.len());
        let names = wanted.iter().enumerate();
        let names: Vec<_> = names.map(|(n, pair)| key(&format!("a{n}"), &KEYS[*pair])).collect();
        let set = [policy("p", &[&format!("atLeast: {at_least}")], &names.join(", "))];
        let question = Question::under(&set).claims(signatures.iter().map(|n| signed(&KEYS[*n])));
        let signed: BTreeSet<_> = signatures.iter().collect();
        let enough = distinct.intersection(&signed).count() >= at_least;
        prop_assert_eq!(question.decide().is_ok(), enough);
    }
}
