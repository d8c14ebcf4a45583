//! Stage 7: proofs against policies. Pure and total.
//!
//! [`Permit`] has one constructor, private to this module: a pull that goes on was permitted by
//! [`decide`], from one [`Verified`] per authority that counts.

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    evidence::Evidence,
    image::{Digest, PinnedImage},
    named::ImageId,
    policy::{Caller, ImagePolicy, Mode, Revoked, Selected},
    refusal::{Code, Refusal},
    resolve::Resolved,
    verify::{self, Missed, Verified},
};

/// Leave to pull or start exactly these bytes.
#[derive(Clone, Debug)]
pub struct Permit {
    image: Arc<PinnedImage>,
    id: Option<ImageId>,
    grounds: Arc<Grounds>,
}

impl Permit {
    /// The image that may be pulled or started.
    pub fn image(&self) -> &PinnedImage {
        &self.image
    }

    /// The runtime's ID of what may be started, where it is known.
    pub fn id(&self) -> Option<ImageId> {
        self.id
    }

    /// Why it may.
    pub fn grounds(&self) -> &Grounds {
        &self.grounds
    }
}

/// Why an image is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// Every policy is satisfied.
    Satisfied,
    /// The pod broke the glass of the policies with these names, which refuse the image.
    BreakGlass(Vec<String>),
    /// Only policies in `mode: Warn` refuse the image, the first of them for this reason.
    Warned(Refusal),
}

/// What one policy found; goes into the audit record and into `explain`.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyReport {
    /// The policy's name.
    pub name: String,
    /// Whether it is satisfied.
    pub outcome: PolicyOutcome,
    /// Distinct identities that it wants.
    pub at_least: usize,
    /// Each authority, in the policy's order.
    pub authorities: Vec<AuthorityReport>,
}

/// Whether a policy is satisfied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyOutcome {
    /// Enough distinct identities accept the image.
    Satisfied,
    /// Not enough do.
    Refused,
    /// Not enough do, and the policy only warns.
    Warned,
    /// Not enough do, and the pod broke the policy's glass.
    BreakGlass,
}

/// What one authority found.
#[derive(Clone, Debug, Serialize)]
pub struct AuthorityReport {
    /// The authority's name within its policy.
    pub name: String,
    /// `accepted`, or the code of what it missed.
    pub outcome: AuthorityOutcome,
    /// Who vouches; of a missed authority nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The digest vouched for, where it is the child for this platform and not the image's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child: Option<Digest>,
    /// What was found instead, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// `accepted`, or the code of what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityOutcome {
    /// The authority accepts the image.
    Accepted,
    /// It does not.
    Missed(Code),
}

impl Serialize for AuthorityOutcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            AuthorityOutcome::Accepted => "accepted",
            AuthorityOutcome::Missed(code) => code.as_str(),
        })
    }
}

/// Holds every matching policy against the image. All must be satisfied, or say themselves that
/// they only warn or that this caller may break them. What is revoked is refused whatever they say.
pub fn decide(
    selected: &Selected,
    image: &Resolved,
    evidence: &Evidence,
    caller: &Caller,
    now: Timestamp,
) -> (Result<Permit, Refusal>, Vec<PolicyReport>) {
    if let Some(refusal) = revoked(selected.revoked(), image) {
        return (Err(refusal.about(&image.image)), Vec::new());
    }
    let (mut refused, mut warned): (Option<Refusal>, Option<Refusal>) = (None, None);
    let (mut broken, mut reports) = (Vec::new(), Vec::new());
    for policy in selected.policies() {
        let findings: Vec<_> = policy
            .authorities
            .iter()
            .map(|one| verify::authority(one, image, evidence, selected.revoked(), now))
            .collect();
        let accepted =
            findings.iter().flatten().map(Verified::identity).collect::<BTreeSet<_>>().len();
        let shortfall = match accepted >= policy.at_least.get() {
            true => selected.digest_required(policy),
            false => Some(refuse(policy, accepted, &findings, evidence).about(&image.image)),
        };
        let glass = policy.break_glass.as_ref().filter(|glass| glass.is_broken(caller, now));
        let outcome = match (shortfall, glass, policy.mode) {
            (None, _, _) => PolicyOutcome::Satisfied,
            (Some(_), Some(_), _) => {
                broken.push(policy.name.clone());
                PolicyOutcome::BreakGlass
            }
            (Some(why), None, Mode::Warn) => {
                warned.get_or_insert(why);
                PolicyOutcome::Warned
            }
            (Some(why), None, Mode::Enforce) => {
                refused.get_or_insert(why);
                PolicyOutcome::Refused
            }
        };
        reports.push(report(policy, outcome, findings, image));
    }
    // `Selected` is never empty, so at least one policy has spoken here.
    let grounds = match (refused, broken.is_empty(), warned) {
        (Some(refusal), _, _) => return (Err(refusal), reports),
        (None, false, _) => Grounds::BreakGlass(broken),
        (None, true, Some(why)) => Grounds::Warned(why),
        (None, true, None) => Grounds::Satisfied,
    };
    let (image, id) = (Arc::new(image.image.clone()), image.id);
    (Ok(Permit { image, id, grounds: Arc::new(grounds) }), reports)
}

