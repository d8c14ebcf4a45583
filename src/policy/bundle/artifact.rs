//! A bundle as an OCI artifact that cosign signed: the signature is on the manifest's digest, the
//! manifest names the one layer by its digest, the layer is the payload.
//!
//! It is kept as two lines and the payload itself:
//!
//! ```text
//! {"portcullis":"policy-bundle","version":1}
//! {"version":1,"manifest":{"mediaType":"…","body":"…","claims":[…],"whole":true}}
//! …
//! ```
//!
//! The second line is a document of evidence as those of images are. Nothing in it is trusted; every
//! link is followed anew when it is read.

use crate::{
    evidence::{
        Entry, Evidence, Known, UntrustedBody, UntrustedClaim,
        document::{self, MAX_DOCUMENT},
    },
    image::{Digest, shorten},
    resolve::{Descriptor, Fetched, Manifest},
    verify::{self, KeyId, PublicKey},
};

use super::{BundleError, PAYLOAD_TYPE};

/// The layer of an artifact that is an envelope, which needs no signature on the manifest.
const ENVELOPE_TYPE: &str = "application/vnd.portcullis.policy-bundle.v1alpha1.dsse+json";
/// Most bytes of the manifest of such an artifact: it names one layer.
pub(crate) const MAX_MANIFEST: usize = 64 << 10;
/// Most bytes of signatures that are kept with a bundle. One has a few KiB.
const MAX_CLAIMS: usize = 2 << 20;

const HEAD: &[u8] = b"{\"portcullis\":\"policy-bundle\",\"version\":1}\n";
/// What a head of any version begins with.
const BEGINNING: &[u8] = b"{\"portcullis\":";

/// What the one layer of an artifact is.
#[derive(Clone, Debug)]
pub(crate) enum Layer {
    /// The payload; the signature is on the manifest.
    Payload(Descriptor),
    /// An envelope, which is a bundle by itself.
    Envelope(Descriptor),
}

impl Layer {
    /// The layer of an artifact, as its manifest has it.
    pub(crate) fn of(manifest: &Fetched) -> Result<Self, BundleError> {
        if manifest.body.len() > MAX_MANIFEST {
            let long = manifest.body.len();
            let why = format!("its manifest has {long} bytes, {MAX_MANIFEST} are allowed");
            return Err(BundleError::Artifact(why));
        }
        let Manifest::Image(read) = Manifest::read(&manifest.media_type, &manifest.body)? else {
            return Err(BundleError::Artifact("it is an index of several".into()));
        };
        // With several, what is signed would depend on which of them a reader looks at.
        let [layer] = &*read.layers else {
            let count = read.layers.len();
            return Err(BundleError::Artifact(format!("it has {count} layers instead of one")));
        };
        match &*layer.media_type {
            PAYLOAD_TYPE => Ok(Layer::Payload(layer.clone())),
            ENVELOPE_TYPE => Ok(Layer::Envelope(layer.clone())),
            other => Err(BundleError::Artifact(format!(
                "its layer is of type \"{}\", and not of {PAYLOAD_TYPE:?} or {ENVELOPE_TYPE:?}",
                shorten(other)
            ))),
        }
    }
}

/// An artifact with the payload in its layer and the signatures on its manifest.
#[derive(Clone)]
pub(crate) struct Artifact {
    known: Known,
    payload: Vec<u8>,
}

impl Artifact {
    /// Puts together what was fetched. Of the claims as many are kept as there is room for.
    pub(crate) fn new(
        manifest: Fetched,
        evidence: &Evidence,
        payload: Vec<u8>,
    ) -> Result<Self, BundleError> {
        let known = known(manifest, evidence)?;
        let artifact = Self { known, payload };
        artifact.check()?;
        Ok(artifact)
    }

    /// Whether bytes begin as a kept artifact does, of whatever version.
    pub(super) fn is_begun(bytes: &[u8]) -> bool {
        bytes.starts_with(BEGINNING)
    }

