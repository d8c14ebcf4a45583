//! `kind: Revocation`: what no policy can accept.

use std::collections::BTreeSet;

use crate::{
    image::Digest,
    policy::{
        fields::{Field, Reader},
        texts::MAX_REVOKED,
    },
    verify::KeyId,
};

/// Fields of a revocation's `spec`.
pub(in crate::policy) const REVOCATION: [&str; 2] = ["digests", "keys"];

/// The `spec` of a revocation. It names something: one that revokes nothing does not load.
pub(in crate::policy) struct Revocation {
    /// Digests of manifests, indexes or configurations.
    pub digests: BTreeSet<Digest>,
    /// Keys, by the SHA-256 of their SubjectPublicKeyInfo.
    pub keys: BTreeSet<KeyId>,
}

impl Revocation {
    /// How much it revokes.
    pub(in crate::policy) fn len(&self) -> usize {
        self.digests.len() + self.keys.len()
    }
}

pub(super) fn read(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Revocation> {
    let fields = reader.fields(field, &REVOCATION, &[])?;
    let digests =
        reader.or(&fields, "digests", BTreeSet::new(), |r, field| r.distinct(field, MAX_REVOKED));
    let keys =
        reader.or(&fields, "keys", BTreeSet::new(), |r, field| r.distinct(field, MAX_REVOKED));
    // Neither list is the same as an empty mapping, which was refused above.
    Some(Revocation { digests: digests?, keys: keys? })
}
