//! A question that names no pod.

use super::*;

/// Whether the image is acceptable to somebody under these policies.
#[track_caller]
fn somewhere(set: &[String], expected: bool) {
    assert_eq!(Question::under(set).acceptable_somewhere(), expected, "{}", set.concat());
}

fn within(images: &str, namespaces: &str) -> String {
    format!("match: {{images: ['{images}'], {namespaces}}}")
}

#[test]
fn one_policy_that_lets_an_image_through_is_enough() {
    let shop = within("r.io/prod/*", "namespaces: [shop]");
    let kitchen = within("r.io/prod/*", "namespaces: [kitchen]");
    somewhere(&[policy("a", &[&shop], YES), policy("b", &[&kitchen], NO)], true);
    somewhere(&[policy("a", &[&shop], NO), policy("b", &[&kitchen], NO)], false);
    somewhere(&[policy("a", &[&shop, "mode: Warn"], NO), policy("b", &[&kitchen], NO)], true);
    somewhere(&[policy("a", &[&shop, GLASS], NO), policy("b", &[&kitchen], NO)], true);
}

#[test]
fn an_image_that_no_policy_covers_is_acceptable_to_nobody() {
    somewhere(&[policy("a", &[&within("r.io/test/*", "namespaces: ['*']")], YES)], false);
    let excluded = "match: {images: ['**'], excludeImages: ['r.io/prod/app']}";
    somewhere(&[policy("a", &[excluded], YES)], false);
}

#[test]
fn a_policy_for_everybody_has_the_last_word() {
    let shop = within("r.io/prod/*", "namespaces: [shop]");
    somewhere(&[policy("a", &[&shop], YES), policy("b", &[], NO)], false);
    somewhere(&[policy("a", &[&shop], NO), policy("b", &[], YES)], true);
    somewhere(&[policy("a", &[&shop], YES), policy("b", &["mode: Warn"], NO)], true);
    somewhere(&[policy("a", &[&shop], YES), policy("b", &[GLASS], NO)], true);
    let but = within("r.io/prod/*", "excludeNamespaces: [shop]");
    somewhere(&[policy("a", &[&shop], YES), policy("b", &[&but], NO)], true);
}

#[test]
fn glass_that_nobody_can_break_any_more_opens_nothing() {
    let glass = |end: &str| GLASS.replace('}', &format!(", notAfter: {end}}}"));
    somewhere(&[policy("a", &[&glass("2026-06-01T00:00:01Z")], NO)], true);
    somewhere(&[policy("a", &[&glass(NOW)], NO)], false);
}

#[test]
fn glass_that_nobody_breaks_opens_nothing() {
    let shop = within("r.io/prod/*", "namespaces: [shop]");
    let whole = |set: &[String]| Question::under(set).somewhere(Glass::Whole);
    assert!(!whole(&[policy("a", &[GLASS], NO)]));
    assert!(!whole(&[policy("a", &[&shop], YES), policy("b", &[GLASS], NO)]));
    assert!(whole(&[policy("a", &[GLASS], YES)]));
    assert!(whole(&[policy("a", &[GLASS, "mode: Warn"], NO)]));
}

#[test]
fn a_tag_counts_where_a_digest_is_wanted() {
    let strict = [policy("a", &["reference: Digest"], YES)];
    somewhere(&strict, false);
    assert!(Question::under(&strict).image(PINNED).acceptable_somewhere());
    somewhere(&[policy("a", &["reference: Digest", "mode: Warn"], YES)], true);
}
