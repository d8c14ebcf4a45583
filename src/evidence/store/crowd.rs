//! Which manifests of an image go where there are too many of them.
//!
//! Anybody can wrap a public image's configuration in manifests of his own, and whoever has a key
//! that some policy trusts can have them pulled as well. So neither age nor number decides between
//! the manifests of different people: everybody who proved any has a share, and of the largest
//! share the one that was used longest ago goes. Who wants to push out what another key proves
//! needs as many trusted keys as there are places.

use std::collections::BTreeMap;

use crate::{evidence::Known, image::Digest};

/// What counts of a manifest.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    digest: Digest,
    shares: Vec<Share>,
}

/// Whose places a manifest can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Share {
    /// Those of what this identity proved.
    Proven(Digest),
    /// Those of what has claims, which proved nothing yet.
    Claimed,
    /// Those of what has none.
    Bare,
}

impl Candidate {
    pub(super) fn of(known: &Known) -> Self {
        let mut entries = std::iter::once(known.top()).chain(known.child());
        let unproven = match entries.any(|entry| !entry.claims.is_empty()) {
            true => Share::Claimed,
            false => Share::Bare,
        };
        let proven = known.proven_by();
        let shares = match proven.is_empty() {
            true => vec![unproven],
            false => proven.iter().copied().map(Share::Proven).collect(),
        };
        Self { digest: known.digest(), shares }
    }
}

/// Those that go, of all, the last used first, where this many stay. The first one stays.
pub(super) fn outsiders(all: impl Iterator<Item = Candidate>, stay: usize) -> Vec<Digest> {
    let mut taken: BTreeMap<Share, usize> = BTreeMap::new();
    let mut ranked: Vec<_> = all
        .map(|Candidate { digest, shares }| {
            let places = shares.iter().map(|share| taken.get(share).copied().unwrap_or_default());
            let rank = places.min().unwrap_or(usize::MAX);
            for share in shares {
                *taken.entry(share).or_default() += 1;
            }
            (rank, digest)
        })
        .collect();
    // Stable: within a rank the last used stays first.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().skip(stay).map(|(_, digest)| digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates by name and share: `a`, `b`, ... have proven it, `?` has claims, `-` has none.
    #[track_caller]
    fn goes(all: &[(&str, &str)], stay: usize, expected: &[&str]) {
        let share = |c: char| match c {
            '?' => Share::Claimed,
            '-' => Share::Bare,
            name => Share::Proven(Digest::of(&[name as u8])),
        };
        let candidate = |(name, shares): &(&str, &str)| Candidate {
            digest: Digest::of(name.as_bytes()),
            shares: shares.chars().map(share).collect(),
        };
        let found = outsiders(all.iter().map(candidate), stay);
        let expected: Vec<_> = expected.iter().map(|name| Digest::of(name.as_bytes())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn of_one_share_the_oldest_go() {
        goes(&[("1", "a"), ("2", "a"), ("3", "a")], 3, &[]);
        goes(&[("1", "a"), ("2", "a"), ("3", "a")], 1, &["2", "3"]);
        goes(&[("1", "-"), ("2", "-"), ("3", "-")], 2, &["3"]);
        goes(&[], 0, &[]);
    }

    #[test]
    fn nobody_pushes_out_what_another_one_proved() {
        goes(&[("1", "a"), ("2", "a"), ("3", "a"), ("old", "b")], 3, &["3"]);
        goes(&[("1", "?"), ("2", "?"), ("3", "-"), ("4", "-"), ("old", "b")], 3, &["2", "4"]);
        goes(&[("1", "a"), ("2", "?"), ("3", "-"), ("old", "b")], 4, &[]);
        // What two have proven has the better place of both, and takes one of each.
        goes(&[("1", "a"), ("2", "a"), ("3", "ab"), ("4", "b")], 3, &["4"]);
        // As many shares as places.
        goes(&[("1", "a"), ("2", "b"), ("3", "c"), ("old", "d")], 3, &["old"]);
    }
}
