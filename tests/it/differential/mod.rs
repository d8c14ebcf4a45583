//! Portcullis beside the programs that it must not contradict: prost, the reference parser that
//! containerd uses, and cosign.

mod cosign;
mod mutants;
mod oracle;
mod references;
mod wire;
