//! The requests that are judged: what is judged is what the runtime reads, and nothing but the
//! names of images changes on the way.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::{
    decode::{self, CreateRequest, PullRequest},
    image::Digest,
    named::{ImageId, Named},
};

/// The way to the names in a message.
enum Way {
    Name,
    Message(&'static [(u32, Way)]),
}

/// `image.image`.
const SPEC: Way = Way::Message(&[(1, Way::Name)]);
/// `PullImageRequest`.
const PULL: Way = Way::Message(&[(1, SPEC)]);
/// `CreateContainerRequest`: `config.image` and `config.mounts[].image`.
const CREATE: Way =
    Way::Message(&[(2, Way::Message(&[(2, SPEC), (7, Way::Message(&[(9, SPEC)]))]))]);

pub(super) fn wire(input: &[u8]) {
    if let Ok(message) = decode::request("PullImage", input) {
        assert_eq!(decode::frame(message), input, "a frame is one message and nothing else");
    }
    assert_eq!(decode::request("PullImage", &decode::frame(input)), Ok(input));
    // These read nothing that is changed: to be read at all is enough.
    let _ = (decode::image_status(input), decode::image_found(input), decode::sandbox(input));
    if let Ok(pull) = decode::pull(input) {
        for name in ["", "registry.example.com/app@sha256:0", &"x".repeat(300)] {
            let (patched, names) = patch(&pull.message, |_| name.to_owned());
            let asked = [(pull.requested.clone(), name.to_owned())];
            assert_eq!(names, asked, "what was judged is not what was replaced");
            assert_eq!(differences(&PULL, input, &patched), asked);
        }
        let name = format!("registry.example.com/app@{}", Digest::of(input));
        let again = decode::pull(&patch(&pull.message, |_| name.clone()).0).unwrap();
        assert_eq!(again.requested, name);
        assert_eq!(rest_of(again), rest_of(pull));
    }
    if let Ok(create) = decode::create(input) {
        let mut count = 0;
        let (patched, mut names) = patch(&create.message, |_| {
            count += 1;
            format!("image-{count}")
        });
        let mut changed = differences(&CREATE, input, &patched);
        changed.sort();
        names.sort();
        assert_eq!(changed, names);
        let mut requested: Vec<_> = create.images.iter().map(|one| one.requested.clone()).collect();
        requested.sort();
        let mut replaced: Vec<_> = names.into_iter().map(|(old, _)| old).collect();
        replaced.sort();
        assert_eq!(requested, replaced);
        pinned(&create);
    }
}

/// The IDs that were judged stand where the images stood, each in its place.
fn pinned(create: &CreateRequest) {
    let id = |n: usize| ImageId::of_config(Digest::of(&n.to_be_bytes()));
    let ids: Vec<_> = (0..create.images.len()).map(id).collect();
    let again = decode::create(&create.pinned(&ids).unwrap()).unwrap();
    let named: Vec<_> = again.images.iter().map(|one| one.named.clone()).collect();
    assert_eq!(named, ids.iter().copied().map(Named::Id).collect::<Vec<_>>());
    assert_eq!((&again.pod, &again.caller), (&create.pod, &create.caller));
    let users = |request: &CreateRequest| {
        request.images.iter().map(|one| one.user_specified.clone()).collect::<Vec<_>>()
    };
    assert_eq!(users(&again), users(create));
    assert_eq!(create.pinned(&ids[1..]), None);
}

/// Everything that a pull says besides its image.
fn rest_of(pull: PullRequest) -> impl PartialEq + std::fmt::Debug {
    (pull.wanted.credentials, pull.wanted.caller, pull.pod)
}

/// The patched message, and each old name with its new one, as the patcher tells them.
fn patch(
    message: &decode::Patchable,
    mut new: impl FnMut(&[u8]) -> String,
) -> (Vec<u8>, Vec<(String, String)>) {
    let mut names = Vec::new();
    let patched = message.with_names(|old, _| {
        let new = new(old);
        names.push((String::from_utf8(old.to_vec()).unwrap(), new.clone()));
        new
    });
    (patched, names)
}

/// The names of both messages, after everything else was found to be the same, to the byte.
fn differences(way: &Way, was: &[u8], is: &[u8]) -> Vec<(String, String)> {
    let fields = match way {
        Way::Name => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            return vec![(text(was), text(is))];
        }
        Way::Message(fields) => fields,
    };
    let (was, is) = (walk(was), walk(is));
    assert_eq!(was.len(), is.len(), "a field came or went");
    let mut found = Vec::new();
    for (was, is) in was.iter().zip(&is) {
        assert_eq!((was.number, was.kind), (is.number, is.kind));
        match fields.iter().find(|(number, _)| *number == was.number) {
            Some((_, within)) => found.extend(differences(within, was.value, is.value)),
            None => assert_eq!(was.whole, is.whole, "field {} changed", was.number),
        }
    }
    found
}

struct Field<'a> {
    number: u32,
    kind: WireType,
    /// Tag, length and value.
    whole: &'a [u8],
    value: &'a [u8],
}

/// The fields of a message, as prost takes them apart.
fn walk(message: &[u8]) -> Vec<Field<'_>> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let start = rest;
        let (number, kind) = decode_key(&mut rest).unwrap();
        let length = match kind {
            WireType::LengthDelimited => decode_varint(&mut rest).unwrap() as usize,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::Varint => {
                decode_varint(&mut rest).unwrap();
                0
            }
            other => panic!("{other:?} has no place in CRI"),
        };
        let (value, behind) = rest.split_at(length);
        let whole = &start[..start.len() - behind.len()];
        fields.push(Field { number, kind, whole, value });
        rest = behind;
    }
    fields
}
