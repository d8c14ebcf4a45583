//! What registries and operators send: `hosts.toml`, header fields, manifests.
#![allow(clippy::unwrap_used, reason = "a panic is how a property says that it does not hold")]

use std::path::Path;

use url::Url;

use crate::{image::Digest, properties::Json};

use super::{
    Descriptor, Fetched, MAX_MANIFEST, Manifest,
    header::{self, Challenge},
    hosts_file::{self, Host},
};

const MEDIA_TYPES: [&str; 6] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
];

/// `hosts.toml`: each host is asked where its text says, and gets what is meant for it.
pub(crate) fn hosts(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let directory = Path::new("/etc/containerd/certs.d/x");
    for registry in ["docker.io", "localhost:5000"] {
        let hosts = match hosts_file::parse(text, directory, registry) {
            Ok(hosts) => hosts,
            Err(why) => {
                assert!(!why.is_empty());
                return;
            }
        };
        assert!((1..=32).contains(&hosts.len()));
        assert_eq!(hosts_file::parse(text, directory, registry).as_ref(), Ok(&hosts));
        hosts.iter().for_each(host);
        // Unknown keys change nothing.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let more = format!("portcullis_unknown = 1\n{text}");
        assert_eq!(hosts_file::parse(&more, directory, registry).as_ref(), Ok(&hosts));
    }
}

