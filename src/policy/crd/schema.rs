//! Parts of structural schemas. A rule is CEL and the sentence for who breaks it.

use serde_json::{Map, Value, json};

use crate::policy::file::{
    moment::END,
    name::{MAX_KEY_NAME, MAX_NAME},
};

/// A "DNS subdomain" (RFC 1123), but for its length.
const SUBDOMAIN: &str = "[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*";

/// A mapping with these fields, some of which must be there.
pub(super) fn object<const N: usize>(required: &[&str], fields: [(&str, Value); N]) -> Value {
    let fields: Map<_, _> =
        fields.map(|(name, schema)| (name.to_owned(), schema)).into_iter().collect();
    let mut schema = json!({"type": "object", "properties": fields});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// A list of 1 to `max` entries.
pub(super) fn list(max: usize, items: Value) -> Value {
    json!({"type": "array", "minItems": 1, "maxItems": max, "items": items})
}

/// A list of 1 to `max` digests, none of which is there twice.
pub(super) fn digests(max: usize) -> Value {
    let digest = json!({
        "type": "string", "maxLength": "sha256:".len() + 64, "pattern": "^sha256:[0-9a-f]{64}$",
    });
    with(list(max, digest), "x-kubernetes-list-type", "set")
}

/// Text of 1 to `max` characters that a regular expression matches.
pub(super) fn text(max: usize, pattern: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": max, "pattern": pattern})
}

/// One of these words; the first is meant where there is none.
pub(super) fn words<T>(words: &[(&str, T)]) -> Value {
    let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    json!({"type": "string", "default": words.first(), "enum": words})
}

/// What Kubernetes takes for a name.
pub(super) fn name() -> Value {
    text(MAX_NAME, &format!("^{SUBDOMAIN}$"))
}

/// The key of an annotation that a pod can have.
pub(super) fn annotation() -> Value {
    let (inner, max) = (MAX_KEY_NAME - 2, MAX_NAME + "/".len() + MAX_KEY_NAME);
    let name = format!("[A-Za-z0-9]([A-Za-z0-9_.-]{{0,{inner}}}[A-Za-z0-9])?");
    rule(
        text(max, &format!("^({SUBDOMAIN}/)?{name}$")),
        &format!("self.matches('^([^/]{{1,{MAX_NAME}}}/)?[^/]+$')"),
        &format!("the domain before '/' has at most {MAX_NAME} characters"),
    )
}

/// A time, as far as all who read policies take it for the same one. It has no `format`: with
/// one, an API server takes a list for it as well.
pub(super) fn moment() -> Value {
    let pattern = "^[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]\
                   (\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";
    let longest = "2026-01-01T00:00:00.000000000+00:00".len();
    rule(
        text(longest, pattern),
        &format!("timestamp(self) < timestamp('{END}')"),
        "a time as in 2026-01-01T00:00:00Z (RFC 3339) is expected",
    )
}

/// A list of patterns for namespaces.
pub(super) fn namespaces() -> Value {
    use crate::policy::{file::MAX_PATTERNS, pattern::MAX_NAME_PATTERN};
    let pattern = text(MAX_NAME_PATTERN, "^[a-z0-9*]([a-z0-9*-]*[a-z0-9*])?$");
    let pattern = rule(
        pattern,
        "!self.contains('**')",
        "\"*\" stands for any run of characters; there is no \"**\" in namespaces",
    );
    list(MAX_PATTERNS, pattern)
}

/// The same schema, for people.
pub(super) fn told(schema: Value, description: &str) -> Value {
    with(schema, "description", description)
}

/// The same schema, with one more keyword.
pub(super) fn with(mut schema: Value, key: &str, value: impl Into<Value>) -> Value {
    schema[key] = value.into();
    schema
}

/// The same schema, with one more rule in CEL.
pub(super) fn rule(mut schema: Value, rule: &str, message: &str) -> Value {
    let rule = json!({"rule": rule, "message": message});
    match schema["x-kubernetes-validations"].as_array_mut() {
        Some(rules) => rules.push(rule),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
    schema
}
