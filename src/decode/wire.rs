//! The fields that are changed: images by their names, in the wire bytes.
//!
//! A message that is decoded and encoded again loses every field that the decoder does not know.
//! So the bytes stay as they came, and only these strings and the lengths around them change
//! (Protocol Buffers encoding, "Message Structure").

use std::{fmt, ops::Range};

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// `PullImageRequest.image` and `.sandbox_config`.
const PULL: (u64, u64) = (1, 3);
/// `CreateContainerRequest.config` and `.sandbox_config`.
const CREATE: (u64, u64) = (2, 3);
/// `ContainerConfig.image` and `.mounts`.
const CONFIG: (u64, u64) = (2, 7);
/// `Mount.image`.
const MOUNT_IMAGE: u64 = 9;
/// `ImageSpec.image`.
const NAME: u64 = 1;

/// Most mounts of a container; Kubernetes allows far less, and each is decoded.
pub(super) const MAX_MOUNTS: usize = 4096;
/// Most bytes of a `PodSandboxConfig`; the API server allows 256 KiB of annotations.
pub(super) const MAX_POD: usize = 1 << 20;

/// A request whose images can be replaced.
///
/// Protocol Buffers merge a field that occurs twice, and decoders differ in the corners of that.
/// So a request that holds an image twice does not become one of these: what is judged must be
/// what the runtime reads.
#[derive(Clone)]
pub struct Patchable {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// A field on the way to an image's name, or the name.
#[derive(Clone)]
struct Place {
    number: u64,
    /// Tag, length and value.
    whole: Range<usize>,
    value: Range<usize>,
    /// The places within, in their order. None: this is the name.
    within: Vec<Place>,
}

impl Patchable {
    /// Finds the image of a `PullImageRequest`.
    pub(super) fn pull(bytes: &[u8]) -> Result<Self, WireError> {
        let top = fields(bytes, 0..bytes.len(), &[PULL.0, PULL.1])?;
        pod(&top, PULL.1)?;
        let image = one(top, PULL.0, "image")?.ok_or(WireError::Missing("image"))?;
        let places = vec![spec(bytes, image, "image.image")?];
        Ok(Self { bytes: bytes.to_vec(), places })
    }

    /// Finds the image of a `CreateContainerRequest`, and behind it those of its image volumes.
    pub(super) fn create(bytes: &[u8]) -> Result<Self, WireError> {
        let top = fields(bytes, 0..bytes.len(), &[CREATE.0, CREATE.1])?;
        pod(&top, CREATE.1)?;
        let mut config = one(top, CREATE.0, "config")?.ok_or(WireError::Missing("config"))?;
        let (mounts, images) = fields(bytes, config.value.clone(), &[CONFIG.0, CONFIG.1])?
            .into_iter()
            .partition::<Vec<_>, _>(|field| field.number == CONFIG.1);
        let image = one(images, CONFIG.0, "config.image")?;
        let image = image.ok_or(WireError::Missing("config.image"))?;
        config.within.push(spec(bytes, image, "config.image.image")?);
        for mut mount in mounts {
            let inner = fields(bytes, mount.value.clone(), &[MOUNT_IMAGE])?;
            if let Some(image) = one(inner, MOUNT_IMAGE, "config.mounts.image")? {
                mount.within.push(spec(bytes, image, "config.mounts.image.image")?);
                config.within.push(mount);
            }
        }
        // On the wire, mounts may stand before the image.
        config.within.sort_by_key(|place| place.whole.start);
        Ok(Self { bytes: bytes.to_vec(), places: vec![config] })
    }

    /// The message with other names and everything else as it was. `name` is given the name that
    /// stands there, and whether it is that of a mount.
    pub fn with_names(&self, mut name: impl FnMut(&[u8], bool) -> String) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.bytes.len() + 128);
        self.rebuild(0..self.bytes.len(), &self.places, false, &mut name, &mut message);
        message
    }

    fn rebuild(
        &self,
        range: Range<usize>,
        places: &[Place],
        in_mount: bool,
        name: &mut impl FnMut(&[u8], bool) -> String,
        into: &mut Vec<u8>,
    ) {
        let mut at = range.start;
        for place in places {
            into.extend_from_slice(&self.bytes[at..place.whole.start]);
            if place.within.is_empty() {
                let new = name(&self.bytes[place.value.clone()], in_mount);
                put_field(into, place.number, new.as_bytes());
            } else {
                let in_mount = in_mount || place.number == MOUNT_IMAGE;
                let mut inner = Vec::with_capacity(place.value.len() + 128);
                self.rebuild(place.value.clone(), &place.within, in_mount, name, &mut inner);
                put_field(into, place.number, &inner);
            }
            at = place.whole.end;
        }
        into.extend_from_slice(&self.bytes[at..range.end]);
    }
}

