//! What is right by the letter in a policy, and may not be what was meant.

use jiff::Timestamp;

use crate::{
    policy::{Authority, AuthorityKind, ImagePolicy, Mode, Revoked},
    verify,
};

/// What is right by the letter, and may not be what was meant.
pub(super) fn notes(policy: &ImagePolicy, revoked: &Revoked, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    if policy.mode == Mode::Warn {
        let why = "only warns: what it would refuse is let through";
        notes.push(format!("policy {:?}: {why}", policy.name));
    }
    if let Some(glass) = &policy.break_glass {
        let why = match glass.not_after {
            None => "its glass can be broken without end (breakGlass has no notAfter)".to_owned(),
            Some(until) if now >= until => {
                format!("its glass cannot be broken any more, since {}", verify::day(until))
            }
            Some(_) => String::new(),
        };
        if !why.is_empty() {
            notes.push(format!("policy {:?}: {why}", policy.name));
        }
    }
    notes.extend(without_proof(policy));
    let mut note = |authority: &Authority, why: &str| {
        notes.push(format!("policy {:?}: {:?}: {why}", policy.name, authority.name));
    };
    let mut in_force = 0;
    for authority in &policy.authorities {
        match &authority.kind {
            AuthorityKind::PublicKey(key) => match verify::in_force(key, revoked, now) {
                Ok(()) => in_force += 1,
                Err(missed) => note(authority, &missed.why),
            },
            AuthorityKind::Unsigned { .. } => in_force += 1,
            AuthorityKind::Digests(listed) => {
                let (gone, left): (Vec<_>, Vec<_>) =
                    listed.iter().partition(|digest| revoked.digests.contains_key(digest));
                for digest in gone {
                    note(
                        authority,
                        &format!("{digest} is revoked by {:?}", revoked.digests[digest]),
                    );
                }
                in_force += usize::from(!left.is_empty());
            }
        }
    }
    if in_force < policy.at_least.get() {
        notes.push(format!("policy {:?}: accepts no image today", policy.name));
    }
    notes
}

/// What each `unsigned` authority of a policy does to it.
fn without_proof(policy: &ImagePolicy) -> Vec<String> {
    let reason = |one: &Authority| match &one.kind {
        AuthorityKind::Unsigned { reason } => Some(reason.clone()),
        AuthorityKind::PublicKey(_) | AuthorityKind::Digests(_) => None,
    };
    let reasons: Vec<_> = policy.authorities.iter().filter_map(reason).collect();
    let effect = match reasons.len() >= policy.at_least.get() {
        true if reasons.len() == policy.authorities.len() => {
            "accepts any image that it matches without proof"
        }
        true => {
            "accepts any image that it matches without proof, whatever its other authorities say"
        }
        false => "one of its authorities accepts any image without proof",
    };
    let note = |reason: &String| format!("policy {:?}: {effect} ({reason:?})", policy.name);
    reasons.iter().map(note).collect()
}
