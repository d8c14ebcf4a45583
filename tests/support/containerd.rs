//! A containerd's images and containers, from which a runtime of the tests answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::HeaderMap;
use portcullis::image::Digest;
use prost::Message;
use serde_json::{Value, json};

use super::{
    cri,
    registry::TestRegistry,
    runtime::{Call, FakeRuntime, Reply, headers, ok},
};

const IMAGES: &str = "/containerd.services.images.v1.Images/";
const READ: &str = "/containerd.services.content.v1.Content/Read";
pub(crate) const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
pub(crate) const STATUS: &str = "/runtime.v1.RuntimeService/Status";

/// What a runtime has. Clones share it, so that tests change it while a runtime answers from it.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    /// Names, of all kinds, and what they lead to.
    records: BTreeMap<String, Target>,
    /// Manifests and indexes.
    content: HashMap<Digest, Bytes>,
    containers: Vec<Container>,
    /// Names that the configuration pins, with the images that have them.
    pinned: BTreeSet<String>,
    /// As `Status` tells it.
    sandbox_image: Option<String>,
    registries: Vec<(String, Read)>,
}

/// Media type and bytes of a manifest, by repository and tag or digest.
type Read = Box<dyn Fn(&str, &str) -> Option<(String, Bytes)> + Send>;

#[derive(Clone)]
struct Target {
    digest: Digest,
    media_type: String,
}

/// A container to be put on the shelf. `image` is how it was asked for, `id` what it was made of.
#[derive(Clone, Default)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) user_specified: String,
    pub(crate) image_id: String,
    pub(crate) exited: bool,
    /// Namespace, name and UID.
    pub(crate) pod: [String; 3],
}

impl Shelf {
    /// A shelf that pulls from this registry.
    pub(crate) fn beside(registry: &TestRegistry) -> Self {
        let shelf = Self::default();
        shelf.add_registry(registry);
        shelf
    }

    /// Pulls from this registry as well.
    pub(crate) fn add_registry(&self, registry: &TestRegistry) {
        let reader = (registry.host().to_owned(), Box::new(registry.reader()) as Read);
        self.0.lock().unwrap().registries.push(reader);
    }

    /// A runtime that has what is here; it answers Portcullis' own questions too.
    pub(crate) fn runtime(&self) -> FakeRuntime {
        let shelf = self.clone();
        FakeRuntime::whole(move |call| shelf.answer(call))
    }

    /// Pulls an image as `ctr` or a CRI client without Portcullis would, and records its names as
    /// containerd does: as it was named, by digest, and by ID, which it returns.
    #[track_caller]
    pub(crate) fn pull(&self, name: &str) -> String {
        let pulled = self.0.lock().unwrap().pull(name);
        pulled.unwrap_or_else(|| panic!("no registry of the shelf has {name}"))
    }

    /// A name for what is there under another.
    pub(crate) fn name(&self, name: &str, existing: &str) {
        let mut contents = self.0.lock().unwrap();
        let target = contents.records[existing].clone();
        contents.records.insert(name.to_owned(), target);
    }

