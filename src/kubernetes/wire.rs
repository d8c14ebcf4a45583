//! What an API server sends in lists and watches, read strictly. Pure.
//!
//! API conventions of Kubernetes, "Lists and Simple kinds" and "Efficient detection of changes".

use serde::Deserialize;
use serde_json::Value;

use crate::{image::shorten, json};

use super::{
    kinds::{API_VERSION, Kind},
    names::is_subdomain,
};

/// Longest token for the next page of a list, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// A page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    /// Of the list as a whole, and the same on each of its pages.
    pub(super) version: u64,
    /// What the next page is asked for with.
    pub(super) more: Option<String>,
}

/// An object, as it was when it had this version.
#[derive(Debug, PartialEq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) object: Value,
}

/// A line of a watch.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// There is this object now.
    Put(Item),
    /// It is gone.
    Gone(Item),
    /// All up to this version was told.
    Bookmark(u64),
    /// The version that was asked for is too old: everything must be listed.
    Expired,
    /// An error of this code.
    Error(u16),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    kind: String,
    api_version: String,
    metadata: ListMeta,
    /// No default: a list without items is none, and not an empty one.
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    api_version: String,
    metadata: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    name: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    event: String,
    object: Value,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// One page of a list of this kind.
pub(super) fn page(kind: &Kind, body: &[u8]) -> Result<Page, String> {
    let list: List = json::read(body).map_err(|error| error.to_string())?;
    if list.kind != format!("{}List", kind.name) || list.api_version != API_VERSION {
        return Err(format!("it is a list of another kind, \"{}\"", shorten(&list.kind)));
    }
    let ListMeta { resource_version, more } = list.metadata;
    let is_token = |c: u8| c.is_ascii_alphanumeric() || b"-_.~=".contains(&c);
    if more.len() > MAX_TOKEN || !more.bytes().all(is_token) {
        return Err("its token for the next page is none".to_owned());
    }
    Ok(Page {
        items: list.items.into_iter().map(|object| item(kind, object)).collect::<Result<_, _>>()?,
        version: version(&resource_version)?,
        more: Some(more).filter(|more| !more.is_empty()),
    })
}

/// One event of a watch over this kind.
pub(super) fn event(kind: &Kind, line: &[u8]) -> Result<Event, String> {
    let Line { event, object } = json::read(line).map_err(|error| error.to_string())?;
    match &*event {
        "ADDED" | "MODIFIED" => Ok(Event::Put(item(kind, object)?)),
        "DELETED" => Ok(Event::Gone(item(kind, object)?)),
        "BOOKMARK" => Ok(Event::Bookmark(version(&head(kind, &object)?.resource_version)?)),
        "ERROR" => {
            let status = Status::deserialize(&object).map_err(|_| "its error has no code")?;
            Ok(if status.code == 410 { Event::Expired } else { Event::Error(status.code) })
        }
        other => Err(format!("its type is unknown, \"{}\"", shorten(other))),
    }
}

fn item(kind: &Kind, object: Value) -> Result<Item, String> {
    let Meta { name, resource_version } = head(kind, &object)?;
    if !is_subdomain(&name) {
        return Err("an object in it has no name".to_owned());
    }
    Ok(Item { name, version: version(&resource_version)?, object })
}

fn head(kind: &Kind, object: &Value) -> Result<Meta, String> {
    let head = Object::deserialize(object).map_err(|_| "an object in it is none")?;
    if head.kind != kind.name || head.api_version != API_VERSION {
        return Err(format!("an object in it is of another kind, \"{}\"", shorten(&head.kind)));
    }
    Ok(head.metadata)
}

/// A `resourceVersion`. API servers promise decimal numbers that grow ("Resource versions are
/// comparable"); nothing else can be held against an older state.
fn version(text: &str) -> Result<u64, String> {
    let is_number = !text.starts_with('0') && text.bytes().all(|c| c.is_ascii_digit());
    let number = if is_number { text.parse().ok() } else { None };
    number.ok_or_else(|| {
        format!("its resourceVersion is no decimal number that could grow, \"{}\"", shorten(text))
    })
}

#[cfg(test)]
mod tests;
