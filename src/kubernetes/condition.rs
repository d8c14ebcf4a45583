//! What the Node's condition `ImagePolicyEnforced` says of how the policies stand. Pure.
//!
//! True: what the API server holds is in force. False: it is not, or nothing is. Unknown: nobody
//! knows what it holds. Times are told as moments and not as ages, so that the condition stays as
//! it is while nothing changes.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::policy::standing::{Standing, TroubleKind};

/// The condition's type.
pub const TYPE: &str = "ImagePolicyEnforced";
/// Longest message, in bytes. Kubernetes sets no bound; the object of a node is read by many.
const MAX_MESSAGE: usize = 1024;

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// The same in sentences, with the moments since when.
    pub message: String,
    /// What stands for it: another one is written at once, and the same one rarely.
    pub(super) mark: String,
}

/// The condition that tells how the policies stand.
pub fn condition(standing: &Standing) -> Condition {
    let kind = standing.trouble.as_ref().map(|trouble| trouble.kind);
    let (status, reason) = match (&standing.in_force, kind) {
        (Some(_), None) => ("True", "InForce"),
        (Some(_), Some(kind @ TroubleKind::Unreachable)) => ("Unknown", kind.as_str()),
        (_, Some(kind)) => ("False", kind.as_str()),
        (None, None) => ("Unknown", "Unavailable"),
    };
    let (mut mark, mut message) = (format!("{status} {reason}"), String::new());
    match &standing.in_force {
        Some(set) => {
            let revision = set.revision.map(|number| format!(" revision {number}"));
            let named = format!("{}{}", set.digest, revision.unwrap_or_default());
            mark = format!("{mark} {named}");
            let policies = if set.policies == 1 { "policy" } else { "policies" };
            message = format!(
                "set {named} with {} {policies}, in force since {:.0}",
                set.policies, set.since
            );
            if let Some(confirmed) = standing.confirmed {
                message = format!("{message}, confirmed {confirmed:.0}");
            }
            if let Some(until) = set.until {
                message = format!("{message}, until {until:.0} unless the source is heard");
            }
        }
        None => message.push_str("no policies are in force, and every image is refused"),
    }
    if let Some(trouble) = &standing.trouble {
        mark = format!("{mark} {}", trouble.message);
        message = format!("{message}; since {:.0}: {}", trouble.since, trouble.message);
    }
    message = bounded(message, MAX_MESSAGE);
    Condition { status, reason, message, mark }
}

impl Condition {
    /// The strategic merge patch of a node's status that sets it, now. It has had its status
    /// since `transition`.
    pub(super) fn patch(&self, now: Timestamp, transition: Timestamp) -> Value {
        json!({"status": {"conditions": [{
            "type": TYPE,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastHeartbeatTime": format!("{now:.0}"),
            "lastTransitionTime": format!("{transition:.0}"),
        }]}})
    }
}

