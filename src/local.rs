//! The judgement of what is on this node already: from evidence kept here, never from the network.
//!
//! Proof is about bytes: an image ID, which the configuration's digest is, leads to the manifests
//! that name it, and these to what others have signed. The runtime's names for an image prove
//! nothing; they only say which policies it must satisfy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use crate::{
    decide::{self, Glass, Grounds},
    evidence::{Evidence, Known, Store},
    image::{Digest, ImageRef, Repository, Version},
    judgement::{Findings, Judgement},
    named::ImageId,
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
};

/// Most verdicts that are remembered. Beyond, all are derived anew.
const MAX_VERDICTS: usize = 4096;
/// Most images of which it is remembered that the runtime was asked. Beyond, it is asked again.
const MAX_LOOKED_AT: usize = 16_384;

/// What is to be judged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The image, by the runtime's ID.
    pub id: ImageId,
    /// The names that it goes by. Each of them must be accepted.
    pub names: Vec<ImageRef>,
    /// The pod that it is for, or a caller who names none.
    pub caller: Caller,
}

/// Judges from the evidence on this node. Clones share it.
#[derive(Clone, Debug)]
pub struct Local {
    store: Store,
    verdicts: Arc<Mutex<HashMap<Question, Verdict>>>,
    runtime: Arc<Mutex<InRuntime>>,
}

/// What is in the runtime beside that which the store knows. Several manifests can name one
/// configuration, and one of them can be a checkpoint: containerd 2.1 to 2.3 would restore that
/// when a container is created by the ID which both have, whatever the other one proves.
#[derive(Debug, Default)]
struct InRuntime {
    /// The runtime was asked what it has under these IDs.
    looked_at: BTreeSet<ImageId>,
    /// IDs under which it has a checkpoint, and the digest of that.
    checkpoints: BTreeMap<ImageId, Digest>,
}

/// A permission by proof, and while what it holds: verdicts are a function of the policy set, the evidence
/// and the time. Evidence proves as much tomorrow, so that it is asked for no second time.
/// Refusals are not remembered: evidence may come at any moment.
#[derive(Clone, Debug)]
struct Verdict {
    policies: Digest,
    from: Timestamp,
    until: Timestamp,
    judgement: Arc<Judgement>,
}

impl Local {
    /// Judges from this store.
    pub fn new(store: Store) -> Self {
        Self { store, verdicts: Arc::default(), runtime: Arc::default() }
    }

    /// What it judges from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether there is anything about an image: its manifests at least. Blocks on the disk.
    pub fn knows(&self, id: ImageId) -> bool {
        self.store.has(id)
    }

    /// Whether the runtime was asked what it has under this ID, since the start.
    pub fn was_looked_at(&self, id: ImageId) -> bool {
        self.in_runtime().looked_at.contains(&id)
    }

    /// Remembers that the runtime was asked what it has under these IDs.
    pub fn looked_at(&self, ids: impl IntoIterator<Item = ImageId>) {
        let looked_at = &mut self.in_runtime().looked_at;
        if looked_at.len() >= MAX_LOOKED_AT {
            looked_at.clear();
        }
        looked_at.extend(ids);
    }

    /// Marks IDs under which the runtime has a checkpoint: nothing is started by them.
    pub fn mark(&self, ids: impl IntoIterator<Item = ImageId>, checkpoint: Digest) {
        let ids: BTreeSet<_> = ids.into_iter().collect();
        if ids.is_empty() {
            return;
        }
        self.in_runtime().checkpoints.extend(ids.iter().map(|id| (*id, checkpoint)));
        self.verdicts().retain(|question, _| !ids.contains(&question.id));
    }

    /// The digests of all checkpoints that IDs are marked for.
    pub fn checkpoints(&self) -> BTreeSet<Digest> {
        self.in_runtime().checkpoints.values().copied().collect()
    }

    /// Takes the marks for these checkpoints away: the runtime does not have them any more.
    pub fn unmark(&self, gone: &BTreeSet<Digest>) {
        self.in_runtime().checkpoints.retain(|_, digest| !gone.contains(digest));
    }

