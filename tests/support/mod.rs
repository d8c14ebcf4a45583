//! What the tests need beside the product: registries, certificates, fixtures.
#![allow(dead_code, reason = "no test binary uses all of it")]

pub(crate) mod api_server;
pub(crate) mod ca;
pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod gate;
pub(crate) mod grpc;
pub(crate) mod inside;
pub(crate) mod leash;
pub(crate) mod registry;
pub(crate) mod runtime;
pub(crate) mod docker_registry;
pub(crate) mod fixtures;
pub(crate) mod remote;
pub(crate) mod sign;
