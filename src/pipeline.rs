//! What is judged, from kubelet's request to kubelet's answer: the product's promise, top to
//! bottom. A pull is below; what starts from images that are there is in the files beside.

mod create;
mod image_status;
mod sandbox;

use std::{
    collections::BTreeSet,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use http::request;
use jiff::Timestamp;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

use crate::{
    audit::{self, Event},
    decide::{self, Permit},
    decode::{self, PullRequest, Wanted},
    evidence::{self, Entry, Evidence, Known, Ledger, Store},
    flight::Flights,
    forward::{self, Answer, Runtime, Upstream},
    image::{Digest, Version},
    judgement::{Asked, Findings, Gathered, Judgement},
    learn,
    local::Local,
    named::ImageId,
    policy::{self, PolicySet},
    refusal::{Code, Refusal},
    resolve::{self, Fetched, Registry, Resolved},
};

pub(crate) use create::{is_among, repositories};
pub use sandbox::{SandboxError, SandboxImage};

/// Longest time that one judgement may take, all its questions to registries included.
pub(crate) const JUDGEMENT: Duration = Duration::from_secs(60);
/// Judgements under way at once, each with up to 20 MiB of what a registry sent. Others wait.
const JUDGEMENTS: usize = 64;

/// The stages, and what they share between calls.
#[derive(Clone, Debug)]
pub struct Pipeline(Arc<Stages>);

#[derive(Debug)]
struct Stages {
    policies: policy::Current,
    registry: Arc<Registry>,
    /// What is judged without a registry.
    local: Local,
    ledger: Ledger,
    /// For questions of our own, on the threads of judgements.
    runtime: Runtime,
    sandbox: SandboxImage,
    audit: audit::Log,
    /// Judgements run here, away from the relay.
    threads: Handle,
    /// Images that were answered as absent, so that the log does not tell it for ever.
    hidden: image_status::Hidden,
    /// Equal pulls in flight share one judgement.
    flights: Flights<(Wanted, Digest), Arc<Judgement>>,
}

/// What a pipeline is made of.
#[derive(Debug)]
pub struct Parts {
    /// The policies in force.
    pub policies: policy::Current,
    /// The registries.
    pub registry: Arc<Registry>,
    /// The judgement of what is on this node.
    pub local: Local,
    /// Which containers were permitted.
    pub ledger: Ledger,
    /// The runtime, for questions of our own.
    pub runtime: Runtime,
    /// The sandbox image of this node.
    pub sandbox: SandboxImage,
    /// The audit log.
    pub audit: audit::Log,
    /// Where judgements run.
    pub threads: Handle,
}

impl Pipeline {
    /// Puts the stages together.
    pub fn new(parts: Parts) -> Self {
        let Parts { policies, registry, local, ledger, runtime, sandbox, audit, threads } = parts;
        let flights = Flights::of(JUDGEMENTS);
        Self(Arc::new(Stages {
            policies,
            registry,
            local,
            ledger,
            runtime,
            sandbox,
            audit,
            threads,
            hidden: Default::default(),
            flights,
        }))
    }

    /// Judges a pull, records the judgement, and lets the pull go on if, and only if, it was
    /// permitted. What proved it is then kept on this node.
    pub async fn pull(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        self.pull_for(Event::Pull, upstream, head, body).await
    }

    async fn pull_for(
        &self,
        event: Event,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        let arrived = Instant::now();
        let request = match body.and_then(|body| decode::pull(decode::request("PullImage", &body)?))
        {
            Ok(request) => request,
            Err(refusal) => return self.refuse_unread(event, refusal, arrived).await,
        };
        let judgement = self.judge(&request.wanted).await;
        let asked = Asked {
            requested: Some(&request.requested),
            name: Some(&request.wanted.image),
            pod: request.pod.as_ref(),
        };
        let record = judgement.record(event, asked, arrived.elapsed());
        match &judgement.decision {
            Ok(permit) => match self.0.audit.record(record, permit.clone()).await {
                Ok(permit) => self.go_on(upstream, head, &request, permit, &judgement).await,
                Err(unrecorded) => forward::refuse(&unrecorded),
            },
            Err(refusal) => self.refuse(record, refusal.clone()).await,
        }
    }

    async fn go_on(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        request: &PullRequest,
        permit: audit::Recorded<Permit>,
        judgement: &Judgement,
    ) -> Answer {
        // The disk takes it while the runtime pulls.
        let by = judgement.proven_by();
        let gathered = judgement.findings.gathered.as_ref();
        let keeping = gathered.and_then(|all| self.begin_to_keep(all, by.clone()));
        let (answer, id) = forward::pull(upstream, head, request, permit).await;
        if let Some(id) = id {
            // Before the answer leaves: kubelet's next call is about this very image.
            self.keep(gathered.cloned(), by, id, keeping).await;
        }
        answer
    }

    /// Keeps what a registry said of an image whose manifest alone tells its ID, and of which nothing
    /// else is known. Where the runtime then does not pull it, it is known in vain, and forgotten
    /// like any other.
    fn begin_to_keep(
        &self,
        gathered: &Arc<Gathered>,
        by: BTreeSet<Digest>,
    ) -> Option<(ImageId, JoinHandle<bool>)> {
        let known = match gathered.known_as.is_empty() {
            true => Known::new(gathered.entry(gathered.manifest.clone()), None).ok()?.noted(by),
            false => return None,
        };
        let (id, store) = (known.id(), self.0.local.store().clone());
        let keeping = self.0.threads.spawn(async move { learn::keep_ahead(&store, known).await });
        Some((id, keeping))
    }

    /// Keeps what a registry said of an image that the runtime has now.
    async fn keep(
        &self,
        gathered: Option<Arc<Gathered>>,
        by: BTreeSet<Digest>,
        id: ImageId,
        begun: Option<(ImageId, JoinHandle<bool>)>,
    ) {
        let Some(gathered) = gathered else { return };
        let (runtime, local) = (self.0.runtime.clone(), self.0.local.clone());
        if gathered.known_as.contains(&id) {
            local.looked_at([id]);
            return;
        }
        if let Some((expected, keeping)) = begun
            && expected == id
            && keeping.await.is_ok_and(|kept| kept)
        {
            local.looked_at([id]);
            return;
        }
        let keeping = self.0.threads.spawn(async move {
            let entry = |manifest| gathered.entry(manifest);
            let top = entry(gathered.manifest.clone());
            let learning = timeout(JUDGEMENT, learn::of(&runtime, &top, entry)).await;
            let learnt = match learning {
                Ok(learnt) => learnt,
                Err(_) => {
                    tracing::error!(%id, "the container runtime does not tell what it pulled");
                    return;
                }
            };
            match learnt {
                Ok(known) if known.iter().any(|known| known.id() == id) => {
                    let known = known.into_iter().map(|known| known.noted(by.clone())).collect();
                    learn::keep(local.store(), known).await;
                    // Under its ID the runtime has what it pulled last.
                    local.looked_at([id]);
                }
                Ok(_) => tracing::error!(
                    %id, digest = %gathered.manifest.digest,
                    "the runtime says that it pulled an image which this digest does not name"
                ),
                Err(error) => tracing::error!(%id, %error, "what proves an image is not kept"),
            }
        });
        let _ = keeping.await;
    }

    async fn refuse(&self, record: audit::Record, refusal: Refusal) -> Answer {
        match self.0.audit.record(record, refusal).await {
            Ok(refusal) => forward::refuse(&refusal.into_inner()),
            Err(unrecorded) => forward::refuse(&unrecorded),
        }
    }

    /// Refuses a call that cannot be read.
    async fn refuse_unread(&self, event: Event, refusal: Refusal, arrived: Instant) -> Answer {
        let judgement = Judgement::refused(refusal.clone());
        let record = judgement.record(event, Asked::default(), arrived.elapsed());
        self.refuse(record, refusal).await
    }

    /// Late, broken and shared judgements: each ends in a refusal or in [`examine`]'s own word.
    async fn judge(&self, wanted: &Wanted) -> Arc<Judgement> {
        let policies = match self.0.policies.snapshot(Timestamp::now()) {
            Ok(policies) => policies,
            Err(refusal) => return Arc::new(Judgement::refused(refusal)),
        };
        let wanted = &Wanted { caller: wanted.caller.seen_by(&policies), ..wanted.clone() };
        let key = (wanted.clone(), policies.digest());
        let host = wanted.image.repository.registry();
        let landed = self.0.flights.join(key, host, &self.0.threads, || {
            let (wanted, registry) = (wanted.clone(), self.0.registry.clone());
            let store = self.0.local.store().clone();
            async move {
                let now = Timestamp::now();
                let examining = examine(&registry, Some(&store), &policies, &wanted, now);
                let examined = timeout(JUDGEMENT, examining).await;
                Arc::new(examined.unwrap_or_else(|_| Judgement::late(&wanted, JUDGEMENT)))
            }
        });
        match landed.await {
            Some(judgement) => judgement,
            None => Arc::new(Judgement::refused(fault().about(&wanted.image))),
        }
    }
}

/// A judgement that ended in a panic.
fn fault() -> Refusal {
    let why = "a fault in Portcullis ended the judgement; its log has the details";
    Refusal::new(Code::Internal, why)
}

/// Judges an image, without any effect: what `run` does for each pull, and `verify` and `explain`
/// once, without a store.
pub async fn examine(
    registry: &Registry,
    store: Option<&Store>,
    policies: &PolicySet,
    wanted: &Wanted,
    now: Timestamp,
) -> Judgement {
    let mut findings = Findings::under(policies);
    let decision = stages(registry, store, policies, wanted, now, &mut findings).await;
    Judgement { decision, findings }
}

/// Everything that must hold before an image may be pulled. Any `?` is a refusal.
async fn stages(
    registry: &Registry,
    store: Option<&Store>,
    policies: &PolicySet,
    wanted: &Wanted,
    now: Timestamp,
    findings: &mut Findings,
) -> Result<Permit, Refusal> {
    let selected = policies.select(&wanted.image, wanted.caller.namespace.as_deref())?;
    let repository = registry.repo(&wanted.image.repository, &wanted.credentials);
    let decide = |image: &Resolved, evidence: &Evidence| {
        decide::decide(&selected, image, evidence, &wanted.caller, now)
    };
    let proven = |(decision, _): &(Result<Permit, Refusal>, _)| {
        decision.as_ref().is_ok_and(|permit| *permit.grounds() == decide::Grounds::Satisfied)
    };
    // Evidence does not age: what is on this node proves as much as when it was fetched. A digest
    // names the same bytes for ever, so that there the registry is not even asked for them; who may
    // have them, the runtime asks it.
    let here = match &wanted.image.version {
        Version::Digest(digest) => kept(store, *digest).await,
        Version::Tag(_) => Kept::default(),
    };
    let manifest = here.manifest.clone();
    let image = manifest.as_ref().and_then(|m| resolve::resolved(&wanted.image.repository, m).ok());
    let decided = image.as_ref().map(|image| decide(image, &here.evidence)).filter(proven);
    let (image, manifest, kept, decided) = match (image, manifest, decided) {
        (Some(image), Some(manifest), Some(decided)) => (image, manifest, here, Some(decided)),
        _ => {
            let (image, manifest) = resolve::pin(&repository, &wanted.image)
                .await
                .map_err(|refusal| refusal.about(&wanted.image))?;
            let kept = kept(store, image.image.digest).await;
            let decided = kept.manifest.as_ref().map(|_| decide(&image, &kept.evidence));
            (image, manifest, kept, decided.filter(proven))
        }
    };
    findings.image = Some(image.image.clone());
    let Kept { mut evidence, known_as, .. } = kept;
    let (known_as, (decision, reports)) = match decided {
        Some(decided) => (known_as, decided),
        None => {
            let kept = mem::replace(&mut evidence, evidence::gather(&repository, &image).await);
            evidence.add(kept);
            (Vec::new(), decide(&image, &evidence))
        }
    };
    findings.policies = reports;
    findings.gathered = Some(Arc::new(Gathered { known_as, manifest, image, evidence }));
    decision
}

/// What is known on this node about a manifest or index.
#[derive(Default)]
struct Kept {
    /// The document itself, where there is anything.
    manifest: Option<Fetched>,
    evidence: Evidence,
    /// The images that it is known to lead to.
    known_as: Vec<ImageId>,
}

async fn kept(store: Option<&Store>, digest: Digest) -> Kept {
    let Some(store) = store.cloned() else { return Kept::default() };
    let known = tokio::task::spawn_blocking(move || store.of_digest(digest)).await;
    let known = known.unwrap_or_default();
    let evidence = known.iter().map(Known::evidence).reduce(|mut all, more| {
        all.add(more);
        all
    });
    Kept {
        manifest: known.first().map(|known| known.top().manifest.clone()),
        evidence: evidence.unwrap_or_default(),
        known_as: known.iter().map(Known::id).collect(),
    }
}

impl Gathered {
    /// What is known of one of the image's manifests.
    fn entry(&self, manifest: resolve::Fetched) -> Entry {
        let digest = manifest.digest;
        let about = self.evidence.claims.iter().filter(|claim| claim.subject == digest);
        let claims = about.cloned().collect();
        let asked = self.image.subjects().any(|subject| subject == digest);
        Entry { manifest, claims, whole: asked && self.evidence.gaps.is_empty() }
    }
}
