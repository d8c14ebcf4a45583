//! The vocabulary of images: what a pod asks for and what was judged.
//!
//! If a value of these types exists, it is well formed. They follow the grammar of the
//! [OCI distribution specification] and the familiar-name rules that containerd applies
//! (`nginx` is `docker.io/library/nginx:latest`).
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

mod shorten;

pub(crate) use shorten::shorten;

/// Longest canonical repository, in bytes; the bound that containerd sets.
const MAX_REPOSITORY: usize = 255;
/// Longest tag, in bytes (distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;
/// Longest reference that is looked at: repository, tag, digest and separators.
const MAX_REFERENCE: usize = MAX_REPOSITORY + MAX_TAG + "@sha256:".len() + 64 + 1;

/// A SHA-256 content digest.
///
/// Other algorithms of the OCI image specification are refused: every signature format that
/// Portcullis reads names images by SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 lower-case hexadecimal characters after `sha256:`.
    pub fn hex(&self) -> String {
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        let mut hex = String::with_capacity(64);
        hex.extend(self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        hex
    }
}

impl FromStr for Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError::Digest(shorten(text));
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        let mut digest = [0; 32];
        if hex.len() != 64 {
            return Err(bad());
        }
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
            *byte = nibble(pair[0]).ok_or_else(bad)? << 4 | nibble(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(digest))
    }
}

