//! The name that the user wrote.
//!
//! A pull by digest records no tag in containerd, and kubelet asks `ImageStatus` for the name in
//! the pod: without an answer it pulls anew each time, and takes the image's user for root. So the
//! tag is recorded through containerd's own Images service, in the form of its CRI plug-in, which
//! learns of it by an event; the answer to the pull waits until `ImageStatus` shows it.

use std::time::Duration;

use futures_util::future::try_join;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::{
    decode::cri,
    image::{PinnedImage, Tag},
};

use super::{Upstream, containerd, unary::unary};

const GET: &str = "/containerd.services.images.v1.Images/Get";
const CREATE: &str = "/containerd.services.images.v1.Images/Create";
const DELETE: &str = "/containerd.services.images.v1.Images/Delete";
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
    let (found, shows) = try_join(get(upstream, &name), tagged(upstream, &name)).await?;
    let is_shown = shows.as_deref() == Some(image_id);
    if found.as_ref().is_some_and(names_it) {
        return if is_shown { Ok(()) } else { shown(upstream, &name, image_id).await };
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
    if found.is_some() {
        delete(upstream, &name).await?;
    }
    let deadline = Instant::now() + VISIBLE;
    loop {
        // What CRI showed above, it may have shown before somebody took the name.
        forgotten(upstream, &name, image_id, deadline).await?;
        let question = containerd::CreateImageRequest { image: Some(record.clone()) };
        match unary::<containerd::ImageResponse>(upstream, CREATE, &question).await {
            Ok(_) => break,
            Err(status) if status.code() != Code::AlreadyExists => return Err(status),
            Err(_) => {}
        }
        match get(upstream, &name).await? {
            // Another pull of the same bytes.
            Some(found) if names_it(&found) => break,
            Some(_) => delete(upstream, &name).await?,
            None => {}
        }
        if Instant::now() >= deadline {
            return Err(Status::deadline_exceeded("somebody else records other bytes there"));
        }
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

async fn delete(upstream: &Upstream, name: &str) -> Result<(), Status> {
    let question = containerd::DeleteImageRequest { name: name.to_owned() };
    match unary::<containerd::Empty>(upstream, DELETE, &question).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// Waits until CRI does not take the name for that of another image any more.
///
/// Whatever containerd is asked to create a container from, it finds the bytes by the first name
/// that CRI has for the image, which is a tag. A tag that is moved leads it from the old image to
/// the new bytes, until CRI has heard of that. One that is gone leads nowhere.
async fn forgotten(
    upstream: &Upstream,
    name: &str,
    image_id: &str,
    deadline: Instant,
) -> Result<(), Status> {
    let late = "ImageStatus still shows the image that it named before";
    until(upstream, name, deadline, late, |id| id.is_none_or(|id| id == image_id)).await
}

async fn shown(upstream: &Upstream, name: &str, image_id: &str) -> Result<(), Status> {
    let late = format!("ImageStatus does not show it after {} s", VISIBLE.as_secs());
    let deadline = Instant::now() + VISIBLE;
    until(upstream, name, deadline, &late, |id| id.is_some_and(|id| id == image_id)).await
}

/// The ID of the image that CRI shows with this very tag.
async fn tagged(upstream: &Upstream, name: &str) -> Result<Option<String>, Status> {
    let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
    let question = cri::ImageStatusRequest { image: Some(image) };
    let answer: cri::ImageStatusResponse = unary(upstream, IMAGE_STATUS, &question).await?;
    let image = answer.image.filter(|image| image.repo_tags.iter().any(|tag| tag == name));
    Ok(image.map(|image| image.id))
}

async fn until(
    upstream: &Upstream,
    name: &str,
    deadline: Instant,
    late: &str,
    holds: impl Fn(Option<String>) -> bool,
) -> Result<(), Status> {
    let mut pause = PAUSES.0;
    while !holds(tagged(upstream, name).await?) {
        if Instant::now() >= deadline {
            return Err(Status::deadline_exceeded(late));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
    Ok(())
}
