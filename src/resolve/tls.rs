//! Whom a registry host must prove to be, and who we are to it.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};

use super::{
    hosts::{cannot_read, read_bounded},
    hosts_file::TlsFiles,
};

/// The authorities that the system trusts, loaded when the first certificate is checked: a node
/// whose registries all speak plain HTTP never needs them.
#[derive(Clone, Debug, Default)]
pub(super) struct SystemRoots(Arc<OnceLock<RootCertStore>>);

impl SystemRoots {
    /// No authorities, in place of those of the system.
    pub(super) fn none() -> Self {
        Self(Arc::new(RootCertStore::empty().into()))
    }

    fn load(&self) -> &RootCertStore {
        self.0.get_or_init(|| {
            let mut store = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            for error in found.errors {
                tracing::warn!(%error, "a system CA certificate cannot be read");
            }
            store
        })
    }
}

/// The contents of the TLS files of a host.
pub(super) struct TlsMaterial {
    roots: Vec<CertificateDer<'static>>,
    identities: Vec<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    skip_verify: bool,
    fingerprint: [u8; 32],
}

impl TlsMaterial {
    /// Reads the files. One that is missing or holds nothing of use is an error, as for
    /// containerd.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, String> {
        let mut hash = Sha256::new();
        let mut read = |kind: u8, path: &Path| {
            let bytes = read_bounded(path).map_err(|e| cannot_read(path, &e))?;
            hash.update([kind]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(&bytes);
            Ok::<_, String>(bytes)
        };
        let mut roots = Vec::new();
        for path in &files.ca {
            let found = certificates(&read(0, path)?);
            if found.is_empty() {
                return Err(format!("{} holds no certificate in PEM form", path.display()));
            }
            roots.extend(found);
        }
        let mut identities = Vec::new();
        for (path, key) in &files.client {
            let mut bytes = read(1, path)?;
            let chain = certificates(&bytes);
            if chain.is_empty() {
                return Err(format!("{} holds no certificate in PEM form", path.display()));
            }
            if let Some(key) = key {
                bytes = read(2, key)?;
            }
            let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
                let path = key.as_ref().unwrap_or(path);
                format!("{} holds no private key in PEM form", path.display())
            })?;
            identities.push((chain, key));
        }
        let skip_verify = files.skip_verify == Some(true);
        hash.update([3, u8::from(skip_verify)]);
        Ok(Self { roots, identities, skip_verify, fingerprint: hash.finalize().into() })
    }

    /// The same for the same settings.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// What a client needs to speak TLS with these settings.
    pub(super) fn config(self, system: &SystemRoots) -> Result<ClientConfig, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut keys = Vec::new();
        for (chain, key) in self.identities {
            let key = CertifiedKey::from_der(chain, key, &provider)
                .map_err(|e| format!("a client certificate cannot be used: {e}"))?;
            keys.push(Arc::new(key));
        }
        let verifier = Verifier {
            provider: provider.clone(),
            system: system.clone(),
            roots: self.roots,
            skip: self.skip_verify,
            inner: OnceLock::new(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Identities(keys)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

/// Trusts the system's authorities and those of `ca`, and a server whose very certificate `ca`
/// holds: many private registries have one that they signed themselves, and containerd accepts
/// it.
struct Verifier {
    provider: Arc<CryptoProvider>,
    system: SystemRoots,
    roots: Vec<CertificateDer<'static>>,
    skip: bool,
    inner: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("roots", &self.roots.len())
            .field("skip", &self.skip)
            .finish()
    }
}

impl Verifier {
    /// Absent where there is no authority at all: then nothing verifies.
    fn inner(&self) -> Option<&WebPkiServerVerifier> {
        let make = || {
            let mut store = self.system.load().clone();
            store.add_parsable_certificates(self.roots.iter().cloned());
            WebPkiServerVerifier::builder_with_provider(store.into(), self.provider.clone())
                .build()
                .ok()
        };
        self.inner.get_or_init(make).as_deref()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.skip {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let inner = self.inner().ok_or(unknown)?;
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Reported only once the period of validity was found good.
            Err(error)
                if is_ca_as_end_entity(&error) && self.roots.iter().any(|r| r == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// rustls has no variant of its own for this error of webpki. Should its name ever change, such
/// servers are refused, and the test of them fails.
pub(super) fn is_ca_as_end_entity(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Other(other))
        if other.to_string() == "CaUsedAsEndEntity")
}

/// The client certificates: the first one whose issuer the server accepts.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable = || self.0.iter().filter(|key| key.key.choose_scheme(schemes).is_some());
        let issued = |key: &&Arc<CertifiedKey>| {
            // An issuer's name stands in a certificate byte by byte as the hint has it.
            key.cert.iter().any(|certificate| {
                root_hint_subjects.iter().any(|name| {
                    !name.is_empty() && certificate.windows(name.len()).any(|part| part == *name)
                })
            })
        };
        usable().find(issued).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(vec!["r.example".to_owned()]).unwrap()
    }

    #[test]
    fn none_is_none() {
        assert!(SystemRoots::none().load().is_empty());
    }

    #[test]
    fn files_make_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let files =
            |skip| TlsFiles { ca: vec![ca.clone()], skip_verify: skip, ..TlsFiles::default() };
        let print = |skip| TlsMaterial::read(&files(skip)).unwrap().fingerprint();
        fs::write(&ca, certificate().cert.pem()).unwrap();
        let first = print(None);
        assert_eq!(print(None), first);
        assert_eq!(print(Some(false)), first);
        assert_ne!(print(Some(true)), first);
        fs::write(&ca, certificate().cert.pem()).unwrap();
        assert_ne!(print(None), first);
    }

    #[test]
    fn files_without_use_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let made = certificate();
        fs::write(path("cert"), made.cert.pem()).unwrap();
        fs::write(path("junk"), "junk").unwrap();
        let read = |ca: &[&str], client: &[(&str, Option<&str>)]| {
            TlsMaterial::read(&TlsFiles {
                ca: ca.iter().map(|name| path(name)).collect(),
                client: client.iter().map(|(c, k)| (path(c), k.map(path))).collect(),
                skip_verify: None,
            })
            .err()
            .unwrap()
            .replace(&dir.path().display().to_string(), "DIR")
        };
        assert_eq!(read(&["cert", "junk"], &[]), "DIR/junk holds no certificate in PEM form");
        assert_eq!(
            read(&["none"], &[]),
            "DIR/none cannot be read: No such file or directory (os error 2)"
        );
        assert_eq!(read(&[], &[("junk", None)]), "DIR/junk holds no certificate in PEM form");
        assert_eq!(read(&[], &[("cert", None)]), "DIR/cert holds no private key in PEM form");
        assert_eq!(
            read(&[], &[("cert", Some("junk"))]),
            "DIR/junk holds no private key in PEM form"
        );
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let pem = dir.path().join("client.pem");
        fs::write(&pem, certificate().cert.pem() + &certificate().signing_key.serialize_pem())
            .unwrap();
        let files = TlsFiles { client: vec![(pem, None)], ..TlsFiles::default() };
        let error = TlsMaterial::read(&files).unwrap().config(&SystemRoots::default()).unwrap_err();
        assert!(error.starts_with("a client certificate cannot be used"), "{error}");
    }
}