/// The bytes hold passwords.
impl fmt::Debug for Patchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patchable({} bytes)", self.bytes.len())
    }
}

fn put_field(into: &mut Vec<u8>, number: u64, value: &[u8]) {
    put_varint(into, number << 3 | u64::from(LENGTH_DELIMITED));
    put_varint(into, value.len() as u64);
    into.extend_from_slice(value);
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// An `ImageSpec`, with the one place of its name.
fn spec(bytes: &[u8], mut image: Place, name: &'static str) -> Result<Place, WireError> {
    let found = one(fields(bytes, image.value.clone(), &[NAME])?, NAME, name)?;
    image.within.push(found.ok_or(WireError::Missing(name))?);
    Ok(image)
}

/// The field with this number, which must not occur twice.
fn one(fields: Vec<Place>, number: u64, name: &'static str) -> Result<Option<Place>, WireError> {
    let mut found = fields.into_iter().filter(|field| field.number == number);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(WireError::Twice(name)),
        (field, None) => Ok(field),
    }
}

/// Who asks is judged as well.
fn pod(fields: &[Place], number: u64) -> Result<(), WireError> {
    let mut found = fields.iter().filter(|field| field.number == number);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(WireError::Twice("sandbox_config")),
        (Some(pod), None) if pod.value.len() > MAX_POD => Err(WireError::Pod(pod.value.len())),
        (_, None) => Ok(()),
    }
}

/// The fields within a range that have one of these numbers, all of which are length-delimited.
fn fields(bytes: &[u8], range: Range<usize>, wanted: &[u64]) -> Result<Vec<Place>, WireError> {
    let mut found = Vec::new();
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
        if wanted.contains(&number) {
            if wire_type != LENGTH_DELIMITED {
                return Err(WireError::WireType(wire_type));
            }
            if found.len() > MAX_MOUNTS {
                return Err(WireError::Many);
            }
            found.push(Place { number, whole: start..end, value: at..end, within: Vec::new() });
        }
        at = end;
    }
    Ok(found)
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

