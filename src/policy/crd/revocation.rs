//! `kind: Revocation`.

use crate::policy::texts::MAX_REVOKED;

use super::{
    Kind,
    schema::{digests, object, rule, told},
};

pub(super) fn kind() -> Kind {
    let spec = object(
        &[],
        [
            (
                "digests",
                told(
                    digests(MAX_REVOKED),
                    "Images, by the digest of their manifest, index or configuration (the image \
                     ID): sha256: and 64 lower-case hexadecimal characters.",
                ),
            ),
            (
                "keys",
                told(
                    digests(MAX_REVOKED),
                    "Keys, by the SHA-256 of their SubjectPublicKeyInfo in DER, as `portcullis \
                     verify` shows them.",
                ),
            ),
        ],
    );
    let spec = rule(
        spec,
        "has(self.digests) || has(self.keys)",
        "a revocation names digests, keys or both",
    );
    let spec = rule(
        spec,
        &format!(
            "(has(self.digests) ? size(self.digests) : 0) + (has(self.keys) ? size(self.keys) : \
             0) <= {MAX_REVOKED}"
        ),
        &format!("at most {MAX_REVOKED} digests and keys, together"),
    );
    Kind {
        kind: "Revocation",
        short: "imgrev",
        description: "Images and keys that every node refuses, whatever any policy says.",
        spec: told(spec, "What is revoked."),
        columns: &[
            ("First digest", ".spec.digests[0]", "string", true),
            ("First key", ".spec.keys[0]", "string", true),
            ("Age", ".metadata.creationTimestamp", "date", true),
        ],
    }
}
