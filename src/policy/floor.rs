//! The floor: policies of the node itself, which hold beside those of the source.
//!
//! An image that both match must satisfy both. While the source has no set in force, the floor
//! decides alone, and for the images that it matches only: that is how a node starts what its
//! control plane needs.

use std::{path::Path, sync::Arc};

use jiff::Timestamp;

use crate::{
    image::Digest,
    problem::{Problem, Problems, Report},
    refusal::Refusal,
};

use super::{ImagePolicy, Mode, PolicySet, Revoked, Texts};

/// What the names of its policies begin with in messages and records. No name in a set has a `/`.
const PREFIX: &str = "floor/";

/// A set of the source with the floor in a directory beside it.
///
/// # Errors
///
/// Everything that is wrong with the floor.
pub fn beside_floor(
    directory: &Path,
    source: &PolicySet,
    now: Timestamp,
) -> Result<PolicySet, Problems> {
    Floor::read(directory, now).map(|(floor, _texts)| floor.beside(source))
}

/// Whether a directory can be a floor.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn check_floor(directory: &Path, now: Timestamp) -> Result<(), Problems> {
    Floor::read(directory, now).map(|_| ())
}

/// Policies of the node itself.
#[derive(Clone, Debug)]
pub(super) struct Floor(Arc<PolicySet>);

impl Floor {
    /// The floor that a set is.
    ///
    /// # Errors
    ///
    /// A policy that lets images through without being satisfied: that would decide alone
    /// whenever the source is away.
    pub(super) fn of(set: PolicySet, source: &str) -> Result<Self, Problems> {
        let mut report = Report::default();
        for policy in &set.policies {
            let why = match (policy.mode, &policy.break_glass) {
                (Mode::Warn, _) => "mode: Warn",
                (Mode::Enforce, Some(_)) => "breakGlass",
                (Mode::Enforce, None) => continue,
            };
            let message = format!(
                "policy {:?} has {why}; the floor decides alone while the source of policies is \
                 away, so it must enforce",
                policy.name
            );
            report.add(Problem::of_file(source, message));
        }
        report.finish(set).map(|set| Self(Arc::new(named(set))))
    }

    /// The texts in a directory as a floor.
    pub(super) fn read(directory: &Path, now: Timestamp) -> Result<(Self, Texts), Problems> {
        let (set, texts) = super::source::read(directory, now)?;
        Ok((Self::of(set, &super::source::shown(directory))?, texts))
    }

    /// Names exactly the texts that it was read from.
    pub(super) fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The set of both: all policies and all that is revoked.
    pub(super) fn beside(&self, source: &PolicySet) -> PolicySet {
        let mut policies: Vec<_> =
            self.0.policies.iter().chain(&source.policies).cloned().collect();
        policies.sort_by(|one, other| one.name.cmp(&other.name));
        let digest = [self.0.digest, source.digest].map(|digest| digest.hex()).concat();
        let revoked = self.revoked_beside(&source.revoked);
        PolicySet::new(policies, revoked, Digest::of(digest.as_bytes()), source.loaded)
            .with_revision(source.revision)
    }

    /// The floor without a source: what it does not match is refused so. What the source revoked
    /// before stays revoked.
    pub(super) fn alone(&self, source: Option<&PolicySet>, otherwise: Refusal) -> PolicySet {
        let nothing = Revoked::default();
        let revoked = self.revoked_beside(source.map_or(&nothing, |source| &source.revoked));
        let digest = match source {
            Some(source) => {
                let both = [self.0.digest, source.digest].map(|digest| digest.hex()).concat();
                Digest::of(format!("{both} alone").as_bytes())
            }
            None => self.0.digest,
        };
        let mut set = PolicySet::new(self.0.policies.clone(), revoked, digest, self.0.loaded);
        set.otherwise = Some(otherwise);
        set
    }

    fn revoked_beside(&self, source: &Revoked) -> Revoked {
        let mut revoked = source.clone();
        let Revoked { digests, keys } = self.0.revoked().clone();
        revoked.digests.extend(digests);
        revoked.keys.extend(keys);
        revoked
    }
}

