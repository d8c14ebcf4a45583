//! `CreateContainerRequest`, read strictly.

use prost::Message;

use crate::{
    image::{ReferenceError, shorten},
    named::{ImageId, Named},
    policy::Caller,
    refusal::{Code, Refusal},
};

use super::{Pod, cri, pull::pod, wire::Patchable};

/// What a container is to be made from.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The container's image, and behind it those of its image volumes, in their order.
    pub images: Vec<AskedImage>,
    /// The pod, as the caller says.
    pub pod: Option<Pod>,
    /// The pod, as far as policies look at it.
    pub caller: Caller,
    /// The request as it came, for the runtime.
    pub message: Patchable,
}

/// One image of a container.
#[derive(Clone, Debug)]
pub struct AskedImage {
    /// As the caller wrote it: kubelet writes the ID that the runtime told it.
    pub requested: String,
    /// What that denotes.
    pub named: Named,
    /// As the pod's author wrote it. kubelet (1.28 and later) says so; others may not.
    pub user_specified: String,
}

impl AskedImage {
    /// The text to show for it: what a person wrote, where that is known.
    pub fn shown(&self) -> &str {
        if self.user_specified.is_empty() { &self.requested } else { &self.user_specified }
    }
}

/// Reads the message of a `CreateContainer` call.
///
/// # Errors
///
/// `malformed_request`: the bytes are no such message, hold an image twice, or an image is
/// neither an ID nor a reference: such as the path of a checkpoint archive.
pub fn create(message: &[u8]) -> Result<CreateRequest, Refusal> {
    let malformed = |why: &dyn std::fmt::Display| {
        Refusal::new(Code::MalformedRequest, format!("CreateContainer request: {why}"))
    };
    let wire = Patchable::create(message).map_err(|error| malformed(&error))?;
    let decoded = cri::CreateContainerRequest::decode(message)
        .map_err(|_| malformed(&"a field that Portcullis reads is not what CRI defines"))?;
    let config = decoded.config.unwrap_or_default();
    let volumes = config.mounts.into_iter().filter_map(|mount| mount.image);
    let specs = std::iter::once(config.image.unwrap_or_default()).chain(volumes);
    let images = specs
        .map(|spec| {
            let named = named(&spec.image).map_err(|why| malformed(&why))?;
            Ok(AskedImage {
                requested: spec.image,
                named,
                user_specified: spec.user_specified_image,
            })
        })
        .collect::<Result<_, Refusal>>()?;
    let (pod, caller) = pod(decoded.sandbox_config.unwrap_or_default());
    Ok(CreateRequest { images, pod, caller, message: wire })
}

fn named(image: &str) -> Result<Named, String> {
    if image.starts_with(['/', '.']) {
        // containerd 2.1 to 2.3 and CRI-O take a file for a checkpoint.
        return Err(format!(
            "\"{}\" is a path: a checkpoint archive is not restored, since that starts processes \
             that no signature covers; use an image",
            shorten(image)
        ));
    }
    image.parse().map_err(|error: ReferenceError| error.to_string())
}

impl CreateRequest {
    /// The request with the whole IDs of its images, in the order of [`CreateRequest::images`].
    /// None: there are not as many.
    ///
    /// The runtime then starts what was judged, whatever becomes of a name meanwhile.
    pub fn pinned(&self, ids: &[ImageId]) -> Option<Vec<u8>> {
        let (first, volumes) = ids.split_first()?;
        if ids.len() != self.images.len() {
            return None;
        }
        let mut volumes = volumes.iter();
        Some(self.message.with_names(|_, in_mount| {
            let id = if in_mount { volumes.next() } else { Some(first) };
            // As many as there are mounts with images: `create` counted the same fields.
            id.map(ToString::to_string).unwrap_or_default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    fn spec(image: &str, user: &str) -> cri::ImageSpec {
        cri::ImageSpec { image: image.into(), user_specified_image: user.into() }
    }

    fn request(image: &str, volumes: &[&str]) -> Vec<u8> {
        let mounts = volumes.iter().map(|volume| cri::Mount {
            container_path: "/v".into(),
            image: (!volume.is_empty()).then(|| spec(volume, "")),
        });
        cri::CreateContainerRequest {
            pod_sandbox_id: "s".into(),
            config: Some(cri::ContainerConfig {
                metadata: None,
                image: Some(spec(image, "app:v1")),
                mounts: mounts.collect(),
            }),
            sandbox_config: Some(cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "web".into(),
                    uid: "u".into(),
                    namespace: "shop".into(),
                }),
                annotations: [("a".to_owned(), "true".to_owned()), ("b".into(), "yes".into())]
                    .into(),
            }),
        }
        .encode_to_vec()
    }

    #[test]
    fn a_creation_names_its_images_and_its_pod() {
        let id = format!("sha256:{}", Digest::of(b"").hex());
        let create = create(&request(&id, &["", "vol:1", "", "sha256:abc"])).unwrap();
        let shown: Vec<_> = create.images.iter().map(AskedImage::shown).collect();
        assert_eq!(shown, ["app:v1", "vol:1", "sha256:abc"]);
        assert_eq!(create.images[0].named, Named::Id(id.parse().unwrap()));
        assert_eq!(create.images[2].named, Named::Short("sha256:abc".into()));
        assert_eq!(create.caller.namespace.as_deref(), Some("shop"));
        assert_eq!(create.caller.switches, ["a".to_owned()].into());
    }

    #[test]
    fn each_image_becomes_the_id_that_was_judged() {
        let ids = ["1", "2", "3"].map(|text| ImageId::of_config(Digest::of(text.as_bytes())));
        let made = create(&request("app:v1", &["vol:1", "", "vol:2"])).unwrap();
        let again = create(&made.pinned(&ids).unwrap()).unwrap();
        let named: Vec<_> = again.images.into_iter().map(|image| image.named).collect();
        assert_eq!(named, ids.map(Named::Id));
        assert_eq!(made.pinned(&ids[..2]), None);
        assert_eq!(made.pinned(&[]), None);
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let message = |bytes: &[u8]| {
            let refusal = create(bytes).unwrap_err();
            assert_eq!(refusal.code, Code::MalformedRequest);
            refusal.message
        };
        for path in ["/var/lib/c.tar", "./c.tar", "../c.tar"] {
            let why = format!(
                "CreateContainer request: \"{path}\" is a path: a checkpoint archive is not \
                 restored, since that starts processes that no signature covers; use an image"
            );
            assert_eq!(message(&request(path, &[])), why);
            assert_eq!(message(&request("app", &[path])), why);
        }
        assert_eq!(
            message(&request("app", &["A B"])),
            "CreateContainer request: \"A B\" is no repository: a path component must be \
             lower-case letters and digits, separated by '.', '_', '__' or dashes"
        );
        assert_eq!(message(b""), "CreateContainer request: the field \"config\" is missing");
    }
}
