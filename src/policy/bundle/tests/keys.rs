//! Keys as `openssl genpkey` writes them, and those that are not read.

use super::*;

/// The fixtures of this name.
macro_rules! pair {
    ($name:literal) => {
        (
            include_str!(concat!("../../../../tests/fixtures/keys/", $name, ".key")),
            include_str!(concat!("../../../../tests/fixtures/keys/", $name, ".pub")),
        )
    };
}

const PAIRS: [(&str, &str); 6] = [
    pair!("ecdsa-p256"),
    pair!("ecdsa-p384"),
    pair!("ecdsa-p521"),
    pair!("rsa-2048"),
    pair!("rsa-4096"),
    pair!("ed25519"),
];
pub(super) const ED25519: &str = PAIRS[5].0;

#[test]
fn every_kind_of_key_signs_what_its_public_half_opens() {
    let bytes = payload().write().unwrap();
    for (private, public) in PAIRS {
        let (key, public) =
            (SigningKey::from_pem(private).unwrap(), PublicKey::from_pem(public).unwrap());
        assert_eq!(key.public().id(), public.id());
        let signed = sign(&bytes, &key).unwrap();
        assert_eq!((signed.key, signed.added, signed.signatures), (public.id(), true, 1));
        let offer = Sealed::parse(signed.bytes).unwrap().open(std::slice::from_ref(&public));
        assert_eq!(offer.unwrap().sealed.unwrap().signers(), [public.id()]);
        assert_eq!(format!("{key:?}"), format!("SigningKey(of {})", public.id()));
    }
}

#[test]
fn a_second_signature_leaves_the_first_and_the_payload_as_they_are() {
    let bytes = payload().write().unwrap();
    let [old, new] = [PAIRS[0], PAIRS[5]].map(|(key, _)| SigningKey::from_pem(key).unwrap());
    let first = sign(&bytes, &old).unwrap();
    let both = sign(&first.bytes, &new).unwrap();
    assert_eq!((both.added, both.signatures), (true, 2));
    let sealed = Sealed::parse(both.bytes.clone()).unwrap();
    for key in [&old, &new] {
        assert_eq!(sealed.open(&[key.public().clone()]).unwrap().texts, payload().texts);
    }
    // ECDSA signs otherwise each time; a key that has signed does not sign again.
    let again = sign(&both.bytes, &old).unwrap();
    assert_eq!((again.added, again.signatures, again.bytes), (false, 2, both.bytes));
}

#[test]
fn what_is_no_bundle_is_not_signed() {
    let key = SigningKey::from_pem(ED25519).unwrap();
    let wrong = |document: &[u8]| sign(document, &key).unwrap_err().to_string();
    assert!(wrong(b"").starts_with("has a payload that is no PolicyBundle: EOF"));
    assert!(wrong(br#"{"kind":"x"}"#).starts_with("has a payload that is no PolicyBundle"));
    let other = json!({"payload": "", "payloadType": "x", "signatures": [{"sig": ""}]});
    assert!(wrong(other.to_string().as_bytes()).starts_with("is a signed document of type \"x\""));
    let empty = json!({"payload": "", "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": ""}]});
    assert!(wrong(empty.to_string().as_bytes()).starts_with("has a payload that is no"));
    let bytes = payload().write().unwrap();
    let mut full = envelope(&bytes, PAYLOAD_TYPE, &[&Pair::p256()]);
    full["signatures"] = json!(vec![full["signatures"][0].clone(); 8]);
    let why = "is no signed bundle of policies (a DSSE envelope in JSON): it carries 8 signatures, \
               which is the limit";
    assert_eq!(wrong(full.to_string().as_bytes()), why);
}

#[test]
fn what_is_no_key_is_told_without_a_word_of_it() {
    let block = |label: &str| format!("-----BEGIN {label}-----\nc2VjcmV0\n-----END {label}-----\n");
    let wrong = |pem: &str| SigningKey::from_pem(pem).unwrap_err();
    let encrypted = "the private key is encrypted, and no passphrase is asked for here; `openssl \
                     pkey -in KEY -out PLAIN` decrypts it, into a file that nobody else may read \
                     and that is removed afterwards";
    assert_eq!(wrong(&block("ENCRYPTED PRIVATE KEY")).to_string(), encrypted);
    let proc = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
    assert_eq!(wrong(proc), SigningKeyError::Encrypted);
    assert_eq!(wrong(&block("ENCRYPTED SIGSTORE PRIVATE KEY")), SigningKeyError::Cosign);
    for label in ["EC PRIVATE KEY", "RSA PRIVATE KEY"] {
        assert_eq!(wrong(&block(label)), SigningKeyError::Traditional(label.into()));
    }
    assert_eq!(wrong(PAIRS[0].1), SigningKeyError::Label("PUBLIC KEY".into()));
    assert_eq!(wrong(&(ED25519.to_owned() + ED25519)), SigningKeyError::Several);
    assert_eq!(wrong(""), SigningKeyError::NoPem);
    assert_eq!(wrong("-----BEGIN PRIVATE KEY-----\nc2VjcmV0"), SigningKeyError::NoPem);
    assert_eq!(wrong(&block("PRIVATE KEY")), SigningKeyError::Encoding);
    assert_eq!(wrong(&" ".repeat((16 << 10) + 1)), SigningKeyError::Long((16 << 10) + 1));
    for (private, _) in PAIRS {
        // Every byte of it counts, or is told to be wrong: there is no panic in between.
        let end = private.find("\n-----END").unwrap();
        for at in (30..end).step_by(7) {
            let cut = private[..at].to_owned() + "\n-----END PRIVATE KEY-----";
            let error = SigningKey::from_pem(&cut).unwrap_err();
            assert!(!error.to_string().contains(&private[30..40]), "{error}");
        }
    }
}
