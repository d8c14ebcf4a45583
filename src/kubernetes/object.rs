//! An object's own text.

use serde_json::{Value, json};

use crate::{policy::Text, problem::Problem};

use super::{kinds::Kind, wire::Item};

/// The text that a set is read from.
pub(super) fn text(kind: &Kind, item: &Item) -> Result<Text, Problem> {
    let object: &Value = &item.object;
    let text = json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"],
        "metadata": {"name": item.name}, "spec": object["spec"],
    });
    Ok(Text { name: format!("{}/{}", kind.plural, item.name), text: text.to_string() })
}
