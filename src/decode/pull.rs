//! `PullImageRequest`, read strictly.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;

use crate::{
    image::{ImageRef, shorten},
    policy::Caller,
    refusal::{Code, Refusal},
    resolve::Credentials,
};

use super::{cri, wire::Patchable};

/// What is to be judged: an image, as seen by one caller, for one namespace. Judgements of equal
/// ones are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The image.
    pub image: ImageRef,
    /// The caller's credentials for the image's registry.
    pub credentials: Credentials,
    /// The pod, as far as policies look at it.
    pub caller: Caller,
}

/// What a pull asks for.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The image as the caller wrote it.
    pub requested: String,
    /// What is to be judged.
    pub wanted: Wanted,
    /// The pod that the image is for, as the caller says. CRI clients other than kubelet may
    /// name none.
    pub pod: Option<Pod>,
    /// The request as it came, for the runtime.
    pub message: Patchable,
}

/// A pod, as the caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Reads the message of a `PullImage` call.
///
/// # Errors
///
/// `malformed_request`: the bytes are no such message, hold the image twice, or the image is no
/// reference.
pub fn pull(message: &[u8]) -> Result<PullRequest, Refusal> {
    let malformed = |why: &dyn std::fmt::Display| {
        Refusal::new(Code::MalformedRequest, format!("PullImage request: {why}"))
    };
    let wire = Patchable::pull(message).map_err(|error| malformed(&error))?;
    let decoded = cri::PullImageRequest::decode(message)
        .map_err(|_| malformed(&"a field that Portcullis reads is not what CRI defines"))?;
    let requested = decoded.image.unwrap_or_default().image;
    let image: ImageRef = requested.parse().map_err(|error| malformed(&error))?;
    let credentials = credentials(decoded.auth.unwrap_or_default())
        .map_err(|why| malformed(&why).about(&shorten(&requested)))?;
    let (pod, caller) = pod(decoded.sandbox_config.unwrap_or_default());
    Ok(PullRequest { requested, wanted: Wanted { image, credentials, caller }, pod, message: wire })
}

/// Who asks, for the record and for the policies.
pub(super) fn pod(config: cri::PodSandboxConfig) -> (Option<Pod>, Caller) {
    let pod = config.metadata.and_then(|metadata| {
        // An empty namespace is no namespace: only policies for all namespaces apply.
        (!metadata.namespace.is_empty()).then_some(Pod {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
        })
    });
    let namespace = pod.as_ref().map(|pod: &Pod| pod.namespace.clone());
    let switches = config.annotations.into_iter().filter(|(_, value)| value == "true");
    let caller = Caller { namespace, switches: switches.map(|(name, _)| name).collect() };
    (pod, caller)
}

/// Which of CRI's ways to say who is calling is used, in containerd's order.
fn credentials(auth: cri::AuthConfig) -> Result<Credentials, &'static str> {
    let credentials = if !auth.username.is_empty() {
        Credentials::Basic { username: auth.username, password: auth.password }
    } else if !auth.identity_token.is_empty() {
        Credentials::IdentityToken(auth.identity_token)
    } else if !auth.auth.is_empty() {
        const BAD: &str = "auth.auth is not base64 of \"user:password\"";
        let decoded = STANDARD.decode(auth.auth.trim()).map_err(|_| BAD)?;
        let decoded = String::from_utf8(decoded).map_err(|_| BAD)?;
        let (username, password) = decoded.split_once(':').ok_or(BAD)?;
        let password = password.trim_matches('\0').to_owned();
        Credentials::Basic { username: username.to_owned(), password }
    } else if !auth.registry_token.is_empty() {
        Credentials::RegistryToken(auth.registry_token)
    } else {
        Credentials::Anonymous
    };
    Ok(credentials.only_for(&auth.server_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(image: &str, auth: Option<cri::AuthConfig>) -> Vec<u8> {
        cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            auth,
            sandbox_config: Some(cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "web-0".into(),
                    uid: "u-1".into(),
                    namespace: "shop".into(),
                }),
                ..Default::default()
            }),
        }
        .encode_to_vec()
    }

    fn credentials_of(auth: cri::AuthConfig) -> Credentials {
        pull(&request("registry.example.com/app:v1", Some(auth))).unwrap().wanted.credentials
    }

    fn basic() -> Credentials {
        Credentials::Basic { username: "u".into(), password: "p:w".into() }
    }

    #[test]
    fn a_pull_names_its_image_and_pod() {
        let pull = pull(&request("nginx", None)).unwrap();
        assert_eq!(pull.requested, "nginx");
        assert_eq!(pull.wanted.image.to_string(), "docker.io/library/nginx:latest");
        assert_eq!(pull.wanted.caller.namespace.as_deref(), Some("shop"));
        assert_eq!(pull.wanted.credentials, Credentials::Anonymous);
    }

    #[test]
    fn credentials_are_read_in_containerds_order() {
        let empty = cri::AuthConfig::default;
        let full = || cri::AuthConfig {
            username: "u".into(),
            password: "p:w".into(),
            identity_token: "it".into(),
            auth: "eDp5".into(),
            registry_token: "rt".into(),
            ..empty()
        };
        assert_eq!(credentials_of(full()), basic());
        let full = || cri::AuthConfig { username: String::new(), ..full() };
        assert_eq!(credentials_of(full()), Credentials::IdentityToken("it".into()));
        let auth = "dTpwOncA"; // "u:p:w\0": some clients pad with NUL
        assert_eq!(credentials_of(cri::AuthConfig { auth: auth.into(), ..empty() }), basic());
        let token = cri::AuthConfig { registry_token: "rt".into(), ..empty() };
        assert_eq!(credentials_of(token), Credentials::RegistryToken("rt".into()));
    }

    #[test]
    fn a_server_address_binds_the_credentials_to_it() {
        let auth = cri::AuthConfig {
            username: "u".into(),
            password: "p:w".into(),
            server_address: "https://other.example.com".into(),
            ..Default::default()
        };
        assert_eq!(credentials_of(auth), basic().only_for("https://other.example.com"));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        let message = |bytes: &[u8]| {
            let refusal = pull(bytes).unwrap_err();
            assert_eq!(refusal.code, Code::MalformedRequest);
            refusal.message
        };
        assert_eq!(message(b""), "PullImage request: the field \"image\" is missing");
        assert_eq!(
            message(&request("", None)[..]),
            "PullImage request: the field \"image.image\" is missing"
        );
        assert_eq!(
            message(b"\x0a\x03\x0a\x01\xff"),
            "PullImage request: a field that Portcullis reads is not what CRI defines"
        );
        let bad = cri::AuthConfig { auth: "%".into(), ..Default::default() };
        assert_eq!(
            message(&request("app:v1", Some(bad))),
            "app:v1: PullImage request: auth.auth is not base64 of \"user:password\""
        );
    }
}
