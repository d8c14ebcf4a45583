//! YAML as a tree that knows where each node stands.
//!
//! The tree is read without a schema, so that one reading can report everything that is wrong
//! with a file. What YAML 1.1 and 1.2 understand differently, or what hides from the reader what
//! is written where (anchors, aliases, merge keys, tags of its own), is refused.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DefaultMessageFormatter, DuplicateKeyPolicy, Error, MergeKeyPolicy, MessageFormatter, Spanned,
    budget::BudgetBreach,
};

use crate::problem::Position;

/// Deepest nesting; a policy needs eight.
const MAX_DEPTH: usize = 32;
/// Most documents in one file.
const MAX_DOCUMENTS: usize = 10_000;
/// Most nodes in one file: more than fit into its 1 MiB in any useful way.
const MAX_NODES: usize = 100_000;

const NO_ANCHORS: &str =
    "anchors, aliases and merge keys are not supported; write the value where it is needed";

/// A value and the place where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub at: Position,
    pub value: Value,
}

/// What YAML takes a text for, unless it is quoted.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool,
    /// A number; the value only of those that can count something.
    Number(Option<u64>),
    Text(String),
    List(Vec<Node>),
    /// In the file's order, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// The documents of a file; empty ones are left out. The error is a place and a sentence that can
/// quote the file at any length.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, (Option<Position>, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: MAX_DEPTH,
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
        },
        // Reported by the reader, with the field's path.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let message = match &error {
            Error::Budget { breach, .. } => over_budget(breach),
            Error::UnknownAnchor { .. } | Error::MergeKeyNotAllowed { .. } => NO_ANCHORS.into(),
            error => DefaultMessageFormatter.format_message(error).into_owned(),
        };
        (error.location().and_then(position), message)
    })
}

fn over_budget(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => NO_ANCHORS.into(),
        BudgetBreach::Depth { .. } => format!("is nested deeper than {MAX_DEPTH} levels"),
        _ => "is larger than a policy file can be; split it".into(),
    }
}

fn position(location: serde_saphyr::Location) -> Option<Position> {
    let (line, column) = (location.line() as usize, location.column() as usize);
    (line > 0).then_some(Position { line, column })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        let at = position(referenced).unwrap_or(Position { line: 1, column: 1 });
        Ok(Self { at, value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(Some(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.try_into().ok()))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Value, E> {
        Ok(Value::Number(None))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Value, E> {
        Ok(Value::Number(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Number(None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("binary values are not supported"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_where_it_stands() {
        let nodes = parse("# é\na:\n  b: [1, x]\n---\n---\n\"é\": {c: no}\n").unwrap();
        let Value::Map(first) = &nodes[0].value else { panic!("{nodes:?}") };
        let place = |node: &Node| (node.at.line, node.at.column);
        assert_eq!(place(&nodes[0]), (2, 1));
        assert_eq!(place(&first[0].0), (2, 1));
        let Value::Map(inner) = &first[0].1.value else { panic!("{nodes:?}") };
        assert_eq!((place(&first[0].1), place(&inner[0].0)), ((3, 3), (3, 3)));
        let Value::List(list) = &inner[0].1.value else { panic!("{nodes:?}") };
        assert_eq!(list.iter().map(place).collect::<Vec<_>>(), [(3, 7), (3, 10)]);
        let Value::Map(second) = &nodes[1].value else { panic!("{nodes:?}") };
        assert_eq!((nodes.len(), place(&second[0].1)), (2, (6, 6)));
    }

    #[test]
    fn values_are_what_yaml_takes_them_for() {
        let nodes =
            parse("[a, 1, -1, 1.5, yes, ~, '1', 99999999999999999999, 2026-01-01]").unwrap();
        let Value::List(list) = &nodes[0].value else { panic!("{nodes:?}") };
        let kinds: Vec<_> = list.iter().map(|node| node.value.kind()).collect();
        assert_eq!(
            kinds,
            [
                "text",
                "a number",
                "a number",
                "a number",
                "a boolean",
                "nothing",
                "text",
                "a number",
                "text"
            ]
        );
    }

    #[test]
    fn what_hides_from_the_reader_is_refused() {
        let nested = format!("{}{}", "[".repeat(40), "]".repeat(40));
        for (text, place, message) in [
            ("a: &x 1\nb: *x\n", (1, 7), NO_ANCHORS),
            ("a: *x\n", (1, 4), NO_ANCHORS),
            ("<<: {a: 1}\n", (1, 1), NO_ANCHORS),
            ("a: !mine x\n", (1, 10), "unsupported tag `!mine`"),
            ("a: [1\nb: 2\n", (2, 2), "illegal placement of ':' indicator"),
            ("a: \"x\n", (2, 1), "invalid indentation in multiline quoted scalar"),
            ("a: .nan\n", (1, 4), "non-finite float `.nan` rejected by the configured policy"),
            ("a\tb: 1\n  c: 2\n", (2, 4), "mapping values are not allowed in this context"),
            (&nested, (1, 33), "is nested deeper than 32 levels"),
        ] {
            let (at, found) = parse(text).unwrap_err();
            assert_eq!((at.map(|at| (at.line, at.column)), &*found), (Some(place), message));
        }
    }

    #[test]
    fn a_file_of_nothing_but_nodes_is_refused() {
        let (_, message) = parse(&"- a\n".repeat(MAX_NODES)).unwrap_err();
        assert_eq!(message, "is larger than a policy file can be; split it");
    }
}
