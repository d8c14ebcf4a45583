//! What each policy and authority found, for the audit record and for `explain`.

use serde::Serialize;

use crate::{
    image::Digest,
    policy::ImagePolicy,
    refusal::Code,
    resolve::Resolved,
    verify::{Missed, Verified},
};

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

/// The findings, in words.
pub(super) fn report(
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
