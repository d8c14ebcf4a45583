//! Stage 8: no answer leaves unrecorded.
//!
//! One JSON object a line, synced to disk before the answer, each carrying the SHA-256 of the
//! line before. [`Recorded`] has one constructor, private to this module: whoever holds one
//! knows that its line is on disk.
//!
//! `prev` of the very first line (`seq` 1) is the SHA-256 of no bytes at all. Beside the log, the
//! state directory keeps the head: `seq` and hash of the last line, so that a tail cut off shows.

pub mod chain;
mod end;
mod file;
pub mod head;
mod line;
mod log;
mod record;
mod writer;

#[cfg(test)]
mod tests;

pub use file::LogError;
pub use line::{MAX_LINE, Position};
pub use log::{Config, Log, Observer, Opened, Recorded};
pub use record::{Event, Outcome, Pod, PolicySetId, Record, RequestedImage};
pub(crate) use writer::ABOUT_THE_LOG;
