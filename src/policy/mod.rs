//! Stage 3: which policies govern this image.
//!
//! `file` reads the strict wire format (over `yaml`, the tree, and `fields`, which reports what
//! is wrong with it), `model` holds policies that cannot be empty or contradictory, `select`
//! finds those that match; all pure. `crd` tells an API server the format, and `objects` makes
//! texts of what it holds; `bundle` is a set that somebody signed, and `fetch` asks for it.
//!
//! Whatever a source holds is an `offer` of `texts`. `keeper` decides what comes into force, by
//! `succession`, what was `kept` on this node, the `floor` and the time; `watch` brings it what is
//! heard, `current` swaps whole sets, and `standing` says how they stand.

pub mod bundle;
pub mod crd;
pub mod current;
mod ear;
pub mod fetch;
mod fields;
mod file;
mod floor;
mod keeper;
mod kept;
pub mod model;
pub mod objects;
mod offer;
pub mod pace;
mod pattern;
mod select;
pub mod source;
pub mod standing;
mod succession;
mod texts;
pub mod watch;
mod yaml;

pub use current::{Changes, Current};
pub(crate) use file::moment::read_moment;
pub use floor::{beside_floor, check_floor};
pub use keeper::Event;
pub use model::{
    Authority, AuthorityKind, BreakGlass, Caller, ImagePolicy, Mode, PolicySet, PublicKeyAuthority,
    Revoked,
};
pub use offer::{Heard, Offer};
pub use select::Selected;
pub use texts::{Text, Texts};
