//! Keys of every kind, and what is none.

use aws_lc_rs::signature::RsaEncoding;
use ed25519_dalek::SigningKey;

use super::{
    super::testing::{ED25519_HEAD, Pair, armor},
    *,
};

/// Every so many bits of a signature one is flipped: coprime to the fields' lengths.
const STEP: usize = 17;

#[track_caller]
fn refuses(pem: &str, why: &str) {
    assert_eq!(PublicKey::from_pem(pem).unwrap_err().to_string(), why);
}

fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let bits = tlv(3, &[&[0], key].concat());
    tlv(0x30, &[&tlv(0x30, algorithm), &*bits].concat())
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
    let head = match value.len() {
        0..128 => vec![tag, low],
        128..256 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&head, value].concat()
}

const RSA_OID: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

fn rsa_pem(modulus: &[u8], exponent: &[u8]) -> String {
    let key = tlv(0x30, &[tlv(2, modulus), tlv(2, exponent)].concat());
    armor("PUBLIC KEY", &spki(&[RSA_OID, &[5, 0]].concat(), &key))
}

#[test]
fn every_scheme_is_verified_and_nothing_else() {
    let seed = SigningKey::from_bytes(&[7; 32]);
    let pairs = [
        Pair::p256(),
        Pair::ecdsa(&aws::ECDSA_P384_SHA384_ASN1_SIGNING),
        Pair::ecdsa(&aws::ECDSA_P521_SHA512_ASN1_SIGNING),
        Pair::Ed25519(seed.clone()),
        Pair::Ed25519ph(seed),
    ];
    for pair in pairs {
        let (key, signature) = (pair.public(), pair.sign(b"message"));
        assert_eq!(key.verify(b"message", &signature), Ok(()));
        assert_eq!(key.verify(b"messagf", &signature), Err(BadSignature));
        assert_eq!(key.verify(b"", &signature), Err(BadSignature));
        assert_eq!(Pair::p256().public().verify(b"message", &signature), Err(BadSignature));
        for bit in (0..signature.len() * 8).step_by(STEP) {
            let mut flipped = signature.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verify(b"message", &flipped), Err(BadSignature), "bit {bit}");
        }
        for length in (0..signature.len()).step_by(STEP) {
            assert_eq!(key.verify(b"message", &signature[..length]), Err(BadSignature));
        }
        let longer = [&*signature, &[0]].concat();
        assert_eq!(key.verify(b"message", &longer), Err(BadSignature));
    }
}

#[test]
fn every_rsa_scheme_is_verified_by_one_key() {
    static LONG_SALT: aws::RsaSignatureEncoding =
        aws::RSA_PSS_SHA256.with_pss_salt_length(aws::RsaPssSaltLength::Max);
    let Pair::Rsa(mut pair, _) = Pair::rsa(&aws::RSA_PKCS1_SHA256) else { unreachable!() };
    let encodings: [&'static dyn RsaEncoding; 7] = [
        &aws::RSA_PKCS1_SHA256,
        &aws::RSA_PKCS1_SHA384,
        &aws::RSA_PKCS1_SHA512,
        &aws::RSA_PSS_SHA256,
        &aws::RSA_PSS_SHA384,
        &aws::RSA_PSS_SHA512,
        &LONG_SALT,
    ];
    for encoding in encodings {
        let one = Pair::Rsa(pair, encoding);
        let (key, mut signature) = (one.public(), one.sign(b"message"));
        assert_eq!(key.verify(b"message", &signature), Ok(()), "{encoding:?}");
        assert_eq!(key.verify(b"messagf", &signature), Err(BadSignature));
        signature[100] ^= 1;
        assert_eq!(key.verify(b"message", &signature), Err(BadSignature));
        let Pair::Rsa(again, _) = one else { unreachable!() };
        pair = again;
    }
}

