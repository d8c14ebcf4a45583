//! What an API server would refuse, and lists without an end.

use super::*;

#[test]
fn labels_and_annotations_are_those_of_kubernetes() {
    for (by, label) in [
        ("{team: a b}", "team: a b"),
        ("{a b: x}", "a b: x"),
        ("{-a: x}", "-a: x"),
        ("{A.b/c: x}", "A.b/c: x"),
    ] {
        let message = format!("{label:?} is no label that Kubernetes takes");
        refuses_change("{team: shop}", by, &format!("p.yaml:3:38: metadata.labels: {message}"));
    }
    for (by, key) in [("{a/b/c: x}", "a/b/c"), ("{a b: x}", "a b")] {
        let message = format!("{key:?} is no key that Kubernetes takes");
        refuses_change("{note: ''}", by, &format!("p.yaml:3:65: metadata.annotations: {message}"));
    }
    accepts_change("{team: shop}", "{team: '', example.com/x: A.b_c-D}");
    accepts_change("{note: ''}", "{Example.com/x: \"any\\ntext\"}");
    let long = format!("{{a: {}}}", "x".repeat(256 * 1024));
    refuses_change(
        "{note: ''}",
        &long,
        "p.yaml:3:65: metadata.annotations: has 262145 bytes, 262144 are allowed",
    );
}

#[test]
fn lists_have_an_end() {
    let many = |entry: &str, count: usize| format!("[{}]", vec![entry; count].join(", "));
    for (part, entry, place) in [
        ("['registry.example.com/prod/**']", "a.io/b", "7:13: spec.match.images"),
        ("['registry.example.com/prod/tools/**']", "a.io/b", "8:20: spec.match.excludeImages"),
        ("[shop, 'shop-*']", "a", "9:17: spec.match.namespaces"),
        ("[shop-dev]", "a", "10:24: spec.match.excludeNamespaces"),
        (
            "['sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa']",
            "x",
            "27:16: spec.authorities[2].digests",
        ),
    ] {
        let message = format!("p.yaml:{place}: has 1001 entries, 1000 are allowed");
        refuses_change(part, &many(entry, 1001), &message);
    }
    accepts_change("[shop, 'shop-*']", &many("a", 1000));
    let glass = |count| {
        let namespaces = many("a", count);
        format!("atLeast: 2\n  breakGlass: {{annotation: a, namespaces: {namespaces}}}")
    };
    accepts_change("atLeast: 2", &glass(1000));
    refuses_change(
        "atLeast: 2",
        &glass(1001),
        "p.yaml:13:43: spec.breakGlass.namespaces: has 1001 entries, 1000 are allowed",
    );
}

#[test]
fn signed_annotations_have_an_end() {
    let annotations = |count| {
        let entries: Vec<_> = (0..count).map(|n| format!("k{n}: v")).collect();
        format!("{{{}}}", entries.join(", "))
    };
    let (key, value) =
        (format!("{{{}: v}}", "é".repeat(128)), format!("{{k: {}}}", "é".repeat(1024)));
    for good in [&annotations(64), &key, &value] {
        accepts_change("{env: prod}", good);
    }
    for (bad, message) in [
        (annotations(65), "has 65 entries, 64 are allowed"),
        (key.replace(':', "é:"), "has a key of more than 128 characters"),
        (value.replace('}', "é}"), "has a value of more than 1024 characters"),
    ] {
        let message = format!("p.yaml:23:22: spec.authorities[0].publicKey.annotations: {message}");
        refuses_change("{env: prod}", &bad, &message);
    }
}

#[test]
fn a_time_is_one_that_everybody_reads_alike() {
    for good in [
        "1000-01-01T00:00:00Z",
        "9999-12-29T23:59:59.999999999Z",
        "2028-02-29T00:00:00.1+00:00",
        "2026-01-01T00:00:00-00:00",
    ] {
        let glass = format!(
            "atLeast: 2\n  breakGlass: {{annotation: a, namespaces: [a], notAfter: {good:?}}}"
        );
        accepts_change("atLeast: 2", &glass);
    }
    for bad in [
        "0999-12-31T23:59:59Z",
        "9999-12-30T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "2026-06-30T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T00:00:00.0123456789Z",
        "2026-01-01T00:00:00+02",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+00:60",
        "2026-01-01T00:00:0é",
    ] {
        let message = format!(
            "p.yaml:22:19: spec.authorities[0].publicKey.notAfter: {bad:?} is no time; write it \
             as in 2026-01-01T00:00:00Z (RFC 3339)"
        );
        refuses_change("2027-07-01T00:00:00+02:00", &format!("{bad:?}"), &message);
    }
}