fn host(host: &Host) {
    let base = &host.base;
    assert!(matches!(base.scheme(), "http" | "https"));
    assert!(base.host_str().is_some_and(|host| !host.is_empty()));
    assert!(base.username().is_empty() && base.password().is_none());
    assert_eq!((base.query(), base.fragment()), (None, None));
    let path = base.path();
    assert!(path == "/" || !path.ends_with('/'), "{path}");
    assert!(path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(path.split('/').all(|part| part != "." && part != ".."), "{path}");
    assert_eq!(Url::parse(base.as_str()).as_ref(), Ok(base));
    // What messages name, and `?ns=` hangs on, is the host that is asked.
    let authority = &host.authority;
    assert!(authority.chars().all(|c| !c.is_control() && !c.is_whitespace()), "{authority:?}");
    let named = Url::parse(&format!("{}://{authority}/", base.scheme())).unwrap();
    assert_eq!((named.host(), named.port()), (base.host(), base.port()), "{authority:?}");
    assert!(!authority.contains(['/', '@', '?', '#', '\\']), "{authority:?}");
    assert!(host.header.len() <= 32);
    assert!(host.header.values().all(|value| value.is_sensitive()));
    for name in ["host", "content-length", "transfer-encoding", "connection"] {
        assert!(!host.header.contains_key(name));
    }
    let files = host.tls.client.iter().flat_map(|(file, key)| [Some(file), key.as_ref()]);
    assert!(files.flatten().chain(&host.tls.ca).all(|file| file.is_absolute()));
    assert!(host.dial_timeout.is_none_or(|timeout| !timeout.is_zero()));
    let capable = host.capabilities;
    assert!(capable.referrers || !(capable.pull && capable.resolve));
}

/// `WWW-Authenticate` and `Link`, one field a line.
pub(crate) fn challenge(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let fields: Vec<_> = text.split('\n').collect();
    let chosen = Challenge::choose(fields.iter().copied());
    if let Some(Challenge::Bearer { realm, service, scope }) = &chosen {
        assert!(!realm.is_empty());
        let values = [Some(realm), service.as_ref(), scope.as_ref()];
        for value in values.into_iter().flatten() {
            assert!(value.bytes().all(|c| c == b'\t' || (b' '..=b'~').contains(&c)), "{value:?}");
            assert!(fields.iter().any(|field| value.len() < field.len()));
        }
        // Written as it was understood, it is understood as it was.
        let quoted =
            |value: &str| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
        let mut canonical = format!("Bearer realm={}", quoted(realm));
        for (name, value) in [("service", service), ("scope", scope)] {
            if let Some(value) = value {
                canonical += &format!(",{name}={}", quoted(value));
            }
        }
        if canonical.len() <= 8 << 10 {
            assert_eq!(Challenge::choose([&*canonical].into_iter()), chosen);
        }
    }
    // One broken field does not take the others with it, and none that stands before talks us
    // into sending a password to where a token would do.
    let few = || fields.iter().copied().take(15);
    let before = Challenge::choose(few());
    let with = Challenge::choose(few().chain(["Bearer realm=\"https://auth.example.com/token\""]));
    match &before {
        Some(Challenge::Bearer { .. }) => {
            assert_eq!(with, before);
            assert_eq!(Challenge::choose(["Basic realm=\"x\""].into_iter().chain(few())), before);
        }
        _ => assert!(matches!(with, Some(Challenge::Bearer { .. }))),
    }
    if let Ok(Some(target)) = header::next_link(fields.iter().copied()) {
        assert!(fields.iter().any(|field| field.contains(&format!("<{target}>"))));
        assert!(!target.contains('>') && target.chars().all(|c| !c.is_control() || c == '\t'));
    }
}

/// A manifest with its media type: the first byte chooses one.
pub(crate) fn manifest(input: &[u8]) {
    let Some((first, body)) = input.split_first() else { return };
    let media_type = MEDIA_TYPES[first.wrapping_sub(b'0') as usize % MEDIA_TYPES.len()];
    let read = Manifest::read(media_type, body);
    crate::evidence::properties::leads(&Fetched {
        digest: Digest::of(body),
        media_type: media_type.to_owned(),
        body: body.to_vec().into(),
    });
    let manifest = match read {
        Ok(manifest) => manifest,
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.len() < 2000 && message.chars().all(|c| !c.is_control()),
                "{message:?}"
            );
            return;
        }
    };
    assert!(body.len() <= MAX_MANIFEST);
    let json = Json::read(body);
    assert_eq!(json.get("schemaVersion"), Some(&Json::Number("2".into())));
    assert!(json.get("mediaType").is_none_or(|own| own.text() == Some(media_type)));
    assert_eq!(json.get("fsLayers"), None);
    match &manifest {
        Manifest::Image(image) => {
            assert_eq!(json.get("manifests"), None);
            descriptor(&image.config, json.get("config").unwrap());
            descriptors(&image.layers, json.get("layers"));
            assert_eq!(image.subject.is_some(), json.get("subject").is_some());
            if let Some(subject) = &image.subject {
                descriptor(subject, json.get("subject").unwrap());
            }
        }
        Manifest::Index(index) => {
            assert_eq!((json.get("config"), json.get("layers")), (None, None));
            descriptors(&index.manifests, json.get("manifests"));
        }
    }
    let restored = json.get("annotations").is_some_and(|annotations| {
        let mut keys = annotations.keys();
        keys.any(|key| {
            key.starts_with("org.criu.checkpoint.")
                || key.starts_with("io.kubernetes.cri-o.annotations.checkpoint.")
        })
    });
    assert_eq!(manifest.is_checkpoint(), restored);
    // The same bytes are nothing else under another type.
    let is_index = matches!(manifest, Manifest::Index(_));
    for other in MEDIA_TYPES {
        match Manifest::read(other, body) {
            Ok(Manifest::Image(_)) => assert!(!is_index, "an index that is an image as well"),
            Ok(Manifest::Index(_)) => assert!(is_index, "an image that is an index as well"),
            Err(_) => assert_ne!(other, media_type),
        }
    }
}

fn descriptors(read: &[Descriptor], json: Option<&Json>) {
    let json = json.map_or(&[][..], Json::list);
    assert_eq!(read.len(), json.len());
    read.iter().zip(json).for_each(|(read, json)| descriptor(read, json));
}

fn descriptor(read: &Descriptor, json: &Json) {
    assert_eq!(json.get("digest").and_then(Json::text), Some(&*read.digest.to_string()));
    assert_eq!(json.get("mediaType").and_then(Json::text), Some(&*read.media_type));
    assert_eq!(json.get("size"), Some(&Json::Number(read.size.to_string())));
    assert_eq!(json.get("artifactType").and_then(Json::text), read.artifact_type.as_deref());
    let platform = json.get("platform");
    assert_eq!(read.platform.is_some(), platform.is_some());
    if let (Some(read), Some(json)) = (&read.platform, platform) {
        for (name, value) in
            [("os", &read.os), ("architecture", &read.architecture), ("variant", &read.variant)]
        {
            assert_eq!(json.get(name).and_then(Json::text).unwrap_or_default(), value);
        }
        assert_eq!(
            json.get("os.features").map_or(&[][..], Json::list).len(),
            read.os_features.len()
        );
    }
}
