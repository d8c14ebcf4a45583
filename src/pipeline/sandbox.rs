//! One pod: its sandbox runs from an image of the runtime's own choice, the sandbox (pause)
//! image, which the runtime would pull by itself and unjudged.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::request;
use jiff::Timestamp;
use tokio::{sync::watch, time};

use crate::{
    audit::Event,
    decode,
    forward::{self, Answer, Runtime, RuntimeError, Target, Upstream},
    image::{ImageRef, Version},
    judgement::{Asked, Judgement},
    local::Question,
    named::Named,
    policy::Caller,
    refusal::{Code, Refusal},
};

use super::Pipeline;

/// How long a pod waits for an attempt that is under way. That goes on, and kubelet asks again: a
/// registry that hangs is not to hold up every pod of the node with it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after an attempt to pull the sandbox image the next one may be made.
const PAUSE: Duration = Duration::from_secs(30);
/// How long containerd may take to pin what was recorded anew.
const PINNED_WITHIN: Duration = Duration::from_secs(1);
/// From one look for that to the next.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time that an attempt may take. The image has less than 1 MiB.
const PULL: Duration = Duration::from_secs(120);

/// The image that the runtime makes sandboxes from. Clones share the attempts to pull it.
#[derive(Clone, Debug)]
pub struct SandboxImage {
    configured: Option<ImageRef>,
    patience: Duration,
    last: Arc<Mutex<Option<Attempt>>>,
}

/// An attempt to pull it, and when that ended.
type Attempt = watch::Receiver<Option<time::Instant>>;

/// Notes the end of an attempt, one by a fault as well: the next is not to follow at once.
struct UnderWay(watch::Sender<Option<time::Instant>>);

impl UnderWay {
    fn begin() -> (Self, Attempt) {
        let (ended, attempt) = watch::channel(None);
        (Self(ended), attempt)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_replace(Some(time::Instant::now()));
    }
}

/// Whether no other attempt is to be made now.
fn is_recent(attempt: &Attempt, now: time::Instant) -> bool {
    attempt.borrow().is_none_or(|ended| now.saturating_duration_since(ended) < PAUSE)
}

/// Why the sandbox image is not known.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The runtime does not answer.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It answers, and does not say.
    #[error(
        "which sandbox (pause) image the container runtime uses is not known: {0}; set \
         runtime.sandbox_image to what the runtime's own configuration says (containerd 2: \
         pinned_images.sandbox, containerd 1: sandbox_image)"
    )]
    Unknown(String),
    /// It uses another one than the operator says.
    #[error(
        "the container runtime makes sandboxes from {used}, and runtime.sandbox_image says \
         {configured}: make the two equal"
    )]
    Differs {
        /// As the runtime tells.
        used: ImageRef,
        /// `runtime.sandbox_image`.
        configured: ImageRef,
    },
}

impl SandboxImage {
    /// By the operator's word: `runtime.sandbox_image`. None: the runtime is asked.
    pub fn new(name: Option<ImageRef>) -> Self {
        Self::with_patience(name, PATIENCE)
    }

    /// The same, with this long for a pod to wait while it is pulled.
    pub fn with_patience(name: Option<ImageRef>, patience: Duration) -> Self {
        Self { configured: name, patience, last: Arc::default() }
    }

    /// Its name: as configured, as the runtime's status tells, or the only one that the runtime has
    /// pinned. The runtime is asked each time: after it was upgraded it may use
    /// another one, which nobody judged.
    pub async fn name(&self, runtime: &Runtime) -> Result<ImageRef, SandboxError> {
        let told = match runtime.sandbox_image().await? {
            Some(told) => Some(
                told.parse::<ImageRef>()
                    .map_err(|error| SandboxError::Unknown(format!("it says {error}")))?,
            ),
            None => None,
        };
        match (&self.configured, told) {
            (None, Some(told)) => Ok(told),
            (None, None) => pinned(runtime).await,
            (Some(configured), Some(used)) if *configured != used => {
                Err(SandboxError::Differs { used, configured: configured.clone() })
            }
            (Some(configured), _) => Ok(configured.clone()),
        }
    }

