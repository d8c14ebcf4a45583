//! Stage 6: claims become proof. Pure: no I/O, no clock.
//!
//! [`Verified`] has one constructor, private to this module; it is the only thing that `decide`
//! makes a permit from.

mod bundle;
mod finding;
mod key;
pub(crate) mod oid;
mod simple;
#[cfg(any(test, fuzzing))]
#[path = "../../tests/fuzz/properties/verify.rs"]
pub(crate) mod properties;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use bundle::pre_authentication;
use finding::{Finding, Shortfall};
pub(crate) use key::MAX_PEM;
pub use key::{BadSignature, KeyError, KeyId, KeyIdError, PublicKey};

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

use crate::{
    evidence::{Evidence, UntrustedBody, UntrustedClaim},
    image::Digest,
    policy::{Authority, AuthorityKind, PublicKeyAuthority, Revoked},
    refusal::Code,
    resolve::Resolved,
};

/// Proof that one authority accepts one image: made by [`authority`] and by nothing else.
#[derive(Clone, Debug)]
pub struct Verified {
    identity: Identity,
    subject: Digest,
}

impl Verified {
    /// Who vouches.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The digest that is vouched for: the image's, or that of its child for this platform.
    pub fn subject(&self) -> Digest {
        self.subject
    }
}

/// Who vouches for an image. `atLeast` counts these, not signatures and not authorities, so a
/// key that stands under two names counts once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The holder of this key.
    Key(KeyId),
    /// The policy itself, by a list of digests under this authority's name.
    Listed(String),
    /// Nobody, as the policy says in so many words.
    Unsigned {
        /// The authority's name.
        authority: String,
        /// Why the policy does without a signature.
        reason: String,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Key(id) => write!(f, "key {id}"),
            Identity::Listed(_) => f.write_str("listed digest"),
            Identity::Unsigned { reason, .. } => write!(f, "unsigned: {reason}"),
        }
    }
}

/// Why an authority does not accept an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The code that this would have alone.
    pub code: Code,
    /// What was found instead, for people: `no signature by this key (2 signatures found)`.
    pub why: String,
}

impl Missed {
    fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

/// Asks one authority about one image. A revoked key vouches for nothing, whatever it signed.
pub fn authority(
    authority: &Authority,
    image: &Resolved,
    evidence: &Evidence,
    revoked: &Revoked,
    now: Timestamp,
) -> Result<Verified, Missed> {
    match &authority.kind {
        AuthorityKind::PublicKey(wanted) => {
            in_force(wanted, revoked, now)?;
            by_key(wanted, image.subjects(), evidence)
        }
        AuthorityKind::Digests(listed) => image
            .subjects()
            .find(|subject| listed.contains(subject))
            .map(|subject| Verified { identity: Identity::Listed(authority.name.clone()), subject })
            .ok_or_else(|| {
                Missed::new(
                    Code::AuthorityNotSatisfied,
                    format!("the digest is not among the {} listed", listed.len()),
                )
            }),
        AuthorityKind::Unsigned { reason } => Ok(Verified {
            identity: Identity::Unsigned {
                authority: authority.name.clone(),
                reason: reason.clone(),
            },
            subject: image.image.digest,
        }),
    }
}

/// Asks one key about one manifest, whatever a policy says of the key.
pub fn manifest(key: &PublicKey, digest: Digest, evidence: &Evidence) -> Result<Verified, Missed> {
    let wanted = PublicKeyAuthority {
        key: key.clone(),
        not_before: None,
        not_after: None,
        annotations: BTreeMap::new(),
    };
    by_key(&wanted, std::iter::once(digest), evidence)
}

/// Asks for a signature by one key, on any of these digests.
fn by_key(
    wanted: &PublicKeyAuthority,
    subjects: impl Iterator<Item = Digest>,
    evidence: &Evidence,
) -> Result<Verified, Missed> {
    let mut findings = Vec::new();
    for subject in subjects {
        for claim in evidence.claims.iter().filter(|claim| claim.subject == subject) {
            let finding = one_claim(claim, wanted);
            if finding == Finding::Holds {
                return Ok(Verified { identity: Identity::Key(wanted.key.id()), subject });
            }
            findings.push(finding);
        }
    }
    Err(nearest(findings))
}

/// Whether the key counts: not revoked, and now. The window is about today, not about when something was signed:
/// the time in a signature is the signer's word, and whoever has an expired key can backdate it.
pub(crate) fn in_force(
    wanted: &PublicKeyAuthority,
    revoked: &Revoked,
    now: Timestamp,
) -> Result<(), Missed> {
    if let Some(by) = revoked.keys.get(&wanted.key.id()) {
        return Err(Missed::new(Code::Revoked, format!("key revoked by {by:?}")));
    }
    let missed = |why| Err(Missed::new(Code::AuthorityNotSatisfied, why));
    match (wanted.not_before, wanted.not_after) {
        (Some(from), _) if now < from => missed(format!("key not valid before {}", day(from))),
        (_, Some(until)) if now >= until => missed(format!("key expired {}", day(until))),
        _ => Ok(()),
    }
}

/// RFC 3339, or the date alone where that says as much.
pub(crate) fn day(time: Timestamp) -> String {
    let text = time.to_string();
    text.strip_suffix("T00:00:00Z").map_or(text.clone(), str::to_owned)
}

fn one_claim(claim: &UntrustedClaim, wanted: &PublicKeyAuthority) -> Finding {
    let (key, annotations) = (&wanted.key, &wanted.annotations);
    match &claim.body {
        UntrustedBody::SimpleSigning { payload, signature } => {
            simple::check(payload, signature, key, claim.subject, annotations)
        }
        UntrustedBody::Bundle { json } => bundle::check(json, key, claim.subject, annotations),
        UntrustedBody::Unreadable { why } => Finding::Unreadable(why.clone()),
    }
}

/// Says why none of the findings holds: what comes nearest to what is wanted, the first of those
/// that come equally near, then what could not be read.
fn nearest(findings: Vec<Finding>) -> Missed {
    let found = findings.len();
    if found == 0 {
        return Missed::new(Code::SignatureMissing, "no signature found");
    }
    let (mut certificates, mut unreadable) = (0, Vec::new());
    let mut short: Option<Shortfall> = None;
    for finding in findings {
        match finding {
            Finding::Unreadable(why) => unreadable.push(why),
            Finding::ByCertificate => certificates += 1,
            Finding::Short(other)
                if short.as_ref().is_none_or(|nearest| other.rank() > nearest.rank()) =>
            {
                short = Some(other);
            }
            Finding::Short(_) | Finding::NotByKey | Finding::Holds => {}
        }
    }
    let readable = found - unreadable.len();
    let (code, mut why) = match short {
        Some(short) => (short.code(), format!("signed by this key, but {}", short.why())),
        None if readable == 0 => (Code::SignatureInvalid, "no readable signature".to_owned()),
        None => {
            let plural = if readable == 1 { "" } else { "s" };
            let by_certificate = match certificates {
                0 => String::new(),
                some => format!(", {some} by certificate"),
            };
            let why = format!(
                "no signature by this key ({readable} signature{plural} found{by_certificate})"
            );
            (Code::AuthorityNotSatisfied, why)
        }
    };
    if let Some(first) = unreadable.first() {
        why += &format!("; {} of {found} unreadable: {first}", unreadable.len());
    }
    Missed::new(code, why)
}

#[cfg(test)]
mod tests;
