//! Which policies match.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    image::{ImageRef, Repository, Version, shorten},
    refusal::{Code, Refusal},
};

use super::{
    ImagePolicy, PolicySet, Revoked,
    model::{AuthorityKind, Mode, Namespaces, ReferenceRule, Scope},
    pattern::Names,
};

/// The policies that govern an image: never empty.
#[derive(Debug)]
pub struct Selected {
    policies: Vec<Arc<ImagePolicy>>,
    revoked: Arc<Revoked>,
    /// The image, where it is named by a tag.
    tagged: Option<ImageRef>,
}

impl Selected {
    /// The policies, in the order of their names.
    pub fn policies(&self) -> &[Arc<ImagePolicy>] {
        &self.policies
    }

    /// What none of them can accept.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Whether a policy accepts this image by digest only, and it is named by a tag.
    pub fn digest_required(&self, policy: &ImagePolicy) -> Option<Refusal> {
        let tagged = self.tagged.as_ref()?;
        (policy.reference == ReferenceRule::Digest).then(|| digest_required(tagged, policy))
    }

    /// The time around `now` in which the passing of time alone changes no decision: from the
    /// first moment, and before the second.
    pub fn constant_around(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let keys = self.policies.iter().flat_map(|policy| &policy.authorities);
        let windows = keys.flat_map(|authority| match &authority.kind {
            AuthorityKind::PublicKey(key) => [key.not_before, key.not_after],
            AuthorityKind::Digests(_) | AuthorityKind::Unsigned { .. } => [None, None],
        });
        let glass = self.policies.iter().filter_map(|policy| policy.break_glass.as_ref());
        let moments = windows.flatten().chain(glass.filter_map(|glass| glass.not_after));
        moments.fold((Timestamp::MIN, Timestamp::MAX), |(from, until), moment| {
            if moment <= now { (from.max(moment), until) } else { (from, until.min(moment)) }
        })
    }
}

impl PolicySet {
    /// The policies that match an image in a namespace. None is a refusal, and so is a tag where
    /// one of them wants a digest. A caller that names no namespace matches only policies
    /// without `namespaces`.
    pub fn select(&self, image: &ImageRef, namespace: Option<&str>) -> Result<Selected, Refusal> {
        let covering = self.covering(&image.repository);
        let matching = covering.filter(|policy| policy.scope.holds_in(namespace));
        let selected =
            self.selected(image, matching).ok_or_else(|| self.no_match(image, namespace))?;
        // What nothing can change is said before any registry is asked.
        let strict = |policy: &&Arc<ImagePolicy>| {
            policy.mode == Mode::Enforce && policy.break_glass.is_none()
        };
        let strict = selected.policies.iter().filter(strict);
        match strict.filter_map(|policy| selected.digest_required(policy)).next() {
            Some(refusal) => Err(refusal),
            None => Ok(selected),
        }
    }

    /// The policies for an image in any namespace, for a call that names no pod. None: nobody may
    /// have it.
    pub fn covering_somewhere(&self, image: &ImageRef) -> Option<Selected> {
        self.selected(image, self.covering(&image.repository))
    }

    fn selected<'a>(
        &self,
        image: &ImageRef,
        policies: impl Iterator<Item = &'a Arc<ImagePolicy>>,
    ) -> Option<Selected> {
        let policies: Vec<_> = policies.cloned().collect();
        let tagged = matches!(image.version, Version::Tag(_)).then(|| image.clone());
        let revoked = self.revoked.clone();
        (!policies.is_empty()).then_some(Selected { policies, revoked, tagged })
    }

    /// The policies for an image in any namespace, in the order of their names.
    fn covering(&self, repository: &Repository) -> impl Iterator<Item = &Arc<ImagePolicy>> {
        let names = Names::from(repository);
        let candidates = self.index.candidates(&names).into_iter();
        candidates
            .filter_map(|number| self.policies.get(number))
            .filter(move |policy| policy.scope.covers(&names))
    }

    fn no_match(&self, image: &ImageRef, namespace: Option<&str>) -> Refusal {
        if let Some(refusal) = &self.otherwise {
            return refusal.clone().about(image);
        }
        let place = match namespace {
            Some(namespace) => format!("namespace \"{}\"", shorten(namespace)),
            None => "a call that names no namespace".into(),
        };
        let remedy = match self.covering(&image.repository).next() {
            Some(policy) => format!("policy {:?} covers it in other namespaces only", policy.name),
            None => "an ImagePolicy whose spec.match.images covers it is needed".into(),
        };
        let message = format!("no policy matches this image in {place}; {remedy}");
        Refusal::new(Code::NoPolicyMatches, message).about(image)
    }
}

