//! The API server as the source of policies, and what this node tells it.
//!
//! `watch` lists and watches each kind of `kinds` (the protocol of the Kubernetes documentation,
//! "Efficient detection of changes"), through `client`; `wire` and `lines` read what comes, `set`
//! holds it and says what there is to tell: these three are pure. `condition` and `report` keep
//! the Node's condition, `events` and `ration` put refusals on their pods.

mod client;
pub mod condition;
pub mod events;
mod failure;
mod kinds;
mod lines;
mod list;
mod names;
mod ration;
mod report;
mod set;
mod watch;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc};

use crate::policy::{Heard, Offer, pace::Pace};

pub use client::Server;
pub use names::node_name;
pub use report::report;

/// Where the API server is, and when it is asked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Says where it is and who asks. None: what a pod is given, in a pod; else kubelet's own
    /// `/etc/kubernetes/kubelet.conf`.
    pub kubeconfig: Option<PathBuf>,
    /// When it is asked.
    pub times: Times,
}

/// When the API server is asked, and for how long it is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The shortest that a watch is asked to last; up to twice as long, by chance.
    pub watch: Duration,
    /// A watch that lasts so much longer than asked for is dropped.
    pub grace: Duration,
    /// From a request to the head of its answer, and from there to the end of a list.
    pub answer: Duration,
    /// Quiet that must follow a change before the set is told: `kubectl apply` sends one object
    /// after the other.
    pub settle: Duration,
    /// Longest wait for quiet.
    pub settle_at_most: Duration,
    /// The least time from one word that nothing has changed to the next.
    pub unchanged: Duration,
    /// How soon what failed is tried again.
    pub again: Pace,
    /// The Node's condition is written, and a watch that was lost is resumed, after any wait up to
    /// this, so that ten thousand nodes do not ask at once.
    pub spread: Duration,
    /// How often the condition is written although it has not changed, a fifth more or less.
    pub refresh: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(5 * 60),
            grace: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            settle: Duration::from_millis(50),
            settle_at_most: Duration::from_millis(500),
            unchanged: Duration::from_secs(5),
            again: Pace { base: Duration::from_secs(1), cap: Duration::from_secs(60) },
            spread: Duration::from_secs(10),
            refresh: Duration::from_secs(10 * 60),
        }
    }
}

/// Tells what the API server holds, and every change of it. Ends only when it is dropped, or
/// nobody listens any more. Whoever uses `asked` has everything listed anew, and is told what
/// became of it.
pub async fn run(server: &Server, tell: mpsc::Sender<Heard>, asked: Arc<Notify>) {
    watch::run(server, tell, asked).await;
}

/// What the API server holds now.
///
/// # Errors
///
/// Why it does not say, or that it holds what is no policy, in a sentence.
pub async fn once(server: &Server) -> Result<Offer, String> {
    watch::once(server).await
}
