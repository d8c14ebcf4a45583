//! What is told of the policies, and what was told of them already.

use super::{Keeper, Kind, Timestamp, Trouble, TroubleKind};
use crate::policy::standing::{InForce, Standing};

impl Keeper {
    /// Why there is no set of the source.
    pub(super) fn why(&self) -> String {
        let trouble = self.rejected.as_ref().or(self.unreachable.as_ref());
        let Some(trouble) = trouble else {
            return format!("{} was not heard of yet", self.setup.source);
        };
        let why = first_line(&trouble.message);
        match self.setup.kind {
            Kind::Directory => format!(
                "{why}; \"portcullis check\" shows everything that is wrong with the policies"
            ),
            _ => why,
        }
    }

    /// Shows how the policies stand.
    pub(super) fn publish(&self) {
        let until = self.end().map(|(until, _)| until);
        // Without the floor that there must be, nothing is in force, the source's set included.
        let source = self.source.as_ref().filter(|_| self.floor.is_ok());
        let in_force = source.map(|source| InForce {
            digest: source.set.digest(),
            revision: source.set.revision(),
            policies: source.set.policies().len(),
            since: source.since,
            until,
        });
        let troubles = [&self.expired, &self.rejected, &self.floor_rejected, &self.unreachable];
        let trouble = troubles.into_iter().flatten().next().cloned();
        let confirmed = self.source.as_ref().map(|source| source.confirmed);
        let standing = Standing { in_force, trouble, confirmed };
        self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }
}

/// Notes a trouble, and returns whether it is another one than before.
pub(super) fn note(
    slot: &mut Option<Trouble>,
    kind: TroubleKind,
    message: &str,
    now: Timestamp,
) -> bool {
    let same = |trouble: &Trouble| trouble.kind == kind && trouble.message == message;
    if slot.as_ref().is_some_and(same) {
        return false;
    }
    *slot = Some(Trouble { kind, message: message.to_owned(), since: now });
    true
}

pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
