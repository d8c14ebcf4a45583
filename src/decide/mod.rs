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
    policy::{ImagePolicy, Selected},
    refusal::{Code, Refusal},
    resolve::Resolved,
    verify::{self, Missed, Verified},
};

/// Leave to pull exactly these bytes.
#[derive(Clone, Debug)]
pub struct Permit {
    image: Arc<PinnedImage>,
}

impl Permit {
    /// The image that may be pulled.
    pub fn image(&self) -> &PinnedImage {
        &self.image
    }
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

/// Holds every matching policy against the image. All must be satisfied.
pub fn decide(
    selected: &Selected,
    image: &Resolved,
    evidence: &Evidence,
    now: Timestamp,
) -> (Result<Permit, Refusal>, Vec<PolicyReport>) {
    let mut refusal: Option<Refusal> = None;
    let mut reports = Vec::new();
    for policy in selected.policies() {
        let findings: Vec<_> = policy
            .authorities
            .iter()
            .map(|authority| verify::authority(authority, image, evidence, now))
            .collect();
        let accepted =
            findings.iter().flatten().map(Verified::identity).collect::<BTreeSet<_>>().len();
        let outcome = match accepted >= policy.at_least.get() {
            true => PolicyOutcome::Satisfied,
            false => PolicyOutcome::Refused,
        };
        if outcome == PolicyOutcome::Refused && refusal.is_none() {
            refusal = Some(refuse(policy, accepted, &findings, evidence));
        }
        reports.push(report(policy, outcome, findings, image));
    }
    // `Selected` is never empty, so at least one policy was satisfied in full here.
    let decision = match refusal {
        None => Ok(Permit { image: Arc::new(image.image.clone()) }),
        Some(refusal) => Err(refusal.about(&image.image)),
    };
    (decision, reports)
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
