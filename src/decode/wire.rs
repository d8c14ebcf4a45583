//! The one field that is changed: `PullImageRequest.image.image`, in the wire bytes.
//!
//! A message that is decoded and encoded again loses every field that the decoder does not know.
//! So the bytes stay as they came, and only this string and the two lengths around it change
//! (Protocol Buffers encoding, "Message Structure").

use std::{fmt, ops::Range};

/// `PullImageRequest.image`, and `ImageSpec.image` within it: both have field number 1.
const IMAGE: u64 = 1;
/// Tag byte of field 1 with a length-delimited value.
const IMAGE_TAG: u8 = 1 << 3 | LENGTH_DELIMITED;
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// A `PullImageRequest` whose image can be replaced.
///
/// Protocol Buffers merge a field that occurs twice, and decoders differ in the corners of that.
/// So a request that holds its image twice does not become one of these: what is judged must be
/// what the runtime reads.
#[derive(Clone)]
pub struct PullMessage {
    bytes: Vec<u8>,
    /// The whole `image` field: tag, length and value.
    spec: Range<usize>,
    /// The value of the `image` field.
    spec_value: Range<usize>,
    /// The whole `image.image` field.
    name: Range<usize>,
}

impl PullMessage {
    /// Finds the image's place in the message.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let spec = only(bytes, 0..bytes.len(), "image")?;
        let name = only(bytes, spec.value.clone(), "image.image")?;
        Ok(Self {
            bytes: bytes.to_vec(),
            spec: spec.whole,
            spec_value: spec.value,
            name: name.whole,
        })
    }

    /// The message with another image and everything else as it was.
    pub fn with_image(&self, image: &str) -> Vec<u8> {
        let mut spec = Vec::with_capacity(self.spec_value.len() + image.len() + 16);
        spec.extend_from_slice(&self.bytes[self.spec_value.start..self.name.start]);
        put_field(&mut spec, image.as_bytes());
        spec.extend_from_slice(&self.bytes[self.name.end..self.spec_value.end]);

        let mut message = Vec::with_capacity(self.bytes.len() + image.len() + 16);
        message.extend_from_slice(&self.bytes[..self.spec.start]);
        put_field(&mut message, &spec);
        message.extend_from_slice(&self.bytes[self.spec.end..]);
        message
    }
}

/// The bytes hold passwords.
impl fmt::Debug for PullMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PullMessage({} bytes)", self.bytes.len())
    }
}

fn put_field(into: &mut Vec<u8>, value: &[u8]) {
    into.push(IMAGE_TAG);
    let mut length = value.len();
    while length >= 0x80 {
        into.push(length as u8 | 0x80);
        length >>= 7;
    }
    into.push(length as u8);
    into.extend_from_slice(value);
}

struct Field {
    whole: Range<usize>,
    value: Range<usize>,
}

/// The one field number 1 within `range`, which must be length-delimited.
fn only(bytes: &[u8], range: Range<usize>, name: &'static str) -> Result<Field, WireError> {
    let mut found = None;
    let mut at = range.start;
    let bytes = &bytes[..range.end];
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at)?;
        let (number, wire_type) = (tag >> 3, (tag & 7) as u8);
        if number == 0 || number > 0x1fff_ffff {
            return Err(WireError::Field(number));
        }
        let value_length = match wire_type {
            VARINT => {
                varint(bytes, &mut at)?;
                0
            }
            FIXED64 => 8,
            FIXED32 => 4,
            LENGTH_DELIMITED => varint(bytes, &mut at)?,
            other => return Err(WireError::WireType(other)),
        };
        let value_length = usize::try_from(value_length).map_err(|_| WireError::Truncated)?;
        let end = at
            .checked_add(value_length)
            .filter(|end| *end <= bytes.len())
            .ok_or(WireError::Truncated)?;
        if number == IMAGE {
            if wire_type != LENGTH_DELIMITED {
                return Err(WireError::WireType(wire_type));
            }
            if found.is_some() {
                return Err(WireError::Twice(name));
            }
            found = Some(Field { whole: start..end, value: at..end });
        }
        at = end;
    }
    found.ok_or(WireError::Missing(name))
}

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, WireError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or(WireError::Truncated)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(WireError::Varint)
}

/// Why bytes are not a `PullImageRequest` that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a field is cut short")]
    Truncated,
    #[error("a number has more than 64 bits")]
    Varint,
    #[error("field number {0} does not exist")]
    Field(u64),
    #[error("a field has wire type {0}, which CRI does not use there")]
    WireType(u8),
    #[error("the field {0:?} is missing")]
    Missing(&'static str),
    #[error("the field {0:?} occurs twice")]
    Twice(&'static str),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// image { image: "app:v1", user_specified_image (18): "x" }, auth (2) {…}, 77: varint 5.
    const REQUEST: &[u8] = b"\x12\x03\x0a\x01u\x0a\x0c\x0a\x06app:v1\x92\x01\x01x\xe8\x04\x05";

    #[test]
    fn only_the_image_and_its_lengths_change() {
        let message = PullMessage::parse(REQUEST).unwrap();
        assert_eq!(message.with_image("app:v1"), REQUEST);
        assert_eq!(
            message.with_image("a@b"),
            b"\x12\x03\x0a\x01u\x0a\x09\x0a\x03a@b\x92\x01\x01x\xe8\x04\x05"
        );
        let long = "x".repeat(200);
        let patched = message.with_image(&long);
        assert_eq!(&patched[..11], b"\x12\x03\x0a\x01u\x0a\xcf\x01\x0a\xc8\x01");
        assert!(patched.ends_with(b"x\x92\x01\x01x\xe8\x04\x05"));
    }

    #[test]
    fn ambiguous_or_broken_messages_are_refused() {
        let cases: [(&[u8], WireError); 11] = [
            (b"", WireError::Missing("image")),
            (b"\x0a\x00", WireError::Missing("image.image")),
            (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b", WireError::Twice("image")),
            (b"\x0a\x06\x0a\x01a\x0a\x01b", WireError::Twice("image.image")),
            (b"\x0a\x05\x0a\x01a", WireError::Truncated),
            (b"\x0a\x03\x0a\x09a", WireError::Truncated),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", WireError::Truncated),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", WireError::Varint),
            (b"\x08\x01", WireError::WireType(0)),
            (b"\x13\x14", WireError::WireType(3)),
            (b"\x02\x00", WireError::Field(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(PullMessage::parse(bytes).unwrap_err(), error, "{bytes:x?}");
        }
    }

    proptest! {
        /// Whatever is accepted decodes, after the patch, to the same message but for the image.
        #[test]
        fn a_patched_message_differs_in_the_image_alone(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            image in "[a-z/@:]{0,300}",
        ) {
            let request = [b"\x0a\x08\x0a\x01a\x92\x01\x02hi".as_slice(), &bytes].concat();
            for bytes in [&bytes, &request] {
                let Ok(message) = PullMessage::parse(bytes) else { continue };
                let again = PullMessage::parse(&message.with_image(&image)).unwrap();
                prop_assert_eq!(&again.bytes[again.name.clone()][..1], b"\x0a");
                prop_assert!(again.bytes[again.name.clone()].ends_with(image.as_bytes()));
                let name = std::str::from_utf8(&message.bytes[message.name.clone()]).unwrap_or("");
                let original = name.get(2..).unwrap_or("");
                if message.name.len() == original.len() + 2 && message.spec_value.len() < 0x80
                    && message.spec.len() == message.spec_value.len() + 2 {
                    prop_assert_eq!(&again.with_image(original), bytes);
                }
            }
        }
    }
}
