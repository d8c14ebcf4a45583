//! Image references: what we judge must be what the runtime pulls and what the registry is asked.

use url::Url;

use crate::{
    image::{Digest, ImageRef, PinnedImage, Version, governed},
    named::Named,
};

pub(super) fn reference(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    named(text);
    let image = match text.parse::<ImageRef>() {
        Ok(image) => image,
        Err(error) => {
            let message = error.to_string();
            assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
            assert!(message.len() < 2000, "{} bytes", message.len());
            return;
        }
    };
    let canonical = image.to_string();
    assert_eq!(canonical.parse(), Ok(image.clone()), "the canonical form is no fixed point");
    assert!(canonical.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-/:@[]".contains(&c)));
    let repository = &image.repository;
    assert_eq!(repository.as_str(), format!("{}/{}", repository.registry(), repository.path()));
    assert!(repository.as_str().len() <= 255 && canonical.len() <= 455);
    assert_eq!(repository.as_str().parse(), Ok(repository.clone()));
    let (tag, digest) = match &image.version {
        Version::Tag(tag) => (Some(tag.to_string()), None),
        Version::Digest(digest) => (None, Some(*digest)),
    };
    let read = containerd(text).expect("containerd reads it as well");
    let digest_text = digest.map(|digest| digest.to_string());
    assert_eq!(read, (repository.to_string(), tag.clone(), digest_text));

    // What is pulled in its place is the same repository, by digest alone.
    let digest = digest.unwrap_or(Digest::of(input));
    let pinned = PinnedImage { repository: repository.clone(), digest }.to_string();
    let again: ImageRef = pinned.parse().unwrap();
    assert_eq!((&again.repository, &again.version), (repository, &Version::Digest(digest)));

    // Neither the name nor the host means something else in the URL.
    let path = format!("/v2/{}/manifests/{}", repository.path(), tag.unwrap_or(digest.to_string()));
    if let Ok(url) = Url::parse(&format!("https://{}{path}", repository.registry())) {
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        let asked = format!("{}{port}", url.host_str().unwrap());
        let lower = repository.registry().to_ascii_lowercase();
        assert_eq!(asked, lower.strip_suffix(":443").unwrap_or(&lower));
        assert_eq!((url.path(), url.query(), url.fragment()), (&*path, None, None));
        assert!(url.username().is_empty() && url.password().is_none());
    }

    // Policies go by a name that all spellings share.
    let name = repository.governed();
    assert_eq!(governed(&name), name);
    let shouted = format!("{}/{}", repository.registry().to_uppercase(), repository.path());
    assert_eq!(governed(&shouted), name);
}

/// What a container is made from: an ID, its beginning or a name, and never two of them.
fn named(text: &str) {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    match text.parse() {
        Ok(Named::Id(id)) => assert_eq!(id.config().hex(), hex),
        Ok(Named::Short(short)) => {
            assert_eq!(short, text);
            assert!(hex.len() < text.len() && hex.bytes().all(|c| c.is_ascii_hexdigit()));
        }
        Ok(Named::Reference(image)) => assert_eq!(text.parse(), Ok(image)),
        Err(_) => assert!(text.parse::<ImageRef>().is_err()),
    }
}

/// The algorithm of github.com/distribution/reference (`ParseDockerRef`), which containerd and
/// kubelet call: repository, tag, and digest.
fn containerd(text: &str) -> Option<(String, Option<String>, Option<String>)> {
    let is_hex = |text: &str| text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 64 && is_hex(text) {
        return None;
    }
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => ("docker.io", text),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let rest = match domain == "docker.io" && !rest.contains('/') {
        true => format!("library/{rest}"),
        false => rest.to_owned(),
    };
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (&*rest, None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tag_fits = tag.is_none_or(|tag| {
        tag.len() <= 128
            && tag.starts_with(is_word)
            && tag.chars().all(|c| is_word(c) || c == '.' || c == '-')
    });
    let digest_fits = digest.is_none_or(|digest| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_hex(hex))
    });
    let whole = is_domain(domain) && path.split('/').all(is_component) && tag_fits && digest_fits;
    let tag = match digest {
        Some(_) => None,
        None => Some(tag.unwrap_or("latest").to_owned()),
    };
    whole.then(|| (format!("{domain}/{path}"), tag, digest.map(str::to_owned)))
}

fn is_domain(domain: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    if let Some(inner) = domain.strip_prefix('[') {
        let Some((address, port)) = inner.split_once(']') else { return false };
        let is_address = |c: u8| c.is_ascii_hexdigit() || c == b':';
        return !address.is_empty()
            && address.bytes().all(is_address)
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = domain.split_once(':').map_or((domain, None), |(h, p)| (h, Some(p)));
    let is_part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    host.split('.').all(is_part) && port.is_none_or(is_port)
}

/// Words of letters and digits; between two of them a dot, one or two underscores, or dashes.
fn is_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<_> = component.split(is_word).filter(|part| !part.is_empty()).collect();
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && separators.iter().all(|s| matches!(*s, "." | "_" | "__") || s.bytes().all(|c| c == b'-'))
}
