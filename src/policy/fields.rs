//! Reads a tree field by field, strictly, and notes everything that is wrong with it.
//!
//! `None` stands for "noted as a problem" throughout; what a file may leave out has a type of
//! its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    image::shorten,
    problem::{Position, Problem, Report},
};

use super::yaml::{Node, Value};

/// A node and the path that leads to it.
pub(super) struct Field<'a> {
    pub path: String,
    pub at: Position,
    value: &'a Value,
}

impl<'a> Field<'a> {
    pub(super) fn new(path: impl Into<String>, node: &'a Node) -> Self {
        Self { path: path.into(), at: node.at, value: &node.value }
    }
}

/// A mapping whose keys are known, each there at most once.
pub(super) struct Fields<'a> {
    pub path: String,
    pub at: Position,
    entries: BTreeMap<&'a str, &'a Node>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let node = *self.entries.get(key)?;
        Some(Field::new(join(&self.path, key), node))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// Notes problems of one file.
pub(super) struct Reader<'a> {
    pub file: &'a str,
    pub text: &'a str,
    pub report: &'a mut Report,
}

impl Reader<'_> {
    /// Notes a problem with a field.
    pub(super) fn wrong<T>(&mut self, field: &Field<'_>, message: impl Into<String>) -> Option<T> {
        self.note(field.at, &field.path, message)
    }

    /// Notes a problem at a place; an empty path names no field.
    pub(super) fn note<T>(
        &mut self,
        at: Position,
        path: &str,
        message: impl Into<String>,
    ) -> Option<T> {
        let (file, text) = (self.file, self.text);
        let path = (!path.is_empty()).then(|| path.to_owned());
        self.report.add_with(|| Problem::at(file, text, at, path, message));
        None
    }

    /// Notes a problem with a field whose text may be secret.
    pub(super) fn wrong_secret<T>(
        &mut self,
        field: &Field<'_>,
        message: impl Into<String>,
    ) -> Option<T> {
        let (file, text, path) = (self.file, self.text, Some(field.path.clone()));
        self.report.add_with(|| Problem::at(file, text, field.at, path, message).without_excerpt());
        None
    }

    /// A mapping that has no other keys than these. Keys that only a later version knows are
    /// refused by name: to leave them out of the judgement would weaken the policy.
    pub(super) fn fields<'n>(
        &mut self,
        field: &Field<'n>,
        known: &[&str],
        later: &[&str],
    ) -> Option<Fields<'n>> {
        let nodes = self.map(field)?;
        let mut entries: BTreeMap<&str, &Node> = BTreeMap::new();
        for (key, node) in nodes {
            let Some(name) = self.key(&field.path, key) else { continue };
            let path = join(&field.path, &shorten(name));
            if entries.contains_key(name) {
                self.note::<()>(key.at, &path, "is there twice; remove one of the two");
            } else if later.contains(&name) {
                self.note::<()>(key.at, &path, "is not supported by this version");
                entries.insert(name, node);
            } else if known.contains(&name) {
                entries.insert(name, node);
            } else {
                let known = known.join(", ");
                self.note::<()>(key.at, &path, format!("is unknown; known here: {known}"));
            }
        }
        Some(Fields { path: field.path.clone(), at: field.at, entries })
    }

    fn map<'n>(&mut self, field: &Field<'n>) -> Option<&'n [(Node, Node)]> {
        match field.value {
            Value::Null => self.wrong(field, "is empty"),
            Value::Map(nodes) if nodes.is_empty() => self.wrong(field, "is empty"),
            Value::Map(nodes) => Some(nodes),
            other => self.wrong(field, format!("must be a mapping, not {}", other.kind())),
        }
    }

    fn key<'n>(&mut self, path: &str, key: &'n Node) -> Option<&'n str> {
        match &key.value {
            Value::Text(name) => Some(name),
            other => {
                let message = format!("a key must be text, not {}; quote it", other.kind());
                self.note(key.at, path, message)
            }
        }
    }

    /// A field that must be there.
    pub(super) fn required<'n>(&mut self, fields: &Fields<'n>, key: &str) -> Option<Field<'n>> {
        fields.get(key).or_else(|| self.note(fields.at, &join(&fields.path, key), "is missing"))
    }

    /// What a field holds, or `absent` where the file leaves it out.
    pub(super) fn or<'n, T>(
        &mut self,
        fields: &Fields<'n>,
        key: &str,
        absent: T,
        read: impl FnOnce(&mut Self, &Field<'n>) -> Option<T>,
    ) -> Option<T> {
        match fields.get(key) {
            Some(field) => read(self, &field),
            None => Some(absent),
        }
    }

    /// Text that is not empty.
    pub(super) fn text<'n>(&mut self, field: &Field<'n>) -> Option<&'n str> {
        match field.value {
            Value::Text(text) if text.is_empty() => self.wrong(field, "is empty"),
            Value::Text(text) => Some(text),
            Value::Null => self.wrong(field, "is empty"),
            Value::Bool | Value::Number(_) => {
                let message = format!("must be text, not {}; quote it", field.value.kind());
                self.wrong(field, message)
            }
            other => self.wrong(field, format!("must be text, not {}", other.kind())),
        }
    }

    /// Text that is parsed.
    pub(super) fn parsed<T>(&mut self, field: &Field<'_>) -> Option<T>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        match self.text(field)?.parse() {
            Ok(value) => Some(value),
            Err(error) => self.wrong(field, error.to_string()),
        }
    }

    /// One of the words that the format has for a field.
    pub(super) fn word<T: Copy>(
        &mut self,
        field: &Field<'_>,
        words: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let text = self.text(field)?;
        if later.contains(&text) {
            return self.wrong(field, format!("{text} is not supported by this version"));
        }
        let word = words.iter().find(|(word, _)| *word == text);
        word.map(|(_, meaning)| *meaning).or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("must be {}, not {:?}", words.join(" or "), shorten(text));
            self.wrong(field, message)
        })
    }

    /// A number that counts something.
    pub(super) fn count(&mut self, field: &Field<'_>) -> Option<u64> {
        match field.value {
            Value::Number(Some(number)) => Some(*number),
            Value::Null => self.wrong(field, "is empty"),
            _ => self.wrong(field, "must be a whole number, not negative and not quoted"),
        }
    }

    /// The entries of a list that is not empty and has at most `max` of them.
    fn list<'n>(&mut self, field: &Field<'n>, max: usize) -> Option<Vec<Field<'n>>> {
        let nodes = match field.value {
            Value::List(nodes) if nodes.is_empty() => {
                return self.wrong(field, "is an empty list; remove the field or fill the list");
            }
            Value::List(nodes) if nodes.len() > max => {
                let message = format!("has {} entries, {max} are allowed", nodes.len());
                return self.wrong(field, message);
            }
            Value::List(nodes) => nodes,
            Value::Null => return self.wrong(field, "is empty"),
            other => {
                return self.wrong(field, format!("must be a list, not {}", other.kind()));
            }
        };
        let entry = |(index, node)| Field::new(format!("{}[{index}]", field.path), node);
        Some(nodes.iter().enumerate().map(entry).collect())
    }

    /// A list of 1 to `max` entries, each read alike; all of them, so that all problems show.
    pub(super) fn each<'n, T>(
        &mut self,
        field: &Field<'n>,
        max: usize,
        mut read: impl FnMut(&mut Self, &Field<'n>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let read: Vec<_> = self.list(field, max)?.iter().map(|entry| read(self, entry)).collect();
        read.into_iter().collect()
    }

    /// A list of 1 to `max` entries, each parsed, and none there twice.
    pub(super) fn distinct<T>(&mut self, field: &Field<'_>, max: usize) -> Option<BTreeSet<T>>
    where
        T: Ord + std::str::FromStr<Err: std::fmt::Display>,
    {
        let mut distinct = BTreeSet::new();
        self.each(field, max, |reader, field| match distinct.insert(reader.parsed(field)?) {
            true => Some(()),
            false => reader.wrong(field, "is listed twice; remove one of the two"),
        })?;
        Some(distinct)
    }

    /// A mapping from text to text that is not empty.
    pub(super) fn texts(&mut self, field: &Field<'_>) -> Option<BTreeMap<String, String>> {
        let mut texts = BTreeMap::new();
        let mut sound = true;
        for (key, node) in self.map(field)? {
            let Some(name) = self.key(&field.path, key) else {
                sound = false;
                continue;
            };
            let entry = Field::new(format!("{}[{:?}]", field.path, shorten(name)), node);
            let text = match &node.value {
                // Unlike elsewhere, no text at all is a value that can be asked for.
                Value::Text(text) if text.is_empty() => Some(""),
                _ => self.text(&entry),
            };
            if texts.contains_key(name) {
                self.note::<()>(key.at, &entry.path, "is there twice; remove one of the two");
                sound = false;
            }
            match text {
                Some(text) => drop(texts.insert(name.to_owned(), text.to_owned())),
                None => sound = false,
            }
        }
        sound.then_some(texts)
    }
}
