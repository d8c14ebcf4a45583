//! JSON from outside, read so that no other reader can see something else in it.
//!
//! JSON leaves open what two equal keys mean, and readers differ: some take the first, some the
//! last, Go's merges the two, and Go's also takes `Manifests` for `manifests`. A text that one
//! program judges and another acts on must mean the same to both, so anything of the kind is
//! refused here (CVE-2021-41190 is one instance).

use std::{borrow::Cow, collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

/// Most characters of a parser's complaint that are repeated: it quotes the hostile text.
const MAX_COMPLAINT: usize = 200;

/// Why a text is not the JSON that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct JsonError(String);

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        let mut complaint = String::new();
        for character in error.to_string().chars().take(MAX_COMPLAINT) {
            match character {
                ' '..='~' => complaint.push(character),
                hostile => complaint.extend(hostile.escape_default()),
            }
        }
        Self(complaint)
    }
}

/// Reads exactly one JSON value. Refuses bytes behind it, two equal keys in any object, and more
/// than 128 levels (serde_json's own bound). The caller bounds the length.
pub(crate) fn read<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, JsonError> {
    read_for_go(json, &[])
}

/// As [`read`]; also refuses keys that Go's `encoding/json` would take for one of `fields`
/// although they are written otherwise. The values of `annotations` are not looked at: Go reads
/// maps as they are.
pub(crate) fn read_for_go<'de, T: Deserialize<'de>>(
    json: &'de [u8],
    fields: &[&str],
) -> Result<T, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    Unambiguous { fields }.deserialize(&mut reader)?;
    // This refuses what stands behind the value, too.
    parse(json)
}

/// Reads a text that [`read`] or [`read_for_go`] has found unambiguous before, or into a type that
/// refuses unknown and equal keys by itself, on every level.
pub(crate) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, JsonError> {
    Ok(serde_json::from_slice(json)?)
}

/// A key, without a copy where the text has no escapes.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Keys of an object so far. Nearly all objects have a few, and hostile ones a million.
#[derive(Default)]
struct Keys<'a> {
    few: Vec<Key<'a>>,
    many: HashSet<Key<'a>>,
}

impl<'a> Keys<'a> {
    const FEW: usize = 8;

    /// Adds a key, or gives it back where it was there before.
    fn insert(&mut self, key: Key<'a>) -> Result<(), Key<'a>> {
        if self.few.contains(&key) || self.many.contains(&key) {
            return Err(key);
        }
        match self.few.len() < Self::FEW {
            true => self.few.push(key),
            false => drop(self.many.insert(key)),
        }
        Ok(())
    }
}

/// Walks over a value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Unambiguous<'a> {
    fields: &'a [&'a str],
}

impl Unambiguous<'_> {
    /// The field that Go would fill from this key, if that is another than the key says.
    fn mistaken(&self, key: &str) -> Option<&str> {
        self.fields
            .iter()
            .copied()
            .find(|field| *field != key && field.chars().map(fold).eq(key.chars().map(fold)))
    }
}

/// Go folds keys by Unicode's simple folding, under which two more characters become ASCII.
fn fold(character: char) -> char {
    match character {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    }
}

impl<'de> DeserializeSeed<'de> for Unambiguous<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = Keys::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let text = &*key.0;
            if let Some(field) = self.mistaken(text) {
                return Err(A::Error::custom(format_args!("key {text:?} instead of {field:?}")));
            }
            let below = if text == "annotations" { Unambiguous { fields: &[] } } else { self };
            if let Err(key) = keys.insert(key) {
                return Err(A::Error::custom(format_args!("duplicate key {:?}", key.0)));
            }
            map.next_value_seed(below)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// For `deserialize_with`: `null` is the empty value, as it is for Go.
pub(crate) fn null_is_empty<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// For `deserialize_with`: a field that is there has a value, and `null` is none.
pub(crate) fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// For `deserialize_with`: a list that ends at the first item too many, instead of reading a million
/// of them first.
pub(crate) fn at_most<'de, const MOST: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    struct Few<const MOST: usize, T>(PhantomData<T>);

    impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for Few<MOST, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element()? {
                if all.len() == MOST {
                    return Err(A::Error::invalid_length(all.len() + 1, &self));
                }
                all.push(one);
            }
            Ok(all)
        }
    }

    d.deserialize_seq(Few::<MOST, T>(PhantomData))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[track_caller]
    fn refuses(json: &str, why: &str) {
        let error = read_for_go::<Value>(json.as_bytes(), &["manifests", "kiss"]).unwrap_err();
        let error = error.to_string();
        assert_eq!(error.split(" at line 1 column ").next(), Some(why));
    }

    #[test]
    fn one_value_is_read() {
        let json = br#"{"a":[1,-1,1.5,"x",true,null,{"a":{}}],"annotations":{"Manifests":"x"}}"#;
        assert!(read_for_go::<Value>(json, &["manifests"]).is_ok());
    }

    #[test]
    fn what_another_reader_may_read_otherwise_is_refused() {
        refuses(r#"{"a":1,"a":1}"#, r#"duplicate key "a""#);
        refuses(r#"{"a":1,"\u0061":1}"#, r#"duplicate key "a""#);
        refuses(r#"[{"x":{"b":1,"c":2,"b":3}}]"#, r#"duplicate key "b""#);
        refuses(r#"{"annotations":{"b":"1","b":"1"}}"#, "duplicate key \"b\"");
        refuses(r#"{"Manifests":[]}"#, r#"key "Manifests" instead of "manifests""#);
        refuses("{\"manife\u{17f}ts\":[]}", r#"key "manife\u{17f}ts" instead of "manifests""#);
        assert!(read_for_go::<Value>("{\"\u{212a}i\u{17f}s\":1}".as_bytes(), &["kiss"]).is_err());
    }

    #[test]
    fn what_is_no_json_value_is_refused() {
        refuses("{} {}", "trailing characters");
        refuses("{}\0", "trailing characters");
        refuses("", "EOF while parsing a value");
        refuses(&"[".repeat(1_000_000), "recursion limit exceeded");
        assert!(read::<Value>(b"\"\xff\"").is_err());
        assert!(read::<Value>(br#""\ud800""#).is_err());
        for json in ["\u{feff}{}", "NaN", "Infinity", "1e999", "01", "{\"a\":1,}", "{}//", "'a'"] {
            assert!(read::<Value>(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn complaints_are_short_and_printable() {
        let hostile = format!("{{\"{0}\":1,\"{0}\":1}}", "\u{202e}".repeat(10_000));
        let complaint = read::<Value>(hostile.as_bytes()).unwrap_err().to_string();
        assert!(complaint.len() < 10 * MAX_COMPLAINT);
        assert!(complaint.is_ascii());
    }
}
