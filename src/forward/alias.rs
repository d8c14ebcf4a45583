//! The name that the user wrote.
//!
//! A pull by digest records no tag in containerd, and kubelet asks `ImageStatus` for the name in
//! the pod: without an answer it pulls anew each time, and takes the image's user for root. So the
//! tag is recorded through containerd's own Images service, in the form of its CRI plug-in, which
//! learns of it by an event; the answer to the pull waits until `ImageStatus` shows it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::{
    decode::cri,
    image::{PinnedImage, Tag},
};

use super::{Upstream, containerd, unary::unary};

const GET: &str = "/containerd.services.images.v1.Images/Get";
const CREATE: &str = "/containerd.services.images.v1.Images/Create";
const UPDATE: &str = "/containerd.services.images.v1.Images/Update";
const IMAGE_STATUS: &str = "/runtime.v1.ImageService/ImageStatus";

/// The label that containerd's CRI plug-in puts on images of its own.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// How long the plug-in may take to see a new name.
const VISIBLE: Duration = Duration::from_secs(10);
/// The pause between two looks, doubled each time up to the second figure.
const PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(50));

/// Records `repository:tag` for the image that was just pulled, and waits until CRI shows it with
/// this image ID.
pub(super) async fn record(
    upstream: &Upstream,
    image: &PinnedImage,
    tag: &Tag,
    image_id: &str,
) -> Result<(), Status> {
    let name = format!("{}:{tag}", image.repository);
    let digest = image.digest.to_string();
    let names_it = |record: &containerd::Image| {
        record.target.as_ref().is_some_and(|target| target.digest == digest)
            && record.labels.get(MANAGED.0).is_some_and(|value| value == MANAGED.1)
    };
    // Mostly the tag names these bytes already, and a look costs containerd no write.
    if get(upstream, &name).await?.as_ref().is_some_and(names_it) {
        return shown(upstream, &name, image_id).await;
    }
    let pulled = get(upstream, &image.to_string()).await?;
    let target =
        pulled.and_then(|image| image.target).filter(|target| target.digest == digest).ok_or_else(
            || Status::internal("the runtime's record of the pulled digest names another one"),
        )?;
    let record = containerd::Image {
        name: name.clone(),
        labels: [(MANAGED.0.to_owned(), MANAGED.1.to_owned())].into(),
        target: Some(target),
    };
    let created: Result<containerd::ImageResponse, _> =
        unary(upstream, CREATE, &containerd::CreateImageRequest { image: Some(record.clone()) })
            .await;
    match created {
        Err(status) if status.code() == Code::AlreadyExists => {
            let label = format!("labels.{}", MANAGED.0);
            let update_mask = containerd::FieldMask { paths: vec!["target".into(), label] };
            let update = containerd::UpdateImageRequest {
                image: Some(record),
                update_mask: Some(update_mask),
            };
            unary::<containerd::ImageResponse>(upstream, UPDATE, &update).await?;
        }
        created => drop(created?),
    }
    shown(upstream, &name, image_id).await
}

/// containerd's record of a name, if there is one.
async fn get(upstream: &Upstream, name: &str) -> Result<Option<containerd::Image>, Status> {
    let question = containerd::GetImageRequest { name: name.to_owned() };
    let answer: Result<containerd::GetImageResponse, _> = unary(upstream, GET, &question).await;
    match answer {
        Ok(answer) => Ok(answer.image),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

async fn shown(upstream: &Upstream, name: &str, image_id: &str) -> Result<(), Status> {
    let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
    let question = cri::ImageStatusRequest { image: Some(image) };
    let deadline = Instant::now() + VISIBLE;
    let mut pause = PAUSES.0;
    loop {
        let answer: cri::ImageStatusResponse = unary(upstream, IMAGE_STATUS, &question).await?;
        let shown = answer.image.is_some_and(|image| {
            image.id == image_id && image.repo_tags.iter().any(|tag| tag == name)
        });
        if shown {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Status::deadline_exceeded(format!(
                "ImageStatus does not show it after {} s",
                VISIBLE.as_secs()
            )));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}