    /// Forgets a name.
    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().unwrap().records.remove(name);
    }

    /// Loses (or spoils, with other bytes) a manifest that is recorded.
    pub(crate) fn spoil(&self, digest: Digest, bytes: Option<Bytes>) {
        let content = &mut self.0.lock().unwrap().content;
        match bytes {
            Some(bytes) => content.insert(digest, bytes),
            None => content.remove(&digest),
        };
    }

    /// A manifest under a name, without any registry. Children of an index are put before it.
    pub(crate) fn put(&self, name: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let mut contents = self.0.lock().unwrap();
        contents.content.insert(digest, bytes);
        contents.records.insert(name.into(), Target { digest, media_type: media_type.into() });
        digest
    }

    /// A manifest that is there.
    pub(crate) fn manifest(&self, digest: Digest) -> Bytes {
        self.0.lock().unwrap().content[&digest].clone()
    }

    /// A container, made without anybody's leave.
    pub(crate) fn run(&self, container: Container) {
        self.0.lock().unwrap().containers.push(container);
    }

    /// Pins a name, whatever has it.
    pub(crate) fn pin(&self, name: &str) {
        self.0.lock().unwrap().pinned.insert(name.to_owned());
    }

    /// Takes a container away.
    pub(crate) fn remove_container(&self, id: &str) {
        self.0.lock().unwrap().containers.retain(|container| container.id != id);
    }

    /// What `Status` tells; a new shelf tells nothing, as containerd 2 does.
    pub(crate) fn sandbox_image(&self, name: Option<&str>) {
        self.0.lock().unwrap().sandbox_image = name.map(str::to_owned);
    }

    /// The names of all records.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().records.keys().cloned().collect()
    }

    /// The containers there are.
    pub(crate) fn containers(&self) -> Vec<Container> {
        self.0.lock().unwrap().containers.clone()
    }

    /// The script of a runtime that has what is here. What it does not know is answered with an
    /// empty message.
    pub(crate) fn answer(&self, call: &Call) -> Reply {
        let message = call.body.get(5..).unwrap_or_default();
        let contents = &mut *self.0.lock().unwrap();
        match call.head.uri.path() {
            READ => {
                let asked = Text::decode(message).unwrap().text;
                let found = asked.parse().ok().and_then(|digest| contents.content.get(&digest));
                found.map_or_else(not_found, |bytes| pieces(bytes))
            }
            cri::PULL_IMAGE => {
                let request = cri::PullImageRequest::decode(message).unwrap();
                let pulled = contents.pull(&request.image.unwrap().image);
                pulled.map_or_else(not_found, |id| {
                    ok(&cri::PullImageResponse { image_ref: id }.encode_to_vec())
                })
            }
            cri::IMAGE_STATUS => {
                let asked = cri::ImageStatusRequest::decode(message).unwrap().image.unwrap().image;
                let image = contents.image(&asked);
                ok(&cri::ImageStatusResponse { image }.encode_to_vec())
            }
            cri::LIST_IMAGES => {
                let images = contents.images();
                ok(&cri::ListImagesResponse { images }.encode_to_vec())
            }
            cri::CREATE_CONTAINER => {
                let request = cri::CreateContainerRequest::decode(message).unwrap();
                let id = contents.create(request);
                ok(&cri::IdResponse { id }.encode_to_vec())
            }
            cri::RUN_POD_SANDBOX => ok(&cri::IdResponse { id: "pod".into() }.encode_to_vec()),
            cri::VERSION => ok(&VersionResponse {
                runtime_name: "containerd".into(),
                runtime_version: "2.1.9".into(),
            }
            .encode_to_vec()),
            LIST_CONTAINERS => {
                let containers = contents.containers.iter().map(CriContainer::from).collect();
                ok(&ListContainersResponse { containers }.encode_to_vec())
            }
            STATUS => {
                let config = contents.sandbox_image.as_ref();
                let config = config.map(|name| json!({"sandboxImage": name}).to_string());
                let info = config.map(|config| ("config".to_owned(), config)).into_iter().collect();
                ok(&StatusResponse { info }.encode_to_vec())
            }
            path => match path.strip_prefix(IMAGES) {
                Some("List") => {
                    let images = contents.records.iter().map(Record::from);
                    let images = images.map(|record| contents.labelled(record)).collect();
                    ok(&ListRecords { images }.encode_to_vec())
                }
                Some("Get") => {
                    let name = Text::decode(message).unwrap().text;
                    let found = contents.records.get_key_value(&name).map(Record::from);
                    found.map_or_else(not_found, |image| {
                        ok(&OneRecord { image: Some(image) }.encode_to_vec())
                    })
                }
                Some("Create" | "Update") => {
                    let image = OneRecord::decode(message).unwrap().image;
                    let Record { name, target, .. } = image.clone().unwrap();
                    let Descriptor { media_type, digest } = target.unwrap();
                    let digest = digest.parse().unwrap();
                    contents.records.insert(name, Target { digest, media_type });
                    ok(&OneRecord { image }.encode_to_vec())
                }
                Some("Delete") => {
                    contents.records.remove(&Text::decode(message).unwrap().text);
                    ok(b"")
                }
                _ => ok(b""),
            },
        }
    }
}