    /// Reads what was kept.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let kept = |why: &str| BundleError::Kept(why.to_owned());
        let rest = bytes.strip_prefix(HEAD).ok_or_else(|| {
            kept("its first line is not that of version 1, which is what this program reads")
        })?;
        let end = rest.iter().take(MAX_DOCUMENT).position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| kept("it ends in the middle"))?;
        let known = document::decode(&rest[..end]).map_err(|error| kept(&error.to_string()))?;
        let artifact = Self { known, payload: rest[end + 1..].to_vec() };
        artifact.check()?;
        Ok(artifact)
    }

    /// Writes what is to be kept.
    pub(super) fn encode(&self) -> Result<Vec<u8>, BundleError> {
        let document = document::encode(&self.known);
        let document = document.map_err(|error| BundleError::Kept(error.to_string()))?;
        Ok([HEAD, &document, b"\n", &self.payload].concat())
    }

    /// The manifest is one of a policy bundle, and it names this payload.
    fn check(&self) -> Result<(), BundleError> {
        if self.known.child().is_some() {
            return Err(BundleError::Artifact("it is an index of several".into()));
        }
        let Layer::Payload(layer) = Layer::of(&self.known.top().manifest)? else {
            return Err(BundleError::Artifact(
                "its layer is an envelope, which stands alone".into(),
            ));
        };
        let digest = Digest::of(&self.payload);
        if digest != layer.digest {
            let why = format!("its layer is {digest}, and its manifest says {}", layer.digest);
            return Err(BundleError::Artifact(why));
        }
        match self.payload.len() as u64 == layer.size {
            true => Ok(()),
            false => {
                let (is, said) = (self.payload.len(), layer.size);
                let why = format!("its layer has {is} bytes, and its manifest says {said}");
                Err(BundleError::Artifact(why))
            }
        }
    }

    /// Those of the keys that signed the manifest: at least one.
    pub(super) fn signers(&self, keys: &[PublicKey]) -> Result<Vec<KeyId>, BundleError> {
        signers(self.known.digest(), &self.known.evidence(), keys)
    }

    /// What is in the layer.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(super) fn signatures(&self) -> usize {
        self.known.top().claims.len()
    }
}

/// Those of the keys that signed a manifest, by the verifier of images: at least one.
pub(crate) fn signers(
    manifest: Digest,
    evidence: &Evidence,
    keys: &[PublicKey],
) -> Result<Vec<KeyId>, BundleError> {
    let mut missed = None;
    let mut signers = Vec::new();
    for key in keys {
        match verify::manifest(key, manifest, evidence) {
            Ok(_) => signers.push(key.id()),
            // Of several keys the first one's is as good as any: all tell what was found.
            Err(why) => missed = missed.or(Some(why.why)),
        }
    }
    match missed {
        _ if !signers.is_empty() => Ok(signers),
        Some(why) => Err(BundleError::NotSigned(why)),
        None => Err(BundleError::NoKey),
    }
}

/// The manifest and its signatures, small ones first: others that anybody can put beside them
/// are as large as they like.
fn known(manifest: Fetched, evidence: &Evidence) -> Result<Known, BundleError> {
    let about = |claim: &&UntrustedClaim| claim.subject == manifest.digest;
    let sized = evidence.claims.iter().filter(about).filter_map(|claim| {
        let size = match &claim.body {
            UntrustedBody::SimpleSigning { payload, signature } => payload.len() + signature.len(),
            UntrustedBody::Bundle { json } => json.len(),
            UntrustedBody::Unreadable { .. } => return None,
        };
        Some((size, claim))
    });
    let mut sized: Vec<_> = sized.collect();
    sized.sort_by_key(|(size, _)| *size);
    let mut sum = 0;
    let fits = |(size, _): &(usize, _)| {
        sum += size;
        sum <= MAX_CLAIMS
    };
    let claims = sized.into_iter().take_while(fits).map(|(_, claim)| claim.clone()).collect();
    let entry = Entry { manifest, claims, whole: evidence.gaps.is_empty() };
    Known::new(entry, None).map_err(|error| BundleError::Artifact(error.to_string()))
}
