//! What an API server keeps.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

/// What there is, and everything that was ever said to watches.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) version: u64,
    /// Watches from before this version are refused.
    pub(super) compacted: u64,
    /// Kinds that are defined, with their plurals.
    pub(super) kinds: Vec<(String, String)>,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    pub(super) log: Vec<Signal>,
    /// Lists that have begun: versions and objects, by the tokens for their next pages.
    lists: Vec<(u64, Vec<Value>)>,
    pub(super) nodes: BTreeMap<String, Value>,
    pub(super) events: Vec<Value>,
}

/// Something that watches do.
#[derive(Clone)]
pub(super) enum Signal {
    /// Those of this plural tell a change.
    Change {
        plural: String,
        version: u64,
        line: Bytes,
    },
    Bookmark {
        version: u64,
    },
    /// Those of this plural, or all, send these bytes.
    Say(Option<String>, Bytes),
    End,
    Cut(Bytes),
}

/// A page of a list.
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Value>,
    pub(super) more: Option<String>,
}

impl Default for Store {
    fn default() -> Self {
        let kind = |name: &str, plural: &str| (name.to_owned(), plural.to_owned());
        Self {
            version: 100,
            compacted: 0,
            kinds: vec![kind("ImagePolicy", "imagepolicies"), kind("Revocation", "revocations")],
            objects: BTreeMap::new(),
            log: Vec::new(),
            lists: Vec::new(),
            nodes: BTreeMap::new(),
            events: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn kind_of(&self, plural: &str) -> Option<&str> {
        let known = self.kinds.iter().find(|(_, known)| known == plural);
        known.map(|(kind, _)| kind.as_str())
    }

    fn plural_of(&self, kind: &str) -> String {
        let known = self.kinds.iter().find(|(known, _)| known == kind);
        known.expect("a kind that is defined").1.clone()
    }

    pub(super) fn touch(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(super) fn apply(&mut self, mut object: Value) -> u64 {
        let version = self.touch();
        let plural = self.plural_of(object["kind"].as_str().unwrap());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let before = self.objects.insert((plural.clone(), name), object.clone());
        self.tell(&plural, if before.is_some() { "MODIFIED" } else { "ADDED" }, &object);
        version
    }

    pub(super) fn delete(&mut self, kind: &str, name: &str) -> u64 {
        let version = self.touch();
        let plural = self.plural_of(kind);
        let gone = self.objects.remove(&(plural.clone(), name.to_owned()));
        let mut object = gone.expect("an object that is there");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.tell(&plural, "DELETED", &object);
        version
    }

    fn tell(&mut self, plural: &str, event: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": event, "object": object})).into();
        let (plural, version) = (plural.to_owned(), self.version);
        self.log.push(Signal::Change { plural, version, line });
    }

    pub(super) fn bookmark(&mut self) {
        self.log.push(Signal::Bookmark { version: self.version });
    }

    pub(super) fn say(&mut self, plural: Option<&str>, bytes: Bytes) {
        self.log.push(Signal::Say(plural.map(str::to_owned), bytes));
    }

    pub(super) fn end(&mut self) {
        self.log.push(Signal::End);
    }

    pub(super) fn cut(&mut self, bytes: Bytes) {
        self.log.push(Signal::Cut(bytes));
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.lists.clear();
    }

    /// Watches are told nothing of it.
    pub(super) fn restore(&mut self, backup: Self) {
        let (log, nodes, events) =
            (std::mem::take(&mut self.log), self.nodes.clone(), self.events.clone());
        *self = Self { log, nodes, events, ..backup };
    }

    /// The first page of a list, or the one that a token stands for. None: it was forgotten.
    pub(super) fn list(&mut self, plural: &str, limit: usize, token: &str) -> Option<Page> {
        let (number, from) = match token.split_once('.') {
            Some((number, from)) => (number.parse().ok()?, from.parse().ok()?),
            None => {
                let of_kind = self.objects.iter().filter(|((known, _), _)| known == plural);
                let items: Vec<Value> = of_kind.map(|(_, object)| object.clone()).collect();
                if items.len() <= limit {
                    return Some(Page { version: self.version, items, more: None });
                }
                self.lists.push((self.version, items));
                (self.lists.len() - 1, 0)
            }
        };
        let (version, all) = self.lists.get(number)?;
        let to = all.len().min(from + limit);
        let more = (to < all.len()).then(|| format!("{number}.{to}"));
        Some(Page { version: *version, items: all.get(from..to)?.to_vec(), more })
    }

    pub(super) fn add_node(&mut self, name: &str) {
        let ready = json!({"type": "Ready", "status": "True"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"conditions": [ready]},
        });
        self.nodes.insert(name.to_owned(), node);
    }

    /// Merges conditions by their types, as a strategic merge patch does. None: no such node.
    pub(super) fn patch_node(&mut self, name: &str, patch: &Value) -> Option<Value> {
        self.touch();
        let node = self.nodes.get_mut(name)?;
        let conditions = node["status"]["conditions"].as_array_mut().unwrap();
        for new in patch["status"]["conditions"].as_array().into_iter().flatten() {
            match conditions.iter_mut().find(|old| old["type"] == new["type"]) {
                Some(old) => {
                    let fields = new.as_object().unwrap().clone();
                    old.as_object_mut().unwrap().extend(fields);
                }
                None => conditions.push(new.clone()),
            }
        }
        Some(node.clone())
    }

    /// False: there is one of that name.
    pub(super) fn add_event(&mut self, event: Value) -> bool {
        let (name, namespace) = (&event["metadata"]["name"], &event["metadata"]["namespace"]);
        let same = |other: &Value| {
            other["metadata"]["name"] == *name && other["metadata"]["namespace"] == *namespace
        };
        if !name.is_null() && self.events.iter().any(same) {
            return false;
        }
        self.touch();
        self.events.push(event);
        true
    }
}
