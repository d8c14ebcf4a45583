//! What one claim says to one key.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{image::shorten, refusal::Code};

/// What one claim says to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The claim cannot be read as a signature.
    Unreadable(String),
    /// Somebody else's signature, or a broken one: nobody can tell these apart.
    NotByKey,
    /// Signed with a certificate, where a key is asked for.
    ByCertificate,
    /// Signed by the key, but what is signed is not what is asked for.
    Short(Shortfall),
    /// The key vouches for the digest.
    Holds,
}

/// What is wrong with something that the key did sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// It cannot be read.
    Malformed(String),
    /// It names other bytes.
    Digest(String),
    /// It is a statement of another kind.
    PredicateType(String),
    /// An annotation is missing or has another value.
    Annotation(String),
}

impl Shortfall {
    /// How near it comes to what is wanted.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Shortfall::Malformed(_) => 0,
            Shortfall::Digest(_) => 1,
            Shortfall::PredicateType(_) => 2,
            Shortfall::Annotation(_) => 3,
        }
    }

    /// The code that this has alone.
    pub(super) fn code(&self) -> Code {
        match self {
            Shortfall::Annotation(_) => Code::AuthorityNotSatisfied,
            _ => Code::SignatureInvalid,
        }
    }

    /// What is wrong, to be read behind "signed by this key, but ".
    pub(super) fn why(&self) -> &str {
        match self {
            Shortfall::Malformed(why)
            | Shortfall::Digest(why)
            | Shortfall::PredicateType(why)
            | Shortfall::Annotation(why) => why,
        }
    }

    /// A payload that cannot be read.
    pub(super) fn malformed(why: impl std::fmt::Display) -> Self {
        Self::Malformed(format!("the signed payload is malformed: {why}"))
    }

    /// A payload about another digest.
    pub(super) fn other_digest(found: &str) -> Self {
        Self::Digest(format!("for another digest {}", shorten(found)))
    }
}

/// Whether the signed annotations contain each wanted one, as an equal string.
pub(super) fn annotations(
    signed: &Map<String, Value>,
    wanted: &BTreeMap<String, String>,
) -> Result<(), Shortfall> {
    for (key, value) in wanted {
        let found = match signed.get(key) {
            Some(Value::String(found)) if found == value => continue,
            Some(Value::String(found)) => format!("is \"{}\"", shorten(found)),
            Some(_) => "is no string".to_owned(),
            None => "is missing".to_owned(),
        };
        let why = format!("annotation {key:?} {found}, not {value:?}");
        return Err(Shortfall::Annotation(why));
    }
    Ok(())
}
