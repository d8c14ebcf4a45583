//! Asking again and again.

use std::time::Duration;

use portcullis::{
    policy::fetch::{Place, run},
    resolve::{HostsDirectories, Registry},
};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::support::registry::{Fault, Match, TestRegistry};

/// Never, as far as a test is concerned.
const NEVER: Duration = Duration::from_secs(100_000);

fn registry() -> (TestRegistry, Fetcher) {
    let registry = TestRegistry::start();
    let image = format!("{}/policies:prod", registry.host()).parse().unwrap();
    let hosts = Registry::new(HostsDirectories::default());
    let place = Place::Oci { image, credentials: None, registry: hosts };
    let fetcher = fetcher(place);
    (registry, fetcher)
}

#[tokio::test]
async fn whoever_asks_is_answered_at_once_and_an_end_is_an_end() {
    let (registry, fetcher) = registry();
    let (tell, mut told) = mpsc::channel(1);
    let asked = Arc::new(Notify::new());
    let task = tokio::spawn(run(fetcher, NEVER, tell, asked.clone()));
    for count in 1..=3 {
        let line = super::told(&told.recv().await.unwrap(), &registry);
        assert_eq!(line, "failed: tag prod: S has none (404 Not Found)");
        assert!(registry.requests().len() >= count);
        asked.notify_one();
    }
    drop(told);
    task.await.unwrap();
}

#[tokio::test]
async fn a_place_is_asked_again_after_a_while_and_after_a_failure() {
    let (registry, fetcher) = registry();
    registry.fault(Match::any(), Fault::Status(403, Vec::new(), String::new()));
    let (tell, mut told) = mpsc::channel(1);
    let interval = Duration::from_millis(1);
    let task = tokio::spawn(run(fetcher, interval, tell, Arc::new(Notify::new())));
    let first = super::told(&told.recv().await.unwrap(), &registry);
    assert!(first.starts_with("failed: tag prod: S refused"), "{first}");
    registry.heal();
    // As many as come: each is told.
    for _ in 0..3 {
        told.recv().await.unwrap();
    }
    drop(told);
    task.await.unwrap();
}
