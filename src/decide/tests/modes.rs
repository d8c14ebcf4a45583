//! Warnings, broken glass, and what is revoked.

use super::*;

const WARN: &str = "mode: Warn";

#[test]
fn what_a_policy_warns_of_is_let_through_and_told() {
    let question = Question::under(&[policy("a", &[WARN], NO), policy("b", &[WARN], NO)]);
    let (decision, reports) = question.decide_with_reports();
    assert_eq!(decision, Ok(Grounds::Warned(not_listed("a"))));
    let outcomes: Vec<_> = reports.iter().map(|report| report.outcome).collect();
    assert_eq!(outcomes, [PolicyOutcome::Warned; 2]);
    let satisfied = Question::under(&[policy("a", &[WARN], YES)]);
    assert_eq!(satisfied.decide(), Ok(Grounds::Satisfied));
}

#[test]
fn a_warning_beside_a_policy_that_enforces_changes_nothing() {
    let warning = policy("a", &[WARN], NO);
    let strict = Question::under(&[warning.clone(), policy("b", &[], NO)]);
    let (decision, reports) = strict.decide_with_reports();
    assert_eq!(decision, Err(not_listed("b")));
    let outcomes: Vec<_> = reports.iter().map(|report| report.outcome).collect();
    assert_eq!(outcomes, [PolicyOutcome::Warned, PolicyOutcome::Refused]);
    let satisfied = Question::under(&[warning, policy("b", &[], YES)]);
    assert_eq!(satisfied.decide(), Ok(Grounds::Warned(not_listed("a"))));
    let accepting = Question::under(&[policy("a", &[WARN], YES), policy("b", &[], NO)]);
    assert_eq!(accepting.decide(), Err(not_listed("b")));
}

#[test]
fn a_warning_covers_no_other_image_and_no_other_namespace() {
    let elsewhere = policy("a", &[WARN, "match: {images: ['r.io/test/*']}"], YES);
    let namespaced =
        policy("b", &[WARN, "match: {images: ['r.io/prod/*'], namespaces: [other]}"], YES);
    for policy in [elsewhere, namespaced] {
        let refusal = Question::under(&[policy]).decide().unwrap_err();
        assert_eq!(refusal.code, Code::NoPolicyMatches);
    }
}

#[test]
fn a_tag_where_a_digest_is_wanted_is_warned_of() {
    let digest = "reference: Digest";
    let message = "r.io/prod/app:v1: policy \"a\" accepts this image by digest only; name it in \
                   the pod as r.io/prod/app@sha256:...";
    let refusal = Refusal::new(Code::DigestRequired, message);
    let warning = Question::under(&[policy("a", &[WARN, digest], YES)]);
    assert_eq!(warning.decide(), Ok(Grounds::Warned(refusal.clone())));
    assert_eq!(warning.image(PINNED).decide(), Ok(Grounds::Satisfied));
    let strict = Question::under(&[policy("a", &[digest], YES)]);
    assert_eq!(strict.decide(), Err(refusal.clone()));
    assert_eq!(strict.image(PINNED).decide(), Ok(Grounds::Satisfied));
    let glass = Question::under(&[policy("a", &[digest, GLASS], YES)]);
    assert_eq!(glass.decide(), Err(refusal));
    assert_eq!(glass.breaking_glass().decide(), broken(&["a"]));
}

#[test]
fn glass_is_broken_by_the_annotation_and_nothing_like_it() {
    let set = [policy("a", &[GLASS], NO)];
    let breaking = Question::under(&set).breaking_glass();
    let (decision, reports) = breaking.decide_with_reports();
    assert_eq!(decision, broken(&["a"]));
    assert_eq!(reports[0].outcome, PolicyOutcome::BreakGlass);
    let annotations: [&[(&str, &str)]; 9] = [
        &[],
        &[("glass", "")],
        &[("glass", "True")],
        &[("glass", "TRUE")],
        &[("glass", " true")],
        &[("glass", "1")],
        &[("glass", "false")],
        &[("Glass", "true")],
        &[("glass2", "true"), ("x/glass", "true")],
    ];
    for annotations in annotations {
        let question = Question { annotations, ..Question::under(&set).breaking_glass() };
        assert_eq!(question.decide(), Err(not_listed("a")), "{annotations:?}");
    }
}

#[test]
fn glass_is_broken_in_its_namespaces_only() {
    let set = [policy("a", &[GLASS], NO)];
    for namespace in [Some("shop"), Some("incident2"), Some("inciden"), Some(""), None] {
        let question = Question::under(&set).breaking_glass().namespace(namespace);
        assert_eq!(question.decide(), Err(not_listed("a")), "{namespace:?}");
    }
}

#[test]
fn glass_is_broken_before_its_end_only() {
    let glass = GLASS.replace('}', ", notAfter: 2026-06-01T00:00:00Z}");
    let question = Question::under(&[policy("a", &[&glass], NO)]).breaking_glass();
    let question = question.at("2026-05-31T23:59:59.999999999Z");
    assert_eq!(question.decide(), broken(&["a"]));
    for late in [NOW, "2026-06-01T00:00:00.000000001Z", "2030-01-01T00:00:00Z"] {
        let question = Question {
            now: late.parse().unwrap(),
            ..Question::under(&[policy("a", &[&glass], NO)])
        };
        assert_eq!(question.breaking_glass().decide(), Err(not_listed("a")), "{late}");
    }
}

