//! A DSSE envelope (<https://github.com/secure-systems-lab/dsse>, envelope.md and protocol.md,
//! v1.0), read strictly: what two readers may read otherwise is refused.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    image::shorten,
    json,
    verify::{KeyId, PublicKey, pre_authentication},
};

use super::BundleError;

/// What an envelope of ours has inside. It is signed with the payload, so that no signature over
/// anything else can be taken for one over policies.
pub const PAYLOAD_TYPE: &str = "application/vnd.portcullis.policy-bundle.v1alpha1+json";

/// Most signatures of an envelope: each is held against each pinned key.
const MAX_SIGNATURES: usize = 8;

/// An envelope, with its payload decoded and believed by nobody.
#[derive(Clone)]
pub(super) struct Envelope {
    payload_type: String,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Clone)]
pub(super) struct Signature {
    /// A hint, carried along for other readers; we look at none.
    keyid: Option<String>,
    sig: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wire {
    payload: String,
    payload_type: String,
    #[serde(deserialize_with = "json::at_most::<MAX_SIGNATURES, _, _>")]
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    sig: String,
}

/// What a document seems to be.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    payload_type: Option<IgnoredAny>,
    #[serde(default)]
    api_version: Option<IgnoredAny>,
}

impl Envelope {
    /// Reads one, whoever signed it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        // It refuses unknown and equal keys itself, at the first: nobody has signed this yet, and to
        // look for equal ones among millions would cost ten times its size.
        let wire: Wire = json::parse(bytes).map_err(|error| match seems_signed(bytes) {
            Some(false) => BundleError::Unsigned,
            _ => BundleError::Envelope(error.to_string()),
        })?;
        if wire.payload_type != PAYLOAD_TYPE {
            return Err(BundleError::PayloadType(shorten(&wire.payload_type)));
        }
        if wire.signatures.is_empty() {
            return Err(BundleError::NoSignature);
        }
        let signature = |one: WireSignature| {
            decode(&one.sig, "signature").map(|sig| Signature { keyid: one.keyid, sig })
        };
        Ok(Self {
            payload: decode(&wire.payload, "payload")?,
            payload_type: wire.payload_type,
            signatures: wire.signatures.into_iter().map(signature).collect::<Result<_, _>>()?,
        })
    }

    /// An envelope without a signature yet.
    pub(super) fn around(payload: &[u8]) -> Self {
        let (payload_type, payload) = (PAYLOAD_TYPE.to_owned(), payload.to_vec());
        Self { payload_type, payload, signatures: Vec::new() }
    }

    /// Writes it, with a newline.
    pub(super) fn write(&self) -> Result<Vec<u8>, BundleError> {
        let signatures = self
            .signatures
            .iter()
            .map(|one| WireSignature { keyid: one.keyid.clone(), sig: STANDARD.encode(&one.sig) });
        let wire = Wire {
            payload: STANDARD.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: signatures.collect(),
        };
        let wrong = |error: json::JsonError| BundleError::Envelope(error.to_string());
        let mut bytes = serde_json::to_vec(&wire).map_err(|error| wrong(error.into()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Adds a signature.
    pub(super) fn add(&mut self, key: KeyId, sig: Vec<u8>) -> Result<(), BundleError> {
        if self.signatures.len() == MAX_SIGNATURES {
            let why = format!("it carries {MAX_SIGNATURES} signatures, which is the limit");
            return Err(BundleError::Envelope(why));
        }
        self.signatures.push(Signature { keyid: Some(key.to_string()), sig });
        Ok(())
    }

    /// The bytes that each signature is over.
    pub(super) fn signed(&self) -> Vec<u8> {
        pre_authentication(&self.payload_type, &self.payload)
    }

    /// Those of the keys by which a signature holds: at least one.
    pub(super) fn signers(&self, keys: &[PublicKey]) -> Result<Vec<KeyId>, BundleError> {
        if keys.is_empty() {
            return Err(BundleError::NoKey);
        }
        let message = self.signed();
        let by = |key: &&PublicKey| {
            self.signatures.iter().any(|one| key.verify(&message, &one.sig).is_ok())
        };
        let signers: Vec<_> = keys.iter().filter(by).map(PublicKey::id).collect();
        match (signers.is_empty(), self.signatures.len()) {
            (false, _) => Ok(signers),
            (true, 1) => Err(BundleError::NotSigned("it carries 1 signature".into())),
            (true, some) => Err(BundleError::NotSigned(format!("it carries {some} signatures"))),
        }
    }

    /// What is inside; the type was looked at when the envelope was read.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(super) fn signatures(&self) -> usize {
        self.signatures.len()
    }
}

/// Whether a document of ours has an envelope around it. None: it is no document of ours.
pub(super) fn seems_signed(bytes: &[u8]) -> Option<bool> {
    let outline: Outline = json::parse(bytes).ok()?;
    match (outline.payload_type, outline.api_version) {
        (Some(_), _) => Some(true),
        (None, Some(_)) => Some(false),
        (None, None) => None,
    }
}

/// Either alphabet, as the specification allows: the signature is over the bytes.
fn decode(base64: &str, what: &'static str) -> Result<Vec<u8>, BundleError> {
    let decoded = STANDARD.decode(base64).or_else(|_| URL_SAFE.decode(base64));
    decoded.map_err(|_| BundleError::Base64(what))
}
