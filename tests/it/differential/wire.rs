//! The wire patcher beside prost: of whatever is well-formed Protocol Buffers, however strangely
//! written, we read what prost reads, and change what prost sees changed and nothing else. What
//! we refuse although prost reads it is listed in `Oddity`.

use portcullis::{decode, named::ImageId};
use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message;

use crate::support::cri::{CreateContainerRequest, PullImageRequest};

const NAMES: [&str; 4] = ["app:v1", "registry.example.com/prod/app", "docker.io/library/a:1", "a"];
const ID: &str = "sha256:e7d38b3517548a1c71e41bffe9c8ae6d6d29546ce46bf62159837aad072c90aa";

/// One field as it is written; `pad` is how many bytes longer its tag and length are than needed.
#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
    pad: (usize, usize),
}

#[derive(Clone, Debug)]
enum Value {
    Varint(u64, usize),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

fn put_varint(into: &mut Vec<u8>, mut value: u64, pad: usize) {
    let start = into.len();
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
    for _ in 0..pad.min(10 - (into.len() - start)) {
        *into.last_mut().unwrap() |= 0x80;
        into.push(0);
    }
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value, pad } in fields {
        let mut tag = |wire_type| put_varint(&mut bytes, number << 3 | wire_type, pad.0);
        match value {
            Value::Varint(value, extra) => {
                tag(0);
                put_varint(&mut bytes, *value, *extra);
            }
            Value::Fixed64(value) => {
                tag(1);
                bytes.extend(value.to_le_bytes());
            }
            Value::Fixed32(value) => {
                tag(5);
                bytes.extend(value.to_le_bytes());
            }
            Value::Bytes(_) | Value::Message(_) => {
                tag(2);
                let inner = match value {
                    Value::Message(fields) => encode(fields),
                    Value::Bytes(inner) => inner.clone(),
                    _ => unreachable!(),
                };
                put_varint(&mut bytes, inner.len() as u64, pad.1);
                bytes.extend(inner);
            }
        }
    }
    bytes
}

/// Number, all bytes, and the value of a field.
type Raw<'a> = (u64, &'a [u8], &'a [u8]);

/// The fields of a message, each with its bytes: written for this test, so as not to trust the
/// code under test. None: no message.
fn split(bytes: &[u8]) -> Option<Vec<Raw<'_>>> {
    fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
        let mut value = 0u128;
        for shift in 0..10 {
            let byte = *bytes.get(*at)?;
            *at += 1;
            value |= u128::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                return u64::try_from(value).ok();
            }
        }
        None
    }
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at)?;
        let length = match tag & 7 {
            0 => varint(bytes, &mut at).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(bytes, &mut at)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let value = bytes.get(at..at.checked_add(length)?)?;
        at += length;
        fields.push((tag >> 3, &bytes[start..at], value));
    }
    Some(fields)
}

/// Whether `is` has the very bytes of `was` in the same order, but for the fields on `path`.
fn same_but(was: &[u8], is: &[u8], path: &[&[u64]]) {
    let (was, is) = (split(was).unwrap(), split(is).unwrap());
    assert_eq!(was.len(), is.len());
    for (was, is) in was.into_iter().zip(is) {
        let below: Vec<&[u64]> = path
            .iter()
            .filter_map(|path| path.split_first())
            .filter_map(|(first, rest)| (*first == was.0).then_some(rest))
            .collect();
        assert_eq!(was.0, is.0);
        if below.is_empty() {
            assert_eq!(was.1, is.1, "field {}", was.0);
        } else if below.iter().all(|rest| !rest.is_empty()) {
            same_but(was.2, is.2, &below);
        }
    }
}

fn pad() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![3 => Just((0, 0)), 1 => (0..4usize, 0..9usize)]
}

fn field(number: u64, value: impl Strategy<Value = Value>) -> impl Strategy<Value = Field> {
    (value, pad()).prop_map(move |(value, pad)| Field { number, value, pad })
}

fn text() -> impl Strategy<Value = Value> {
    "[a-zé\u{1F980}]{0,12}".prop_map(|text| Value::Bytes(text.into_bytes()))
}

/// A field that no CRI has, of any wire type.
fn unknown() -> impl Strategy<Value = Field> {
    let number = prop_oneof![30u64..2000, Just((1 << 29) - 1)];
    let value = prop_oneof![
        (any::<u64>(), 0..10usize).prop_map(|(value, pad)| Value::Varint(value, pad)),
        any::<u64>().prop_map(Value::Fixed64),
        any::<u32>().prop_map(Value::Fixed32),
        vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
    ];
    (number, value, pad()).prop_map(|(number, value, pad)| Field { number, value, pad })
}

