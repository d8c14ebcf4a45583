//! How many clients there may be at a time, by the file descriptors that the system gives.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Connections of clients at a time. kubelet has two, and each tool on the node one or two; what
/// is beyond any node costs memory only.
const MAX_CONNECTIONS: usize = 16_384;
/// Descriptors that clients leave to registries, files and Portcullis' own questions.
const RESERVED: u64 = 256;

/// Raises the limit of file descriptors as far as the system lets us. What is inherited is
/// often 1,024, for the sake of programs that call select(2); this one does not.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
}

/// How many clients may be connected, by the limit of file descriptors as it is now.
pub(super) fn connections() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    fitting(soft)
}

/// A client that calls takes a second descriptor, for its connection to the runtime; of crowds,
/// half at most are taken to call. Where there is little to share out, nobody is turned away
/// before the system has no more.
fn fitting(descriptors: u64) -> usize {
    let scarce = descriptors < 2 * RESERVED;
    let fitting = if scarce { descriptors } else { (descriptors - RESERVED) / 3 * 2 };
    usize::try_from(fitting).map_or(MAX_CONNECTIONS, |fitting| fitting.clamp(1, MAX_CONNECTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_to_others() {
        assert_eq!(fitting(1024), 512);
        assert_eq!(fitting(u64::MAX), MAX_CONNECTIONS);
        assert_eq!((fitting(512), fitting(511)), (170, 511));
        assert_eq!((fitting(64), fitting(0)), (64, 1));
    }
}