#[test]
fn an_all_zero_or_empty_signature_is_bad() {
    for pair in [Pair::p256(), Pair::Ed25519(SigningKey::from_bytes(&[9; 32]))] {
        for length in [0, 8, 64, 72, 256] {
            assert_eq!(pair.public().verify(b"", &vec![0; length]), Err(BadSignature));
        }
        // ECDSA with r = s = 0 (CVE-2022-21449).
        assert_eq!(pair.public().verify(b"", &[0x30, 6, 2, 1, 0, 2, 1, 0]), Err(BadSignature));
    }
}

#[test]
fn the_id_is_that_of_the_der_however_the_text_is_wrapped() {
    let pair = Pair::p256();
    let id = format!("{}", Digest::of(&pair.der()));
    let pem = pair.pem();
    for text in
        [pem.clone(), pem.replace('\n', "\r\n"), pem.replace('\n', " "), format!("\n\n  {pem}\n\n")]
    {
        assert_eq!(PublicKey::from_pem(&text).unwrap().id().to_string(), id);
    }
    assert_eq!(format!("{:?}", pair.public()), format!("PublicKey({id})"));
}

#[test]
fn what_is_no_public_key_is_refused_with_the_remedy() {
    let (pair, pem) = (Pair::p256(), Pair::p256().pem());
    let no_pem = "no PEM block: \"-----BEGIN PUBLIC KEY-----\" and its end are expected";
    refuses("", no_pem);
    refuses("key.pub", no_pem);
    refuses(&pem.replace("-----END", ""), no_pem);
    let trailing = "there is more behind the first PEM block; one key is expected, alone";
    refuses(&format!("{pem}{pem}"), trailing);
    refuses(&format!("{pem}x"), trailing);
    refuses(
        &armor("CERTIFICATE", b"x"),
        "a certificate is no public key; `openssl x509 -pubkey -noout` prints the key that it \
         is for",
    );
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED SIGSTORE PRIVATE KEY"] {
        refuses(
            &armor(label, b"x"),
            "this is a private key, which must not be in a policy; `openssl pkey -pubout` or \
             `cosign public-key` prints its public half",
        );
    }
    refuses(
        &armor("RSA PUBLIC KEY", b"x"),
        "PKCS#1 (\"RSA PUBLIC KEY\") is not read; `openssl rsa -RSAPublicKey_in -pubout` \
         prints the key as \"PUBLIC KEY\"",
    );
    refuses(
        &armor("PGP PUBLIC KEY BLOCK", b"x"),
        "a PEM block \"PGP PUBLIC KEY BLOCK\" is no public key; \"PUBLIC KEY\" is expected",
    );
    refuses(&pem.replace("MF", "M*"), "the PEM block is no base64");
    refuses(&"x".repeat(20_000), "the text has 20000 bytes, 16384 are allowed for a public key");
    let der = pair.der();
    for bad in [&[][..], &der[1..], &der[..der.len() - 1], &[&*der, &[0]].concat()] {
        refuses(
            &armor("PUBLIC KEY", bad),
            "the PEM block holds no public key in DER (SubjectPublicKeyInfo of RFC 5280)",
        );
    }
}

