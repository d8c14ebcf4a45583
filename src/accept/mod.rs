//! Stage 1: the socket that kubelet talks to.

mod capacity;
mod deadline;
mod drain;
mod listener;
mod route;
mod serve;

pub use capacity::raise_descriptor_limit;
pub use listener::{ListenError, Listener, SocketFile};
pub use route::{Judged, Methods, Own, Route};
pub use serve::serve;
