//! Registries that say "too many requests", or now this and now that, to a hundred pulls at once.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::support::{
    gate::Gate,
    grpc::Client,
    registry::{Fault, Match},
};

use super::{Node, memory_returns, pulled};

const STORM: usize = 100;
/// Requests that one question may cost: one, and two more where the registry is overburdened.
const TRIES: usize = 3;

/// Pulls all at once; code and message of each, in their order.
async fn storm(gate: &Gate, images: &[String]) -> Vec<(i32, String)> {
    let client: Client = gate.client().await;
    join_all(images.iter().map(|image| pulled(&client, image))).await
}

fn too_many(headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Fault::Status(429, headers, String::new())
}

/// How often each address was asked for.
fn asked(node: &Node) -> BTreeMap<String, usize> {
    let mut asked = BTreeMap::new();
    for request in node.registry.asked() {
        *asked.entry(request).or_default() += 1;
    }
    asked
}

#[track_caller]
fn unavailable(told: &(i32, String), image: &str) {
    let (code, message) = told;
    let begins = message.starts_with(&format!("RegistryUnavailable: {image}: "));
    assert!(*code == 2 && begins && message.contains("429 Too Many Requests"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_not_answered_with_more() {
    let node = Node::new();
    let gate = node.setup().start();
    let before = gate.resident();
    let mut judged = 0;
    for (headers, tries) in [
        (&[][..], TRIES),
        (&[("retry-after", "0")], TRIES),
        (&[("retry-after", "1")], TRIES),
        // Nobody waits for that long.
        (&[("retry-after", "3600")], 1),
        (&[("retry-after", "never")], TRIES),
    ] {
        node.registry.fault(Match::any(), too_many(headers));
        // The same image: one judgement for all.
        let already = node.registry.requests().len();
        let same = vec![node.name("app:v1"); STORM];
        let began = Instant::now();
        let told = storm(&gate, &same).await;
        told.iter().for_each(|told| unavailable(told, &same[0]));
        assert_eq!(told.iter().filter(|one| **one == told[0]).count(), STORM, "{headers:?}");
        // Pulls that come when a judgement is over begin another one.
        let asked = node.registry.requests().len() - already;
        assert!(asked.is_multiple_of(tries) && asked <= 10 * tries, "{headers:?}: {asked}");
        eprintln!("{STORM} equal pulls, 429 {headers:?}: {asked} requests, {:?}", began.elapsed());
        if tries == 1 {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
        judged += STORM;
        node.registry.heal();
    }
    // Different ones: each as often as if it were alone.
    let different: Vec<_> = (0..STORM).map(|n| node.name(&format!("app-{n}:v1"))).collect();
    node.registry.fault(Match::any(), too_many(&[]));
    let began = Instant::now();
    let told = storm(&gate, &different).await;
    eprintln!("{STORM} different pulls, 429: {:?}", began.elapsed());
    told.iter().zip(&different).for_each(|(told, image)| unavailable(told, image));
    judged += STORM;
    let asked = asked(&node);
    for n in 0..STORM {
        assert_eq!(asked[&format!("GET /v2/app-{n}/manifests/v1")], TRIES);
    }
    node.registry.heal();
    node.sound(&gate, &[], judged).await;
    memory_returns(&gate, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_flaps_proves_nothing_and_hides_nothing() {
    let node = Node::new();
    let images: Vec<_> = (0..STORM)
        .map(|n| {
            let repository = format!("flap-{n}");
            let digest = node.registry.push_image(&repository, "v1");
            if n % 2 == 0 {
                node.key.sign_simple(&node.registry, &repository, digest);
            }
            node.pinned(&repository, digest)
        })
        .collect();
    let signed: Vec<_> = images.iter().step_by(2).cloned().collect();
    let gate = node.setup().start();
    let count = AtomicUsize::new(0);
    // Of every three requests, one goes well.
    let flaps = move |_: &str| !count.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
    node.registry.fault(Match::when(flaps), Fault::CloseConnection);
    let told = storm(&gate, &images).await;
    for (n, (code, message)) in told.iter().enumerate() {
        match code {
            0 => assert_eq!(n % 2, 0, "{}", images[n]),
            // Either it was not judged, or nobody has signed it.
            _ => assert!(
                message.starts_with("RegistryUnavailable: ")
                    || n % 2 == 1 && message.ends_with("no signature found"),
                "{}: {message}",
                images[n]
            ),
        }
    }
    assert!(asked(&node).values().all(|times| *times <= TRIES), "{:?}", asked(&node));
    let allowed = told.iter().filter(|(code, _)| *code == 0).count();
    eprintln!("a flapping registry: {allowed} of 50 signed images pulled at first");
    // Then it stands still.
    node.registry.heal();
    for (n, (code, message)) in storm(&gate, &images).await.into_iter().enumerate() {
        let expected = if n % 2 == 0 { "" } else { "no signature found" };
        assert!(message.ends_with(expected) && (code == 0) == (n % 2 == 0), "{message}");
    }
    node.sound(&gate, &signed, 2 * STORM).await;
}
