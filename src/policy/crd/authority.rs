//! `spec.authorities`.

use serde_json::{Value, json};

use crate::{
    policy::file::authority::{
        KINDS, MAX_ANNOTATION, MAX_ANNOTATION_KEY, MAX_ANNOTATIONS, MAX_AUTHORITIES, MAX_DIGESTS,
        MAX_REASON,
    },
    verify::MAX_PEM,
};

use super::schema::{digests, list, moment, name, object, rule, text, told, with};

/// The list of them, in which names are unique.
pub(super) fn authorities() -> Value {
    let authority = object(
        &["name"],
        [
            ("name", told(name(), "The authority's name, once in the policy.")),
            (
                "publicKey",
                told(public_key(), "Vouches for an image that has a signature by this key."),
            ),
            (
                "digests",
                told(
                    digests(MAX_DIGESTS),
                    "Vouches for the images with these digests, of an index or a manifest: \
                     sha256: and 64 lower-case hexadecimal characters.",
                ),
            ),
            (
                "unsigned",
                told(
                    object(&["reason"], [("reason", told(reason(), "Why, in one line."))]),
                    "Vouches for every image; the reason is in every audit record.",
                ),
            ),
        ],
    );
    let kinds = KINDS.map(|kind| format!("(has(self.{kind}) ? 1 : 0)")).join(" + ");
    let authority = rule(
        authority,
        &format!("{kinds} == 1"),
        &format!("an authority has exactly one of {}", KINDS.join(", ")),
    );
    let authorities = with(list(MAX_AUTHORITIES, authority), "x-kubernetes-list-type", "map");
    with(authorities, "x-kubernetes-list-map-keys", json!(["name"]))
}

fn public_key() -> Value {
    let pem = "^[\\t\\n\\f\\r ]*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\\t\\n\\f\\r ]*\
               -----END PUBLIC KEY-----[\\t\\n\\f\\r ]*$";
    let annotation = json!({"type": "string", "maxLength": MAX_ANNOTATION});
    let annotations = json!({
        "type": "object", "minProperties": 1, "maxProperties": MAX_ANNOTATIONS,
        "additionalProperties": annotation,
    });
    let annotations = rule(
        annotations,
        &format!("self.all(key, size(key) <= {MAX_ANNOTATION_KEY})"),
        &format!("a key has at most {MAX_ANNOTATION_KEY} characters"),
    );
    let key = object(
        &["pem"],
        [
            ("pem", told(text(MAX_PEM, pem), "The key: one PEM block \"PUBLIC KEY\".")),
            ("notBefore", told(moment(), "The key counts from this moment on. Absent: always.")),
            (
                "notAfter",
                told(
                    moment(),
                    "From this moment on the key counts no more, whenever something was signed. \
                     Absent: no such moment.",
                ),
            ),
            (
                "annotations",
                told(
                    annotations,
                    "What must be signed beside the digest, with exactly these values.",
                ),
            ),
        ],
    );
    rule(
        key,
        "!has(self.notBefore) || !has(self.notAfter) || \
         timestamp(self.notBefore) < timestamp(self.notAfter)",
        "notAfter must be later than notBefore; the key would never count",
    )
}

/// One line that is not blank.
fn reason() -> Value {
    rule(
        text(MAX_REASON, "^\\P{Cc}*[^\\p{Z}\\p{Cc}]\\P{Cc}*$"),
        &format!("size(bytes(self)) <= {MAX_REASON}"),
        &format!("the reason has at most {MAX_REASON} bytes"),
    )
}
