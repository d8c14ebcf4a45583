//! What becomes of policies, in the daemon's log and on record.

use crate::{
    audit::{Event, PolicySetId, Record},
    policy::{self, PolicySet},
};

/// Logs an event, and makes its record. `in_force`: after it, some set is.
pub(super) fn record(event: &policy::Event, in_force: bool) -> Record {
    let left = match in_force {
        true => "the set in force stays",
        false => "and none is in force: every image is refused",
    };
    let (message, set) = match event {
        policy::Event::Loaded(set) => {
            let message = format!("policy set in force: {}", counted(set));
            tracing::info!(revision = set.revision(), digest = %set.digest(), "{message}");
            (message, Some(set))
        }
        policy::Event::Recalled(set) => {
            let message = format!("policy set that this node had last, in force: {}", counted(set));
            tracing::warn!(revision = set.revision(), digest = %set.digest(), "{message}");
            (message, Some(set))
        }
        policy::Event::Unchanged(set) => {
            let message = "policies load; the set in force is unchanged".to_owned();
            tracing::info!(revision = set.revision(), digest = %set.digest(), "{message}");
            (message, Some(set))
        }
        policy::Event::Rejected(why) => {
            tracing::error!("policies are not loaded, {left}:\n{why}");
            (format!("policies are not loaded, {left}: {why}"), None)
        }
        policy::Event::Unreachable(why) => {
            tracing::warn!("the source of policies is not heard, {left}: {why}");
            (format!("the source of policies is not heard, {left}: {why}"), None)
        }
        policy::Event::Expired(why) => {
            tracing::error!("{why}");
            (why.clone(), None)
        }
    };
    let policy_set = set.map(|set| PolicySetId::from(&**set));
    Record { policy_set, ..Record::new(Event::Policy, message) }
}

fn counted(set: &PolicySet) -> String {
    match set.policies().len() {
        1 => "1 policy".to_owned(),
        count => format!("{count} policies"),
    }
}
