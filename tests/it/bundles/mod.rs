//! Signed bundles of policies from servers and registries that behave, and from those that do not.

mod commands;
mod https;
mod node;
mod oci;
mod poller;

use std::sync::Arc;

use portcullis::{
    policy::{
        Heard, Text, Texts,
        bundle::{Payload, SigningKey, sign},
        fetch::{Fetcher, Place},
    },
    resolve::Patience,
    verify::PublicKey,
};

use crate::support::{fixtures::Fixtures, registry::TestRegistry};

/// Limits of time for servers that never answer.
const HASTY: Patience = Patience {
    connect: std::time::Duration::from_secs(20),
    head: std::time::Duration::from_millis(500),
    whole: std::time::Duration::from_millis(1000),
};

/// A private key of the fixtures.
fn key(name: &str) -> SigningKey {
    SigningKey::from_pem(&Fixtures::load().file(&format!("keys/{name}.key"))).unwrap()
}

fn pinned(name: &str) -> Arc<[PublicKey]> {
    [key(name).public().clone()].into()
}

fn payload(revision: u64) -> Vec<u8> {
    let policy = "apiVersion: portcullis.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {name: p}\n\
                  spec: {match: {images: ['**']}, authorities: [{name: a, unsigned: {reason: r}}]}\n";
    let files = vec![Text { name: "p.yaml".into(), text: policy.into() }];
    let texts = Texts { files, keys: Vec::new() };
    Payload { revision, expires_at: None, texts }.write().unwrap()
}

/// A bundle of this revision, signed with the Ed25519 key of the fixtures, which always signs the
/// same bytes alike.
fn bundle(revision: u64) -> String {
    String::from_utf8(sign(&payload(revision), &key("ed25519")).unwrap().bytes).unwrap()
}

/// What was heard, in a line, with the server as `S`.
fn told(heard: &Heard, server: &TestRegistry) -> String {
    let line = match heard {
        Heard::Offer(offer) => {
            assert!(offer.sealed.is_some());
            format!("offers {}", offer.revision.unwrap())
        }
        Heard::Unchanged => "unchanged".to_owned(),
        Heard::Rejected(problems) => format!("rejected: {problems}"),
        Heard::Failed(why) => format!("failed: {why}"),
    };
    line.replace(server.host(), "S")
}

/// Asks once.
async fn asks(fetcher: &mut Fetcher, server: &TestRegistry) -> String {
    told(&fetcher.ask(false).await.heard, server)
}

fn fetcher(place: Place) -> Fetcher {
    Fetcher::new(place, pinned("ed25519"))
}
