//! Signing keys, and the signature that they put on a bundle.
//!
//! Schemes are those that `verify` tries first for each kind of key. A private key is read from
//! PKCS#8 (RFC 5958) as `openssl genpkey` writes it, and never shown.

use std::fmt;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{
        self as aws, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::Signer;
use spki::{
    AlgorithmIdentifierRef, ObjectIdentifier,
    der::{Reader, SliceReader, Tag, Tagged, asn1::AnyRef},
};

use crate::{
    image::shorten,
    verify::{
        KeyError, KeyId, PublicKey,
        oid::{EC, ED25519, P256, P384, P521, RSA},
    },
};

use super::{
    BundleError, MAX_BUNDLE, Payload,
    envelope::{Envelope, seems_signed},
};

/// Longest PEM text that is read, in bytes: an RSA key of 8192 bits has 6.5 KiB.
const MAX_PEM: usize = 16 << 10;

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, 4).
const ED25519_HEAD: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A private key that signs bundles, and its public half.
pub struct SigningKey {
    pair: Pair,
    public: PublicKey,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Ed25519(ed25519_dalek::SigningKey),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public.id())
    }
}

impl SigningKey {
    /// Reads the one PEM block `PRIVATE KEY` of a text.
    ///
    /// # Errors
    ///
    /// It is no such text, or a key that `verify` would not take. Nothing of it is repeated.
    pub fn from_pem(pem: &str) -> Result<Self, SigningKeyError> {
        let der = unarmor(pem)?;
        let (algorithm, secret) = private_key_info(&der).map_err(|_| SigningKeyError::Encoding)?;
        let pair = match algorithm.oid {
            EC => Pair::Ecdsa(ecdsa(&der, algorithm.parameters)?),
            RSA => Pair::Rsa(RsaKeyPair::from_pkcs8(&der).map_err(|_| SigningKeyError::Rejected)?),
            ED25519 => Pair::Ed25519(ed25519(secret).ok_or(SigningKeyError::Encoding)?),
            other => return Err(SigningKeyError::Algorithm(other.to_string())),
        };
        let public = match &pair {
            Pair::Ecdsa(pair) => x509(pair.public_key()),
            Pair::Rsa(pair) => x509(pair.public_key()),
            Pair::Ed25519(key) => Ok([&ED25519_HEAD[..], key.verifying_key().as_bytes()].concat()),
        };
        let public = PublicKey::from_der(&public?).map_err(SigningKeyError::Public)?;
        Ok(Self { pair, public })
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A signature that the public half accepts. None: the library made none.
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&random, message).ok()?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).ok()?;
                signature
            }
            Pair::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
        };
        // Whoever publishes it must not be the first to see that it is broken.
        self.public.verify(message, &signature).is_ok().then_some(signature)
    }
}

/// What [`sign`] made.
#[derive(Debug)]
pub struct Signed {
    /// The envelope.
    pub bytes: Vec<u8>,
    /// Whose signature it is.
    pub key: KeyId,
    /// Whether it was put there now. If not, the key had signed before.
    pub added: bool,
    /// How many signatures there are.
    pub signatures: usize,
}

/// Signs a payload, or adds a signature to an envelope: while a key is rotated, bundles carry one
/// by each.
///
/// # Errors
///
/// The document is neither, or what is in it is no policy bundle.
pub fn sign(document: &[u8], key: &SigningKey) -> Result<Signed, BundleError> {
    if document.len() > MAX_BUNDLE {
        return Err(BundleError::Long(document.len()));
    }
    let mut envelope = match seems_signed(document) {
        Some(true) => Envelope::parse(document)?,
        _ => Envelope::around(document),
    };
    Payload::read(envelope.payload())?;
    let added = envelope.signers(std::slice::from_ref(&key.public)).is_err();
    if added {
        let signature = key.sign(&envelope.signed());
        let signature =
            signature.ok_or(BundleError::NotSigned("the key made no signature".into()))?;
        envelope.add(key.public.id(), signature)?;
    }
    let signatures = envelope.signatures();
    Ok(Signed { bytes: envelope.write()?, key: key.public.id(), added, signatures })
}

/// The content of the PEM block.
fn unarmor(pem: &str) -> Result<Vec<u8>, SigningKeyError> {
    if pem.len() > MAX_PEM {
        return Err(SigningKeyError::Long(pem.len()));
    }
    let (_, block) = pem.split_once("-----BEGIN ").ok_or(SigningKeyError::NoPem)?;
    let (label, rest) = block.split_once("-----").ok_or(SigningKeyError::NoPem)?;
    match label {
        "PRIVATE KEY" => {}
        "ENCRYPTED PRIVATE KEY" => return Err(SigningKeyError::Encrypted),
        _ if rest.contains("Proc-Type: 4,ENCRYPTED") => return Err(SigningKeyError::Encrypted),
        "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => {
            return Err(SigningKeyError::Cosign);
        }
        "EC PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PARAMETERS" => {
            return Err(SigningKeyError::Traditional(shorten(label)));
        }
        other => return Err(SigningKeyError::Label(shorten(other))),
    }
    let (body, behind) =
        rest.split_once("-----END PRIVATE KEY-----").ok_or(SigningKeyError::NoPem)?;
    if behind.contains("-----BEGIN ") {
        return Err(SigningKeyError::Several);
    }
    let base64: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(base64).map_err(|_| SigningKeyError::Encoding)
}

