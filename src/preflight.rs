//! What a policy set would refuse of that which is on a node already, before it is in force there.
//!
//! It asks the runtime what it has, and for evidence first the store and then the registries, as
//! a pull would. Nothing is written: no evidence, no audit record, nothing in the runtime.

mod find;
mod report;
mod ask;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    decide::{self, Glass, Grounds, PolicyReport},
    decode::Wanted,
    evidence::{Known, Store},
    forward::{Runtime, RuntimeError},
    image::{ImageRef, Repository},
    judgement::{Findings, Judgement},
    local::{self, Question},
    pipeline::{self, SandboxImage},
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
    resolve::{Credentials, Registry},
};

use ask::Answers;
use find::{Container, Image, Node};
pub use report::{ContainerFinding, ImageFinding, PodName, Report, SandboxFinding, Summary};

/// How long the runtime may take to tell all that it has.
const LOOKING: Duration = Duration::from_secs(60);

/// Credentials for a repository, or why there are none.
pub type Keyring = Box<dyn Fn(&Repository) -> Result<Credentials, String>>;

/// What is asked, and of whom.
pub struct Preflight {
    /// The candidate.
    pub policies: Arc<PolicySet>,
    /// The runtime on this node.
    pub runtime: Runtime,
    /// Evidence that is here already; only read.
    pub store: Store,
    /// The registries. None: no registry is asked.
    pub registry: Option<Registry>,
    /// Credentials for the registries.
    pub credentials: Keyring,
    /// The sandbox image, by configuration or as the runtime tells.
    pub sandbox: SandboxImage,
}

/// What would become of an image or a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It would be refused.
    Refused,
    /// It could not be judged, and would be refused while that is so.
    NotJudged,
    /// Only policies that warn would refuse it.
    WouldWarn,
    /// Pods of some namespaces may have it, and others not. Of images only. Glass that a pod could
    /// break makes no difference: what would have to be broken is refused.
    AcceptedForSome,
    /// It would be accepted.
    Accepted,
}

/// The judgement on an image or a container.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What would become of it.
    pub state: State,
    /// Why, where it is not simply accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Code>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What each matching policy found.
    pub policies: Vec<PolicyReport>,
}

