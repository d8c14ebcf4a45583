//! The kinds of objects that a set is made of.

/// Their group.
pub(super) const GROUP: &str = "portcullis.dev";
/// Their group and version.
pub(super) const API_VERSION: &str = "portcullis.dev/v1alpha1";

/// A kind of objects without a namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Its name in an object.
    pub(super) name: &'static str,
    /// Its name in a URL.
    pub(super) plural: &'static str,
}

/// All kinds. The set is told once each was listed.
pub(super) const KINDS: [Kind; 2] = [
    Kind { name: "ImagePolicy", plural: "imagepolicies" },
    Kind { name: "Revocation", plural: "revocations" },
];

impl Kind {
    /// Where its objects are, on any API server.
    pub(super) fn path(&self) -> String {
        format!("/apis/{API_VERSION}/{}", self.plural)
    }

    /// As people name it: `imagepolicies.portcullis.dev`.
    pub(super) fn resource(&self) -> String {
        format!("{}.{GROUP}", self.plural)
    }
}
