//! Policies as the judgement sees them: complete, consistent, parsed.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::Arc,
};

use jiff::Timestamp;

use crate::{image::Digest, verify::PublicKey};

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
    /// When the set was read.
    pub(super) loaded: Timestamp,
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
            scope: Scope::everything(),
            reference: ReferenceRule::Any,
            at_least: NonZeroUsize::MIN,
            authorities: vec![Authority {
                name: "key".to_owned(),
                kind: AuthorityKind::PublicKey(key),
            }],
        };
        Self::new(vec![Arc::new(policy)], digest, now)
    }

    /// A set of these policies, in the order of their names.
    pub(super) fn new(policies: Vec<Arc<ImagePolicy>>, digest: Digest, loaded: Timestamp) -> Self {
        Self { index: Index::new(&policies), policies, digest, loaded }
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
}

/// One `kind: ImagePolicy`.
#[derive(Debug)]
pub struct ImagePolicy {
    /// `metadata.name`, unique in the set.
    pub name: String,
    /// Which images and namespaces it governs.
    pub(super) scope: Scope,
    /// Whether the pod may name the image by tag.
    pub reference: ReferenceRule,
    /// How many distinct authorities must accept; never more than there are.
    pub at_least: NonZeroUsize,
    /// Who may vouch; never empty.
    pub authorities: Vec<Authority>,
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
