//! Whether an image is there: one that no policy accepts is not.
//!
//! kubelet then pulls it, and the pull is judged with all its means, or says that it must not.
//! The call names no namespace, so that what is accepted for any is shown; what starts is for
//! `CreateContainer` to judge.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::request;
use jiff::Timestamp;

use crate::{
    audit::{Event, Record},
    decode,
    forward::{self, Answer, Upstream},
    image::{Digest, ImageRef, ReferenceError},
    judgement::{Asked, Judgement},
    local::Question,
    named::{ImageId, Named},
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
};

use super::{
    Pipeline,
    create::{is_among, repositories},
    fault,
};

/// How long the same answer is not recorded again: kubelet asks several times a minute for each
/// container that waits.
const REPEATED: Duration = Duration::from_secs(300);
/// Most answers of which that is remembered. Beyond, all are recorded again.
const MAX_HIDDEN: usize = 4096;

/// What was answered as absent, and is on record as that.
#[derive(Debug, Default)]
pub(super) struct Hidden(Mutex<HashMap<Digest, Instant>>);

impl Hidden {
    fn was_told(&self, what: Digest, now: Instant) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(&what).is_some_and(|at| now.saturating_duration_since(*at) < REPEATED)
    }

    fn tell(&self, what: Digest, now: Instant) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_HIDDEN {
            told.clear();
        }
        told.insert(what, now);
    }
}

/// The same for the same question, answered for the same reason under the same policies.
fn told(record: &Record) -> Digest {
    let requested = record.image.as_ref().map(|image| (&image.requested, &image.id));
    let set = record.policy_set.as_ref().map(|set| set.digest);
    Digest::of(format!("{requested:?} {set:?} {:?}", record.message).as_bytes())
}

impl Pipeline {
    /// Passes the call on, and answers for an image that is accepted for no namespace as for one
    /// that is not there. All other answers are the runtime's own.
    pub async fn image_status(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        let arrived = Instant::now();
        let read = |body: Vec<u8>| {
            let message = decode::request("ImageStatus", &body)?.to_vec();
            Ok((decode::image_status(&message)?, message))
        };
        let (requested, message) = match body.and_then(read) {
            Ok(read) => read,
            Err(refusal) => return self.refuse_unread(Event::ImageStatus, refusal, arrived).await,
        };
        let answer = match forward::hold(upstream, head, &message).await {
            Ok(answer) => answer,
            Err(failed) => return failed,
        };
        let found = match answer.message() {
            Ok(None) => return answer.into_response(),
            Ok(Some(found)) => decode::image_found(found),
            Err(refusal) => Err(refusal),
        };
        let (id, names) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return answer.into_response(),
            Err(refusal) => return self.refuse_unread(Event::ImageStatus, refusal, arrived).await,
        };
        let asked_by = match requested.parse() {
            Ok(Named::Reference(name)) if is_among(&name, &names) => vec![name],
            _ => repositories(&names),
        };
        let (judgement, name) = match self.accepted_somewhere(&id, &asked_by).await {
            Ok(()) => return answer.into_response(),
            Err(refused) => refused,
        };
        let asked = Asked { requested: Some(&requested), name, pod: None };
        let record = judgement.record(Event::ImageStatus, asked, arrived.elapsed());
        let what = told(&record);
        if self.0.hidden.was_told(what, Instant::now()) {
            return answer.emptied();
        }
        match self.0.audit.record(record, ()).await {
            Ok(_) => {
                self.0.hidden.tell(what, Instant::now());
                answer.emptied()
            }
            Err(unrecorded) => forward::refuse(&unrecorded),
        }
    }

    /// Whether the image is accepted under one of its names at least, for somebody.
    async fn accepted_somewhere<'a>(
        &self,
        id: &str,
        names: &'a [ImageRef],
    ) -> Result<(), (Arc<Judgement>, Option<&'a ImageRef>)> {
        let refused = |refusal| (Arc::new(Judgement::refused(refusal)), None);
        let policies = self.0.policies.snapshot(Timestamp::now()).map_err(refused)?;
        let id: ImageId = id.parse().map_err(|error: ReferenceError| {
            refused(Refusal::new(Code::Internal, error.to_string()))
        })?;
        let mut first = None;
        for name in names {
            let question = Question { id, names: vec![name.clone()], caller: Caller::default() };
            if self.judge_here(&policies, question).await.decision.is_ok() {
                return Ok(());
            }
            match self.for_anybody(&policies, id, name).await {
                Ok(()) => return Ok(()),
                Err(judgement) => first.get_or_insert((judgement, Some(name))),
            };
        }
        let why = "the image has no name on this node, and policies go by names";
        Err(first.unwrap_or_else(|| refused(Refusal::new(Code::NoPolicyMatches, why).about(&id))))
    }

    async fn for_anybody(
        &self,
        policies: &Arc<PolicySet>,
        id: ImageId,
        name: &ImageRef,
    ) -> Result<(), Arc<Judgement>> {
        let (local, policies, name) = (self.0.local.clone(), policies.clone(), name.clone());
        let asking = self
            .0
            .threads
            .spawn_blocking(move || local.for_anybody(&policies, id, &name, Timestamp::now()));
        asking.await.unwrap_or_else(|_| Err(Arc::new(Judgement::refused(fault()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_again_after_a_while() {
        let (hidden, now) = (Hidden::default(), Instant::now());
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        assert!(!hidden.was_told(one, now));
        hidden.tell(one, now);
        assert!(hidden.was_told(one, now + REPEATED / 2) && !hidden.was_told(other, now));
        assert!(!hidden.was_told(one, now + REPEATED));
    }
}