impl Contents {
    /// Records what a registry has, and returns the ID.
    fn pull(&mut self, name: &str) -> Option<String> {
        let (host, rest) = name.split_once('/')?;
        let (repository, version) = match rest.split_once('@') {
            Some((tagged, digest)) => (tagged.split(':').next()?, digest),
            None => rest.split_once(':')?,
        };
        let read = &self.registries.iter().find(|(registry, _)| registry == host)?.1;
        let (media_type, bytes) = read(repository, version)?;
        let digest = Digest::of(&bytes);
        let mut found = vec![(digest, bytes.clone())];
        let manifest: Value = serde_json::from_slice(&bytes).ok()?;
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            // Those for other platforms stay where they are.
            if child["platform"]["architecture"] == "amd64" {
                let (_, bytes) = read(repository, child["digest"].as_str()?)?;
                found.push((Digest::of(&bytes), bytes));
            }
        }
        self.content.extend(found);
        let target = Target { digest, media_type };
        let id = self.id(digest)?;
        for name in [name.to_owned(), format!("{host}/{repository}@{digest}"), id.clone()] {
            self.records.insert(name, target.clone());
        }
        Some(id)
    }

    /// The ID of the image that this manifest, or a child that is here, leads to.
    fn id(&self, digest: Digest) -> Option<String> {
        let manifest: Value = serde_json::from_slice(self.content.get(&digest)?).ok()?;
        if let Some(id) = manifest["config"]["digest"].as_str() {
            return Some(id.to_owned());
        }
        let children = manifest["manifests"].as_array()?;
        children.iter().find_map(|child| self.id(child["digest"].as_str()?.parse().ok()?))
    }

    /// Every image with its names, as CRI shows them.
    fn images(&self) -> Vec<cri::Image> {
        let mut images: BTreeMap<String, cri::Image> = BTreeMap::new();
        for (name, target) in &self.records {
            let Some(id) = self.id(target.digest) else { continue };
            let image = images.entry(id.clone()).or_default();
            image.id = id;
            image.pinned |= self.pinned.contains(name);
            match name {
                name if name.starts_with("sha256:") => {}
                name if name.contains('@') => image.repo_digests.push(name.clone()),
                name => image.repo_tags.push(name.clone()),
            }
        }
        images.into_values().collect()
    }

    fn labelled(&self, record: Record) -> Record {
        let labels =
            [("io.cri-containerd.pinned", "pinned"), ("io.cri-containerd.image", "managed")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let pinned = self.pinned.contains(&record.name);
        Record { labels: labels.into_iter().filter(|_| pinned).collect(), ..record }
    }

    fn image(&self, asked: &str) -> Option<cri::Image> {
        let id = self.records.get(asked).and_then(|target| self.id(target.digest));
        let is_it = |image: &cri::Image| match &id {
            Some(id) => image.id == *id,
            None => image.id.starts_with(asked) || image.id[7..].starts_with(asked),
        };
        self.images().into_iter().find(is_it)
    }

    fn create(&mut self, request: cri::CreateContainerRequest) -> String {
        let config = request.config.unwrap_or_default();
        let image = config.image.unwrap_or_default();
        let pod = request.sandbox_config.and_then(|config| config.metadata).unwrap_or_default();
        let id = format!("container-{}", self.containers.len());
        self.containers.push(Container {
            id: id.clone(),
            name: config.metadata.unwrap_or_default().name,
            image_id: self.image(&image.image).map(|image| image.id).unwrap_or_default(),
            image: image.image,
            user_specified: image.user_specified_image,
            exited: false,
            pod: [pod.namespace, pod.name, pod.uid],
        });
        id
    }
}

fn not_found() -> Reply {
    let content_type = ("content-type", "application/grpc");
    let status = headers(&[content_type, ("grpc-status", "5"), ("grpc-message", "not found")]);
    Reply::whole(status, Bytes::new(), HeaderMap::new())
}

/// Content in several messages, as containerd sends it.
fn pieces(bytes: &[u8]) -> Reply {
    let half = bytes.len() / 2;
    let mut data = Vec::new();
    for piece in [&bytes[..half], &bytes[half..]] {
        let piece = ReadContentResponse { data: piece.to_vec() };
        data.extend(super::grpc::framed(&piece.encode_to_vec()));
    }
    let content_type = headers(&[("content-type", "application/grpc")]);
    Reply::whole(content_type, data.into(), headers(&[("grpc-status", "0")]))
}

/// A request whose first field is all there is to know.
#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct ReadContentResponse {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(map = "string, string", tag = "2")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

/// Of Get, Create and Update, both ways.
#[derive(Clone, PartialEq, Message)]
struct OneRecord {
    #[prost(message, optional, tag = "1")]
    image: Option<Record>,
}

#[derive(Clone, PartialEq, Message)]
struct ListRecords {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Record>,
}

impl From<(&String, &Target)> for Record {
    fn from((name, target): (&String, &Target)) -> Self {
        let Target { digest, media_type } = target.clone();
        let target = Some(Descriptor { media_type, digest: digest.to_string() });
        Record { name: name.clone(), labels: HashMap::new(), target }
    }
}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<CriContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CriContainer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<cri::ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<cri::ImageSpec>,
    #[prost(string, tag = "5")]
    image_ref: String,
    #[prost(int32, tag = "6")]
    state: i32,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "10")]
    image_id: String,
}

impl From<&Container> for CriContainer {
    fn from(container: &Container) -> Self {
        let Container { id, name, image, user_specified, image_id, exited, pod } =
            container.clone();
        let labels = ["namespace", "name", "uid"].into_iter().zip(pod);
        let labels = labels.filter(|(_, value)| !value.is_empty());
        Self {
            id,
            metadata: Some(cri::ContainerMetadata { name }),
            image: Some(cri::ImageSpec {
                image,
                user_specified_image: user_specified,
                ..Default::default()
            }),
            image_ref: image_id.clone(),
            state: if exited { 2 } else { cri::RUNNING },
            labels: labels
                .map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value))
                .collect(),
            image_id,
        }
    }
}