/// These fields among unknown ones, in any order.
fn message(fields: Vec<BoxedStrategy<Vec<Field>>>) -> impl Strategy<Value = Value> {
    (fields, vec(unknown(), 0..3))
        .prop_map(|(fields, unknown)| fields.into_iter().flatten().chain(unknown).collect())
        .prop_flat_map(|fields: Vec<Field>| Just(fields).prop_shuffle())
        .prop_map(Value::Message)
}

fn times(
    range: std::ops::Range<usize>,
    field: impl Strategy<Value = Field> + 'static,
) -> BoxedStrategy<Vec<Field>> {
    vec(field, range).boxed()
}

fn spec(of: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let name = select(of).prop_map(|name| Value::Bytes(name.into()));
    let entry = message(vec![times(0..3, field(1, text())), times(0..3, field(2, text()))]);
    message(vec![
        times(1..2, field(1, name)),
        times(0..3, field(2, entry)),
        times(0..3, field(18, text())),
        times(0..2, field(19, text())),
    ])
}

fn pod() -> impl Strategy<Value = Value> {
    let metadata = || {
        message(vec![
            times(0..3, field(1, text())),
            times(0..3, field(3, text())),
            times(0..2, field(4, any::<u32>().prop_map(|n| Value::Varint(n.into(), 0)))),
        ])
    };
    let entry = message(vec![times(0..2, field(1, text())), times(0..2, field(2, text()))]);
    // The metadata is merged where it is written in two parts.
    message(vec![
        times(0..3, field(1, metadata())),
        times(0..2, field(2, text())),
        times(0..3, field(7, entry)),
    ])
}

fn pull() -> impl Strategy<Value = Vec<Field>> {
    let auth = message(vec![times(0..3, field(1, text())), times(0..3, field(2, text()))]);
    let top = message(vec![
        times(1..2, field(1, spec(&NAMES))),
        times(0..3, field(2, auth)),
        times(0..2, field(3, pod())),
    ]);
    top.prop_map(fields)
}

fn create() -> impl Strategy<Value = Vec<Field>> {
    let mount = message(vec![
        times(0..2, field(1, text())),
        times(0..2, field(3, any::<bool>().prop_map(|b| Value::Varint(b.into(), 3)))),
        times(0..2, field(9, spec(&NAMES))),
    ]);
    let config = message(vec![
        times(1..2, field(2, spec(&NAMES))),
        times(0..4, field(7, mount)),
        times(0..2, field(11, text())),
    ]);
    let top = message(vec![
        times(0..2, field(1, text())),
        times(1..2, field(2, config)),
        times(0..2, field(3, pod())),
    ]);
    top.prop_map(fields)
}

fn fields(value: Value) -> Vec<Field> {
    match value {
        Value::Message(fields) => fields,
        _ => unreachable!("made as a message"),
    }
}