    // Nothing that runs under the locks can panic; a poisoned one holds a whole value.
    fn in_runtime(&self) -> MutexGuard<'_, InRuntime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verdicts(&self) -> MutexGuard<'_, HashMap<Question, Verdict>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permission that was derived before and holds now, at the price of one look-up.
    pub fn remembered(
        &self,
        policies: &PolicySet,
        question: &Question,
        now: Timestamp,
    ) -> Option<Arc<Judgement>> {
        let verdicts = self.verdicts();
        let verdict = verdicts.get(question)?;
        let holds =
            verdict.policies == policies.digest() && verdict.from <= now && now < verdict.until;
        holds.then(|| verdict.judgement.clone())
    }

    /// Whether anybody may have the image by this name, and if not, why. It is for the call that
    /// asks whether an image is there and names no pod; who then starts it is judged. Blocks on
    /// the disk.
    pub fn for_anybody(
        &self,
        policies: &PolicySet,
        id: ImageId,
        name: &ImageRef,
        now: Timestamp,
    ) -> Result<(), Arc<Judgement>> {
        let mut findings = Findings { id: Some(id), ..Findings::under(policies) };
        let refused =
            |refusal, findings| Err(Arc::new(Judgement { decision: Err(refusal), findings }));
        if let Some(checkpoint) = self.in_runtime().checkpoints.get(&id) {
            return refused(restorable(id, Some(name), *checkpoint), findings);
        }
        let Some(selected) = policies.covering_somewhere(name) else {
            let nobody = || Refusal::new(Code::NoPolicyMatches, "no policy matches").about(name);
            let refusal = policies.select(name, None).err().unwrap_or_else(nobody);
            return refused(refusal, findings);
        };
        let mut refusal = None;
        for known in self.store.of_id(id).iter().filter(|known| fits(known, name)) {
            let (image, evidence) = (known.resolved(&name.repository), known.evidence());
            if decide::acceptable_somewhere(&selected, &image, &evidence, Glass::Granted, now) {
                return Ok(());
            }
            let caller = Caller::default();
            let (decision, reports) = decide::decide(&selected, &image, &evidence, &caller, now);
            if let (Err(why), None) = (decision, &refusal) {
                (findings.image, findings.policies) = (Some(image.image), reports);
                refusal = Some(why);
            }
        }
        refused(refusal.unwrap_or_else(|| unknown(id, name)), findings)
    }

    /// Judges, and remembers a permission. Blocks on the disk.
    pub fn judge(
        &self,
        policies: &PolicySet,
        question: &Question,
        now: Timestamp,
    ) -> Arc<Judgement> {
        let known = self.store.of_id(question.id);
        let (mut judgement, (from, until)) =
            judge_known(&known, |known, _| known.evidence(), policies, question, now);
        // With the verdicts locked, so that a mark is seen here or takes the verdict away again.
        let mut verdicts = self.verdicts();
        if let Some(checkpoint) = self.in_runtime().checkpoints.get(&question.id) {
            judgement.decision = Err(restorable(question.id, question.names.first(), *checkpoint));
        }
        let judgement = Arc::new(judgement);
        // What was let through without proof may be proven by the next time, and be told as such.
        if judgement.is_proof() {
            if verdicts.len() >= MAX_VERDICTS {
                verdicts.clear();
            }
            let verdict =
                Verdict { policies: policies.digest(), from, until, judgement: judgement.clone() };
            verdicts.insert(question.clone(), verdict);
        }
        judgement
    }
}

/// The judgement of an image by what is known of it, with the evidence about each manifest under
/// the name of a repository, and the time around `now` in which it holds. A function of its
/// arguments.
pub fn judge_known(
    known: &[Known],
    evidence: impl Fn(&Known, &Repository) -> Evidence,
    policies: &PolicySet,
    question: &Question,
    now: Timestamp,
) -> (Judgement, (Timestamp, Timestamp)) {
    let mut findings = Findings { id: Some(question.id), ..Findings::under(policies) };
    let mut decision = Err(nameless(question.id));
    let mut window = (Timestamp::MIN, Timestamp::MAX);
    // The same contents under another manifest are no better for that.
    if let Some(refusal) = known.iter().find_map(|known| revoked(known, policies, question)) {
        return (Judgement { decision: Err(refusal), findings }, window);
    }
    for name in &question.names {
        let judged = judge_name(known, &evidence, policies, question, name, now, &mut findings);
        let (permit, (from, until)) = match judged {
            Ok(judged) => judged,
            Err(refusal) => {
                decision = Err(refusal);
                break;
            }
        };
        window = (window.0.max(from), window.1.min(until));
        // Of several permits, one that policies only warned about is the one to tell.
        let tells = |permit: &decide::Permit| *permit.grounds() != Grounds::Satisfied;
        if !decision.as_ref().is_ok_and(tells) {
            decision = Ok(permit);
        }
    }
    (Judgement { decision, findings }, window)
}

