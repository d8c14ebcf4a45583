//! One container: each of its images must be proven by what is on this node.

use std::{sync::Arc, time::Instant};

use http::request;
use jiff::Timestamp;
use tokio::time::timeout;

use crate::{
    audit::Event,
    decode::{self, AskedImage, CreateRequest},
    forward::{self, Answer, Upstream},
    image::{ImageRef, Version, shorten},
    judgement::{Asked, Judgement},
    learn,
    local::Question,
    named::{ImageId, Named},
    policy::{Caller, PolicySet},
    refusal::{Code, Refusal},
};

use super::{JUDGEMENT, Pipeline, fault};

/// Most repositories of one image whose policies are held against it.
const MAX_REPOSITORIES: usize = 64;

impl Pipeline {
    /// Judges every image of a container, records the judgements, and lets it be created if, and
    /// only if, all were permitted.
    pub async fn create(
        &self,
        upstream: &Upstream,
        head: request::Parts,
        body: Result<Vec<u8>, Refusal>,
    ) -> Answer {
        let arrived = Instant::now();
        let request = match body
            .and_then(|body| decode::create(decode::request("CreateContainer", &body)?))
        {
            Ok(request) => request,
            Err(refusal) => return self.refuse_unread(Event::Create, refusal, arrived).await,
        };
        let mut judged = Vec::with_capacity(request.images.len());
        for image in &request.images {
            let (judgement, name) = self.judge_start(image, &request.caller).await;
            let record = judgement.record(
                Event::Create,
                asked(image, name.as_ref(), &request),
                arrived.elapsed(),
            );
            match &judgement.decision {
                Ok(permit) => judged.push((record, permit.clone())),
                Err(refusal) => return self.refuse(record, refusal.clone()).await,
            }
        }
        let mut permits = Vec::with_capacity(judged.len());
        for (record, permit) in judged {
            match self.0.audit.record(record, permit).await {
                Ok(permit) => permits.push(permit),
                Err(unrecorded) => return forward::refuse(&unrecorded),
            }
        }
        let (answer, created) = forward::create(upstream, head, &request, permits).await;
        if let Some(id) = created {
            // A disk that hangs holds up this call, and not the relay; nor is a note lost when the
            // client gives up now.
            let ledger = self.0.ledger.clone();
            let _ = self.0.threads.spawn_blocking(move || ledger.permit(&id)).await;
        }
        answer
    }

    /// The judgement of one image, and the name that it was judged by.
    async fn judge_start(
        &self,
        image: &AskedImage,
        caller: &Caller,
    ) -> (Arc<Judgement>, Option<ImageRef>) {
        let policies = match self.0.policies.snapshot(Timestamp::now()) {
            Ok(policies) => policies,
            Err(refusal) => return (Arc::new(Judgement::refused(refusal)), None),
        };
        let caller = &caller.seen_by(&policies);
        // kubelet's own way, with nobody to ask.
        if let (Named::Id(id), Some(name)) = (&image.named, written(image))
            && !begins(*id, &image.user_specified)
        {
            let question = Question { id: *id, names: vec![name.clone()], caller: caller.clone() };
            return (self.judge_here(&policies, question).await, Some(name));
        }
        match self.question(image, caller.clone()).await {
            Ok(question) => {
                let name = question.names.first().cloned();
                (self.judge_here(&policies, question).await, name)
            }
            Err(refusal) => (Arc::new(Judgement::refused(refusal)), None),
        }
    }

