//! Which sets may follow which: pure.

use jiff::Timestamp;

use super::kept::{Kind, Last};

/// What a set that is offered is, seen from the newest that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The same set, perhaps with a later revision.
    Same,
    /// Another set, and not an older one.
    Next,
}

/// Why a set must not follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoStep {
    #[error(
        "it has revision {offered}, which is older than revision {last} that this node had; \
         publish it with a revision above {last}"
    )]
    Older { offered: u64, last: u64 },
    #[error(
        "the API server is at resourceVersion {offered}, and this node had policies as of {last}: it \
         was restored from a backup, or answers from the past. Restore it with its revisions raised \
         (etcdutl snapshot restore --bump-revision --mark-compacted), or remove the file *.policy-mark \
         beside this node's audit log and start Portcullis anew"
    )]
    Past { offered: u64, last: u64 },
    #[error(
        "it differs from what this node had as revision {0}; each change needs a revision of its \
         own: publish it with one above {0}"
    )]
    Twice(u64),
    #[error("it has no revision, and this node had revision {0}")]
    Uncounted(u64),
    #[error("it expired at {0:.0}; publish one that holds for longer, or set this node's clock")]
    Expired(Timestamp),
}

/// Whether `offered` may follow `last`.
pub(super) fn step(
    kind: Kind,
    last: Option<&Last>,
    offered: &Last,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Step, NoStep> {
    let step = match last {
        Some(last) => {
            order(kind, last, offered)?;
            if last.digest == offered.digest { Step::Same } else { Step::Next }
        }
        None => Step::Next,
    };
    // One that expires while it is in force stays there, and refuses.
    match expires_at {
        Some(at) if at <= now && step == Step::Next => Err(NoStep::Expired(at)),
        _ => Ok(step),
    }
}

fn order(kind: Kind, last: &Last, offered: &Last) -> Result<(), NoStep> {
    match (last.revision, offered.revision) {
        (Some(last), Some(offered)) if offered < last && kind == Kind::Kubernetes => {
            Err(NoStep::Past { offered, last })
        }
        (Some(last), Some(offered)) if offered < last => Err(NoStep::Older { offered, last }),
        // An API server counts over all objects, so that one count can stand for several states of
        // those that are watched; which is the newer of them is known where they are watched.
        (Some(revision), Some(same))
            if same == revision && last.digest != offered.digest && kind == Kind::Bundle =>
        {
            Err(NoStep::Twice(revision))
        }
        (Some(revision), None) => Err(NoStep::Uncounted(revision)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn set(name: &str, revision: impl Into<Option<u64>>) -> Last {
        let digest = Digest::of(name.as_bytes());
        Last { source: "S".into(), revision: revision.into(), digest, confirmed: NOW }
    }

    fn follows(kind: Kind, last: &Last, offered: &Last) -> Result<Step, NoStep> {
        step(kind, Some(last), offered, None, NOW)
    }

    #[test]
    fn revisions_never_go_back() {
        for kind in [Kind::Bundle, Kind::Kubernetes] {
            let follows = |last: &Last, offered: &Last| follows(kind, last, offered);
            assert_eq!(follows(&set("a", 2), &set("b", 3)), Ok(Step::Next));
            assert_eq!(follows(&set("a", 2), &set("a", 3)), Ok(Step::Same));
            assert_eq!(follows(&set("a", 2), &set("a", 2)), Ok(Step::Same));
            let older = Err(match kind {
                Kind::Kubernetes => NoStep::Past { offered: 1, last: 2 },
                _ => NoStep::Older { offered: 1, last: 2 },
            });
            assert_eq!(follows(&set("a", 2), &set("a", 1)), older);
            assert_eq!(follows(&set("a", 2), &set("b", 1)), older);
            assert_eq!(follows(&set("a", 2), &set("a", None)), Err(NoStep::Uncounted(2)));
            assert_eq!(follows(&set("a", None), &set("b", 1)), Ok(Step::Next));
            assert_eq!(step(kind, None, &set("a", 1), None, NOW), Ok(Step::Next));
        }
    }

    #[test]
    fn two_bundles_of_one_revision_are_one_too_many() {
        let (a, b) = (set("a", 2), set("b", 2));
        assert_eq!(follows(Kind::Bundle, &a, &b), Err(NoStep::Twice(2)));
        assert_eq!(follows(Kind::Kubernetes, &a, &b), Ok(Step::Next));
    }

    #[test]
    fn a_directory_holds_what_it_holds() {
        for kind in [Kind::Directory, Kind::Floor] {
            assert_eq!(follows(kind, &set("a", None), &set("b", None)), Ok(Step::Next));
            assert_eq!(follows(kind, &set("a", None), &set("a", None)), Ok(Step::Same));
        }
    }

    #[test]
    fn what_is_expired_does_not_come_into_force() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let judged = |last: Option<&Last>, expires| {
            step(Kind::Bundle, last, &set("b", 2), expires, Timestamp::from_second(10).unwrap())
        };
        assert_eq!(judged(None, at(11)), Ok(Step::Next));
        for last in [None, Some(&set("a", 1))] {
            assert_eq!(judged(last, at(10)), Err(NoStep::Expired(at(10).unwrap())));
        }
        assert_eq!(judged(Some(&set("b", 2)), at(10)), Ok(Step::Same));
    }
}
