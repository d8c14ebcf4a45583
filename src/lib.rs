//! Portcullis stands between kubelet and the container runtime and judges every image before it
//! may be pulled. What it cannot prove, it refuses.
//!
//! The modules below are declared in the order of one pull; [`pipeline`] is that pull as code and
//! the place to begin reading.
#![forbid(unsafe_code)]

// The road of one pull.
pub mod accept;
pub mod decode;
pub mod policy;
pub mod resolve;
pub mod evidence;
pub mod verify;
pub mod decide;
pub mod audit;
pub mod forward;

// What holds it together.
pub mod pipeline;
pub mod local;
pub mod learn;
pub mod inventory;
pub mod judgement;
mod flight;

// The vocabulary.
pub mod image;
pub mod named;
pub mod problem;
pub mod refusal;
mod json;

// The program around it.
pub mod cli;
pub mod kubernetes;
pub mod config;
pub mod daemon;
pub mod preflight;
mod sources;
pub mod status;
pub mod metrics;
mod telemetry;

// What holds whatever comes from outside: for the tests and for the fuzzer, and for nobody else.
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/properties/mod.rs"]
pub mod properties;
