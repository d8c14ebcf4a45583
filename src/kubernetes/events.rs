//! Refusals as Events on the pods that asked, for who looks at `kubectl describe pod`.
//!
//! An Event is a courtesy: what was refused stands in the audit log, and is refused whether or not
//! anybody can be told. So nothing waits for one, and none is tried twice.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    audit::{self, Observer, Outcome, Pod, Record},
    image::Digest,
    refusal::Refusal,
};

use super::{
    client::Server,
    condition::bounded,
    failure::{self, Failure},
    names::{is_label, is_subdomain, is_uid},
    ration::Ration,
};

/// Most refusals that wait to be told.
const MAX_WAITING: usize = 256;
/// Longest message, in bytes: that of an Event of events.k8s.io/v1.
const MAX_MESSAGE: usize = 1024;
/// Of a pod's name so much is the beginning of its Events' names, which have the same bound.
const MAX_PREFIX: usize = 200;
/// Longest text that is looked at of what stands for an image, in bytes.
const MAX_IMAGE: usize = 512;

/// The reason of all Events.
pub const REASON: &str = "ImagePolicyRefused";
const COMPONENT: &str = "portcullis";

/// Hears of refusals and hands them on. It never waits.
#[derive(Debug)]
pub struct Refusals {
    queue: mpsc::Sender<Refused>,
    dropped: Arc<AtomicU64>,
}

/// Makes Events of refusals.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Refused>,
    dropped: Arc<AtomicU64>,
}

/// A refusal, as far as an Event tells it.
#[derive(Debug)]
struct Refused {
    pod: Pod,
    action: &'static str,
    message: String,
    /// What an Event is told of once in a while: pod, reason and image.
    what: Digest,
}

/// The two ends: one for the audit log, one for the API server.
pub fn channel() -> (Refusals, Events) {
    let (tell, heard) = mpsc::channel(MAX_WAITING);
    let dropped = Arc::new(AtomicU64::new(0));
    let refusals = Refusals { queue: tell, dropped: Arc::clone(&dropped) };
    (refusals, Events { queue: heard, dropped })
}

