//! The look at the node: what the runtime has and runs, held against the policies in force.
//!
//! It learns what images there are, asks registries for evidence that is missing (so that later
//! nobody has to), tells of containers that would be refused now, and forgets what is gone. It
//! decides nothing: what starts is judged by the gates, which never wait for it.

mod appraise;
mod ask;
mod report;
mod running;
mod summary;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

use crate::{
    audit::Log,
    evidence::{Known, Ledger},
    forward::{Container, ImageRecord, Runtime, RuntimeError, Target},
    image::{Digest, Repository, shorten},
    learn::{self, Unusable},
    local::Local,
    named::{ImageId, Named},
    pipeline::{Pipeline, repositories},
    policy::{self, Changes, PolicySet, pace},
    refusal::{Code, Refusal},
    resolve::Registry,
};

use appraise::{Appraisal, appraise};
use ask::{Asked, Failures, ask};

pub(crate) use ask::MAX_FAILURES;
pub use summary::{Containers, Images, MAX_NAMED, Summary, Unproven};

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(300);
/// From a look in vain, the runtime being away, to the next.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest time that the runtime may take for one answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Most images that one look takes in.
const MAX_IMAGES: usize = 10_000;
/// Questions to the runtime under way at once.
const LEARNING: usize = 4;
/// Questions to registries under way at once.
const ASKING: usize = 4;

/// What a look needs.
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
    /// The runtime, over a connection of its own: a gate must not wait behind a long list.
    pub runtime: Runtime,
    /// The audit log.
    pub audit: Log,
    /// Provides the sandbox image.
    pub pipeline: Pipeline,
}

/// Keeps an eye on the node.
#[derive(Debug)]
pub struct Inventory {
    parts: Parts,
    last: watch::Sender<Option<Arc<Summary>>>,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    asked: Asked,
    /// What cannot be started, and was told of.
    unusable: BTreeSet<Digest>,
    /// Drifts on record: container, and what was last said of it, hashed.
    drifted: BTreeMap<String, Digest>,
    /// Containers on record as not created here.
    unpermitted: BTreeSet<String>,
    /// The runtime was away at the last look.
    away: bool,
    /// There were more images than one look takes in.
    too_many: bool,
}

/// One manifest or index in the runtime.
#[derive(Debug)]
struct Looked {
    digest: Digest,
    names: Vec<String>,
    ids: Vec<ImageId>,
    unusable: Vec<Unusable>,
    /// None while there is no policy.
    appraisal: Option<Appraisal>,
}