    /// Whether the runtime has pinned the configured image, or none. containerd 2 does not tell
    /// which one it uses, and pins the very name that its own configuration has as soon as it
    /// records it: one that it uses instead shows, after its first use at the latest.
    async fn confirm(&self, runtime: &Runtime, name: &ImageRef) -> Result<(), SandboxError> {
        if self.configured.is_none() || runtime.sandbox_image().await?.is_some() {
            return Ok(());
        }
        let deadline = time::Instant::now() + PINNED_WITHIN;
        let mut touched = false;
        loop {
            let names = match pinned_names(runtime).await {
                // A name that is none is not one that containerd uses.
                Err(SandboxError::Unknown(_)) => return Ok(()),
                names => names?,
            };
            match names.first() {
                Some((used, _)) if names.iter().all(|(other, _)| other != name) => {
                    if touched && time::Instant::now() >= deadline {
                        let (used, configured) = (used.clone(), name.clone());
                        return Err(SandboxError::Differs { used, configured });
                    }
                    // One that came before containerd pinned anything is looked at again.
                    if !touched {
                        runtime.touch(&name.to_string()).await?;
                        touched = true;
                    }
                    time::sleep(LOOK).await;
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The name that the runtime itself has pinned. The other names of its image are not asked: any
/// pod's author can have the same image pulled under one more.
async fn pinned(runtime: &Runtime) -> Result<ImageRef, SandboxError> {
    let unknown = |why: &str| SandboxError::Unknown(format!("its status does not tell, and {why}"));
    let mut named = pinned_names(runtime).await?;
    // What was pulled by a tag is recorded, and pinned, by its digest as well.
    if named.iter().any(|(name, _)| is_tag(name)) {
        named.retain(|(name, _)| is_tag(name));
    }
    let mut named = named.into_iter();
    let Some((first, target)) = named.next() else {
        return Err(unknown("it has pinned no image by a name"));
    };
    match named.all(|(name, other)| name.repository == first.repository && other == target) {
        true => Ok(first),
        false => Err(unknown("it has pinned several images")),
    }
}

/// Every name that the runtime has pinned. Its records by ID are none.
async fn pinned_names(runtime: &Runtime) -> Result<Vec<(ImageRef, Target)>, SandboxError> {
    let mut named = Vec::new();
    for record in runtime.pinned().await? {
        match record.name.parse() {
            Ok(Named::Reference(name)) => named.push((name, record.target)),
            Ok(Named::Id(_) | Named::Short(_)) => {}
            Err(error) => return Err(SandboxError::Unknown(format!("it says {error}"))),
        }
    }
    Ok(named)
}

fn is_tag(name: &ImageRef) -> bool {
    matches!(name.version, Version::Tag(_))
}

impl Pipeline {
    /// Judges the sandbox image, records the judgement, and lets the sandbox run if, and only if,
    /// it was permitted.
    pub async fn run_pod_sandbox(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        let arrived = Instant::now();
        let read = |body: Vec<u8>| {
            let message = decode::request("RunPodSandbox", &body)?.to_vec();
            Ok((decode::sandbox(&message)?, message))
        };
        let (pod, message) = match body.and_then(read) {
            Ok(read) => read,
            Err(refusal) => return self.refuse_unread(Event::Sandbox, refusal, arrived).await,
        };
        let pipeline = self.clone();
        let judging = self.0.threads.spawn(async move { pipeline.judge_sandbox().await });
        let (judgement, name) =
            judging.await.unwrap_or_else(|_| (Arc::new(Judgement::refused(super::fault())), None));
        let requested = name.as_ref().map(ToString::to_string);
        let asked =
            Asked { requested: requested.as_deref(), name: name.as_ref(), pod: pod.as_ref() };
        let record = judgement.record(Event::Sandbox, asked, arrived.elapsed());
        match &judgement.decision {
            Ok(permit) => match self.0.audit.record(record, permit.clone()).await {
                Ok(permit) => forward::sandbox(upstream, head, &message, permit).await,
                Err(unrecorded) => forward::refuse(&unrecorded),
            },
            Err(refusal) => self.refuse(record, refusal.clone()).await,
        }
    }

    /// The name of the sandbox image.
    pub async fn sandbox_image(&self) -> Result<ImageRef, SandboxError> {
        self.0.sandbox.name(&self.0.runtime).await
    }

    /// Whether pods can start from the sandbox image as it is on this node now. Pulls nothing.
    pub async fn sandbox_standing(&self, name: &ImageRef) -> Result<(), Refusal> {
        self.judge_sandbox_here(name).await?.decision.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// The runtime's name and version.
    pub async fn runtime_version(&self) -> Result<String, RuntimeError> {
        self.0.runtime.version().await
    }

    /// Has the sandbox image on this node and proven, as far as that can be done now. For the
    /// start and for every look at the node; pods do the same when they need it.
    pub async fn provide_sandbox_image(&self) -> Result<(), SandboxError> {
        self.0.sandbox.name(&self.0.runtime).await?;
        let (judgement, _) = self.judge_sandbox().await;
        if let Err(refusal) = &judgement.decision {
            tracing::error!("no pod can start: the sandbox image: {refusal}");
        }
        Ok(())
    }

    /// The judgement of the sandbox image, which is pulled where it is missing or not proven. It
    /// is the node's and no pod's: policies of namespaces do not apply.
    async fn judge_sandbox(&self) -> (Arc<Judgement>, Option<ImageRef>) {
        let refused = |refusal| Arc::new(Judgement::refused(refusal));
        let name = match self.0.sandbox.name(&self.0.runtime).await {
            Ok(name) => name,
            Err(error) => {
                return (refused(Refusal::new(Code::Internal, error.to_string())), None);
            }
        };
        let judgement = match self.judge_sandbox_here(&name).await {
            Ok(judgement) if judgement.decision.is_ok() => judgement,
            // No pull helps a runtime that does not answer, or that uses another image.
            Err(refusal) if refusal.code == Code::Internal => refused(refusal),
            first => {
                let mut attempt = self.provide(&name);
                let ended = async { attempt.wait_for(Option::is_some).await.is_ok() };
                match time::timeout(self.0.sandbox.patience, ended).await {
                    Ok(_) => {
                        let judged = self.judge_sandbox_here(&name).await.or(first);
                        judged.unwrap_or_else(refused)
                    }
                    Err(_) => {
                        let why = "the sandbox image is being pulled, and its registry takes long";
                        refused(Refusal::new(Code::RegistryUnreachable, why).about(&name))
                    }
                }
            }
        };
        (judgement, Some(name))
    }

    /// The attempt to pull the sandbox image: one for all who wait, and none soon after another.
    fn provide(&self, name: &ImageRef) -> Attempt {
        // Nothing that runs under the lock can panic.
        let mut last = self.0.sandbox.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attempt) =
            last.as_ref().filter(|attempt| is_recent(attempt, time::Instant::now()))
        {
            return attempt.clone();
        }
        let (under_way, attempt) = UnderWay::begin();
        *last = Some(attempt.clone());
        let (pipeline, name) = (self.clone(), name.clone());
        self.0.threads.spawn(async move {
            let _under_way = under_way;
            let (head, body) = forward::own_pull(&name.to_string());
            let own = pipeline.0.runtime.upstream();
            // Its answer is in the audit log; what counts is what is there then.
            let pulling = pipeline.pull_for(Event::Sandbox, own, head, Ok(body));
            if time::timeout(PULL, pulling).await.is_err() {
                tracing::error!(%name, "the pull of the sandbox image does not end");
            }
        });
        attempt
    }

    async fn judge_sandbox_here(&self, name: &ImageRef) -> Result<Arc<Judgement>, Refusal> {
        let policies = self.0.policies.snapshot(Timestamp::now())?;
        let found = self.0.runtime.image(&name.to_string()).await;
        let found = found.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        let Some(found) = found else {
            let why = "the sandbox image is not on this node";
            return Err(Refusal::new(Code::NotProvenLocally, why).about(name));
        };
        let confirmed = self.0.sandbox.confirm(&self.0.runtime, name).await;
        confirmed.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        let caller = Caller::default();
        let question = Question { id: found.id, names: vec![name.clone()], caller };
        Ok(self.judge_here(&policies, question).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_attempt_that_a_fault_ended_is_followed_by_a_pause_too() {
        let (under_way, mut attempt) = UnderWay::begin();
        let begun = time::Instant::now();
        assert!(is_recent(&attempt, begun + 2 * PAUSE), "it has not ended");
        let faulty = tokio::spawn(async move {
            let _under_way = under_way;
            panic!("seen in the test's output");
        });
        assert!(attempt.wait_for(Option::is_some).await.is_ok() && faulty.await.is_err());
        let ended = time::Instant::now();
        assert!(is_recent(&attempt, begun) && !is_recent(&attempt, ended + PAUSE));
    }
}
