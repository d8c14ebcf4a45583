//! Stages 9 and 10: to the runtime, and back.
//!
//! A judged pull goes on only with a [`Recorded`](crate::audit::Recorded)
//! [`Permit`](crate::decide::Permit); every other call is relayed as opaque frames.

mod alias;
mod answer;
mod body;
mod judged;
mod own;
mod pull;
mod relay;
mod runtime;
mod socket;
mod stream;
mod unary;
mod upstream;

pub use answer::{Answer, json, refuse, unimplemented};
pub(crate) use answer::{deadline_exceeded, stopping};
pub use body::{Body, BodyError};
pub use judged::{create, hold, sandbox};
pub use own::{NODE_STATUS, Unanswered, node_status};
pub use pull::{own_pull, pull};
pub use relay::relay;
pub use runtime::{Container, ImageRecord, Runtime, RuntimeError, RuntimeImage, Target};
pub(crate) use socket::Socket;
pub use stream::Received;
pub use unary::Whole;
pub(crate) use upstream::MAX_HEADERS;
pub use upstream::{Unreachable, Upstream};

/// The few fields of containerd's own services that are read and written, from
/// `proto/containerd.proto`.
#[allow(missing_docs, unreachable_pub, reason = "generated; the fields are containerd's own")]
mod containerd {
    include!(concat!(env!("OUT_DIR"), "/portcullis.containerd.rs"));
}
