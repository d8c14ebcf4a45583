//! What a judgement found, for the answer, the audit record and `explain` alike.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    audit::{Event, Outcome, Pod, PolicySetId, Record, RequestedImage},
    decide::{Grounds, Permit, PolicyReport},
    decode::{self, Wanted},
    evidence::Evidence,
    image::{Digest, ImageRef, PinnedImage, Version},
    named::ImageId,
    policy::PolicySet,
    refusal::{Code, Refusal},
    resolve::{Fetched, Resolved},
};

/// A decision and what it rests on.
#[derive(Debug)]
pub struct Judgement {
    /// Leave to pull or start, or why not.
    pub decision: Result<Permit, Refusal>,
    /// As far as the judgement came.
    pub findings: Findings,
}

/// What was found on the way to a decision.
#[derive(Debug, Default)]
pub struct Findings {
    /// The set that was in force.
    pub policy_set: Option<PolicySetId>,
    /// The image, once it was resolved.
    pub image: Option<PinnedImage>,
    /// The runtime's ID of the image, once it was known.
    pub id: Option<ImageId>,
    /// What each matching policy found.
    pub policies: Vec<PolicyReport>,
    /// What proved it, to be kept on this node when the runtime has the image.
    pub gathered: Option<Arc<Gathered>>,
}

/// What a registry sent about an image.
#[derive(Debug)]
pub struct Gathered {
    /// The images that this manifest was known to lead to, where what is on this node was enough.
    /// None: the registry was asked for evidence.
    pub known_as: Vec<ImageId>,
    /// The manifest or index that was judged.
    pub manifest: Fetched,
    /// What it was resolved to.
    pub image: Resolved,
    /// What is claimed about it.
    pub evidence: Evidence,
}

impl Findings {
    /// Nothing yet, under these policies.
    pub fn under(policies: &PolicySet) -> Self {
        Self { policy_set: Some(policies.into()), ..Self::default() }
    }
}

impl Judgement {
    /// A refusal before anything was found.
    pub fn refused(refusal: Refusal) -> Self {
        Self { decision: Err(refusal), findings: Findings::default() }
    }

    /// A judgement that took too long is a registry that did.
    pub fn late(wanted: &Wanted, limit: Duration) -> Self {
        let message = format!("the registry's answers took more than {} s in all", limit.as_secs());
        Self::refused(Refusal::new(Code::RegistryUnreachable, message).about(&wanted.image))
    }

    /// Whether it permits, and for no other reason than that every policy is satisfied.
    pub fn is_proof(&self) -> bool {
        self.decision.as_ref().is_ok_and(|permit| *permit.grounds() == Grounds::Satisfied)
    }

    /// Who proved the image, each identity hashed. Nobody, where it is let through without proof;
    /// nor who signed but a child of it, which anybody can put into an index of his own.
    pub fn proven_by(&self) -> BTreeSet<Digest> {
        let proof = self.is_proof().then_some(&self.findings.policies).into_iter().flatten();
        let reports = proof.flat_map(|policy| &policy.authorities);
        let whole = reports.filter(|authority| authority.child.is_none());
        let identities = whole.filter_map(|authority| authority.identity.as_deref());
        identities.map(|identity| Digest::of(identity.as_bytes())).collect()
    }

    /// The audit record of a call. A call that is let through by broken glass has an event of its
    /// own, whatever the call was.
    pub fn record(&self, event: Event, asked: Asked<'_>, duration: Duration) -> Record {
        let done = match event {
            Event::Pull => "pulled",
            _ => "started",
        };
        let record = match &self.decision {
            Ok(permit) => {
                let image = permit.image();
                let (event, decision, reason, message) = match permit.grounds() {
                    Grounds::Satisfied => {
                        (event, Outcome::Allow, None, format!("{image} may be {done}"))
                    }
                    Grounds::BreakGlass(policies) => {
                        let message = format!(
                            "{image} may be {done} since the pod broke the glass of {}",
                            quoted(policies)
                        );
                        tracing::warn!("{message}");
                        (Event::BreakGlass, Outcome::Warn, None, message)
                    }
                    Grounds::Warned(why) => {
                        let message =
                            format!("{image} may be {done}, and would be refused: {}", why.message);
                        (event, Outcome::Warn, Some(why.code), message)
                    }
                };
                Record { decision: Some(decision), reason, ..Record::new(event, message) }
            }
            Err(refusal) => Record {
                decision: Some(Outcome::Deny),
                reason: Some(refusal.code),
                ..Record::new(event, &refusal.message)
            },
        };
        let Findings { policy_set, image, id, policies, .. } = &self.findings;
        Record {
            image: asked.requested.map(|requested| {
                requested_image(requested, asked.name, image.as_ref(), id.as_ref())
            }),
            pod: asked.pod.map(|pod| Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
            policies: policies.clone(),
            policy_set: policy_set.clone(),
            duration_us: Some(duration.as_micros().try_into().unwrap_or(u64::MAX)),
            ..record
        }
    }
}

/// What a call asked for, as its record repeats it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The image as the caller wrote it. None: the call was too broken to name one.
    pub requested: Option<&'a str>,
    /// The name by which it was judged.
    pub name: Option<&'a ImageRef>,
    /// The pod that the image is for, as the caller says.
    pub pod: Option<&'a decode::Pod>,
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(", ")
}

fn requested_image(
    requested: &str,
    name: Option<&ImageRef>,
    pinned: Option<&PinnedImage>,
    id: Option<&ImageId>,
) -> RequestedImage {
    let (tag, digest) = match name.map(|name| &name.version) {
        Some(Version::Tag(tag)) => (Some(tag.to_string()), None),
        Some(Version::Digest(digest)) => (None, Some(*digest)),
        None => (None, None),
    };
    RequestedImage {
        requested: requested.to_owned(),
        repository: name.map(|name| name.repository.to_string()),
        tag,
        digest: pinned.map(|pinned| pinned.digest).or(digest),
        id: id.copied(),
    }
}
