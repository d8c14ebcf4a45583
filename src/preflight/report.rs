//! What was found, for people and machines alike.

use serde::Serialize;

use crate::{
    audit::PolicySetId,
    evidence::Known,
    image::{Digest, ImageRef},
    named::ImageId,
};

use super::{
    State, Verdict,
    find::{Container, Image, Node},
};

/// Everything, what would be refused first.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The candidate.
    pub policy_set: PolicySetId,
    /// Each image of the runtime under each of its repositories.
    pub images: Vec<ImageFinding>,
    /// Each running container.
    pub containers: Vec<ContainerFinding>,
    /// The image that pods' sandboxes run from.
    pub sandbox: SandboxFinding,
    /// How many of all these.
    pub summary: Summary,
}

/// An image under the names of one repository.
#[derive(Debug, Serialize)]
pub struct ImageFinding {
    /// What would become of it when nobody says which pod it is for: accepted for somebody is
    /// accepted.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Its names in this repository. Empty: it has none at all.
    pub names: Vec<String>,
    /// Of its manifest or index.
    pub digest: Digest,
    /// The runtime's ID of it. None: it is no image that can be read.
    pub id: Option<ImageId>,
    /// Pods with running containers that were made of it under this repository.
    pub used_by: Vec<String>,
}

/// A running container.
#[derive(Debug, Serialize)]
pub struct ContainerFinding {
    /// What would become of it if it were created now.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The runtime's ID of the container.
    pub id: String,
    /// Its name within the pod.
    pub name: String,
    /// Its pod. None: it belongs to none.
    pub pod: Option<PodName>,
    /// The image as it was asked for.
    pub image: String,
    /// The runtime's ID of the image.
    pub image_id: Option<ImageId>,
}

/// A pod.
#[derive(Debug, Serialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The sandbox image.
#[derive(Debug, Serialize)]
pub struct SandboxFinding {
    /// What would become of pods' sandboxes.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Its name. None: it is not known.
    pub image: Option<String>,
    /// Of its manifest or index. None: it is not on this node, and no registry told it.
    pub digest: Option<Digest>,
}

/// Numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Images, under each of their repositories.
    pub images: usize,
    /// Running containers.
    pub containers: usize,
    /// Of these and the sandbox image: would be refused.
    pub refused: usize,
    /// Could not be judged.
    pub not_judged: usize,
    /// Would be let through with a warning.
    pub would_warn: usize,
}

impl Report {
    pub(super) fn new(
        policy_set: PolicySetId,
        mut images: Vec<ImageFinding>,
        mut containers: Vec<ContainerFinding>,
        sandbox: SandboxFinding,
    ) -> Self {
        images.sort_by(|a, b| image_order(a).cmp(&image_order(b)));
        containers.sort_by(|a, b| container_order(a).cmp(&container_order(b)));
        let states = (images.iter().map(|one| &one.verdict))
            .chain(containers.iter().map(|one| &one.verdict))
            .chain([&sandbox.verdict])
            .map(|verdict| verdict.state);
        let mut summary =
            Summary { images: images.len(), containers: containers.len(), ..Summary::default() };
        for state in states {
            match state {
                State::Refused => summary.refused += 1,
                State::NotJudged => summary.not_judged += 1,
                State::WouldWarn => summary.would_warn += 1,
                State::AcceptedForSome | State::Accepted => {}
            }
        }
        Self { policy_set, images, containers, sandbox, summary }
    }
}

fn image_order(image: &ImageFinding) -> (State, &[String], Digest) {
    (image.verdict.state, &image.names, image.digest)
}

fn container_order(container: &ContainerFinding) -> (State, Option<(&str, &str)>, &str, &str) {
    let pod = container.pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name));
    (container.verdict.state, pod, &container.name, &container.id)
}

pub(super) fn image(image: &Image, verdict: Verdict, node: &Node) -> ImageFinding {
    let is_use = |container: &&Container| {
        container.question.as_ref().is_some_and(|question| {
            let same_repository = |name: &ImageRef| {
                image.name.as_ref().is_some_and(|own| own.repository == name.repository)
            };
            image.known.iter().any(|known| known.id() == question.id)
                && question.names.iter().any(same_repository)
        })
    };
    let pods = node.containers.iter().filter(is_use).filter_map(|one| pod(&one.pod));
    let mut used_by: Vec<_> =
        pods.map(|PodName { namespace, name }| format!("{namespace}/{name}")).collect();
    used_by.sort();
    used_by.dedup();
    ImageFinding {
        verdict,
        names: image.names.iter().map(ToString::to_string).collect(),
        digest: image.digest,
        id: image.known.first().map(Known::id),
        used_by,
    }
}

pub(super) fn container(container: &Container, verdict: Verdict) -> ContainerFinding {
    ContainerFinding {
        verdict,
        id: container.id.clone(),
        name: container.name.clone(),
        pod: pod(&container.pod),
        image: container.requested.clone(),
        image_id: container.question.as_ref().map(|question| question.id),
    }
}

pub(super) fn sandbox(
    name: Option<&ImageRef>,
    digest: Option<Digest>,
    verdict: Verdict,
) -> SandboxFinding {
    SandboxFinding { verdict, image: name.map(ToString::to_string), digest }
}

fn pod([namespace, name, _]: &[String; 3]) -> Option<PodName> {
    let pod = PodName { namespace: namespace.clone(), name: name.clone() };
    (!name.is_empty()).then_some(pod)
}
