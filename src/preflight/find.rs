//! What the runtime has: images under each of their repositories, and running containers.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    evidence::{Known, Store},
    forward::{self, Runtime, RuntimeError, Target},
    image::{Digest, ImageRef, shorten},
    learn::{self, Found, Unusable},
    local::Question,
    named::{ImageId, Named},
    pipeline::{is_among, repositories},
    policy::Caller,
};

/// Images that the runtime is asked about at a time.
const CONCURRENCY: usize = 8;

/// What there is to judge.
pub(super) struct Node {
    pub(super) images: Vec<Image>,
    /// IDs by which the runtime might restore a checkpoint, and the digest of that.
    pub(super) checkpoints: BTreeMap<ImageId, Digest>,
    pub(super) containers: Vec<Container>,
}

/// A manifest or index under the names of one repository.
pub(super) struct Image {
    pub(super) digest: Digest,
    /// What it is judged by: by digest where the runtime has such a name. None: it has no name.
    pub(super) name: Option<ImageRef>,
    /// All of its names in this repository.
    pub(super) names: Vec<ImageRef>,
    /// What it is. Empty: nothing that can be read and started.
    pub(super) known: Vec<Known>,
    /// Why what is there cannot be started.
    pub(super) unusable: Option<String>,
}

/// A running container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) pod: [String; 3],
    /// The image as it was asked for, as far as anybody remembers.
    pub(super) requested: String,
    /// None: what it was made of is not known.
    pub(super) question: Option<Question>,
}

impl Node {
    /// What the runtime has of an image.
    pub(super) fn known(&self, id: ImageId) -> Vec<Known> {
        let mut known: Vec<Known> = Vec::new();
        for one in self.images.iter().flat_map(|image| &image.known) {
            if one.id() == id && !known.contains(one) {
                known.push(one.clone());
            }
        }
        known
    }

    /// The image that has this name.
    pub(super) fn id_of(&self, name: &ImageRef) -> Option<ImageId> {
        let image = self.images.iter().find(|image| image.names.contains(name))?;
        image.known.first().map(Known::id)
    }

    /// The manifest or index that has this name, or else one of those with this ID.
    pub(super) fn digest_of(&self, name: &ImageRef, id: ImageId) -> Option<Digest> {
        let named = self.images.iter().find(|image| image.names.contains(name));
        let is_it = |image: &&Image| image.known.iter().any(|known| known.id() == id);
        named.or_else(|| self.images.iter().find(is_it)).map(|image| image.digest)
    }

    /// Every name of an image.
    fn names(&self, id: ImageId) -> Vec<String> {
        let is_it = |image: &&Image| image.known.iter().any(|known| known.id() == id);
        let names = self.images.iter().filter(is_it).flat_map(|image| &image.names);
        names.map(ToString::to_string).collect()
    }
}

/// Asks the runtime for all of it.
pub(super) async fn node(runtime: &Runtime, store: &Store) -> Result<Node, RuntimeError> {
    let mut targets: BTreeMap<Target, BTreeSet<String>> = BTreeMap::new();
    for record in runtime.records().await? {
        targets.entry(record.target).or_default().insert(record.name);
    }
    let looking = stream::iter(targets).map(|(target, names)| async move {
        let Found { mut known, unusable } = learn::look(runtime, &target).await?;
        // The same manifests, with what others claim. The disk holds up nobody else: this is a
        // command of its own.
        for kept in store.of_digest(target.digest) {
            known.retain(|one| one.id() != kept.id());
            known.push(kept);
        }
        Ok((target.digest, names, known, unusable))
    });
    let found: Vec<_> = looking.buffered(CONCURRENCY).try_collect().await?;
    let mut node =
        Node { images: Vec::new(), checkpoints: BTreeMap::new(), containers: Vec::new() };
    for (digest, names, known, unusable) in found {
        let restored = unusable.iter().filter_map(Unusable::restored_as);
        node.checkpoints.extend(restored.map(|id| (id, digest)));
        let unusable = unusable.first().map(|unusable| unusable.why.to_string());
        node.images.extend(split(digest, &names, &known, &unusable));
    }
    for container in runtime.containers().await?.into_iter().filter(|one| one.running) {
        let container = self::container(runtime, &node, container).await?;
        node.containers.push(container);
    }
    Ok(node)
}

/// One entry for each repository, or a single one without a name.
fn split(
    digest: Digest,
    names: &BTreeSet<String>,
    known: &[Known],
    unusable: &Option<String>,
) -> Vec<Image> {
    let image = |name, names| {
        let (known, unusable) = (known.to_vec(), unusable.clone());
        Image { digest, name, names, known, unusable }
    };
    let all: Vec<String> = names.iter().filter(|name| !is_id(name)).cloned().collect();
    let parsed: Vec<ImageRef> = all.iter().filter_map(|name| name.parse().ok()).collect();
    let images = repositories(&all).into_iter().map(|name| {
        let same = parsed.iter().filter(|other| other.repository == name.repository);
        let names = same.cloned().collect();
        image(Some(name), names)
    });
    let mut images: Vec<_> = images.collect();
    if images.is_empty() {
        images.push(image(None, Vec::new()));
    }
    images
}

fn is_id(name: &str) -> bool {
    !matches!(name.parse(), Ok(Named::Reference(_)))
}

/// A container, and the question that `CreateContainer` would put for it. The annotations by which
/// its pod may break a policy's glass are not among what the runtime lists.
async fn container(
    runtime: &Runtime,
    node: &Node,
    container: forward::Container,
) -> Result<Container, RuntimeError> {
    let forward::Container { id, name, requested, user_specified, image, pod, .. } = container;
    let image = match image {
        Some(image) => Some(image),
        None => runtime.image(&requested).await?.map(|found| found.id),
    };
    let reference = |text: &str| match text.parse() {
        Ok(Named::Reference(name)) => Some(name),
        Ok(Named::Id(_) | Named::Short(_)) | Err(_) => None,
    };
    let (written, asked) = (reference(&user_specified), reference(&requested));
    let shown = if written.is_some() { user_specified } else { requested };
    let namespace = Some(pod[0].clone()).filter(|namespace| !namespace.is_empty());
    let question = image.map(|id| {
        let all = node.names(id);
        let names = match (written, asked) {
            (Some(name), _) => vec![name],
            (None, Some(name)) if is_among(&name, &all) => vec![name],
            (None, _) => repositories(&all),
        };
        Question { id, names, caller: Caller::of(namespace) }
    });
    Ok(Container { id, name, pod, requested: shorten(&shown), question })
}
