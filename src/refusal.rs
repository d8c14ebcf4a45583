//! The closed list of reasons to say no.
//!
//! A refusal is either a judgement ("this image is not vouched for") or the lack of one ("the
//! registry did not answer"). Both deny; the [`Code`] tells them apart, and one code serves
//! audit records, metrics, `explain` and the answer to kubelet alike.

use std::fmt;

use serde::{Serialize, Serializer};

/// The stable, machine-readable reason of a decision, written in snake_case everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// No policy names this image.
    NoPolicyMatches,
    /// No policy set has been loaded yet.
    PolicyUnavailable,
    /// The policy set is past its `expiresAt`.
    PolicyExpired,
    /// The policy wants the pod to name the image by digest.
    DigestRequired,
    /// There is no signature at all.
    SignatureMissing,
    /// There are signatures, and not one of them holds.
    SignatureInvalid,
    /// Good signatures are there, but not those that the policy wants.
    AuthorityNotSatisfied,
    /// A wanted attestation is not there.
    AttestationMissing,
    /// An attestation is there and says no.
    AttestationRejected,
    /// A revocation names the digest or the key.
    Revoked,
    /// A registry cannot be reached, is overloaded or fails.
    RegistryUnreachable,
    /// A registry wants other credentials.
    RegistryUnauthorized,
    /// The registry knows no such image.
    ImageNotFound,
    /// Bytes and the digest that names them do not agree.
    DigestMismatch,
    /// Judged from local evidence, and there is none.
    NotProvenLocally,
    /// The request cannot be read.
    MalformedRequest,
    /// The image's manifest cannot be read as one thing only.
    ImageMalformed,
    /// Something is larger, longer or slower than Portcullis accepts.
    LimitExceeded,
    /// The audit log cannot be written.
    AuditUnavailable,
    /// A fault in Portcullis.
    Internal,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Code; 20] = [
        Code::NoPolicyMatches,
        Code::PolicyUnavailable,
        Code::PolicyExpired,
        Code::DigestRequired,
        Code::SignatureMissing,
        Code::SignatureInvalid,
        Code::AuthorityNotSatisfied,
        Code::AttestationMissing,
        Code::AttestationRejected,
        Code::Revoked,
        Code::RegistryUnreachable,
        Code::RegistryUnauthorized,
        Code::ImageNotFound,
        Code::DigestMismatch,
        Code::NotProvenLocally,
        Code::MalformedRequest,
        Code::ImageMalformed,
        Code::LimitExceeded,
        Code::AuditUnavailable,
        Code::Internal,
    ];

    /// The code as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::NoPolicyMatches => "no_policy_matches",
            Code::PolicyUnavailable => "policy_unavailable",
            Code::PolicyExpired => "policy_expired",
            Code::DigestRequired => "digest_required",
            Code::SignatureMissing => "signature_missing",
            Code::SignatureInvalid => "signature_invalid",
            Code::AuthorityNotSatisfied => "authority_not_satisfied",
            Code::AttestationMissing => "attestation_missing",
            Code::AttestationRejected => "attestation_rejected",
            Code::Revoked => "revoked",
            Code::RegistryUnreachable => "registry_unreachable",
            Code::RegistryUnauthorized => "registry_unauthorized",
            Code::ImageNotFound => "image_not_found",
            Code::DigestMismatch => "digest_mismatch",
            Code::NotProvenLocally => "not_proven_locally",
            Code::MalformedRequest => "malformed_request",
            Code::ImageMalformed => "image_malformed",
            Code::LimitExceeded => "limit_exceeded",
            Code::AuditUnavailable => "audit_unavailable",
            Code::Internal => "internal",
        }
    }

    /// Whether the image was judged (and refused), as opposed to "could not be judged".
    pub fn is_judged(self) -> bool {
        match self {
            Code::NoPolicyMatches
            | Code::DigestRequired
            | Code::SignatureMissing
            | Code::SignatureInvalid
            | Code::AuthorityNotSatisfied
            | Code::AttestationMissing
            | Code::AttestationRejected
            | Code::Revoked
            | Code::DigestMismatch
            | Code::NotProvenLocally
            | Code::MalformedRequest
            | Code::ImageMalformed
            | Code::LimitExceeded => true,
            Code::PolicyUnavailable
            | Code::PolicyExpired
            | Code::RegistryUnreachable
            | Code::RegistryUnauthorized
            | Code::ImageNotFound
            | Code::AuditUnavailable
            | Code::Internal => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Why a call is refused: a code for machines and a sentence for people.
///
/// The sentence says what a person must know to act, and is the same for the same image and
/// policy: no times, addresses of sockets or request numbers. kubelet folds equal messages of
/// several pull secrets into one, and only equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason.
    pub code: Code,
    /// What was refused, why, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same refusal, its message headed by the image it is about.
    pub fn about(mut self, image: &dyn fmt::Display) -> Self {
        self.message = format!("{image}: {}", self.message);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
