//! How the gate stands: what `portcullis status` shows.
//!
//! [`Board`] is written to while the daemon works: by the audit log for each record, by the watch
//! over policies, by clients' connections. [`Desk`] puts that together with what it asks at the
//! moment, into a [`Report`]. Nothing is decided by any of it.

mod board;
mod desk;
mod report;

pub use board::{Board, Client};
pub use desk::{Desk, Parts, Places};
pub use report::{
    AuditReport, ClientReport, Count, PoliciesReport, RefusalReport, Report, RuntimeReport,
    SandboxReport,
};
