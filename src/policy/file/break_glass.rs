//! `spec.breakGlass`: how a pod is let past a policy in an emergency.

use crate::{
    image::shorten,
    policy::{
        BreakGlass,
        fields::{Field, Reader},
    },
};

use super::{
    moment::moment,
    name::{MAX_KEY_NAME, is_key},
    patterns,
};

/// Fields of `spec.breakGlass`.
pub(in crate::policy) const BREAK_GLASS: [&str; 3] = ["annotation", "namespaces", "notAfter"];

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<BreakGlass> {
    let fields = reader.fields(field, &BREAK_GLASS, &[])?;
    let annotation = reader.required(&fields, "annotation");
    let annotation = annotation.and_then(|field| self::annotation(reader, &field));
    // There is no "everywhere": who may is for the policy to say.
    let namespaces = reader.required(&fields, "namespaces");
    let namespaces = namespaces.and_then(|field| patterns(reader, &field));
    let not_after = reader.or(&fields, "notAfter", None, |r, field| moment(r, field).map(Some));
    Some(BreakGlass { annotation: annotation?, namespaces: namespaces?, not_after: not_after? })
}

/// A key that the API server takes for an annotation. Any other one no pod could have.
fn annotation(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let key = reader.text(field)?;
    if is_key(key) {
        return Some(key.to_owned());
    }
    let message = format!(
        "{:?} is no key of an annotation: at most {MAX_KEY_NAME} letters, digits, '-', '_' and '.' \
         are expected, perhaps behind a lower-case domain and '/', as in example.com/break-glass",
        shorten(key)
    );
    reader.wrong(field, message)
}
