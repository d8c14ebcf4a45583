//! Stage 7: proofs against policies. Pure and total.
//!
//! [`Permit`] has one constructor, private to this module: a pull that goes on was permitted by
//! [`decide`], from one [`Verified`] per authority that counts.

mod report;

use report::report;
pub use report::{AuthorityOutcome, AuthorityReport, PolicyOutcome, PolicyReport};

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use jiff::Timestamp;

use crate::{
    evidence::Evidence,
    image::PinnedImage,
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
        let Asked { findings, shortfall } = ask(policy, selected, image, evidence, now);
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

/// What a policy's glass counts for where the question names no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glass {
    /// Somebody may break it: what must not be hidden from whoever does.
    Granted,
    /// Nobody has: what is accepted on its own account.
    Whole,
}

/// Whether some caller or other may have the image, of which `selected` are the policies in any
/// namespace. It is an answer to a question that names no pod: whoever then uses the image is held
/// against the policies for its own namespace by [`decide`].
pub fn acceptable_somewhere(
    selected: &Selected,
    image: &Resolved,
    evidence: &Evidence,
    glass: Glass,
    now: Timestamp,
) -> bool {
    if revoked(selected.revoked(), image).is_some() {
        return false;
    }
    let mut somewhere = false;
    for policy in selected.policies() {
        let granted = policy.break_glass.as_ref().filter(|_| glass == Glass::Granted);
        let lets_through = policy.mode == Mode::Warn
            || granted.is_some_and(|glass| glass.is_granted(now))
            || ask(policy, selected, image, evidence, now).shortfall.is_none();
        if !lets_through && policy.holds_for_everybody() {
            return false;
        }
        somewhere |= lets_through;
    }
    somewhere
}

/// What a policy's authorities say.
struct Asked {
    findings: Vec<Result<Verified, Missed>>,
    /// Why the policy is not satisfied. None: it is.
    shortfall: Option<Refusal>,
}

fn ask(
    policy: &ImagePolicy,
    selected: &Selected,
    image: &Resolved,
    evidence: &Evidence,
    now: Timestamp,
) -> Asked {
    let authorities = policy.authorities.iter();
    let findings: Vec<_> = authorities
        .map(|one| verify::authority(one, image, evidence, selected.revoked(), now))
        .collect();
    let identities = findings.iter().flatten().map(Verified::identity);
    let accepted = identities.collect::<BTreeSet<_>>().len();
    let shortfall = match accepted >= policy.at_least.get() {
        true => selected.digest_required(policy),
        false => Some(refuse(policy, accepted, &findings, evidence).about(&image.image)),
    };
    Asked { findings, shortfall }
}

/// The image's own digest, its child's or its configuration's: each names the bytes that would run.
pub(crate) fn revoked(revoked: &Revoked, image: &Resolved) -> Option<Refusal> {
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

#[cfg(test)]
mod tests;
