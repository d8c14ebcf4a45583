use jiff::Timestamp;

use super::*;
use crate::{policy::source, refusal::Code};

fn sources() -> Sources {
    Sources {
        policies: policy::Current::default(),
        standing: watch::channel(Standing::default()).1,
        events: None,
        inventory: watch::Sender::new(None).subscribe(),
    }
}

/// The samples, without those of the histogram's buckets.
fn samples(metrics: &Metrics, sources: &Sources) -> Vec<String> {
    let text = metrics.text(sources);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let is_sample = |line: &&str| !line.starts_with('#') && !line.contains("_bucket{");
    let mut samples: Vec<_> = text.lines().filter(is_sample).map(str::to_owned).collect();
    samples.sort();
    samples
}

#[test]
fn what_stands_in_the_audit_log_is_counted() {
    let (metrics, sources) = (Metrics::default(), sources());
    let record = |event| Record::new(event, "message");
    let allow = Record {
        decision: Some(Outcome::Allow),
        duration_us: Some(2_000_000),
        ..record(Event::Pull)
    };
    let deny = Record {
        decision: Some(Outcome::Deny),
        reason: Some(Code::SignatureMissing),
        duration_us: Some(500_000),
        ..record(Event::Create)
    };
    let broken = Record { decision: Some(Outcome::Warn), ..record(Event::BreakGlass) };
    for event in [Event::Start, Event::Policy, Event::Stop] {
        metrics.recorded(&record(event), 1);
    }
    for judged in [&allow, &deny, &deny, &broken] {
        metrics.recorded(judged, 2);
    }
    let container = Some("c".to_owned());
    let drift = Record { container: container.clone(), ..record(Event::Drift) };
    metrics.recorded(&Record { reason: Some(Code::Revoked), ..drift.clone() }, 3);
    metrics.recorded(&drift, 4);
    metrics.recorded(&record(Event::Drift), 5);
    metrics.fault();
    metrics.unrecorded(&allow, &Refusal::new(Code::AuditUnavailable, "full"));
    assert_eq!(
        samples(&metrics, &sources),
        [
            "portcullis_audit_unavailable_total 1",
            "portcullis_break_glass_total 1",
            "portcullis_drift_total{reason=\"audit_log\"} 1",
            "portcullis_drift_total{reason=\"revoked\"} 1",
            "portcullis_drift_total{reason=\"unpermitted\"} 1",
            "portcullis_faults_total 1",
            "portcullis_judgement_duration_seconds_count 3",
            "portcullis_judgement_duration_seconds_sum 3.0",
            "portcullis_judgements_total{event=\"break_glass\",decision=\"warn\",reason=\"none\"} 1",
            "portcullis_judgements_total{event=\"create\",decision=\"deny\",\
             reason=\"signature_missing\"} 2",
            "portcullis_judgements_total{event=\"pull\",decision=\"allow\",reason=\"none\"} 1",
            "portcullis_kubernetes_events_dropped_total 0",
            "portcullis_policies 0",
            "portcullis_policies_rejected 0",
            "portcullis_policy_trouble{kind=\"Expired\"} 0",
            "portcullis_policy_trouble{kind=\"NotKept\"} 0",
            "portcullis_policy_trouble{kind=\"Rejected\"} 0",
            "portcullis_policy_trouble{kind=\"Unreachable\"} 0",
        ]
    );
}

#[test]
fn what_is_wrong_with_the_policies_is_shown_while_it_is() {
    use crate::policy::standing::{Trouble, TroubleKind};
    let metrics = Metrics::default();
    for kind in [Some(TroubleKind::Rejected), Some(TroubleKind::Unreachable), None] {
        let since = Timestamp::UNIX_EPOCH;
        let trouble = kind.map(|kind| Trouble { kind, message: String::new(), since });
        let standing = Standing { trouble, ..Standing::default() };
        let sources = Sources { standing: watch::channel(standing).1, ..sources() };
        let samples = samples(&metrics, &sources);
        let rejected = i32::from(kind == Some(TroubleKind::Rejected));
        assert!(samples.contains(&format!("portcullis_policies_rejected {rejected}")));
        for one in TroubleKind::ALL {
            let value = i32::from(kind == Some(one));
            let sample = format!("portcullis_policy_trouble{{kind=\"{}\"}} {value}", one.as_str());
            assert!(samples.contains(&sample), "{sample}");
        }
    }
}

#[test]
fn the_policy_set_in_force_is_the_only_one_shown() {
    let (metrics, sources) = (Metrics::default(), sources());
    for name in ["first", "second"] {
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\n\
             spec:\n  match: {{images: ['**']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: test}}}}]\n"
        );
        let set = Arc::new(source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap());
        sources.policies.replace(set.clone());
        let samples = samples(&metrics, &sources);
        let shown = |line: &&String| line.contains("polic") && !line.contains("trouble");
        let shown: Vec<_> = samples.iter().filter(shown).collect();
        let digest = set.digest();
        assert_eq!(
            shown,
            [
                "portcullis_policies 1",
                "portcullis_policies_rejected 0",
                &format!(
                    "portcullis_policy_set_info{{digest=\"{digest}\",source_digest=\"\",\
                     revision=\"\"}} 1"
                )
            ]
        );
    }
}
