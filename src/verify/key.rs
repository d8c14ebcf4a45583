//! Public keys and the signature schemes that go with each.
//!
//! | key | schemes | made by |
//! | --- | --- | --- |
//! | ECDSA P-256 | SHA-256 | cosign |
//! | ECDSA P-384 | SHA-384, SHA-256 | cosign 3, cosign 2 |
//! | ECDSA P-521 | SHA-512, SHA-256 | cosign 3, cosign 2 |
//! | RSA 2048 to 8192 | PKCS#1 v1.5 and PSS with SHA-256, SHA-384, SHA-512 | cosign (PKCS#1, SHA-256), KMS, openssl |
//! | Ed25519 | Ed25519, Ed25519ph (RFC 8032) | cosign 2, cosign 3 |
//!
//! A key alone says which schemes are tried; nothing in the evidence does. No scheme of a key
//! accepts a weaker hash than SHA-256, and none can be made to accept what another one signed:
//! PKCS#1 and PSS paddings are disjoint, and Ed25519ph is separated from Ed25519 by the prefix
//! of RFC 8032, 5.1.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{
    self as aws, EcdsaVerificationAlgorithm, ParsedPublicKey, RsaParameters,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Sha512, VerifyingKey};
use sha2::Digest as _;
use spki::{
    ObjectIdentifier, SubjectPublicKeyInfoRef,
    der::{
        Encode, Reader, SliceReader,
        asn1::{AnyRef, UintRef},
    },
};

use crate::image::{Digest, shorten};

use super::oid::{EC, ED25519, P256, P384, P521, RSA};

/// Longest PEM text that is read, in bytes: an RSA key of 8192 bits has 1.5 KiB.
pub(crate) const MAX_PEM: usize = 16 << 10;
/// RSA moduli that are accepted, in bits. Smaller ones can be factored; larger ones only cost
/// time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Smallest RSA exponent (FIPS 186-5, A.1.1).
const RSA_EXPONENT: u64 = 65537;

static ECDSA_P256: [&EcdsaVerificationAlgorithm; 1] = [&aws::ECDSA_P256_SHA256_ASN1];
static ECDSA_P384: [&EcdsaVerificationAlgorithm; 2] =
    [&aws::ECDSA_P384_SHA384_ASN1, &aws::ECDSA_P384_SHA256_ASN1];
static ECDSA_P521: [&EcdsaVerificationAlgorithm; 2] =
    [&aws::ECDSA_P521_SHA512_ASN1, &aws::ECDSA_P521_SHA256_ASN1];

/// PSS with a salt as long as the hash, as openssl and KMS make it, and with the longest salt
/// that fits, as Go makes it. Any salt length is as good as another to a verifier.
static RSA_SCHEMES: [&RsaParameters; 9] = [
    &aws::RSA_PKCS1_2048_8192_SHA256,
    &aws::RSA_PKCS1_2048_8192_SHA384,
    &aws::RSA_PKCS1_2048_8192_SHA512,
    &aws::RSA_PSS_2048_8192_SHA256,
    &aws::RSA_PSS_2048_8192_SHA384,
    &aws::RSA_PSS_2048_8192_SHA512,
    &aws::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(aws::RsaPssSaltLength::Max),
    &aws::RSA_PSS_2048_8192_SHA384.with_pss_salt_length(aws::RsaPssSaltLength::Max),
    &aws::RSA_PSS_2048_8192_SHA512.with_pss_salt_length(aws::RsaPssSaltLength::Max),
];

/// Identifies a public key: SHA-256 over its SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7).
///
/// Two texts of one key have one identifier: encodings that DER, RFC 3279, RFC 5480 and RFC 8410
/// leave open are refused, so that nobody reaches `atLeast: 2` with one key written twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    /// Reads `sha256:` and 64 lower-case hexadecimal characters, as it is shown.
    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        text.parse().map(Self).map_err(|_| KeyIdError(shorten(text)))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text identifies no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no key: \"sha256:\" and 64 lower-case hexadecimal characters are expected, the \
     SHA-256 of its SubjectPublicKeyInfo, as \"portcullis verify\" shows it"
)]
pub struct KeyIdError(String);

/// A public key of a kind and size that Portcullis accepts.
#[derive(Clone)]
pub struct PublicKey {
    id: KeyId,
    schemes: Schemes,
}

