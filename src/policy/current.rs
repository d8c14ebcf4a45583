//! The set in force, swapped as a whole.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::refusal::{Code, Refusal};

use super::PolicySet;

/// The policy set in force. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Current {
    state: Arc<watch::Sender<State>>,
}

/// Tells when another set comes into force.
#[derive(Debug)]
pub struct Changes(watch::Receiver<State>);

#[derive(Debug)]
struct State {
    /// What holds, or why every image is refused.
    now: Result<Arc<PolicySet>, Refusal>,
    /// From this moment on something else does: with time as a value, no timer can be late.
    later: Option<(Timestamp, Result<Arc<PolicySet>, Refusal>)>,
}

impl Default for State {
    fn default() -> Self {
        Self { now: Err(unavailable("the policies have not been read yet")), later: None }
    }
}

/// The refusal of every image for want of policies.
pub(super) fn unavailable(why: &str) -> Refusal {
    let message = format!("no policy is in force on this node, so every image is refused: {why}");
    Refusal::new(Code::PolicyUnavailable, message)
}

impl Current {
    /// The set in force at a moment, or why there is none.
    ///
    /// # Errors
    ///
    /// `policy_unavailable` while no set was ever loaded, `policy_expired` when its time is over.
    pub fn snapshot(&self, now: Timestamp) -> Result<Arc<PolicySet>, Refusal> {
        let state = self.state.borrow();
        match &state.later {
            Some((from, later)) if *from <= now => later.clone(),
            _ => state.now.clone(),
        }
    }

    /// Puts a set in force, in place of any other.
    pub fn replace(&self, set: Arc<PolicySet>) {
        self.put(Ok(set), None, true);
    }

    /// Puts in force what holds now, and what holds from a moment on. `told`: it is another set
    /// than before, and whoever waits for changes hears of it.
    pub(super) fn put(
        &self,
        now: Result<Arc<PolicySet>, Refusal>,
        later: Option<(Timestamp, Result<Arc<PolicySet>, Refusal>)>,
        told: bool,
    ) {
        self.state.send_if_modified(|state| {
            *state = State { now, later };
            told
        });
    }

    /// The sets that come into force from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.state.subscribe())
    }
}

impl Changes {
    /// Waits for another set than the one that was in force when this was last asked. Never ends
    /// once nobody can put one in force any more.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source;

    fn set(name: &str) -> Arc<PolicySet> {
        let text = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: {name}}}\n\
             spec:\n  match: {{images: ['**']}}\n  \
             authorities: [{{name: a, unsigned: {{reason: test}}}}]\n"
        );
        Arc::new(source::parse("p.yaml", &text, Timestamp::UNIX_EPOCH).unwrap())
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn without_a_set_everything_is_refused_and_the_reason_told() {
        let current = Current::default();
        let message = |why: &str| {
            format!("no policy is in force on this node, so every image is refused: {why}")
        };
        let refusal = current.snapshot(NOW).unwrap_err();
        assert_eq!(refusal.code, Code::PolicyUnavailable);
        assert_eq!(refusal.message, message("the policies have not been read yet"));
        current.put(Err(unavailable("p.yaml:1:1: is empty")), None, true);
        assert_eq!(current.snapshot(NOW).unwrap_err().message, message("p.yaml:1:1: is empty"));
    }

    #[test]
    fn clones_share_the_set_and_a_snapshot_keeps_it() {
        let current = Current::default();
        let (first, second) = (set("first"), set("second"));
        current.clone().replace(first.clone());
        let snapshot = current.snapshot(NOW).unwrap();
        current.replace(second.clone());
        assert_eq!(snapshot.digest(), first.digest());
        assert_eq!(current.snapshot(NOW).unwrap().digest(), second.digest());
    }

    #[test]
    fn what_holds_later_holds_from_that_moment_on() {
        let (current, first) = (Current::default(), set("first"));
        let at = |second| Timestamp::from_second(second).unwrap();
        let expired = Refusal::new(Code::PolicyExpired, "expired");
        let expires = |second| Some((at(second), Err(expired.clone())));
        current.put(Ok(first.clone()), expires(10), true);
        assert!(current.snapshot(at(9)).is_ok());
        assert_eq!(current.snapshot(at(10)).unwrap_err(), expired);
        let changes = current.changes();
        current.put(Ok(first), expires(20), false);
        assert!(current.snapshot(at(19)).is_ok());
        assert_eq!(current.snapshot(at(20)).unwrap_err(), expired);
        assert!(!changes.0.has_changed().unwrap());
    }

    #[tokio::test]
    async fn each_set_in_force_is_told() {
        let current = Current::default();
        let mut changes = current.changes();
        let told = async |changes: &mut Changes| {
            tokio::time::timeout(std::time::Duration::ZERO, changes.next()).await.is_ok()
        };
        assert!(!told(&mut changes).await);
        current.replace(set("first"));
        assert!(told(&mut changes).await && !told(&mut changes).await);
        drop(current);
        assert!(!told(&mut changes).await);
    }
}
