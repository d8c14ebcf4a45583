//! Why a registry did not give what was asked for, in words that are the same each time.

use std::{fmt, time::Duration};

use crate::refusal::{Code, Refusal};

/// Why no host gave what was asked for.
///
/// Only [`RegistryError::NotFound`] says that something is not there. Every other variant leaves
/// that open, and must never be taken for "there is none".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Every host that may answer was asked, and each of them says that it is not there.
    #[error("{0}")]
    NotFound(Failure),
    /// A host wants credentials, or refused those of the caller.
    #[error("{0}")]
    Unauthorized(Failure),
    /// A host could not be asked, or answered with an error.
    #[error("{0}")]
    Unreachable(Failure),
    /// A host answered with something that cannot be read.
    #[error("{0}")]
    Unreadable(Failure),
    /// A host sent more than is accepted.
    #[error("{0}")]
    LimitExceeded(Failure),
    /// A host sent other bytes than those that were asked for.
    #[error("{0}")]
    DigestMismatch(Failure),
}

impl RegistryError {
    /// Whether every host said that it is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RegistryError::NotFound(_))
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        let code = match &error {
            RegistryError::NotFound(_) => Code::ImageNotFound,
            RegistryError::Unauthorized(_) => Code::RegistryUnauthorized,
            RegistryError::Unreachable(_) | RegistryError::Unreadable(_) => {
                Code::RegistryUnreachable
            }
            RegistryError::LimitExceeded(_) => Code::LimitExceeded,
            RegistryError::DigestMismatch(_) => Code::DigestMismatch,
        };
        Refusal::new(code, error.to_string())
    }
}

/// What was asked for, and what each host that was asked did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    asked: String,
    told: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.told)
    }
}

/// What one host did instead of answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// A predicate whose subject is the host: `answered 500 Internal Server Error`.
    pub(super) why: String,
    pub(super) again: Again,
}

/// Kinds of faults. Of several hosts' faults the greatest names the error; the least is the only
/// one that means absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    NotFound,
    Unreachable,
    Unauthorized,
    Unreadable,
    LimitExceeded,
    DigestMismatch,
}

/// Whether the same request may fare better a little later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It will not.
    No,
    /// It may, after the usual pause.
    Soon,
    /// It may, after the pause that the host asks for.
    After(Duration),
    /// The host speaks no TLS: it may over plain HTTP, where that is configured.
    Plain,
    /// No connection came about: it may over plain HTTP, where that has another port.
    Unconnected,
}

impl Fault {
    pub(super) fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), again: Again::No }
    }

    pub(super) fn again(mut self, again: Again) -> Self {
        self.again = again;
        self
    }
}

/// Collects the faults of the hosts that were asked in vain.
#[derive(Debug)]
pub(super) struct Failures {
    asked: String,
    faults: Vec<(String, Fault)>,
}

impl Failures {
    pub(super) fn of(asked: impl Into<String>) -> Self {
        Self { asked: asked.into(), faults: Vec::new() }
    }

    pub(super) fn add(&mut self, host: &str, fault: Fault) {
        let Self { asked, .. } = self;
        match fault.kind {
            Kind::DigestMismatch => {
                tracing::warn!(host, %asked, why = fault.why, "hostile or broken")
            }
            _ => tracing::debug!(host, %asked, why = fault.why, "no answer"),
        }
        self.faults.push((host.to_owned(), fault));
    }

    /// Whether each host that was asked said that it is not there. Not so when none was asked.
    pub(super) fn all_not_found(&self) -> bool {
        !self.faults.is_empty() && self.faults.iter().all(|(_, f)| f.kind == Kind::NotFound)
    }

    /// The error that these faults make together.
    pub(super) fn conclude(self) -> RegistryError {
        let kind = self.faults.iter().map(|(_, fault)| fault.kind).max();
        let mut told: Vec<String> = Vec::new();
        for (host, fault) in &self.faults {
            let line = format!("{host} {}", fault.why);
            // One registry is often named twice: as mirror and as server.
            if !told.contains(&line) {
                told.push(line);
            }
        }
        let told = match told.is_empty() {
            true => "no host may be asked: hosts.toml gives none the capability".to_owned(),
            false => told.join("; "),
        };
        let failure = Failure { asked: self.asked, told };
        match kind {
            Some(Kind::NotFound) => RegistryError::NotFound(failure),
            Some(Kind::Unauthorized) => RegistryError::Unauthorized(failure),
            Some(Kind::Unreadable) => RegistryError::Unreadable(failure),
            Some(Kind::LimitExceeded) => RegistryError::LimitExceeded(failure),
            Some(Kind::DigestMismatch) => RegistryError::DigestMismatch(failure),
            Some(Kind::Unreachable) | None => RegistryError::Unreachable(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concludes(faults: &[(&str, Kind, &str)]) -> (Code, String) {
        let mut failures = Failures::of("tag v1");
        for (host, kind, why) in faults {
            failures.add(host, Fault::new(*kind, *why));
        }
        let refusal = Refusal::from(failures.conclude());
        (refusal.code, refusal.message)
    }

    #[test]
    fn not_found_takes_every_host() {
        let none = "has none (404 Not Found)";
        assert_eq!(
            concludes(&[("a", Kind::NotFound, none), ("b", Kind::NotFound, none)]),
            (
                Code::ImageNotFound,
                "tag v1: a has none (404 Not Found); b has none (404 Not Found)".into()
            )
        );
        for (kind, code) in [
            (Kind::Unreachable, Code::RegistryUnreachable),
            (Kind::Unauthorized, Code::RegistryUnauthorized),
            (Kind::Unreadable, Code::RegistryUnreachable),
            (Kind::LimitExceeded, Code::LimitExceeded),
            (Kind::DigestMismatch, Code::DigestMismatch),
        ] {
            assert_eq!(concludes(&[("a", kind, "x"), ("b", Kind::NotFound, none)]).0, code);
            assert_eq!(concludes(&[("a", Kind::NotFound, none), ("b", kind, "x")]).0, code);
        }
    }

    #[test]
    fn a_host_that_is_asked_twice_is_told_once() {
        let fault = ("a", Kind::Unreachable, "refused the connection");
        let told = "tag v1: a refused the connection".to_owned();
        assert_eq!(concludes(&[fault, fault]), (Code::RegistryUnreachable, told));
    }

    #[test]
    fn nobody_asked_is_not_absence() {
        assert_eq!(
            concludes(&[]),
            (
                Code::RegistryUnreachable,
                "tag v1: no host may be asked: hosts.toml gives none the capability".into()
            )
        );
        assert!(!Failures::of("tag v1").all_not_found());
    }
}