#[derive(Clone)]
enum Schemes {
    /// The key, parsed once for each of its schemes; the likely ones first. Never empty.
    AwsLc(Vec<ParsedPublicKey>),
    /// Ed25519 and Ed25519ph. aws-lc has no Ed25519ph, and one library must judge one key.
    Ed25519(VerifyingKey),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

/// A signature is not by a key over these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not by this key over these bytes")]
pub struct BadSignature;

impl PublicKey {
    /// Reads the one PEM block `PUBLIC KEY` (RFC 7468, 13) of a text.
    ///
    /// White space around the block and other line lengths are accepted, anything else besides
    /// the block is not: a second key would be one that nobody asks about.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Self::from_der(&unarmor(pem)?)
    }

    /// Reads a SubjectPublicKeyInfo (RFC 5280, 4.1).
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| KeyError::Encoding)?;
        // The parser takes DER only; that one key has one identifier does not hang on it alone.
        if info.to_der().ok().as_deref() != Some(der) {
            return Err(KeyError::Encoding);
        }
        let key = info.subject_public_key.as_bytes().ok_or(KeyError::Encoding)?;
        let parameters = info.algorithm.parameters;
        let schemes = match info.algorithm.oid {
            EC => ecdsa(key, parameters)?,
            RSA => rsa(key, parameters)?,
            ED25519 => ed25519(key, parameters)?,
            other => return Err(KeyError::Algorithm(other.to_string())),
        };
        Ok(Self { id: KeyId(Digest::of(der)), schemes })
    }

    /// Identifies the key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Checks a signature over a message by each scheme of the key. ECDSA signatures are ASN.1
    /// in DER; the others are what their standard says.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let holds = match &self.schemes {
            Schemes::AwsLc(keys) => {
                keys.iter().any(|key| key.verify_sig(message, signature).is_ok())
            }
            Schemes::Ed25519(key) => {
                let signature = ed25519_dalek::Signature::from_slice(signature);
                let signature = signature.map_err(|_| BadSignature)?;
                key.verify_strict(message, &signature).is_ok() || {
                    let hash = Sha512::new_with_prefix(message);
                    key.verify_prehashed_strict(hash, None, &signature).is_ok()
                }
            }
        };
        if holds { Ok(()) } else { Err(BadSignature) }
    }
}

/// The content of the PEM block.
fn unarmor(pem: &str) -> Result<Vec<u8>, KeyError> {
    if pem.len() > MAX_PEM {
        return Err(KeyError::Long(pem.len()));
    }
    let block = pem.trim_ascii().strip_prefix("-----BEGIN ").ok_or(KeyError::NoPem)?;
    let (label, rest) = block.split_once("-----").ok_or(KeyError::NoPem)?;
    match label {
        "PUBLIC KEY" => {}
        "RSA PUBLIC KEY" => return Err(KeyError::Pkcs1),
        "CERTIFICATE" => return Err(KeyError::Certificate),
        private if private.ends_with("PRIVATE KEY") => return Err(KeyError::Private),
        other => return Err(KeyError::Label(shorten(other))),
    }
    let (body, behind) = rest.split_once("-----END PUBLIC KEY-----").ok_or(KeyError::NoPem)?;
    if !behind.is_empty() {
        return Err(KeyError::Trailing);
    }
    let base64: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(base64).map_err(|_| KeyError::Base64)
}

/// RFC 5480, 2: a named curve and an uncompressed point.
fn ecdsa(key: &[u8], parameters: Option<AnyRef<'_>>) -> Result<Schemes, KeyError> {
    let curve = parameters.and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    let (algorithms, coordinate): (&'static [_], _) = match curve {
        Some(P256) => (&ECDSA_P256, 32),
        Some(P384) => (&ECDSA_P384, 48),
        Some(P521) => (&ECDSA_P521, 66),
        Some(other) => return Err(KeyError::Curve(other.to_string())),
        None => return Err(KeyError::NoCurve),
    };
    if key.first() != Some(&4) || key.len() != 1 + 2 * coordinate {
        return Err(KeyError::Compressed);
    }
    let keys = algorithms.iter().map(|algorithm| ParsedPublicKey::new(*algorithm, key));
    keys.collect::<Result<_, _>>().map(Schemes::AwsLc).map_err(|_| KeyError::Value)
}