/// What prost reads and we refuse, since two readers could read two things.
#[derive(Clone, Copy, Debug)]
enum Oddity {
    /// A judged message, or the name in it, is written twice: readers merge, or take the last.
    Twice(&'static [u64]),
    /// It is not there, so that every reader takes an empty one.
    Missing(&'static [u64]),
}

const PULL_ODDITIES: &[Oddity] = &[
    Oddity::Twice(&[1]),
    Oddity::Twice(&[1, 1]),
    Oddity::Twice(&[3]),
    Oddity::Missing(&[1]),
    Oddity::Missing(&[1, 1]),
];
const CREATE_ODDITIES: &[Oddity] = &[
    Oddity::Twice(&[2]),
    Oddity::Twice(&[2, 2]),
    Oddity::Twice(&[2, 2, 1]),
    Oddity::Twice(&[2, 7, 9]),
    Oddity::Twice(&[2, 7, 9, 1]),
    Oddity::Twice(&[3]),
    Oddity::Missing(&[2]),
    Oddity::Missing(&[2, 2]),
    Oddity::Missing(&[2, 2, 1]),
    Oddity::Missing(&[2, 7, 9, 1]),
];

/// False: the field is not there, so that nothing is odd.
fn make_odd(fields: &mut Vec<Field>, path: &[u64], twice: bool) -> bool {
    let (first, rest) = path.split_first().unwrap();
    let Some(at) = fields.iter().position(|field| field.number == *first) else { return false };
    match &mut fields[at].value {
        Value::Message(inner) if !rest.is_empty() => make_odd(inner, rest, twice),
        _ if twice => {
            let again = fields[at].clone();
            fields.push(again);
            true
        }
        _ => {
            fields.retain(|field| field.number != *first);
            true
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_pull_is_what_prost_reads_and_only_its_image_changes(
        fields in pull(),
        image in "[a-z/@:.0-9]{0,300}",
    ) {
        let bytes = encode(&fields);
        let theirs = PullImageRequest::decode(&*bytes).unwrap();
        let ours = decode::pull(&bytes).unwrap();
        let spec = theirs.image.clone().unwrap();
        prop_assert_eq!(&ours.requested, &spec.image);
        let metadata = theirs.sandbox_config.clone().unwrap_or_default().metadata.unwrap_or_default();
        let namespace = Some(metadata.namespace).filter(|namespace| !namespace.is_empty());
        prop_assert_eq!(ours.pod.map(|pod| pod.namespace), namespace);

        let patched = ours.message.with_names(|name, in_mount| {
            assert_eq!((name, in_mount), (spec.image.as_bytes(), false));
            image.clone()
        });
        let mut expected = theirs;
        expected.image = Some(crate::support::cri::ImageSpec { image, ..spec });
        prop_assert_eq!(PullImageRequest::decode(&*patched).unwrap(), expected);
        same_but(&bytes, &patched, &[&[1, 1]]);
    }

    #[test]
    fn a_container_is_what_prost_reads_and_only_its_images_change(fields in create()) {
        let bytes = encode(&fields);
        let theirs = CreateContainerRequest::decode(&*bytes).unwrap();
        let ours = decode::create(&bytes).unwrap();
        let mut expected = theirs.clone();
        let config = expected.config.as_mut().unwrap();
        let volumes = config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut());
        let mut specs: Vec<_> = config.image.iter_mut().chain(volumes).collect();
        let read: Vec<_> = ours.images.iter().map(|one| one.requested.clone()).collect();
        prop_assert_eq!(&read, &specs.iter().map(|spec| spec.image.clone()).collect::<Vec<_>>());
        let meant: Vec<_> = ours.images.iter().map(|one| one.user_specified.clone()).collect();
        let theirs: Vec<_> = specs.iter().map(|spec| spec.user_specified_image.clone()).collect();
        prop_assert_eq!(meant, theirs);

        // To each its own.
        let ids: Vec<ImageId> = (0..specs.len())
            .map(|n| format!("{}{n:02}", &ID[..ID.len() - 2]).parse().unwrap())
            .collect();
        let patched = ours.pinned(&ids).unwrap();
        for (spec, id) in specs.iter_mut().zip(&ids) {
            spec.image = id.to_string();
        }
        prop_assert_eq!(CreateContainerRequest::decode(&*patched).unwrap(), expected);
        same_but(&bytes, &patched, &[&[2, 2, 1], &[2, 7, 9, 1]]);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused(pull in pull(), create in create()) {
        for (original, oddities, is_pull) in
            [(&pull, PULL_ODDITIES, true), (&create, CREATE_ODDITIES, false)]
        {
            for oddity in oddities {
                let (path, twice) = match oddity {
                    Oddity::Twice(path) => (path, true),
                    Oddity::Missing(path) => (path, false),
                };
                let mut fields = original.clone();
                if !make_odd(&mut fields, path, twice) {
                    continue;
                }
                let bytes = encode(&fields);
                let (prost, refused) = if is_pull {
                    (PullImageRequest::decode(&*bytes).is_ok(), decode::pull(&bytes).is_err())
                } else {
                    (CreateContainerRequest::decode(&*bytes).is_ok(), decode::create(&bytes).is_err())
                };
                prop_assert!(prost && refused, "{:?}", oddity);
            }
        }
    }

    /// Bytes that are hardly a message: what we accept, prost reads, and reads the same.
    #[test]
    fn no_message_is_accepted_that_prost_reads_otherwise(
        fields in pull(),
        cut in 0..400usize,
        flip in (0..400usize, any::<u8>()),
    ) {
        let mut bytes = encode(&fields);
        bytes.truncate(bytes.len().saturating_sub(cut % 7));
        let length = bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(flip.0 % length) {
            *byte ^= flip.1;
        }
        if let Ok(ours) = decode::pull(&bytes) {
            let theirs = PullImageRequest::decode(&*bytes);
            // A field that we do not read may hold what CRI does not define; it passes as it came.
            if let Ok(theirs) = theirs {
                prop_assert_eq!(ours.requested.clone(), theirs.image.unwrap().image);
            }
            let patched = ours.message.with_names(|_, _| "b:1".into());
            prop_assert_eq!(&decode::pull(&patched).unwrap().requested, "b:1");
            same_but(&bytes, &patched, &[&[1, 1]]);
        }
    }
}
