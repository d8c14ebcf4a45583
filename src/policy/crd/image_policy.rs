//! `kind: ImagePolicy`.

use serde_json::{Value, json};

use crate::policy::file::{MODES, REFERENCES, authority::MAX_AUTHORITIES};

use super::{
    Kind,
    authority::authorities,
    repository::repositories,
    schema::{annotation, moment, namespaces, object, rule, told, words},
};

pub(super) fn kind() -> Kind {
    let at_least = json!({
        "type": "integer", "minimum": 1, "maximum": MAX_AUTHORITIES, "default": 1,
    });
    let spec = object(
        &["match", "authorities"],
        [
            (
                "mode",
                told(
                    words(&MODES),
                    "Enforce: refuse what does not satisfy the policy. Warn: let it through, and \
                     record what would have been refused.",
                ),
            ),
            ("match", told(scope(), "Which images and namespaces the policy governs.")),
            (
                "reference",
                told(
                    words(&REFERENCES),
                    "Digest: a pod must name the image by digest. Any: by tag or digest.",
                ),
            ),
            (
                "atLeast",
                told(
                    at_least,
                    "How many of the authorities must accept. A key counts once, whatever the \
                     number of its names.",
                ),
            ),
            ("authorities", told(authorities(), "Who may vouch for the images.")),
            (
                "breakGlass",
                told(
                    break_glass(),
                    "How a pod is let past this policy in an emergency. Absent: not at all.",
                ),
            ),
        ],
    );
    let spec = rule(
        spec,
        "!has(self.atLeast) || self.atLeast <= size(self.authorities)",
        "atLeast is more than there are authorities; no image could ever be accepted",
    );
    Kind {
        kind: "ImagePolicy",
        short: "imgpol",
        description: "Which images may run, and who must vouch for them. All policies that match \
                      an image must be satisfied; an image that none matches is refused.",
        spec: told(spec, "The policy."),
        columns: &[
            ("Mode", ".spec.mode", "string", true),
            ("At least", ".spec.atLeast", "integer", true),
            ("First authority", ".spec.authorities[0].name", "string", true),
            ("Images", ".spec.match.images", "string", true),
            ("Reference", ".spec.reference", "string", false),
            ("Namespaces", ".spec.match.namespaces", "string", false),
            ("Break glass", ".spec.breakGlass.annotation", "string", false),
            ("Age", ".metadata.creationTimestamp", "date", true),
        ],
    }
}

fn scope() -> Value {
    object(
        &["images"],
        [
            (
                "images",
                told(
                    repositories(),
                    "Patterns of repositories, in full and without tag: \
                     registry.example.com/prod/**. * stands for a part of a path segment, ** for \
                     one or more whole segments.",
                ),
            ),
            (
                "excludeImages",
                told(repositories(), "Patterns of repositories that it does not govern."),
            ),
            (
                "namespaces",
                told(
                    namespaces(),
                    "Patterns of the pods' namespaces, * for any run of characters. Absent: all, \
                     and calls that name none.",
                ),
            ),
            (
                "excludeNamespaces",
                told(namespaces(), "Patterns of namespaces that it does not govern."),
            ),
        ],
    )
}

fn break_glass() -> Value {
    object(
        &["annotation", "namespaces"],
        [
            (
                "annotation",
                told(annotation(), "The pod's annotation whose value must be \"true\"."),
            ),
            (
                "namespaces",
                told(namespaces(), "Patterns of the namespaces that may break the glass."),
            ),
            ("notAfter", told(moment(), "From this moment on nobody may. Absent: no such moment.")),
        ],
    )
}
