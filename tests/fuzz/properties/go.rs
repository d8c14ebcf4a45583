//! JSON as another reader may read it: with every key that is there, and the fields that Go's
//! `encoding/json` would fill from them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// A value with nothing left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).expect("what was accepted is JSON")
    }

    /// A field as Go fills it: from a key in any case, and from the last one.
    ///
    /// # Panics
    ///
    /// A reader that takes keys as they are, or the first of them, sees another value.
    pub(crate) fn get(&self, field: &str) -> Option<&Json> {
        let Json::Object(entries) = self else { return None };
        let folded = |(key, _): &&(String, Json)| key.chars().map(fold).eq(field.chars().map(fold));
        let last = entries.iter().rfind(folded).map(|(_, value)| value);
        let exact = entries.iter().find(|(key, _)| key == field).map(|(_, value)| value);
        assert_eq!(last, exact, "{field} means different things to different readers");
        last.filter(|value| **value != Json::Null)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements; of `null` and of no list, none.
    pub(crate) fn list(&self) -> &[Json] {
        match self {
            Json::List(list) => list,
            _ => &[],
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let entries = match self {
            Json::Object(entries) => &entries[..],
            _ => &[],
        };
        entries.iter().map(|(key, _)| &**key)
    }
}

/// Unicode's simple folding, as far as it ends in ASCII.
fn fold(character: char) -> char {
    match character {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element()? {
            list.push(element);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}
