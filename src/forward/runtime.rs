//! What Portcullis asks the runtime for itself: which images and containers it has.
//!
//! The answers are not trusted to say what an image is. Manifests are hashed here, and names that
//! the runtime has for an image decide only which policies it must satisfy.

use std::{fmt::Display, time::Duration};

use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    decode::cri,
    image::{Digest, shorten},
    named::ImageId,
    resolve::{Fetched, MAX_MANIFEST},
};

use super::{
    Upstream, containerd,
    unary::{streamed, unary},
};

const IMAGE_STATUS: &str = "/runtime.v1.ImageService/ImageStatus";
const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const STATUS: &str = "/runtime.v1.RuntimeService/Status";
const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const GET: &str = "/containerd.services.images.v1.Images/Get";
const LIST: &str = "/containerd.services.images.v1.Images/List";
const UPDATE: &str = "/containerd.services.images.v1.Images/Update";
const READ: &str = "/containerd.services.content.v1.Content/Read";

/// The label that containerd's CRI plug-in puts on the names that its configuration pins.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// How long the runtime may take to answer one question. It is a look-up in memory or on disk;
/// this bounds a runtime that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The runtime, as asked by Portcullis itself.
#[derive(Clone, Debug)]
pub struct Runtime {
    upstream: Upstream,
    patience: Duration,
}

/// The runtime did not answer, or not sensibly. The sentence is the same for the same cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the container runtime {0}")]
pub struct RuntimeError(String);

impl RuntimeError {
    /// For those who do not wait any longer.
    pub(crate) fn late() -> Self {
        Self("does not answer".into())
    }
}

/// An image as CRI shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeImage {
    /// Its ID.
    pub id: ImageId,
    /// `repository:tag`, and `repository@digest`.
    pub names: Vec<String>,
}

/// One of containerd's names for a manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// `repository:tag`, `repository@digest`, an image ID, or anything else.
    pub name: String,
    /// What it names.
    pub target: Target,
    /// Whether containerd's CRI plug-in keeps what has this very name from being removed, as it
    /// does its sandbox image.
    pub pinned: bool,
}

/// What a name of containerd's leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Of a manifest or an index.
    pub digest: Digest,
    /// As recorded when it was pulled or imported.
    pub media_type: String,
}

/// A container as CRI shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Its name within the pod.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
    /// The image as it was asked for when it was created.
    pub requested: String,
    /// The image as the pod's author wrote it, where the runtime remembers.
    pub user_specified: String,
    /// The ID of the image it was created from, where the runtime says it in full.
    pub image: Option<ImageId>,
    /// Namespace, name and UID of its pod, by kubelet's labels. Empty where there is none.
    pub pod: [String; 3],
}

impl Runtime {
    /// The runtime behind this connection, over one of its own.
    pub fn new(upstream: &Upstream) -> Self {
        Self::with_patience(upstream, PATIENCE)
    }

    /// The same, with this long for each question.
    pub fn with_patience(upstream: &Upstream, patience: Duration) -> Self {
        Self { upstream: upstream.another(), patience }
    }

