//! Writes YAML: block style, keys in their order, text in quotes where it could be something else.

use serde_json::Value;

/// A document of this value.
pub(super) fn text(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

/// Appends a value behind `key:` or `-`, or at the beginning of a line where the indent is 0.
fn write(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (key, value)) in fields.iter().enumerate() {
                // The first field of a list's entry stands behind its dash.
                let pad = if index == 0 && text.ends_with("- ") { 0 } else { indent };
                *text += &format!("{:pad$}{}:", "", scalar(&Value::from(key.as_str())));
                below(text, value, indent);
            }
        }
        Value::Array(entries) if !entries.is_empty() => {
            for entry in entries {
                *text += &format!("{:indent$}- ", "");
                match entry {
                    Value::Object(_) => write(text, entry, indent + 2),
                    _ => *text += &format!("{}\n", scalar(entry)),
                }
            }
        }
        _ => *text += &format!("{}\n", scalar(value)),
    }
}

fn below(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            *text += "\n";
            write(text, value, indent + 2);
        }
        Value::Array(entries) if !entries.is_empty() => {
            *text += "\n";
            write(text, value, indent);
        }
        _ => *text += &format!(" {}\n", scalar(value)),
    }
}

/// One value on one line. JSON is YAML.
fn scalar(value: &Value) -> String {
    match value.as_str() {
        Some(text) if is_plain(text) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// Whether nobody takes a text without quotes for anything else than itself.
fn is_plain(text: &str) -> bool {
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || " -./,()_".contains(c))
        && !text.ends_with(' ')
        && !words.contains(&&*text.to_ascii_lowercase())
}