fn digest_required(image: &ImageRef, policy: &ImagePolicy) -> Refusal {
    let message = format!(
        "policy {:?} accepts this image by digest only; name it in the pod as {}@sha256:...",
        policy.name, image.repository
    );
    Refusal::new(Code::DigestRequired, message).about(image)
}

/// Which policies could match a repository, by the segments that their patterns begin with: of a
/// thousand policies all but a few are out of the question at the price of a few look-ups.
#[derive(Debug)]
pub(super) struct Index(HashMap<Box<str>, Vec<usize>>);

impl Index {
    pub(super) fn new(policies: &[Arc<ImagePolicy>]) -> Self {
        let mut index: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        for (number, policy) in policies.iter().enumerate() {
            for pattern in &policy.scope.images {
                index.entry(pattern.anchor().into()).or_default().push(number);
            }
        }
        Self(index)
    }

    /// Their numbers, in order.
    fn candidates(&self, names: &Names<'_>) -> Vec<usize> {
        let name = &*names.governed;
        let ends = name.match_indices('/').map(|(slash, _)| slash).chain([0, name.len()]);
        let mut all: Vec<usize> =
            ends.filter_map(|end| self.0.get(&name[..end])).flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl ImagePolicy {
    /// Whether it holds whoever asks: in every namespace, and where a call names none.
    pub fn holds_for_everybody(&self) -> bool {
        matches!(self.scope.namespaces, Namespaces::All) && self.scope.exclude_namespaces.is_empty()
    }
}

impl Scope {
    fn covers(&self, names: &Names<'_>) -> bool {
        self.images.iter().any(|pattern| pattern.matches(names))
            && !self.exclude_images.iter().any(|pattern| pattern.matches(names))
    }

    fn holds_in(&self, namespace: Option<&str>) -> bool {
        let Some(namespace) = namespace else {
            return matches!(self.namespaces, Namespaces::All);
        };
        let included = match &self.namespaces {
            Namespaces::All => true,
            Namespaces::Only(patterns) => patterns.iter().any(|p| p.matches(namespace)),
        };
        included && !self.exclude_namespaces.iter().any(|pattern| pattern.matches(namespace))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::source;

    fn set(policies: &[(&str, &str)]) -> PolicySet {
        let text = policies.iter().map(|(name, lines)| {
            format!(
                "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\n\
                 metadata: {{name: {name}}}\nspec:\n  {lines}\n  \
                 authorities: [{{name: a, unsigned: {{reason: test}}}}]\n---\n"
            )
        });
        source::parse("p.yaml", &text.collect::<String>(), Timestamp::UNIX_EPOCH).unwrap()
    }

    fn select(
        set: &PolicySet,
        image: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<String>, Refusal> {
        let selected = set.select(&image.parse().unwrap(), namespace)?;
        Ok(selected.policies().iter().map(|policy| policy.name.clone()).collect())
    }

    #[track_caller]
    fn selects(set: &PolicySet, image: &str, namespace: Option<&str>, names: &[&str]) {
        assert_eq!(select(set, image, namespace).unwrap(), names);
    }

    #[track_caller]
    fn refuses(set: &PolicySet, image: &str, namespace: Option<&str>, code: Code, message: &str) {
        assert_eq!(select(set, image, namespace), Err(Refusal::new(code, message)));
    }

    #[test]
    fn every_policy_that_matches_is_selected_in_the_order_of_names() {
        let set = set(&[
            ("z", "match: {images: ['**']}"),
            ("a", "match: {images: ['a.io/x', 'a.io/**'], excludeImages: ['a.io/dev/**']}"),
            ("m", "match: {images: ['a.io/*'], namespaces: [shop, 'shop-*']}"),
            ("b", "match: {images: ['a.io/*'], excludeNamespaces: ['kube-*']}"),
        ]);
        selects(&set, "a.io/x", Some("shop"), &["a", "b", "m", "z"]);
        selects(&set, "a.io/x", Some("shop-1"), &["a", "b", "m", "z"]);
        selects(&set, "a.io/x", Some("shops"), &["a", "b", "z"]);
        selects(&set, "a.io/x", Some("kube-system"), &["a", "z"]);
        selects(&set, "a.io/dev/x", Some("shop"), &["z"]);
        selects(&set, "nginx", Some("shop"), &["z"]);
    }

    #[test]
    fn a_caller_without_a_namespace_matches_policies_for_all_of_them_only() {
        let set = set(&[
            ("all", "match: {images: ['a.io/*']}"),
            ("any", "match: {images: ['a.io/*', 'b.io/*'], namespaces: ['*']}"),
            ("some", "match: {images: ['a.io/*'], excludeNamespaces: ['*']}"),
        ]);
        selects(&set, "a.io/x", None, &["all", "some"]);
        selects(&set, "a.io/x", Some(""), &["all", "any"]);
        refuses(
            &set,
            "b.io/x:v1",
            None,
            Code::NoPolicyMatches,
            "b.io/x:v1: no policy matches this image in a call that names no namespace; \
             policy \"any\" covers it in other namespaces only",
        );
    }

    #[test]
    fn an_image_that_no_policy_matches_is_refused() {
        let set = set(&[("p", "match: {images: ['a.io/**'], namespaces: [shop]}")]);
        refuses(
            &set,
            "a.io/x",
            Some("kitchen"),
            Code::NoPolicyMatches,
            "a.io/x:latest: no policy matches this image in namespace \"kitchen\"; \
             policy \"p\" covers it in other namespaces only",
        );
        refuses(
            &set,
            "nginx",
            Some("shop"),
            Code::NoPolicyMatches,
            "docker.io/library/nginx:latest: no policy matches this image in namespace \"shop\"; \
             an ImagePolicy whose spec.match.images covers it is needed",
        );
    }

    #[test]
    fn another_spelling_of_a_registry_is_no_way_round_its_policy() {
        let set = set(&[
            ("all", "match: {images: ['**'], excludeImages: ['r.io/dev/*']}"),
            ("loud", "match: {images: ['R.IO:443/loud/*']}"),
            ("port", "match: {images: ['r.io:5000/**']}"),
            ("some", "match: {images: ['*.r.io/**']}"),
            ("strict", "match: {images: ['r.io/**']}"),
        ]);
        for host in ["r.io", "R.io", "r.IO:443"] {
            selects(&set, &format!("{host}/x"), None, &["all", "strict"]);
            selects(&set, &format!("{host}/dev/x"), None, &["strict"]);
            selects(&set, &format!("{host}/loud/x"), None, &["all", "loud", "strict"]);
        }
        selects(&set, "a.R.io:443/x", None, &["all", "some"]);
        selects(&set, "R.io:5000/x", None, &["all", "port"]);
        selects(&set, "r.io:1443/x", None, &["all"]);
    }

    #[test]
    fn docker_hub_is_governed_by_each_of_its_names() {
        let set = set(&[
            ("all", "match: {images: ['**']}"),
            ("hub", "match: {images: ['docker.io/library/*']}"),
            ("real", "match: {images: ['registry-1.docker.io/**']}"),
        ]);
        for host in ["docker.io", "index.docker.io:443", "registry-1.docker.io"] {
            selects(&set, &format!("{host}/library/nginx"), None, &["all", "hub", "real"]);
        }
    }

    #[test]
    fn a_hostile_namespace_is_told_in_short() {
        let set = set(&[("p", "match: {images: ['a.io/**'], namespaces: [shop]}")]);
        let refusal = select(&set, "a.io/x", Some(&"\u{202e}".repeat(1 << 20))).unwrap_err();
        assert!(refusal.message.len() < 2000, "{} bytes", refusal.message.len());
        assert!(refusal.message.is_ascii() || refusal.message.contains('…'));
    }

    #[test]
    fn one_policy_that_wants_a_digest_is_enough() {
        let set = set(&[
            ("a", "match: {images: ['a.io/**']}"),
            ("b", "reference: Digest\n  match: {images: ['a.io/**']}"),
        ]);
        let digest = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";
        selects(&set, &format!("a.io/x:v1@{digest}"), None, &["a", "b"]);
        for (image, shown) in [("a.io/x:v1", "a.io/x:v1"), ("a.io/x", "a.io/x:latest")] {
            let message = format!(
                "{shown}: policy \"b\" accepts this image by digest only; \
                 name it in the pod as a.io/x@sha256:..."
            );
            refuses(&set, image, None, Code::DigestRequired, &message);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_index_leaves_out_no_policy_that_matches(
            patterns in prop::collection::vec("(\\*\\*|r\\.io|\\*\\.io)(/([ab]|\\*|a\\*|\\*\\*)){1,3}", 1..8),
            image in "r\\.io(/[ab]{1,2}){1,4}",
        ) {
            let named: Vec<_> = patterns
                .iter()
                .enumerate()
                .map(|(n, pattern)| (format!("p{n}"), format!("match: {{images: ['{pattern}']}}")))
                .collect();
            let named: Vec<_> = named.iter().map(|(n, l)| (n.as_str(), l.as_str())).collect();
            let (set, repository) = (set(&named), image.parse::<Repository>().unwrap());
            let all = set.policies.iter().filter(|policy| policy.scope.covers(&Names::from(&repository)));
            let all: Vec<_> = all.map(|policy| policy.name.clone()).collect();
            prop_assert_eq!(select(&set, &image, None).unwrap_or_default(), all);
        }

        /// Adding a policy never weakens another one: whatever is added, what was selected still
        /// is, and what was refused for want of a digest still is.
        #[test]
        fn adding_a_policy_takes_nothing_away(
            patterns in prop::collection::vec(("(a|b|\\*)", "(a|b|\\*)", any::<bool>()), 1..5),
            added in ("(a|b|\\*)", "(a|b|\\*)", any::<bool>()),
            image in "[ab]",
            namespace in prop::option::of("[ab]"),
        ) {
            let lines = |(image, namespace, strict): &(String, String, bool)| {
                let rule = if *strict { "Digest" } else { "Any" };
                format!(
                    "reference: {rule}\n  \
                     match: {{images: ['r.io/{image}'], namespaces: ['{namespace}']}}"
                )
            };
            let named: Vec<_> = patterns
                .iter()
                .enumerate()
                .map(|(index, pattern)| (format!("p{index}"), lines(pattern)))
                .collect();
            let mut policies: Vec<_> = named.iter().map(|(n, l)| (n.as_str(), l.as_str())).collect();
            let small = set(&policies);
            let before = select(&small, &format!("r.io/{image}"), namespace.as_deref());
            let added = lines(&added);
            policies.push(("added", &added));
            let after = select(&set(&policies), &format!("r.io/{image}"), namespace.as_deref());
            match (before, after) {
                (Ok(before), Ok(after)) => {
                    prop_assert!(before.iter().all(|name| after.contains(name)));
                }
                (Ok(_), Err(refusal)) => prop_assert_eq!(refusal.code, Code::DigestRequired),
                (Err(refusal), Ok(after)) => {
                    prop_assert_eq!(refusal.code, Code::NoPolicyMatches);
                    prop_assert_eq!(after, ["added"]);
                }
                (Err(_), Err(_)) => {}
            }
        }
    }
}