    /// The connection, for judged calls of our own.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Its name and version, as in `containerd 2.1.9`.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let answer: cri::VersionResponse =
            self.ask(VERSION, &cri::VersionRequest {}).await.map_err(failed)?;
        let said = format!("{} {}", answer.runtime_name, answer.runtime_version);
        Ok(shorten(said.trim()))
    }

    /// The image that the runtime finds by a name or an ID, whole or short.
    pub async fn image(&self, name: &str) -> Result<Option<RuntimeImage>, RuntimeError> {
        let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let question = cri::ImageStatusRequest { image: Some(image) };
        let answer: cri::ImageStatusResponse =
            self.ask(IMAGE_STATUS, &question).await.map_err(failed)?;
        answer.image.map(image_of).transpose()
    }

    /// Every container, running or not.
    pub async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let answer: cri::ListContainersResponse =
            self.ask(LIST_CONTAINERS, &cri::ListContainersRequest {}).await.map_err(failed)?;
        Ok(answer.containers.into_iter().map(container_of).collect())
    }

    /// The sandbox image, where the runtime tells: containerd up to 1.7 and CRI-O do, in the
    /// verbose status.
    pub async fn sandbox_image(&self) -> Result<Option<String>, RuntimeError> {
        let answer: cri::StatusResponse =
            self.ask(STATUS, &cri::StatusRequest { verbose: true }).await.map_err(failed)?;
        let config = answer.info.get("config");
        let config = config.and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
        let image =
            config.and_then(|config| Some(config.get("sandboxImage")?.as_str()?.to_owned()));
        Ok(image.filter(|image| !image.is_empty()))
    }

    /// Every name that containerd has for an image. Those of something else than manifests named
    /// by SHA-256 are left out: no such image can be started.
    pub async fn records(&self) -> Result<Vec<ImageRecord>, RuntimeError> {
        self.records_of(Vec::new()).await
    }

    /// The names that containerd's CRI plug-in has pinned.
    pub async fn pinned(&self) -> Result<Vec<ImageRecord>, RuntimeError> {
        let filter = format!("labels.{:?}=={}", PINNED.0, PINNED.1);
        let records = self.records_of(vec![filter]).await?;
        Ok(records.into_iter().filter(|record| record.pinned).collect())
    }

    async fn records_of(&self, filters: Vec<String>) -> Result<Vec<ImageRecord>, RuntimeError> {
        let answer: containerd::ListImagesResponse =
            self.ask(LIST, &containerd::ListImagesRequest { filters }).await.map_err(failed)?;
        Ok(answer.images.into_iter().filter_map(record_of).collect())
    }

    /// What containerd has under one of its names.
    pub async fn record(&self, name: &str) -> Result<Option<ImageRecord>, RuntimeError> {
        let question = containerd::GetImageRequest { name: name.to_owned() };
        match self.ask::<containerd::GetImageResponse>(GET, &question).await {
            Ok(answer) => Ok(answer.image.and_then(record_of)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(status)),
        }
    }

    /// Has containerd look at one of its names again, as if it were new. Nothing else changes.
    pub async fn touch(&self, name: &str) -> Result<(), RuntimeError> {
        let question = containerd::GetImageRequest { name: name.to_owned() };
        let found: Result<containerd::GetImageResponse, _> = self.ask(GET, &question).await;
        let image = match found {
            Ok(answer) => answer.image,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(failed(status)),
        };
        let Some(image) = image else { return Ok(()) };
        let update_mask = containerd::FieldMask { paths: vec!["target".into()] };
        let update =
            containerd::UpdateImageRequest { image: Some(image), update_mask: Some(update_mask) };
        self.ask::<containerd::ImageResponse>(UPDATE, &update).await.map_err(failed)?;
        Ok(())
    }

    /// The manifest or index with this digest from containerd's content store, hashed here. None:
    /// containerd does not have it, as the manifests for other platforms.
    pub async fn manifest(&self, target: &Target) -> Result<Option<Fetched>, RuntimeError> {
        let question = containerd::ReadContentRequest { digest: target.digest.to_string() };
        let reading = streamed(&self.upstream, READ, &question, MAX_MANIFEST);
        let reading = timeout(self.patience, reading).await.unwrap_or_else(|_| Err(late()));
        let parts: Vec<containerd::ReadContentResponse> = match reading {
            Ok(parts) => parts,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(status)),
        };
        let body: Vec<u8> = parts.into_iter().flat_map(|part| part.data).collect();
        let digest = Digest::of(&body);
        if digest != target.digest {
            return Err(RuntimeError(format!("has {digest} in place of {}", target.digest)));
        }
        let media_type = target.media_type.clone();
        Ok(Some(Fetched { digest, media_type, body: body.into() }))
    }

    async fn ask<Answer: Message + Default>(
        &self,
        path: &'static str,
        question: &impl Message,
    ) -> Result<Answer, Status> {
        let asking = unary(&self.upstream, path, question);
        timeout(self.patience, asking).await.unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> Status {
    Status::unavailable("no answer in time")
}

fn failed(status: Status) -> RuntimeError {
    RuntimeError(format!("failed to tell: {}", status.message()))
}

fn image_of(image: cri::Image) -> Result<RuntimeImage, RuntimeError> {
    let id = image.id.parse().map_err(|error: crate::image::ReferenceError| strange(&error))?;
    let names = image.repo_tags.into_iter().chain(image.repo_digests).collect();
    Ok(RuntimeImage { id, names })
}

fn strange(error: &dyn Display) -> RuntimeError {
    RuntimeError(format!("has an image with a strange ID: {error}"))
}

fn record_of(image: containerd::Image) -> Option<ImageRecord> {
    let target = image.target?;
    let digest = target.digest.parse().ok()?;
    let pinned = image.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
    let target = Target { digest, media_type: target.media_type };
    Some(ImageRecord { name: image.name, target, pinned })
}

fn container_of(container: cri::Container) -> Container {
    let cri::Container { id, metadata, image, image_ref, state, mut labels, image_id, .. } =
        container;
    let image_spec = image.unwrap_or_default();
    let mut label = |name| labels.remove(name).unwrap_or_default();
    let pod = [
        label("io.kubernetes.pod.namespace"),
        label("io.kubernetes.pod.name"),
        label("io.kubernetes.pod.uid"),
    ];
    // Older runtimes say the ID in image_ref alone, and there a repository digest as well.
    let ids = [&image_id, &image_ref, &image_spec.image];
    let image = ids.into_iter().find_map(|text| text.parse().ok());
    Container {
        id: shorten(&id),
        name: metadata.unwrap_or_default().name,
        running: state == 1,
        image,
        requested: image_spec.image,
        user_specified: image_spec.user_specified_image,
        pod,
    }
}
