//! Stage 5: what others claim about a digest. Everything here is untrusted.
//!
//! Signatures are found by the `sha256-<hex>.sig` tag that cosign 2 writes and by the referrers
//! of the image (OCI distribution specification, "Listing Referrers") that cosign 3 writes. What
//! is found is read for its shape only; whether it holds is for `verify` to say.

pub(crate) mod document;
mod gather;
mod known;
mod ledger;
mod merge;
pub mod pack;
#[cfg(any(test, fuzzing))]
#[path = "../../tests/fuzz/properties/evidence.rs"]
pub(crate) mod properties;
mod shape;
mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use document::DocumentError;
pub use gather::gather;
pub use known::{Entry, Known, KnownError};
pub use ledger::Ledger;
pub use store::Store;

use crate::{image::Digest, refusal::Refusal};

/// Everything that was found about one image, and everything that could not be asked.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What was found, in the order of discovery, bounded by [`MAX_SIGNATURES`]; of what is kept on
    /// this node, of each manifest.
    pub claims: Vec<UntrustedClaim>,
    /// Questions that a registry did not answer. While there are any, "unsigned" is unproven.
    pub gaps: Vec<Refusal>,
}

impl Evidence {
    /// Adds other evidence about the same image: claims that are not here yet, as many as are
    /// looked at. Its gaps are those of whoever was asked before, and do not count here.
    pub fn add(&mut self, more: Evidence) {
        for claim in more.claims {
            if self.claims.len() < MAX_SIGNATURES && !self.claims.contains(&claim) {
                self.claims.push(claim);
            }
        }
    }
}

/// Most signatures that are looked at for an image, over all its sources.
pub const MAX_SIGNATURES: usize = 100;

/// Somebody's claim about a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UntrustedClaim {
    /// The digest that was asked about when this was found: the image's, or that of its child
    /// for this platform.
    pub subject: Digest,
    /// Where it was found: `sha256-….sig` or the digest of the referrer.
    pub source: String,
    /// What is claimed, by its format.
    pub body: UntrustedBody,
}

/// A claim in one of the formats that Portcullis reads. All bytes are bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UntrustedBody {
    /// cosign's simple signing: a JSON payload and a signature over its bytes.
    SimpleSigning {
        /// The payload blob; its digest was compared with the descriptor.
        payload: Vec<u8>,
        /// The decoded annotation `dev.cosignproject.cosign/signature`.
        signature: Vec<u8>,
    },
    /// A Sigstore bundle, v0.3, as JSON.
    Bundle {
        /// The bundle blob; its digest was compared with the descriptor.
        json: Vec<u8>,
    },
    /// Something in the place of a signature that cannot be read as one.
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
}