impl Refusals {
    /// How many refusals became no Event because too many came at once or the API server did not
    /// take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Observer for Refusals {
    fn recorded(&self, record: &Record, _seq: u64) {
        let Some(refused) = refused(record) else { return };
        if self.queue.try_send(refused).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn unrecorded(&self, _record: &Record, _refusal: &Refusal) {}
}

/// What an Event tells. None: no refusal that a pod waits for, or of no pod that can be named.
fn refused(record: &Record) -> Option<Refused> {
    if record.decision != Some(Outcome::Deny) {
        return None;
    }
    let action = match record.event {
        audit::Event::Pull => "Pull",
        audit::Event::Create => "Create",
        audit::Event::Sandbox => "Sandbox",
        _ => return None,
    };
    // Whoever may call the runtime may write what they like here; it becomes a path.
    let pod = record.pod.as_ref()?;
    if !is_label(&pod.namespace) || !is_subdomain(&pod.name) || !is_uid(&pod.uid) {
        return None;
    }
    let reason = record.reason.map(|code| code.to_string()).unwrap_or_default();
    let image = record.image.as_ref().map_or("", |image| &*image.requested);
    let image = &image[..image.floor_char_boundary(MAX_IMAGE)];
    let what = Digest::of(json!([pod.uid, reason, image]).to_string().as_bytes());
    let message = bounded(record.message.clone(), MAX_MESSAGE);
    Some(Refused { pod: pod.clone(), action, message, what })
}

impl Events {
    /// Makes Events, until nobody hands on refusals any more.
    pub async fn run(mut self, server: &Server, node: &str) {
        let start = Instant::now();
        let mut ration = Ration::new();
        let mut told: Option<String> = None;
        while let Some(refused) = self.queue.recv().await {
            if !ration.allows(refused.what, start.elapsed()) {
                continue;
            }
            let Err(failure) = send(server, node, &refused).await else {
                told = None;
                continue;
            };
            self.dropped.fetch_add(1, Ordering::Relaxed);
            if told.as_ref() != Some(&failure.why) {
                tracing::warn!(why = failure.why, "refusals are not told on their pods");
                told = Some(failure.why);
            }
        }
    }
}

async fn send(server: &Server, node: &str, refused: &Refused) -> Result<(), Failure> {
    let namespace = &refused.pod.namespace;
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let event = event(refused, node, Timestamp::now()).to_string();
    let body = Some(("application/json", event.into_bytes()));
    let answer = server.send(Method::POST, &path, body).await?;
    let (address, status, after) = (answer.address.clone(), answer.status, answer.after);
    answer.discard(server.times.answer).await;
    match status {
        StatusCode::OK | StatusCode::CREATED => Ok(()),
        _ => Err(failure::of_writing(&address, "Events", status, after)),
    }
}

/// core/v1 Event.
fn event(refused: &Refused, node: &str, now: Timestamp) -> Value {
    let Refused { pod: Pod { namespace, name, uid }, action, message, .. } = refused;
    let prefix = name[..name.len().min(MAX_PREFIX)].trim_end_matches(['.', '-']);
    let time = format!("{now:.0}");
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": namespace,
            // As client-go names them: no two of a pod are of the same nanosecond.
            "name": format!("{prefix}.{:x}", now.as_nanosecond()),
        },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid,
        },
        "type": "Warning",
        "reason": REASON,
        "action": action,
        "message": message,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::RequestedImage, refusal::Code};

    fn pod(namespace: &str, name: &str, uid: &str) -> Option<Pod> {
        Some(Pod { namespace: namespace.into(), name: name.into(), uid: uid.into() })
    }

    fn record() -> Record {
        Record {
            decision: Some(Outcome::Deny),
            reason: Some(Code::SignatureMissing),
            image: Some(RequestedImage { requested: "app:v1".into(), ..Default::default() }),
            pod: pod("shop", "web-0", "u-1"),
            ..Record::new(audit::Event::Pull, "no signature")
        }
    }

    #[test]
    fn a_refusal_is_told_on_its_pod() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(
            event(&refused(&record()).unwrap(), "node-1", now),
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"namespace": "shop", "name": "web-0.18fae27693b40000"},
                "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop",
                                   "name": "web-0", "uid": "u-1"},
                "type": "Warning", "reason": "ImagePolicyRefused", "action": "Pull",
                "message": "no signature",
                "source": {"component": "portcullis", "host": "node-1"},
                "reportingComponent": "portcullis", "reportingInstance": "node-1",
                "firstTimestamp": "2027-01-15T08:00:00Z", "lastTimestamp": "2027-01-15T08:00:00Z",
                "count": 1,
            })
        );
    }

    #[test]
    fn only_what_a_pod_waits_for_is_told() {
        use audit::Event as E;
        for event in [E::Pull, E::Create, E::Sandbox] {
            assert!(refused(&Record { event, ..record() }).is_some(), "{event:?}");
        }
        for event in [E::ImageStatus, E::BreakGlass, E::Policy, E::Start, E::Stop, E::Drift] {
            assert!(refused(&Record { event, ..record() }).is_none(), "{event:?}");
        }
        for decision in [None, Some(Outcome::Allow), Some(Outcome::Warn)] {
            assert!(refused(&Record { decision, ..record() }).is_none(), "{decision:?}");
        }
    }

    #[test]
    fn a_pod_that_cannot_be_is_not_told_of() {
        let told = |pod| refused(&Record { pod, ..record() }).is_some();
        assert!(told(pod("shop", "web.0", "3f2c1a00-0000-4000-8000-000000000000")));
        for (namespace, name, uid) in [
            ("", "web", "u"),
            ("shop", "", "u"),
            ("shop", "web", ""),
            ("../kube-system", "web", "u"),
            ("shop/x", "web", "u"),
            ("shop?a=b", "web", "u"),
            ("shop.x", "web", "u"),
            ("Shop", "web", "u"),
            ("shop", "web\n", "u"),
            ("shop", "web", "u\""),
            (&"s".repeat(64), "web", "u"),
            ("shop", &"w".repeat(254), "u"),
        ] {
            assert!(!told(pod(namespace, name, uid)), "{namespace:?} {name:?} {uid:?}");
        }
        assert!(!told(None));
    }

    #[test]
    fn an_event_is_bounded_whatever_it_is_about() {
        let long = Record {
            message: "é".repeat(5000),
            pod: pod("shop", &format!("{}-{}", "a".repeat(199), "b".repeat(53)), "u"),
            ..record()
        };
        let event = event(&refused(&long).unwrap(), "node-1", Timestamp::UNIX_EPOCH);
        assert!(event["message"].as_str().unwrap().len() <= MAX_MESSAGE);
        assert_eq!(event["metadata"]["name"], format!("{}.0", "a".repeat(199)));
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (refusals, _events) = channel();
        for seq in 0..MAX_WAITING as u64 + 7 {
            refusals.recorded(&record(), seq);
        }
        assert_eq!(refusals.dropped(), 7);
        refusals.unrecorded(&record(), &Refusal::new(Code::AuditUnavailable, "full"));
        assert_eq!(refusals.dropped(), 7);
    }

    #[test]
    fn the_same_pod_reason_and_image_are_one() {
        let what = |record: &Record| refused(record).unwrap().what;
        let same = what(&record());
        assert_eq!(what(&Record { message: "other".into(), ..record() }), same);
        assert_ne!(what(&Record { pod: pod("shop", "web-0", "u-2"), ..record() }), same);
        assert_ne!(what(&Record { reason: Some(Code::Revoked), ..record() }), same);
        let image = RequestedImage { requested: "app:v2".into(), ..Default::default() };
        assert_ne!(what(&Record { image: Some(image), ..record() }), same);
    }
}
