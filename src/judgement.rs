//! What a judgement found, for the answer, the audit record and `explain` alike.

use std::time::Duration;

use crate::{
    audit::{Event, Outcome, Pod, PolicySetId, Record, RequestedImage},
    decide::{Permit, PolicyReport},
    decode::{PullRequest, Wanted},
    image::{PinnedImage, Version},
    policy::PolicySet,
    refusal::{Code, Refusal},
};

/// A decision and what it rests on.
#[derive(Debug)]
pub struct Judgement {
    /// Leave to pull, or why not.
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
    /// What each matching policy found.
    pub policies: Vec<PolicyReport>,
}

impl Findings {
    /// Nothing yet, under these policies.
    pub fn under(policies: &PolicySet) -> Self {
        let policy_set = PolicySetId { revision: None, digest: policies.digest() };
        Self { policy_set: Some(policy_set), ..Self::default() }
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

    /// The audit record. Without a request it was too broken to name an image.
    pub fn record(&self, request: Option<&PullRequest>, duration: Duration) -> Record {
        let mut record = match &self.decision {
            Ok(permit) => Record {
                decision: Some(Outcome::Allow),
                ..Record::new(Event::Pull, format!("{} may be pulled", permit.image()))
            },
            Err(refusal) => Record {
                decision: Some(Outcome::Deny),
                reason: Some(refusal.code),
                ..Record::new(Event::Pull, &refusal.message)
            },
        };
        record.image = request.map(|request| requested(request, self.findings.image.as_ref()));
        record.pod = request.and_then(|request| request.pod.as_ref()).map(|pod| Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        });
        record.policies = self.findings.policies.clone();
        record.policy_set = self.findings.policy_set.clone();
        record.duration_us = Some(duration.as_micros().try_into().unwrap_or(u64::MAX));
        record
    }
}

fn requested(request: &PullRequest, pinned: Option<&PinnedImage>) -> RequestedImage {
    let image = &request.wanted.image;
    let (tag, digest) = match &image.version {
        Version::Tag(tag) => (Some(tag.to_string()), None),
        Version::Digest(digest) => (None, Some(*digest)),
    };
    RequestedImage {
        requested: request.requested.clone(),
        repository: Some(image.repository.to_string()),
        tag,
        digest: pinned.map(|pinned| pinned.digest).or(digest),
    }
}
