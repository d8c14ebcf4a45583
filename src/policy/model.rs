//! Policies as the judgement sees them: complete, consistent, parsed.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    image::Digest,
    refusal::Refusal,
    verify::{KeyId, PublicKey},
};

use super::{
    pattern::{NamePattern, RepositoryPattern},
    select::Index,
};

/// All policies in force, swapped as a whole.
#[derive(Debug)]
pub struct PolicySet {
    /// Never empty: a set without a policy does not load.
    pub(super) policies: Vec<Arc<ImagePolicy>>,
    /// Finds those of `policies` that could match.
    pub(super) index: Index,
    /// Names exactly this set: the digest over the texts it was read from.
    pub(super) digest: Digest,
    /// What no policy can accept.
    pub(super) revoked: Arc<Revoked>,
    /// When the set was read.
    pub(super) loaded: Timestamp,
    /// The source's own count of its changes, where it has one.
    pub(super) revision: Option<u64>,
    /// What is said of an image that no policy matches. None: just that.
    pub(super) otherwise: Option<Refusal>,
}

impl PolicySet {
    /// A set of one policy: every image, by a signature of this key. For a judgement without
    /// policies.
    pub fn of_key(key: PublicKey, now: Timestamp) -> Self {
        let digest = Digest::of(format!("key {}", key.id()).as_bytes());
        let key = PublicKeyAuthority {
            key,
            not_before: None,
            not_after: None,
            annotations: BTreeMap::new(),
        };
        let policy = ImagePolicy {
            name: "key".to_owned(),
            mode: Mode::Enforce,
            scope: Scope::everything(),
            reference: ReferenceRule::Any,
            at_least: NonZeroUsize::MIN,
            authorities: vec![Authority {
                name: "key".to_owned(),
                kind: AuthorityKind::PublicKey(key),
            }],
            break_glass: None,
        };
        Self::new(vec![Arc::new(policy)], Revoked::default(), digest, now)
    }

    /// A set of these policies, in the order of their names.
    pub(super) fn new(
        policies: Vec<Arc<ImagePolicy>>,
        revoked: Revoked,
        digest: Digest,
        loaded: Timestamp,
    ) -> Self {
        Self {
            index: Index::new(&policies),
            policies,
            digest,
            revoked: Arc::new(revoked),
            loaded,
            revision: None,
            otherwise: None,
        }
    }

    /// The same set, of this revision of its source.
    pub(super) fn with_revision(self, revision: Option<u64>) -> Self {
        Self { revision, ..self }
    }

    /// Names of pod annotations by which some policy can be broken. All others are nobody's
    /// business.
    pub fn switches(&self) -> impl Iterator<Item = &str> {
        let glass = self.policies.iter().filter_map(|policy| policy.break_glass.as_ref());
        glass.map(|glass| &*glass.annotation)
    }

    /// What no policy can accept.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// The policies, in the order of their names.
    pub fn policies(&self) -> &[Arc<ImagePolicy>] {
        &self.policies
    }

    /// The digest over the texts that the set was read from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// When the set was read.
    pub fn loaded(&self) -> Timestamp {
        self.loaded
    }

    /// The source's own count of its changes, where it has one.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }
}

/// One `kind: ImagePolicy`.
#[derive(Debug)]
pub struct ImagePolicy {
    /// `metadata.name`, unique in the set.
    pub name: String,
    /// Whether it refuses, or only says what it would refuse.
    pub mode: Mode,
    /// Which images and namespaces it governs.
    pub(super) scope: Scope,
    /// Whether the pod may name the image by tag.
    pub reference: ReferenceRule,
    /// How many distinct authorities must accept; never more than there are.
    pub at_least: NonZeroUsize,
    /// Who may vouch; never empty.
    pub authorities: Vec<Authority>,
    /// How a pod can be let past this policy in an emergency.
    pub break_glass: Option<BreakGlass>,
}

/// `spec.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What does not satisfy the policy is refused.
    Enforce,
    /// It is let through, and what would have been refused is on record.
    Warn,
}

