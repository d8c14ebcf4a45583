//! Keys made on the fly, for tests.

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self as aws, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Sha512, Signer, SigningKey};
use sha2::Digest;

use super::PublicKey;

/// DER as a PEM block.
pub(crate) fn armor(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A key pair of any kind that Portcullis verifies.
pub(crate) enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ed25519(SigningKey),
    Ed25519ph(SigningKey),
}

impl Pair {
    pub(crate) fn p256() -> Self {
        Self::ecdsa(&aws::ECDSA_P256_SHA256_ASN1_SIGNING)
    }

    pub(crate) fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    pub(crate) fn rsa(encoding: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), encoding)
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        match self {
            Pair::Ecdsa(pair) => {
                AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap().as_ref().to_vec()
            }
            Pair::Rsa(pair, _) => {
                AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap().as_ref().to_vec()
            }
            Pair::Ed25519(key) | Pair::Ed25519ph(key) => {
                [ED25519_HEAD, key.verifying_key().as_bytes()].concat()
            }
        }
    }

    pub(crate) fn pem(&self) -> String {
        armor("PUBLIC KEY", &self.der())
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey::from_pem(&self.pem()).unwrap()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Pair::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
            Pair::Ed25519ph(key) => key
                .sign_prehashed(Sha512::new_with_prefix(message), None)
                .unwrap()
                .to_bytes()
                .to_vec(),
        }
    }
}

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
pub(crate) const ED25519_HEAD: &[u8] =
    &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
