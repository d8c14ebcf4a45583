//! What an image on this node is worth under the policies in force, for anybody, and whether more
//! evidence could make it worth more.

use jiff::Timestamp;

use crate::{
    decide::{self, Grounds},
    evidence::Known,
    image::{Digest, ImageRef, Repository, Version},
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
};

/// What policies say of a manifest or an index in the runtime.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Appraisal {
    /// Why nobody may have it. None: somebody may, under one of its names at least.
    pub(super) refusal: Option<Refusal>,
    /// Its repositories under which a policy, for whatever namespace, is not satisfied by the
    /// evidence that is here, and might be by more.
    pub(super) lacking: Vec<Repository>,
}

/// Holds what is known of a manifest or an index against the policies for each of its names, in
/// whatever namespace.
pub(super) fn appraise(
    digest: Digest,
    known: &[Known],
    names: &[ImageRef],
    policies: &PolicySet,
    now: Timestamp,
) -> Appraisal {
    let (mut accepted, mut refusal, mut lacking) = (false, None, Vec::new());
    if names.is_empty() {
        let why = "the image has no name on this node, and policies go by names";
        refusal = Some(Refusal::new(Code::NoPolicyMatches, why).about(&digest));
    }
    for name in names {
        let Some(selected) = policies.covering_somewhere(name) else {
            refusal = refusal.or_else(|| policies.select(name, None).err());
            continue;
        };
        // A tag where a policy wants a digest is no lack of evidence.
        let by_digest = ImageRef { version: Version::Digest(digest), ..name.clone() };
        let by_digest = policies.covering_somewhere(&by_digest);
        for known in known {
            let (image, evidence) = (known.resolved(&name.repository), known.evidence());
            accepted |= decide::acceptable_somewhere(&selected, &image, &evidence, now);
            let decide =
                |selected| decide::decide(selected, &image, &evidence, &Caller::default(), now).0;
            if !accepted && refusal.is_none() {
                refusal = decide(&selected).err();
            }
            let lacks = by_digest.as_ref().is_some_and(|selected| match decide(selected) {
                Ok(permit) => *permit.grounds() != Grounds::Satisfied,
                // No signature helps what is revoked.
                Err(refusal) => refusal.code != Code::Revoked,
            });
            if lacks && !lacking.contains(&name.repository) {
                lacking.push(name.repository.clone());
            }
        }
    }
    let unknown = || {
        let why = "the runtime does not show what it would start from this";
        Refusal::new(Code::NotProvenLocally, why).about(&digest)
    };
    let refusal = (!accepted).then(|| refusal.unwrap_or_else(unknown));
    Appraisal { refusal, lacking }
}