/// `spec.breakGlass`.
#[derive(Debug)]
pub struct BreakGlass {
    /// The pod annotation whose value must be `true`.
    pub annotation: String,
    /// The namespaces that may; never empty.
    pub(super) namespaces: Vec<NamePattern>,
    /// Not from this moment on. Absent: always.
    pub not_after: Option<Timestamp>,
}

impl BreakGlass {
    /// Whether this caller breaks the glass, now.
    pub fn is_broken(&self, caller: &Caller, now: Timestamp) -> bool {
        self.is_granted(now)
            && caller.switches.contains(&self.annotation)
            && caller
                .namespace
                .as_ref()
                .is_some_and(|namespace| self.namespaces.iter().any(|p| p.matches(namespace)))
    }

    /// Whether anybody could break it, now.
    pub fn is_granted(&self, now: Timestamp) -> bool {
        self.not_after.is_none_or(|until| now < until)
    }
}

/// The pod that an image is for, as far as policies look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Its namespace. None: only policies for all namespaces apply.
    pub namespace: Option<String>,
    /// Its annotations whose value is `true`; of these, those that [`PolicySet::switches`] names.
    pub switches: BTreeSet<String>,
}

impl Caller {
    /// A caller in this namespace, if in any, without annotations.
    pub fn of(namespace: Option<String>) -> Self {
        Self { namespace, switches: BTreeSet::new() }
    }

    /// The caller as these policies see it: two that differ in other annotations are judged alike.
    pub fn seen_by(&self, policies: &PolicySet) -> Self {
        let switches = policies.switches().filter(|name| self.switches.contains(*name));
        Self { switches: switches.map(str::to_owned).collect(), ..Self::of(self.namespace.clone()) }
    }
}

/// All `kind: Revocation` of a set: what no policy can accept, with the name of the object that
/// says so.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// Digests of manifests, indexes or configurations.
    pub digests: BTreeMap<Digest, String>,
    /// Keys.
    pub keys: BTreeMap<KeyId, String>,
}

/// `spec.match`.
#[derive(Debug)]
pub(super) struct Scope {
    pub images: Vec<RepositoryPattern>,
    pub exclude_images: Vec<RepositoryPattern>,
    pub namespaces: Namespaces,
    pub exclude_namespaces: Vec<NamePattern>,
}

impl Scope {
    /// Every image in every namespace.
    fn everything() -> Self {
        let every = "**".parse().expect("a constant, which a test of patterns reads as well");
        Self {
            images: vec![every],
            exclude_images: Vec::new(),
            namespaces: Namespaces::All,
            exclude_namespaces: Vec::new(),
        }
    }
}

/// `spec.match.namespaces`: absent means all, and an empty list does not load.
#[derive(Debug)]
pub(super) enum Namespaces {
    All,
    Only(Vec<NamePattern>),
}

/// `spec.reference`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceRule {
    /// By tag or by digest.
    Any,
    /// By digest only.
    Digest,
}

/// One entry of `spec.authorities`.
#[derive(Debug)]
pub struct Authority {
    /// Unique within the policy.
    pub name: String,
    /// How it vouches.
    pub kind: AuthorityKind,
}

/// How an authority vouches for an image.
#[derive(Debug)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "most authorities are keys, and all are few")]
pub enum AuthorityKind {
    /// By a signature of this key.
    PublicKey(PublicKeyAuthority),
    /// By naming the digest in the policy; never empty.
    Digests(BTreeSet<Digest>),
    /// Not at all: the policy lets the image through and says why.
    Unsigned {
        /// The reason, which every audit record repeats.
        reason: String,
    },
}

/// A key, when it counts, and what must be signed beside the digest.
#[derive(Debug)]
pub struct PublicKeyAuthority {
    /// The key.
    pub key: PublicKey,
    /// Signatures count from this moment on. Absent: always.
    pub not_before: Option<Timestamp>,
    /// Signatures no longer count from this moment on. Absent: always.
    pub not_after: Option<Timestamp>,
    /// Signed annotations that must be present with exactly these values.
    pub annotations: BTreeMap<String, String>,
}
