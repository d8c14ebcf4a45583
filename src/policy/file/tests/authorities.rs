//! Authorities, and how many of them must accept.

use super::*;

#[test]
fn at_least_counts_distinct_identities() {
    let count = "must be a whole number, not negative and not quoted";
    for (number, message) in [
        ("0", "must be at least 1"),
        ("-1", count),
        ("1.5", count),
        ("'2'", count),
        ("99999999999999999999", count),
        ("5", "5 is more than there are distinct authorities, 4; no image could ever be accepted"),
    ] {
        refuses_change(
            "atLeast: 2",
            &format!("atLeast: {number}"),
            &format!("p.yaml:12:12: spec.atLeast: {message}"),
        );
    }
    refuses_change("atLeast: 2", "atLeast:", "p.yaml:12:10: spec.atLeast: is empty");
    assert_eq!(accepts_change("atLeast: 2", "atLeast: 4").at_least.get(), 4);
    let twice = GOOD.replace("keys/2025.pub", "same.pub");
    assert!(policies(&twice.replace("atLeast: 2", "atLeast: 3")).is_ok());
    refuses(
        &twice.replace("atLeast: 2", "atLeast: 4"),
        "p.yaml:12:12: spec.atLeast: 4 is more than there are distinct authorities, 3 \
         (authorities with the same public key count once); no image could ever be accepted",
    );
}

#[test]
fn an_authority_has_one_kind_and_a_name_of_its_own() {
    for (part, by, message) in [
        (
            "unsigned: {reason: built on this node}",
            "",
            "p.yaml:28:7: spec.authorities[3]: has no kind; one of publicKey, digests, unsigned \
             is needed",
        ),
        (
            "    - name: open\n      unsigned:",
            "      unsigned:",
            "p.yaml:26:7: spec.authorities[2]: has several kinds (digests, unsigned); give each \
             an authority of its own",
        ),
        (
            "name: open\n      unsigned",
            "unsigned",
            "p.yaml:28:7: spec.authorities[3].name: is missing",
        ),
        (
            "name: open",
            "name: floor",
            "p.yaml:28:13: spec.authorities[3].name: \"floor\" is already the name of an \
             authority, at line 26; names are unique within a policy",
        ),
        (
            "unsigned: {reason: built on this node}",
            "password: x",
            "p.yaml:29:7: spec.authorities[3].password: is unknown; known here: name, publicKey, \
             digests, unsigned\n\
             p.yaml:28:7: spec.authorities[3]: has no kind; one of publicKey, digests, unsigned \
             is needed",
        ),
    ] {
        refuses_change(part, by, message);
    }
    let spec = |list: &str| spec(&format!("spec:\n  match: {{images: ['**']}}\n  {list}\n"));
    refuses(&spec("atLeast: 1"), "p.yaml:5:3: spec.authorities: is missing");
    refuses(
        &spec("authorities: []"),
        "p.yaml:6:16: spec.authorities: is an empty list; remove the field or fill the list",
    );
    refuses(
        &spec("authorities: [x]"),
        "p.yaml:6:17: spec.authorities[0]: must be a mapping, not text",
    );
    let many = (0..65).map(|n| format!("{{name: a{n}, unsigned: {{reason: x}}}}"));
    let many = many.collect::<Vec<_>>().join(", ");
    refuses(
        &spec(&format!("authorities: [{many}]")),
        "p.yaml:6:16: spec.authorities: has 65 entries, 64 are allowed",
    );
}