/// The image's own digest, its child's or its configuration's: each names the bytes that would run.
fn revoked(revoked: &Revoked, image: &Resolved) -> Option<Refusal> {
    let digests = image.subjects().chain(image.id.map(ImageId::config));
    digests.into_iter().find_map(|digest| {
        let by = revoked.digests.get(&digest)?;
        Some(Refusal::new(Code::Revoked, format!("{digest} is revoked by {by:?}")))
    })
}

/// The sentence of a refusal. Where a registry left a question open, the image was not judged,
/// and the open question is the reason.
fn refuse(
    policy: &ImagePolicy,
    accepted: usize,
    findings: &[Result<Verified, Missed>],
    evidence: &Evidence,
) -> Refusal {
    let missed = || findings.iter().filter_map(|finding| finding.as_ref().err());
    let (code, gap) = match evidence.gaps.first() {
        Some(gap) => (gap.code, Some(&gap.message)),
        None if accepted > 0 => (Code::AuthorityNotSatisfied, None),
        None => {
            let first = missed().next().map_or(Code::AuthorityNotSatisfied, |missed| missed.code);
            let same = missed().all(|missed| missed.code == first);
            (if same { first } else { Code::AuthorityNotSatisfied }, None)
        }
    };
    let mut message = format!(
        "policy {:?} requires {} of {} {}",
        policy.name,
        policy.at_least,
        policy.authorities.len(),
        if policy.authorities.len() == 1 { "authority" } else { "authorities" },
    );
    if accepted > 0 {
        let _ = write!(message, ", {accepted} accepted");
    }
    let mut separator = ": ";
    for (authority, finding) in policy.authorities.iter().zip(findings) {
        if let Err(missed) = finding {
            let _ = write!(message, "{separator}{:?}: {}", authority.name, missed.why);
            separator = "; ";
        }
    }
    if let Some(gap) = gap {
        let _ = write!(message, "; not every signature could be looked up: {gap}");
    }
    Refusal::new(code, message)
}

fn report(
    policy: &ImagePolicy,
    outcome: PolicyOutcome,
    findings: Vec<Result<Verified, Missed>>,
    image: &Resolved,
) -> PolicyReport {
    let authorities = policy.authorities.iter().zip(findings).map(|(authority, finding)| {
        let (outcome, identity, child, why) = match finding {
            Ok(verified) => (
                AuthorityOutcome::Accepted,
                Some(verified.identity().to_string()),
                Some(verified.subject()).filter(|subject| *subject != image.image.digest),
                None,
            ),
            Err(missed) => (AuthorityOutcome::Missed(missed.code), None, None, Some(missed.why)),
        };
        AuthorityReport { name: authority.name.clone(), outcome, identity, child, why }
    });
    PolicyReport {
        name: policy.name.clone(),
        outcome,
        at_least: policy.at_least.get(),
        authorities: authorities.collect(),
    }
}