/// Why bytes are not a request that can be judged.
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
    #[error("it has more than {MAX_MOUNTS} mounts")]
    Many,
    #[error("its sandbox_config has {0} bytes, {MAX_POD} are allowed")]
    Pod(usize),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// image { image: "app:v1", user_specified_image (18): "x" }, auth (2) {…}, 77: varint 5.
    const REQUEST: &[u8] = b"\x12\x03\x0a\x01u\x0a\x0c\x0a\x06app:v1\x92\x01\x01x\xe8\x04\x05";

    fn with_image(message: &Patchable, image: &str) -> Vec<u8> {
        message.with_names(|_, _| image.to_owned())
    }

    #[test]
    fn only_the_image_and_its_lengths_change() {
        let message = Patchable::pull(REQUEST).unwrap();
        assert_eq!(with_image(&message, "app:v1"), REQUEST);
        assert_eq!(
            with_image(&message, "a@b"),
            b"\x12\x03\x0a\x01u\x0a\x09\x0a\x03a@b\x92\x01\x01x\xe8\x04\x05"
        );
        let long = "x".repeat(200);
        let patched = with_image(&message, &long);
        assert_eq!(&patched[..11], b"\x12\x03\x0a\x01u\x0a\xcf\x01\x0a\xc8\x01");
        assert!(patched.ends_with(b"x\x92\x01\x01x\xe8\x04\x05"));
    }

    /// config (2) { mounts (7) { 1: "/v", image (9) { "vol", 18: "y" } }, image (2) { "img" },
    /// mounts { 1: "/w" }, 30: varint }, pod_sandbox_id (1), 77: varint.
    const CREATION: &[u8] =
        b"\x12\x20\x3a\x0e\x0a\x02/v\x4a\x08\x0a\x03vol\x92\x01\x00\x12\x05\x0a\x03img\
        \x3a\x04\x0a\x02/w\xf0\x01\x05\x0a\x01s\xe8\x04\x05";

    #[test]
    fn a_container_and_its_volumes_change_each_to_its_own() {
        let message = Patchable::create(CREATION).unwrap();
        let same = |name: &[u8], _| String::from_utf8(name.to_vec()).unwrap();
        assert_eq!(message.with_names(same), CREATION);
        let marked = |name: &[u8], in_mount| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            if in_mount { format!("{name}!") } else { format!("{name}??") }
        };
        assert_eq!(
            message.with_names(marked),
            b"\x12\x23\x3a\x0f\x0a\x02/v\x4a\x09\x0a\x04vol!\x92\x01\x00\x12\x07\x0a\x05img??\
              \x3a\x04\x0a\x02/w\xf0\x01\x05\x0a\x01s\xe8\x04\x05"
        );
    }

    #[test]
    fn ambiguous_or_broken_messages_are_refused() {
        let cases: [(&[u8], WireError); 12] = [
            (b"", WireError::Missing("image")),
            (b"\x0a\x00", WireError::Missing("image.image")),
            (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01b", WireError::Twice("image")),
            (b"\x0a\x06\x0a\x01a\x0a\x01b", WireError::Twice("image.image")),
            (b"\x0a\x03\x0a\x01a\x1a\x00\x1a\x00", WireError::Twice("sandbox_config")),
            (b"\x0a\x05\x0a\x01a", WireError::Truncated),
            (b"\x0a\x03\x0a\x09a", WireError::Truncated),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", WireError::Truncated),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", WireError::Varint),
            (b"\x08\x01", WireError::WireType(0)),
            (b"\x13\x14", WireError::WireType(3)),
            (b"\x02\x00", WireError::Field(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Patchable::pull(bytes).unwrap_err(), error, "{bytes:x?}");
        }
        let twice = [b"\x0a\x03\x0a\x01a\x1a".as_slice(), &[0x81, 0x80, 0x40], &[0; MAX_POD + 1]];
        assert_eq!(Patchable::pull(&twice.concat()).unwrap_err(), WireError::Pod(MAX_POD + 1));
    }

    #[test]
    fn a_creation_names_each_image_once() {
        let cases: [(&[u8], WireError); 9] = [
            (b"", WireError::Missing("config")),
            (b"\x12\x00", WireError::Missing("config.image")),
            (b"\x12\x02\x12\x00", WireError::Missing("config.image.image")),
            (b"\x12\x00\x12\x00", WireError::Twice("config")),
            (b"\x12\x04\x12\x00\x12\x00", WireError::Twice("config.image")),
            (b"\x1a\x00\x1a\x00", WireError::Twice("sandbox_config")),
            (
                b"\x12\x09\x12\x03\x0a\x01a\x3a\x02\x4a\x00",
                WireError::Missing("config.mounts.image.image"),
            ),
            (
                b"\x12\x0b\x12\x03\x0a\x01a\x3a\x04\x4a\x00\x4a\x00",
                WireError::Twice("config.mounts.image"),
            ),
            (b"\x12\x07\x12\x03\x0a\x01a\x38\x01", WireError::WireType(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Patchable::create(bytes).unwrap_err(), error, "{bytes:x?}");
        }
        let many = [b"\x12\x87\x40\x12\x03\x0a\x01a".as_slice(), &b"\x3a\x00".repeat(4097)];
        let length = many[1].len() + 5;
        let mut bytes = vec![0x12, length as u8 & 0x7f | 0x80, (length >> 7) as u8];
        bytes.extend_from_slice(&many[0][3..]);
        bytes.extend_from_slice(many[1]);
        assert_eq!(Patchable::create(&bytes).unwrap_err(), WireError::Many);
    }

    proptest! {
        /// Whatever is accepted decodes, after the patch, to the same message but for the image.
        #[test]
        fn a_patched_message_differs_in_the_image_alone(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            image in "[a-z/@:]{0,300}",
        ) {
            let pull = [b"\x0a\x08\x0a\x01a\x92\x01\x02hi".as_slice(), &bytes].concat();
            let create = [b"\x12\x03\x12\x03\x0a\x01a".as_slice(), &bytes].concat();
            for bytes in [&bytes, &pull, &create, &CREATION.to_vec()] {
                for parse in [Patchable::pull, Patchable::create] {
                    let Ok(message) = parse(bytes) else { continue };
                    let mut names = Vec::new();
                    let patched = message.with_names(|name, _| {
                        names.push(String::from_utf8_lossy(name).into_owned());
                        image.clone()
                    });
                    let again = parse(&patched).unwrap();
                    let mut seen = 0;
                    let mut restored = names.iter();
                    let back = again.with_names(|name, _| {
                        assert_eq!(name, image.as_bytes());
                        seen += 1;
                        restored.next().unwrap().clone()
                    });
                    prop_assert_eq!(seen, names.len());
                    // A tag or length can be written with more bytes than it needs.
                    if names.iter().all(|name| !name.contains('\u{fffd}')) && back.len() == bytes.len() {
                        prop_assert_eq!(&back, bytes);
                    }
                }
            }
        }
    }
}
