//! What the strings of CRI denote: an image's name, or its ID.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::image::{Digest, ImageRef, ReferenceError};

/// The runtime's ID of an image: the digest of its configuration, and so of the layers' contents
/// (image-spec, "ImageID").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(Digest);

impl ImageId {
    /// The ID of the image with this configuration.
    pub fn of_config(config: Digest) -> Self {
        Self(config)
    }

    /// The digest of the configuration.
    pub fn config(self) -> Digest {
        self.0
    }
}

impl FromStr for ImageId {
    type Err = ReferenceError;

    /// Reads a whole ID: `sha256:` and 64 lower-case hexadecimal characters.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ImageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// An image as a CRI client names it in `ImageSpec.image`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By the whole ID.
    Id(ImageId),
    /// By what can only be the beginning of an ID: `sha256:` and fewer characters, which the
    /// grammar of references would take for a repository with that name.
    Short(String),
    /// By what the grammar takes for a name. `deadbeef` is one, too: only the runtime can tell
    /// whether it is the beginning of an ID.
    Reference(ImageRef),
}

impl FromStr for Named {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Ok(id) = text.parse() {
            return Ok(Named::Id(id));
        }
        let hex = |text: &str| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|c| c.is_ascii_hexdigit())
        };
        match text.strip_prefix("sha256:") {
            Some(short) if hex(short) => Ok(Named::Short(text.to_owned())),
            // The grammar forbids it as a name, and the runtime looks for an ID.
            None if text.len() == 64 && hex(text) => match format!("sha256:{text}").parse() {
                Ok(id) => Ok(Named::Id(id)),
                Err(error) => Err(error),
            },
            _ => text.parse().map(Named::Reference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

    #[test]
    fn an_id_is_never_taken_for_a_name() {
        let id: ImageId = format!("sha256:{HEX}").parse().unwrap();
        for text in [format!("sha256:{HEX}"), HEX.to_owned()] {
            assert_eq!(text.parse(), Ok(Named::Id(id)), "{text}");
        }
        for text in ["sha256:e7d38b35", "sha256:a", &format!("sha256:{}", HEX.to_uppercase())] {
            assert_eq!(text.parse(), Ok(Named::Short(text.into())), "{text}");
        }
        for text in ["nginx", "e7d38b35", "sha256", "sha256/x:e7d38b35", "sha256:latest"] {
            assert_eq!(text.parse(), Ok(Named::Reference(text.parse().unwrap())), "{text}");
        }
        for text in ["", "/var/lib/checkpoint.tar", "./x", HEX.to_uppercase().as_str()] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
    }
}
