//! The signatures of a fixture with one byte changed, served as whoever runs the registry would:
//! whatever refers to the changed document by its digest refers to the new one.

use std::collections::BTreeMap;

use bytes::Bytes;
use portcullis::image::Digest;
use serde_json::Value;

use crate::support::{fixtures::Fixtures, registry::TestRegistry};

/// A manifest with its media type, or a blob.
#[derive(Clone)]
pub(super) struct Document {
    pub(super) digest: Digest,
    /// None: a blob.
    media_type: Option<String>,
    pub(super) bytes: Vec<u8>,
    /// Part of what was signed with, and not of the image.
    pub(super) about_signatures: bool,
}

/// What a repository holds.
#[derive(Clone)]
pub(super) struct Contents {
    pub(super) documents: Vec<Document>,
    tags: BTreeMap<String, Digest>,
}

/// How a byte is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flip {
    Low,
    High,
    Case,
}

/// A byte of a document, and what stands there instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) place: usize,
    pub(super) at: usize,
    byte: u8,
}

impl Flip {
    pub(super) const ALL: [Self; 3] = [Self::Low, Self::High, Self::Case];

    /// None: such a byte has no case.
    pub(super) fn of(self, byte: u8) -> Option<u8> {
        match self {
            Self::Low => Some(byte ^ 1),
            Self::High => Some(byte ^ 0x80),
            Self::Case => byte.is_ascii_alphabetic().then_some(byte ^ 0x20),
        }
    }
}

impl Contents {
    pub(super) fn of(fixtures: &Fixtures, name: &str) -> Self {
        let fixture = fixtures.repository(name);
        let mut documents = Vec::<Document>::new();
        let mut add = |digest: &str, media_type, about_signatures| {
            let (bytes, digest) = (fixtures.blob(digest).to_vec(), digest.parse().unwrap());
            // A configuration can be that of several manifests.
            if !documents.iter().any(|held| held.digest == digest) {
                documents.push(Document { digest, media_type, bytes, about_signatures });
            }
        };
        let ours: Vec<&str> =
            ["image", "child"].iter().filter_map(|field| fixture.facts[field].as_str()).collect();
        let tagged = |digest: &str| {
            fixture.tags.iter().any(|(tag, held)| held == digest && tag.ends_with(".att"))
        };
        for digest in &fixture.manifests {
            let json: Value = serde_json::from_slice(&fixtures.blob(digest)).unwrap();
            let is_signature = json["subject"].is_object()
                || fixture.tags.iter().any(|(tag, to)| to == digest && tag.starts_with("sha256-"));
            let about = is_signature && !ours.contains(&&**digest) && !tagged(digest);
            for layer in json["layers"].as_array().into_iter().flatten() {
                add(layer["digest"].as_str().unwrap(), None, about);
            }
            if let Some(config) = json["config"]["digest"].as_str() {
                add(config, None, false);
            }
            add(digest, Some(json["mediaType"].as_str().unwrap().to_owned()), about);
        }
        let tags = fixture.tags.iter();
        Self {
            documents,
            tags: tags.map(|(tag, digest)| (tag.clone(), digest.parse().unwrap())).collect(),
        }
    }

    /// For people.
    pub(super) fn tell(&self, change: Change) -> String {
        let (kind, place) = self.place(change);
        format!("{kind}: {place}: byte {} is {:#x}", change.at, change.byte)
    }

    /// The kind of document, and the first value in it that is another.
    pub(super) fn place(&self, change: Change) -> (String, String) {
        let document = &self.documents[change.place];
        let was: Value = serde_json::from_slice(&document.bytes).unwrap();
        let kind = match &document.media_type {
            Some(_) if was.get("manifests").is_some() => "index of bundles",
            Some(_) if was.get("subject").is_some() => "manifest of a bundle",
            Some(_) => "manifest of signatures",
            None if was.get("critical").is_some() => "payload",
            None => "bundle",
        };
        let mut bytes = document.bytes.clone();
        bytes[change.at] = change.byte;
        (kind.into(), place(&document.bytes, &bytes))
    }

    fn replace(&mut self, place: usize, bytes: Vec<u8>) {
        let (old, new) = (self.documents[place].digest, Digest::of(&bytes));
        self.documents[place].bytes = bytes;
        self.documents[place].digest = new;
        for digest in self.tags.values_mut().filter(|digest| **digest == old) {
            *digest = new;
        }
        for parent in 0..self.documents.len() {
            let document = &self.documents[parent];
            if parent == place || !document.about_signatures || document.media_type.is_none() {
                continue;
            }
            if let Some(bytes) = replaced(&document.bytes, &old.to_string(), &new.to_string()) {
                self.replace(parent, bytes);
            }
        }
    }

    /// Every way to change one byte of what is about signatures.
    pub(super) fn changes(&self, flips: impl Fn(usize) -> Vec<Flip>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (place, document) in self.documents.iter().enumerate() {
            for (at, byte) in document.bytes.iter().enumerate() {
                let flipped = flips(at).into_iter().filter_map(|flip| flip.of(*byte));
                let change = |byte| Change { place, at, byte };
                changes.extend(flipped.map(change).filter(|_| document.about_signatures));
            }
        }
        changes
    }

    pub(super) fn changed(&self, change: Change) -> Self {
        let mut bytes = self.documents[change.place].bytes.clone();
        bytes[change.at] = change.byte;
        let mut changed = self.clone();
        changed.replace(change.place, bytes);
        changed
    }

    pub(super) fn push(&self, name: &str, registry: &TestRegistry) {
        for document in &self.documents {
            let bytes = Bytes::from(document.bytes.clone());
            match &document.media_type {
                Some(kind) => registry.push_manifest(name, None, kind, bytes),
                None => registry.push_blob(name, bytes),
            };
        }
        for (tag, digest) in &self.tags {
            registry.tag(name, tag, *digest);
        }
    }
}

/// None: the text does not occur.
fn replaced(bytes: &[u8], old: &str, new: &str) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let places: Vec<_> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(old.as_bytes())).collect();
    for at in &places {
        bytes[*at..at + old.len()].copy_from_slice(new.as_bytes());
    }
    (!places.is_empty()).then_some(bytes)
}

/// The first value that is another in a changed text.
pub(super) fn place(was: &[u8], is: &[u8]) -> String {
    let was = serde_json::from_slice(was).unwrap();
    match serde_json::from_slice(is) {
        Ok(is) => different(&was, &is).unwrap_or_else(|| "nowhere".into()),
        Err(_) => "no JSON".into(),
    }
}

/// Where two values differ first; places in arrays without their number.
fn different(was: &Value, is: &Value) -> Option<String> {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => was.iter().find_map(|(key, was)| {
            let below =
                is.get(key).map_or_else(|| Some(" is gone".to_owned()), |is| different(was, is))?;
            Some(format!("/{key}{below}"))
        }),
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            was.iter().zip(is).find_map(|(was, is)| different(was, is))
        }
        _ => (was != is).then(String::new),
    }
}
