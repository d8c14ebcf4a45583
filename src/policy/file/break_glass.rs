//! `spec.breakGlass`: how a pod is let past a policy in an emergency.

use crate::{
    image::shorten,
    policy::{
        BreakGlass,
        fields::{Field, Reader},
    },
};

use super::{is_subdomain, moment};

/// Longest name of an annotation behind its prefix, in bytes (Kubernetes, "qualified name").
const MAX_KEY_NAME: usize = 63;

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<BreakGlass> {
    let fields = reader.fields(field, &["annotation", "namespaces", "notAfter"], &[])?;
    let annotation = reader.required(&fields, "annotation");
    let annotation = annotation.and_then(|field| self::annotation(reader, &field));
    // There is no "everywhere": who may is for the policy to say.
    let namespaces = reader.required(&fields, "namespaces");
    let namespaces = namespaces.and_then(|field| reader.each(&field, Reader::parsed));
    let not_after = reader.or(&fields, "notAfter", None, |r, field| moment(r, field).map(Some));
    Some(BreakGlass { annotation: annotation?, namespaces: namespaces?, not_after: not_after? })
}

/// A key that the API server takes for an annotation. Any other one no pod could have.
fn annotation(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let key = reader.text(field)?;
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let edge = |c: u8| c.is_ascii_alphanumeric();
    let fits = prefix.is_none_or(is_subdomain)
        && name.len() <= MAX_KEY_NAME
        && name.bytes().all(|c| edge(c) || b"-_.".contains(&c))
        && name.bytes().next().is_some_and(edge)
        && name.bytes().last().is_some_and(edge);
    if fits {
        return Some(key.to_owned());
    }
    let message = format!(
        "{:?} is no key of an annotation: at most {MAX_KEY_NAME} letters, digits, '-', '_' and '.' \
         are expected, perhaps behind a lower-case domain and '/', as in example.com/break-glass",
        shorten(key)
    );
    reader.wrong(field, message)
}
