//! Signed bundles: a policy set that anybody may carry, and nobody but the holder of a pinned key
//! can have written.
//!
//! A bundle is a payload ([`Payload`]) in one of two forms:
//!
//! - a DSSE envelope around it (<https://github.com/secure-systems-lab/dsse>), `envelope.rs`;
//! - the one layer of an OCI artifact whose manifest cosign signed, `artifact.rs`.
//!
//! Both are read from bytes alone, so that what is kept on a node is verified again whenever it is
//! read: [`Sealed::parse`] says what the bytes could be, [`Sealed::open`] that a pinned key signed
//! them. The payload is not parsed before. Pure: no I/O, no clock. Whether a bundle is new enough
//! or expired is for the keeper of the set to say.

mod artifact;
mod envelope;
mod payload;
mod sign;

use std::{fmt, sync::Arc};

use crate::{
    image::Digest,
    resolve::ManifestError,
    verify::{KeyId, PublicKey},
};

use super::Offer;

pub(crate) use artifact::{Artifact, Layer, MAX_MANIFEST, signers};
pub use envelope::PAYLOAD_TYPE;
pub use payload::{MAX_REVISION, Payload, PayloadError};
pub use sign::{Signed, SigningKey, SigningKeyError, sign};

use envelope::Envelope;

/// Most bytes of a bundle: an envelope, or an artifact as it is kept. The largest payload takes
/// 24 MiB in base64.
pub const MAX_BUNDLE: usize = 25 << 20;

/// Bytes that may be a signed bundle: untrusted.
#[derive(Clone)]
pub struct Sealed {
    bytes: Arc<[u8]>,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Envelope(Envelope),
    Artifact(Box<Artifact>),
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// Proof that a pinned key signed a bundle: made by [`Sealed::open`] and by nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genuine {
    bytes: Arc<[u8]>,
    signers: Vec<KeyId>,
}

impl Genuine {
    /// The bundle, to be kept: [`Sealed::parse`] reads it again.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Which of the pinned keys signed it, in their order; at least one.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }
}

impl Sealed {
    /// Reads a bundle as it was fetched or kept.
    ///
    /// # Errors
    ///
    /// The bytes are neither form, whoever signed them.
    pub fn parse(bytes: impl Into<Arc<[u8]>>) -> Result<Self, BundleError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_BUNDLE {
            return Err(BundleError::Long(bytes.len()));
        }
        let form = match Artifact::is_begun(&bytes) {
            true => Form::Artifact(Box::new(Artifact::decode(&bytes)?)),
            false => Form::Envelope(Envelope::parse(&bytes)?),
        };
        Ok(Self { bytes, form })
    }

    /// The bundle that an artifact makes.
    pub(crate) fn of_artifact(artifact: Artifact) -> Result<Self, BundleError> {
        let bytes: Arc<[u8]> = artifact.encode()?.into();
        match bytes.len() {
            long if long > MAX_BUNDLE => Err(BundleError::Long(long)),
            _ => Ok(Self { bytes, form: Form::Artifact(Box::new(artifact)) }),
        }
    }

    /// Names these bytes, signatures included: two bundles of one set can differ.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The set, if any of these keys signed it. The keys are those that the configuration pins; a
    /// name in the bundle chooses none of them.
    ///
    /// # Errors
    ///
    /// None of the keys signed it, or what they signed is no policy bundle.
    pub fn open(&self, keys: &[PublicKey]) -> Result<Offer, BundleError> {
        let (signers, payload) = match &self.form {
            Form::Envelope(envelope) => (envelope.signers(keys)?, envelope.payload()),
            Form::Artifact(artifact) => (artifact.signers(keys)?, artifact.payload()),
        };
        let Payload { revision, expires_at, texts } = Payload::read(payload)?;
        let sealed = Some(Genuine { bytes: self.bytes.clone(), signers });
        Ok(Offer { texts, revision: Some(revision), expires_at, sealed })
    }

    /// What stands in it, whoever wrote that: to show, and never to enforce.
    ///
    /// # Errors
    ///
    /// It is no policy bundle.
    pub fn unverified(&self) -> Result<Payload, PayloadError> {
        Payload::read(match &self.form {
            Form::Envelope(envelope) => envelope.payload(),
            Form::Artifact(artifact) => artifact.payload(),
        })
    }

    /// How many signatures it carries, whoever made them.
    pub fn signatures(&self) -> usize {
        match &self.form {
            Form::Envelope(envelope) => envelope.signatures(),
            Form::Artifact(artifact) => artifact.signatures(),
        }
    }
}

/// Why bytes are not a bundle that is signed by a pinned key: to be read behind the name of what
/// was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// More bytes than [`MAX_BUNDLE`].
    #[error("has {0} bytes, {MAX_BUNDLE} are allowed for a bundle of policies")]
    Long(usize),
    /// A payload without an envelope.
    #[error("is a bundle of policies that nobody signed; \"portcullis policy sign\" signs it")]
    Unsigned,
    /// Not an envelope.
    #[error("is no signed bundle of policies (a DSSE envelope in JSON): {0}")]
    Envelope(String),
    /// An envelope around something else.
    #[error("is a signed document of type \"{0}\", and not of {PAYLOAD_TYPE:?}")]
    PayloadType(String),
    /// Base64 that is none.
    #[error("is no signed bundle of policies: its {0} is no base64")]
    Base64(&'static str),
    /// An envelope without signatures.
    #[error("carries no signature")]
    NoSignature,
    /// There is no key to hold it against.
    #[error("cannot be believed: no key is pinned")]
    NoKey,
    /// None of the keys signed it.
    #[error("is not signed by a pinned key: {0}")]
    NotSigned(String),
    /// Something else than a policy bundle, signed or about to be.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A manifest that cannot be read.
    #[error("is no artifact with a bundle of policies: {0}")]
    Manifest(#[from] ManifestError),
    /// A manifest of something else.
    #[error("is no artifact with a bundle of policies: {0}")]
    Artifact(String),
    /// A kept artifact that is torn, changed, or of a later release.
    #[error("is no kept bundle of policies: {0}")]
    Kept(String),
}

#[cfg(test)]
mod tests;
