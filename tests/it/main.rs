//! The integration tests: one binary, a module a topic.
#![allow(clippy::unwrap_used, reason = "clippy knows only #[test] functions as tests")]

#[path = "../support/mod.rs"]
mod support;

mod bundles;
mod cli;
mod control;
mod crds;
mod crowd;
mod pin;
mod preflight;
mod status;
mod relay;
mod storm;
mod inventory;
mod kubernetes;
mod metrics;
mod judged;
mod packs;
mod pipes;
mod conformance;
mod registry;
mod evidence;
mod differential;
mod faults;
mod gates;
mod hostile;
mod node;
mod test_registry;
