//! The CustomResourceDefinitions, made from the constants that the parser of policies uses.
//!
//! An API server that has them refuses what `portcullis check` refuses, as far as a schema and
//! CEL can say it; a test of the two on one corpus holds them together. What only the parser
//! knows (whether a PEM block holds a key, how many keys are distinct) is judged on the node.

mod authority;
mod image_policy;
mod repository;
mod revocation;
mod schema;

use serde_json::{Value, json};

use super::{file, objects::PLURALS};

/// A kind of object, as an API server is told of it.
struct Kind {
    kind: &'static str,
    short: &'static str,
    description: &'static str,
    spec: Value,
    /// Title, path, type, and whether it is shown without `-o wide`.
    columns: &'static [(&'static str, &'static str, &'static str, bool)],
}

/// The definitions, in the order of their plural names, which go with them.
pub fn definitions() -> [(&'static str, Value); 2] {
    let [policies, revocations] = PLURALS.map(|(_, plural)| plural);
    [
        (policies, definition(policies, image_policy::kind())),
        (revocations, definition(revocations, revocation::kind())),
    ]
}

fn definition(plural: &str, kind: Kind) -> Value {
    let Kind { kind, short, description, spec, columns } = kind;
    let (group, version) = file::API_VERSION.split_once('/').unwrap_or_default();
    let singular = kind.to_ascii_lowercase();
    let columns: Vec<_> = columns
        .iter()
        .map(|(name, path, of, shown)| {
            json!({
                "name": name, "jsonPath": path, "type": of, "priority": i32::from(!shown),
            })
        })
        .collect();
    // The API server knows `metadata`, and checks it.
    let schema = json!({
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "preserveUnknownFields": false,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": singular,
                "shortNames": [short],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(name: &str) -> Value {
        let (_, definition) =
            definitions().into_iter().find(|(plural, _)| *plural == name).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"].clone()
    }

    #[track_caller]
    fn has_fields(schema: &Value, fields: &[&str]) {
        let mut fields = fields.to_vec();
        fields.sort_unstable();
        let found: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(found, fields);
    }

    /// A field that the parser learns is one that the API server must learn.
    #[test]
    fn the_fields_are_those_of_the_parser() {
        let spec = spec_of("imagepolicies");
        has_fields(&spec, &file::SPEC);
        has_fields(&spec["properties"]["match"], &file::SCOPE);
        has_fields(&spec["properties"]["breakGlass"], &file::break_glass::BREAK_GLASS);
        let authority = &spec["properties"]["authorities"]["items"];
        let kinds = file::authority::KINDS;
        has_fields(authority, &["name"].into_iter().chain(kinds).collect::<Vec<_>>());
        has_fields(&authority["properties"]["unsigned"], &file::authority::UNSIGNED);
        // Only a directory has files beside it.
        let key = file::authority::PUBLIC_KEY.into_iter().filter(|field| *field != "file");
        has_fields(&authority["properties"]["publicKey"], &key.collect::<Vec<_>>());
        has_fields(&spec_of("revocations"), &file::revocation::REVOCATION);
    }

    #[test]
    fn the_kinds_are_those_of_the_parser() {
        let kinds =
            definitions().map(|(_, definition)| definition["spec"]["names"]["kind"].clone());
        assert_eq!(kinds, file::KINDS.map(|(kind, _)| kind));
        assert_eq!(kinds, PLURALS.map(|(kind, _)| kind));
    }

    /// Without a bound an API server takes a rule for too costly, and a list has no end.
    #[test]
    fn everything_is_described_and_bounded() {
        fn check(path: &str, schema: &Value, is_field: bool) {
            let has = |key: &str| assert!(schema.get(key).is_some(), "{path} has no {key}");
            if is_field {
                has("description");
            }
            match schema["type"].as_str().unwrap() {
                "object" => match schema.get("additionalProperties") {
                    Some(values) => {
                        ["minProperties", "maxProperties"].into_iter().for_each(has);
                        check(&format!("{path}{{}}"), values, false);
                    }
                    None => {
                        for (name, field) in schema["properties"].as_object().unwrap() {
                            check(&format!("{path}.{name}"), field, true);
                        }
                    }
                },
                "array" => {
                    ["minItems", "maxItems"].into_iter().for_each(has);
                    check(&format!("{path}[]"), &schema["items"], false);
                }
                "string" if schema.get("enum").is_none() => has("maxLength"),
                "string" => {}
                "integer" => ["minimum", "maximum"].into_iter().for_each(has),
                other => panic!("{path}: {other}"),
            }
        }
        check("imagepolicies", &spec_of("imagepolicies"), true);
        check("revocations", &spec_of("revocations"), true);
    }
}
