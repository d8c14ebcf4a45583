//! `[policy]` and `[kubernetes]`: where policies come from, and who is believed.

use std::{fmt, path::PathBuf};

use jiff::{SignedDuration, Unit};
use serde::Deserialize;
use toml::Spanned;

use crate::{
    image::{ImageRef, ReferenceError, shorten},
    policy::source::shown,
    resolve::HttpsAddress,
};

use super::{Reader, Text, values};

/// Most keys that can be pinned.
const MAX_KEYS: usize = 16;
/// Longest name of a node, in bytes (RFC 1123 subdomain).
const MAX_NODE: usize = 253;
/// Shortest time from one question for a bundle to the next.
const MIN_POLL: SignedDuration = SignedDuration::from_secs(5);
/// Longest.
const MAX_POLL: SignedDuration = SignedDuration::from_hours(24);
/// Shortest `max_age`: less would cut a node off at every restart of its control plane.
const MIN_MAX_AGE: SignedDuration = SignedDuration::from_mins(10);

/// Where policies come from, and how they are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The source.
    pub source: PolicySource,
    /// A directory of policies that hold beside the source's, whatever it holds; absolute.
    pub floor: Option<PathBuf>,
    /// How long a source is believed that is not heard of. None: for ever.
    pub max_age: Option<SignedDuration>,
    /// What a source needs that is a signed bundle.
    pub bundle: Bundle,
}

/// A source of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySource {
    /// `file://`: a directory of policy files; absolute.
    Directory(PathBuf),
    /// `kubernetes:`: the custom resources of the cluster.
    Kubernetes,
    /// `https://`: a signed bundle.
    Https(HttpsAddress),
    /// `oci://`: a signed bundle in a registry.
    Oci(ImageRef),
}

impl PolicySource {
    /// Whether a signed bundle is fetched.
    pub fn is_bundle(&self) -> bool {
        matches!(self, Self::Https(_) | Self::Oci(_))
    }
}

impl fmt::Display for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.write_str(&shown(path)),
            Self::Kubernetes => f.write_str("kubernetes:"),
            Self::Https(address) => address.fmt(f),
            Self::Oci(image) => write!(f, "oci://{image}"),
        }
    }
}

/// How a signed bundle is fetched and believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Files with the public keys of which one must have signed it; absolute, not empty where a
    /// bundle is the source.
    pub keys: Vec<PathBuf>,
    /// From one question to the next, a fifth more or less.
    pub poll: SignedDuration,
    /// Certificates (PEM) that the server's may be issued by, beside the system's; absolute.
    pub certificate_authority: Option<PathBuf>,
    /// Credentials for the registry, in the form of Docker's `config.json`; absolute.
    pub auth_file: Option<PathBuf>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            source: PolicySource::Directory("/etc/portcullis/policies".into()),
            floor: None,
            max_age: None,
            bundle: Bundle {
                keys: Vec::new(),
                poll: SignedDuration::from_mins(1),
                certificate_authority: None,
                auth_file: None,
            },
        }
    }
}

/// How this node is known to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// Where the API server is, and who asks; absolute. None: what a pod is given or, outside of
    /// pods, kubelet's own.
    pub kubeconfig: Option<PathBuf>,
    /// The name of the Node. None: the host's.
    pub node: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WirePolicy {
    source: Text,
    floor: Text,
    max_age: Text,
    #[serde(default)]
    keys: Vec<Spanned<String>>,
    poll: Text,
    certificate_authority: Text,
    auth_file: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireKubernetes {
    kubeconfig: Text,
    node: Text,
}

/// Where a value is wrong, its default stands in; the report then refuses the whole.
pub(super) fn policy(reader: &mut Reader<'_>, wire: &WirePolicy) -> Policy {
    let default = Policy::default();
    let optional = |text: &str| values::path(text).map(Some);
    let value = |reader: &mut Reader<'_>, text: &Text, field: &str| {
        reader.value(text.as_ref(), &format!("policy.{field}"), optional, None)
    };
    let policy = Policy {
        source: reader.value(wire.source.as_ref(), "policy.source", source, default.source),
        floor: value(reader, &wire.floor, "floor"),
        max_age: reader.value(wire.max_age.as_ref(), "policy.max_age", max_age, None),
        bundle: Bundle {
            keys: keys(reader, &wire.keys),
            poll: reader.value(wire.poll.as_ref(), "policy.poll", poll, default.bundle.poll),
            certificate_authority: value(
                reader,
                &wire.certificate_authority,
                "certificate_authority",
            ),
            auth_file: value(reader, &wire.auth_file, "auth_file"),
        },
    };
    // Of a source that cannot be read, nothing is known to suit it.
    if wire.source.as_ref().is_none_or(|text| source(text.get_ref()).is_ok()) {
        suits(reader, wire, &policy);
    }
    policy
}

