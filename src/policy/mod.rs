//! Stage 3: which policies govern this image.
//!
//! `file` reads the strict wire format (over `yaml`, the tree, and `fields`, which reports what
//! is wrong with it), `model` holds policies that cannot be empty or contradictory, `select`
//! finds those that match; all pure. `source` reads a directory, `watch` keeps what it read in
//! force, `current` swaps whole sets. `bundle` is a set that somebody signed.

pub mod bundle;
pub mod current;
pub mod fetch;
mod fields;
mod file;
pub mod model;
mod offer;
pub mod pace;
mod pattern;
mod select;
pub mod source;
pub mod standing;
mod texts;
mod watch;
mod yaml;

pub use current::{Changes, Current};
pub(crate) use file::read_moment;
pub use model::{
    Authority, AuthorityKind, BreakGlass, Caller, ImagePolicy, Mode, PolicySet, PublicKeyAuthority,
    Revoked,
};
pub use offer::{Heard, Offer};
pub use select::Selected;
pub use texts::{Text, Texts};
