//! Evidence from files: whoever writes one can leave things out, and add nothing but what others
//! have signed.
#![allow(clippy::unwrap_used, reason = "a panic is how a property says that it does not hold")]

use std::{collections::BTreeMap, io::BufReader, sync::LazyLock};

use jiff::Timestamp;

use crate::{
    image::Digest,
    policy::{Authority, AuthorityKind, PublicKeyAuthority, Revoked},
    resolve::{Fetched, Manifest},
    verify::{self, PublicKey},
};

use super::{Entry, Known, MAX_SIGNATURES, UntrustedBody, document, merge, pack, shape};

/// What cosign signed with this key, in the pack of the seeds.
const GENUINE: &[u8] = include_bytes!("../seeds/pack/genuine");

/// A policy with cosign's key alone.
static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let pem = include_str!("../../fixtures/keys/ecdsa-p256.pub");
    let key = PublicKeyAuthority {
        key: PublicKey::from_pem(pem).unwrap(),
        not_before: None,
        not_after: None,
        annotations: BTreeMap::new(),
    };
    Authority { name: "cosign".into(), kind: AuthorityKind::PublicKey(key) }
});

static KNOWN: LazyLock<Vec<Known>> =
    LazyLock::new(|| pack::read(GENUINE).collect::<Result<_, _>>().unwrap());

/// What the key vouches for in this, and could not but in the genuine pack.
fn vouched(known: &Known) -> Option<Digest> {
    let resolved = known.resolved(&"registry.example.com/app".parse().unwrap());
    let now = Timestamp::UNIX_EPOCH;
    let evidence = known.evidence();
    verify::authority(&AUTHORITY, &resolved, &evidence, &Revoked::default(), now)
        .ok()
        .map(|verified| verified.subject())
}

/// A file of the store, or a line of a pack.
pub(crate) fn document(input: &[u8]) {
    if let Ok(known) = document::decode(input) {
        holds(&known);
    }
}

/// A pack.
pub(crate) fn pack(input: &[u8]) {
    let mut lines = pack::read(input);
    let mut all = Vec::new();
    let mut error = None;
    for line in lines.by_ref() {
        match line {
            Ok(known) => all.push(known),
            Err(why) => error = Some(why),
        }
    }
    assert!(lines.next().is_none(), "nothing is read behind an error");
    assert!(all.len() < input.split(|byte| *byte == b'\n').count());
    let by_bytes: Vec<_> = pack::read(BufReader::with_capacity(3, input)).collect();
    let read: Vec<_> = all.iter().cloned().map(Ok).chain(error.clone().map(Err)).collect();
    assert_eq!(by_bytes, read);
    if let Some(error) = &error {
        assert!((1..=all.len() + 2).contains(&error.line));
        assert!(error.why.len() < 4000 && error.why.chars().all(|c| !c.is_control()), "{error}");
    }
    all.iter().for_each(holds);
    let mut written = Vec::new();
    pack::write(&mut written, all.iter().cloned()).unwrap();
    let again: Result<Vec<_>, _> = pack::read(&written[..]).collect();
    assert_eq!(again.unwrap(), all);
}

/// What holds of anything that was read.
fn holds(known: &Known) {
    let bytes = document::encode(known).unwrap();
    let again = document::decode(&bytes).unwrap();
    assert_eq!(&again, known);
    assert_eq!(document::encode(&again).unwrap(), bytes, "the canonical form is no fixed point");
    assert!(!bytes.contains(&b'\n'));
    let entries = || std::iter::once(known.top()).chain(known.child());
    for entry in entries() {
        let Fetched { digest, media_type, body } = &entry.manifest;
        assert_eq!(*digest, Digest::of(body));
        assert!(!Manifest::read(media_type, body).unwrap().is_checkpoint());
        assert!(entry.claims.len() <= MAX_SIGNATURES);
        for claim in &entry.claims {
            assert_eq!(claim.subject, *digest, "a claim about something else");
            assert!(claim.source.len() <= 256);
            if let UntrustedBody::Unreadable { why } = &claim.body {
                assert!(why.chars().count() <= 1000 && why.chars().all(|c| !c.is_control()));
            }
        }
    }
    // The ID is what the manifest says, and the index lists the manifest.
    let image = known.child().unwrap_or(known.top());
    let Manifest::Image(manifest) = read(image) else { panic!("{image:?} is no image") };
    assert_eq!(known.id().config(), manifest.config.digest);
    if known.child().is_some() {
        let Manifest::Index(index) = read(known.top()) else { panic!("no index above a child") };
        assert!(index.manifests.iter().any(|listed| listed.digest == image.manifest.digest));
    }
    if let Some(subject) = vouched(known) {
        assert!(
            KNOWN.iter().any(|genuine| vouched(genuine) == Some(subject)),
            "{subject} is proven, and nobody signed it"
        );
    }
    // Imported beside what is known, it takes nothing away and makes nothing whole.
    let imported = merge::imported(known, None);
    assert!(!imported.top().whole && imported.child().is_none_or(|child| !child.whole));
    for old in KNOWN.iter().filter(|old| (old.id(), old.digest()) == (known.id(), known.digest())) {
        let joined = merge::imported(known, Some(old));
        assert_eq!((joined.id(), joined.digest()), (old.id(), old.digest()));
        assert!(joined.top().claims.starts_with(&old.top().claims));
        assert!(old.top().whole || !joined.top().whole);
        assert_eq!(vouched(&joined), vouched(old));
    }
}

fn read(entry: &Entry) -> Manifest {
    Manifest::read(&entry.manifest.media_type, &entry.manifest.body).unwrap()
}

/// Where a manifest says that signatures are.
pub(crate) fn leads(manifest: &Fetched) {
    let subject = Digest::of(b"image");
    let (tagged, referrer) = (shape::tagged(manifest), shape::referrer(manifest, subject));
    let read = Manifest::read(&manifest.media_type, &manifest.body);
    let most = match &read {
        Ok(Manifest::Image(image)) => image.layers.len(),
        _ => 1,
    };
    assert!(tagged.len() <= most.max(1) && referrer.len() <= most.max(1));
    for lead in tagged.iter().chain(&referrer) {
        if let Some(blob) = lead.blob() {
            assert!(blob.size <= 1 << 20);
            let Ok(Manifest::Image(image)) = &read else { panic!("a claim in what is no image") };
            assert!(image.layers.iter().any(|layer| layer.digest == blob.digest));
        }
        if let shape::Lead::Unreadable(why) = lead {
            assert!(why.len() < 4000 && why.chars().all(|c| !c.is_control()), "{why:?}");
        }
    }
    // About another image, it is no claim about this one.
    if let Ok(Manifest::Image(image)) = &read
        && image.subject.as_ref().is_some_and(|other| other.digest != subject)
    {
        assert!(referrer.iter().all(|lead| lead.blob().is_none()));
    }
}
