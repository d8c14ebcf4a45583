//! `metadata`, and what Kubernetes takes for a name.

use std::collections::BTreeMap;

use crate::{
    image::shorten,
    policy::fields::{Field, Reader},
    problem::Position,
};

/// Longest name, in bytes (RFC 1123 subdomain, as Kubernetes names objects).
pub(in crate::policy) const MAX_NAME: usize = 253;
/// Longest name of an annotation behind its prefix, in bytes (Kubernetes, "qualified name").
pub(in crate::policy) const MAX_KEY_NAME: usize = 63;
/// Longest value of a label, in bytes (Kubernetes, "label value").
const MAX_LABEL: usize = 63;
/// Most bytes in `metadata.annotations` (Kubernetes, `TotalAnnotationSizeLimitB`).
const MAX_METADATA: usize = 256 * 1024;

/// The object's name, and where it stands. Labels and annotations change no judgement, but the
/// API server would refuse bad ones.
pub(super) fn metadata(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<(String, Position)> {
    let metadata = reader.fields(field, &["name", "labels", "annotations"], &[])?;
    if let Some(field) = metadata.get("labels") {
        let labels = reader.texts(&field);
        let wrong = labels.and_then(|labels| {
            labels.into_iter().find(|(key, value)| !is_key(key) || !is_label(value))
        });
        if let Some((key, value)) = wrong {
            let label = format!("{}: {}", shorten(&key), shorten(&value));
            reader.wrong::<()>(&field, format!("{label:?} is no label that Kubernetes takes"));
        }
    }
    if let Some(field) = metadata.get("annotations") {
        let annotations: BTreeMap<_, _> = reader.texts(&field).unwrap_or_default();
        if let Some(key) = annotations.keys().find(|key| !is_key(&key.to_ascii_lowercase())) {
            let message = format!("{:?} is no key that Kubernetes takes", shorten(key));
            reader.wrong::<()>(&field, message);
        }
        let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > MAX_METADATA {
            let message = format!("has {size} bytes, {MAX_METADATA} are allowed");
            reader.wrong::<()>(&field, message);
        }
    }
    let field = reader.required(&metadata, "name")?;
    Some((name(reader, &field)?, field.at))
}

pub(super) fn name(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let name = reader.text(field)?;
    if is_subdomain(name) {
        return Some(name.to_owned());
    }
    let message = format!(
        "{:?} is no name: at most {MAX_NAME} lower-case letters, digits, '-' and '.' are \
         expected, each part beginning and ending with a letter or digit",
        shorten(name)
    );
    reader.wrong(field, message)
}

/// Whether a text is what Kubernetes takes for a "DNS subdomain" (RFC 1123).
pub(in crate::policy) fn is_subdomain(name: &str) -> bool {
    let edge = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9');
    let is_label = |label: &str| {
        label.bytes().all(|c| edge(c) || c == b'-')
            && label.bytes().next().is_some_and(edge)
            && label.bytes().last().is_some_and(edge)
    };
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

/// Whether a text is what Kubernetes takes for the key of a label or an annotation.
pub(super) fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_subdomain) && name.len() <= MAX_KEY_NAME && is_word(name)
}

fn is_label(value: &str) -> bool {
    value.is_empty() || value.len() <= MAX_LABEL && is_word(value)
}

fn is_word(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_alphanumeric();
    text.bytes().all(|c| edge(c) || b"-_.".contains(&c))
        && text.bytes().next().is_some_and(edge)
        && text.bytes().last().is_some_and(edge)
}