/// The same set, its policies and revocations named as the floor's.
fn named(mut set: PolicySet) -> PolicySet {
    let name = |name: &str| format!("{PREFIX}{name}");
    let policies = set.policies.into_iter().map(|policy| {
        let policy = Arc::into_inner(policy).expect("a set that was just read is shared by nobody");
        Arc::new(ImagePolicy { name: name(&policy.name), ..policy })
    });
    set.policies = policies.collect();
    let mut revoked = set.revoked.as_ref().clone();
    for by in revoked.digests.values_mut().chain(revoked.keys.values_mut()) {
        *by = name(by);
    }
    set.revoked = Arc::new(revoked);
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::source, refusal::Code};

    fn set(name: &str, pattern: &str, more: &str) -> PolicySet {
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\n\
             spec:\n  match: {{images: ['{pattern}']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: test}}}}]\n  {more}\n---\n\
             apiVersion: portcullis.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: {name}}}\n\
             spec: {{digests: ['{}']}}\n",
            Digest::of(name.as_bytes())
        );
        source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn names(set: &PolicySet, image: &str) -> Result<Vec<String>, Refusal> {
        let selected = set.select(&image.parse().unwrap(), None)?;
        Ok(selected.policies().iter().map(|policy| policy.name.clone()).collect())
    }

    #[test]
    fn both_must_be_satisfied() {
        let floor = Floor::of(set("p", "a.example/**", ""), "F").unwrap();
        let both = floor.beside(&set("p", "**", "").with_revision(Some(7)));
        assert_eq!(names(&both, "a.example/x").unwrap(), ["floor/p", "p"]);
        assert_eq!(names(&both, "b.example/x").unwrap(), ["p"]);
        assert_eq!(both.revision(), Some(7));
        assert_eq!(both.revoked().digests[&Digest::of(b"p")], "floor/p");
    }

    #[test]
    fn alone_it_decides_what_it_matches_and_nothing_else() {
        let floor = Floor::of(set("p", "a.example/**", ""), "F").unwrap();
        let away = Refusal::new(Code::PolicyExpired, "the policies expired");
        for source in [None, Some(&set("s", "**", ""))] {
            let alone = floor.alone(source, away.clone());
            assert_eq!(names(&alone, "a.example/x").unwrap(), ["floor/p"]);
            let refusal = names(&alone, "b.example/x").unwrap_err();
            assert_eq!(
                (refusal.code, &*refusal.message),
                (Code::PolicyExpired, "b.example/x:latest: the policies expired")
            );
            let revoked = alone.revoked().digests.contains_key(&Digest::of(b"s"));
            assert_eq!(revoked, source.is_some(), "what was revoked stays so");
        }
    }

    #[test]
    fn what_lets_through_unsatisfied_is_no_floor() {
        let wrong = |more| Floor::of(set("p", "**", more), "F").unwrap_err().to_string();
        let told = |what| {
            format!(
                "F: policy \"p\" has {what}; the floor decides alone while the source of policies \
                 is away, so it must enforce"
            )
        };
        assert_eq!(wrong("mode: Warn"), told("mode: Warn"));
        let glass = "breakGlass: {annotation: a.example/b, namespaces: [x]}";
        assert_eq!(wrong(glass), told("breakGlass"));
    }

    #[test]
    fn each_combination_has_a_digest_of_its_own() {
        let (one, two) = (set("p", "a.example/**", ""), set("q", "**", ""));
        let floor = Floor::of(set("p", "a.example/**", ""), "F").unwrap();
        let away = Refusal::new(Code::PolicyUnavailable, "away");
        let digests = [
            one.digest(),
            two.digest(),
            floor.beside(&two).digest(),
            floor.beside(&one).digest(),
            floor.alone(Some(&two), away.clone()).digest(),
        ];
        let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
        assert_eq!(floor.alone(None, away).digest(), floor.digest());
    }
}
