//! What lets images through that a policy refuses, and what refuses images that it accepts.

use super::*;

const DIGEST: &str = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";
const OTHER: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

#[test]
fn a_policy_enforces_unless_it_says_that_it_warns() {
    for (mode, read) in
        [("  mode: Enforce\n", Mode::Enforce), ("  mode: Warn\n", Mode::Warn), ("", Mode::Enforce)]
    {
        assert_eq!(accepts_change("  mode: Enforce\n", mode).mode, read);
    }
    for (mode, message) in [
        ("mode: warn", "5:9: spec.mode: must be Enforce or Warn, not \"warn\""),
        ("mode: ''", "5:9: spec.mode: is empty"),
        ("mode:", "5:7: spec.mode: is empty"),
        ("mode: [Warn]", "5:9: spec.mode: must be text, not a list"),
    ] {
        refuses_change("mode: Enforce", mode, &format!("p.yaml:{message}"));
    }
}

/// The good policy with this glass.
fn with_glass(glass: &str) -> String {
    GOOD.replace("  atLeast: 2", &format!("  atLeast: 2\n  breakGlass: {glass}"))
}

#[test]
fn a_glass_names_its_annotation_and_its_namespaces() {
    let glass = "{annotation: example.com/break-glass, namespaces: [incident, 'war-*']}";
    let policy = policy_of(policies(&with_glass(glass)).unwrap().remove(0));
    let read = policy.break_glass.unwrap();
    assert_eq!((&*read.annotation, read.namespaces.len()), ("example.com/break-glass", 2));
    assert_eq!(read.not_after, None);
    let glass = glass.replace('}', ", notAfter: 2026-12-01T00:00:00Z}");
    let policy = policy_of(policies(&with_glass(&glass)).unwrap().remove(0));
    let not_after = policy.break_glass.unwrap().not_after;
    assert_eq!(not_after, Some("2026-12-01T00:00:00Z".parse().unwrap()));
    assert!(accepts_change("mode: Enforce", "mode: Warn").break_glass.is_none());

    let list = "remove the field or fill the list";
    for (glass, message) in [
        ("", "13:13: spec.breakGlass: is empty"),
        ("{}", "13:15: spec.breakGlass: is empty"),
        ("true", "13:15: spec.breakGlass: must be a mapping, not a boolean"),
        ("{namespaces: [a]}", "13:15: spec.breakGlass.annotation: is missing"),
        ("{annotation: a}", "13:15: spec.breakGlass.namespaces: is missing"),
        (
            "{annotation: a, namespaces: []}",
            &format!("13:43: spec.breakGlass.namespaces: is an empty list; {list}"),
        ),
        ("{annotation: a, namespaces: ['']}", "13:44: spec.breakGlass.namespaces[0]: is empty"),
        (
            "{annotation: a, namespaces: [A]}",
            "13:44: spec.breakGlass.namespaces[0]: \"A\" is no pattern for namespaces: at most 63 \
             lower-case letters, digits and '-' are expected, '*' for any run of them",
        ),
        (
            "{annotation: a, namespaces: [a], notAfter: soon}",
            "13:58: spec.breakGlass.notAfter: \"soon\" is no time; write it as in \
             2026-01-01T00:00:00Z (RFC 3339)",
        ),
        (
            "{annotation: a, namespaces: [a], until: x}",
            "13:48: spec.breakGlass.until: is unknown; known here: annotation, namespaces, notAfter",
        ),
    ] {
        refuses(&with_glass(glass), &format!("p.yaml:{message}"));
    }
}