/// The status of the condition in a node, and since when it has it. None: it has none.
pub(super) fn found(node: &Value) -> Option<(String, Timestamp)> {
    let conditions = node["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == TYPE)?;
    let since = condition["lastTransitionTime"].as_str()?.parse().ok()?;
    Some((condition["status"].as_str()?.to_owned(), since))
}

/// A text of at most so many bytes.
pub(super) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - "…".len()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::Digest,
        policy::standing::{InForce, Trouble},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn in_force() -> InForce {
        let digest = Digest::of(b"set");
        InForce { digest, revision: Some(7), policies: 2, since: at(0), until: None }
    }

    fn trouble(kind: TroubleKind) -> Option<Trouble> {
        Some(Trouble { kind, message: "why".into(), since: at(90) })
    }

    #[test]
    fn a_condition_tells_set_and_moments() {
        let digest = Digest::of(b"set");
        let standing =
            Standing { in_force: Some(in_force()), trouble: None, confirmed: Some(at(60)) };
        let Condition { status, reason, message, .. } = condition(&standing);
        assert_eq!((status, reason), ("True", "InForce"));
        assert_eq!(
            message,
            format!(
                "set {digest} revision 7 with 2 policies, in force since 2027-01-15T08:00:00Z, \
                 confirmed 2027-01-15T08:01:00Z"
            )
        );
        let until = Some(at(3600));
        let in_force = Some(InForce { policies: 1, revision: None, until, ..in_force() });
        let standing = Standing { in_force, trouble: trouble(TroubleKind::NotKept), ..standing };
        let Condition { status, reason, message, .. } = condition(&standing);
        assert_eq!((status, reason), ("False", "NotKept"));
        assert_eq!(
            message,
            format!(
                "set {digest} with 1 policy, in force since 2027-01-15T08:00:00Z, confirmed \
                 2027-01-15T08:01:00Z, until 2027-01-15T09:00:00Z unless the source is heard; \
                 since 2027-01-15T08:01:30Z: why"
            )
        );
    }

    #[test]
    fn a_condition_is_true_only_of_what_the_source_holds() {
        for kind in TroubleKind::ALL {
            let told = |in_force| {
                let standing = Standing { in_force, trouble: trouble(kind), confirmed: None };
                let told = condition(&standing);
                assert_eq!(told.reason, kind.as_str());
                told.status
            };
            let status = if kind == TroubleKind::Unreachable { "Unknown" } else { "False" };
            assert_eq!(told(Some(in_force())), status, "{kind:?}");
            assert_eq!(told(None), "False", "{kind:?}");
        }
        let nothing = condition(&Standing::default());
        assert_eq!((nothing.status, nothing.reason), ("Unknown", "Unavailable"));
        assert_eq!(nothing.message, "no policies are in force, and every image is refused");
    }

    #[test]
    fn only_what_matters_makes_another_condition() {
        let standing =
            Standing { in_force: Some(in_force()), trouble: None, confirmed: Some(at(1)) };
        let mark = |change: &dyn Fn(&mut Standing)| {
            let mut standing = standing.clone();
            change(&mut standing);
            condition(&standing).mark
        };
        let same = mark(&|_| ());
        assert_eq!(mark(&|standing| standing.confirmed = Some(at(99))), same);
        let set = |change: &dyn Fn(&mut InForce)| {
            mark(&|standing| change(standing.in_force.as_mut().unwrap()))
        };
        assert_eq!(set(&|set| set.since = at(99)), same);
        assert_ne!(set(&|set| set.revision = Some(8)), same);
        assert_ne!(set(&|set| set.digest = Digest::of(b"other")), same);
        let broken = mark(&|standing| standing.trouble = trouble(TroubleKind::Rejected));
        assert_ne!(broken, same);
    }

    #[test]
    fn a_message_is_bounded() {
        let message = "é".repeat(5000);
        let trouble = Some(Trouble { kind: TroubleKind::Rejected, message, since: at(0) });
        let told = condition(&Standing { trouble, ..Standing::default() });
        assert!(told.message.len() <= MAX_MESSAGE && told.message.ends_with("é…"));
    }

    #[test]
    fn a_condition_is_found_again() {
        let told = condition(&Standing::default());
        let patch = told.patch(at(100), at(50));
        assert_eq!(
            patch["status"]["conditions"][0],
            json!({
                "type": "ImagePolicyEnforced", "status": "Unknown", "reason": "Unavailable",
                "message": "no policies are in force, and every image is refused",
                "lastHeartbeatTime": "2027-01-15T08:01:40Z",
                "lastTransitionTime": "2027-01-15T08:00:50Z",
            })
        );
        assert_eq!(found(&patch), Some(("Unknown".into(), at(50))));
        for none in [json!(null), json!({}), json!({"status": {"conditions": [{"type": "Ready"}]}})]
        {
            assert_eq!(found(&none), None);
        }
    }
}