#[test]
fn a_public_key_is_one_usable_key() {
    let no_pem = PublicKey::from_pem("no key").map(|_| ()).unwrap_err();
    let file = "publicKey: {file: keys/2025.pub}";
    for (by, message) in [
        (
            "publicKey: {pem: no key}",
            format!("p.yaml:25:24: spec.authorities[1].publicKey.pem: {no_pem}"),
        ),
        (
            "publicKey: {file: broken.pub}",
            format!("p.yaml:25:25: spec.authorities[1].publicKey.file: {no_pem}"),
        ),
        (
            "publicKey: {file: absent.pub}",
            "p.yaml:25:25: spec.authorities[1].publicKey.file: cannot be read: it is not there"
                .into(),
        ),
        (
            "publicKey: {notAfter: 2026-01-01T00:00:00Z}",
            "p.yaml:25:18: spec.authorities[1].publicKey: names no key; one of pem, file is needed"
                .into(),
        ),
        (
            "publicKey: {file: a, pem: b}",
            "p.yaml:25:18: spec.authorities[1].publicKey: has both pem and file; keep one of the \
             two"
            .into(),
        ),
        ("publicKey: {}", "p.yaml:25:18: spec.authorities[1].publicKey: is empty".into()),
        (
            "publicKey: {file: keys/2025.pub, annotations: {}}",
            "p.yaml:25:53: spec.authorities[1].publicKey.annotations: is empty".into(),
        ),
    ] {
        refuses_change(file, by, &message);
    }
}

#[test]
fn the_line_of_a_key_is_not_shown() {
    let text = GOOD.replace("{file: keys/2025.pub}", "{pem: secret}");
    let problems = policies(&text).map(|_| ()).unwrap_err();
    assert_eq!(problems.list()[0].excerpt, None);
    let problems = policies(&GOOD.replace("atLeast: 2", "atLeast: 0")).map(|_| ()).unwrap_err();
    assert_eq!(problems.list()[0].excerpt.as_deref(), Some("  atLeast: 0"));
}

#[test]
fn a_window_is_two_moments_in_order() {
    let later = "p.yaml:22:19: spec.authorities[0].publicKey.notAfter: must be later than \
                 notBefore; the key would never count";
    for after in ["2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", "2026-01-01T01:00:00+02:00"] {
        refuses_change("2027-07-01T00:00:00+02:00", after, later);
    }
    for bad in [
        "2026",
        "2026-01-01",
        "'2026-01-01 00:00:00Z'",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:00:00Z[UTC]",
        "2026-01-01t00:00:00z",
        "tomorrow",
    ] {
        let bare = bad.trim_matches('\'');
        let message = match bad {
            "2026" => "must be text, not a number; quote it".into(),
            _ => format!("{bare:?} is no time; write it as in 2026-01-01T00:00:00Z (RFC 3339)"),
        };
        refuses_change(
            "2027-07-01T00:00:00+02:00",
            bad,
            &format!("p.yaml:22:19: spec.authorities[0].publicKey.notAfter: {message}"),
        );
    }
}

#[test]
fn digests_are_whole_and_listed_once() {
    let digest = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";
    let list = format!("['{digest}']");
    refuses_change(
        &list,
        "[]",
        "p.yaml:27:16: spec.authorities[2].digests: is an empty list; remove the field or fill \
         the list",
    );
    refuses_change(
        &list,
        "['sha256:e7d3']",
        "p.yaml:27:17: spec.authorities[2].digests[0]: \"sha256:e7d3\" is no digest: \"sha256:\" \
         and 64 lower-case hexadecimal characters are expected",
    );
    refuses_change(
        &list,
        &format!("['{digest}', '{digest}']"),
        "p.yaml:27:92: spec.authorities[2].digests[1]: is listed twice; remove one of the two",
    );
}

#[test]
fn unsigned_says_why_in_one_line() {
    let reason = "{reason: built on this node}";
    let line = "must be one line of at most 256 bytes";
    for (by, at, message) in [
        ("{reason: ''}", 26, "is empty"),
        ("{reason: ' '}", 26, line),
        ("{reason: \"a\\nb\"}", 26, line),
        (&format!("{{reason: {}}}", "x".repeat(257)), 26, line),
    ] {
        let message = format!("p.yaml:29:{at}: spec.authorities[3].unsigned.reason: {message}");
        refuses_change(reason, by, &message);
    }
    refuses_change(reason, "{}", "p.yaml:29:17: spec.authorities[3].unsigned: is empty");
    refuses_change(
        reason,
        "true",
        "p.yaml:29:17: spec.authorities[3].unsigned: must be a mapping, not a boolean",
    );
}
