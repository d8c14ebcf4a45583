//! Policies: a text means one thing, or it is refused.

use jiff::Timestamp;

use crate::{
    image::ImageRef,
    policy::{AuthorityKind, Mode, PolicySet, Selected, source},
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Refuses every image: the one digest it accepts is that of no image.
const DENY: &str = "apiVersion: portcullis.dev/v1alpha1
kind: ImagePolicy
metadata: {name: portcullis-deny}
spec:
  match: {images: ['**']}
  authorities:
  - name: none
    digests: ['sha256:0000000000000000000000000000000000000000000000000000000000000000']
";

pub(super) fn policy(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let set = match source::parse("p.yaml", text, NOW) {
        Ok(set) => set,
        Err(problems) => {
            let message = problems.to_string();
            assert!(!message.is_empty() && message.len() < 1_000_000, "{} bytes", message.len());
            assert!(message.chars().all(|c| !c.is_control() || c == '\n'), "{message:?}");
            assert!(message.starts_with("p.yaml"), "{message:?}");
            return;
        }
    };
    let again = source::parse("p.yaml", text, NOW).unwrap();
    assert_eq!((again.digest(), shown(&again)), (set.digest(), shown(&set)));
    let other = source::parse("p.yaml", &format!("{text}\n# more\n"), NOW);
    if let Ok(other) = other {
        assert_ne!(other.digest(), set.digest(), "another text has the same digest");
        assert_eq!(shown(&other), shown(&set));
    }
    assert!(!set.policies().is_empty());
    for policy in set.policies() {
        let name = &policy.name;
        assert!(!name.is_empty() && name.len() <= 253);
        assert!(
            name.bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c))
        );
        assert!((1..=policy.authorities.len()).contains(&policy.at_least.get()), "{policy:?}");
        let mut names: Vec<_> = policy.authorities.iter().map(|one| &one.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), policy.authorities.len(), "two authorities of one name");
        for authority in &policy.authorities {
            match &authority.kind {
                AuthorityKind::PublicKey(key) => {
                    assert!(key.not_before.zip(key.not_after).is_none_or(|(from, to)| from < to));
                }
                AuthorityKind::Digests(listed) => assert!(!listed.is_empty()),
                AuthorityKind::Unsigned { reason } => assert!(!reason.trim().is_empty()),
            }
        }
        // Nobody gets a mode or a lenient rule that the text does not name.
        assert!(policy.mode == Mode::Enforce || text.contains("Warn"));
        assert!(policy.break_glass.is_none() || text.contains("breakGlass"));
        let unsigned = |kind: &AuthorityKind| matches!(kind, AuthorityKind::Unsigned { .. });
        let lenient = policy.authorities.iter().any(|one| unsigned(&one.kind));
        assert!(!lenient || text.contains("unsigned"), "{policy:?}");
    }
    twice(text);
    more(text, &set);
}

/// Names are unique, so the same text twice is no set.
fn twice(text: &str) {
    assert!(source::parse("p.yaml", &format!("{text}\n---\n{text}"), NOW).is_err());
}

/// A further policy takes no other one away.
fn more(text: &str, set: &PolicySet) {
    let Ok(more) = source::parse("p.yaml", &format!("{DENY}---\n{text}"), NOW) else { return };
    for image in ["nginx", "registry.example.com/prod/app:v1", "localhost:5000/a"] {
        let image: ImageRef = image.parse().unwrap();
        for namespace in [None, Some("shop")] {
            let (few, many) = (set.select(&image, namespace), more.select(&image, namespace));
            let Ok(many) = many else {
                // Refused as it was before, because of its tag.
                assert!(few.is_err());
                continue;
            };
            let names = |selected: &Selected| {
                selected.policies().iter().map(|one| one.name.clone()).collect::<Vec<_>>()
            };
            let many = names(&many);
            assert!(many.contains(&"portcullis-deny".to_owned()));
            assert!(few.iter().flat_map(names).all(|name| many.contains(&name)));
        }
    }
}

/// What a set says, wherever it was read.
fn shown(set: &PolicySet) -> String {
    format!("{:?} {:?}", set.policies(), set.revoked())
}
