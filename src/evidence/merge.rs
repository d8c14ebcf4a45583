//! What becomes of two things known about one image.

use super::{Entry, Known, MAX_SIGNATURES, UntrustedBody, UntrustedClaim};

/// Most bytes of claims that are kept about one manifest. Signatures have a few KiB each.
const MAX_CLAIMS: usize = 4 << 20;

/// What was just learnt from a registry or from the runtime, with what was kept before.
///
/// The new claims come first, and old ones that are not among them stay: a signature does not
/// become less true by a registry that lost it. Whether all was asked is for the new answer to
/// say; where nobody was asked, and so nothing was found, what was known of that stays.
pub(super) fn fresh(new: &Known, old: Option<&Known>) -> Known {
    merge(new, old, |new, old| Entry {
        manifest: new.manifest.clone(),
        claims: Vec::new(),
        whole: new.whole || (new.claims.is_empty() && old.is_some_and(|old| old.whole)),
    })
}

/// What a pack says, with what was kept before, which comes first.
///
/// A pack can be old, and anybody can write one: it never makes what is known whole. That
/// decides no more than the wording of a refusal, and the remedy that it names is the right one.
pub(super) fn imported(pack: &Known, old: Option<&Known>) -> Known {
    let whole = |entry: &Entry, whole| Entry { whole, claims: Vec::new(), ..entry.clone() };
    match old {
        Some(old) => merge(old, Some(pack), |old, _| whole(old, old.whole)),
        None => merge(pack, None, |pack, _| whole(pack, false)),
    }
}

/// Both are of the same image under the same digest; where their children differ, that of
/// `first` stays. `make` makes an entry of two, without its claims.
fn merge(
    first: &Known,
    second: Option<&Known>,
    make: impl Fn(&Entry, Option<&Entry>) -> Entry,
) -> Known {
    let join = |first: &Entry, second: Option<&Entry>| {
        let second = second.filter(|second| second.manifest.digest == first.manifest.digest);
        let mut entry = make(first, second);
        let complete = join_claims(&mut entry, &first.claims);
        // What did not find room is not here, and so absence proves nothing any more.
        entry.whole &= complete;
        join_claims(&mut entry, second.map_or(&[], |second| &second.claims));
        entry
    };
    let top = join(first.top(), second.map(Known::top));
    let child = first.child().map(|child| join(child, second.and_then(Known::child)));
    Known::new(top, child).expect("the documents are those of `first`, which belong together")
}

/// Adds claims about this very manifest that are not there yet, as far as there is room.
fn join_claims(entry: &mut Entry, more: &[UntrustedClaim]) -> bool {
    let mut bytes: usize = entry.claims.iter().map(size).sum();
    for claim in more {
        if claim.subject != entry.manifest.digest || entry.claims.contains(claim) {
            continue;
        }
        bytes += size(claim);
        if entry.claims.len() == MAX_SIGNATURES || bytes > MAX_CLAIMS {
            return false;
        }
        entry.claims.push(claim.clone());
    }
    true
}

fn size(claim: &UntrustedClaim) -> usize {
    match &claim.body {
        UntrustedBody::SimpleSigning { payload, signature } => payload.len() + signature.len(),
        UntrustedBody::Bundle { json } => json.len(),
        UntrustedBody::Unreadable { why } => why.len(),
    }
}