impl Inventory {
    /// Nothing is looked at yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts, last: watch::Sender::new(None) }
    }

    /// What the last look found; nothing before the first one ended.
    pub fn summary(&self) -> watch::Receiver<Option<Arc<Summary>>> {
        self.last.subscribe()
    }

    /// Looks now, when other policies come into force, and every five minutes. Never ends.
    pub async fn keep(self) {
        let mut changes = self.parts.policies.changes();
        let mut memory = Memory::default();
        loop {
            // Other policies ask other questions: what is under way is no longer wanted.
            let pause = tokio::select! {
                pause = pause_after(self.look(&mut memory)) => pause,
                () = changes.next() => continue,
            };
            let rest = memory.asked.rest(Instant::now()).unwrap_or(pause);
            wait(pause.min(rest), &mut changes).await;
        }
    }

    async fn look(&self, memory: &mut Memory) -> Result<(), RuntimeError> {
        let (taken, began) = (Timestamp::now(), Instant::now());
        let (records, containers) = self.node(memory).await?;
        let pipeline = self.parts.pipeline.clone();
        // It may have to be pulled; those who need it wait for it themselves.
        tokio::spawn(async move { pipeline.provide_sandbox_image().await });

        let policies = self.parts.policies.snapshot(taken).ok();
        let policy_set = policies.as_ref().map(|policies| policies.digest());
        let (targets, left_out) = targets(records, memory);
        let live: BTreeSet<Digest> = targets.keys().map(|target| target.digest).collect();
        let marked = self.parts.local.checkpoints();
        let mut looked: Vec<Looked> = stream::iter(targets)
            .map(|(target, names)| self.look_at(target, names, policies.clone()))
            .buffer_unordered(LEARNING)
            .collect()
            .await;
        looked.sort_by_key(|looked| looked.digest);
        if left_out == 0 {
            let gone = marked.difference(&live).copied().collect();
            self.parts.local.unmark(&gone);
            memory.asked.retain(&live, began);
        }
        self.forget(&looked, &containers, left_out == 0, memory).await;
        tell(&looked, memory);

        let running: Vec<_> =
            containers.into_iter().filter(|container| container.running).collect();
        let mut counts = Containers { running: running.len(), ..Containers::default() };
        counts.unpermitted = self.unpermitted(&running, memory).await;
        if let Some(policies) = policies {
            memory.asked.under(policies.digest(), began, pace::random());
            let jobs = jobs(&looked, &policies, &memory.asked);
            let waits = |container: &Container| {
                let of =
                    |looked: &&Looked| container.image.is_some_and(|id| looked.ids.contains(&id));
                looked.iter().filter(of).any(|looked| jobs.contains_key(&looked.digest))
            };
            // Who waits for no registry is judged before any is asked.
            let (later, at_once): (Vec<_>, Vec<_>) = running.into_iter().partition(waits);
            counts.drifted += self.drifted(&at_once, &looked, &policies, memory).await;
            self.ask(jobs, &mut looked, &policies, memory).await;
            counts.drifted += self.drifted(&later, &looked, &policies, memory).await;
        }
        self.tell(Summary {
            taken,
            took_ms: began.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            policy_set,
            images: images(&looked, left_out),
            containers: counts,
        });
        Ok(())
    }

    /// Shows a summary to whoever asks, and logs one that counts otherwise than the last.
    fn tell(&self, summary: Summary) {
        let summary = Some(Arc::new(summary));
        let counts = |summary: &Option<Arc<Summary>>| {
            let summary = summary.as_ref()?;
            let Images { total, proven, .. } = summary.images;
            Some((total, proven, summary.containers.clone()))
        };
        let told = counts(&summary);
        if let Some((images, proven, Containers { running, drifted, unpermitted })) = &told
            && told != counts(&self.last.borrow())
        {
            tracing::info!(images, proven, running, drifted, unpermitted, "looked at the node");
        }
        self.last.send_replace(summary);
    }

    /// What the runtime has. That it is away is told once.
    async fn node(
        &self,
        memory: &mut Memory,
    ) -> Result<(Vec<ImageRecord>, Vec<Container>), RuntimeError> {
        let asking = async {
            let runtime = &self.parts.runtime;
            Ok((runtime.records().await?, runtime.containers().await?))
        };
        let answer = timeout(ANSWER, asking).await.unwrap_or_else(|_| Err(RuntimeError::late()));
        match &answer {
            Ok(_) => memory.away = false,
            Err(error) if !memory.away => {
                tracing::warn!(%error, "images and containers on this node cannot be looked at");
                memory.away = true;
            }
            Err(_) => {}
        }
        answer
    }

    /// Learns what one manifest or index is, unless that is known, and appraises it.
    async fn look_at(
        &self,
        target: Target,
        names: Vec<String>,
        policies: Option<Arc<PolicySet>>,
    ) -> Looked {
        let local = &self.parts.local;
        let digest = target.digest;
        let mut unusable = Vec::new();
        if self.known(digest).await.is_empty() {
            match timeout(ANSWER, learn::look(&self.parts.runtime, &target)).await {
                Ok(Ok(found)) => {
                    let checkpoints = found.unusable.iter().filter_map(Unusable::restored_as);
                    local.mark(checkpoints, digest);
                    unusable = found.unusable;
                    learn::keep(local.store(), found.known).await;
                }
                Ok(Err(error)) => tracing::debug!(%digest, %error, "not learnt"),
                Err(_) => tracing::debug!(%digest, "not learnt in time"),
            }
        }
        let (ids, appraisal) = self.appraise(digest, &names, policies).await;
        Looked { digest, names, ids, unusable, appraisal }
    }

    async fn known(&self, digest: Digest) -> Vec<Known> {
        let store = self.parts.local.store().clone();
        spawn_blocking(move || store.of_digest(digest)).await.unwrap_or_default()
    }

    async fn appraise(
        &self,
        digest: Digest,
        names: &[String],
        policies: Option<Arc<PolicySet>>,
    ) -> (Vec<ImageId>, Option<Appraisal>) {
        let store = self.parts.local.store().clone();
        let names = repositories(&references(names));
        let appraising = spawn_blocking(move || {
            let known = store.of_digest(digest);
            let ids = known.iter().map(Known::id).collect();
            let now = Timestamp::now();
            let appraisal =
                policies.map(|policies| appraise(digest, &known, &names, &policies, now));
            (ids, appraisal)
        });
        appraising.await.unwrap_or_default()
    }

    /// Asks registries, and appraises anew what they were asked about.
    async fn ask(
        &self,
        jobs: BTreeMap<Digest, Vec<Repository>>,
        looked: &mut [Looked],
        policies: &Arc<PolicySet>,
        memory: &mut Memory,
    ) {
        let (registry, store) = (&self.parts.registry, self.parts.local.store());
        let failures = &Failures::default();
        let mut answers = stream::iter(jobs)
            .map(|(digest, repositories)| async move {
                // What one image brings about is not to cost the others their evidence.
                let asking = ask(registry, store, failures, digest, repositories);
                (digest, AssertUnwindSafe(asking).catch_unwind().await.unwrap_or_default())
            })
            .buffer_unordered(ASKING);
        while let Some((digest, outcomes)) = answers.next().await {
            for (repository, outcome) in outcomes {
                memory.asked.note(digest, repository, outcome, policies.digest(), Instant::now());
            }
            if let Some(one) = looked.iter_mut().find(|looked| looked.digest == digest) {
                let policies = Some(policies.clone());
                (one.ids, one.appraisal) = self.appraise(digest, &one.names, policies).await;
            }
        }
    }

    /// Forgets what is not in the runtime any more; images only where all were looked at. What
    /// runs needs no name there.
    async fn forget(
        &self,
        looked: &[Looked],
        containers: &[Container],
        all: bool,
        memory: &mut Memory,
    ) {
        let present: BTreeSet<String> =
            containers.iter().map(|container| container.id.clone()).collect();
        memory.drifted.retain(|container, _| present.contains(container));
        memory.unpermitted.retain(|container| present.contains(container));
        let started = containers.iter().filter_map(|container| container.image);
        let live: BTreeSet<ImageId> =
            looked.iter().flat_map(|looked| &looked.ids).copied().chain(started).collect();
        let (store, ledger) = (self.parts.local.store().clone(), self.parts.ledger.clone());
        let pruning = spawn_blocking(move || {
            ledger.retain(&present);
            if all { store.retain(&live, Timestamp::now()).map(drop) } else { Ok(()) }
        });
        if let Ok(Err(error)) = pruning.await {
            tracing::warn!(%error, "evidence about images that are gone is not removed");
        }
    }
}

