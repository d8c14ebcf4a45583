use std::collections::BTreeMap;

use super::{authority::LATER_KINDS, *};
use crate::{policy::AuthorityKind, problem::Problems, verify::PublicKey};

mod authorities;
mod bounds;
mod emergency;

const KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfmhq6rkwrqoQvJvEKqFTYBBFOV96
b2QCI8ufz9Hvuyc6AC2Qi1C2YKmGI0f1KpDOlkblo86Rwd69J71gng4hwg==
-----END PUBLIC KEY-----
";

const GOOD: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: ImagePolicy
metadata: {name: production, labels: {team: shop}, annotations: {note: ''}}
spec:
  mode: Enforce
  match:
    images: ['registry.example.com/prod/**']
    excludeImages: ['registry.example.com/prod/tools/**']
    namespaces: [shop, 'shop-*']
    excludeNamespaces: [shop-dev]
  reference: Digest
  atLeast: 2
  authorities:
    - name: release-2026
      publicKey:
        pem: |
          -----BEGIN PUBLIC KEY-----
          MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfmhq6rkwrqoQvJvEKqFTYBBFOV96
          b2QCI8ufz9Hvuyc6AC2Qi1C2YKmGI0f1KpDOlkblo86Rwd69J71gng4hwg==
          -----END PUBLIC KEY-----
        notBefore: 2026-01-01T00:00:00Z
        notAfter: 2027-07-01T00:00:00+02:00
        annotations: {env: prod}
    - name: release-2025
      publicKey: {file: keys/2025.pub}
    - name: floor
      digests: ['sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa']
    - name: open
      unsigned: {reason: built on this node}
";

/// Another key than [`KEY`].
const OTHER_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEA+mqKNS+jjKk3Tv954SrAylNFzMy
MhHuHwSwnuh+qD1eiuG8t6TQN28rr6WhQ+SbTN3z4XHaveotXqfw1Yqc1A==
-----END PUBLIC KEY-----
";

fn policies(text: &str) -> Result<Vec<Document>, Problems> {
    let mut keys = |name: &str| match name {
        "keys/2025.pub" => Ok(OTHER_KEY.to_owned()),
        "same.pub" => Ok(KEY.to_owned()),
        "broken.pub" => Ok("no key".to_owned()),
        _ => Err("cannot be read: it is not there".to_owned()),
    };
    let mut report = Report::default();
    let documents = read("p.yaml", text, &mut keys, &mut report);
    report.finish(documents)
}

/// The only problem of a text is this one.
#[track_caller]
fn refuses(text: &str, message: &str) {
    let problems = policies(text).map(|_| ()).unwrap_err();
    assert_eq!(problems.to_string(), message);
}

/// The only problem of the good policy with one part replaced is this one.
#[track_caller]
fn refuses_change(part: &str, by: &str, message: &str) {
    assert_eq!(GOOD.matches(part).count(), 1, "{part:?} must be in the good policy once");
    refuses(&GOOD.replace(part, by), message);
}

#[track_caller]
fn accepts_change(part: &str, by: &str) -> ImagePolicy {
    assert_eq!(GOOD.matches(part).count(), 1, "{part:?} must be in the good policy once");
    let mut documents = policies(&GOOD.replace(part, by)).unwrap();
    policy_of(documents.remove(0))
}

#[track_caller]
fn policy_of(document: Document) -> ImagePolicy {
    let Object::Policy(Some(policy)) = document.object else { panic!("no policy") };
    policy
}

/// A policy with these lines behind its name.
fn spec(lines: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: p}}\n{lines}"
    )
}

