//! What a bundle says: the texts of a set, its revision, and until when it holds.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    image::shorten,
    json::{self, JsonError},
    policy::{
        Text, Texts,
        file::moment::read_moment,
        texts::{MAX_POLICIES, MAX_SET},
    },
};

/// Most bytes of a payload: the largest set, with what JSON adds to it.
const MAX_PAYLOAD: usize = 18 << 20;
/// Largest revision: the largest integer that every reader of JSON reads exactly (RFC 8259, 6).
pub const MAX_REVISION: u64 = (1 << 53) - 1;
/// Most files and most keys of a bundle, each.
const MAX_FILES: usize = MAX_POLICIES;
/// Longest name of a file or a key, in bytes.
const MAX_NAME: usize = 4095;

const API_VERSION: &str = "portcullis.dev/v1alpha1";
const KIND: &str = "PolicyBundle";

/// What a bundle says. Whether anybody vouches for it is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Counts the changes of the set; a node never goes back to a lower one. At least 1 and at
    /// most 2^53 - 1.
    pub revision: u64,
    /// From this moment on the set is in force no more. None: no such moment.
    pub expires_at: Option<Timestamp>,
    /// Policies, revocations and the keys that they name.
    pub texts: Texts,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wire {
    api_version: String,
    kind: String,
    revision: u64,
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(deserialize_with = "json::at_most::<MAX_FILES, _, _>")]
    files: Vec<Text>,
    #[serde(
        default,
        deserialize_with = "json::at_most::<MAX_FILES, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    keys: Vec<Text>,
}

impl Payload {
    /// Reads a payload: one JSON object without unknown or equal keys.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong. Whether the texts are a policy set is another question.
    pub fn read(bytes: &[u8]) -> Result<Self, PayloadError> {
        if bytes.len() > MAX_PAYLOAD {
            return Err(PayloadError::Long(bytes.len()));
        }
        let wire: Wire = json::read(bytes)?;
        if wire.api_version != API_VERSION {
            return Err(PayloadError::ApiVersion(shorten(&wire.api_version)));
        }
        if wire.kind != KIND {
            return Err(PayloadError::Kind(shorten(&wire.kind)));
        }
        let expires_at = wire.expires_at.as_deref().map(read_moment).transpose();
        let payload = Self {
            revision: wire.revision,
            expires_at: expires_at.map_err(PayloadError::ExpiresAt)?,
            texts: Texts { files: wire.files, keys: wire.keys },
        };
        payload.check()?;
        Ok(payload)
    }

    /// Writes it: the same bytes for the same payload.
    ///
    /// # Errors
    ///
    /// It is one that [`Payload::read`] would not read.
    pub fn write(&self) -> Result<Vec<u8>, PayloadError> {
        self.check()?;
        let wire = Wire {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            revision: self.revision,
            expires_at: self.expires_at.map(|moment| moment.to_string()),
            files: self.texts.files.clone(),
            keys: self.texts.keys.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&wire).map_err(JsonError::from)?;
        bytes.push(b'\n');
        match bytes.len() {
            long if long > MAX_PAYLOAD => Err(PayloadError::Long(long)),
            _ => Ok(bytes),
        }
    }

    fn check(&self) -> Result<(), PayloadError> {
        if !(1..=MAX_REVISION).contains(&self.revision) {
            return Err(PayloadError::Revision(self.revision));
        }
        if let Some(moment) = self.expires_at {
            read_moment(&moment.to_string()).map_err(PayloadError::ExpiresAt)?;
        }
        let Texts { files, keys } = &self.texts;
        if files.is_empty() {
            return Err(PayloadError::Empty);
        }
        for (what, list) in [("files", files), ("keys", keys)] {
            if list.len() > MAX_FILES {
                return Err(PayloadError::Many { what, count: list.len() });
            }
            let mut names = BTreeSet::new();
            for Text { name, .. } in list {
                let shown = || shorten(name);
                if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                    return Err(PayloadError::Name { what, name: shown() });
                }
                if !names.insert(name) {
                    return Err(PayloadError::Twice { what, name: shown() });
                }
            }
        }
        let size: usize = files.iter().map(|file| file.text.len()).sum();
        if size > MAX_SET { Err(PayloadError::Texts(size)) } else { Ok(()) }
    }
}

/// Why bytes are no payload: to be read behind the name of what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// More bytes than any payload has.
    #[error("has a payload of {0} bytes, {MAX_PAYLOAD} are allowed")]
    Long(usize),
    /// Not the JSON that is expected.
    #[error("has a payload that is no {KIND}: {0}")]
    Json(String),
    /// Of another version, or of nobody's.
    #[error("has a payload of apiVersion \"{0}\", and this program reads {API_VERSION:?}")]
    ApiVersion(String),
    /// Another object.
    #[error("has a payload of kind \"{0}\" instead of {KIND:?}")]
    Kind(String),
    /// A count that cannot be one.
    #[error("has revision {0}; whole numbers from 1 to {MAX_REVISION} are expected")]
    Revision(u64),
    /// A moment that is none.
    #[error("has an expiresAt that cannot be read: {0}")]
    ExpiresAt(String),
    /// No files.
    #[error("has no files, and so no policy")]
    Empty,
    /// More files or keys than are allowed.
    #[error("has {count} {what}, {MAX_FILES} are allowed")]
    Many {
        /// `files` or `keys`.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A name that is none.
    #[error(
        "has a name in its {what} that is empty, longer than {MAX_NAME} bytes or has control \
         characters: \"{name}\""
    )]
    Name {
        /// `files` or `keys`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that two texts have.
    #[error("has the name \"{name}\" twice in its {what}")]
    Twice {
        /// `files` or `keys`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// More policies than any set has.
    #[error("has {0} bytes of policies, {MAX_SET} are allowed")]
    Texts(usize),
}

impl From<JsonError> for PayloadError {
    fn from(error: JsonError) -> Self {
        Self::Json(error.to_string())
    }
}
