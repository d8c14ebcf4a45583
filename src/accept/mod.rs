//! Stage 1: the socket that kubelet talks to.

mod deadline;
mod drain;
mod listener;
mod route;
mod serve;

pub use listener::{ListenError, Listener, SocketFile};
pub use route::{Judged, Methods, Own, Route};
pub use serve::serve;
