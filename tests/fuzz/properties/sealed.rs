//! Bundles of policies: what is opened is what a pinned key signed, and every reader finds the same
//! in it.

use std::sync::LazyLock;

use crate::{
    policy::{
        Offer, Text,
        bundle::{Payload, Sealed, SigningKey, sign},
    },
    verify::PublicKey,
};

use super::Json;

/// The payload of every seed that a pinned key signed.
const GENUINE: &[u8] = include_bytes!("../../fixtures/bundles/payload.json");

/// At how many places of a bundle that opens a bit is changed.
const PLACES: usize = 64;

static OURS: LazyLock<SigningKey> = LazyLock::new(|| {
    SigningKey::from_pem(include_str!("../../fixtures/keys/ed25519.key")).unwrap()
});

/// A key that signs nothing here.
static OTHER: LazyLock<PublicKey> = LazyLock::new(|| {
    PublicKey::from_pem(include_str!("../../fixtures/keys/rsa-2048.pub")).unwrap()
});

/// What is pinned: ours, and that with which cosign signed.
static PINNED: LazyLock<[PublicKey; 2]> = LazyLock::new(|| {
    let cosign = include_str!("../../fixtures/keys/ecdsa-p256.pub");
    [OURS.public().clone(), PublicKey::from_pem(cosign).unwrap()]
});

/// A bundle as it comes, and a payload that the key did sign.
pub(super) fn sealed(input: &[u8]) {
    match Sealed::parse(input) {
        Ok(sealed) => opened(&sealed, input),
        Err(error) => told(&error.to_string()),
    }
    match sign(input, &OURS) {
        Ok(signed) => vouched(input, &signed.bytes),
        Err(error) => told(&error.to_string()),
    }
}

/// Nothing but the payload that was signed comes out of a bundle that nobody signed anew.
fn opened(sealed: &Sealed, input: &[u8]) {
    assert!(sealed.open(&[]).is_err());
    assert!(sealed.open(std::slice::from_ref(&*OTHER)).is_err());
    let offer = match sealed.open(&*PINNED) {
        Ok(offer) => offer,
        Err(error) => return told(&error.to_string()),
    };
    assert_eq!(payload_of(&offer), Payload::read(GENUINE).unwrap(), "nobody signed that");
    assert_eq!(sealed.unverified(), Ok(payload_of(&offer)));
    let kept = offer.sealed.as_ref().unwrap();
    assert_eq!(&**kept.bytes(), input);
    assert!(!kept.signers().is_empty());
    assert_eq!(Sealed::parse(kept.bytes().clone()).unwrap().open(&*PINNED), Ok(offer.clone()));
    // A bit anywhere changes nothing that counts, or all.
    for place in 0..PLACES {
        let mut changed = input.to_vec();
        changed[place * (input.len() - 1) / (PLACES - 1)] ^= 1;
        let again = Sealed::parse(changed).and_then(|sealed| sealed.open(&*PINNED));
        assert!(
            again.is_err() || again.is_ok_and(|again| payload_of(&again) == payload_of(&offer))
        );
    }
}

/// What our key signs, it opens; and it means to others what it means to us.
fn vouched(input: &[u8], envelope: &[u8]) {
    let sealed = Sealed::parse(envelope).unwrap();
    let ours = std::slice::from_ref(OURS.public());
    let payload = payload_of(&sealed.open(ours).unwrap());
    assert_eq!(Payload::read(&payload.write().unwrap()), Ok(payload.clone()));
    assert!(sealed.open(std::slice::from_ref(&*OTHER)).is_err());
    if Payload::read(input).is_err() {
        return; // an envelope, to which a signature was added
    }
    let json = Json::read(input);
    assert_eq!(json.get("kind").and_then(Json::text), Some("PolicyBundle"));
    assert_eq!(json.get("revision"), Some(&Json::Number(payload.revision.to_string())));
    assert_eq!(json.get("expiresAt").is_some(), payload.expires_at.is_some());
    let text = |entry: &Json| {
        let of = |field| entry.get(field).and_then(Json::text).unwrap().to_owned();
        Text { name: of("name"), text: of("text") }
    };
    for (field, texts) in [("files", &payload.texts.files), ("keys", &payload.texts.keys)] {
        let found: Vec<_> = json.get(field).map_or(&[][..], Json::list).iter().map(text).collect();
        assert_eq!(&found, texts);
    }
}

fn payload_of(offer: &Offer) -> Payload {
    let Offer { texts, revision, expires_at, .. } = offer.clone();
    Payload { revision: revision.unwrap(), expires_at, texts }
}

/// What is said of hostile bytes is short and printable.
fn told(why: &str) {
    assert!(why.len() < 4000 && why.chars().all(|c| !c.is_control()), "{why:?}");
}