#[test]
fn glass_opens_the_policy_that_grants_it_and_no_other() {
    let granting = policy("a", &[GLASS], NO);
    let other_glass = GLASS.replace("glass,", "other,");
    for other in [policy("b", &[], NO), policy("b", &[&other_glass], NO)] {
        let question = Question::under(&[granting.clone(), other]).breaking_glass();
        assert_eq!(question.decide(), Err(not_listed("b")));
    }
    let both = Question::under(&[granting.clone(), policy("b", &[GLASS], NO)]).breaking_glass();
    assert_eq!(both.decide(), broken(&["a", "b"]));
    let satisfied = Question::under(&[granting.clone(), policy("b", &[GLASS], YES)]);
    assert_eq!(satisfied.breaking_glass().decide(), broken(&["a"]));
    let warning = Question::under(&[granting, policy("b", &[WARN], NO)]).breaking_glass();
    assert_eq!(warning.decide(), broken(&["a"]));
}

#[test]
fn glass_is_left_whole_where_it_need_not_be_broken() {
    let question = Question::under(&[policy("a", &[GLASS], YES)]).breaking_glass();
    assert_eq!(question.decide(), Ok(Grounds::Satisfied));
}

#[test]
fn glass_of_another_image_opens_nothing() {
    let elsewhere = policy("a", &[GLASS, "match: {images: ['r.io/test/*']}"], YES);
    let refusal = Question::under(&[elsewhere]).breaking_glass().decide().unwrap_err();
    assert_eq!(refusal.code, Code::NoPolicyMatches);
}

#[test]
fn what_is_revoked_is_refused_whatever_lets_it_through() {
    let lenient: [&[&str]; 4] = [&[], &[WARN], &[GLASS], &[WARN, GLASS]];
    for (lines, authority) in lenient.iter().flat_map(|lines| [(lines, YES), (lines, NO)]) {
        for (revoked, by) in [(INDEX, "index"), (CHILD, "child"), (CONFIG, "config")] {
            let revocation = revocation(by, "digests", &[OTHER, revoked]);
            let set = [policy("a", lines, authority), revocation];
            let question = Question::under(&set).breaking_glass();
            question.refused(Code::Revoked, &format!("{PINNED}: {revoked} is revoked by {by:?}"));
            assert!(!question.acceptable_somewhere(), "{lines:?}");
        }
    }
    let other = revocation("other", "digests", &[OTHER]);
    let question = Question::under(&[policy("a", &[], YES), other]);
    assert_eq!(question.decide(), Ok(Grounds::Satisfied));
    assert!(question.acceptable_somewhere());
}

#[test]
fn of_two_revocations_the_first_by_name_is_told() {
    let twice = [revocation("z", "digests", &[INDEX]), revocation("m", "digests", &[INDEX])];
    let question = Question::under(&[policy("a", &[], YES), twice.concat()]);
    question.refused(Code::Revoked, &format!("{PINNED}: {INDEX} is revoked by \"m\""));
}

#[test]
fn a_revoked_key_never_counts_and_another_one_still_does() {
    let (lost, good) = (Pair::p256(), Pair::p256());
    let revoked = revocation("lost", "keys", &[&lost.public().id().to_string()]);
    let both = [key("old", &lost), key("new", &good)].join(", ");
    let set = |lines: &[&str]| [policy("a", lines, &both), revoked.clone()];
    let question = || Question::under(&set(&[])).claims([signed(&lost)]);
    question().refused(
        Code::AuthorityNotSatisfied,
        &format!(
            "{PINNED}: policy \"a\" requires 1 of 2 authorities: \"old\": key revoked by \"lost\"; \
             \"new\": no signature by this key (1 signature found)"
        ),
    );
    assert_eq!(question().claims([signed(&good)]).decide(), Ok(Grounds::Satisfied));
    // Two are wanted, and the revoked one is none.
    Question::under(&set(&["atLeast: 2"])).claims([signed(&lost), signed(&good)]).refused(
        Code::AuthorityNotSatisfied,
        &format!(
            "{PINNED}: policy \"a\" requires 2 of 2 authorities, 1 accepted: \"old\": key revoked \
             by \"lost\""
        ),
    );
    // Alone, its revocation is the reason.
    Question::under(&[policy("a", &[], &key("old", &lost)), revoked])
        .claims([signed(&lost)])
        .refused(
            Code::Revoked,
            &format!(
                "{PINNED}: policy \"a\" requires 1 of 1 authority: \"old\": key revoked by \"lost\""
            ),
        );
}

#[test]
fn one_key_is_one_identity_whatever_its_names_and_however_often_it_signs() {
    let (one, two) = (Pair::p256(), Pair::p256());
    let names = [key("a", &one), key("b", &one), key("c", &two)].join(", ");
    let set = [policy("p", &["atLeast: 2"], &names)];
    let many: Vec<_> = (0..10).map(|_| signed(&one)).collect();
    let question = || Question::under(&set).claims(many.clone());
    question().refused(
        Code::AuthorityNotSatisfied,
        &format!(
            "{PINNED}: policy \"p\" requires 2 of 3 authorities, 1 accepted: \"c\": no signature \
             by this key (10 signatures found)"
        ),
    );
    assert_eq!(question().claims([signed(&two)]).decide(), Ok(Grounds::Satisfied));
}

#[test]
fn callers_that_differ_in_what_no_policy_looks_at_are_one() {
    let caller = |names: &[&str]| Caller {
        namespace: Some("incident".into()),
        switches: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let set = Question::under(&[policy("a", &[GLASS], NO), policy("b", &[], NO)]).set;
    assert_eq!(caller(&["x", "glass", "y"]).seen_by(&set), caller(&["glass"]));
    assert_eq!(caller(&["x", "y"]).seen_by(&set), caller(&[]));
}