/// How long to rest after a look. One that a fault ended is no reason never to look again.
async fn pause_after(look: impl Future<Output = Result<(), RuntimeError>>) -> Duration {
    match AssertUnwindSafe(look).catch_unwind().await {
        Ok(Ok(())) => EVERY,
        Ok(Err(_)) => AGAIN,
        Err(_panic) => {
            tracing::error!("a fault ended the look at the node: it is not whole, and made anew");
            EVERY
        }
    }
}

/// Until the next look.
async fn wait(pause: Duration, changes: &mut Changes) {
    let _ = timeout(pause, changes.next()).await;
}

/// What the runtime has under which names, as much as one look takes in, and how much is left out.
fn targets(
    records: Vec<ImageRecord>,
    memory: &mut Memory,
) -> (BTreeMap<Target, Vec<String>>, usize) {
    let mut targets: BTreeMap<Target, Vec<String>> = BTreeMap::new();
    for record in records {
        targets.entry(record.target).or_default().push(record.name);
    }
    let mut left_out = 0;
    targets.retain(|_, _| {
        left_out += 1;
        left_out <= MAX_IMAGES
    });
    let left_out = left_out.saturating_sub(MAX_IMAGES);
    if left_out > 0 && !memory.too_many {
        tracing::error!(
            "the runtime has more than {MAX_IMAGES} images: {left_out} are not looked at, and \
             evidence about them is fetched with their next pull only"
        );
    }
    memory.too_many = left_out > 0;
    (targets, left_out)
}

/// Those of containerd's names that are an image's. Its IDs are records, too.
fn references(names: &[String]) -> Vec<String> {
    let is_reference = |name: &&String| matches!(name.parse(), Ok(Named::Reference(_)));
    names.iter().filter(is_reference).cloned().collect()
}

/// Whom to ask about what.
fn jobs(
    looked: &[Looked],
    policies: &PolicySet,
    asked: &Asked,
) -> BTreeMap<Digest, Vec<Repository>> {
    let now = Instant::now();
    let due = |looked: &Looked| {
        let appraisal = looked.appraisal.as_ref()?;
        let due = asked.due(looked.digest, &appraisal.lacking, policies.digest(), now);
        (!due.is_empty()).then_some((looked.digest, due))
    };
    looked.iter().filter_map(due).collect()
}

/// Tells once of what is in the runtime and cannot be started.
fn tell(looked: &[Looked], memory: &mut Memory) {
    let unusable: Vec<_> = looked.iter().filter(|looked| !looked.unusable.is_empty()).collect();
    for Looked { digest, unusable, .. } in &unusable {
        if !memory.unusable.contains(digest) {
            for Unusable { why, .. } in unusable {
                tracing::warn!(%digest, %why, "an image in the runtime cannot be started");
            }
        }
    }
    memory.unusable = unusable.into_iter().map(|looked| looked.digest).collect();
}

fn images(looked: &[Looked], left_out: usize) -> Images {
    let mut images = Images { total: left_out, left_out, ..Images::default() };
    for looked in looked {
        let unusable = looked.unusable.first().filter(|_| looked.ids.is_empty());
        let why = match (unusable, &looked.appraisal) {
            (Some(unusable), _) => {
                let why = unusable.why.to_string();
                Some(Refusal::new(Code::ImageMalformed, why).about(&looked.digest))
            }
            (None, Some(appraisal)) => appraisal.refusal.clone(),
            (None, None) => Some(Refusal::new(Code::PolicyUnavailable, "no policy is in force")),
        };
        let name = references(&looked.names).first().map(|name| shorten(name));
        images.count(looked.digest, name, why.as_ref());
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fault_ends_one_look_and_not_the_looking() {
        assert_eq!(pause_after(async { Ok(()) }).await, EVERY);
        assert_eq!(pause_after(async { Err(RuntimeError::late()) }).await, AGAIN);
        assert_eq!(pause_after(async { panic!("seen in the test's output") }).await, EVERY);
    }
}
