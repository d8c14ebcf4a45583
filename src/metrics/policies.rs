//! How the policies stand, and what each of them refuses or would refuse.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    audit::Record,
    decide::PolicyOutcome,
    policy::{
        PolicySet,
        standing::{Standing, TroubleKind},
    },
};

/// Most policies that are told apart; of all others there is one sum.
const MAX_NAMED: usize = 1000;
/// What that is called: no name of a policy has a space.
const OTHERS: &str = "all others";

/// The metrics of policies.
#[derive(Debug, Default)]
pub(super) struct Policies {
    set: Family<Set, Gauge>,
    count: Gauge,
    rejected: Gauge,
    trouble: Family<Kind, Gauge>,
    times: Family<Moment, Gauge>,
    unsatisfied: Family<Unsatisfied, Counter>,
    named: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Set {
    digest: String,
    source_digest: String,
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moment {
    moment: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unsatisfied {
    policy: String,
    outcome: &'static str,
}

impl Policies {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "policy_set_info",
            "The policy set in force, with the value 1; absent where there is none. source_digest \
             is without the floor of this node",
            Family::clone(&self.set),
        );
        registry.register("policies", "Policies in force", Gauge::clone(&self.count));
        registry.register(
            "policies_rejected",
            "1 while what the source of policies holds is not in force",
            Gauge::clone(&self.rejected),
        );
        registry.register(
            "policy_trouble",
            "1 for what is wrong with the policies, by the kind of trouble",
            Family::clone(&self.trouble),
        );
        registry.register(
            "policy_timestamp_seconds",
            "When the set of the source came into force on this node, was last confirmed by the \
             source, and will be in force no more; absent where there is no such moment",
            Family::clone(&self.times),
        );
        registry.register(
            "policy_unsatisfied",
            "Judgements on record in which a policy was not satisfied: refused, warned for \
             (would be refused if the policy enforced), or let through by break_glass",
            Family::clone(&self.unsatisfied),
        );
    }

    /// Sets what is no counter.
    pub(super) fn show(&self, standing: &Standing, set: Option<&PolicySet>) {
        self.set.clear();
        if let Some(set) = set {
            let revision = set.revision().map(|revision| revision.to_string()).unwrap_or_default();
            let source = standing.in_force.as_ref().map(|source| source.digest.to_string());
            let labels = Set {
                digest: set.digest().to_string(),
                source_digest: source.unwrap_or_default(),
                revision,
            };
            self.set.get_or_create(&labels).set(1);
        }
        let count = set.map_or(0, |set| set.policies().len());
        self.count.set(count.try_into().unwrap_or(i64::MAX));
        let trouble = standing.trouble.as_ref().map(|trouble| trouble.kind);
        for kind in TroubleKind::ALL {
            let labels = Kind { kind: kind.as_str() };
            self.trouble.get_or_create(&labels).set((trouble == Some(kind)).into());
        }
        let rejected = matches!(trouble, Some(TroubleKind::Rejected | TroubleKind::NotKept));
        self.rejected.set(rejected.into());
        self.times.clear();
        let source = standing.in_force.as_ref();
        for (moment, at) in [
            ("in_force", source.map(|source| source.since)),
            ("confirmed", standing.confirmed),
            ("until", source.and_then(|source| source.until)),
        ] {
            if let Some(at) = at {
                self.times.get_or_create(&Moment { moment }).set(at.as_second());
            }
        }
    }

    /// Counts what was not satisfied.
    pub(super) fn recorded(&self, record: &Record) {
        for policy in &record.policies {
            let outcome = match policy.outcome {
                PolicyOutcome::Satisfied => continue,
                PolicyOutcome::Refused => "refused",
                PolicyOutcome::Warned => "warned",
                PolicyOutcome::BreakGlass => "break_glass",
            };
            let labels = Unsatisfied { policy: self.name(&policy.name), outcome };
            self.unsatisfied.get_or_create(&labels).inc();
        }
    }

    /// The name that a policy is counted by: policies come and go, and each name stays.
    fn name(&self, policy: &str) -> String {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if !named.contains(policy) {
            if named.len() >= MAX_NAMED {
                return OTHERS.to_owned();
            }
            named.insert(policy.to_owned());
        }
        policy.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::Event, decide::PolicyReport};

    #[test]
    fn policies_are_told_apart_up_to_a_bound() {
        let policies = Policies::default();
        let mut record = Record::new(Event::Pull, "");
        let report = |name: String, outcome| PolicyReport {
            name,
            outcome,
            at_least: 1,
            authorities: Vec::new(),
        };
        for number in 0..MAX_NAMED + 2 {
            record.policies = vec![report(format!("p{number}"), PolicyOutcome::Warned)];
            policies.recorded(&record);
        }
        record.policies = vec![
            report("p1".into(), PolicyOutcome::Refused),
            report("p2".into(), PolicyOutcome::Satisfied),
        ];
        policies.recorded(&record);
        let count = |policy: &str, outcome| {
            let labels = Unsatisfied { policy: policy.to_owned(), outcome };
            policies.unsatisfied.get(&labels).map_or(0, |counter| counter.get())
        };
        assert_eq!((count("p1", "warned"), count("p1", "refused")), (1, 1));
        assert_eq!((count("p2", "warned"), count(OTHERS, "warned")), (1, 2));
    }
}
