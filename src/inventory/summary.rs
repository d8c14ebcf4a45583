//! What the last look at the node found, for `status` and for metrics.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::{
    image::Digest,
    refusal::{Code, Refusal},
};

/// Most images that a summary names.
pub const MAX_NAMED: usize = 100;

/// What a look at the node found.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// When it began; written in RFC 3339.
    #[serde(serialize_with = "in_words")]
    pub taken: Timestamp,
    /// How long it took, in milliseconds, the questions to registries included.
    pub took_ms: u64,
    /// The policy set in force. None: there is none, and nothing is proven.
    pub policy_set: Option<Digest>,
    /// Images in the runtime.
    pub images: Images,
    /// Containers that run.
    pub containers: Containers,
}

/// Images in the runtime, by manifest or index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Images {
    /// All, those that were not looked at included.
    pub total: usize,
    /// Those that some pod may start, as far as the policies are concerned, and breaks no glass for.
    pub proven: usize,
    /// Those that no pod may start, unless it breaks a policy's glass.
    pub unproven: usize,
    /// Those beyond the number of images that a look takes in.
    pub left_out: usize,
    /// The unproven ones in the order of their digests, [`MAX_NAMED`] at most.
    pub why: Vec<Unproven>,
}

/// An image that no pod may start, unless it breaks a policy's glass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unproven {
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// One of its names, where it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The stable reason.
    pub reason: Code,
    /// For people.
    pub message: String,
}

/// Containers that run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Containers {
    /// All of them.
    pub running: usize,
    /// Those that would be refused now.
    pub drifted: usize,
    /// Those that were not created through Portcullis.
    pub unpermitted: usize,
}

impl Images {
    /// Counts an image that was looked at.
    pub(super) fn count(&mut self, digest: Digest, name: Option<String>, why: Option<&Refusal>) {
        self.total += 1;
        let Some(Refusal { code, message }) = why else {
            self.proven += 1;
            return;
        };
        self.unproven += 1;
        if self.why.len() < MAX_NAMED {
            let message = message.clone();
            self.why.push(Unproven { digest, name, reason: *code, message });
        }
    }
}

fn in_words<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}
