//! Stage 2: bytes become a request. A copy is decoded; the original bytes go on.

mod create;
mod frame;
mod others;
mod pull;
mod wire;

pub use create::{AskedImage, CreateRequest, create};
pub use frame::{MAX_MESSAGE, frame, request};
pub(crate) use frame::{PREFIX, unframe};
pub use others::{image_found, image_status, sandbox};
pub use pull::{Pod, PullRequest, Wanted, pull};
pub use wire::Patchable;

/// The few fields of CRI that are read, from `proto/cri.proto`.
#[allow(missing_docs, unreachable_pub, reason = "generated; the fields are CRI's own")]
pub(crate) mod cri {
    include!(concat!(env!("OUT_DIR"), "/portcullis.cri.rs"));
}