#[test]
fn a_policy_is_read_in_full() {
    let documents = policies(GOOD).unwrap();
    let Object::Policy(Some(policy)) = &documents[0].object else { panic!("no policy") };
    assert_eq!(
        (documents.len(), &*documents[0].name, &*policy.name),
        (1, "production", "production")
    );
    assert_eq!((documents[0].at.line, documents[0].at.column), (3, 18));
    assert_eq!((policy.reference, policy.at_least.get()), (ReferenceRule::Digest, 2));
    let scope = &policy.scope;
    assert_eq!((scope.images.len(), scope.exclude_images.len()), (1, 1));
    assert!(matches!(&scope.namespaces, Namespaces::Only(names) if names.len() == 2));
    assert_eq!(scope.exclude_namespaces.len(), 1);
    let names: Vec<_> = policy.authorities.iter().map(|authority| &*authority.name).collect();
    assert_eq!(names, ["release-2026", "release-2025", "floor", "open"]);
    let AuthorityKind::PublicKey(key) = &policy.authorities[0].kind else { panic!("{policy:?}") };
    assert_eq!(key.key.id(), PublicKey::from_pem(KEY).unwrap().id());
    assert_eq!(key.not_before, Some("2026-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(key.not_after, Some("2027-06-30T22:00:00Z".parse().unwrap()));
    assert_eq!(key.annotations, BTreeMap::from([("env".into(), "prod".into())]));
    let AuthorityKind::PublicKey(key) = &policy.authorities[1].kind else { panic!("{policy:?}") };
    assert_eq!(key.key.id(), PublicKey::from_pem(OTHER_KEY).unwrap().id());
    assert_eq!((key.not_before, key.not_after, key.annotations.len()), (None, None, 0));
    let AuthorityKind::Digests(digests) = &policy.authorities[2].kind else { panic!("{policy:?}") };
    assert_eq!(digests.len(), 1);
    assert!(matches!(
        &policy.authorities[3].kind,
        AuthorityKind::Unsigned { reason } if reason == "built on this node"
    ));
}

#[test]
fn what_may_be_left_out_has_the_strict_meaning() {
    let policy = accepts_change("  reference: Digest\n  atLeast: 2\n", "");
    assert_eq!((policy.reference, policy.at_least.get()), (ReferenceRule::Any, 1));
    let policy = accepts_change("    namespaces: [shop, 'shop-*']\n", "");
    assert!(matches!(policy.scope.namespaces, Namespaces::All));
}

#[test]
fn a_file_holds_several_policies() {
    let second = GOOD.replace("production", "second");
    let documents = policies(&format!("---\n{GOOD}---\n{second}---\n")).unwrap();
    let names: Vec<_> = documents.iter().map(|document| &*document.name).collect();
    assert_eq!(names, ["production", "second"]);
    refuses(
        &format!("{GOOD}---\n{}", second.replace("atLeast: 2", "atLeast: 0")),
        "p.yaml:42:12: spec.atLeast: must be at least 1",
    );
}

#[test]
fn a_file_without_a_policy_is_refused() {
    for text in ["", "# nothing\n", "---\n---\n"] {
        refuses(text, "p.yaml: holds no policy; fill the file or remove it");
    }
    refuses("[]", "p.yaml:1:1: must be a mapping, not a list");
    refuses("{}", "p.yaml:1:1: is empty");
    refuses("a: [", "p.yaml:1:4: unclosed bracket '['");
}

#[test]
fn the_frame_of_an_object_is_strict() {
    refuses_change(
        "apiVersion: portcullis.dev/v1alpha1\n",
        "",
        "p.yaml:1:1: apiVersion: is missing",
    );
    refuses_change(
        "v1alpha1",
        "v1",
        "p.yaml:1:13: apiVersion: must be portcullis.dev/v1alpha1, not \"portcullis.dev/v1\"",
    );
    refuses_change("kind: ImagePolicy\n", "", "p.yaml:1:1: kind: is missing");
    refuses_change(
        "kind: ImagePolicy",
        "kind: Policy",
        "p.yaml:2:7: kind: must be ImagePolicy or Revocation, not \"Policy\"",
    );
    refuses_change(
        "kind: ImagePolicy",
        "kind: TrustRoot",
        "p.yaml:2:7: kind: TrustRoot is not supported by this version",
    );
    refuses_change(
        "spec:\n",
        "status: {}\nspec:\n",
        "p.yaml:4:1: status: is unknown; known here: apiVersion, kind, metadata, spec",
    );
    refuses(&spec("spec: {}\n"), "p.yaml:4:7: spec: is empty");
    refuses(&spec(""), "p.yaml:1:1: spec: is missing");
    refuses(&spec("spec: x\n"), "p.yaml:4:7: spec: must be a mapping, not text");
    refuses(&spec("spec:\n"), "p.yaml:4:5: spec: is empty");
}

#[test]
fn names_are_those_of_kubernetes() {
    refuses_change("name: production, ", "", "p.yaml:3:11: metadata.name: is missing");
    refuses_change(
        "name: production",
        "name: 2026",
        "p.yaml:3:18: metadata.name: must be text, not a number; quote it",
    );
    refuses_change("name: production", "name: ''", "p.yaml:3:18: metadata.name: is empty");
    refuses_change(
        "{name: production",
        "{name: production, namespace: shop",
        "p.yaml:3:30: metadata.namespace: is unknown; known here: name, labels, annotations",
    );
    refuses_change(
        "{team: shop}",
        "{team: 1}",
        "p.yaml:3:45: metadata.labels[\"team\"]: must be text, not a number; quote it",
    );
    for bad in ["Production", "-a", "a-", "a..b", "a_b", "a/b", &"a".repeat(254)] {
        let long = crate::image::shorten(bad);
        let rule = "at most 253 lower-case letters, digits, '-' and '.' are expected, each part \
                    beginning and ending with a letter or digit";
        refuses_change(
            "name: production",
            &format!("name: {bad}"),
            &format!("p.yaml:3:18: metadata.name: {long:?} is no name: {rule}"),
        );
        if bad.len() < 200 {
            refuses_change(
                "name: release-2026",
                &format!("name: {bad}"),
                &format!("p.yaml:14:13: spec.authorities[0].name: {bad:?} is no name: {rule}"),
            );
        }
    }
    for good in ["a", "0", "a.b-c.d", &"a".repeat(253)] {
        assert_eq!(accepts_change("name: production", &format!("name: '{good}'")).name, good);
    }
}

#[test]
fn unknown_and_duplicate_keys_are_refused() {
    refuses_change(
        "  atLeast: 2",
        "  atleast: 2",
        "p.yaml:12:3: spec.atleast: is unknown; known here: mode, match, reference, atLeast, \
         authorities, breakGlass",
    );
    refuses_change(
        "  atLeast: 2",
        "  atLeast: 2\n  atLeast: 1",
        "p.yaml:13:3: spec.atLeast: is there twice; remove one of the two",
    );
    refuses_change(
        "    namespaces: [shop",
        "    namespace: [shop",
        "p.yaml:9:5: spec.match.namespace: is unknown; known here: images, excludeImages, \
         namespaces, excludeNamespaces",
    );
    refuses_change(
        "unsigned: {",
        "unsigned: {why: x, ",
        "p.yaml:29:18: spec.authorities[3].unsigned.why: is unknown; known here: reason",
    );
    refuses_change(
        "{env: prod}",
        "{env: prod, env: dev}",
        "p.yaml:23:34: spec.authorities[0].publicKey.annotations[\"env\"]: is there twice; \
         remove one of the two",
    );
    refuses_change(
        "spec:\n",
        "1: x\nspec:\n",
        "p.yaml:4:1: a key must be text, not a number; quote it",
    );
    refuses_change(
        "  atLeast: 2",
        "  \"\\e[31m\": 2",
        "p.yaml:12:3: spec.\\u{1b}[31m: is unknown; known here: mode, match, reference, atLeast, \
         authorities, breakGlass",
    );
}

#[test]
fn what_this_version_does_not_implement_is_refused_by_name() {
    refuses_change(
        "  atLeast: 2",
        "  atLeast: 2\n  attestations: []",
        "p.yaml:13:3: spec.attestations: is not supported by this version",
    );
    for kind in LATER_KINDS {
        refuses_change(
            "unsigned: {reason: built on this node}",
            &format!("{kind}: {{}}"),
            &format!("p.yaml:29:7: spec.authorities[3].{kind}: is not supported by this version"),
        );
    }
}

#[test]
fn a_match_names_images() {
    for (part, by, message) in [
        (
            "images: ['registry.example.com/prod/**']\n    excludeI",
            "excludeI",
            "p.yaml:7:5: spec.match.images: is missing",
        ),
        (
            "images: ['registry.example.com/prod/**']",
            "images: []",
            "p.yaml:7:13: spec.match.images: is an empty list; remove the field or fill the list",
        ),
        (
            "images: ['registry.example.com/prod/**']",
            "images: '**'",
            "p.yaml:7:13: spec.match.images: must be a list, not text",
        ),
        (
            "images: ['registry.example.com/prod/**']",
            "images: ['**', nginx]",
            "p.yaml:7:20: spec.match.images[1]: \"nginx\" is not canonical and would match \
             nothing; write \"docker.io/library/nginx\"",
        ),
        (
            "['registry.example.com/prod/tools/**']",
            "[]",
            "p.yaml:8:20: spec.match.excludeImages: is an empty list; remove the field or fill \
             the list",
        ),
        (
            "[shop, 'shop-*']",
            "[]",
            "p.yaml:9:17: spec.match.namespaces: is an empty list; remove the field or fill the \
             list",
        ),
        ("[shop, 'shop-*']", "", "p.yaml:9:15: spec.match.namespaces: is empty"),
        (
            "[shop, 'shop-*']",
            "[Shop]",
            "p.yaml:9:18: spec.match.namespaces[0]: \"Shop\" is no pattern for namespaces: at \
             most 63 lower-case letters, digits and '-' are expected, '*' for any run of them",
        ),
        (
            "[shop-dev]",
            "[]",
            "p.yaml:10:24: spec.match.excludeNamespaces: is an empty list; remove the field or \
             fill the list",
        ),
    ] {
        refuses_change(part, by, message);
    }
    let authorities = "  authorities: [{name: a, unsigned: {reason: x}}]\n";
    refuses(
        &spec(&format!("spec:\n  match: {{}}\n{authorities}")),
        "p.yaml:5:10: spec.match: is empty",
    );
    refuses(&spec(&format!("spec:\n{authorities}")), "p.yaml:5:3: spec.match: is missing");
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let text = GOOD
        .replace("mode: Enforce", "mode: warn")
        .replace("[shop, 'shop-*']", "[]")
        .replace("reason: built", "reasons: built");
    refuses(
        &text,
        "p.yaml:5:9: spec.mode: must be Enforce or Warn, not \"warn\"\n\
         p.yaml:9:17: spec.match.namespaces: is an empty list; remove the field or fill the list\n\
         p.yaml:29:18: spec.authorities[3].unsigned.reasons: is unknown; known here: reason\n\
         p.yaml:29:17: spec.authorities[3].unsigned.reason: is missing",
    );
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Cut before its second authority is complete, a policy that wants two is refused.
        #[test]
        fn a_policy_that_is_cut_off_is_refused(cut in 0..GOOD.find("keys/2025.pub").unwrap()) {
            prop_assert!(policies(&GOOD[..cut]).is_err());
        }

        #[test]
        fn a_hostile_file_is_read_without_panic(text in "[ -~\\n]{0,200}") {
            prop_assert!(policies(&text).is_err());
        }

        #[test]
        fn a_good_file_with_a_character_changed_does_not_panic(
            at in 0..GOOD.len(), by in "[ -~\\n]"
        ) {
            let _ = policies(&format!("{}{by}{}", &GOOD[..at], &GOOD[at + 1..]));
        }
    }
}