impl Preflight {
    /// Looks at everything. `progress` hears how many of how many questions to registries are
    /// answered.
    ///
    /// # Errors
    ///
    /// The runtime does not tell what it has.
    pub async fn survey(
        &self,
        now: Timestamp,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Report, RuntimeError> {
        let looking = async {
            let node = find::node(&self.runtime, &self.store).await?;
            let sandbox = self.sandbox_question(&node).await?;
            Ok((node, sandbox))
        };
        let looked = timeout(LOOKING, looking).await;
        let (node, sandbox) = looked.unwrap_or_else(|_| Err(RuntimeError::late()))?;
        let answers = ask::registries(self, &node, &sandbox, now, progress).await;
        let judge = |question: &Question| {
            if let Some(checkpoint) = node.checkpoints.get(&question.id) {
                return Verdict::refused(local::restorable(
                    question.id,
                    question.names.first(),
                    *checkpoint,
                ));
            }
            let known = self.known(&node, question);
            let evidence =
                |known: &Known, repository: &Repository| answers.about(known, repository);
            let policies = &self.policies;
            Verdict::of(local::judge_known(&known, evidence, policies, question, now).0)
        };
        let images = node.images.iter().map(|image| {
            let verdict = match &image.name {
                Some(name) => self.somewhere(name, image, &answers, now),
                None => nameless(image, &judge),
            };
            report::image(image, verdict, &node)
        });
        let containers = node.containers.iter().map(|container| {
            let verdict = match &container.question {
                Some(question) => judge(question),
                None => Verdict::refused(untold(container)),
            };
            report::container(container, verdict)
        });
        let (images, containers) = (images.collect(), containers.collect());
        let sandbox = match sandbox {
            Sandbox::Here(name, question) => {
                let digest = node.digest_of(&name, question.id);
                report::sandbox(Some(&name), digest, judge(&question))
            }
            Sandbox::Away(name) => {
                let judgement = self.away(&name, now).await;
                let digest = judgement.findings.image.as_ref().map(|image| image.digest);
                report::sandbox(Some(&name), digest, Verdict::of(judgement))
            }
            Sandbox::Unknown(why) => {
                let refusal = Refusal::new(Code::Internal, why);
                report::sandbox(None, None, Verdict::refused(refusal))
            }
        };
        Ok(Report::new(self.policies.as_ref().into(), images, containers, sandbox))
    }

    /// What is known of an image by its ID: in the runtime, or else from a time when it was there.
    fn known(&self, node: &Node, question: &Question) -> Vec<Known> {
        let mut known = node.known(question.id);
        for kept in self.store.of_id(question.id) {
            if known.iter().all(|one| one.digest() != kept.digest()) {
                known.push(kept);
            }
        }
        known
    }

    /// Whether somebody or other may have the image.
    fn somewhere(
        &self,
        name: &ImageRef,
        image: &Image,
        answers: &Answers,
        now: Timestamp,
    ) -> Verdict {
        let Some(selected) = self.policies.covering_somewhere(name) else {
            let refusal = self.policies.select(name, None).err();
            return Verdict::refused(refusal.unwrap_or_else(|| unreadable(image).about(name)));
        };
        let judged = image.known.iter().map(|known| {
            let (resolved, evidence) =
                (known.resolved(&name.repository), answers.about(known, &name.repository));
            let (decision, policies) =
                decide::decide(&selected, &resolved, &evidence, &Caller::default(), now);
            let findings = Findings { policies, ..Findings::default() };
            let refused = decision.is_err();
            let mut verdict = Verdict::of(Judgement { decision, findings });
            if refused
                && decide::acceptable_somewhere(&selected, &resolved, &evidence, Glass::Whole, now)
            {
                verdict.state = State::AcceptedForSome;
            }
            verdict
        });
        // Several children of one index can be here; one that is proven is enough.
        let best = judged.max_by_key(|verdict| verdict.state);
        best.unwrap_or_else(|| Verdict::refused(unreadable(image).about(name)))
    }

    async fn sandbox_question(&self, node: &Node) -> Result<Sandbox, RuntimeError> {
        let name = match self.sandbox.name(&self.runtime).await {
            Ok(name) => name,
            Err(pipeline::SandboxError::Runtime(error)) => return Err(error),
            Err(error) => return Ok(Sandbox::Unknown(error.to_string())),
        };
        let found = match node.id_of(&name) {
            Some(id) => Some(id),
            None => self.runtime.image(&name.to_string()).await?.map(|image| image.id),
        };
        Ok(match found {
            Some(id) => {
                let names = vec![name.clone()];
                Sandbox::Here(name, Question { id, names, caller: Caller::default() })
            }
            None => Sandbox::Away(name),
        })
    }

    /// The judgement of an image that would have to be pulled.
    async fn away(&self, name: &ImageRef, now: Timestamp) -> Judgement {
        let Some(registry) = &self.registry else {
            let why = "the sandbox image is not on this node, and no registry was asked";
            return Judgement::refused(Refusal::new(Code::NotProvenLocally, why).about(name));
        };
        let credentials = match (self.credentials)(&name.repository) {
            Ok(credentials) => credentials,
            Err(why) => {
                let refusal = Refusal::new(Code::RegistryUnauthorized, why);
                return Judgement::refused(refusal.about(name));
            }
        };
        let wanted = Wanted { image: name.clone(), credentials, caller: Caller::default() };
        let examining =
            pipeline::examine(registry, Some(&self.store), &self.policies, &wanted, now);
        let limit = pipeline::JUDGEMENT;
        let judged = timeout(limit, examining).await;
        judged.unwrap_or_else(|_| Judgement::late(&wanted, limit))
    }
}

/// The sandbox image.
enum Sandbox {
    /// It is on this node.
    Here(ImageRef, Question),
    /// It would have to be pulled.
    Away(ImageRef),
    /// Which one it is, is not known.
    Unknown(String),
}

impl Verdict {
    fn of(judgement: Judgement) -> Self {
        let Judgement { decision, findings } = judgement;
        let (state, refusal) = match decision {
            Ok(permit) => match permit.grounds() {
                Grounds::Warned(why) => (State::WouldWarn, Some(why.clone())),
                Grounds::Satisfied | Grounds::BreakGlass(_) => (State::Accepted, None),
            },
            Err(refusal) => (state_of(&refusal), Some(refusal)),
        };
        let reason = refusal.as_ref().map(|refusal| refusal.code);
        let message = refusal.map(|refusal| refusal.message);
        Self { state, reason, message, policies: findings.policies }
    }

    fn refused(refusal: Refusal) -> Self {
        Self::of(Judgement::refused(refusal))
    }
}

fn state_of(refusal: &Refusal) -> State {
    if refusal.code.is_judged() { State::Refused } else { State::NotJudged }
}

/// An image without a name can be asked for by its ID alone.
fn nameless(image: &Image, judge: &impl Fn(&Question) -> Verdict) -> Verdict {
    match image.known.first() {
        Some(known) => {
            let (id, caller) = (known.id(), Caller::default());
            judge(&Question { id, names: Vec::new(), caller })
        }
        None => Verdict::refused(unreadable(image).about(&image.digest)),
    }
}

fn unreadable(image: &Image) -> Refusal {
    let why = match &image.unusable {
        Some(why) => format!("no image can be started from it: {why}"),
        None => "the container runtime does not have its manifest, or none that it lists".into(),
    };
    Refusal::new(Code::ImageMalformed, why)
}

fn untold(container: &Container) -> Refusal {
    let why = "the container runtime does not tell which image this container was made of";
    Refusal::new(Code::Internal, why).about(&container.requested)
}
