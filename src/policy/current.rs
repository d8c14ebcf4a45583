//! The set in force, swapped as a whole.

use std::sync::Arc;

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
enum State {
    /// No set was ever loaded, and why.
    Unavailable(String),
    InForce(Arc<PolicySet>),
}

impl Default for State {
    fn default() -> Self {
        State::Unavailable("the policies have not been read yet".into())
    }
}

impl Current {
    /// The set in force, or `policy_unavailable` while none was ever loaded.
    pub fn snapshot(&self) -> Result<Arc<PolicySet>, Refusal> {
        match &*self.state.borrow() {
            State::InForce(set) => Ok(set.clone()),
            State::Unavailable(why) => Err(Refusal::new(
                Code::PolicyUnavailable,
                format!(
                    "no policy is in force on this node, so every image is refused: {why}; \
                     \"portcullis check\" shows everything that is wrong with the policies"
                ),
            )),
        }
    }

    /// Puts a set in force, in place of any other.
    pub fn replace(&self, set: Arc<PolicySet>) {
        self.state.send_replace(State::InForce(set));
    }

    /// Says why there is no set. One that is in force stays there.
    pub fn explain(&self, why: impl Into<String>) {
        self.state.send_if_modified(|state| {
            if let State::Unavailable(reason) = state {
                *reason = why.into();
            }
            false
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
    use jiff::Timestamp;

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

    #[test]
    fn without_a_set_everything_is_refused_and_the_reason_told() {
        let current = Current::default();
        let refusal = |why: &str| {
            Refusal::new(
                Code::PolicyUnavailable,
                format!(
                    "no policy is in force on this node, so every image is refused: {why}; \
                     \"portcullis check\" shows everything that is wrong with the policies"
                ),
            )
        };
        assert_eq!(current.snapshot().unwrap_err(), refusal("the policies have not been read yet"));
        current.explain("p.yaml:1:1: is empty");
        assert_eq!(current.snapshot().unwrap_err(), refusal("p.yaml:1:1: is empty"));
    }

    #[test]
    fn clones_share_the_set_and_a_snapshot_keeps_it() {
        let current = Current::default();
        let (first, second) = (set("first"), set("second"));
        current.clone().replace(first.clone());
        let snapshot = current.snapshot().unwrap();
        current.explain("what comes after a set in force does not unseat it");
        assert_eq!(current.snapshot().unwrap().digest(), first.digest());
        current.replace(second.clone());
        assert_eq!(snapshot.digest(), first.digest());
        assert_eq!(current.snapshot().unwrap().digest(), second.digest());
    }

    #[tokio::test]
    async fn each_set_in_force_is_told_and_an_explanation_is_none() {
        let current = Current::default();
        let mut changes = current.changes();
        let told = async |changes: &mut Changes| {
            tokio::time::timeout(std::time::Duration::ZERO, changes.next()).await.is_ok()
        };
        current.explain("why");
        assert!(!told(&mut changes).await);
        current.replace(set("first"));
        assert!(told(&mut changes).await && !told(&mut changes).await);
        drop(current);
        assert!(!told(&mut changes).await);
    }
}
