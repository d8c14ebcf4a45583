//! What holds of every parser of bytes from outside, whatever the bytes are.
//!
//! A property is a function of bytes that panics where it does not hold. Each is a fuzz target
//! (`make fuzz`), and `cargo test` runs each over the seeds of `tests/fuzz/seeds` and over
//! mutations of them. Those that look into a stage stand beside it, as its `properties`.
#![allow(clippy::unwrap_used, reason = "a panic is how a property says that it does not hold")]

mod audit;
mod go;
mod policy;
mod reference;
#[cfg(test)]
mod replay;
mod sealed;
mod wire;

pub(crate) use go::Json;

/// Panics where it does not hold.
pub type Property = fn(&[u8]);

/// Every property, by the name of its fuzz target and of its seeds.
pub const ALL: [(&str, Property); 13] = [
    ("audit", audit::chain),
    ("bundle", crate::verify::properties::bundle),
    ("challenge", crate::resolve::properties::challenge),
    ("dsse", crate::verify::properties::dsse),
    ("evidence", crate::evidence::properties::document),
    ("hosts", crate::resolve::properties::hosts),
    ("manifest", crate::resolve::properties::manifest),
    ("pack", crate::evidence::properties::pack),
    ("policy", policy::policy),
    ("reference", reference::reference),
    ("sealed", sealed::sealed),
    ("simple", crate::verify::properties::simple),
    ("wire", wire::wire),
];

/// Holds a property against one input.
///
/// # Panics
///
/// The property does not hold, or there is none of this name.
pub fn hold(name: &str, input: &[u8]) {
    let (_, property) = ALL.iter().find(|(known, _)| *known == name).unwrap();
    property(input);
}