fn revoked(known: &Known, policies: &PolicySet, question: &Question) -> Option<Refusal> {
    let name = question.names.first()?;
    let image = known.resolved(&name.repository);
    decide::revoked(policies.revoked(), &image).map(|refusal| refusal.about(&image.image))
}

type Permitted = (decide::Permit, (Timestamp, Timestamp));

/// The judgement under one name. Several manifests can name one configuration, and with it the
/// same contents of layers: one of them that is proven is enough, and one that is let through
/// without proof counts where none is.
fn judge_name(
    known: &[Known],
    evidence: &impl Fn(&Known, &Repository) -> Evidence,
    policies: &PolicySet,
    question: &Question,
    name: &ImageRef,
    now: Timestamp,
    findings: &mut Findings,
) -> Result<Permitted, Refusal> {
    let caller = &question.caller;
    let selected = policies.select(name, caller.namespace.as_deref())?;
    let window = selected.constant_around(now);
    let (mut refusal, mut permitted) = (None, None);
    for known in known.iter().filter(|known| fits(known, name)) {
        let image = known.resolved(&name.repository);
        findings.image.get_or_insert_with(|| image.image.clone());
        let evidence = evidence(known, &name.repository);
        let (decision, reports) = decide::decide(&selected, &image, &evidence, caller, now);
        match decision {
            Ok(permit) if *permit.grounds() == Grounds::Satisfied => {
                permitted = Some((permit, reports));
                break;
            }
            Ok(permit) => drop(permitted.get_or_insert((permit, reports))),
            Err(why) => drop(refusal.get_or_insert((why, reports))),
        }
    }
    if let Some((permit, reports)) = permitted {
        findings.image = Some(permit.image().clone());
        findings.policies.extend(reports);
        return Ok((permit, window));
    }
    let (refusal, reports) = refusal.unwrap_or_else(|| (unknown(question.id, name), Vec::new()));
    findings.policies.extend(reports);
    Err(refusal)
}

/// Whether what is known can be what the name means: a digest means exactly its own bytes.
pub(crate) fn fits(known: &Known, name: &ImageRef) -> bool {
    match &name.version {
        Version::Tag(_) => true,
        Version::Digest(digest) => {
            known.digest() == *digest
                || known.child().is_some_and(|child| child.manifest.digest == *digest)
        }
    }
}

/// The refusal of an ID by which the runtime might restore a checkpoint.
pub(crate) fn restorable(id: ImageId, name: Option<&ImageRef>, checkpoint: Digest) -> Refusal {
    let why = format!(
        "the container runtime also has the checkpoint {checkpoint} under this image's ID, and \
         might restore that instead: remove it from the runtime"
    );
    let refusal = Refusal::new(Code::ImageMalformed, why);
    match name {
        Some(name) => refusal.about(name),
        None => refusal.about(&id),
    }
}

fn nameless(id: ImageId) -> Refusal {
    let why = "the image has no name on this node, and policies go by names: name it in the pod";
    Refusal::new(Code::NoPolicyMatches, why).about(&id)
}

fn unknown(id: ImageId, name: &ImageRef) -> Refusal {
    let message = format!(
        "nothing on this node shows that the image {id} belongs to this name: let it be pulled \
         through Portcullis (imagePullPolicy: Always), or bring evidence with \"portcullis \
         evidence import\""
    );
    Refusal::new(Code::NotProvenLocally, message).about(name)
}

#[cfg(test)]
mod tests;