    /// Judges from what is on this node: what is known here, or else what the runtime has.
    pub(super) async fn judge_here(
        &self,
        policies: &Arc<PolicySet>,
        question: Question,
    ) -> Arc<Judgement> {
        if let Some(judgement) = self.0.local.remembered(policies, &question, Timestamp::now()) {
            return judgement;
        }
        let (stages, policies) = (self.0.clone(), policies.clone());
        let judging = self.0.threads.spawn(async move {
            let (local, id) = (stages.local.clone(), question.id);
            let ready = tokio::task::spawn_blocking(move || local.knows(id));
            let knows = ready.await.is_ok_and(|knows| knows);
            if !knows || !stages.local.was_looked_at(id) {
                let learning = learn::image(&stages.runtime, &stages.local, id);
                let why = match timeout(JUDGEMENT, learning).await {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("the container runtime does not answer".to_owned()),
                };
                if let Some(why) = why {
                    tracing::warn!(%id, %why, "what an image is cannot be learnt");
                    // What is known here may be fine, and the runtime start something else.
                    if knows {
                        let refusal = Refusal::new(Code::Internal, why).about(&id);
                        return Ok(Arc::new(Judgement::refused(refusal)));
                    }
                }
            }
            let local = stages.local.clone();
            let judging = move || local.judge(&policies, &question, Timestamp::now());
            tokio::task::spawn_blocking(judging).await
        });
        match judging.await {
            Ok(Ok(judgement)) => judgement,
            Ok(Err(_)) | Err(_) => Arc::new(Judgement::refused(fault())),
        }
    }

    /// Asks the runtime what an image is, where the request alone does not tell.
    async fn question(&self, image: &AskedImage, caller: Caller) -> Result<Question, Refusal> {
        let shown = shorten(&image.requested);
        let runtime = self.0.runtime.clone();
        let asked = match &image.named {
            // The grammar's spelling of it: the runtime may not know the short one.
            Named::Id(id) => id.to_string(),
            Named::Short(_) | Named::Reference(_) => image.requested.clone(),
        };
        let asking = self.0.threads.spawn(async move { runtime.image(&asked).await });
        let found = match asking.await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => {
                let why = "the container runtime has no such image";
                return Err(Refusal::new(Code::ImageNotFound, why).about(&shown));
            }
            Ok(Err(error)) => {
                return Err(Refusal::new(Code::Internal, error.to_string()).about(&shown));
            }
            Err(_) => return Err(fault().about(&shown)),
        };
        let is_it = match &image.named {
            Named::Id(id) => found.id == *id,
            Named::Short(text) => begins(found.id, text),
            Named::Reference(name) => {
                is_among(name, &found.names) || begins(found.id, &image.requested)
            }
        };
        if !is_it {
            let why = format!("the container runtime answers with another image, {}", found.id);
            return Err(Refusal::new(Code::Internal, why).about(&shown));
        }
        // What a person wrote, and what a client made of it: each must be accepted.
        let mut names: Vec<ImageRef> = written(image)
            .filter(|name| !begins(found.id, &image.user_specified) || is_among(name, &found.names))
            .into_iter()
            .collect();
        if let Named::Reference(name) = &image.named
            && is_among(name, &found.names)
            && !names.contains(name)
        {
            names.push(name.clone());
        }
        if names.is_empty() {
            names = every_repository(&found.names).map_err(|refusal| refusal.about(&found.id))?;
        }
        Ok(Question { id: found.id, names, caller })
    }
}

/// The name that a person wrote. An ID is none: it says nothing of where the image comes from.
fn written(image: &AskedImage) -> Option<ImageRef> {
    match image.user_specified.parse() {
        Ok(Named::Reference(name)) => Some(name),
        Ok(Named::Id(_) | Named::Short(_)) | Err(_) => None,
    }
}

/// Whether this is the beginning of an ID, with or without the algorithm. `deadbeef` can be a name
/// as well, and the runtime looks for that first; whoever writes it names no repository.
fn begins(id: ImageId, text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    !hex.is_empty() && id.config().hex().starts_with(hex)
}

/// Whether the runtime found the image by this name, and not by an ID that begins like it.
pub(crate) fn is_among(name: &ImageRef, names: &[String]) -> bool {
    names.iter().any(|other| other.parse::<ImageRef>().is_ok_and(|other| other == *name))
}

