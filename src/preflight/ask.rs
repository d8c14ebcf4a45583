//! What registries say about images whose proof is not on this node.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::timeout;

use crate::{
    decide::{self, Grounds},
    evidence::{self, Evidence, Known},
    image::{Digest, ImageRef, Repository},
    inventory::MAX_FAILURES,
    named::ImageId,
    pipeline::JUDGEMENT,
    policy::Caller,
    refusal::{Code, Refusal},
    resolve::Registry,
};

use super::{Preflight, Sandbox, find::Node};

/// Images that registries are asked about at a time.
const CONCURRENCY: usize = 8;

type Key = (Digest, ImageId, String);

/// The evidence about each image, by the repository that it was asked of.
#[derive(Default)]
pub(super) struct Answers(BTreeMap<Key, Evidence>);

impl Answers {
    /// What a registry said and the store holds; of those nobody had to ask, the latter alone.
    pub(super) fn about(&self, known: &Known, repository: &Repository) -> Evidence {
        let asked = self.0.get(&key(known, repository)).cloned();
        asked.unwrap_or_else(|| known.evidence())
    }
}

fn key(known: &Known, repository: &Repository) -> Key {
    (known.digest(), known.id(), repository.to_string())
}

/// Asks the registries, where there is a policy to satisfy and what is kept does not satisfy it.
pub(super) async fn registries(
    preflight: &Preflight,
    node: &Node,
    sandbox: &Sandbox,
    now: Timestamp,
    progress: &dyn Fn(usize, usize),
) -> Answers {
    let Some(registry) = &preflight.registry else { return Answers::default() };
    let mut questions: BTreeMap<Key, (Known, Repository)> = BTreeMap::new();
    let mut add = |known: &Known, name: &ImageRef| {
        if is_open(preflight, known, name, now) {
            let question = || (known.clone(), name.repository.clone());
            questions.entry(key(known, &name.repository)).or_insert_with(question);
        }
    };
    for image in &node.images {
        for known in &image.known {
            image.names.iter().for_each(|name| add(known, name));
        }
    }
    let of_containers = node.containers.iter().filter_map(|container| container.question.as_ref());
    let of_sandbox = match sandbox {
        Sandbox::Here(_, question) => Some(question),
        Sandbox::Away(_) | Sandbox::Unknown(_) => None,
    };
    for question in of_containers.chain(of_sandbox) {
        for known in &preflight.known(node, question) {
            question.names.iter().for_each(|name| add(known, name));
        }
    }
    let (total, done) = (questions.len(), Cell::new(0));
    progress(0, total);
    let failures = Failures::default();
    let asking = stream::iter(questions).map(|(key, (known, repository))| {
        let (done, failures) = (&done, &failures);
        async move {
            let evidence = match failures.gave_up(&repository) {
                Some(mut gap) => {
                    gap.add(known.evidence());
                    gap
                }
                None => {
                    let evidence = ask(preflight, registry, &known, &repository).await;
                    failures.note(&repository, &evidence);
                    evidence
                }
            };
            done.set(done.get() + 1);
            progress(done.get(), total);
            (key, evidence)
        }
    });
    Answers(asking.buffer_unordered(CONCURRENCY).collect().await)
}

/// How often each host failed, without an answer since. One that is down must not cost a time-out
/// for each image of the node.
#[derive(Default)]
struct Failures(RefCell<BTreeMap<String, usize>>);

impl Failures {
    /// The gap in place of an answer, where the host is asked no more.
    fn gave_up(&self, repository: &Repository) -> Option<Evidence> {
        let host = repository.registry();
        let failures = self.0.borrow().get(host).copied().unwrap_or_default();
        let why = || {
            let why = format!("{host} failed for {MAX_FAILURES} other images, and was not asked");
            gap(Refusal::new(Code::RegistryUnreachable, why))
        };
        (failures >= MAX_FAILURES).then(why)
    }

    fn note(&self, repository: &Repository, evidence: &Evidence) {
        let failed = evidence.gaps.iter().any(|gap| gap.code == Code::RegistryUnreachable);
        let mut hosts = self.0.borrow_mut();
        let failures = hosts.entry(repository.registry().to_owned()).or_default();
        *failures = if failed { *failures + 1 } else { 0 };
    }
}

fn gap(refusal: Refusal) -> Evidence {
    Evidence { claims: Vec::new(), gaps: vec![refusal] }
}

/// Whether a registry's word could change anything.
fn is_open(preflight: &Preflight, known: &Known, name: &ImageRef, now: Timestamp) -> bool {
    let Some(selected) = preflight.policies.covering_somewhere(name) else { return false };
    let image = known.resolved(&name.repository);
    let caller = Caller::default();
    let (decision, _) = decide::decide(&selected, &image, &known.evidence(), &caller, now);
    !decision.is_ok_and(|permit| *permit.grounds() == Grounds::Satisfied)
}

async fn ask(
    preflight: &Preflight,
    registry: &Registry,
    known: &Known,
    repository: &Repository,
) -> Evidence {
    let mut evidence = match (preflight.credentials)(repository) {
        Err(why) => gap(Refusal::new(Code::RegistryUnauthorized, why)),
        Ok(credentials) => {
            let (repo, image) =
                (registry.repo(repository, &credentials), known.resolved(repository));
            let gathered = timeout(JUDGEMENT, evidence::gather(&repo, &image)).await;
            gathered.unwrap_or_else(|_| {
                let limit = JUDGEMENT.as_secs();
                let why = format!("the registry's answers took more than {limit} s in all");
                gap(Refusal::new(Code::RegistryUnreachable, why))
            })
        }
    };
    evidence.add(known.evidence());
    evidence
}
