//! Stage 3: which policies govern this image.
//!
//! `file` reads the strict wire format (over `yaml`, the tree, and `fields`, which reports what
//! is wrong with it), `model` holds policies that cannot be empty or contradictory, `select`
//! finds those that match; all pure. `crd` tells an API server the format, and `objects` makes texts
//! of what it holds. `source` reads a directory, `watch` keeps what it read in
//! force, `current` swaps whole sets.

pub mod crd;
pub mod current;
mod fields;
mod file;
pub mod model;
pub mod objects;
mod offer;
mod pattern;
mod select;
pub mod source;
pub mod standing;
mod texts;
mod watch;
mod yaml;

pub use current::{Changes, Current};
pub use model::{
    Authority, AuthorityKind, BreakGlass, Caller, ImagePolicy, Mode, PolicySet, PublicKeyAuthority,
    Revoked,
};
pub use offer::{Heard, Offer};
pub use select::Selected;
pub use texts::{Text, Texts};