#[test]
fn an_annotation_is_one_that_a_pod_can_have() {
    let read = |key: &str| with_glass(&format!("{{annotation: '{key}', namespaces: [a]}}"));
    for good in ["a", "A.b_c-D", "example.com/x", "a/0", &format!("a/{}", "x".repeat(63))] {
        let policy = policy_of(policies(&read(good)).unwrap().remove(0));
        assert_eq!(policy.break_glass.unwrap().annotation, good);
    }
    let long = "x".repeat(64);
    for bad in ["-a", "a-", "a b", "a/b/c", "/a", "a/", "Example.com/x", "a..b/x", "*", &long] {
        refuses(
            &read(bad),
            &format!(
                "p.yaml:13:28: spec.breakGlass.annotation: {bad:?} is no key of an annotation: at \
                 most 63 letters, digits, '-', '_' and '.' are expected, perhaps behind a \
                 lower-case domain and '/', as in example.com/break-glass"
            ),
        );
    }
}

fn revocation(spec: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: stolen}}\n\
         spec: {spec}\n"
    )
}

#[test]
fn a_revocation_names_digests_or_keys() {
    let read = |spec: &str| {
        let document = policies(&revocation(spec)).unwrap().remove(0);
        assert_eq!(document.name, "stolen");
        let Object::Revocation(Some(read)) = document.object else { panic!("no revocation") };
        (read.digests.len(), read.keys.len())
    };
    assert_eq!(read(&format!("{{digests: ['{DIGEST}', '{OTHER}']}}")), (2, 0));
    assert_eq!(read(&format!("{{keys: ['{DIGEST}']}}")), (0, 1));
    assert_eq!(read(&format!("{{digests: ['{DIGEST}'], keys: ['{DIGEST}']}}")), (1, 1));
}

#[test]
fn a_revoked_key_is_written_as_it_is_shown() {
    let id = PublicKey::from_pem(KEY).unwrap().id();
    let document = policies(&revocation(&format!("{{keys: ['{id}']}}"))).unwrap().remove(0);
    let Object::Revocation(Some(read)) = document.object else { panic!("no revocation") };
    assert_eq!(read.keys.into_iter().collect::<Vec<_>>(), [id]);
}

#[test]
fn a_revocation_that_cannot_be_read_is_never_left_out() {
    let twice = format!("{{digests: ['{DIGEST}', '{DIGEST}']}}");
    let keys_twice = format!("{{keys: ['{DIGEST}', '{DIGEST}']}}");
    let upper = DIGEST.to_uppercase().replace("SHA", "sha");
    let upper_key = format!("{{keys: ['{upper}']}}");
    for (spec, message) in [
        ("", "4:5: spec: is empty"),
        ("{}", "4:7: spec: is empty"),
        (
            "{digests: []}",
            "4:17: spec.digests: is an empty list; remove the field or fill the list",
        ),
        ("{keys: []}", "4:14: spec.keys: is an empty list; remove the field or fill the list"),
        ("{keys: }", "4:12: spec.keys: is empty"),
        ("{keys: ['']}", "4:15: spec.keys[0]: is empty"),
        (&*twice, "4:93: spec.digests[1]: is listed twice; remove one of the two"),
        (&*keys_twice, "4:90: spec.keys[1]: is listed twice; remove one of the two"),
        (
            &*upper_key,
            &*format!(
                "4:15: spec.keys[0]: {upper:?} is no key: \"sha256:\" and 64 lower-case \
                 hexadecimal characters are expected, the SHA-256 of its SubjectPublicKeyInfo, as \
                 \"portcullis verify\" shows it"
            ),
        ),
        ("{images: [a]}", "4:8: spec.images: is unknown; known here: digests, keys"),
    ] {
        let text = revocation(spec);
        refuses(&text, &format!("p.yaml:{message}"));
        // Nor is it where a good policy stands beside it.
        let line: usize = message.split(':').next().unwrap().parse().unwrap();
        let below = format!("p.yaml:{}{}", GOOD.lines().count() + 1 + line, &message[1..]);
        refuses(&format!("{GOOD}---\n{text}"), &below);
    }
    refuses(
        &revocation("{keys: [a]}")
            .replace("{name: stolen}", "{}")
            .replace("[a]", &format!("['{DIGEST}']")),
        "p.yaml:3:11: metadata: is empty",
    );
}
