//! Counters for Prometheus, in the OpenMetrics text format 1.0.
//!
//! What is counted is what stands in the audit log, and it is counted when it stands there: the
//! two cannot disagree. Labels are taken from closed lists, never from a request.

mod policies;
mod serve;

use std::sync::Arc;

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::watch;

use crate::{
    audit::{Event, Observer, Outcome, Record},
    inventory::Summary,
    kubernetes::events::Refusals,
    policy::{self, standing::Standing},
    refusal::Refusal,
};

use policies::Policies;

pub use serve::{Listener, MetricsError, serve};

/// Upper bounds of the histogram of judgements, in seconds: from one that only looks up to one
/// that waits for a registry until its time is over.
const BUCKETS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0, 20.0, 60.0];

/// All metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    judgements: Family<Judged, Counter>,
    duration: Histogram,
    break_glass: Counter,
    drift: Family<Reason, Counter>,
    audit_unavailable: Counter,
    faults: Counter,
    policies: Policies,
    events_dropped: Counter,
    images: Family<State, Gauge>,
    containers: Family<State, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Judged {
    event: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("portcullis");
        let (judgements, break_glass, drift) =
            (Family::default(), Counter::default(), Family::default());
        let (audit_unavailable, faults) = (Counter::default(), Counter::default());
        let duration = Histogram::new(BUCKETS);
        let (policies, events_dropped) = (Policies::default(), Counter::default());
        let (images, containers) = (Family::default(), Family::default());
        registry.register(
            "judgements",
            "Judgements on record, by the audit log's event, decision and reason",
            Family::clone(&judgements),
        );
        registry.register(
            "judgement_duration_seconds",
            "From a call's arrival to the decision",
            Histogram::clone(&duration),
        );
        registry.register(
            "break_glass",
            "Calls let through since a pod broke a policy's glass",
            Counter::clone(&break_glass),
        );
        registry.register(
            "drift",
            "Drifts on record: containers by the reason why they would be refused now, or \
             unpermitted; and what was not as left in the audit log",
            Family::clone(&drift),
        );
        registry.register(
            "audit_unavailable",
            "Records that the audit log could not take; what waited for them was refused",
            Counter::clone(&audit_unavailable),
        );
        registry.register(
            "faults",
            "Panics in Portcullis, each of which refused what it ended",
            Counter::clone(&faults),
        );
        policies.register(&mut registry);
        registry.register(
            "kubernetes_events_dropped",
            "Refusals that are on record and became no Event on their pod",
            Counter::clone(&events_dropped),
        );
        registry.register(
            "images",
            "Images in the runtime at the last look, by whether some pod may start them",
            Family::clone(&images),
        );
        registry.register(
            "containers",
            "Running containers at the last look: all, those that would be refused now, and \
             those that were not created through Portcullis",
            Family::clone(&containers),
        );
        Self(Arc::new(Inner {
            registry,
            judgements,
            duration,
            break_glass,
            drift,
            audit_unavailable,
            faults,
            policies,
            events_dropped,
            images,
            containers,
        }))
    }
}

/// What metrics are about, beside the records.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The policies in force.
    pub policies: policy::Current,
    /// How they stand.
    pub standing: watch::Receiver<Standing>,
    /// How many refusals became no Event.
    pub events: Option<Arc<Refusals>>,
    /// The last look at the node.
    pub inventory: watch::Receiver<Option<Arc<Summary>>>,
}

impl Metrics {
    /// Counts a panic, wherever it happened.
    pub fn fault(&self) {
        self.0.faults.inc();
    }

    /// All metrics as text, with those that are no counters as they are now.
    pub fn text(&self, sources: &Sources) -> String {
        let policies = sources.policies.snapshot(Timestamp::now()).ok();
        self.0.policies.show(&sources.standing.borrow(), policies.as_deref());
        if let Some(events) = &sources.events {
            let told = self.0.events_dropped.get();
            self.0.events_dropped.inc_by(events.dropped().saturating_sub(told));
        }
        let number = |number: usize| number.try_into().unwrap_or(i64::MAX);
        let set = |family: &Family<State, Gauge>, state, value| {
            family.get_or_create(&State { state }).set(number(value));
        };
        if let Some(summary) = &*sources.inventory.borrow() {
            set(&self.0.images, "proven", summary.images.proven);
            set(&self.0.images, "unproven", summary.images.unproven);
            set(&self.0.containers, "running", summary.containers.running);
            set(&self.0.containers, "drifted", summary.containers.drifted);
            set(&self.0.containers, "unpermitted", summary.containers.unpermitted);
        }
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = text::encode(&mut text, &self.0.registry);
        text
    }
}

impl Observer for Metrics {
    fn recorded(&self, record: &Record, _seq: u64) {
        self.0.policies.recorded(record);
        let reason = record.reason.map_or("none", |reason| reason.as_str());
        let decision = match record.decision {
            Some(Outcome::Allow) => "allow",
            Some(Outcome::Deny) => "deny",
            Some(Outcome::Warn) => "warn",
            None => "none",
        };
        let event = match record.event {
            Event::Pull => "pull",
            Event::Create => "create",
            Event::ImageStatus => "image_status",
            Event::Sandbox => "sandbox",
            Event::BreakGlass => {
                self.0.break_glass.inc();
                "break_glass"
            }
            Event::Drift => {
                let reason = match (&record.container, record.reason) {
                    (None, _) => "audit_log",
                    (Some(_), None) => "unpermitted",
                    (Some(_), Some(reason)) => reason.as_str(),
                };
                self.0.drift.get_or_create(&Reason { reason }).inc();
                return;
            }
            Event::Policy | Event::Start | Event::Stop => return,
        };
        self.0.judgements.get_or_create(&Judged { event, decision, reason }).inc();
        if let Some(duration) = record.duration_us {
            self.0.duration.observe(duration as f64 / 1e6);
        }
    }

    fn unrecorded(&self, _record: &Record, _refusal: &Refusal) {
        self.0.audit_unavailable.inc();
    }
}

#[cfg(test)]
mod tests;
