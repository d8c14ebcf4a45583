//! The rules of ARCHITECTURE.md and CONTRIBUTING.md that a reader of the source can check.
//!
//! What the type system keeps is not repeated here. Each finding names the file, the line, the
//! rule and the reason for it; `each_rule_can_fail` breaks every rule once.
#![allow(clippy::unwrap_used, reason = "clippy knows only #[test] functions as tests")]

mod documents;
mod limits;
mod rules;
mod source;
