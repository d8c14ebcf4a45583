//! Kubernetes objects as texts that the parser reads.
//!
//! JSON is YAML, so an object needs no parser of its own: what is written here is read as
//! strictly as a file.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Map, Value};

use crate::{image::shorten, problem::Problem};

use super::{
    file::{MAX_FILE, name::is_subdomain},
    texts::Text,
};

/// The kinds and their plural names, by which an API server serves them.
pub const PLURALS: [(&str, &str); 2] =
    [("ImagePolicy", "imagepolicies"), ("Revocation", "revocations")];

/// The text of a custom resource, as an API server delivers it: `apiVersion`, `kind`,
/// `metadata.name` and `spec`, and nothing else of it. So the text, and with it a set's digest,
/// changes with the policy alone, and not with labels, owners of fields or versions.
///
/// The same object has one text: compact JSON with sorted keys, in which all that YAML or a
/// terminal could take for something else is escaped.
///
/// # Errors
///
/// The object is of another kind, has no name, or is larger than a policy file can be. Whether it
/// is a good policy is for the parser to say.
pub fn text_of(object: &Value) -> Result<Text, Problem> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    let plural = PLURALS.iter().find(|(known, _)| *known == kind).map(|(_, plural)| *plural);
    let wrong = |message: &str| {
        let object = [plural.unwrap_or(&kind), &name].map(|part| match part {
            "" => "?".to_owned(),
            part => shorten(part),
        });
        Problem::of_file(object.join("/"), message)
    };
    let Some(plural) = plural else {
        return Err(wrong("is no policy object; an ImagePolicy or a Revocation is expected"));
    };
    if !is_subdomain(&name) {
        return Err(wrong("has no name that Kubernetes takes"));
    }
    let mut kept = Map::new();
    for key in ["apiVersion", "kind", "spec"] {
        kept.extend(object.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let metadata = Map::from_iter([("name".to_owned(), Value::from(&*name))]);
    kept.insert("metadata".to_owned(), metadata.into());
    let mut text = String::new();
    write(&mut text, &kept.into());
    if text.len() > MAX_FILE {
        return Err(wrong(&format!("is larger than {MAX_FILE} bytes")));
    }
    Ok(Text { name: format!("{plural}/{name}"), text })
}

/// Appends a value as JSON.
fn write(text: &mut String, value: &Value) {
    match value {
        Value::String(string) => write_string(text, string),
        Value::Array(entries) => {
            text.push('[');
            for (index, entry) in entries.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                write(text, entry);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            // Whatever order the map of this build has.
            let fields: BTreeMap<_, _> = fields.iter().collect();
            text.push('{');
            for (index, (key, value)) in fields.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                write_string(text, key);
                // YAML wants the space where a key is long.
                text.push_str(": ");
                write(text, value);
            }
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => text.push_str(&value.to_string()),
    }
}

/// Appends a string. YAML breaks lines at U+0085, U+2028 and U+2029, and JSON does not; so all of
/// Unicode that fits into one escape is written so. Of the rest, YAML takes each as it is.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' | '\u{10000}'.. => text.push(c),
            _ => {
                write!(text, "\\u{:04x}", u32::from(c)).expect("a String takes all that is written")
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::policy::{
        AuthorityKind, PolicySet, Texts,
        yaml::{self, Node},
    };

    fn policy() -> Value {
        json!({
            "kind": "ImagePolicy",
            "apiVersion": "portcullis.dev/v1alpha1",
            "spec": {
                "match": {"images": ["**"]},
                "authorities": [{"unsigned": {"reason": "test"}, "name": "a"}],
            },
            "metadata": {"name": "p"},
        })
    }

    fn read(object: &Value) -> Result<PolicySet, String> {
        let text = text_of(object).map_err(|problem| problem.to_string())?;
        let texts = Texts { files: vec![text], keys: Vec::new() };
        texts.read("the API server", Timestamp::UNIX_EPOCH).map_err(|error| error.to_string())
    }

    #[test]
    fn the_text_is_the_policy_and_nothing_else() {
        let mut object = policy();
        let text = text_of(&object).unwrap();
        assert_eq!(
            (&*text.name, &*text.text),
            (
                "imagepolicies/p",
                "{\"apiVersion\": \"portcullis.dev/v1alpha1\",\"kind\": \"ImagePolicy\",\
                 \"metadata\": {\"name\": \"p\"},\"spec\": {\"authorities\": [{\"name\": \"a\",\
                 \"unsigned\": {\"reason\": \"test\"}}],\"match\": {\"images\": [\"**\"]}}}"
            )
        );
        object["metadata"] = json!({
            "name": "p", "uid": "4a", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a": "b"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "managedFields": [{"manager": "kubectl"}],
        });
        object["status"] = json!({"seen": true});
        object["more"] = json!(1);
        assert_eq!(text_of(&object).unwrap(), text);
        object["spec"]["atLeast"] = json!(1);
        assert_ne!(text_of(&object).unwrap(), text);
    }

    #[test]
    fn what_is_no_policy_object_is_named() {
        let without = |path: &str| {
            let mut object = policy();
            *object.pointer_mut(path).unwrap() = Value::Null;
            text_of(&object).unwrap_err().to_string()
        };
        let kind = "is no policy object; an ImagePolicy or a Revocation is expected";
        let name = "has no name that Kubernetes takes";
        assert_eq!(without("/kind"), format!("?/p: {kind}"));
        assert_eq!(without("/metadata/name"), format!("imagepolicies/?: {name}"));
        assert_eq!(without("/metadata"), format!("imagepolicies/?: {name}"));
        let mut object = policy();
        object["kind"] = json!("TrustRoot");
        assert_eq!(text_of(&object).unwrap_err().to_string(), format!("TrustRoot/p: {kind}"));
        for hostile in ["a/b", "\u{1b}[2J", "P", &"x".repeat(300)] {
            let mut object = policy();
            object["metadata"]["name"] = json!(hostile);
            let error = text_of(&object).unwrap_err().to_string();
            assert_eq!(error, format!("imagepolicies/{}: {name}", shorten(hostile)));
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
        for other in [json!(null), json!([]), json!("x"), json!({})] {
            assert_eq!(text_of(&other).unwrap_err().to_string(), format!("?/?: {kind}"));
        }
    }

    #[test]
    fn a_problem_names_the_object_and_the_field_and_no_line() {
        let wrong = |path: &str, value: Value| {
            let mut object = policy();
            *object.pointer_mut(path).unwrap() = value;
            read(&object).unwrap_err()
        };
        for (path, value, message) in [
            ("/spec", json!(null), "spec: is empty"),
            (
                "/spec/match/images/0",
                json!("nginx"),
                "spec.match.images[0]: \"nginx\" is not \
              canonical and would match nothing; write \"docker.io/library/nginx\"",
            ),
            ("/spec/match", json!([]), "spec.match: must be a mapping, not a list"),
            (
                "/apiVersion",
                json!("portcullis.dev/v1"),
                "apiVersion: must be \
              portcullis.dev/v1alpha1, not \"portcullis.dev/v1\"",
            ),
        ] {
            assert_eq!(wrong(path, value), format!("imagepolicies/p: {message}"));
        }
        for number in [json!(1.0), json!(1.5), json!(1e300), json!(-1), json!(u64::MAX), json!("1")]
        {
            let mut object = policy();
            object["spec"]["atLeast"] = number.clone();
            let error = read(&object).unwrap_err();
            assert!(error.starts_with("imagepolicies/p: spec.atLeast: "), "{number}: {error}");
        }
    }

    #[test]
    fn a_secret_is_in_no_message() {
        let mut object = policy();
        object["spec"]["authorities"][0] = json!({"name": "a", "publicKey": {"pem": "hunter2"}});
        let texts = Texts { files: vec![text_of(&object).unwrap()], keys: Vec::new() };
        let problems = texts.read("", Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(!format!("{problems:?}").contains("hunter2"));
    }

    #[test]
    fn an_object_that_is_too_large_is_refused_before_it_is_read() {
        let mut object = policy();
        object["spec"]["authorities"][0]["unsigned"]["reason"] = json!("x".repeat(MAX_FILE));
        let error = text_of(&object).unwrap_err().to_string();
        assert_eq!(error, "imagepolicies/p: is larger than 1048576 bytes");
    }

    /// What an API server can hold in a string is what the parser gets; in a key, too, which
    /// is shorter.
    #[track_caller]
    fn survives(string: &str) {
        let key: String = string.chars().take(128).collect();
        let mut text = String::new();
        write(&mut text, &json!({ &key: [string] }));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()[&key][0], string);
        let nodes = yaml::parse(&text).unwrap();
        let yaml::Value::Map(fields) = &nodes[0].value else { panic!("{text}") };
        let [(found, list)] = &fields[..] else { panic!("{text}") };
        let yaml::Value::List(list) = &list.value else { panic!("{text}") };
        let is = |node: &Node, text: &str| matches!(&node.value, yaml::Value::Text(read) if read == text);
        assert!(is(found, &key) && is(&list[0], string), "{text}");
    }

    #[test]
    fn hostile_strings_are_what_they_are() {
        for string in [
            "",
            " ",
            "~",
            "null",
            "yes",
            "1",
            "1.0",
            "# no comment",
            "- a",
            "a: b",
            "*a",
            "&a",
            "!!binary x",
            "\"",
            "\\",
            "'",
            "{",
            "---",
            "...",
            "\n",
            "\r\n",
            "\t",
            "a\n\n b\n",
            "\0",
            "\u{1b}[2J",
            "\u{7f}",
            "\u{85}",
            "\u{a0}",
            "\u{2028}",
            "\u{2029}",
            "\u{feff}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{d7ff}",
            "\u{e000}",
            "\u{10000}",
            "\u{1fffe}",
            "\u{10ffff}",
            "é😀",
        ] {
            survives(string);
        }
        for length in [1023, 1024, 1025, 500_000] {
            survives(&"x".repeat(length));
            survives(&"\n".repeat(length / 10));
        }
    }

    #[test]
    fn a_reason_is_read_as_it_was_written() {
        let mut object = policy();
        let reason = "tell\u{2028}me \"why\": \\u0041 # é😀";
        object["spec"]["authorities"][0]["unsigned"]["reason"] = json!(reason);
        let set = read(&object).unwrap();
        let kind = &set.policies()[0].authorities[0].kind;
        assert!(matches!(kind, AuthorityKind::Unsigned { reason: read } if read == reason));
    }

    proptest! {
        #[test]
        fn every_string_survives(string in any::<String>()) {
            survives(&string);
        }
    }
}