#[test]
fn one_key_cannot_be_written_in_two_ways() {
    let encoding = "the PEM block holds no public key in DER (SubjectPublicKeyInfo of RFC 5280)";
    let ec: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let p256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let der = Pair::p256().der();
    let point = &der[der.len() - 65..];
    assert_eq!(spki(&[ec, p256].concat(), point), der);

    // A length in two bytes where one will do.
    let long = [&[0x30, 0x81, 0x59], &der[2..]].concat();
    refuses(&armor("PUBLIC KEY", &long), encoding);
    // The same point, compressed and in the hybrid form.
    let compressed = [&[2 + (point[64] & 1)], &point[1..33]].concat();
    let hybrid = [&[6 + (point[64] & 1)], &point[1..]].concat();
    for form in [&compressed, &hybrid] {
        refuses(
            &armor("PUBLIC KEY", &spki(&[ec, p256].concat(), form)),
            "the point is not written in full; `openssl ec -pubin -pubout -conv_form \
             uncompressed` does so",
        );
    }
    refuses(
        &armor("PUBLIC KEY", &spki(ec, point)),
        "the curve is not given by its name; P-256, P-384 and P-521 are supported",
    );
    // Unused bits in the bit string.
    let mut unused = der.clone();
    unused[der.len() - 66] = 1;
    unused[der.len() - 1] &= 0xfe;
    refuses(&armor("PUBLIC KEY", &unused), encoding);

    let modulus = [&[0, 0xc1], &[0x55; 254][..], &[0x57]].concat();
    assert!(PublicKey::from_pem(&rsa_pem(&modulus, &[1, 0, 1])).is_ok());
    refuses(&rsa_pem(&modulus, &[0, 1, 0, 1]), encoding);
    refuses(&rsa_pem(&[&[0], &*modulus].concat(), &[1, 0, 1]), encoding);
    let key = tlv(0x30, &[tlv(2, &modulus), tlv(2, &[1, 0, 1])].concat());
    refuses(&armor("PUBLIC KEY", &spki(RSA_OID, &key)), encoding);
    let longer = [&*key, &[5, 0]].concat();
    refuses(&armor("PUBLIC KEY", &spki(&[RSA_OID, &[5, 0]].concat(), &longer)), encoding);

    let ed25519 = Pair::Ed25519(SigningKey::from_bytes(&[7; 32])).der();
    let with_null = spki(&[6, 3, 0x2b, 0x65, 0x70, 5, 0], &ed25519[12..]);
    refuses(&armor("PUBLIC KEY", &with_null), encoding);
}

#[test]
fn weak_and_unknown_keys_are_refused() {
    let ec: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    refuses(
        &armor("PUBLIC KEY", &spki(&[ec, &[6, 5, 0x2b, 0x81, 4, 0, 10]].concat(), &[4; 65])),
        "the curve 1.3.132.0.10 is not supported; P-256, P-384 and P-521 are",
    );
    refuses(
        &armor("PUBLIC KEY", &spki(&[6, 3, 0x2b, 0x65, 0x71], &[1; 57])),
        "keys of algorithm 1.3.101.113 are not supported; ECDSA, RSA and Ed25519 are",
    );
    for (bytes, bits) in [(128, 1024), (255, 2040), (1025, 8200)] {
        let modulus = [&[0], &*vec![0xff; bytes]].concat();
        refuses(
            &rsa_pem(&modulus, &[1, 0, 1]),
            &format!("an RSA key of {bits} bits is not supported; 2048 to 8192 are"),
        );
    }
    let modulus = [&[0], &[0xff; 256][..]].concat();
    for (exponent, number) in [(&[3][..], 3), (&[1], 1), (&[0], 0), (&[1, 0, 2], 65538)] {
        refuses(
            &rsa_pem(&modulus, exponent),
            &format!(
                "an RSA key with exponent {number} is not supported; odd numbers from 65537 \
                 on are"
            ),
        );
    }
    let value = "the key's value is not one that a key of its kind can have";
    refuses(&rsa_pem(&modulus, &[1; 9]), value);
    refuses(&rsa_pem(&[&[0], &[0xfe; 256][..]].concat(), &[1, 0, 1]), value);
    // Not on the curve.
    let mut der = Pair::p256().der();
    *der.last_mut().unwrap() ^= 1;
    refuses(&armor("PUBLIC KEY", &der), value);
    // Of small order; then every y that can also be written as y + p.
    let mut one = [0; 32];
    one[0] = 1;
    let twice = (0..19).map(|y| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xed + y, 0x7f);
        bytes
    });
    for point in [[0; 32], one].into_iter().chain(twice) {
        refuses(&armor("PUBLIC KEY", &[ED25519_HEAD, &point].concat()), value);
    }
}
