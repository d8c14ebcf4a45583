//! The API server as the source of policies, against a stand-in over real HTTP.

mod access;
mod faults;
mod follow;
mod reports;

use std::{sync::Arc, time::Duration};

use portcullis::{
    kubernetes::{self, Config, Server, Times},
    policy::{Heard, Offer, pace::Pace},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};

use crate::support::api_server::ApiServer;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// As in production, but for waits that a test would have to sit through.
fn times() -> Times {
    let again = Pace { base: Duration::from_millis(2), cap: Duration::from_millis(50) };
    // Long enough for a test to see that no watch is open.
    let spread = Duration::from_millis(50);
    Times { again, unchanged: Duration::ZERO, spread, ..Times::default() }
}

/// A node that follows an API server.
struct Node {
    heard: mpsc::Receiver<Heard>,
    asked: Arc<Notify>,
    directory: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Node {
    fn of(server: &ApiServer) -> Self {
        Self::with(server, times(), "", "")
    }

    /// With these lines in its kubeconfig.
    fn with(server: &ApiServer, times: Times, cluster: &str, user: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        server.kubeconfig(&directory.path().join("kubeconfig"), cluster, user);
        Self::start(directory, times)
    }

    fn start(directory: tempfile::TempDir, times: Times) -> Self {
        let kubeconfig = Some(directory.path().join("kubeconfig"));
        let (tell, heard) = mpsc::channel(16);
        let asked = Arc::new(Notify::new());
        let task = {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let server = Server::new(Config { kubeconfig, times });
                kubernetes::run(&server, tell, asked).await;
            })
        };
        Self { heard, asked, directory, task }
    }

    #[track_caller]
    fn next(&mut self) -> impl Future<Output = Heard> + '_ {
        let place = std::panic::Location::caller();
        async move {
            let heard = timeout(PATIENCE, self.heard.recv()).await;
            heard.unwrap_or_else(|_| panic!("{place}: nothing was heard")).expect("it runs")
        }
    }

    #[track_caller]
    fn offer(&mut self) -> impl Future<Output = Offer> + '_ {
        let place = std::panic::Location::caller();
        async move {
            match self.next().await {
                Heard::Offer(offer) => offer,
                other => panic!("{place}: {other:?} is no offer"),
            }
        }
    }

    #[track_caller]
    fn failed(&mut self) -> impl Future<Output = String> + '_ {
        let place = std::panic::Location::caller();
        async move {
            match self.next().await {
                Heard::Failed(why) => why,
                other => panic!("{place}: {other:?} is no failure"),
            }
        }
    }

    #[track_caller]
    fn unchanged(&mut self) -> impl Future<Output = ()> + '_ {
        let place = std::panic::Location::caller();
        async move {
            let heard = self.next().await;
            assert!(matches!(heard, Heard::Unchanged), "{place}: {heard:?} is a change");
        }
    }

    /// Nothing has been heard that nobody took.
    #[track_caller]
    fn silent(&mut self) {
        let heard = self.heard.try_recv();
        assert!(heard.is_err(), "{heard:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The names of the objects of an offer.
fn names(offer: &Offer) -> Vec<&str> {
    offer.texts.files.iter().map(|text| &*text.name).collect()
}
