//! One pull, from kubelet's request to kubelet's answer: the product's promise, top to bottom.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::request;
use jiff::Timestamp;
use tokio::{runtime::Handle, time::timeout};

use crate::{
    audit::{self, Event},
    decide::{self, Permit},
    decode::{self, Wanted},
    evidence,
    flight::Flights,
    forward::{self, Answer, Upstream},
    image::Digest,
    judgement::{Asked, Findings, Judgement},
    policy::{self, PolicySet},
    refusal::{Code, Refusal},
    resolve::{self, Registry},
};

/// Longest time that one judgement may take, all its questions to registries included.
const JUDGEMENT: Duration = Duration::from_secs(60);
/// Judgements under way at once, each with up to 20 MiB of what a registry sent. Others wait.
const JUDGEMENTS: usize = 64;

/// The stages, and what they share between pulls.
#[derive(Debug)]
pub struct Pipeline {
    policies: policy::Current,
    registry: Arc<Registry>,
    audit: audit::Log,
    /// Judgements run here, away from the relay.
    threads: Handle,
    /// Equal pulls in flight share one judgement.
    flights: Flights<(Wanted, Digest), Arc<Judgement>>,
}

impl Pipeline {
    /// Puts the stages together.
    pub fn new(
        policies: policy::Current,
        registry: Arc<Registry>,
        audit: audit::Log,
        threads: Handle,
    ) -> Self {
        Self { policies, registry, audit, threads, flights: Flights::of(JUDGEMENTS) }
    }

    /// Judges a pull, records the judgement, and lets the pull go on if, and only if, it was
    /// permitted.
    pub async fn pull(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        let arrived = Instant::now();
        let request = match body.and_then(|body| decode::pull(decode::unframe(&body)?)) {
            Ok(request) => request,
            Err(refusal) => {
                let record = Judgement::refused(refusal.clone()).record(
                    Event::Pull,
                    Asked::default(),
                    arrived.elapsed(),
                );
                return self.refuse(record, refusal).await;
            }
        };
        let judgement = self.judge(&request.wanted).await;
        let asked = Asked {
            requested: Some(&request.requested),
            name: Some(&request.wanted.image),
            pod: request.pod.as_ref(),
        };
        let record = judgement.record(Event::Pull, asked, arrived.elapsed());
        match &judgement.decision {
            Ok(permit) => match self.audit.record(record, permit.clone()).await {
                Ok(permit) => forward::pull(upstream, head, &request, permit).await,
                Err(unrecorded) => forward::refuse(&unrecorded),
            },
            Err(refusal) => self.refuse(record, refusal.clone()).await,
        }
    }

    async fn refuse(&self, record: audit::Record, refusal: Refusal) -> Answer {
        match self.audit.record(record, refusal).await {
            Ok(refusal) => forward::refuse(&refusal.into_inner()),
            Err(unrecorded) => forward::refuse(&unrecorded),
        }
    }

    /// Late, broken and shared judgements: each ends in a refusal or in [`examine`]'s own word.
    async fn judge(&self, wanted: &Wanted) -> Arc<Judgement> {
        let policies = match self.policies.snapshot() {
            Ok(policies) => policies,
            Err(refusal) => return Arc::new(Judgement::refused(refusal)),
        };
        let key = (wanted.clone(), policies.digest());
        let landed = self.flights.join(key, &self.threads, || {
            let (wanted, registry) = (wanted.clone(), self.registry.clone());
            async move {
                let examined =
                    timeout(JUDGEMENT, examine(&registry, &policies, &wanted, Timestamp::now()))
                        .await;
                Arc::new(examined.unwrap_or_else(|_| Judgement::late(&wanted, JUDGEMENT)))
            }
        });
        match landed.await {
            Some(judgement) => judgement,
            None => Arc::new(Judgement::refused(
                Refusal::new(
                    Code::Internal,
                    "a fault in Portcullis ended the judgement; its log has the details",
                )
                .about(&wanted.image),
            )),
        }
    }
}

/// Judges an image, without any effect: what `run` does for each pull, and `verify` and `explain`
/// once.
pub async fn examine(
    registry: &Registry,
    policies: &PolicySet,
    wanted: &Wanted,
    now: Timestamp,
) -> Judgement {
    let mut findings = Findings::under(policies);
    let decision = stages(registry, policies, wanted, now, &mut findings).await;
    Judgement { decision, findings }
}

/// Everything that must hold before an image may be pulled. Any `?` is a refusal.
async fn stages(
    registry: &Registry,
    policies: &PolicySet,
    wanted: &Wanted,
    now: Timestamp,
    findings: &mut Findings,
) -> Result<Permit, Refusal> {
    let selected = policies.select(&wanted.image, wanted.caller.namespace.as_deref())?;
    let repository = registry.repo(&wanted.image.repository, &wanted.credentials);
    let (image, _manifest) = resolve::pin(&repository, &wanted.image)
        .await
        .map_err(|refusal| refusal.about(&wanted.image))?;
    findings.image = Some(image.image.clone());
    let evidence = evidence::gather(&repository, &image).await;
    let (decision, reports) = decide::decide(&selected, &image, &evidence, &wanted.caller, now);
    findings.policies = reports;
    decision
}