/// The names of an image that was asked for by none: whoever names no repository must satisfy the
/// policies of all. A name that cannot be read could be that of a policy, too.
fn every_repository(names: &[String]) -> Result<Vec<ImageRef>, Refusal> {
    if let Some(strange) = names.iter().find(|name| name.parse::<ImageRef>().is_err()) {
        let why = format!(
            "the container runtime has the image under a name that no policy can be held against, \
             \"{}\": remove that name, or name the image in the pod",
            shorten(strange)
        );
        return Err(Refusal::new(Code::NoPolicyMatches, why));
    }
    let found = repositories(names);
    if found.len() > MAX_REPOSITORIES {
        let why = format!(
            "the container runtime has the image in more than {MAX_REPOSITORIES} repositories: \
             name one in the pod"
        );
        return Err(Refusal::new(Code::LimitExceeded, why));
    }
    Ok(found)
}

/// The names of an image: each of its repositories once, by digest where the runtime says one.
pub(crate) fn repositories(names: &[String]) -> Vec<ImageRef> {
    let mut found: Vec<ImageRef> = Vec::new();
    let mut all: Vec<ImageRef> = names.iter().filter_map(|name| name.parse().ok()).collect();
    all.sort_by_key(|name| matches!(name.version, Version::Tag(_)));
    for name in all {
        if !found.iter().any(|other| other.repository == name.repository) {
            found.push(name);
        }
    }
    found
}

fn asked<'a>(
    image: &'a AskedImage,
    name: Option<&'a ImageRef>,
    request: &'a CreateRequest,
) -> Asked<'a> {
    Asked { requested: Some(image.shown()), name, pod: request.pod.as_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_name_goes_by_each_repository_once() {
        let digest = format!("sha256:{}", crate::image::Digest::of(b"x").hex());
        let names = [
            "a.io/x:v1".to_owned(),
            "a.io/x:v2".into(),
            "b.io/y:v1".into(),
            format!("a.io/x@{digest}"),
            "not a name".into(),
        ];
        let found: Vec<_> = repositories(&names).iter().map(ToString::to_string).collect();
        assert_eq!(found, [format!("a.io/x@{digest}"), "b.io/y:v1".into()]);
        assert!(repositories(&[]).is_empty());
    }

    #[test]
    fn whoever_names_no_repository_is_held_to_all() {
        let names = |count| (0..count).map(|n| format!("a.io/x{n}:v1")).collect::<Vec<_>>();
        assert_eq!(every_repository(&names(64)).unwrap().len(), 64);
        let refusal = every_repository(&names(65)).unwrap_err();
        assert_eq!(
            (refusal.code, &*refusal.message),
            (
                Code::LimitExceeded,
                "the container runtime has the image in more than 64 repositories: name one in \
                 the pod"
            )
        );
        let sha512 = format!("a.io/x@sha512:{}", "0".repeat(128));
        let refusal = every_repository(&["a.io/x:v1".into(), sha512.clone()]).unwrap_err();
        assert_eq!(refusal.code, Code::NoPolicyMatches);
        assert!(refusal.message.contains("a.io/x@sha512:0000"), "{}", refusal.message);
    }

    #[test]
    fn the_beginning_of_an_id_is_no_name() {
        let name: ImageRef = "deadbeef".parse().unwrap();
        assert!(is_among(&name, &["docker.io/library/deadbeef:latest".into()]));
        assert!(!is_among(&name, &["docker.io/library/other:latest".into()]));
        let by = |user: &str| AskedImage {
            requested: "x".into(),
            named: Named::Short("x".into()),
            user_specified: user.into(),
        };
        assert_eq!(written(&by("app:v1")), "app:v1".parse().ok());
        let id = ImageId::of_config(crate::image::Digest::of(b"x")).to_string();
        for none in ["", "sha256:abc", &id, &id[7..], "/x"] {
            assert_eq!(written(&by(none)), None, "{none}");
        }
    }
}