/// Algorithm and key of a `OneAsymmetricKey` (RFC 5958, 2).
fn private_key_info(
    der: &[u8],
) -> Result<(AlgorithmIdentifierRef<'_>, AnyRef<'_>), spki::der::Error> {
    let mut reader = SliceReader::new(der)?;
    let read = reader.sequence(|fields| {
        let _version: u8 = fields.decode()?;
        let algorithm = fields.decode()?;
        let secret: AnyRef<'_> = fields.decode()?;
        secret.tag().assert_eq(Tag::OctetString)?;
        // Attributes, and the public half.
        while !fields.is_finished() {
            let _: AnyRef<'_> = fields.decode()?;
        }
        Ok::<_, spki::der::Error>((algorithm, secret))
    })?;
    reader.finish()?;
    Ok(read)
}

fn ecdsa(der: &[u8], curve: Option<AnyRef<'_>>) -> Result<EcdsaKeyPair, SigningKeyError> {
    let curve = curve.and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    let algorithm: &EcdsaSigningAlgorithm = match curve {
        Some(P256) => &aws::ECDSA_P256_SHA256_ASN1_SIGNING,
        Some(P384) => &aws::ECDSA_P384_SHA384_ASN1_SIGNING,
        Some(P521) => &aws::ECDSA_P521_SHA512_ASN1_SIGNING,
        Some(other) => return Err(SigningKeyError::Public(KeyError::Curve(other.to_string()))),
        None => return Err(SigningKeyError::Public(KeyError::NoCurve)),
    };
    EcdsaKeyPair::from_pkcs8(algorithm, der).map_err(|_| SigningKeyError::Rejected)
}

/// RFC 8410, 7: an octet string within the octet string.
fn ed25519(secret: AnyRef<'_>) -> Option<ed25519_dalek::SigningKey> {
    let inner = AnyRef::try_from(secret.value()).ok()?;
    inner.tag().assert_eq(Tag::OctetString).ok()?;
    Some(ed25519_dalek::SigningKey::from_bytes(inner.value().try_into().ok()?))
}

fn x509<'a, K: AsDer<PublicKeyX509Der<'a>>>(key: &K) -> Result<Vec<u8>, SigningKeyError> {
    key.as_der().map(|der| der.as_ref().to_vec()).map_err(|_| SigningKeyError::Rejected)
}

/// Why a text is no key that signs. Nothing of the text is repeated but the label of its block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// More bytes than any key has.
    #[error("the text has {0} bytes, {MAX_PEM} are allowed for a private key")]
    Long(usize),
    /// There is no PEM block.
    #[error("no PEM block: \"-----BEGIN PRIVATE KEY-----\" and its end are expected")]
    NoPem,
    /// There is more than one block.
    #[error("there is more than one PEM block; one private key is expected, alone")]
    Several,
    /// A key behind a passphrase.
    #[error(
        "the private key is encrypted, and no passphrase is asked for here; `openssl pkey -in KEY \
         -out PLAIN` decrypts it, into a file that nobody else may read and that is removed \
         afterwards"
    )]
    Encrypted,
    /// cosign's own form.
    #[error(
        "cosign encrypted this private key in a form of its own; push the payload to a registry \
         and sign it there with `cosign sign --key`, or make a key with `openssl genpkey \
         -algorithm ed25519`"
    )]
    Cosign,
    /// SEC 1 or PKCS#1.
    #[error(
        "a PEM block \"{0}\" is not read; `openssl pkcs8 -topk8 -nocrypt -in KEY -out PLAIN` \
         writes the key as \"PRIVATE KEY\""
    )]
    Traditional(String),
    /// Another kind of PEM block.
    #[error("a PEM block \"{0}\" is no private key; \"PRIVATE KEY\" is expected")]
    Label(String),
    /// Not PKCS#8.
    #[error("the PEM block holds no private key in PKCS#8 (RFC 5958)")]
    Encoding,
    /// A key of another algorithm.
    #[error("keys of algorithm {0} do not sign bundles; ECDSA, RSA and Ed25519 do")]
    Algorithm(String),
    /// A key that its library does not take.
    #[error(
        "the key's value is not one that a private key of its kind can have; RSA has 2048 to 8192 \
         bits"
    )]
    Rejected,
    /// A key whose public half nobody would pin.
    #[error(transparent)]
    Public(KeyError),
}
