//! The documented schema of one line.

use serde::Serialize;

use crate::{
    decide::PolicyReport, image::Digest, named::ImageId, policy::PolicySet, refusal::Code,
};

/// What happened, before the log adds `seq`, `time`, `node` and `prev`.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// What kind of event.
    pub event: Event,
    /// What was decided; absent for events that decide nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Outcome>,
    /// The stable reason of a denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Code>,
    /// For people: the very text that the caller got, without its prefix.
    pub message: String,
    /// The image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<RequestedImage>,
    /// The pod that asked, as the caller says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The container that a `drift` is about, by the runtime's ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What each matching policy found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyReport>,
    /// The set that was in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_set: Option<PolicySetId>,
    /// From the request's arrival to the decision, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
}

impl Record {
    /// A record of an event with nothing but a message.
    pub fn new(event: Event, message: impl Into<String>) -> Self {
        Self {
            event,
            decision: None,
            reason: None,
            message: message.into(),
            image: None,
            pod: None,
            container: None,
            policies: Vec::new(),
            policy_set: None,
            duration_us: None,
        }
    }
}

/// `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A `PullImage` was judged.
    Pull,
    /// A `CreateContainer` was judged: one record for its image, and one for each image volume.
    Create,
    /// An image that the runtime has was answered as absent.
    ImageStatus,
    /// A `RunPodSandbox` was judged by its sandbox (pause) image.
    Sandbox,
    /// A pod broke a policy's glass: in place of `pull` or `create`.
    BreakGlass,
    /// A policy set was loaded, or failed to.
    Policy,
    /// Portcullis started.
    Start,
    /// Portcullis stopped.
    Stop,
    /// Something is not as Portcullis left it: files of its own, or containers that it would not
    /// or did not let start.
    Drift,
}

/// `decision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The call went on.
    Allow,
    /// The call was refused.
    Deny,
    /// The call went on although policies refuse the image: they only warn, or their glass was
    /// broken.
    Warn,
}

/// `image`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RequestedImage {
    /// As the caller wrote it, shortened where it is no reference.
    pub requested: String,
    /// Canonical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The tag, where the caller named one (or none: `latest`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest that was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The runtime's ID of the image, where the call was about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ImageId>,
}

/// `pod`.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// `policy_set`.
#[derive(Clone, Debug, Serialize)]
pub struct PolicySetId {
    /// The source's own revision, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Names exactly this set.
    pub digest: Digest,
}

impl From<&PolicySet> for PolicySetId {
    fn from(set: &PolicySet) -> Self {
        Self { revision: set.revision(), digest: set.digest() }
    }
}