/// RFC 3279, 2.3.1: the parameters are NULL.
fn rsa(key: &[u8], parameters: Option<AnyRef<'_>>) -> Result<Schemes, KeyError> {
    if parameters != Some(AnyRef::NULL) {
        return Err(KeyError::Encoding);
    }
    let (modulus, exponent) = modulus_and_exponent(key).map_err(|_| KeyError::Encoding)?;
    let zeros = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = modulus.len() * 8 - zeros;
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::RsaBits(bits));
    }
    let exponent = match exponent.len() {
        0..=8 => exponent.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        _ => return Err(KeyError::Value),
    };
    if exponent < RSA_EXPONENT || exponent % 2 == 0 {
        return Err(KeyError::RsaExponent(exponent));
    }
    let keys = RSA_SCHEMES.iter().map(|scheme| ParsedPublicKey::new(*scheme, key));
    keys.collect::<Result<_, _>>().map(Schemes::AwsLc).map_err(|_| KeyError::Value)
}

/// `RSAPublicKey` of RFC 8017, A.1.1.
fn modulus_and_exponent(key: &[u8]) -> Result<(&[u8], &[u8]), spki::der::Error> {
    let mut reader = SliceReader::new(key)?;
    let numbers = reader.sequence(|numbers| {
        let modulus: UintRef<'_> = numbers.decode()?;
        let exponent: UintRef<'_> = numbers.decode()?;
        Ok::<_, spki::der::Error>((modulus.as_bytes(), exponent.as_bytes()))
    })?;
    reader.finish()?;
    Ok(numbers)
}

/// RFC 8410, 3 and 4: no parameters, 32 bytes. A point of small order "signs" everything, and
/// one written in two ways would have two identifiers.
fn ed25519(key: &[u8], parameters: Option<AnyRef<'_>>) -> Result<Schemes, KeyError> {
    if parameters.is_some() {
        return Err(KeyError::Encoding);
    }
    let bytes: &[u8; 32] = key.try_into().map_err(|_| KeyError::Value)?;
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Value)?;
    if key.is_weak() || key.to_edwards().compress().as_bytes() != bytes {
        return Err(KeyError::Value);
    }
    Ok(Schemes::Ed25519(key))
}

/// Why a text is not a usable public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// More bytes than any key has.
    #[error("the text has {0} bytes, {MAX_PEM} are allowed for a public key")]
    Long(usize),
    /// There is no PEM block.
    #[error("no PEM block: \"-----BEGIN PUBLIC KEY-----\" and its end are expected")]
    NoPem,
    /// There is more than one block, or text behind it.
    #[error("there is more behind the first PEM block; one key is expected, alone")]
    Trailing,
    /// A certificate.
    #[error(
        "a certificate is no public key; `openssl x509 -pubkey -noout` prints the key that it is \
         for"
    )]
    Certificate,
    /// A private key. Nothing of it is kept or printed.
    #[error(
        "this is a private key, which must not be in a policy; `openssl pkey -pubout` or `cosign \
         public-key` prints its public half"
    )]
    Private,
    /// An RSA key without the algorithm around it.
    #[error(
        "PKCS#1 (\"RSA PUBLIC KEY\") is not read; `openssl rsa -RSAPublicKey_in -pubout` prints \
         the key as \"PUBLIC KEY\""
    )]
    Pkcs1,
    /// Another kind of PEM block.
    #[error("a PEM block \"{0}\" is no public key; \"PUBLIC KEY\" is expected")]
    Label(String),
    /// The block is no base64.
    #[error("the PEM block is no base64")]
    Base64,
    /// Not a SubjectPublicKeyInfo in its one DER encoding.
    #[error("the PEM block holds no public key in DER (SubjectPublicKeyInfo of RFC 5280)")]
    Encoding,
    /// A key of another algorithm.
    #[error("keys of algorithm {0} are not supported; ECDSA, RSA and Ed25519 are")]
    Algorithm(String),
    /// Another curve.
    #[error("the curve {0} is not supported; P-256, P-384 and P-521 are")]
    Curve(String),
    /// A curve that is described and not named.
    #[error("the curve is not given by its name; P-256, P-384 and P-521 are supported")]
    NoCurve,
    /// A compressed point, or none.
    #[error(
        "the point is not written in full; `openssl ec -pubin -pubout -conv_form uncompressed` \
         does so"
    )]
    Compressed,
    /// An RSA key that is too short or too long.
    #[error(
        "an RSA key of {0} bits is not supported; {min} to {max} are",
        min = RSA_BITS.start(), max = RSA_BITS.end()
    )]
    RsaBits(usize),
    /// An RSA key with a bad exponent.
    #[error(
        "an RSA key with exponent {0} is not supported; odd numbers from {RSA_EXPONENT} on are"
    )]
    RsaExponent(u64),
    /// A key that no key pair has.
    #[error("the key's value is not one that a key of its kind can have")]
    Value,
}

#[cfg(test)]
mod tests;