/// Upper-case hexadecimal is not a digest (image-spec, "Digests").
fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A canonical repository: `registry.example.com/prod/app`, `docker.io/library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    full: Arc<str>,
    slash: usize,
}

impl Repository {
    /// The registry's host and, where one is named, port: `docker.io`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.full[..self.slash]
    }

    /// The name within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.full[self.slash + 1..]
    }

    /// The name that policies go by: one for every spelling of the same host and port.
    pub(crate) fn governed(&self) -> Cow<'_, str> {
        governed(&self.full)
    }

    /// Registry and path, joined by a slash.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// Reads a familiar or canonical name without tag and digest.
    fn from_str(name: &str) -> Result<Self, ReferenceError> {
        let bad = |why| ReferenceError::Name { name: shorten(name), why };
        if name.len() == 64 && name.bytes().all(|c| nibble(c).is_some()) {
            return Err(bad("64 hexadecimal characters are an image ID, not a name"));
        }
        let (registry, path) = split_registry(name);
        if !is_registry(registry) {
            return Err(bad("the registry is no host name"));
        }
        let path = match registry {
            "docker.io" if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        if !path.split('/').all(is_path_component) {
            return Err(bad("a path component must be lower-case letters and digits, \
                            separated by '.', '_', '__' or dashes"));
        }
        if registry.len() + 1 + path.len() > MAX_REPOSITORY {
            return Err(bad("longer than 255 characters"));
        }
        Ok(Self { full: format!("{registry}/{path}").into(), slash: registry.len() })
    }
}

/// Splits off the registry as Docker and containerd do: the first component is one when it has
/// a dot, a colon or an upper-case letter, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { "docker.io" } else { first }, rest)
        }
        _ => ("docker.io", name),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return is_address(address),
        Some((address, port)) => {
            return is_address(address) && port.strip_prefix(':').is_some_and(is_port);
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let is_label = |label: &str| {
        label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    host.split('.').all(is_label) && is_one_host(host) && port.is_none_or(is_port)
}

/// Whether URLs have the host in this spelling. What ends in a number is an IPv4 address there
/// (WHATWG URL, "ends in a number"): `127.1` and `0x7f.1` lead to `127.0.0.1`, by a name that the
/// policies for it do not know.
fn is_one_host(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    let is_hex = |text: &str| text.bytes().all(|c| c.is_ascii_hexdigit());
    let is_number = last.bytes().all(|c| c.is_ascii_digit())
        || last.strip_prefix("0x").or(last.strip_prefix("0X")).is_some_and(is_hex);
    let is_byte = |text: &str| text.parse::<u8>().is_ok_and(|byte| byte.to_string() == text);
    !is_number || (host.split('.').count() == 4 && host.split('.').all(is_byte))
}

/// A repository, or a pattern for some, with its registry in lower case and without the port that
/// is HTTPS's own. The runtime keeps such spellings apart in its records, and all of them lead to
/// one registry: a policy that knew one spelling alone could be walked round by another.
pub(crate) fn governed(name: &str) -> Cow<'_, str> {
    let Some((registry, path)) = name.split_once('/') else { return name.into() };
    let host = registry.to_ascii_lowercase();
    let host = match host.strip_suffix(":443").unwrap_or(&host) {
        // The runtime asks the one where a name says the other.
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    if host == registry { name.into() } else { format!("{host}/{path}").into() }
}

/// In its one canonical spelling. That of an IPv4 address in it has dots, which containerd does
/// not take for a part of an address.
fn is_address(text: &str) -> bool {
    !text.contains('.')
        && text.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.to_string() == text)
}

fn is_port(port: &str) -> bool {
    !port.starts_with('0')
        && port.bytes().all(|c| c.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn is_path_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let word = rest.bytes().take_while(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9')).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let dashes = rest.bytes().take_while(|c| *c == b'-').count();
        let separator = match rest.as_bytes() {
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            _ => dashes,
        };
        if separator == 0 {
            return false;
        }
        rest = &rest[separator..];
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

/// A tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        let fits = (1..=MAX_TAG).contains(&text.len())
            && text.bytes().all(|c| word(c) || c == b'.' || c == b'-')
            && word(text.as_bytes()[0]);
        if fits { Ok(Self(text.into())) } else { Err(ReferenceError::Tag(shorten(text))) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a pod names an image: by tag, or by digest.
///
/// `name:tag@digest` is a digest, as for containerd: the tag is dropped and never resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A name that its owner may move to other bytes.
    Tag(Tag),
    /// A name for exactly these bytes.
    Digest(Digest),
}

/// An image reference as a pod, a static manifest or a CRI client writes it, made canonical.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// The repository, canonical.
    pub repository: Repository,
    /// The tag (`latest` where the pod wrote none) or the digest.
    pub version: Version,
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE {
            return Err(ReferenceError::Long(text.len()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon behind the last slash begins a tag; before it, a port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => {
                let colon = name_start + colon;
                (&rest[..colon], Some(rest[colon + 1..].parse::<Tag>()?))
            }
            None => (rest, None),
        };
        let repository = name.parse()?;
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, Some(tag)) => Version::Tag(tag),
            (None, None) => Version::Tag(Tag("latest".into())),
        };
        Ok(Self { repository, version })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// An image by its bytes. Every stage after `resolve` speaks of images in this form only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PinnedImage {
    /// The repository, canonical.
    pub repository: Repository,
    /// The digest of the manifest or index that was read and hashed.
    pub digest: Digest,
}

impl fmt::Display for PinnedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was named.
    #[error("the image reference is empty")]
    Empty,
    /// More bytes than any valid reference has.
    #[error("the image reference has {0} bytes, {MAX_REFERENCE} are allowed")]
    Long(usize),
    /// The repository part does not follow the grammar.
    #[error("\"{name}\" is no repository: {why}")]
    Name {
        /// The text, shortened.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The part behind the colon does not follow the grammar.
    #[error("\"{0}\" is no tag: letters, digits, '_', '.', '-', at most {MAX_TAG} of them")]
    Tag(String),
    /// The part behind the at sign is no digest that Portcullis can pin to.
    #[error(
        "\"{0}\" is no digest: \"sha256:\" and 64 lower-case hexadecimal characters are expected"
    )]
    Digest(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

    #[track_caller]
    fn reads(text: &str, canonical: &str) {
        assert_eq!(text.parse::<ImageRef>().map(|image| image.to_string()), Ok(canonical.into()));
    }

    #[track_caller]
    fn refuses(text: &str, message: &str) {
        assert_eq!(text.parse::<ImageRef>().unwrap_err().to_string(), message);
    }

    #[test]
    fn familiar_names_become_canonical() {
        reads("nginx", "docker.io/library/nginx:latest");
        reads("nginx:1.27", "docker.io/library/nginx:1.27");
        reads("index.docker.io/nginx", "docker.io/library/nginx:latest");
        reads("docker.io/nginx", "docker.io/library/nginx:latest");
        reads("bitnami/redis", "docker.io/bitnami/redis:latest");
        reads("localhost/app", "localhost/app:latest");
        reads("localhost:5000/app:v1", "localhost:5000/app:v1");
        reads(
            "registry.example.com/a/b_c/d__e-f--g.h:V_1.0-x",
            "registry.example.com/a/b_c/d__e-f--g.h:V_1.0-x",
        );
        reads("[::1]:5000/app", "[::1]:5000/app:latest");
        reads("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest");
        reads("Host/app", "Host/app:latest");
        reads("sha256:abc", "docker.io/library/sha256:abc");
    }

    #[test]
    fn a_tag_beside_a_digest_is_dropped() {
        reads(&format!("app:v1@sha256:{HEX}"), &format!("docker.io/library/app@sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_rule() {
        refuses("", "the image reference is empty");
        refuses(&"a".repeat(10_000), "the image reference has 10000 bytes, 456 are allowed");
        refuses(
            HEX,
            &format!(
                "{HEX:?} is no repository: 64 hexadecimal characters are an image ID, not a name"
            ),
        );
        for bad in [
            "App",
            "a//b",
            "/a",
            "a/",
            "a..b/c",
            "a___b",
            "-a",
            "ex ample",
            "a.b:x/c",
            "a.b:70000/c",
            "a.b:05000/c",
            "a.b:0/c",
            "[0::1]/a",
            "[::1]:0443/a",
            "[::ABCD]/a",
            "[::g]/a",
            "[::ffff:192.0.2.1]/a",
            "[::ffff:c000:201]/a",
            "127.1/a",
            "0x7f.0.0.1:5000/a",
            "registry.0X/a",
            "127.0.0.01/a",
            "127.0.0.256/a",
            "é",
        ] {
            assert!(matches!(bad.parse::<ImageRef>(), Err(ReferenceError::Name { .. })), "{bad}");
        }
        for bad in ["a:", "a:-x", "a:x y", "a:x/", "a:b:c"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
        for bad in [
            format!("a@sha256:{}", &HEX[1..]),
            format!("a@sha256:{}", HEX.to_uppercase()),
            format!("a@sha512:{HEX}"),
            "a@".into(),
            format!("a@sha256:{HEX}@sha256:{HEX}"),
        ] {
            assert!(matches!(bad.parse::<ImageRef>(), Err(ReferenceError::Digest(_))), "{bad}");
        }
        assert!(format!("{}/{}", "a".repeat(200), "b".repeat(60)).parse::<ImageRef>().is_err());
    }
}