/// What has no meaning for this source was meant otherwise.
fn suits(reader: &mut Reader<'_>, wire: &WirePolicy, policy: &Policy) {
    let source = &policy.source;
    let mut odd = |value: Option<&Spanned<String>>, field: &str, sources: &str| {
        if let Some(value) = value {
            let why = format!("has a meaning for {sources} only, and the source is {source}");
            reader.wrong(value, &format!("policy.{field}"), why);
        }
    };
    if !source.is_bundle() {
        odd(wire.keys.first(), "keys", "https:// and oci://");
        odd(wire.poll.as_ref(), "poll", "https:// and oci://");
    }
    if !matches!(source, PolicySource::Https(_)) {
        odd(wire.certificate_authority.as_ref(), "certificate_authority", "https://");
    }
    if !matches!(source, PolicySource::Oci(_)) {
        odd(wire.auth_file.as_ref(), "auth_file", "oci://");
    }
    if matches!(source, PolicySource::Directory(_)) {
        odd(wire.max_age.as_ref(), "max_age", "kubernetes:, https:// and oci://");
    }
    if source.is_bundle()
        && wire.keys.is_empty()
        && let Some(value) = &wire.source
    {
        let why = "is a signed bundle, and policy.keys names no public key that must have signed \
                   it, as in keys = [\"/etc/portcullis/policy.pub\"]";
        reader.wrong(value, "policy.source", why.into());
    }
    if let (Some(floor), PolicySource::Directory(directory), Some(value)) =
        (&policy.floor, source, &wire.floor)
        && floor == directory
    {
        let why = "is the source itself; the floor is what holds without the source";
        reader.wrong(value, "policy.floor", why.into());
    }
}

pub(super) fn kubernetes(reader: &mut Reader<'_>, wire: &WireKubernetes) -> Kubernetes {
    let optional = |text: &str| values::path(text).map(Some);
    let kubeconfig = wire.kubeconfig.as_ref();
    Kubernetes {
        kubeconfig: reader.value(kubeconfig, "kubernetes.kubeconfig", optional, None),
        node: reader.value(wire.node.as_ref(), "kubernetes.node", node, None),
    }
}

fn keys(reader: &mut Reader<'_>, keys: &[Spanned<String>]) -> Vec<PathBuf> {
    if let Some(value) = keys.get(MAX_KEYS) {
        let why = format!("is one key too many; {MAX_KEYS} are allowed");
        reader.wrong(value, "policy.keys", why);
    }
    let mut paths = Vec::new();
    for (index, value) in keys.iter().enumerate() {
        match values::path(value.get_ref()) {
            Ok(path) => paths.push(path),
            Err(why) => reader.wrong(value, &format!("policy.keys[{index}]"), why),
        }
    }
    paths
}

/// Reads where policies come from.
pub(crate) fn source(text: &str) -> Result<PolicySource, String> {
    let shown = shorten(text);
    if let Some(rest) = text.strip_prefix("file://") {
        let directory = values::path(rest).map_err(|_| {
            format!(
                "{shown:?} must name an absolute directory, as in file:///etc/portcullis/policies"
            )
        })?;
        return Ok(PolicySource::Directory(directory));
    }
    if text == "kubernetes:" {
        return Ok(PolicySource::Kubernetes);
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        return text.parse().map(PolicySource::Https);
    }
    if let Some(rest) = text.strip_prefix("oci://") {
        let image = rest.parse().map_err(|error: ReferenceError| error.to_string())?;
        return Ok(PolicySource::Oci(image));
    }
    Err(format!(
        "{shown:?} is no source of policies; write it as in file:///etc/portcullis/policies, \
         kubernetes:, https://policies.example.com/production.json or \
         oci://registry.example.com/policies:production"
    ))
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    let shown = shorten(text);
    text.parse().map_err(|_| format!("{shown:?} is no duration; write it as in 30s, 10m or 72h"))
}

fn max_age(text: &str) -> Result<Option<SignedDuration>, String> {
    match duration(text)? {
        age if age < MIN_MAX_AGE => Err(format!("must be at least {MIN_MAX_AGE:#}")),
        age => Ok(Some(age.round(Unit::Second).unwrap_or(age))),
    }
}

fn poll(text: &str) -> Result<SignedDuration, String> {
    match duration(text)? {
        poll if (MIN_POLL..=MAX_POLL).contains(&poll) => Ok(poll),
        _ => Err(format!("must be from {MIN_POLL:#} to {MAX_POLL:#}")),
    }
}

fn node(text: &str) -> Result<Option<String>, String> {
    let known = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    match (1..=MAX_NODE).contains(&text.len()) && text.bytes().all(known) {
        true => Ok(Some(text.to_owned())),
        false => Err(format!("{:?} is no name of a Node", shorten(text))),
    }
}
